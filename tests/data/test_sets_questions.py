"""Questions about photographs, in the forms in which their authors and the hub have them."""

import json
from collections.abc import Callable
from pathlib import Path

import fake_hub
import pyarrow as pa
import pytest
from fake_hub import cell, png
from pyarrow import parquet as pq

from data.sets.questions import POPE, SCIENCE_QA, SCIENCE_QA_FILES, pope, science_qa


def test_pope_is_read_from_the_hub_and_from_the_authors_files_alike(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    questions = [(f"Is there a {thing} in the image?", i % 2 == 0) for i, thing in enumerate("abcdef")]
    rows = {
        "id": [str(i) for i in range(6)],
        "question_id": [str(i + 1) for i in range(6)],
        "question": [text for text, _ in questions],
        "answer": ["yes" if yes else "no" for _, yes in questions],
        "image_source": [f"COCO_val2014_{i:012}" for i in range(6)],
        "image": [cell(i) for i in range(6)],
        "category": ["popular"] * 6,
    }
    pq.write_table(pa.table(rows), tmp_path / "hub.parquet")
    asked = fake_hub.answers(monkeypatch, tmp_path / "hub.parquet")
    found = pope("popular")
    assert asked == [(POPE[0], "Full/popular-00000-of-00001.parquet", "dataset", POPE[1])]
    assert [(record.question, record.answer) for record in found] == questions
    assert [record.image.getpixel((0, 0))[0] for record in found] == list(range(6))

    lines = [
        {
            "question_id": i + 1,
            "image": f"COCO_val2014_{i:012}.jpg",
            "text": text,
            "label": "yes" if yes else "no",
        }
        for i, (text, yes) in enumerate(questions)
    ]
    (tmp_path / "coco_pope_popular.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (tmp_path / "val2014").mkdir()
    for i in range(6):
        (tmp_path / "val2014" / f"COCO_val2014_{i:012}.jpg").write_bytes(png(i))
    local = pope("popular", folder=tmp_path)
    assert [record[1:3] for record in local] == [record[1:3] for record in found]
    assert [record.image.getpixel((0, 0)) for record in local] == [(i, i, i) for i in range(6)]
    few = pope("popular", n=3, folder=tmp_path)
    assert len(few) == 3
    assert few == pope("popular", n=3, folder=tmp_path)
    assert {record.question for record in few} < {text for text, _ in questions}

    with pytest.raises(LookupError, match="split='all': POPE has 'random', 'popular' and 'adversarial'"):
        pope("all")
    with pytest.raises(FileNotFoundError, match=r"no file .*coco_pope_random\.json"):
        pope("random", folder=tmp_path)
    (tmp_path / "val2014" / f"COCO_val2014_{5:012}.jpg").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no image COCO_val2014_000000000005\.jpg in .* or .*val2014"
    ):
        pope("popular", folder=tmp_path)
    (tmp_path / "coco_pope_random.json").write_text('{"image": "x.jpg", "question": "?", "label": "yes"}')
    with pytest.raises(LookupError, match="a record has image, question, label; missing: text"):
        pope("random", folder=tmp_path)


def problem(i: int, image: object) -> dict:
    return {
        "image": image,
        "question": f"question {i}",
        "choices": ["a", "b", "c"][: 2 + i % 2],
        "answer": i % 2,
        "hint": "",
        "task": "closed choice",
        "grade": "grade2",
        "subject": "natural science",
        "topic": "physics",
        "category": "Magnets",
        "skill": "Compare magnets",
        "lecture": "",
        "solution": "",
    }


def test_science_qa_keeps_the_questions_with_an_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [problem(i, cell(i) if i % 3 else None) for i in range(9)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hub.parquet")
    asked = fake_hub.answers(monkeypatch, tmp_path / "hub.parquet")
    found = science_qa("val")
    assert asked == [(SCIENCE_QA[0], SCIENCE_QA_FILES["val"], "dataset", SCIENCE_QA[1])]
    assert [record.question for record in found] == [f"question {i}" for i in (1, 2, 4, 5, 7, 8)]
    assert [record.image.getpixel((0, 0))[0] for record in found] == [1, 2, 4, 5, 7, 8]
    assert found[0].choices == ("a", "b", "c")
    assert found[1].choices == ("a", "b")
    assert [record.answer for record in found[:2]] == [1, 0]

    problems = {str(i): problem(i, "image.png" if i % 3 else None) for i in range(9)}
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    splits = {"train": ["0", "1"], "val": [str(i) for i in range(9)], "test": []}
    (tmp_path / "pid_splits.json").write_text(json.dumps(splits))
    for i in (1, 2, 4, 5, 7, 8):
        place = tmp_path / ("images" if i < 5 else "") / "val" / str(i)
        place.mkdir(parents=True)
        (place / "image.png").write_bytes(png(i))
    local = science_qa("val", folder=tmp_path)
    assert [record[1:] for record in local] == [record[1:] for record in found]
    assert science_qa("test", folder=tmp_path) == []
    assert len(science_qa("val", n=2, folder=tmp_path)) == 2
    with pytest.raises(LookupError, match="split='validation': ScienceQA has 'train', 'val', 'test'"):
        science_qa("validation")


@pytest.mark.parametrize("load", [lambda: pope("random"), lambda: science_qa("val")])
def test_a_file_of_another_form_is_named_with_its_columns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load: Callable[[], object]
) -> None:
    pq.write_table(pa.table({"question": ["?"]}), tmp_path / "hub.parquet")
    fake_hub.answers(monkeypatch, tmp_path / "hub.parquet")
    with pytest.raises(LookupError, match="has the columns question; missing: image"):
        load()


def test_revisions_are_whole_commits_and_being_offline_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(len(revision) == 40 for _, revision in (POPE, SCIENCE_QA))

    fake_hub.silent(monkeypatch)
    for load, name in (
        (lambda: pope("random"), "POPE"),
        (lambda: science_qa("test"), "ScienceQA"),
    ):
        with pytest.raises(ConnectionError, match=f"{name}: .* the hub does not answer.*give a folder"):
            load()
