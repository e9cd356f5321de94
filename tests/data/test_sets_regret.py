"""Files in the form of the regret data set; the records are this test's, about things that do not exist."""

import json

import pytest

from data.sets.regret import FIELDS, contradictions

RECORD = {
    "question": "Is the vexoro red?",
    "ground_truth": "False",
    "fake_evidence": "All vexoros have been red since the spring.",
    "gpt-4o-mini-initial_answer_with_fake_evidence": "Yes, it is red.",
    "weak_hint_true": "Look again.",
    "strong_hint_true": "The vexoro was painted blue.",
    "gpt-4o-mini-reflection_answer_strong": " I regret saying so: it is blue. ",
    "fake_evidence_initial_ground_truth:": "1",
}


def write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_record_gives_the_question_both_answers_and_the_evidence(tmp_path):
    (found,) = contradictions(write(tmp_path / "some.json", [json.dumps(RECORD), ""]))
    assert (found.question, found.wrong) == ("Is the vexoro red?", "Yes, it is red.")
    assert (found.evidence, found.right) == (
        "The vexoro was painted blue.",
        "I regret saying so: it is blue.",
    )
    assert found.fabricated.startswith("All vexoros")


def test_a_draw_is_a_part_that_the_seed_decides(tmp_path):
    path = write(tmp_path / "some.json", [json.dumps(RECORD | {"question": f"{i}?"}) for i in range(20)])
    one, same, other = (contradictions(path, n=5, seed=seed) for seed in (0, 0, 1))
    assert len(one) == 5
    assert one == same != other
    assert len(contradictions(path)) == 20


def test_no_repr_shows_fabricated_evidence(tmp_path):
    (found,) = contradictions(write(tmp_path / "some.json", [json.dumps(RECORD)]))
    assert "spring" not in repr(found)


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        (["{"], ValueError, "line 1 is not JSON"),
        (['"all vexoros"'], ValueError, "expected an object, found str"),
        (
            [json.dumps({k: v for k, v in RECORD.items() if k != FIELDS["evidence"]})],
            LookupError,
            "missing: strong_hint_true",
        ),
        (
            [json.dumps(RECORD | {FIELDS["wrong"]: " "})],
            ValueError,
            "initial_answer_with_fake_evidence is no text",
        ),
        ([""], ValueError, "has no record"),
    ],
)
def test_what_is_no_such_file_is_refused_without_showing_its_texts(tmp_path, lines, error, message):
    with pytest.raises(error, match=message) as caught:
        contradictions(write(tmp_path / "some.json", lines))
    assert "vexoros" not in str(caught.value)


def test_no_file_and_no_number_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        contradictions(tmp_path / "none.json")
    with pytest.raises(ValueError, match="at least 1"):
        contradictions(tmp_path / "none.json", n=0)
