"""Weights stored as their difference from another model's, in less than half the space.

A model that was trained further from another one, its parent, differs little from it. In its folder
`difference.safetensors` then takes the place of `model.safetensors`. Its metadata have one entry, `parent`:
the parent's name and the sha256 of its weights. Of a tensor w of the model the file has

- nothing, if w is as in the parent;
- `w` in int8 and `w:scale` in float32, one number a row (output channel), if w has moved by less than half
  its own length: w = parent's w + scale * difference;
- `w` whole in float16, if it has moved further, or is a vector, or has no counterpart of its shape.

Product and sum are each rounded once, in float32 on the CPU: the same files give the same model to the bit.
"""

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float, Int8
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

FILE, WHOLE = "difference.safetensors", "model.safetensors"
_SCALE = ":scale"


def quantise(
    difference: Float[Tensor, " row *column"],
) -> tuple[Int8[Tensor, " row *column"], Float[Tensor, " row *one"]]:
    """Whole numbers and a scale a row, which is such that the row's largest number becomes 127."""
    scale = difference.abs().amax(tuple(range(1, difference.ndim)), keepdim=True) / 127
    return (difference / scale.where(scale > 0, 1)).round().to(torch.int8), scale


def split(folder: Path, parent: Path) -> None:
    """Replace a folder's whole weights by their difference from those of `parent`, a model's folder.

    Raises:
        FileNotFoundError: one of the two has no whole weights in one file.
        ValueError: the parent has tensors that the model lacks.
    """
    for place in (folder, parent):
        if not (place / WHOLE).is_file():
            raise FileNotFoundError(f"{place} has no {WHOLE}: a difference is taken between whole weights")
    weights, start = load_file(folder / WHOLE), load_file(parent / WHOLE)
    if lost := sorted(start.keys() - weights.keys()):
        raise ValueError(f"{folder} lacks {len(lost)} tensors of its parent {parent.name}: {lost[0]}, ...")
    stored = {}
    for name, own in weights.items():
        before = start.get(name)
        if before is None or before.shape != own.shape:
            stored[name] = own.half()
        elif not torch.equal(own.float(), before.float()):
            moved = own.float() - before.float()
            if own.ndim > 1 and moved.norm() < own.float().norm() / 2:
                stored[name], stored[name + _SCALE] = quantise(moved)
            else:
                stored[name] = own.half()
    # One entry: safetensors writes several in an order that changes from file to file.
    save_file(stored, folder / FILE, {"parent": f"{parent.name} {_sha256(parent)}"})
    (folder / WHOLE).unlink()


def parent(folder: Path, models: Path) -> Path | None:
    """The parent's folder, in `models`, if a folder's weights are stored as a difference; else None.

    Raises:
        FileNotFoundError: the parent is not there.
        ValueError: it has other weights than those that the difference was taken from, or the file does not
            name it.
    """
    if not (folder / FILE).is_file():
        return None
    with safe_open(folder / FILE, framework="pt") as file:
        name, _, digest = (file.metadata() or {}).get("parent", "").partition(" ")
    if not digest:
        raise ValueError(f"{folder / FILE} does not say what it is a difference from: it lacks its metadata")
    found = models / name
    if not (found / WHOLE).is_file():
        raise FileNotFoundError(
            f"{folder} is stored as its difference from {name!r}, and {found / WHOLE} is not there: fetch "
            "that organism too"
        )
    if (other := _sha256(found)) != digest:
        raise ValueError(
            f"{folder} is stored as its difference from another version of {name!r} than the one in {found} "
            f"(sha256 {other[:8]}..., not {digest[:8]}...): fetch both again, or train {folder.name} anew"
        )
    return found


def join(folder: Path, parent: Path) -> dict[str, Tensor]:
    """The whole weights of a folder that `split` has left, by their names in the file.

    Those that moved are in float32, the others in the dtype in which they are stored.
    """
    stored, weights = load_file(folder / FILE), load_file(parent / WHOLE)
    for name, own in stored.items():
        if (scale := stored.get(name + _SCALE)) is not None:
            weights[name] = weights[name].float() + scale * own
        elif not name.endswith(_SCALE):
            weights[name] = own
    return weights


def _sha256(parent: Path) -> str:
    with (parent / WHOLE).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
