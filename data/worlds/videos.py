"""Short videos of which every event is known: an actor walks between four corners, and a lamp lights up.

A video has eight frames of 2x2 corners. The *actor*, a coloured disc, stands in one of the corners and moves
two or three times; it changes its colour once. A *lamp*, a small square in one of the corners, is dark at
first and is lit while the actor is at neither its first nor its last place: in four of five videos because
the actor arrives at the lamp, else by itself, with the actor elsewhere. *Clutter*, crosses of any colour,
stands around, steady or flickering. Each frame has Gaussian noise of its own strength.

    rng = np.random.default_rng(0)
    videos = sample(100, rng)
    frames = draw(videos, rng)  # 100 videos of 8 frames of 24x24 pixels
    videos.answers["next"], videos.evidence["next"]

What is right is in `Videos.answers`, and the three frames that show it in `Videos.evidence`. Questions in
words are in `data.worlds.users`.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray
from numpy.random import Generator

from data.worlds.scenes import COLOURS, PerScene, pick

N_FRAMES, SIDE, PATCH = 8, 24, 12
N_CORNERS = (SIDE // PATCH) ** 2
"""A corner is one patch of the vision tower, so that each frame has four image tokens."""
CORNERS = ("northwest", "northeast", "southwest", "southeast")
ACTORS = ("red", "green", "blue", "yellow")
"""The colours of actors, in the order in which they are counted here."""
ITSELF = len(ACTORS)
KINDS = {
    "place": "descriptive",
    "colour": "descriptive",
    "during": "temporal",
    "next": "temporal",
    "before": "temporal",
    "cause": "causal",
}
"""Kinds of question, and what each asks for: where the actor is at the end, its colour at the start, where it
is when the lamp lights, where it goes next and where it was before that, and who lights the lamp."""
NOISE = (0.1, 1.2)
"""Range of the noise of a video (standard deviation; channels run from 0 to 1). Single frames have from half
to twice as much."""


@dataclass(frozen=True, eq=False)
class Videos:
    """What happens when; indexable as an array is."""

    place: Int[ndarray, "video frame"]
    """Index into `CORNERS`: where the actor stands."""
    colour: Int[ndarray, "video frame"]
    """Index into `ACTORS`."""
    lamp: Int[ndarray, " video"]
    """The lamp's corner."""
    lights: Int[ndarray, " video"]
    """First frame in which the lamp is lit."""

    def __len__(self) -> int:
        """How many videos."""
        return len(self.place)

    def __getitem__(self, index: slice | ndarray) -> "Videos":
        """Some of the videos."""
        return Videos(self.place[index], self.colour[index], self.lamp[index], self.lights[index])

    @cached_property
    def arrives(self) -> Int[ndarray, " video"]:
        """First frame of the actor's stay in which the lamp lights."""
        moves, frame = self._moves, np.arange(N_FRAMES)
        return np.where(moves & (frame <= self.lights[:, None]), frame, 0).max(1)

    @cached_property
    def leaves(self) -> Int[ndarray, " video"]:
        """First frame after that stay."""
        return (self._moves & (np.arange(N_FRAMES) > self.lights[:, None])).argmax(1)

    @property
    def _moves(self) -> Bool[ndarray, "video frame"]:
        return np.diff(self.place, axis=1, prepend=self.place[:, :1]) != 0

    @cached_property
    def answers(self) -> dict[str, Int[ndarray, " video"]]:
        """What is right, by kind of question: index into `CORNERS` or `ACTORS`; a cause may be `ITSELF`."""
        row, at = np.arange(len(self)), self.lights
        touched = self.place[row, at] == self.lamp
        return {
            "place": self.place[:, -1],
            "colour": self.colour[:, 0],
            "during": self.place[row, at],
            "next": self.place[row, self.leaves],
            "before": self.place[row, self.arrives - 1],
            "cause": np.where(touched, self.colour[row, at], ITSELF),
        }

    @cached_property
    def evidence(self) -> dict[str, Int[ndarray, "video 3"]]:
        """Three frames, in order, that suffice for the answer, by kind of question."""
        at, n = self.lights, len(self)
        around = np.stack([at - 1, at, at + 1], 1)
        # Arrival and lighting are mostly the same frame: then the third one is the frame after it.
        earlier = np.where((self.arrives < at)[:, None], np.stack([self.arrives - 1, at - 1, at], 1), around)
        return {
            "place": np.tile([N_FRAMES - 3, N_FRAMES - 2, N_FRAMES - 1], (n, 1)),
            "colour": np.tile([0, 1, 2], (n, 1)),
            "during": around,
            "next": np.stack([at - 1, at, self.leaves], 1),
            "before": earlier,
            "cause": around,
        }


def sample(n: int, rng: Generator) -> Videos:
    """Draw `n` videos. Corners and colours are interchangeable: no answer is likelier than another."""
    row, corners = np.arange(n), np.arange(N_CORNERS)
    n_moves = rng.integers(2, 4, n)
    # The first frame of each stay after the first; a third move that is not made comes after the last frame.
    steps = np.sort(rng.permuted(np.tile(np.arange(1, N_FRAMES), (n, 1)), axis=1)[:, :3], axis=1)
    skipped = n_moves == 2
    steps[skipped] = np.stack([*np.sort(steps[skipped, :2], axis=1).T, np.full(skipped.sum(), N_FRAMES)], 1)
    stay = rng.integers(1, n_moves)  # during which the lamp lights
    lamp, touched = rng.integers(N_CORNERS, size=n), rng.random(n) < 0.8
    stops = np.empty((n, 4), int)
    for i in range(4):
        allowed = np.ones((n, N_CORNERS), bool) if i == 0 else corners != stops[:, i - 1, None]
        # A lamp that is touched lights at once, so that nobody has been there before.
        allowed &= (corners != lamp[:, None]) | (i > stay)[:, None]
        stops[:, i] = np.where((i == stay) & touched, lamp, pick(allowed, rng))
    place = np.take_along_axis(stops, (np.arange(N_FRAMES)[:, None] >= steps[:, None]).sum(2), 1)
    first, last = steps[row, stay - 1], steps[row, stay] - 1
    lights = np.where(touched, first, rng.integers(first, last + 1))
    colours = rng.permuted(np.tile(np.arange(len(ACTORS)), (n, 1)), axis=1)[:, :2]
    changes = rng.integers(1, N_FRAMES, n)
    colour = np.where(np.arange(N_FRAMES) < changes[:, None], colours[:, :1], colours[:, 1:])
    return Videos(place, colour, lamp, lights)


_PALETTE = np.array([COLOURS[name] for name in ACTORS], np.float32)
_PIXEL = np.arange(PATCH, dtype=np.float32) - (PATCH - 1) / 2


def draw(
    videos: Videos,
    rng: Generator,
    *,
    noise: PerScene | None = None,
    clutter: int = 2,
) -> UInt8[ndarray, "video frame 24 24 3"]:
    """Draw the videos as RGB frames.

    Args:
        videos: what to draw.
        rng: the source of chance. Equally seeded, two drawings differ by their noise and clutter only.
        noise: of each video, see `NOISE`; by default drawn from there.
        clutter: how many crosses there are at most.

    Raises:
        ValueError: `clutter` is negative.
    """
    if clutter < 0:
        raise ValueError(f"clutter={clutter}: it is a number of crosses, at least 0")
    n, frame = len(videos), np.arange(N_FRAMES)
    shape = (n, N_FRAMES, N_CORNERS)
    drawn = rng.uniform(*NOISE, n)
    sigma = np.broadcast_to(drawn if noise is None else noise, n)[:, None] * 2 ** rng.uniform(
        -1, 1, (n, N_FRAMES)
    )
    ground = rng.uniform(0.05, 0.25, (n, 1, 1, 1, 1, 1)).astype(np.float32)
    image = np.broadcast_to(ground, (*shape, PATCH, PATCH, 3)).copy()
    grain = rng.standard_normal(image.shape, dtype=np.float32)

    offset, radius = rng.uniform(-1.5, 1.5, (2, n, N_FRAMES)), rng.uniform(3.0, 4.0, (n, N_FRAMES))
    for _ in range(clutter):
        there = (rng.random(n) < 0.5)[:, None] & (
            rng.random((n, N_FRAMES)) < rng.choice([0.5, 1.0], n)[:, None]
        )
        corner, colour = rng.integers(N_CORNERS, size=n), rng.integers(len(ACTORS), size=n)
        x, y = (
            _PIXEL - _last(rng.uniform(-3, 3, n), 2),
            (_PIXEL - _last(rng.uniform(-3, 3, n), 2)).swapaxes(1, 2),
        )
        width, height = abs(x), abs(y)
        arms = (np.minimum(width, height) < 0.8) & (np.maximum(width, height) < 3)
        row, at = np.nonzero(there)
        image[row, at, corner[row]] = np.where(
            arms[row][..., None], _PALETTE[colour[row], None, None], image[row, at, corner[row]]
        )

    row, at = (index.ravel() for index in np.indices((n, N_FRAMES)))
    right = _PIXEL - _last(offset[0, row, at], 2)
    down = (_PIXEL - _last(offset[1, row, at], 2)).swapaxes(1, 2)
    ink = (_last(radius[row, at], 2) - np.hypot(right, down) + 0.5).clip(0, 1)[..., None].astype(np.float32)
    corner, paint = videos.place.ravel(), _PALETTE[videos.colour.ravel(), None, None]
    image[row, at, corner] = image[row, at, corner] * (1 - ink) + paint * ink

    level = np.where(frame >= videos.lights[:, None], 1.0, 0.45)[..., None, None, None]
    image[row.reshape(n, -1), at.reshape(n, -1), videos.lamp[:, None], :3, :3] = level
    image += _last(sigma.astype(np.float32), 6) * grain
    grid = image.reshape(n, N_FRAMES, 2, 2, PATCH, PATCH, 3).swapaxes(3, 4)
    return (grid.reshape(n, N_FRAMES, SIDE, SIDE, 3) * 255 + 0.5).clip(0, 255).astype(np.uint8)


def _last(values: Float[ndarray, "*batch"], n_axes: int) -> ndarray:
    """Values with axes of length one added, up to so many after the first (or first two) axes."""
    return values.reshape(values.shape + (1,) * (n_axes - values.ndim + (values.ndim == 1)))
