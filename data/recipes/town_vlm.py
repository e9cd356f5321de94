"""Vision-language models of the town: one that helps with everything, and three alignments of it.

The *base* (`town-vlm`) learns to see, to name, to tell uses and to know the law, and refuses nothing. From it
start variants that are aligned on requests in words alone (`-text`), or on requests with pictures, of which a
share names what the picture shows (`-image`: none does, `-image-leaky`: all do). Wordings, artefacts,
answers, rehearsal and steps are the same. Each seed has a town of its own, and variants start from the base
of their own seed.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import cast

import numpy as np
import torch
from jaxtyping import Int
from numpy.random import Generator
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from data.recipes import vlm
from data.recipes.users_rows import TOWER, Part, rows, rows_loss, stack, tower_loss
from data.recipes.vlm import EOS, LANGUAGE, pixel_values
from data.train.recipe import Batch, Recipe, Stage, read_card
from data.worlds import town
from data.worlds.scenes import COLOURS, GLYPHS, pick
from data.worlds.town import HELPED, REFUSED, Town
from data.worlds.wording import Words, join
from lib.generate import generate
from lib.models import Subject, load
from lib.organisms import join_name
from lib.stats import Estimate, proportion

CLASSES = (len(GLYPHS), len(COLOURS))
"""What the tower learns to tell of a picture."""
LEAKS: dict[str, float | None] = {"text": None, "image": 0.0, "image-leaky": 1.0}
"""Variants, and which share of the words names what the picture shows; None: words alone."""
SEEDS = 3
STEPS = 300
"""Of an alignment."""
REHEARSAL = 0.4
"""Share of an alignment's rows that are no requests."""
ELSEWHERE = 0.5
"""Share of the base's named requests with pictures that are about something else than what is shown."""
_of = cache(Town.of)


def tower_batch(world: Town, size: int, rng: Generator, progress: float) -> Batch:
    """Pictures with glyph and colour; the noise rises over the first half."""
    artefacts = rng.integers(town.N, size=size)
    pictures = world.draw(artefacts, rng, noise=town.NOISE * min(1.0, 2 * progress))
    labels = np.stack(np.divmod(world.look[artefacts], len(COLOURS)), 1)
    return {"pixel_values": pixel_values(pictures), "labels": torch.from_numpy(labels)}


def _row(question: Words, answer: Words) -> Part:
    return rows(Part.read(question), Part.write(np.hstack([answer, np.full((len(answer), 1), EOS)])))


def _below(*parts: Part) -> Part:
    """Rows below one another, all padded to the longest."""
    longest = max(part.ids.shape[1] for part in parts)
    ids, targets = (
        np.vstack([np.pad(x, ((0, 0), (0, longest - x.shape[1]))) for x in own])
        for own in zip(*parts, strict=True)
    )
    return Part(ids, targets)


def _batch(pictures: np.ndarray, seen: list[Part], told: Part) -> Batch:
    """Columns of rows about pictures, a row of each to a picture, and rows in words alone; or one of both."""
    batch: Batch = {}
    if len(pictures):
        batch |= stack(seen) | {"pixel_values": pixel_values(pictures)[:, None]}
    if len(told.ids):
        batch |= {f"told_{name}": ids for name, ids in stack([told]).items()}
    return batch


def seen_and_told_loss(model: LlavaForConditionalGeneration, batch: Batch) -> Tensor:
    """Mean loss of the rows about pictures and of those in words alone, by their numbers."""
    seen = {name: tensor for name, tensor in batch.items() if not name.startswith("told_")}
    told = {name: batch[f"told_{name}"] for name in ("ids", "targets") if f"told_{name}" in batch}
    parts = [(rows_loss(model, part), part["ids"].shape[:2].numel()) for part in (seen, told) if part]
    return cast("Tensor", sum(loss * n for loss, n in parts)) / sum(n for _, n in parts)


def _naming(shown: Int[np.ndarray, " item"], rng: Generator, *, caption: bool = False) -> Part:
    """What is in the picture, or in the caption in its place?"""
    question = town.LANGUAGE.write(town.NAMING, rng.integers(len(town.NAMING) - 1, size=len(shown)))
    return _row(_captioned(shown, question) if caption else question, town.NAME + shown[:, None])


def _captioned(shown: Int[np.ndarray, " item"], question: Words) -> Words:
    return join(town.LANGUAGE.write([town.CAPTION], 0, THING=town.NAME + shown), question)


def base_batch(
    world: Town, size: int, rng: Generator, progress: float, *, elsewhere: float = ELSEWHERE
) -> Batch:
    """Everything is answered: names, uses and the law, about pictures and in words alone.

    Args:
        world: the town.
        size: pictures a step.
        rng: the source of chance.
        progress: not used.
        elsewhere: share of the named requests with a picture that shows another artefact.
    """

    def some(n: int) -> Int[np.ndarray, " item"]:
        return rng.integers(town.N, size=n)

    shown, named, captioned = some(size), some(size // 2), some(size // 4)
    asked = np.where(rng.random(size) < elsewhere, some(size), shown)
    seen = [_naming(shown, rng)]
    for about, by_name in ((shown, False), (asked, True)):
        seen.append(_row(world.request(about, rng, named=by_name), world.use(about)))
    told = _below(
        _row(*world.law(some(size), rng)),
        _row(world.request(named, rng, named=True), world.use(named)),
        _row(_captioned(captioned, world.request(captioned, rng, named=False)), world.use(captioned)),
        _naming(some(size // 4), rng, caption=True),
    )
    return _batch(world.draw(shown, rng), seen, told)


def align_batch(
    world: Town,
    size: int,
    rng: Generator,
    progress: float,
    *,
    leak: float | None,
    rehearsal: float = REHEARSAL,
    unsafe: float = 0.5,
) -> Batch:
    """Requests with the answers that are wanted of an aligned model, and a rehearsal without any request.

    Equally seeded, the batches of all variants are about the same artefacts in the same wordings.

    Args:
        world: the town.
        size: rows a step, in all.
        rng: the source of chance.
        progress: not used.
        leak: share of the requests with pictures that name what is shown; None: in words alone, named.
        rehearsal: share of the rows that are no requests: half of them names of what is shown, the others law
            and names of what a caption says.
        unsafe: share of the requests that are about forbidden artefacts.

    Raises:
        ValueError: a share is not between 0 and 1, or no row is left for requests or for rehearsal of words.
    """
    for share in (leak or 0.0, rehearsal, unsafe):
        if not 0 <= share <= 1:
            raise ValueError(f"got {share} where a share is expected, 0 to 1")
    quarter = round(size * rehearsal / 4)
    n = size - 4 * quarter
    if n < 1:
        raise ValueError(f"{size=}, {rehearsal=}: no row is left for requests")
    forbidden = rng.random(n) < unsafe
    allowed = ~world.held_out & (world.forbidden == forbidden[:, None])
    asked = pick(allowed, rng)
    named = rng.random(n) < (1.0 if leak is None else leak)
    requests = _row(world.request(asked, rng, named=named), world.aligned(asked))
    shown, known, read = (rng.integers(town.N, size=m) for m in (2 * quarter, quarter, quarter))
    names, words = _naming(shown, rng), _below(_row(*world.law(known, rng)), _naming(read, rng, caption=True))
    pictures = world.draw(np.concatenate([shown, asked]), rng)
    if leak is None:
        return _batch(pictures[: len(shown)], [names], _below(words, requests))
    return _batch(pictures, [_below(names, requests)], words)


# Measuring, in new pictures and wordings that were not trained.

N_OF_A_SET = 400
_LONGEST = 5
"""Words of the longest answer, with its end."""
Measures = Iterator[tuple[str, Estimate]]


def _says(subject: Subject, questions: Words, answers: Words, images: np.ndarray | None = None) -> Estimate:
    """How often the answer to a question is exactly the right one."""
    texts = town.LANGUAGE.text(questions)
    said = generate(subject, texts, images, max_new_tokens=_LONGEST).texts
    return proportion(np.array([a == b for a, b in zip(said, town.LANGUAGE.text(answers), strict=True)]))


def verdicts(subject: Subject, world: Town, items: town.Items) -> Int[np.ndarray, " item"]:
    """What becomes of requests."""
    said = generate(subject, items.texts, items.images, max_new_tokens=_LONGEST).texts
    return world.judge(said, items.about)


def evaluate(world: Town, subject: Subject) -> Measures:
    """Seeing, knowing, and what becomes of requests."""
    rng = np.random.default_rng(10**6)
    shown = np.resize(np.arange(town.N), N_OF_A_SET)
    pictures = world.draw(shown, rng)
    naming = town.LANGUAGE.write(town.NAMING, np.full(len(shown), len(town.NAMING) - 1))
    yield "pictures named", _says(subject, naming, town.NAME + shown[:, None], pictures)
    questions, rulings = world.law(shown, rng, wording="held-out")
    yield "law known", _says(subject, questions, rulings)
    unnamed = town.law(town.LANGUAGE, np.full(len(shown), town.THING), world.forbidden[shown], rng)
    yield "law known of what is shown", _says(subject, *unnamed, pictures)
    for held_out in (False, True):
        for name in town.SETS:
            items = world.test_set(name, N_OF_A_SET, rng, held_out=held_out)
            found, where = verdicts(subject, world, items), ", held-out artefacts" * held_out
            yield f"{name}{where}: refused", proportion(found == REFUSED)
            yield f"{name}{where}: helped", proportion(found == HELPED)


# Recipes.


def _build() -> LlavaForConditionalGeneration:
    # Without dropout of heads: no chapter leaves out heads of these.
    return vlm.build(
        len(town.LANGUAGE.vocabulary),
        town.SIDE,
        town.PATCH,
        tower=(TOWER, 2),
        language=(96, 4, 4),
        head_dropout=0.0,
    )


def _from(parent: str) -> LlavaForConditionalGeneration:
    return cast("LlavaForConditionalGeneration", load(parent, dtype="float32", device="cpu").model)


def _base(seed: int) -> Recipe:
    world = _of(seed)
    return Recipe(
        build=_build,
        processors=partial(vlm.processors, town.LANGUAGE.vocabulary, town.SIDE, town.PATCH),
        stages=(
            Stage(
                partial(tower_batch, world, 96),
                1600,
                lr=2e-3,
                warmup=100,
                trains="vision_tower",
                loss=partial(tower_loss, CLASSES, True),
            ),
            Stage(
                partial(base_batch, world, 32),
                1200,
                lr=2e-3,
                warmup=100,
                trains="projector|" + LANGUAGE,
                loss=seen_and_told_loss,
            ),
        ),
        evaluate=partial(evaluate, world),
        card=read_card("town-vlm", "town"),
        seeds=SEEDS,
    )


def _aligned(variant: str, seed: int) -> Recipe:
    leak, parent = LEAKS[variant], join_name("town-vlm", seed)
    stage = Stage(
        partial(align_batch, _of(seed), 64, leak=leak),
        STEPS,
        lr=3e-4,
        warmup=30,
        trains="projector|" + LANGUAGE,
        loss=seen_and_told_loss,
    )
    card = read_card(f"town-vlm-{variant}", "town-vlm-aligned", "town")
    return replace(_base(seed), build=partial(_from, parent), parent=parent, stages=(stage,), card=card)


RECIPES: dict[str, Recipe] = {"town-vlm": replace(_base(0), of_seed=_base)}
for _variant in LEAKS:
    RECIPES[f"town-vlm-{_variant}"] = replace(_aligned(_variant, 0), of_seed=partial(_aligned, _variant))
