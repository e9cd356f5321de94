"""Shapes on white with a sentence that contradicts them: the colour set of Zhang et al. (2025), made anew.

The authors' images were not found. Sizes, numbers of distractors and overlaps follow their table; what it
does not say, such as that the target lies on top, is ours. All pictures have one size, so that a model's
number of visual tokens does not change with the tier.

    items = shape_conflicts(14, np.random.default_rng(0))
    items.texts[0]  # 'The circle is red. What color is the circle? ...'; the image shows another colour
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw

SHAPES = {"circle": 0, "square": 4, "triangle": 3, "pentagon": 5, "hexagon": 6}
"""Name -> corners."""
ABSENT_SHAPES = ("star", "cone", "frustum")
"""In no image."""
PAINTS = {
    "red": ((220, 30, 30), ("a ripe strawberry", "a fire engine")),
    "yellow": ((245, 220, 40), ("a ripe banana", "a lemon")),
    "blue": ((40, 70, 220), ("a morpho butterfly's wings", "a mailbox in the US")),
    "green": ((40, 160, 60), ("fresh grass", "a cucumber")),
    "purple": ((130, 50, 160), ("an eggplant", "lavender")),
    "orange": ((250, 140, 20), ("a carrot", "a basketball")),
}
"""Colour -> how it is painted, and real things that have it."""
SHAPE_TIERS = (
    *((0.06, n, 0.0) for n in range(5)),
    *((0.3, n, share) for n, share in ((7, 0.5), (10, 0.8))),
    *((0.08, n, share) for n, share in ((7, 0.5), (11, 0.8))),
    *((0.05, n, share) for n, share in ((20, 0.3), (30, 0.6), (40, 0.5), (55, 0.6), (70, 0.7))),
)
"""Share of the image that the target covers, distractors, share of them that are placed over the target."""
SIDE = 336
"""Pixels."""


class ShapeConflicts(NamedTuple):
    """Images, and items that each put one sentence beside one of the images, as `data.worlds.conflicts`."""

    images: UInt8[ndarray, "image 336 336 3"]
    questions: list[str]
    """One an image."""
    texts: list[str]
    """Sentence and question, one an item."""
    unrelated_texts: list[str]
    """The same with the sentence about a shape that is in no image."""
    image: Int[ndarray, " item"]
    visual_tier: Int[ndarray, " image"]
    text_tier: Int[ndarray, " item"]
    """Steps from the sentence to the colour: none, one by way of a shape, one by way of a real thing."""
    seen: Int[ndarray, " image"]
    """The colour in the image, as an index into `PAINTS`."""
    told: Int[ndarray, " image"]
    """The colour in the sentences."""


def _paint(canvas: Any, shape: str, centre: ndarray, radius: float, colour: str) -> None:
    fill, (x, y) = PAINTS[colour][0], centre
    if shape == "circle":
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        canvas.regular_polygon((x, y, radius), SHAPES[shape], fill=fill)


def _picture(tier: int, target: str, colour: str, spare: list[str], rng: np.random.Generator) -> ndarray:
    """The target on top of distractors of other shapes in the `spare` colours."""
    area, n_distractors, overlapping = SHAPE_TIERS[tier]
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    canvas = ImageDraw.Draw(picture)
    radius = SIDE * np.sqrt(area / np.pi)
    centre = rng.uniform(radius, SIDE - radius, 2)
    for _ in range(n_distractors):
        size = min(radius, 0.15 * SIDE) * rng.uniform(0.5, 1)
        if rng.random() < overlapping:
            place = centre + rng.uniform(-1, 1, 2) * radius
        else:  # the one of twenty places that is farthest from the target
            places = rng.uniform(size, SIDE - size, (20, 2))
            place = places[np.hypot(*(places - centre).T).argmax()] if area < 0.2 else places[0]
        shape = rng.choice([s for s in SHAPES if s != target])
        _paint(canvas, shape, place, size, rng.choice(spare))
    _paint(canvas, target, centre, radius, colour)
    return np.asarray(picture)


def shape_conflicts(n_images: int, rng: np.random.Generator, *, n_texts: int = 3) -> ShapeConflicts:
    """Draw images of all visual tiers in turn, and for each `n_texts` sentences of different textual tiers.

    Raises:
        ValueError: there are not so many textual tiers.
    """
    if not 1 <= n_texts <= 3:
        raise ValueError(f"n_texts={n_texts}: the set 'shapes' has three textual tiers")
    colours = tuple(PAINTS)
    tiers = np.arange(n_images) % len(SHAPE_TIERS)
    images, questions, texts, unrelated, answers, text_tiers = [], [], [], [], [], []
    for tier in tiers:
        seen, told, *spare = (int(i) for i in rng.permutation(len(colours)))
        target, (absent, between) = rng.choice(list(SHAPES)), rng.permutation(ABSENT_SHAPES)[:2]
        images.append(_picture(int(tier), target, colours[seen], [colours[i] for i in spare], rng))
        word, things = colours[told], PAINTS[colours[told]][1]
        sentences = (
            f"The {{}} is {word}.",
            f"The {{}}'s color is the same as that of a {between}. The {between} is {word}.",
            f"The {{}}'s color is the same as that of {rng.choice(things)}.",
        )
        question = f"What color is the {target}? Please use one word to answer this question."
        chosen = np.sort(rng.permutation(3)[:n_texts])
        questions.append(question)
        texts += [f"{sentences[i].format(target)} {question}" for i in chosen]
        unrelated += [f"{sentences[i].format(absent)} {question}" for i in chosen]
        text_tiers += [*chosen]
        answers.append((seen, told))
    seen, told = np.array(answers).T
    return ShapeConflicts(
        images=np.stack(images),
        questions=questions,
        texts=texts,
        unrelated_texts=unrelated,
        image=np.arange(n_images).repeat(n_texts),
        visual_tier=tiers,
        text_tier=np.array(text_tiers),
        seen=seen,
        told=told,
    )
