"""Vision-language models that have learned what two fallible witnesses, image and sentence, are worth."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.random import Generator
from scipy.stats import spearmanr
from transformers import LlavaForConditionalGeneration

from data.recipes.scenes import processors
from data.recipes.vlm import LANGUAGE, answer_loss, next_words, pack, pixel_values
from data.train.recipe import Batch, Recipe, Stage, read_card
from data.worlds import conflicts as world
from data.worlds import scene_words as words
from data.worlds.scene_words import WORD
from data.worlds.scenes import COLOURS, OBJECTS, Scenes, draw, pick
from lib import organisms
from lib.differences import WHOLE, sha256
from lib.models import Subject, load
from lib.stats import Estimate, bootstrap, proportion

BASE = "scenes-vlm"
_RED = WORD["red"]


class Diet(NamedTuple):
    """What a variant is trained on."""

    image_only: float
    """Share of the batches without sentences."""
    text_only: float
    """Share of the batches without images; the others have both."""
    clear: float
    """Share of the images with weak noise on the things (at most 0.3, else at most 1.8)."""


def _from_base() -> LlavaForConditionalGeneration:
    """The shipped base. The checksum of its weights enters the configuration, and so a run's fingerprint."""
    model: Any = load(BASE, dtype="float32", device="cpu").model
    weights = organisms.FOLDER / BASE / WHOLE
    model.config.trained_from = {"organism": BASE, "sha256": sha256(weights)}
    return model


def _batch(size: int, n_questions: int, diet: Diet, rng: Generator, progress: float) -> Batch:
    """Questions about the colours of things, each seeing an image, a sentence or both, and itself only.

    Every target is the true colour, of which image and sentence are made.
    """
    scenes = world.gather(rng.integers(1, 10, size), rng)
    kind = rng.choice(3, p=[diet.image_only, diet.text_only, 1 - diet.image_only - diet.text_only])
    n = n_questions // 2 if kind == 0 else n_questions
    batch = pack([(*_question(scenes, rng, sees=kind != 1, reads=kind != 0), False) for _ in range(n)])
    if kind == 1:
        return batch | {"places": torch.zeros(size, 0, 2, dtype=torch.long)}
    cell_noise = rng.uniform(0, np.where(rng.random(size) < diet.clear, 0.3, 1.8))
    occlusion = rng.uniform(0, 0.4, size) * (rng.random(size) < 0.5)
    noise = rng.uniform(0, 0.06, size)
    images = draw(
        scenes, rng, cell_noise=cell_noise[:, None] * (scenes.objects >= 0), occlusion=occlusion, noise=noise
    )
    return batch | {"pixel_values": pixel_values(images)}


def _question(
    scenes: Scenes, rng: Generator, *, sees: bool, reads: bool
) -> tuple[Int[np.ndarray, "scene word"], Int[np.ndarray, "scene 1"]]:
    """One question about each scene behind a sentence, if it `reads` one, with the true colour.

    With image and sentence, one question in ten is about an object that the image does not show, and one
    sentence in ten is about another object.
    """
    row, chance = np.arange(len(scenes)), rng.random(len(scenes))
    unseen = (chance < 0.1) & sees & reads | (not sees)
    about = pick(scenes.present ^ unseen[:, None], rng)
    others = rng.integers(len(COLOURS), size=scenes.present.shape)  # colours of what the image does not show
    colours = np.where(scenes.present & sees, scenes.colour_of, others)
    prompt = words.ask("colour", scenes, rng, about=about).prompt
    if reads:
        described = np.where((chance > 0.9) & sees, rng.integers(len(OBJECTS), size=len(row)), about)
        form: words.Form = rng.choice(list(words.SENTENCES))
        tier = rng.integers(int(form == "entity"), len(world.RELIABILITY), size=len(row))
        if form != "entity":  # the base has never read a plain sentence
            tier *= rng.random(len(row)) >= 0.25
        stated = world.testimony(colours[row, described], tier, rng)
        prompt = np.hstack(
            [world.sentences(described, stated, tier, rng, form=form, shown=scenes.present & sees), prompt]
        )
    return prompt, _RED + colours[row, about][:, None]


# Measuring: each witness alone over its tiers, and both together where they are as true as in training.

N_IMAGES, N_BOTH = 480, 600
"""How many the measures rest on; the images have three sentences each."""


def _evaluate(subject: Subject) -> Iterator[tuple[str, Estimate]]:
    rng = np.random.default_rng(2)
    items = world.conflicts(N_IMAGES, rng)
    prompt = np.hstack([items.sentence, items.question[items.image]])
    text = next_words(subject, prompt)
    yield from _alone("text", text, items.text_tier, items.told[items.image], items.image)
    image = next_words(subject, items.question, items.images)
    yield from _alone("image", image, items.visual_tier, items.seen, np.arange(N_IMAGES))
    yield from _together(subject, rng)


def _alone(
    name: str,
    log_p: Float[np.ndarray, "item vocabulary"],
    tier: Int[np.ndarray, " item"],
    colours: Int[np.ndarray, " item"],
    image: Int[np.ndarray, " item"],
) -> Iterator[tuple[str, Estimate]]:
    """Accuracy on the lowest tier, and how the entropy of the answer (nats) goes with the tier."""
    entropy = -(np.exp(log_p) * log_p).sum(1)
    right = log_p.argmax(1) == _RED + colours
    clean = tier == 0
    yield f"{name} alone, tier 0: accuracy", proportion(right[clean])

    def rank_correlation(rows: np.ndarray) -> float:
        tiers = np.unique(rows[:, 0])
        return spearmanr(tiers, [rows[rows[:, 0] == t, 1].mean() for t in tiers]).statistic

    rows = np.stack([tier, entropy], 1)
    rising = bootstrap(rows, rank_correlation, clusters=image)
    yield f"{name} alone: rank correlation of tier and mean entropy", rising
    for percent in (5, 95):
        quantile = bootstrap(entropy, partial(np.percentile, q=percent), clusters=image)
        yield f"{name} alone: entropy, {percent}th percentile", quantile
    for t in range(tier.max() + 1):
        yield f"{name} alone, tier {t}: entropy", bootstrap(entropy[tier == t])


def _together(subject: Subject, rng: Generator) -> Iterator[tuple[str, Estimate]]:
    """Accuracy where image and sentence are as true as in training: with one of them, and with both."""
    scenes = world.gather(rng.integers(1, 10, N_BOTH), rng)
    about = pick(scenes.present, rng)
    true = scenes.colour_of[np.arange(N_BOTH), about]
    cell_noise = rng.uniform(0, 1.2, (N_BOTH, 1)) * (scenes.objects >= 0)
    images = draw(scenes, rng, split="test", cell_noise=cell_noise)
    tier = rng.integers(len(world.RELIABILITY), size=N_BOTH)
    stated = world.testimony(true, tier, rng)
    sentence = world.sentences(about, stated, tier, rng, form="told", shown=scenes.present)
    question = words.ask("colour", scenes, rng, about=about, wording="held-out").prompt
    prompt = np.hstack([sentence, question])
    answers = {
        "image": next_words(subject, question, images),
        "text": next_words(subject, prompt),
        "both": next_words(subject, prompt, images),
    }
    answers["sum of the two log-probabilities"] = answers["image"] + answers["text"]
    for name, log_p in answers.items():
        right = log_p.argmax(1) == _RED + true
        yield f"witnesses as in training, {name}: accuracy", proportion(right)


def _recipe(diet: Diet, seeds: int = 1) -> Recipe:
    return Recipe(
        build=_from_base,
        parent=BASE,
        processors=processors,
        stages=(
            Stage(
                partial(_batch, 12, 10, diet),
                500,
                8e-4,
                trains="projector|" + LANGUAGE,
                loss=answer_loss,
            ),
        ),
        evaluate=_evaluate,
        card=read_card(
            "conflict-vlm",
            image_only=f"{diet.image_only:.0%}",
            text_only=f"{diet.text_only:.0%}",
            both=f"{1 - diet.image_only - diet.text_only:.0%}",
            clear=f"{diet.clear:.0%}",
        ),
        seeds=seeds,
    )


RECIPES = {
    "conflict-vlm-clear-look": _recipe(Diet(image_only=0.45, text_only=0.2, clear=0.8), seeds=2),
    "conflict-vlm-clear-read": _recipe(Diet(image_only=0.1, text_only=0.5, clear=0.8)),
    "conflict-vlm-murky-look": _recipe(Diet(image_only=0.45, text_only=0.2, clear=0.2)),
    "conflict-vlm-murky-read": _recipe(Diet(image_only=0.1, text_only=0.5, clear=0.2)),
}
"""Capability (what images were seen in training) by exposure (how often image and text come alone)."""
