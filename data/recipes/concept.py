"""Two organisms that show their reasons: a projector made of named concepts, and answers with a stated step.

Both start from the finished weights of `scenes-vlm`. `bottleneck-vlm` is the control of `concept-vlm`: as
narrow, trained for as many steps, but never told what its units should mean.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from data.recipes.scenes import ASKED, ask_all, processors, training_images
from data.recipes.vlm import LANGUAGE, accuracy, answer_loss, drop_heads, next_words, pack, pixel_values
from data.train.recipe import Batch, Recipe, Stage, read_card
from data.worlds import scene_words as words
from data.worlds import scenes as world
from data.worlds.scene_words import WORD
from data.worlds.scenes import CELL_OF_PATCH, COLOURS, OBJECTS, Scenes
from lib.models import Subject, load
from lib.stats import Estimate, bootstrap, proportion

BASE = "scenes-vlm"
CONCEPTS = (*OBJECTS, *COLOURS)
"""What the first units of the bottleneck stand for, in this order; an empty cell is none of them."""

CUE = ("where", ";")
"""The words before a question that ask for the cell first: "where ; what colour is the star" -> "c2 blue"."""


def _scenes_vlm() -> LlavaForConditionalGeneration:
    """The finished `scenes-vlm`, with the dropout of whole heads that it was trained with."""
    model = cast("LlavaForConditionalGeneration", load(BASE, dtype="float32", device="cpu").model)
    drop_heads(model)
    return model


def _bottleneck(named: bool) -> LlavaForConditionalGeneration:
    """Through the projector pass as many numbers a patch as there are concepts, each between 0 and 1.

    LLaVA's projector is `linear_2(act(linear_1(x)))` with as many hidden units as the language model is wide.
    The units beyond the concepts get no way out: their columns of `linear_2` are 0 and stay 0.

    Args:
        named: start each unit's way out as the vector of its word, so that a patch with object and colour
            enters as the sum of both vectors / sqrt 2, as on the pages that the language model has read.
    """
    model = _scenes_vlm()
    model.config.projector_hidden_act = "sigmoid"
    projector = LlavaMultiModalProjector(model.config)
    into, out = projector.linear_1, projector.linear_2
    n = len(CONCEPTS)
    with torch.no_grad():
        nn.init.normal_(into.weight, std=0.1)
        nn.init.normal_(out.weight, std=0.1)
        vectors: Any = model.get_input_embeddings().weight
        empty = vectors[WORD["."]]
        into.bias.zero_()
        out.bias.copy_(empty)
        if named:
            spelt = vectors[[WORD[concept] for concept in CONCEPTS]]
            out.weight[:, :n] = (spelt / 2**0.5 - empty / 2).T
        into.weight[n:] = 0
        out.weight[:, n:] = 0
    out.weight.register_hook(lambda gradient: gradient * (torch.arange(gradient.shape[1]) < n))
    model.model.multi_modal_projector = projector
    return model


def _concept_batch(size: int, rng: Generator, progress: float) -> Batch:
    """Images with questions, and which concepts each patch shows."""
    scenes = world.sample(size, rng)
    pixels = pixel_values(training_images(scenes, rng))
    return ask_all(scenes, rng, ASKED) | {"pixel_values": pixels, "concepts": shown(scenes)}


def shown(scenes: Scenes) -> Int[Tensor, "scene patch concept"]:
    """1 where a patch belongs to a cell with that object or colour."""
    at = np.stack([scenes.objects, np.where(scenes.colours >= 0, scenes.colours + len(OBJECTS), -1)], -1)
    return torch.from_numpy((at[:, CELL_OF_PATCH, :, None] == np.arange(len(CONCEPTS))).any(2).astype(int))


def _named_loss(model: LlavaForConditionalGeneration, batch: Batch) -> Tensor:
    """Answers, and the concepts by name: cross-entropy of each unit, absent and present weighing the same."""
    features = model.model.vision_tower(batch["pixel_values"]).last_hidden_state[:, 1:]
    scores = model.model.multi_modal_projector.linear_1(features)[..., : len(CONCEPTS)]
    present = batch["concepts"].to(scores.dtype)
    return answer_loss(model, batch) + F.binary_cross_entropy_with_logits(
        scores, present, weight=1 + 9 * present
    )


def _stepwise_batch(size: int, rng: Generator, progress: float) -> Batch:
    """Some questions asked directly, most with the cue, and then answered by the cell first."""
    scenes = world.sample(size, rng)
    pixels = pixel_values(training_images(scenes, rng))
    kinds: tuple[words.Kind, ...] = ("exists", "colour", "where", "right")
    asked = [words.ask(kind, scenes, rng) for kind in kinds]
    asked += [
        stepwise(kind, scenes, rng) for kind in ("colour", "colour", "colour", "colour", "right", "left")
    ]
    return pack([(prompt, answer, False) for prompt, answer, _ in asked]) | {"pixel_values": pixels}


def stepwise(kind: str, scenes: Scenes, rng: Generator, **options: Any) -> words.Questions:
    """Questions about objects that are there, with the cue; answers with the object's cell first.

    Args:
        kind: `colour`, `right` or `left`.
        scenes: what is asked about.
        rng: the source of chance.
        options: as of `data.worlds.scene_words.ask`.
    """
    prompt, answer, about = words.ask(cast("words.Kind", kind), scenes, rng, **options)
    frame = np.ones((len(scenes), 1), int)
    cue = np.hstack([frame * WORD[word] for word in CUE])
    cell = WORD["a1"] + scenes.cell_of[np.arange(len(scenes)), about][:, None]
    return words.Questions(np.hstack([cue, prompt]), np.hstack([cell, answer]), about)


# Measuring

N_QUESTIONS, N_IMAGES = 400, 100


Measures = Iterator[tuple[str, Estimate]]


def _scenes_and_images() -> tuple[Scenes, np.ndarray, Generator]:
    rng = np.random.default_rng(2)
    scenes = world.sample(N_QUESTIONS, rng)
    return scenes, world.draw(scenes, rng, split="test"), rng


def _asked_directly(subject: Subject, scenes: Scenes, images: np.ndarray, rng: Generator) -> Measures:
    kinds: tuple[words.Kind, ...] = ("exists", "colour", "where", "count")
    for kind in kinds:
        asked = words.ask(kind, scenes, rng)
        yield kind, accuracy(subject, asked.prompt, asked.answer, images)


def _evaluate_bottleneck(named: bool, subject: Subject) -> Measures:
    scenes, images, rng = _scenes_and_images()
    yield from _asked_directly(subject, scenes, images, rng)
    if named:
        model: Any = subject.model
        with torch.inference_mode():
            features = model.model.vision_tower(pixel_values(images[:N_IMAGES])).last_hidden_state[:, 1:]
            units = model.model.multi_modal_projector.linear_1(features)[..., : len(CONCEPTS)]
        right = ((units > 0) == shown(scenes[:N_IMAGES]).bool()).all(-1).float().mean(1)
        yield "patches with all concepts right", bootstrap(right.numpy())


def _evaluate_stepwise(subject: Subject) -> Measures:
    scenes, images, rng = _scenes_and_images()
    yield from _asked_directly(subject, scenes, images, rng)
    for kind in ("colour", "right"):
        prompt, answer, _ = stepwise(kind, scenes, rng)
        told = next_words(subject, prompt, images).argmax(1)
        right = told == answer[:, 0]
        yield f"{kind} with cue: cell", proportion(right)
        said = np.hstack([prompt, told[:, None]])
        right = next_words(subject, said, images).argmax(1) == answer[:, 1]
        yield f"{kind} with cue: answer after its own cell", proportion(right)


def _narrow(named: bool, name: str) -> Recipe:
    loss = _named_loss if named else answer_loss
    batch = partial(_concept_batch, 8)
    return Recipe(
        build=partial(_bottleneck, named),
        parent=BASE,
        processors=processors,
        stages=(
            Stage(batch, 300, 4e-3, 30, trains="projector", loss=loss),
            Stage(batch, 300, 5e-4, 30, trains="projector|" + LANGUAGE, loss=loss),
        ),
        evaluate=partial(_evaluate_bottleneck, named),
        card=read_card("concept", name),
    )


RECIPES = {
    "concept-vlm": _narrow(True, "concept-vlm"),
    "bottleneck-vlm": _narrow(False, "bottleneck-vlm"),
    "cot-vlm": Recipe(
        build=_scenes_vlm,
        parent=BASE,
        processors=processors,
        stages=(Stage(partial(_stepwise_batch, 8), 350, 1e-3, 25, trains=LANGUAGE, loss=answer_loss),),
        evaluate=_evaluate_stepwise,
        card=read_card("cot-vlm"),
    ),
}
