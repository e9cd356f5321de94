"""Requests about pictures that are unsafe together and harmless in words alone: VLSBench's form.

    records = vlsbench("vlsbench", n=100)  # a folder with data.json and the unpacked imgs.tar
    records[0].picture(448)

Read from a folder (Hu et al. 2025; `hf download Foreshhh/vlsbench --repo-type dataset --local-dir vlsbench`);
nothing of it comes with this book. Its texts may be harmful: no error and no `repr` shows any of them.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data.sets.files import check, draw, read_text

TEXTS = ("instruction", "image_description", "safety_reason")
FIELDS = ("instruction_id", "image_path", "category", "sub_category", *TEXTS)


@dataclass(frozen=True)
class Record:
    """A request about a picture."""

    id: int
    category: str
    sub_category: str
    image: Path
    instruction: str = field(repr=False)
    description: str = field(repr=False)
    """What the picture shows, in words."""
    reason: str = field(repr=False)
    """Why request and picture are unsafe together."""

    def picture(self, max_side: int) -> UInt8[np.ndarray, "height width 3"]:
        """The picture, made smaller where a side is longer than `max_side`.

        Raises:
            FileNotFoundError: it is not there.
        """
        if not self.image.is_file():
            raise FileNotFoundError(f"record {self.id}: no image {self.image}; unpack imgs.tar in its folder")
        with Image.open(self.image) as image:
            image.thumbnail((max_side, max_side))
            return np.array(image.convert("RGB"))


def vlsbench(folder: str | Path, *, n: int | None = None, seed: int = 0) -> list[Record]:
    """Records of VLSBench without an empty text; their pictures are read when they are asked for.

    Args:
        folder: with `data.json`, as it has been since March 2025, and below it the images that it names.
        n: at most so many, drawn at random; None for all, in their order.
        seed: of the draw.

    Raises:
        FileNotFoundError: the folder has no `data.json`.
        ValueError: that is not a JSON list with records, a text is none, or all are empty; or `n` is below 1.
        LookupError: a record lacks a field.
    """
    if n is not None and n < 1:
        raise ValueError(f"n={n}: at least 1 record")
    folder = Path(folder).expanduser()
    text = read_text(folder / "data.json", "the data set Foreshhh/vlsbench of the hub")
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / 'data.json'} is not JSON (line {error.lineno}): {error.msg}") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{folder / 'data.json'}: expected a JSON list of records, one at least")
    found = []
    for i, row in enumerate(rows):
        where = f"{folder / 'data.json'}, record {i + 1}:"
        check(row, FIELDS, f"{where} it has the fields")
        for name in TEXTS:
            if not isinstance(row[name], str):
                raise ValueError(f"{where} {name} is no text")
        kinds = row["category"], row["sub_category"], folder / row["image_path"]
        if all(row[name].strip() for name in TEXTS):
            found.append(Record(row["instruction_id"], *kinds, *(row[name] for name in TEXTS)))
    if not found:
        raise ValueError(f"{folder / 'data.json'}: each of the {len(rows)} records has an empty text")
    return draw(found, n, seed)
