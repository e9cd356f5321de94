"""TruthfulQA's form: files that are read, and what is wrong with those that are not."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from data.sets import multiple_choice
from data.sets.multiple_choice import truthful_qa

RECORD: dict[str, Any] = {
    "question": "What do zorps eat?",
    "mc1_targets": {"choices": ["Plums.", "Bread."], "labels": [1, 0]},
    "mc2_targets": {"choices": ["They eat plums.", "Plums.", "Bread.", "Rain."], "labels": [1, 1, 0, 0]},
}


def write(path: Path, records: list[Any]) -> Path:
    if path.suffix == ".parquet":
        pd.DataFrame(records).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    else:
        path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet"])
def test_files_in_the_hubs_form_are_read(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, [RECORD] * 3)
    found = truthful_qa(path)
    assert len(found) == 3
    assert found[0].question == "What do zorps eat?"
    assert found[0].answers == ("They eat plums.", "Plums.", "Bread.", "Rain.")
    assert found[0].true == (True, True, False, False)
    assert found[0].best == 1
    assert len(truthful_qa(path, n=2)) == 2


def test_the_hubs_file_is_fetched_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked = write(tmp_path / "a.parquet", [RECORD]), []
    monkeypatch.setattr(multiple_choice, "fetch", lambda *which: asked.append(which) or path)
    assert len(truthful_qa()) == 1
    assert asked == [("TruthfulQA", multiple_choice.TRUTHFUL_QA[0], multiple_choice.FILE, asked[0][3])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mc1_targets": {"choices": ["Plums.", "Bread."], "labels": [1, 1]}}, "2 answers with the label 1"),
        ({"mc1_targets": {"choices": ["Bread.", "Rain."], "labels": [1, 0]}}, "not among the true ones"),
        ({"mc2_targets": {"choices": ["Plums."], "labels": [1, 0]}}, "1 choices and 2 labels"),
        ({"mc2_targets": {"choices": ["Plums.", "Plums."], "labels": [1, 0]}}, "both true and false"),
        ({"mc2_targets": {"choices": ["Plums."], "labels": [1]}}, "no false answer"),
    ],
)
def test_answers_that_cannot_be_told_apart_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.json", [RECORD, RECORD | change])
    with pytest.raises(ValueError, match=rf"a.json, record 2: .*{message}"):
        truthful_qa(path)


def test_bad_files_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match=r"record 1: it has the fields question; missing: mc1_targets"):
        truthful_qa(write(tmp_path / "a.json", [{"question": "?"}]))
    with pytest.raises(ValueError, match="expected an object, found str"):
        truthful_qa(write(tmp_path / "b.json", ["?"]))
    with pytest.raises(ValueError, match="no record"):
        truthful_qa(write(tmp_path / "c.json", []))
    (tmp_path / "d.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"d.jsonl is neither a JSON list nor JSON lines"):
        truthful_qa(tmp_path / "d.jsonl")
    with pytest.raises(FileNotFoundError, match="no file"):
        truthful_qa(tmp_path / "nowhere.json")
