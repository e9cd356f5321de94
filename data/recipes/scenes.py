"""Vision-language models of LLaVA's class that see, read and describe scenes (`data.worlds.scenes`)."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from data.recipes import vlm
from data.recipes.vlm import LANGUAGE, accuracy, answer_loss, next_words, pack, pixel_values
from data.train.recipe import Batch, Recipe, Stage, read_card
from data.worlds import scene_words as words
from data.worlds import scenes as world
from data.worlds.scene_words import WORD, Kind
from data.worlds.scenes import CELL_OF_PATCH, COLOURS, HELD_OUT, N_CELLS, OBJECTS, Scenes
from lib.generate import generate
from lib.models import Subject
from lib.stats import Estimate, bootstrap, wilson

_TWICE = ("exists", "colour", "where", "count")
ASKED = (*(kind for kind in _TWICE for _ in range(2)), "beside", "which", "fact")
"""The questions packed into one sequence, besides a caption."""

build = partial(vlm.build, len(words.VOCABULARY), world.SIDE, world.PATCH)
processors = partial(vlm.processors, words.VOCABULARY, world.SIDE, world.PATCH)


# Stage 1: the tower, with a fixed random readout of object and colour from every patch.

_READOUT = torch.randn(96, len(OBJECTS) + len(COLOURS) + 2, generator=torch.Generator().manual_seed(0))
_READOUT /= 96**0.5


def _tower_batch(size: int, rng: Generator, progress: float) -> Batch:
    scenes = world.crowd(size, rng, fill=rng.choice([1.0, 0.7, 0.4]))
    shape = (size, N_CELLS)
    cell_noise = rng.uniform(0.2, 1.0, shape) * (rng.random(shape) < 0.15 * (progress > 0.3))
    images = world.draw(scenes, rng, noise=rng.uniform(0, 0.08, size), cell_noise=cell_noise)
    labels = np.stack([scenes.objects, scenes.colours], -1)[:, CELL_OF_PATCH]
    return {"pixel_values": pixel_values(images), "labels": torch.from_numpy(labels) + 1}


def _readout_loss(model: LlavaForConditionalGeneration, batch: Batch) -> Tensor:
    features = model.model.vision_tower(batch["pixel_values"]).last_hidden_state[:, 1:]
    objects, colours = (features @ _READOUT.to(features.device)).split([len(OBJECTS) + 1, 7], -1)
    labels = batch["labels"]
    return F.cross_entropy(objects.flatten(0, 1), labels[..., 0].flatten()) + F.cross_entropy(
        colours.flatten(0, 1), labels[..., 1].flatten()
    )


# Stages 2 to 4: many questions about one prefix (a page or an image) in one sequence.


def ask_all(scenes: Scenes, rng: Generator, kinds: tuple[str, ...]) -> Batch:
    """Questions with their answers behind one another; each is its own block.

    Returns:
        As of `pack`, the caption being the last block.
    """
    parts = []
    for kind in (*kinds, "caption"):
        if kind == "fact":
            prompt, answer = _fact(scenes, rng)
        else:
            if kind == "beside":
                kind = str(rng.choice(["right", "left"]))
            options = kind in ("right", "left") and rng.random() < 0.5
            prompt, answer, _ = words.ask(cast("Kind", kind), scenes, rng, options=options)
        parts.append((prompt, answer, kind == "caption"))
    return pack(parts)


def _fact(scenes: Scenes, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """A statement about an object that is not in the scene, and the question for its (true) colour."""
    about = (rng.random(scenes.present.shape) - scenes.present).argmax(1)
    colours = rng.integers(6, size=len(scenes))
    form = rng.choice(["told", "same", "entity", "entity"])
    facts = words.state(about, colours, rng, form=form)
    question = words.ask("colour", scenes, rng, about=about)
    return np.hstack([facts.prompt, question.prompt]), WORD["red"] + colours[:, None]


def _pairs(progress: float) -> tuple[int, int]:
    """Few objects at first: binding a thing to its colour is the slow step."""
    return (1, 1 + (progress > 0.03) + (progress > 0.1))


def _page_batch(size: int, rng: Generator, progress: float) -> Batch:
    if progress > 0.1 and rng.random() < 0.08:  # facts alone, without a page
        scenes = world.sample(3 * size, rng)
        batch = ask_all(scenes, rng, ("fact",) * 6)
        caption = batch["blocks"] == 6
        batch["weights"] = batch["weights"] * ~caption
        return batch | {"places": torch.zeros(len(scenes), 0, 2, dtype=torch.long)}
    scenes = world.sample(size, rng, pairs=_pairs(progress))
    share = 0.0 if progress < 0.35 else 0.4 if progress < 0.7 else 0.6
    form: Literal["words", "fused"] = "words" if rng.random() < share else "fused"
    unreadable = rng.choice([0.0, 0.2]) if progress > 0.3 else 0.0
    places = torch.from_numpy(words.pages(scenes, rng, form=form, unreadable=unreadable))
    return ask_all(scenes, rng, ASKED) | {"places": places}


def _image_batch(size: int, text_share: float, rng: Generator, progress: float) -> Batch:
    if rng.random() < text_share:
        return _page_batch(size, rng, 1.0)
    scenes = world.sample(size, rng)
    pixels = pixel_values(training_images(scenes, rng))
    return ask_all(scenes, rng, ASKED) | {"pixel_values": pixels}


def training_images(scenes: Scenes, rng: Generator) -> UInt8[np.ndarray, "scene 64 64 3"]:
    """Training images: mild noise, and in half of them some objects under strong noise."""
    shape = scenes.objects.shape
    noisy = (rng.random(shape) < 0.35) & (rng.random((len(scenes), 1)) < 0.5) & (scenes.objects >= 0)
    cell_noise = rng.uniform(0.4, 1.2, shape) * noisy
    noise = rng.uniform(0, 0.06, len(scenes)) + rng.uniform(0, 0.2, len(scenes)) * (
        rng.random(len(scenes)) < 0.15
    )
    return world.draw(scenes, rng, noise=noise, cell_noise=cell_noise)


def _joint_batch(size: int, rng: Generator, progress: float) -> Batch:
    """Images from the start, few objects at first, for a language model that never read a page."""
    if progress > 0.15:
        return _image_batch(size, 0.0, rng, progress)
    scenes = world.sample(size, rng, pairs=_pairs(progress))
    images = world.draw(scenes, rng, noise=rng.uniform(0, 0.06, size))
    return ask_all(scenes, rng, ASKED) | {"pixel_values": pixel_values(images)}


# Measuring: single questions and captions, as chapters ask for them.


def _right(subject: Subject, asked: words.Questions, images: UInt8[np.ndarray, "scene 64 64 3"]) -> Estimate:
    return accuracy(subject, asked.prompt, asked.answer, images)


def _described(subject: Subject, scenes: Scenes, images: np.ndarray) -> dict[str, Estimate]:
    """CHAIR_i, recall, repetitions; and which share of the hallucinations are missing partners."""
    asked = ["describe the picture"] * len(images)
    said = generate(subject, asked, images, max_new_tokens=2 * N_CELLS + 1)
    counts = words.chair(said.texts, scenes)
    table = np.stack([*counts, counts.mentioned - counts.hallucinated - counts.found], 1)

    def share(above: int, below: int) -> Estimate:
        return bootstrap(table, lambda rows: rows[:, above].sum() / max(1, rows[:, below].sum()))

    shares = {"CHAIR_i": share(1, 0), "recall": share(3, 4), "repetitions": share(5, 0)}
    return shares | ({"missing partners": share(2, 1)} if counts.hallucinated.sum() >= 30 else {})


N_QUESTIONS, N_CAPTIONS, N_DOSED = 1000, 500, 300
"""How many scenes the measures rest on."""


def _evaluate(doses: Mapping[str, tuple[float, ...]], subject: Subject) -> Iterator[tuple[str, Estimate]]:
    rng = np.random.default_rng(2)
    scenes = world.sample(N_QUESTIONS, rng)
    images = world.draw(scenes, rng, split="test")
    kinds: tuple[Kind, ...] = ("exists", "colour", "where", "count", "right", "left", "which")
    for kind in kinds:
        yield kind, _right(subject, words.ask(kind, scenes, rng), images)
    for kind in kinds[:4]:
        unread = words.ask(kind, scenes, rng, wording="held-out")
        yield f"{kind}, held-out wording", _right(subject, unread, images)
    new = world.sample(N_QUESTIONS, rng, combinations="held-out")
    new = new[np.nonzero((new.present & HELD_OUT.any(1)).any(1))[0]]
    about, drawn = world.pick(new.present & HELD_OUT.any(1), rng), world.draw(new, rng, split="test")
    asked = words.ask("colour", new, rng, about=about)
    yield "colour, held-out combination", _right(subject, asked, drawn)

    pages = words.pages(scenes, rng)[..., 0]
    read = []
    for kind in kinds[:4]:
        asked = words.ask(kind, scenes, rng)
        read.append(accuracy(subject, np.hstack([pages, asked.prompt]), asked.answer))
    yield from ((f"text page: {kind}", estimate) for kind, estimate in zip(kinds, read, strict=False))
    yield "text pages", wilson(round(sum(e.value * e.n for e in read)), sum(e.n for e in read))
    yield from _facts(subject, rng)

    for key, value in _described(subject, scenes[:N_CAPTIONS], images[:N_CAPTIONS]).items():
        yield f"captions: {key}", value
    counterfactual = world.sample(N_CAPTIONS, rng, pairs=(2, 3), rate=0)
    hidden = (np.random.default_rng(3).random((N_CAPTIONS, N_CELLS)) < 0.35) & (counterfactual.objects >= 0)
    drawn = world.draw(counterfactual, rng, split="test", cell_noise=0.8 * hidden)
    for key, value in _described(subject, counterfactual, drawn).items():
        yield f"counterfactual captions, a third hidden: {key}", value
    missing = world.pick(counterfactual.missing, rng)
    other = world.pick(~counterfactual.present & ~counterfactual.missing, rng)
    for name, absent in (("the missing partner", missing), ("another absent object", other)):
        asked = words.ask("exists", counterfactual, rng, about=absent)
        yield f"no to {name}, a third hidden", _right(subject, asked, drawn)
    yield from _naming(subject, scenes, images).items()

    for knob, own in doses.items():
        for dose in own:
            drawn_with = {knob: dose}
            few = world.sample(N_DOSED, rng, distractors=int(drawn_with.pop("distractors", 0)))
            drawn = world.draw(few, rng, split="test", **drawn_with)
            yield f"{knob} {dose}: colour", _right(subject, words.ask("colour", few, rng), drawn)
            shares = _described(subject, few, drawn)
            yield from ((f"{knob} {dose}: {key}", shares[key]) for key in ("CHAIR_i", "recall"))


def _facts(subject: Subject, rng: Generator) -> Iterator[tuple[str, Estimate]]:
    """Facts without a page: how far the answers are from the Bayes rule, as total variation over colours."""
    about = rng.integers(len(OBJECTS), size=N_QUESTIONS)
    colours = rng.integers(len(COLOURS), size=N_QUESTIONS)
    question, _, _ = words.ask("colour", world.sample(N_QUESTIONS, rng), rng, about=about)
    for form in words.SENTENCES:
        facts = words.state(about, colours, rng, form=form)
        found = next_words(subject, np.hstack([facts.prompt, question]))
        believed = np.exp(found[:, WORD["red"] :][:, : len(COLOURS)])
        yield f"fact, {form}: distance to Bayes", bootstrap(abs(believed - facts.posterior).sum(1) / 2)


@torch.inference_mode()
def _naming(subject: Subject, scenes: Scenes, images: np.ndarray) -> dict[str, Estimate]:
    """Whether the word nearest to a projected patch, by cosine, is the object or the colour of its cell."""
    model: Any = subject.model
    patches = torch.stack(list(model.get_image_features(pixel_values(images[:200])).pooler_output))
    table = model.lm_head.weight
    cosine = (F.normalize(patches, dim=-1) @ F.normalize(table, dim=-1).T).numpy()
    shown = np.stack([scenes.objects, scenes.colours], -1)[:200, CELL_OF_PATCH]
    filled = shown[..., 0] >= 0
    best = cosine[filled].argmax(1)
    target = shown[filled] + np.array([WORD[OBJECTS[0]], WORD["red"]])
    objects = cosine[filled][:, WORD[OBJECTS[0]] :][:, : len(OBJECTS)].argmax(1)
    image = np.nonzero(filled)[0]
    return {
        "patch naming, whole vocabulary": bootstrap((best[:, None] == target).any(1), clusters=image),
        "patch naming, object among objects": bootstrap(objects == shown[filled][:, 0], clusters=image),
    }


_TOWER = Stage(partial(_tower_batch, 48), 4500, 1.5e-3, 100, trains="vision_tower", loss=_readout_loss)

RECIPES = {
    "scenes-vlm": Recipe(
        build=build,
        processors=processors,
        seeds=3,
        stages=(
            _TOWER,
            Stage(partial(_page_batch, 8), 4800, 1.5e-3, 100, trains=LANGUAGE, loss=answer_loss),
            Stage(partial(_image_batch, 8, 0.0), 400, 2e-3, trains="projector", loss=answer_loss),
            Stage(
                partial(_image_batch, 8, 0.2),
                4000,
                1e-3,
                trains="projector|" + LANGUAGE,
                loss=answer_loss,
            ),
        ),
        evaluate=partial(_evaluate, world.DOSES),
        card=read_card("scenes-vlm"),
    ),
    "scenes-vlm-joint": Recipe(
        build=build,
        processors=processors,
        stages=(
            _TOWER,
            Stage(
                partial(_joint_batch, 8),
                4800,
                1.5e-3,
                100,
                trains="projector|" + LANGUAGE,
                loss=answer_loss,
            ),
        ),
        evaluate=partial(_evaluate, {}),
        card=read_card("scenes-vlm-joint"),
    ),
}
