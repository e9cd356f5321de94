"""The world of prompts with corrupted twins, and the networks whose circuit is written by hand."""

import numpy as np
import pytest
import torch
from single_edges import effects
from transformers import GPT2LMHeadModel

from data.recipes.circuits import CONSTRUCTED, MARGIN, constructed, tokenizer
from data.worlds import circuits as world
from lib.edges import Patcher, acdc


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
    with pytest.raises(ValueError, match="task='ioi': circuits are constructed for constructed-induction"):
        constructed("ioi", 0)


def test_a_word_is_a_token_and_a_prompt_begins_with_bos() -> None:
    words = tokenizer("ioi")
    assert words("Ada and Ben went , Ben gave to")["input_ids"][0] == words.bos_token_id
    assert len(words(" Ada", add_special_tokens=False)["input_ids"]) == 1
    assert words.convert_tokens_to_ids("nobody") == words.unk_token_id


@pytest.fixture(scope="module", params=CONSTRUCTED)
def known(request: pytest.FixtureRequest) -> tuple:
    task = request.param
    network = constructed(task, 1)
    drawn = world.prompts(task, 16, rng(3))
    clean, corrupted = (network.subject.encode(list(texts)) for texts in (drawn.clean, drawn.corrupted))
    return task, network, drawn, clean, corrupted


def answer_share(network: object, inputs: dict, answers: tuple) -> torch.Tensor:
    subject = network.subject
    p = subject.model(**inputs).logits[:, -1].softmax(-1)
    ids = [subject.tokenizer.convert_tokens_to_ids(words[0].strip()) for words in answers]
    return p[torch.arange(len(p)), ids]


@torch.no_grad()
def test_a_constructed_network_is_a_gpt2_that_does_its_task(known: tuple) -> None:
    task, network, drawn, clean, corrupted = known
    assert isinstance(network.subject.model, GPT2LMHeadModel)
    right = answer_share(network, clean, drawn.right)
    assert right.min() > (0.6 if task == "constructed-proportion" else 0.95)
    assert answer_share(network, corrupted, drawn.right).mean() < 0.3


@pytest.mark.parametrize("ablation", ["corrupt", "zero"])
def test_only_edges_that_were_written_down_have_an_effect(known: tuple, ablation: str) -> None:
    task, network, _, clean, corrupted = known
    n, length = clean["input_ids"].shape
    patcher = Patcher(
        network.subject, clean, corrupted, positions=torch.full((n,), length - 1), ablation=ablation
    )
    graph, log_p = patcher.graph, patcher.clean_logits.double().log_softmax(-1)

    def kl(logits: torch.Tensor) -> torch.Tensor:
        return (log_p.exp() * (log_p - logits.double().log_softmax(-1))).sum(-1).mean(-1)

    def named(mask: torch.Tensor) -> set[tuple[str, str]]:
        return {(str(graph.senders[s]), str(graph.receivers[r])) for r, s in mask.nonzero().tolist()}

    truth = network.telling if ablation == "corrupt" else network.edges
    assert network.telling <= network.edges <= named(graph.exists)
    felt = named(effects(patcher, kl).nan_to_num().abs() > 1e-6)
    kept = named(acdc(patcher, kl, 1e-3).edges)
    if task == "constructed-or":  # either side of the gate will do, so neither is missed alone
        assert felt == {("m0", "logits")}
        assert felt < kept < truth
        sides = [{edge for edge in truth if f"a0.h{head}" in str(edge)} for head in (0, 1)]
        assert sum(side <= kept for side in sides) == 1
    else:
        assert felt == kept == truth


def test_seeds_differ_in_their_basis_and_not_in_what_they_compute() -> None:
    one, two = (constructed("constructed-reverse", seed) for seed in (0, 1))
    clean = one.subject.encode(list(world.prompts("constructed-reverse", 16, rng()).clean))
    with torch.no_grad():
        a, b = (network.subject.model(**clean).logits[:, -1] for network in (one, two))
    torch.testing.assert_close(a, b, atol=1e-3, rtol=0)
    assert one.edges == two.edges
    weights = [network.subject.model.transformer.h[1].attn.c_attn.weight for network in (one, two)]
    assert (weights[0] - weights[1]).abs().max() > 0.5


def test_norms_are_idle_and_a_head_looks_where_it_should() -> None:
    network = constructed("constructed-induction", 0)
    model, subject = network.subject.model, network.subject
    x = model.transformer.wte.weight[3:9] + model.transformer.wpe.weight[:6]
    torch.testing.assert_close(model.transformer.h[0].ln_1(x), x, atol=1e-5, rtol=0)
    model.set_attn_implementation("eager")
    drawn = world.prompts("constructed-induction", 4, rng())
    with torch.no_grad():
        found = model(**subject.encode(list(drawn.clean)), output_attentions=True).attentions
    before = found[0][:, 0].diagonal(-1, 1, 2)
    assert before.min() > 1 - 20 * np.exp(-MARGIN), "a0.h0 looks at the word before"
    for text, pattern in zip(drawn.clean, found[1][:, 0, -1], strict=True):
        words = ["<bos>", *text.split()]
        assert pattern.argmax() == words.index(words[-1]) + 1, "a1.h0 looks at what came after it last time"
