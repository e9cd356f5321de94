"""Prompts with candidates: the book's own sets, and files in three schemas, with texts of this test."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.sets.attributes import Item, check_item, from_file, named, parts
from data.sets.texts import Stereotype, facts, misconceptions


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    return path


def truthful(i: int) -> dict[str, Any]:
    targets = {"choices": [f"It is {i}.", "Nobody knows.", "It is blue."], "labels": [1, 1, 0]}
    return {"question": f"What is {i}?", "mc1_targets": {}, "mc2_targets": targets}


BBQ = {"context": "A zorp met a blick.", "question": "Who sings?", "ans0": "zorp", "ans1": "blick"}
BBQ |= {"ans2": "unknown", "label": 2}


def test_a_prompt_and_a_candidate_make_the_sentence() -> None:
    items = named("misconceptions")
    assert len(items) > 0.9 * len(misconceptions())
    sentences = {m.truth: m.myth for m in misconceptions()}
    for item in items:
        truth, myth = (f"{item.prompt}{text}".removeprefix("Here is a fact. ") for text in item.candidates)
        assert sentences[truth] == myth
        assert item.good == (True, False)
        check_item(item, "")


def test_of_stereosets_triples_two_have_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    triples = [Stereotype("My aunt sings well", "My aunt codes well", "My aunt rains well", "x")] * 3
    triples.append(Stereotype("One is", "Two are", "Three", "x"))  # no word in common: left out
    monkeypatch.setattr("data.sets.attributes.stereotypes", lambda name: triples)
    assert named("StereoSet") == [Item("My aunt", (" codes well", " sings well"), (True, False))] * 3
    language = Item("My aunt", (" codes well", " sings well", " rains well"), (True, True, False))
    assert named("language") == [language] * 3


def test_facts_and_names_have_one_right_answer() -> None:
    assert len(named("facts")) == len(facts())
    for item in [*named("facts", n=20), *named("IOI", n=20, seed=1)]:
        check_item(item, "")
        assert sum(item.good) == 1
        assert all(text.startswith(" ") for text in item.candidates)


def test_files_in_three_schemas_are_known_by_their_fields(tmp_path: Path) -> None:
    (found,) = from_file(write(tmp_path / "a.jsonl", [truthful(3)]))
    assert found == Item(
        "Q: What is 3?\nA:", (" It is 3.", " Nobody knows.", " It is blue."), (True, True, False)
    )
    (found,) = from_file(write(tmp_path / "b.jsonl", [BBQ]))
    assert found == Item(
        "A zorp met a blick. Who sings?\nA:", (" zorp", " blick", " unknown"), (False, False, True)
    )
    replies = [("p", "good", 4), ("p", "bad", 1), ("p", "fair", 2), ("q", "one", 3), ("q", "other", 3)]
    records = [{"prompt": p, "response": r, "helpfulness": h, "verbosity": 1} for p, r, h in replies]
    assert from_file(write(tmp_path / "c.jsonl", records)) == [Item("p\n", ("good", "bad"), (True, False))]


def test_the_three_parts_have_no_item_in_common(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.jsonl", [truthful(i) for i in range(40)]))
    train, validation, test = parts(path, 10, 16, seed=1)
    assert [len(train), len(validation), len(test)] == [10, 8, 16]
    assert len({item.prompt for item in (*train, *validation, *test)}) == 34
    assert parts(path, 10, 16, seed=1) == (train, validation, test) != parts(path, 10, 16, seed=2)
    assert [*map(len, parts(path, 80, 160))] == [10, 10, 20]


@pytest.mark.parametrize(
    ("records", "error", "message"),
    [
        ([], ValueError, "has no record"),
        ([{"text": "x"}], LookupError, "has the fields text; known are TruthfulQA: question"),
        ([BBQ, {"context": "x"}], LookupError, "record 2: it has the fields context; missing: question"),
        ([BBQ | {"ans1": "zorp"}], ValueError, "item 1: two answers are equal"),
        ([BBQ | {"ans1": " "}], ValueError, "item 1: the prompt or an answer is empty"),
        ([BBQ | {"label": 3}], ValueError, "item 1: of its answers all or none are good"),
        ([{"prompt": "p", "response": "r", "helpfulness": 1}], ValueError, "no prompt has two responses"),
        ([3], ValueError, "line 1: expected an object"),
    ],
)
def test_bad_files_are_refused_in_words(
    records: list[Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        from_file(write(tmp_path / "x.jsonl", records))


def test_other_bad_input_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("{")
    for call, error, message in (
        (lambda: from_file(tmp_path / "x.jsonl"), ValueError, "line 1 is not JSON"),
        (lambda: from_file(tmp_path / "y.jsonl"), FileNotFoundError, "no file"),
        (lambda: named("BBQ"), LookupError, "no set 'BBQ'; there is: misconceptions"),
        (lambda: named("facts", n=0), ValueError, "n=0: at least 1 item"),
        (lambda: from_file(tmp_path / "x.jsonl", n=0), ValueError, "n=0: at least 1 item"),
        (
            lambda: parts(str(write(tmp_path / "z.jsonl", [BBQ] * 9)), 8, 8),
            ValueError,
            "9 items are too few",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
