"""Questions about photographs: POPE and ScienceQA, of the hub or in a folder in their authors' form."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image

from data.sets.files import check, decode, draw, fetch, read_table, read_text


class YesNo(NamedTuple):
    """A question that is answered by yes or no."""

    image: Image.Image
    question: str
    answer: bool
    file: str
    """Name of the image."""


class MultipleChoice(NamedTuple):
    """A question of which one choice is right."""

    image: Image.Image
    question: str
    choices: tuple[str, ...]
    answer: int
    """Which of the choices is right."""
    hint: str
    """What is said beside the question; may be empty."""
    category: str


def four_options(answer: str, others: Collection[str], rng: Generator) -> tuple[tuple[str, ...], int]:
    """The answer and three others in any order, none twice up to case; and where the answer is.

    Args:
        answer: the right option.
        others: answers to questions of the same kind, from which the wrong options are drawn.
        rng: the source of chance.

    Raises:
        ValueError: the answer is empty, or there are fewer than three others.
    """
    if not (right := answer.strip()):
        raise ValueError("an item's answer is empty: leave it out")
    distinct = {other.strip().casefold(): other.strip() for other in sorted(others)}
    wrong = [other for key, other in distinct.items() if key not in ("", right.casefold())]
    if len(wrong) < 3:
        raise ValueError(
            f"answer {right!r}: {1 + len(wrong)} distinct options up to case ({', '.join([right, *wrong])}), "
            "and an item needs four: take a kind of question with more answers"
        )
    options = [right, *(wrong[i] for i in rng.choice(len(wrong), 3, replace=False))]
    order = rng.permutation(4)
    return tuple(options[i] for i in order), int(np.argmin(order))


POPE = ("lmms-lab/POPE", "4db1276663dfa5eb8ad16a52d24c31a09e470896")
SCIENCE_QA = ("derek-thomas/ScienceQA", "f18b0a70359ebfb41f658fd564208d0355b013f4")
SCIENCE_QA_FILES = {
    "train": "data/train-00000-of-00001-1028f23e353fbe3e.parquet",
    "val": "data/validation-00000-of-00001-6c7328ff6c84284c.parquet",
    "test": "data/test-00000-of-00001-f0e719df791966ff.parquet",
}


def pope(split: str, *, n: int | None = None, seed: int = 0, folder: str | Path | None = None) -> list[YesNo]:
    """POPE's questions whether an object is in a photograph of COCO (Li et al. 2023); half are to be denied.

    The absent objects are drawn at random, are the most frequent ones ("popular"), or those that most often
    accompany what is there ("adversarial").

    Args:
        split: "random", "popular" or "adversarial".
        n: at most so many, drawn at random; None for all 3,000, in their order.
        seed: of the draw.
        folder: with the authors' `coco_pope_<split>.json`, and the photographs in it or in its `val2014`.
            None for the copy on the hub.

    Raises:
        LookupError: there is no such split, or the file is of another form.
        FileNotFoundError: the folder lacks a file.
        ConnectionError, PermissionError: as `data.sets.images.images`.
    """
    if split not in ("random", "popular", "adversarial"):
        raise LookupError(f"split={split!r}: POPE has 'random', 'popular' and 'adversarial'")
    if folder is None:
        path = fetch("POPE", POPE[0], f"Full/{split}-00000-of-00001.parquet", POPE[1])
        rows = _rows(path, ["image", "question", "answer", "image_source"], n, seed)
        return [
            YesNo(_rgb(row["image"]), row["question"], _is_yes(row["answer"]), row["image_source"])
            for row in rows
        ]
    folder = Path(folder).expanduser()
    lines = read_text(folder / f"coco_pope_{split}.json").splitlines()
    records = draw([json.loads(line) for line in lines if line.strip()], n, seed)
    places = [folder, folder / "val2014"]
    found = []
    for record in records:
        check(record, ("image", "text", "label"), f"{folder}: a record has")
        picture = _open(record["image"], places)
        found.append(YesNo(picture, record["text"], _is_yes(record["label"]), record["image"]))
    return found


def science_qa(
    split: str, *, n: int | None = None, seed: int = 0, folder: str | Path | None = None
) -> list[MultipleChoice]:
    """Those questions of ScienceQA (Lu et al. 2022) that come with an image.

    Not for commercial use: the authors' licence is CC BY-NC-SA 4.0 (as the script says with which they are
    loaded; the hub's card has been quoted as CC BY-SA 4.0, so check before other use).

    Args:
        split: "train", "val" or "test".
        n: at most so many, drawn at random; None for all, in their order.
        seed: of the draw.
        folder: with the authors' `problems.json`, `pid_splits.json` and `<split>/<id>/image.png`, these also
            below `images`. None for the copy on the hub.

    Raises:
        LookupError: there is no such split, or the files are of another form.
        FileNotFoundError: the folder lacks a file.
        ConnectionError, PermissionError: as `data.sets.images.images`.
    """
    if split not in SCIENCE_QA_FILES:
        raise LookupError(f"split={split!r}: ScienceQA has {', '.join(map(repr, SCIENCE_QA_FILES))}")
    needed = ["image", "question", "choices", "answer", "hint", "category"]
    if folder is None:
        path = fetch("ScienceQA", SCIENCE_QA[0], SCIENCE_QA_FILES[split], SCIENCE_QA[1])
        rows = _rows(path, needed, n, seed)
        pictures = [_rgb(row["image"]) for row in rows]
    else:
        folder = Path(folder).expanduser()
        problems = json.loads(read_text(folder / "problems.json"))
        ids = json.loads(read_text(folder / "pid_splits.json"))[split]
        rows = draw([problems[i] | {"id": i} for i in ids if problems[i].get("image")], n, seed)
        for row in rows:
            check(row, needed, f"{folder}: a record has")
        pictures = [
            _open(row["image"], [folder / "images" / split / row["id"], folder / split / row["id"]])
            for row in rows
        ]
    return [
        MultipleChoice(
            picture, row["question"], tuple(row["choices"]), row["answer"], row["hint"], row["category"]
        )
        for picture, row in zip(pictures, rows, strict=True)
    ]


def _rows(path: Path, columns: list[str], n: int | None, seed: int) -> list[Any]:
    """Rows of a parquet file that have an image."""
    table = read_table(path, columns)
    shown: list[Any] = table.loc[table["image"].notna(), columns].to_dict("records")
    return draw(shown, n, seed)


def _rgb(cell: dict[str, Any]) -> Image.Image:
    return decode(cell).convert("RGB")


def _open(name: str, folders: list[Path]) -> Image.Image:
    for folder in folders:
        if (folder / name).is_file():
            return Image.open(folder / name).convert("RGB")
    raise FileNotFoundError(f"no image {name} in {' or '.join(map(str, folders))}")


def _is_yes(answer: str) -> bool:
    if (word := answer.strip().lower()) not in ("yes", "no"):
        raise LookupError(f"answer {answer!r}: expected yes or no")
    return word == "yes"
