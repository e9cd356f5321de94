"""Real handwritten digits, alone or four to a canvas, on which one digit points to another.

The images are scikit-learn's 8x8 digits (Alpaydin and Kaynak, UCI, 1998): 1,797 scans. They are split once
and for all into 1,200 training, 200 validation and 397 test images, each with the same shares of the ten
classes. Models are fitted on `train`, choices are made on `train` or `validation`, and `test` is for the
last number only. (The same people wrote all three.)

A *canvas* is a 16x16 image: a grid of 2x2 digits. The digit in the top left cell is the marker: its value
modulo 3 says which of the other cells (top right, bottom left, bottom right) holds the digit that is asked
for. To answer, a network has to read the marker and then look where it points.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SPLITS = {"train": 1200, "validation": 200, "test": 397}
CELLS = ("top left", "top right", "bottom left", "bottom right")


class Digits(NamedTuple):
    """Single digits with their classes."""

    images: UInt8[np.ndarray, "image 8 8"]
    """Ink, 0 (paper) to 255: PIL's mode "L"."""
    labels: Int[np.ndarray, " image"]


class Canvases(NamedTuple):
    """Canvases of four digits, with the answer and everything that led to it."""

    images: UInt8[np.ndarray, "image 16 16"]
    labels: Int[np.ndarray, " image"]
    """The digit in the cell that the marker points to."""
    cells: Int[np.ndarray, "image 4"]
    """The digit in each of the four `CELLS`; the first is the marker."""
    pointed: Int[np.ndarray, " image"]
    """Which cell the marker points to: 1, 2 or 3."""
    sources: Int[np.ndarray, "image 4"]
    """Which image of the split stands in each cell."""


@cache
def _splits() -> dict[str, Digits]:
    data = load_digits()
    images, labels = np.round(data.images * 255 / 16).astype(np.uint8), data.target.astype(np.int64)
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=SPLITS["test"], stratify=labels, random_state=0
    )
    train, validation = train_test_split(
        rest, test_size=SPLITS["validation"], stratify=labels[rest], random_state=0
    )
    parts = {"train": train, "validation": validation, "test": test}
    return {name: Digits(images[part], labels[part]) for name, part in parts.items()}


def digits(split: str) -> Digits:
    """The real digits of one split: `train` (1,200), `validation` (200) or `test` (397).

    Raises:
        ValueError: `split` is none of these.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: the digits have the splits {', '.join(SPLITS)}")
    return _splits()[split]


def canvases(split: str, n: int, rng: np.random.Generator) -> Canvases:
    """Draw `n` canvases; each cell holds a digit of `split`, drawn uniformly and independently of the others.

    Raises:
        ValueError: `split` is none of `SPLITS`.
    """
    source = digits(split)
    sources = rng.integers(len(source.labels), size=(n, 4))
    cells = source.labels[sources]
    grid = source.images[sources].reshape(n, 2, 2, 8, 8)
    images = grid.transpose(0, 1, 3, 2, 4).reshape(n, 16, 16)
    pointed = 1 + cells[:, 0] % 3
    return Canvases(images, cells[np.arange(n), pointed], cells, pointed, sources)
