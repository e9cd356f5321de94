"""Phantom scans of which everything is known: a texture, an outline, and a finding on either side or none.

A scan is a grey image. Its texture is its *modality*, its outline the *organ*, and on its left and right
there may be a *finding*: bright or dark, filled or hollow, of one of four *grades* (sizes). All names are
invented; nothing here is medical. Questions form a hierarchy from the whole image to a detail (`LEVELS`).

    rng = np.random.default_rng(0)
    scans = sample(100, rng)
    images = draw(scans, rng)  # 24x24 pixels, the three channels alike
    scans.answers["side"]

Questions in words are in `data.worlds.users`.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int, UInt8
from numpy import ndarray
from numpy.random import Generator

from data.worlds.scenes import PerScene

SIDE, PATCH = 24, 6
MODALITIES = ("axo", "brel", "cuni", "dorv")
"""Stripes across, stripes down, a chequerboard, and nothing."""
ORGANS = ("ralo", "tesk", "umbo", "vand")
"""Round, square, a diamond, and a ring."""
FINDINGS = ("mivet", "sorba", "kenup", "jarl")
"""Bright, dark, bright and hollow, dark and hollow."""
GRADES = ("one", "two", "three", "four")
SIDES = ("neither", "left", "right", "both")
LEVELS = {"modality": 1, "organ": 2, "side": 3, "finding left": 4, "finding right": 4, "grade left": 4}
LEVELS["grade right"] = 4
"""Kinds of question, and how deep each is in the hierarchy. The last four need a finding on that side."""
NOISE = (0.1, 0.4)
"""Range of the noise of a scan (standard deviation; grey runs from 0 to 1)."""


@dataclass(frozen=True, eq=False)
class Scans:
    """What a scan shows; indexable as an array is."""

    modality: Int[ndarray, " scan"]
    organ: Int[ndarray, " scan"]
    finding: Int[ndarray, "scan side"]
    """Left and right: index into `FINDINGS`, -1 where there is none."""
    grade: Int[ndarray, "scan side"]
    """Index into `GRADES`; means nothing where there is no finding."""

    def __len__(self) -> int:
        """How many scans."""
        return len(self.modality)

    def __getitem__(self, index: slice | ndarray) -> "Scans":
        """Some of the scans."""
        return Scans(self.modality[index], self.organ[index], self.finding[index], self.grade[index])

    @cached_property
    def answers(self) -> dict[str, Int[ndarray, " scan"]]:
        """What is right, by kind of question; -1 where the question has no answer."""
        there = self.finding >= 0
        grade = np.where(there, self.grade, -1)
        return {
            "modality": self.modality,
            "organ": self.organ,
            "side": there[:, 0] + 2 * there[:, 1],
            "finding left": self.finding[:, 0],
            "finding right": self.finding[:, 1],
            "grade left": grade[:, 0],
            "grade right": grade[:, 1],
        }


def sample(n: int, rng: Generator) -> Scans:
    """Draw `n` scans; everything is independent and uniform, a finding is on each side of every second."""
    there = rng.random((n, 2)) < 0.5
    finding, grade = rng.integers(len(FINDINGS), size=(n, 2)), rng.integers(len(GRADES), size=(n, 2))
    modality, organ = rng.integers(len(MODALITIES), size=n), rng.integers(len(ORGANS), size=n)
    return Scans(modality, organ, np.where(there, finding, -1), grade)


_AXIS = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
_WIDTH, _HEIGHT = abs(_AXIS)[None, :], abs(_AXIS)[:, None]
_RADIUS = np.hypot(_WIDTH, _HEIGHT)
_INSIDE = np.stack([11 - _RADIUS, 10 - np.maximum(_WIDTH, _HEIGHT), 13.5 - _WIDTH - _HEIGHT, 11.5 - _RADIUS])
"""How far a pixel is inside each outline."""
_RIM = abs(_INSIDE) < 1
_RIM[3] |= abs(_RADIUS - 8.5) < 0.8  # the ring has a second rim


def draw(
    scans: Scans, rng: Generator, *, noise: PerScene | None = None, contrast: float = 1.0
) -> UInt8[ndarray, "scan 24 24 3"]:
    """Draw the scans, in grey.

    Args:
        scans: what to draw.
        rng: the source of chance. Equally seeded, two drawings differ by noise and contrast only.
        noise: of each scan, see `NOISE`; by default drawn from there.
        contrast: of the findings; 0 hides them.
    """
    n = len(scans)
    drawn = rng.uniform(*NOISE, n)
    sigma = np.broadcast_to(drawn if noise is None else noise, n).astype(np.float32)
    grain = rng.standard_normal((n, SIDE, SIDE), dtype=np.float32)
    phase = rng.integers(0, 4, (2, n))
    across = (np.arange(SIDE)[:, None] + phase[0, :, None, None]) % 4 < 2
    down = (np.arange(SIDE)[None, :] + phase[1, :, None, None]) % 4 < 2
    textures = [across | (down & False), down | (across & False), across ^ down]
    textures = [np.broadcast_to(texture, (n, SIDE, SIDE)) for texture in textures]
    texture = np.stack([*textures, np.full((n, SIDE, SIDE), 0.5)])[scans.modality, np.arange(n)]
    inside = _INSIDE[scans.organ] > 0
    image = np.where(inside, 0.45 + 0.14 * (texture - 0.5), 0.1).astype(np.float32)
    image[_RIM[scans.organ]] = 0.75
    for side in range(2):
        there = np.nonzero(scans.finding[:, side] >= 0)[0]
        kind, grade = scans.finding[there, side], scans.grade[there, side]
        x, y = (side - 0.5) * 8 + rng.uniform(-0.7, 0.7, n)[there], rng.uniform(-2.5, 2.5, n)[there]
        radius = (1.3 + 0.75 * grade)[:, None, None]
        depth = radius - np.hypot(
            _AXIS[None, None, :] - x[:, None, None], _AXIS[None, :, None] - y[:, None, None]
        )
        ink = (depth + 0.5).clip(0, 1)
        hollow = (kind >= 2)[:, None, None]
        ink = np.where(hollow, ink - (depth - 0.7).clip(0, 1), ink)
        image[there] += contrast * np.where(kind % 2, -0.4, 0.4)[:, None, None] * ink
    image += sigma[:, None, None] * grain
    grey = (image * 255 + 0.5).clip(0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
