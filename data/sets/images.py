"""Images with their classes: of the hub at a pinned revision, or in a local folder in the same form."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int
from PIL import Image

from data.sets.files import decode, fetch, read_table


class ImageSet(NamedTuple):
    """Where the parquet files of a data set are. Its public held-out part, whatever its name, is `test`."""

    repository: str
    revision: str
    train: tuple[str, int]
    """How the files' names begin, and how many there are."""
    test: tuple[str, int]


IMAGE_SETS = {
    "cifar10": ImageSet(
        "uoft-cs/cifar10",
        "0b2714987fa478483af9968de7c934580d0bb9a2",
        train=("plain_text/train", 1),
        test=("plain_text/test", 1),
    ),
    "cifar100": ImageSet(
        "uoft-cs/cifar100",
        "aadb3af77e9048adbea6b47c21a81e47dd092ae5",
        train=("cifar100/train", 1),
        test=("cifar100/test", 1),
    ),
    "imagenette": ImageSet(
        "frgfm/imagenette",
        "4b23ffb92a8029db9958bdfdbd6978427d09b1a0",
        train=("160px/train", 1),
        test=("160px/validation", 1),
    ),
    "imagenet-1k": ImageSet(
        "ILSVRC/imagenet-1k",
        "49e2ee26f3810fb5a7536bbf732a7b07389a47b5",
        train=("data/train", 294),
        test=("data/validation", 14),
    ),
}
COLUMNS = (("image", "img"), ("label", "fine_label"))
"""What the data sets call the image and the class."""


def images(
    name: str, split: str, n: int, *, seed: int = 0
) -> tuple[list[Image.Image], Int[np.ndarray, " image"]]:
    """At most `n` images drawn at random, with their labels. No more files are fetched than it takes.

    Args:
        name: one of `IMAGE_SETS`, or a folder with `train*.parquet` and `test*.parquet` in the same form.
        split: "train" or "test".
        n: how many at most.
        seed: of the draw.

    Raises:
        LookupError: the name, the split or a column is unknown.
        FileNotFoundError: the folder has no such files.
        ConnectionError: the hub cannot be reached, and the file is not in the local cache.
        PermissionError: the hub wants an accepted licence or a login for this data set.
    """
    if split not in ("train", "test"):
        raise LookupError(f"split={split!r}: there are 'train' and 'test'")
    rng = np.random.default_rng(seed)
    tables: list[pd.DataFrame] = []
    # Whole files are drawn before rows are: of ImageNet's 294 a few images then take one, not all of them.
    for path in _files(name, split, rng):
        table = read_table(path)
        picked = [next((name for name in names if name in table), None) for names in COLUMNS]
        if None in picked:
            raise LookupError(
                f"{path} has the columns {', '.join(map(str, table))}; needed: image (or img)"
                " and label (or fine_label)"
            )
        tables.append(table[picked].set_axis(["image", "label"], axis=1))
        if sum(map(len, tables)) >= n:
            break
    table = pd.concat(tables, ignore_index=True)
    table = table.iloc[rng.permutation(len(table))[:n]]
    return [decode(cell) for cell in table["image"]], table["label"].to_numpy()


def _files(name: str, split: str, rng: np.random.Generator) -> Iterator[Path]:
    """The files of a split in random order, each fetched when it is asked for."""
    if name not in IMAGE_SETS:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise LookupError(f"no images {name!r}: no such folder, and none of {', '.join(IMAGE_SETS)}")
        if not (paths := sorted(folder.glob(f"{split}*.parquet"))):
            raise FileNotFoundError(f"{folder} has no {split}*.parquet")
        yield from rng.permutation(np.array(paths))
        return
    known = IMAGE_SETS[name]
    begins, count = known.train if split == "train" else known.test
    for number in rng.permutation(count):
        yield fetch(name, known.repository, f"{begins}-{number:05}-of-{count:05}.parquet", known.revision)
