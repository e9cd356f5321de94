"""A hub that answers with a local file, or not at all; images as its parquet files hold them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def png(value: int) -> bytes:
    """A grey image of 5 by 6 pixels."""
    file = io.BytesIO()
    Image.fromarray(np.full((6, 5, 3), value, dtype=np.uint8)).save(file, format="PNG")
    return file.getvalue()


def cell(value: int) -> dict:
    """The same image as a struct of its file's bytes and path."""
    return {"bytes": png(value), "path": f"{value}.png"}


def answers(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[tuple[str, str, str, str]]:
    """Lets the hub answer with a file; what it is asked for: repository, file, type, revision."""
    asked: list[tuple[str, str, str, str]] = []

    def download(repository: str, file: str, repo_type: str, revision: str) -> str:
        asked.append((repository, file, repo_type, revision))
        return str(path)

    monkeypatch.setattr("data.sets.files.hf_hub_download", download)
    return asked


def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the network away."""

    def download(*args: object, **kwargs: object) -> str:
        raise OSError("Name or service not known")

    monkeypatch.setattr("data.sets.files.hf_hub_download", download)
