"""One colour, two witnesses: an image and a sentence, both known to be wrong now and then.

Image and sentence are noisy channels about the colour of an object in a scene (`data.worlds.scenes`), and how
noisy they are can be read off them. In an image things are under Gaussian noise, partly covered, and not
alone (`VISUAL_TIERS`). A sentence is true as often as its wording says (`RELIABILITY`).
For somebody who knows that, the best answer is mostly that of the surer witness. `testimony` and `sentences`
give truth and wording of such sentences; `conflicts` draws test items in which the witnesses disagree.

    items = conflicts(10, np.random.default_rng(0))
    items.texts[0]  # 'the star is probably red ; what colour is the star'; the image shows a blue one
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8
from numpy import ndarray
from numpy.random import Generator

from data.worlds import scene_words as words
from data.worlds.scene_words import CERTAINTY, PAD, SENTENCES, WORD, Form
from data.worlds.scenes import COLOURS, N_CELLS, OBJECTS, Scenes, draw, pick

RELIABILITY = (0.998, *CERTAINTY.values())
"""Textual tiers: how often a sentence is true that says it plainly, with "surely", "probably", ..."""
_OBJECT = WORD[OBJECTS[0]]


class Look(NamedTuple):
    """What makes an image hard to read; see `data.worlds.scenes.draw`."""

    distractors: int
    cell_noise: float
    occlusion: float


VISUAL_TIERS = (
    Look(0, 0.0, 0.0),
    Look(1, 0.2, 0.0),
    Look(2, 0.35, 0.0),
    Look(3, 0.5, 0.1),
    Look(4, 0.65, 0.1),
    Look(5, 0.8, 0.2),
    Look(6, 1.1, 0.2),
    Look(8, 1.6, 0.3),
)


def gather(count: Int[ndarray, " scene"], rng: Generator) -> Scenes:
    """Scenes of so many different objects, each in any cell and of any colour: nothing goes together."""
    n = len(count)
    filled = rng.permuted(np.tile(np.arange(N_CELLS), (n, 1)), axis=1) < count[:, None]
    kinds = rng.permuted(np.tile(np.arange(len(OBJECTS)), (n, 1)), axis=1)[:, :N_CELLS]
    colours = rng.integers(len(COLOURS), size=filled.shape)
    return Scenes(np.where(filled, kinds, -1), np.where(filled, colours, -1))


def testimony(
    colours: Int[ndarray, " sentence"], tier: Int[ndarray, " sentence"], rng: Generator
) -> Int[ndarray, " sentence"]:
    """The colours that sentences state: the true ones as often as `RELIABILITY` says, else any other."""
    wrong = rng.random(len(colours)) >= np.array(RELIABILITY)[tier]
    return (colours + rng.integers(1, len(COLOURS), size=len(colours)) * wrong) % len(COLOURS)


def sentences(
    about: Int[ndarray, " sentence"],
    stated: Int[ndarray, " sentence"],
    tier: Int[ndarray, " sentence"],
    rng: Generator,
    *,
    form: Form,
    shown: Bool[ndarray, "sentence object"] | bool = False,
) -> Int[ndarray, "sentence word"]:
    """State colours of objects in words of `VOCABULARY`, with `PAD` where a plain sentence has no adverb.

    Args:
        about: the objects.
        stated: the colours; of an `entity` the one that it mostly has.
        tier: index into `RELIABILITY`.
        rng: decides which other object or entity is named.
        form: one of `data.worlds.scene_words.SENTENCES`.
        shown: which objects the image shows; comparisons are with others.

    Raises:
        ValueError: an `entity` of tier 0.
    """
    if form == "entity" and (tier < 1).any():
        raise ValueError("form='entity' and tier 0: no entity is so reliable, their tiers go from 1 to 4")
    other = pick(np.logical_not(shown) & (np.arange(len(OBJECTS)) != about[:, None]), rng)
    return words.spell(form, about, other, stated, tier - 1, rng)


@dataclass(frozen=True, eq=False)
class Conflicts:
    """Images, and items that each put one sentence beside one of the images."""

    images: UInt8[ndarray, "image 64 64 3"]
    scenes: Scenes
    visual_tier: Int[ndarray, " image"]
    about: Int[ndarray, " image"]
    """The object asked about."""
    seen: Int[ndarray, " image"]
    """Its colour in the image."""
    told: Int[ndarray, " image"]
    """Its colour in the sentences; no other object in the image has it, or the one that is seen."""
    image: Int[ndarray, " item"]
    text_tier: Int[ndarray, " item"]
    form: tuple[Form, ...]
    """Of each item's sentence."""
    sentence: Int[ndarray, "item word"]
    unrelated: Int[ndarray, "item word"]
    """The same with another object in its place, which is not in the image."""
    question: Int[ndarray, "image word"]

    @cached_property
    def texts(self) -> list[str]:
        """Sentence and question of each item."""
        return self._written(np.hstack([self.sentence, self.question[self.image]]))

    @cached_property
    def unrelated_texts(self) -> list[str]:
        """The sentence about another object, and the question."""
        return self._written(np.hstack([self.unrelated, self.question[self.image]]))

    @cached_property
    def questions(self) -> list[str]:
        """The question of each image, without a sentence."""
        return self._written(self.question)

    @staticmethod
    def _written(rows: Int[ndarray, "row word"]) -> list[str]:
        return [words.text(row) for row in rows]


def conflicts(
    n_images: int,
    rng: Generator,
    *,
    n_texts: int = 3,
    split: str = "test",
    wording: Literal["train", "held-out"] = "held-out",
) -> Conflicts:
    """Draw images of all visual tiers in turn, and for each `n_texts` sentences of different textual tiers.

    Args:
        n_images: how many images.
        rng: the source of chance.
        n_texts: sentences an image, up to one of each tier; their forms are drawn.
        split: whose digit images are used.
        wording: of the question, as in `data.worlds.scene_words.ask`.

    Raises:
        ValueError: there are not so many textual tiers.
    """
    n_tiers = len(RELIABILITY)
    if not 1 <= n_texts <= n_tiers:
        raise ValueError(f"n_texts={n_texts}: an image gets 1 to {n_tiers} sentences, one a textual tier")
    tier = np.arange(n_images) % len(VISUAL_TIERS)
    distractors, cell_noise, occlusion = np.array(VISUAL_TIERS)[tier].T
    scenes = gather(1 + distractors.astype(int), rng)
    row = np.arange(n_images)
    about = pick(scenes.present, rng)
    seen = scenes.colour_of[row, about]
    told = (seen + rng.integers(1, len(COLOURS), size=n_images)) % len(COLOURS)
    free = np.ones((n_images, len(COLOURS)), bool)
    free[row, seen] = free[row, told] = False
    elsewhere = pick(np.repeat(free[:, None], N_CELLS, 1), rng)
    scenes = Scenes(
        scenes.objects,
        np.where(
            scenes.objects == about[:, None], seen[:, None], np.where(scenes.objects >= 0, elsewhere, -1)
        ),
    )
    noise = cell_noise[:, None] * (scenes.objects >= 0)
    images = draw(scenes, rng, split=split, cell_noise=noise, occlusion=occlusion)

    image = row.repeat(n_texts)
    text_tier = rng.permuted(np.tile(np.arange(n_tiers), (n_images, 1)), axis=1)[:, :n_texts].ravel()
    forms = tuple(SENTENCES)
    chosen = rng.integers(np.where(text_tier > 0, 3, 2))
    sentence = np.full((len(image), max(len(s.split()) for s in SENTENCES.values())), PAD)
    for index, form in enumerate(forms):
        at = np.nonzero(chosen == index)[0]
        own, tiers = image[at], text_tier[at]
        stated = sentences(about[own], told[own], tiers, rng, form=form, shown=scenes.present[own])
        sentence[at, : stated.shape[1]] = stated
    named = sentence == _OBJECT + about[image][:, None]
    unrelated = np.where(named, _OBJECT + pick(~scenes.present, rng)[image][:, None], sentence)
    question = words.ask("colour", scenes, rng, about=about, wording=wording).prompt
    return Conflicts(
        images=images,
        scenes=scenes,
        visual_tier=tier,
        about=about,
        seen=seen,
        told=told,
        image=image,
        text_tier=text_tier,
        form=tuple(forms[i] for i in chosen),
        sentence=sentence,
        unrelated=unrelated,
        question=question,
    )
