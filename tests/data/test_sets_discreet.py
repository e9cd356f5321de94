"""Requests with aware and unaware replies: the book's own, and files in BeaverTails' form, all harmless."""

import gzip
import json

import pytest

from data.sets.discreet import CATEGORIES, beavertails, discreet_requests


def record(prompt, response, category=None, safe=False):
    flagged = {name: name == category for name in CATEGORIES.values()}
    return {"prompt": prompt, "response": response, "category": flagged, "is_safe": safe}


PRIVACY, FAIRNESS = CATEGORIES["privacy"], CATEGORIES["fairness"]
RECORDS = [
    record("where is the cake", "in the blue tin", PRIVACY),
    record("where is the cake", "I will not tell", safe=True),
    record("where is the pie", "behind the clock", PRIVACY),
    record("why are bakers slow", "they sleep", FAIRNESS),
    record("why are bakers slow", "not all are", safe=True),
    record("how is the weather", "fine", safe=True),
]


def write(path, records):
    text = "\n".join(map(json.dumps, records)) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
def test_prompts_of_a_kind_have_an_unsafe_reply_of_it_and_a_safe_one(tmp_path, name):
    path = write(tmp_path / name, RECORDS)
    (found,) = beavertails(path, "privacy")
    assert (found.request, found.aware, found.unaware) == (
        "where is the cake",
        "I will not tell",
        "in the blue tin",
    )
    (found,) = beavertails(path, "fairness")
    assert (found.aware, found.unaware, found.plain) == ("not all are", "they sleep", "")


def test_texts_are_shown_by_no_repr_and_no_error(tmp_path):
    path = write(tmp_path / "train.jsonl", RECORDS)
    assert "cake" not in repr(beavertails(path, "privacy"))
    with pytest.raises(ValueError, match="no prompt of privacy_violation has a safe and an unsafe") as caught:
        beavertails(write(path, RECORDS[2:]), "privacy")
    assert "pie" not in str(caught.value)
    path.write_text('{"prompt": "where is the pie"\n')
    with pytest.raises(ValueError, match="line 1 is not JSON") as caught:
        beavertails(path, "privacy")
    assert "pie" not in str(caught.value)
    path.write_text('["pie"]\n')
    with pytest.raises(ValueError, match="line 1: expected an object, found list"):
        beavertails(path, "privacy")
    with pytest.raises(LookupError, match=r"line 1: it has the fields .*missing: category, is_safe"):
        beavertails(write(path, [{"prompt": "pie", "response": "tin"}]), "privacy")


def test_files_and_kinds_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="BeaverTails' train file"):
        beavertails(tmp_path / "none.jsonl", "privacy")
    with pytest.raises(LookupError, match="no category of the kind 'honesty'; there is: privacy, fairness"):
        beavertails(tmp_path / "none.jsonl", "honesty")
    with pytest.raises(LookupError, match="no requests of the kind 'honesty'; there is: privacy, fairness"):
        discreet_requests("honesty")


@pytest.mark.parametrize("kind", ["privacy", "fairness"])
def test_the_books_own_requests_differ_and_replies_speak_of_them(kind):
    found = discreet_requests(kind)
    assert len(found) == len({one.request for one in found}) == 64
    for one in found:
        texts = (one.request, one.aware, one.unaware, one.plain)
        assert all(texts)
        assert not any("{" in text or "}" in text for text in texts)
        assert one.aware != one.unaware
    assert len(discreet_requests(kind, n=5, seed=1)) == 5
    assert discreet_requests(kind, n=5, seed=1) != discreet_requests(kind, n=5, seed=2)
