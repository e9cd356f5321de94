"""Clips with multiple-choice questions in NExT-QA's form: a table, and a folder of frames for each video.

    for clip in clips("~/nextqa", n_frames=8, n=300):
        clip.question, clip.options, clip.answer, clip.frames

The folder holds one CSV with the columns of NExT-QA's multiple-choice files (Xiao et al. 2021), and in
`frames/<video>/` a video's frames as pictures, numbered in their order. Neither is shipped: NExT-QA's
videos and questions are their authors', for research.
"""

import csv
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.sets.files import check, draw, read_text

OPTIONS = ("a0", "a1", "a2", "a3", "a4")
GROUPS = {"C": "causal", "T": "temporal", "D": "descriptive"}
"""What a question is about, by the first letter of its type: CW, CH; TN, TC, TP; DL, DC, DO."""
SOURCE = "the multiple-choice files of NExT-QA (lmms-lab/NExTQA on the hub has them, and the videos)"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class Clip(NamedTuple):
    """A question about a video, and some of its frames."""

    video: str
    question: str
    options: tuple[str, ...]
    answer: int
    """Index of the right option."""
    kind: str
    """NExT-QA's type, such as TN."""
    group: str
    """Causal, temporal or descriptive."""
    frames: tuple[Image.Image, ...]
    misleading: int | None
    """Index of the wrong option that a misleading user names, if the table has a column `misleading`."""


def clips(folder: str | Path, *, n_frames: int = 8, n: int | None = None, seed: int = 0) -> list[Clip]:
    """Questions with evenly spaced frames of their videos.

    Args:
        folder: with one CSV and a folder `frames`.
        n_frames: how many frames of a video.
        n: at most so many questions, drawn at random; None for all, in their order.
        seed: of the draw.

    Raises:
        FileNotFoundError: the table is missing, or the frames of a video.
        LookupError: the table lacks a column.
        ValueError: an item or a video is not what it has to be; the message says which, and why.
    """
    folder = Path(folder).expanduser()
    tables = sorted(folder.glob("*.csv"))
    if len(tables) != 1:
        found = ", ".join(path.name for path in tables) or "none"
        raise FileNotFoundError(f"{folder} has to hold one CSV, and it has: {found}; it is one of {SOURCE}")
    table = csv.DictReader(read_text(tables[0]).splitlines(), restval="")
    needed = ("video", "question", "answer", "type", *OPTIONS)
    check(table.fieldnames or [], needed, f"{tables[0]} has the columns")
    chosen = draw(list(enumerate(table, 2)), n, seed)  # line 1 has the columns' names
    return [_clip(row, f"{tables[0].name}, line {line}", folder / "frames", n_frames) for line, row in chosen]


def _clip(row: dict[str, str], where: str, folder: Path, n_frames: int) -> Clip:
    options = tuple(row[name].strip() for name in OPTIONS)
    answer = _option(row["answer"], f"{where}: answer")
    if not any(text for i, text in enumerate(options) if i != answer):
        raise ValueError(f"{where}: the item has no wrong option, only {options[answer]!r}")
    if not all(options):
        raise ValueError(f"{where}: the option {OPTIONS[options.index('')]} is empty: give five")
    if len(set(options)) < len(options):
        raise ValueError(f"{where}: two of its options are the same: {', '.join(options)}")
    misleading = None
    if given := row.get("misleading", "").strip():
        misleading = _option(given, f"{where}: misleading")
        if misleading == answer:
            raise ValueError(f"{where}: misleading={given} is the right option, and has to be a wrong one")
    kind = row["type"].strip()
    if kind[:1] not in GROUPS:
        raise ValueError(f"{where}: type={kind!r}: expected one that begins with C, T or D, such as TN")
    frames = _frames(folder / row["video"].strip(), n_frames)
    return Clip(
        row["video"], row["question"].strip(), options, answer, kind, GROUPS[kind[0]], frames, misleading
    )


def _option(text: str, where: str) -> int:
    """An option's index."""
    if text.strip() not in map(str, range(len(OPTIONS))):
        raise ValueError(f"{where}={text!r} is no option: expected its index, 0 to {len(OPTIONS) - 1}")
    return int(text)


def _frames(folder: Path, n_frames: int) -> tuple[Image.Image, ...]:
    """Evenly spaced frames of a video, which have one size."""
    files = [path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES]
    if not files:
        raise FileNotFoundError(
            f"no frames in {folder}: put a video's frames there as pictures, numbered in order"
        )
    if len(files) < n_frames:
        raise ValueError(
            f"{folder} has {len(files)} frames, and {n_frames} are asked for: take fewer, or extract more"
        )
    files.sort(key=lambda path: [int(number) for number in re.findall(r"\d+", path.stem)] or [0])
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, n_frames).round().astype(int)]
    frames = tuple(Image.open(path).convert("RGB") for path in chosen)
    if len(sizes := {frame.size for frame in frames}) > 1:
        listed = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise ValueError(f"{folder} has frames of unequal size ({listed}): extract all with the same one")
    return frames
