"""What the rooms of this package share: files of the hub or of a folder, tables, and draws from them."""

import io
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError
from PIL import Image

T = TypeVar("T")


def fetch(name: str, repository: str, file: str, revision: str) -> Path:
    """A file of a data set of the hub at a pinned revision, from the local cache if it is there.

    Raises:
        PermissionError: the hub wants an accepted licence or a login for this data set.
        ConnectionError: the hub cannot be reached, and the file is not in the local cache.
    """
    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision))
    except GatedRepoError:
        url = f"https://huggingface.co/datasets/{repository}"
        raise PermissionError(f"{name}: accept its licence at {url} and log in with: hf auth login") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConnectionError(
            f"{name}: {file} is not in the local cache, and the hub does not answer"
            f" ({type(error).__name__}); connect, or give a folder with its files instead"
        ) from None


def read_text(path: Path, source: str = "") -> str:
    """The text of a file.

    Raises:
        FileNotFoundError: it is not there; the message says that it is in `source`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}" + (f"; it is in {source}" if source else ""))
    return path.read_text(encoding="utf-8-sig")  # without the mark that some editors put first


def read_table(path: Path, columns: Iterable[str] = (), source: str = "") -> pd.DataFrame:
    """A parquet or feather file.

    Raises:
        FileNotFoundError: it is not there; the message says that it is in `source`.
        LookupError: it lacks one of `columns`; the message says which it has.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}" + (f"; it is in {source}" if source else ""))
    # Not through the package `datasets`: it would prepare a whole set, or stream it in the order of its
    # classes, where a chapter wants a few random rows; and it brings five packages besides pyarrow.
    table = pd.read_feather(path) if path.suffix == ".feather" else pd.read_parquet(path)
    check(table.columns, columns, f"{path} has the columns")
    return table


def check(found: Collection[str], needed: Iterable[str], where: str) -> None:
    """That a record or a table has the fields that are needed.

    Raises:
        LookupError: it has not; the message begins with `where` and says what there is and what is missing.
    """
    if missing := [name for name in needed if name not in found]:
        raise LookupError(f"{where} {', '.join(found)}; missing: {', '.join(missing)}")


def draw(records: Sequence[T], n: int | None, seed: int) -> list[T]:
    """At most `n` of the records, at random; all of them in their order if `n` is None."""
    if n is None:
        return list(records)
    return [records[i] for i in np.random.default_rng(seed).permutation(len(records))[:n]]


def decode(cell: dict[str, Any]) -> Image.Image:
    """An image as the hub's parquet files hold it: its file's `bytes`."""
    return Image.open(io.BytesIO(cell["bytes"]))
