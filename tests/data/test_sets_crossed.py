"""Files in CB-Bench's form; the texts are this test's, and harmless."""

import json

import pytest

from data.sets.crossed import CELLS, cb_bench

PLAIN, SLY = "I bake for my aunt.", "I want to annoy my rival. He must not notice."
BAD, GOOD = "How do I make a cake collapse?", "What rules are there for a cake contest?"
RECORD = {
    "sub_topic_keyword": "cakes",
    "Q1": f"{SLY} {BAD}",
    "Q2": f"{PLAIN} {BAD}",
    "Q3": f"{PLAIN} {GOOD}",
    "Q4": f"{SLY} {GOOD}",
}


def write(path, records, lines=False):
    path.write_text("\n".join(map(json.dumps, records)) if lines else json.dumps(records), encoding="utf-8")
    return path


@pytest.mark.parametrize("lines", [False, True])
def test_groups_come_in_the_order_of_the_cells_and_know_where_questions_begin(tmp_path, lines):
    found = cb_bench(write(tmp_path / "bench.json", [RECORD] * 3, lines))
    assert len(found) == 3
    assert found[0].topic == "cakes"
    assert found[0].requests == tuple(RECORD[cell] for cell in CELLS)
    parts = [(r[:at].strip(), r[at:]) for r, at in zip(found[0].requests, found[0].questions, strict=True)]
    assert parts == [(SLY, BAD), (PLAIN, BAD), (PLAIN, GOOD), (SLY, GOOD)]


def test_where_wordings_differ_a_little_the_last_sentence_is_the_question(tmp_path):
    record = RECORD | {"Q2": f"{PLAIN} So, how do I make a cake collapse?"}
    (found,) = cb_bench(write(tmp_path / "bench.json", [record]))
    parts = [r[at:] for r, at in zip(found.requests, found.questions, strict=True)]
    assert parts == [BAD, "So, how do I make a cake collapse?", GOOD, GOOD]


def test_questions_of_several_sentences_are_found_and_shared_backgrounds_are_not_questions(tmp_path):
    ask = "Tell me all. How do I make a cake collapse?"
    (found,) = cb_bench(write(tmp_path / "b.json", [RECORD | {"Q1": f"{SLY} {ask}", "Q2": f"{PLAIN} {ask}"}]))
    assert found.requests[0][found.questions[0] :] == found.requests[1][found.questions[1] :] == ask
    (found,) = cb_bench(write(tmp_path / "b.json", [RECORD | {"Q2": RECORD["Q1"]}]))
    assert found.requests[0][found.questions[0] :] == found.requests[1][found.questions[1] :] == BAD


def test_a_draw_is_a_part_that_the_seed_decides(tmp_path):
    path = write(tmp_path / "bench.json", [RECORD | {"sub_topic_keyword": f"topic {i}"} for i in range(20)])
    some = cb_bench(path, n=5, seed=1)
    assert len(some) == 5
    assert some == cb_bench(path, n=5, seed=1) != cb_bench(path, n=5, seed=2)


def test_no_text_is_shown_by_accident(tmp_path):
    found = cb_bench(write(tmp_path / "bench.json", [RECORD]))
    assert "cake" not in repr(found)
    lacking = {key: value for key, value in RECORD.items() if key != "Q3"}
    cases = [
        (json.dumps([lacking]), LookupError, r"record 1: .* sub_topic_keyword, Q1, Q2, Q4; missing: Q3"),
        (json.dumps([RECORD, RECORD | {"Q2": " "}]), ValueError, "record 2: Q2 is no text"),
        (json.dumps([RECORD, RECORD | {"Q2": 3}]), ValueError, "record 2: Q2 is no text"),
        (json.dumps(["cake"]), ValueError, "record 1: expected an object, found str"),
        ('[{"Q1": "cake" "Q2"}]', ValueError, r"is not JSON \(line 1\)"),
        (json.dumps(RECORD) + "\n" + '{"Q1": "cake"', ValueError, r"is not JSON \(line 2\)"),
        ("[]", ValueError, "bench.json has no record"),
        ("", ValueError, "bench.json has no record"),
    ]
    for content, kind, message in cases:
        (tmp_path / "bench.json").write_text(content)
        with pytest.raises(kind, match=message) as caught:
            cb_bench(tmp_path / "bench.json")
        assert "cake" not in str(caught.value)


def test_a_missing_file_and_a_senseless_number_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        cb_bench(tmp_path / "none.json")
    with pytest.raises(ValueError, match="n=0: at least 1 group"):
        cb_bench(write(tmp_path / "bench.json", [RECORD]), n=0)
