"""Real data sets by name: labelled images of the hub at a pinned revision, or in a local folder."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError
from jaxtyping import Int
from PIL import Image


class ImageSet(NamedTuple):
    """Where the parquet files of a data set are. Its public held-out part, whatever its name, is `test`."""

    repository: str
    revision: str
    train: tuple[str, int]
    """How the files' names begin, and how many there are."""
    test: tuple[str, int]


IMAGE_SETS = {
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
"""What the data sets call the image (its file's `bytes`) and the class."""


def images(
    name: str, split: str, n: int, *, seed: int = 0
) -> tuple[list[Image.Image], Int[np.ndarray, "image"]]:
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
        ImportError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ImportError(f"{name}: parquet files need pyarrow; install it: pip install pyarrow") from None
    if split not in ("train", "test"):
        raise LookupError(f"split={split!r}: there are 'train' and 'test'")
    rng = np.random.default_rng(seed)
    tables: list[pyarrow.Table] = []
    for path in _files(name, split, rng):
        table = parquet.read_table(path)
        try:
            picked = [next(c for c in choice if c in table.column_names) for choice in COLUMNS]
        except StopIteration:
            raise LookupError(
                f"{path} has the columns {', '.join(table.column_names)}; needed: image (or img) and label"
            ) from None
        tables.append(table.select(picked).rename_columns(["image", "label"]))
        if sum(map(len, tables)) >= n:
            break
    table = pyarrow.concat_tables(tables)
    table = table.take(rng.permutation(len(table))[:n])
    pictures: list[Image.Image] = [
        Image.open(io.BytesIO(cell["bytes"])) for cell in table["image"].to_pylist()
    ]
    return pictures, table["label"].to_numpy().copy()


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
        file = f"{begins}-{number:05}-of-{count:05}.parquet"
        try:
            path = hf_hub_download(known.repository, file, repo_type="dataset", revision=known.revision)
        except GatedRepoError:
            url = f"https://huggingface.co/datasets/{known.repository}"
            raise PermissionError(
                f"{name}: accept its licence at {url} and log in with: hf auth login"
            ) from None
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ConnectionError(
                f"{name}: {file} is not in the local cache, and the hub does not answer"
                f" ({type(error).__name__}); connect, or give a folder of parquet files instead"
            ) from None
        yield Path(path)
