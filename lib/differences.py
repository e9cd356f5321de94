"""Weights stored as their difference from another model's, in less than half the space.

A model that was trained further from another one, its parent, differs little from it. In its folder
`difference.safetensors` then takes the place of `model.safetensors`. Its metadata have one entry, `parent`:
the parent's name and the sha256 of its weights. Of a tensor w of the model the file has

- nothing, if w is as in the parent;
- `w` in int8 and `w:scale` in float32, one number a row (output channel), if w has moved by less than half
  its own length: w = parent's w + scale * difference;
- `w` whole in float16, if it has moved further, or is a vector, or has no counterpart of its shape.

Product and sum are each rounded once, in float32 on the CPU: the same files give the same model to the bit.
`data.train.difference` writes such files.
"""

import hashlib
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

FILE, WHOLE = "difference.safetensors", "model.safetensors"
SCALE = ":scale"


def parent(folder: Path, models: Path) -> Path | None:
    """The parent's folder, in `models`, if a folder's weights are stored as a difference; else None.

    Raises:
        FileNotFoundError: the parent is not there.
        ValueError: the file does not name it.
    """
    if not (folder / FILE).is_file():
        return None
    name, _ = _named(folder)
    if not (models / name / WHOLE).is_file():
        raise FileNotFoundError(
            f"{folder} is stored as its difference from {name!r}, and {models / name / WHOLE} is not there: "
            "fetch that organism too"
        )
    return models / name


def check_version(folder: Path, digest: str) -> None:
    """Check that a difference was taken from the parent's weights that have the sha256 `digest`.

    Raises:
        ValueError: it was taken from others.
    """
    name, expected = _named(folder)
    if digest != expected:
        raise ValueError(
            f"{folder} is stored as its difference from another version of {name!r} than the one that is "
            f"there (sha256 {digest[:8]}..., not {expected[:8]}...): fetch both again, or train "
            f"{folder.name} anew"
        )


def join(folder: Path, parent: Path) -> dict[str, Tensor]:
    """The whole weights of a folder that `split` has left, by their names in the file.

    Those that moved are in float32, the others in the dtype in which they are stored.
    """
    stored, weights = load_file(folder / FILE), load_file(parent / WHOLE)
    for name, tensor in stored.items():
        if (scale := stored.get(name + SCALE)) is not None:
            weights[name] = weights[name].float() + scale * tensor
        elif not name.endswith(SCALE):
            weights[name] = tensor
    return weights


def _named(folder: Path) -> tuple[str, str]:
    """The parent's name and the sha256 of its weights, as a difference's metadata have them."""
    with safe_open(folder / FILE, framework="pt") as file:
        name, _, digest = (file.metadata() or {}).get("parent", "").partition(" ")
    if not digest:
        raise ValueError(f"{folder / FILE} does not say what it is a difference from: it lacks its metadata")
    return name, digest


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
