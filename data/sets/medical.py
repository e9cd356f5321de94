"""Questions about medical images, with four options each: PathVQA, SLAKE, VQA-RAD, and a benchmark's table.

    items = medical("vqa-rad", n=200)                     # a folder with the set's files
    table = benchmark_table("challenge.csv")              # the released benchmark of Guo et al. (2025)
    defects(table)
    items = benchmark(table, images="images")

Nothing is fetched and nothing is carried along: sets and benchmark have licences of their own, or none. A
set of the hub comes into a folder by
`hf download flaviagiammarino/vqa-rad --repo-type dataset --local-dir vqa-rad`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from data.sets.files import check, decode, draw, read_table, read_text
from data.sets.questions import MultipleChoice, four_options

YES_NO = ("yes", "no")
UNSURE = ("not sure", "it cannot be told")
"""What is offered beside yes and no."""
_FORMS = ("how many", "how much", "what", "which", "where", "how", "when", "who", "why")
_LETTERS = ("A", "B", "C", "D")
BENCHMARK_COLUMNS = (
    *("id", "dataset", "image_path", "question", "correct_answer", "question_type"),
    *(f"option_{letter.lower()}" for letter in _LETTERS),
    "correct_label",
)


class Record(NamedTuple):
    """A question about an image, as the sets have it: with its answer, and without options."""

    image: Image.Image | Path
    question: str
    answer: str
    kind: str
    """Of the question; distractors are answers to questions of the same kind."""


def question_kind(question: str, answer: str, kind: str = "") -> str:
    """Yes or no, the kind that the set names, or how the question begins."""
    if answer.strip().casefold() in YES_NO:
        return "yes/no"
    begins = question.strip().casefold()
    return kind or next((form for form in _FORMS if begins.startswith(form)), "other")


def medical(
    folder: str | Path, *, split: str = "test", n: int | None = None, seed: int = 0, language: str = "en"
) -> list[MultipleChoice]:
    """Questions of PathVQA, VQA-RAD or SLAKE with four options, in a folder with the files of the hub.

    Wrong options are answers to other questions of the same kind, never of all; beside yes and no there are
    "not sure" and "it cannot be told". Items of a kind with fewer than four answers are left out.

    Args:
        folder: with parquet files of the columns `image`, `question`, `answer` (PathVQA, VQA-RAD) whose names
            have the split in them, or with SLAKE's `<split>.json` and `imgs`.
        split: "train", "validation" or "test".
        n: at most so many, drawn at random; None for all, in their order.
        seed: of the draw, of the wrong options and of their order.
        language: of SLAKE's questions: "en" or "zh".

    Raises:
        FileNotFoundError: the folder has no such files, or an image is missing.
        LookupError: files of another form, or no kind of question with four answers.
    """
    folder = Path(folder).expanduser()
    records = (
        _slake(folder, split, language) if (folder / f"{split}.json").is_file() else _parquet(folder, split)
    )
    answers: dict[str, set[str]] = {}
    for record in records:
        distinct = answers.setdefault(record.kind, set(UNSURE + YES_NO if record.kind == "yes/no" else ()))
        distinct.add(record.answer.strip().casefold())
    usable = [r for r in records if r.answer.strip() and len(answers[r.kind] - {""}) >= 4]
    if not usable:
        raise LookupError(f"{folder}: no kind of question in {split!r} has four distinct answers")
    rng, items = np.random.default_rng(seed), []
    for record in draw(usable, n, seed):
        options, right = four_options(record.answer, answers[record.kind], rng)
        items.append(MultipleChoice(_picture(record.image), record.question, options, right, "", record.kind))
    return items


def _parquet(folder: Path, split: str) -> list[Record]:
    paths = sorted(path for path in folder.rglob("*.parquet") if split in path.name)
    if not paths:
        raise FileNotFoundError(f"{folder} has neither {split}.json (SLAKE) nor parquet files of {split!r}")
    rows: list[Any] = []
    for path in paths:
        rows += read_table(path, ("image", "question", "answer")).to_dict("records")
    if missing := [i for i, row in enumerate(rows) if not row["image"]]:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} questions have no image; the first is number {missing[0]}"
        )
    return [
        Record(
            decode(row["image"]),
            row["question"],
            row["answer"],
            question_kind(row["question"], row["answer"]),
        )
        for row in rows
    ]


def _slake(folder: Path, split: str, language: str) -> list[Record]:
    rows = json.loads(read_text(folder / f"{split}.json"))
    for row in rows:
        check(row, ("img_name", "question", "answer", "q_lang", "content_type"), f"{folder}: a record has")
    return [
        Record(
            folder / "imgs" / row["img_name"],
            row["question"],
            row["answer"],
            question_kind(row["question"], row["answer"], row["content_type"]),
        )
        for row in rows
        if row["q_lang"] == language
    ]


def _picture(image: Image.Image | Path) -> Image.Image:
    if isinstance(image, Path):
        if not image.is_file():
            raise FileNotFoundError(f"no image {image}: the question's record names it")
        image = Image.open(image)
    return image.convert("RGB")


def benchmark_table(path: str | Path) -> pd.DataFrame:
    """The table of the released benchmark, all cells as texts.

    Raises:
        FileNotFoundError: it is not there.
        LookupError: it lacks a column.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; the benchmark's CSV is in its authors' repository")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    check(table.columns, BENCHMARK_COLUMNS, f"{path} has the columns")
    return table


def _options(table: pd.DataFrame) -> list[list[str]]:
    """The four options of each row, up to case."""
    columns = [table[f"option_{letter.lower()}"].str.strip().str.casefold() for letter in _LETTERS]
    return [list(row) for row in zip(*columns, strict=True)]


def _faults(table: pd.DataFrame) -> dict[str, list[bool]]:
    """What is wrong with each row."""
    options, labels = _options(table), table["correct_label"].str.strip().str.upper()
    right = [
        row[_LETTERS.index(label)] if label and label in _LETTERS else ""
        for row, label in zip(options, labels, strict=True)
    ]
    answers = table["correct_answer"].str.strip().str.casefold()
    offered = [sum(value in row for value in YES_NO) for row in options]
    return {
        "two options equal up to case": [len(set(row)) < 4 for row in options],
        "the right text twice": [row.count(r) > 1 for row, r in zip(options, right, strict=True)],
        "no wrong option": [len(set(row)) == 1 for row in options],
        "empty answer": [answer in ("", "nan") for answer in answers],
        "the answer is not the option of its letter": [
            r != answer and answer not in ("", "nan") for r, answer in zip(right, answers, strict=True)
        ],
        "answered by yes or no, and the other is not offered": [
            answer in YES_NO and n == 1 for answer, n in zip(answers, offered, strict=True)
        ],
    }


def defects(table: pd.DataFrame) -> dict[str, int]:
    """How many rows of the benchmark there are, and how many have which defect."""
    yes_no = table["correct_answer"].str.strip().str.casefold().isin(YES_NO)
    counts = {"rows": len(table), "answered by yes or no": int(yes_no.sum())}
    return counts | {name: sum(rows) for name, rows in _faults(table).items()}


def benchmark(
    table: pd.DataFrame, images: str | Path, *, n: int | None = None, seed: int = 0, clean: bool = True
) -> list[MultipleChoice]:
    """Items of the released benchmark.

    Args:
        table: of `benchmark_table`.
        images: folder with its images.
        n: at most so many, drawn at random; None for all, in their order.
        seed: of the draw.
        clean: leave out rows with a defect. Otherwise one in a row that is drawn is an error.

    Raises:
        ValueError: a row has a defect and `clean` is off, or all rows have.
        FileNotFoundError: an image is missing.
    """
    faults = _faults(table)
    whole = [not any(of[i] for of in faults.values()) for i in range(len(table))]
    if clean and not any(whole):
        raise ValueError(f"all {len(table)} rows of the benchmark have a defect: {defects(table)}")
    rows: Sequence[int] = draw([i for i, good in enumerate(whole) if good or not clean], n, seed)
    items = []
    for i in rows:
        row = table.iloc[i]
        if not whole[i]:
            told = "; ".join(name for name, of in faults.items() if of[i])
            raise ValueError(f"row {i} of the benchmark (id {row['id']}): {told}; clean=True leaves it out")
        options = tuple(row[f"option_{letter.lower()}"] for letter in _LETTERS)
        right = _LETTERS.index(row["correct_label"].strip().upper())
        picture = _picture(Path(images).expanduser() / row["image_path"])
        items.append(MultipleChoice(picture, row["question"], options, right, "", row["question_type"]))
    return items
