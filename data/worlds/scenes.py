"""Pictures of coloured glyphs and real digits on a grid, of which it is known what stands where.

A *scene* is a 4x4 grid of cells. A cell is empty or holds an object in one of six colours: one of eight
glyphs, drawn with jitter in place, size, angle and stroke, or one of ten real handwritten digits
(`data.worlds.digits`). The 18 kinds of object form nine *partner pairs*: a scene is made of one to three
pairs, and of each pair both partners are there with probability `RATE`, otherwise one of them. Given an
object, its partner is thus there in 92 of 100 scenes (0.85 / (0.85 + 0.15 / 2)): an ordinary cause for
seeing what is not there. `sample(rate=0)` gives *counterfactual* scenes, `rate=None` objects at random.

    rng = np.random.default_rng(0)
    scenes = sample(100, rng)
    images = draw(scenes, rng, noise=0.1)

`data.worlds.scene_words` has the words: questions about scenes, captions, facts, scenes as pages of text.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray
from numpy.random import Generator

from data.worlds.digits import digits

SIDE, GRID, PATCH = 64, 4, 8
N_CELLS, CELL, N_PATCHES = GRID**2, SIDE // GRID, (SIDE // PATCH) ** 2
CELL_OF_PATCH: Int[ndarray, " patch"] = np.kron(
    np.arange(N_CELLS).reshape(4, 4), np.ones((2, 2), int)
).ravel()
"""The cell of which each image token, in reading order, shows a quarter."""
CELLS = tuple(f"{column}{row}" for row in range(1, GRID + 1) for column in "abcd")
"""In reading order: `a1` is top left, `d4` bottom right."""

GLYPHS = ("disc", "cross", "hourglass", "moon", "square", "star", "triangle", "bar")
DIGITS = {"zero": 0, "nine": 9, "one": 1, "five": 5, "two": 2, "six": 6, "three": 3, "seven": 7, "four": 4}
DIGITS["eight"] = 8
OBJECTS = (*GLYPHS, *DIGITS)
"""Neighbours in this list are partners: disc and cross, ..., four and eight. No two partners look alike."""
PARTNER: Int[ndarray, " object"] = np.arange(len(OBJECTS)) ^ 1
RATE = 0.85
COLOURS = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.75, 0.20),
    "blue": (0.20, 0.30, 1.00),
    "yellow": (0.95, 0.85, 0.10),
    "magenta": (0.90, 0.20, 0.90),
    "cyan": (0.10, 0.85, 0.90),
}
HELD_OUT: Bool[ndarray, "object colour"] = (7 * np.arange(len(OBJECTS))[:, None] + np.arange(6)) % 9 == 0
"""Twelve of the 108 combinations of object and colour are kept out of training, to test composition."""

DOSES: dict[str, tuple[float, ...]] = {
    "noise": (0.1, 0.2, 0.4),
    "cell_noise": (0.4, 0.8, 1.2),
    "colour_noise": (0.1, 0.2, 0.4),
    "occlusion": (0.25, 0.5, 0.75),
    "contrast": (0.5, 0.25, 0.1),
    "distractors": (2, 4, 6),
}
"""What makes a scene hard to see (an argument of `draw` or `sample`), and doses at which it is measured."""

PerScene: TypeAlias = float | Float[ndarray, " scene"]
PerCell: TypeAlias = float | Float[ndarray, "scene cell"]


@dataclass(frozen=True, eq=False)
class Scenes:
    """What stands where, and what follows from it; indexable as an array is."""

    objects: Int[ndarray, "scene cell"]
    """Index into `OBJECTS`, -1 where the cell is empty."""
    colours: Int[ndarray, "scene cell"]
    """Index into `COLOURS`, -1 where the cell is empty."""

    def __len__(self) -> int:
        """How many scenes."""
        return len(self.objects)

    def __getitem__(self, index: slice | ndarray) -> "Scenes":
        """Some of the scenes."""
        return Scenes(self.objects[index], self.colours[index])

    @cached_property
    def present(self) -> Bool[ndarray, "scene object"]:
        """Which kinds of object are in the scene."""
        return (self.objects[:, :, None] == np.arange(len(OBJECTS))).any(1)

    @cached_property
    def cell_of(self) -> Int[ndarray, "scene object"]:
        """The (first) cell of each kind of object; 0 where there is none: ask `present`."""
        return (self.objects[:, :, None] == np.arange(len(OBJECTS))).argmax(1)

    @cached_property
    def colour_of(self) -> Int[ndarray, "scene object"]:
        """The colour of each kind of object, -1 where there is none."""
        return np.where(self.present, np.take_along_axis(self.colours, self.cell_of, 1), -1)

    @cached_property
    def missing(self) -> Bool[ndarray, "scene object"]:
        """The absent partners of present objects: what the habit of the world would add."""
        return self.present[:, PARTNER] & ~self.present

    def beside(self, step: Literal[1, -1]) -> Int[ndarray, "scene object"]:
        """The nearest object in the row to the right (1) or left (-1) of each kind, -1 if there is none."""
        rows = self.objects.reshape(-1, GRID, GRID)[:, :, ::step]
        near = np.full_like(rows, -1)
        for column in range(GRID - 2, -1, -1):
            beyond = rows[:, :, column + 1]
            near[:, :, column] = np.where(beyond >= 0, beyond, near[:, :, column + 1])
        near = near[:, :, ::step].reshape(len(self), -1)
        return np.where(self.present, np.take_along_axis(near, self.cell_of, 1), -1)


def pick(allowed: Bool[ndarray, "*row option"], rng: Generator) -> Int[ndarray, "*row"]:
    """One of the allowed options of each row, uniformly; any option where none is allowed."""
    return (rng.random(allowed.shape) + allowed).argmax(-1)


def sample(
    n: int,
    rng: Generator,
    *,
    pairs: tuple[int, int] = (1, 3),
    rate: float | None = RATE,
    distractors: int = 0,
    combinations: Literal["train", "held-out"] = "train",
) -> Scenes:
    """Draw `n` scenes, in which no kind of object stands twice.

    Args:
        n: how many.
        rng: the source of chance.
        pairs: smallest and largest number of partner pairs of which a scene is made.
        rate: how often both partners of a pair are there; 0 gives counterfactual scenes; None gives as many
            objects as `RATE`, drawn without regard to the pairs.
        distractors: further objects, each of a pair of its own and without its partner.
        combinations: "held-out" gives each object that has one the colour it never had in training.

    Raises:
        ValueError: there are not enough pairs or cells for so many objects.
    """
    low, high = pairs
    if not 0 <= low <= high or high + distractors > 9 or 2 * high + distractors > N_CELLS:
        raise ValueError(
            f"{pairs=}, {distractors=}: 9 pairs and {N_CELLS} cells must suffice for all objects"
        )
    n_pairs, slot = rng.integers(low, high + 1, n)[:, None], np.arange(9)
    both = (rng.random((n, 9)) < (RATE if rate is None else rate)) & (slot < n_pairs)
    first = rng.random((n, 9)) < 0.5
    keep = np.stack([both | first, both | ~first], -1) & (slot < n_pairs + distractors)[..., None]
    kinds = rng.permuted(np.tile(slot, (n, 1)), axis=1)[..., None] * 2 + np.arange(2)
    keep, kinds = keep.reshape(n, -1), kinds.reshape(n, -1)
    if rate is None:
        kinds = rng.permuted(kinds, axis=1)
    cells = rng.permuted(np.tile(np.arange(N_CELLS), (n, 1)), axis=1)
    row, column = keep.nonzero()
    objects = np.full((n, N_CELLS), -1)
    objects[row, cells[row, keep.cumsum(1)[row, column] - 1]] = kinds[row, column]
    return Scenes(objects, _colours(objects, combinations, rng))


def crowd(n: int, rng: Generator, *, fill: float = 1.0) -> Scenes:
    """Scenes to teach perception with: each cell holds any object with probability `fill`, kinds repeat."""
    filled = rng.random((n, N_CELLS)) < fill
    objects = np.where(filled, rng.integers(len(OBJECTS), size=filled.shape), -1)
    return Scenes(objects, _colours(objects, "train", rng))


def _colours(objects: Int[ndarray, "scene cell"], combinations: str, rng: Generator) -> ndarray:
    held_out = HELD_OUT.any(1, keepdims=True) & (combinations == "held-out")
    return np.where(objects >= 0, pick(np.where(held_out, HELD_OUT, ~HELD_OUT)[objects], rng), -1)


def glyph(name: str, x: ndarray, y: ndarray, stroke: ndarray) -> ndarray:
    """How far x, y (right, down, -1 to 1 over the glyph's size) are inside the glyph; negative outside."""
    width, height, r = abs(x), abs(y), np.hypot(x, y)
    match name:
        case "disc":
            return 0.95 - r
        case "cross":
            return np.minimum(0.3 * stroke - np.minimum(width, height), 0.95 - np.maximum(width, height))
        case "hourglass":
            return np.minimum(0.85 - height, (0.95 * height + 0.12 * stroke - width) / 1.4)
        case "moon":
            return np.minimum(0.95 - r, np.hypot(x - 0.55, y) - 0.7 / stroke)
        case "square":
            return 0.82 - np.maximum(width, height)
        case "star":
            return 0.62 * stroke + 0.36 * np.cos(5 * np.arctan2(x, -y)) - r
        case "triangle":
            return np.minimum(0.75 - y, (y + 0.95 - 1.8 * width) / 2.06)
        case _:  # bar
            return np.minimum(0.32 * stroke - height, 0.98 - width)


def _bilinear(images: UInt8[ndarray, "digit 8 8"], x: ndarray, y: ndarray) -> ndarray:
    """The ink of digit images at x, y (-1 to 1 over the image), interpolated; 0 outside."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1))).astype(np.float32).reshape(-1) / 255
    x, y = (4 * (x + 1) + 0.5).clip(0, 8.999), (4 * (y + 1) + 0.5).clip(0, 8.999)
    left, top = x.astype(int), y.astype(int)
    x, y, at = x - left, y - top, np.arange(len(images))[:, None, None] * 100 + top * 10 + left
    upper = padded[at] * (1 - x) + padded[at + 1] * x
    return upper * (1 - y) + (padded[at + 10] * (1 - x) + padded[at + 11] * x) * y


_DEPTH = np.broadcast_to((np.arange(CELL) + 0.5) / CELL, (CELL, CELL))
_DEPTH = np.stack([_DEPTH, 1 - _DEPTH, _DEPTH.T, 1 - _DEPTH.T])
"""How far a pixel is from the left, right, upper, lower edge of its cell, as a share of the cell."""


def draw(
    scenes: Scenes,
    rng: Generator,
    *,
    split: str = "train",
    noise: PerScene = 0.0,
    cell_noise: PerCell = 0.0,
    colour_noise: PerScene = 0.0,
    occlusion: PerScene = 0.0,
    contrast: PerScene = 1.0,
) -> UInt8[ndarray, "scene 64 64 3"]:
    """Draw the scenes as RGB images.

    Chance is drawn in the same order whatever the doses are: with an equally seeded `rng` two images of a
    scene differ by their doses only.

    Args:
        scenes: what to draw.
        rng: the source of chance.
        split: whose digit images are used: "train", "validation" or "test" (see `data.worlds.digits`).
        noise: standard deviation of Gaussian noise on all pixels (channels run from 0 to 1).
        cell_noise: the same for the pixels of a cell; one number is for all cells that hold an object.
        colour_noise: standard deviation by which each channel of an object's colour is off.
        occlusion: share of each object's cell that a grey board covers, from a random side.
        contrast: 1 as it is, 0 the colour of the background.
    """
    n, real, filled = len(scenes), digits(split), scenes.objects >= 0
    background = rng.uniform(0.05, 0.25, n).astype(np.float32)
    angle, offset = rng.uniform(-0.26, 0.26, (n, N_CELLS)), rng.uniform(-1, 1, (2, n, N_CELLS))
    size, stroke = rng.random((n, N_CELLS)), rng.uniform(0.8, 1.2, (n, N_CELLS))
    chosen, shade = rng.random((n, N_CELLS)), rng.standard_normal((n, N_CELLS, 3))
    side = rng.integers(4, size=(n, N_CELLS))
    grain = rng.standard_normal((n, N_CELLS, CELL, CELL, 3), dtype=np.float32)

    ink = np.zeros((n, N_CELLS, CELL, CELL, 1), np.float32)
    pixel = np.arange(CELL, dtype=np.float32) - (CELL - 1) / 2
    for kind, name in enumerate(OBJECTS):
        at = np.nonzero(scenes.objects == kind)
        smallest, spread = (13.5, 3.5) if name in DIGITS else (10, 4)  # a digit's image has margins
        half = _per((smallest + spread * size[at]).astype(np.float32) / 2, 3)
        move = offset[:, at[0], at[1]] * (CELL / 2 - half[:, 0, 0]).clip(0.5)
        right, down = pixel - move.astype(np.float32)[..., None]
        cos, sin = (_per(f(angle[at]).astype(np.float32), 3) for f in (np.cos, np.sin))
        right, down = right[:, None, :], down[:, :, None]
        x, y = (cos * right + sin * down) / half, (cos * down - sin * right) / half
        if name in DIGITS:
            own = np.nonzero(real.labels == DIGITS[name])[0]
            ink[at] = _bilinear(real.images[own[(chosen[at] * len(own)).astype(int)]], x, y)[..., None]
        else:
            depth = half * glyph(name, x, y, _per(stroke[at].astype(np.float32), 3))  # in pixels
            ink[at] = (0.5 + depth).clip(0, 1)[..., None]

    palette = np.array(list(COLOURS.values()))[scenes.colours] + shade * _per(colour_noise, 3)
    ground = _per(background, 3)
    colour = (ground + (palette.clip(0, 1) - ground) * _per(contrast, 3)).astype(np.float32)
    image = _per(background, 5) * (1 - ink) + ink * colour[:, :, None, None]
    covered = (_DEPTH[side] < _per(occlusion, 4)) & _per(filled, 4)
    image = np.where(covered[..., None], np.float32(0.5), image)
    sigma = np.hypot(_per(noise, 2), _per(cell_noise, 2) * (filled if np.ndim(cell_noise) == 0 else 1))
    image += _per(np.broadcast_to(sigma, filled.shape).astype(np.float32), 5) * grain
    image = image.reshape(n, GRID, GRID, CELL, CELL, 3).swapaxes(2, 3).reshape(n, SIDE, SIDE, 3)
    return (image * 255 + 0.5).clip(0, 255).astype(np.uint8)


def _per(dose: float | ndarray, n_axes: int) -> ndarray:
    """A dose with axes added at its end, so that it applies to all of what follows."""
    dose = np.asarray(dose)
    return dose.reshape(dose.shape + (1,) * (n_axes - dose.ndim)) if dose.ndim else dose
