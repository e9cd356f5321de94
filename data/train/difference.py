"""Takes the difference of two models' weights, in the form that `lib.differences` describes and reads."""

from pathlib import Path

import torch
from jaxtyping import Float, Int8
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib.differences import FILE, SCALE, WHOLE, sha256


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
    for name, tensor in weights.items():
        before = start.get(name)
        if before is None or before.shape != tensor.shape:
            stored[name] = tensor.half()
        elif not torch.equal(tensor.float(), before.float()):
            moved = tensor.float() - before.float()
            # Int8 errs by up to 1/254 of a row's largest move: too much once the move is most of the weight.
            if tensor.ndim > 1 and moved.norm() < tensor.float().norm() / 2:
                stored[name], stored[name + SCALE] = quantise(moved)
            else:
                stored[name] = tensor.half()
    # One entry: safetensors writes several in an order that changes from file to file.
    save_file(stored, folder / FILE, {"parent": f"{parent.name} {sha256(parent / WHOLE)}"})
    (folder / WHOLE).unlink()
