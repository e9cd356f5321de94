"""The world of prompts with corrupted twins, and the tokenizer that reads them."""

import numpy as np
import pytest

from data.recipes.circuits import tokenizer
from data.worlds import circuits as world


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("task", world.TASKS)
def test_twins_have_the_same_number_of_words_and_a_right_answer_that_is_not_wrong(task: str) -> None:
    drawn = world.prompts(task, 50, rng())
    for clean, corrupted, right, wrong in zip(
        drawn.clean, drawn.corrupted, drawn.right, drawn.wrong, strict=True
    ):
        assert len(clean.split()) == len(corrupted.split())
        assert clean != corrupted
        assert right
        assert not set(right) & set(wrong)
        for word in clean.split() + corrupted.split() + [word.strip() for word in right + wrong]:
            assert task not in world.VOCABULARY or word in world.VOCABULARY[task]
    assert drawn == world.prompts(task, 50, rng())
    assert drawn.clean != world.prompts(task, 50, rng(1)).clean
    if task.startswith("english"):
        return
    assert len({len(text.split()) for text in drawn.clean}) == 1, "a batch needs no padding"


def test_an_induction_prompt_is_a_block_that_repeats_and_a_corrupted_one_has_no_letter_twice() -> None:
    drawn = world.prompts("induction", 300, rng())
    periods = set()
    for clean, corrupted, (answer,) in zip(drawn.clean, drawn.corrupted, drawn.right, strict=True):
        letters = clean.split()
        before = [i for i, letter in enumerate(letters[:-1]) if letter == letters[-1]]
        assert before, "the last letter has been there"
        assert {letters[i + 1] for i in before} == {answer.strip()}
        periods.add(len(letters) - 1 - before[-1])
        assert len(set(corrupted.split())) == world.LENGTH
    assert periods == set(world.PERIODS)


def test_ioi_names_the_other_person_and_three_new_ones_in_the_twin() -> None:
    drawn = world.prompts("ioi", 200, rng())
    places = set()
    for clean, corrupted, (right,), (wrong,) in zip(
        drawn.clean, drawn.corrupted, drawn.right, drawn.wrong, strict=True
    ):
        names = [word for word in clean.split() if word in world.NAMES]
        fresh = [word for word in corrupted.split() if word in world.NAMES]
        assert {right.strip(), wrong.strip()} == set(names[:2])
        assert names[2] == wrong.strip()
        assert len(set(fresh)) == 3
        assert not set(fresh) & set(names)
        assert [word for word in clean.split() if word not in names] == [
            word for word in corrupted.split() if word not in fresh
        ]
        places.add(clean.split().index("and"))
    assert len(places) == 5, "names stand at several places"


def test_what_is_held_out_is_never_drawn_in_training() -> None:
    def pairs(held_out: bool) -> set[frozenset[str]]:
        drawn = world.prompts("ioi", 2000, rng(), held_out=held_out)
        return {
            frozenset([r[0].strip(), w[0].strip()]) for r, w in zip(drawn.right, drawn.wrong, strict=True)
        }

    def spans(held_out: bool) -> set[tuple[str, ...]]:
        drawn = world.prompts("greater", 2000, rng(), held_out=held_out)
        wanted = {*world.NOUNS, *world.CENTURIES, *world.YEARS}
        return {tuple(word for word in text.split() if word in wanted) for text in drawn.clean}

    for kind in (pairs, spans):
        assert len(kind(True)) > 40
        assert not kind(True) & kind(False)


def test_greater_accepts_every_later_year_and_docstring_the_next_argument() -> None:
    for text, right, wrong in zip(
        *(lambda p: (p.clean, p.right, p.wrong))(world.prompts("greater", 50, rng())), strict=True
    ):
        year = text.split()[text.split().index("from") + 2]
        assert [word.strip() for word in right] == [y for y in world.YEARS if y > year]
        assert [word.strip() for word in wrong] == [y for y in world.YEARS if y <= year]
    drawn = world.prompts("docstring", 50, rng())
    described = set()
    for text, (right,), wrong in zip(drawn.clean, drawn.right, drawn.wrong, strict=True):
        words = text.split()
        arguments = words[words.index("self") + 1 : words.index(":")]
        documented = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "param"]
        assert arguments[: len(documented)] == documented
        assert arguments[len(documented)] == right.strip()
        assert {right.strip(), *(word.strip() for word in wrong)} == set(arguments)
        described.add(len(documented))
    assert described == {1, 2, 3}


def test_unknown_tasks_and_no_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="task='indution': expected one of induction"):
        world.prompts("indution", 3, rng())
    with pytest.raises(ValueError, match="n=0: expected at least 1"):
        world.prompts("ioi", 0, rng())


def test_a_word_is_a_token_and_a_prompt_begins_with_bos() -> None:
    words = tokenizer("ioi")
    assert words("Ada and Ben went , Ben gave to")["input_ids"][0] == words.bos_token_id
    assert len(words(" Ada", add_special_tokens=False)["input_ids"]) == 1
    assert words.convert_tokens_to_ids("nobody") == words.unk_token_id
