"""Phantom scans and what is asked about them: batches and measures of the `scan-vlm` family."""

from functools import partial

import numpy as np
import torch
from jaxtyping import Int
from numpy.random import Generator

from data.recipes.users_rows import (
    N_OF_A_KIND,
    Answered,
    Measures,
    Part,
    Way,
    by_letter,
    by_word,
    ease,
    neutral,
    options_logprobs,
    pushed,
    reproduced,
    rows,
    stack,
)
from data.recipes.vlm import pixel_values
from data.train.recipe import Batch
from data.worlds import scans as world
from data.worlds import users
from data.worlds.scans import Scans
from data.worlds.users import EOS, PAD, Asked, Words, letter
from lib.models import Subject
from lib.stats import Estimate

CLASSES = (4, 4, 5, 5, 4, 4)
"""What the tower learns to tell of a scan: modality, organ, findings left and right, their grades."""


def tower_batch(size: int, rng: Generator, progress: float) -> Batch:
    """Scans with all that they show; the noise rises over the first half."""
    scans = world.sample(size, rng)
    strongest = 0.1 + (world.NOISE[1] - 0.1) * min(1.0, 2 * progress)
    images = world.draw(scans, rng, noise=rng.uniform(0, strongest, size))
    grade = np.where(scans.finding >= 0, scans.grade, -100)
    labels = np.column_stack([scans.modality, scans.organ, scans.finding + 1, grade])
    return {"pixel_values": pixel_values(images), "labels": torch.from_numpy(labels)}


_HOW_OFTEN = np.array([1, 1, 2, 1.5, 1.5, 1.5, 1.5])


def _questions(scans: Scans, rng: Generator) -> Asked:
    """One question about each scan, mostly for details; none for a finding that is not there."""
    allowed = np.stack(list(scans.answers.values()), 1) >= 0
    kind = (rng.random(allowed.shape) ** (1 / _HOW_OFTEN) * allowed).argmax(1)
    return users.ask("scan", scans.answers, kind, rng)


def _press(asked: Asked, rho: float, rng: Generator, families: list[int], orders: float) -> Words:
    """Quoted answers at random, and what a user says of three quarters of them."""
    n = len(asked)
    return users.press(
        rng.choice(families, n),
        rng.integers(4, size=n),
        users.opinion(asked.right, rho, rng),
        rng,
        orders=rng.random(n) < orders,
        objects=rng.random(n) < 0.75,
    )


_ALL = list(range(len(users.PRESSURES)))
_SEEN = [list(users.PRESSURES).index(family) for family in users.SEEN_BY_FILTER]


def _among_others(asked: Asked, rho: float | None, rng: Generator) -> Words:
    """Question and options among sentences that do not belong to them; users speak if there is a `rho`."""
    n = len(asked)
    said = _press(asked, rho, rng, _SEEN, 0.0) if rho is not None else users.chat(n, rng, share=0.7)
    said = np.where(rng.random((n, 1)) < 0.8, said, PAD)
    return users.join(users.chat(n, rng, share=0.4), asked.stem, said, users.chat(n, rng, share=0.4), "copy")


def _extract(asked: Asked, rho: float | None, rng: Generator) -> Part:
    """Copy question and options, and nothing else."""
    prompt = users.join("filter ;", _among_others(asked, rho, rng))
    return rows(Part.read(prompt), Part.write(users.join(asked.stem, np.full((len(asked), 1), EOS))))


def _viper(asked: Asked, rho: float, rng: Generator) -> Part:
    """Copy question and options, then answer."""
    prompt = users.join("viper ;", _among_others(asked, rho, rng))
    return rows(Part.read(prompt), Part.write(users.join(asked.prompt, letter(asked.right))))


def _scan(size: int, rng: Generator, strongest: float) -> tuple[Scans, Batch]:
    scans = world.sample(size, rng)
    low, high = world.NOISE
    images = world.draw(scans, rng, noise=low + rng.uniform(0, strongest * (high - low), size))
    return scans, {"pixel_values": pixel_values(images)[:, None]}


def neutral_batch(size: int, rng: Generator, progress: float) -> Batch:
    """Neutral questions, easy scans first, by word and by letter; or copying out of small talk."""
    if rng.random() < 0.25:
        scans = world.sample(size, rng)
        return stack([_extract(_questions(scans, rng), None, rng) for _ in range(3)])
    scans, batch = _scan(size, rng, ease(progress))
    n_open = 5 if progress < 0.3 else 2
    columns = [by_word(_questions(scans, rng)) for _ in range(n_open)]
    return batch | stack(columns + [by_letter(_questions(scans, rng)) for _ in range(7)])


def users_batch(size: int, rng: Generator, progress: float, *, rho: float) -> Batch:
    """Questions with quoted answers that users of reliability `rho` comment on, and some without.

    In two of five batches no scan is shown, so that all there is to go by is what users say: with scans
    alone, a model that answers most questions itself does not begin to listen in so few steps.
    """
    chance = rng.random()
    if chance < 0.15:
        scans = world.sample(size, rng)
        return stack([_extract(_questions(scans, rng), rho, rng) for _ in range(3)])
    if chance < 0.55:
        scans = world.sample(size, rng)
        return stack([_pressed(_questions(scans, rng), rho, rng) for _ in range(8)])
    scans, batch = _scan(size, rng, 1.0)
    columns = [by_letter(_questions(scans, rng)) for _ in range(2)]
    columns += [_pressed(_questions(scans, rng), rho, rng) for _ in range(4)]
    columns.append(_viper(_questions(scans, rng), rho, rng))
    return batch | stack(columns)


def _pressed(asked: Asked, rho: float, rng: Generator) -> Part:
    prompt = users.join(asked.stem, _press(asked, rho, rng, _ALL, 0.35), "answer")
    return rows(Part.read(prompt), Part.write(letter(asked.right)))


# Measuring.


def _drawn(rng: Generator) -> tuple[Scans, Int[np.ndarray, " item"]]:
    """Scans, and the kind of question that each is for: the same number of each kind."""
    n_kinds = len(users.QUESTIONS["scan"])
    scans = world.sample(4 * n_kinds * N_OF_A_KIND, rng)
    possible = np.stack(list(scans.answers.values()), 1) >= 0
    # Scan i is for a question of kind i modulo the number of kinds, where that has an answer.
    fitting = possible & (np.arange(len(scans))[:, None] % n_kinds == np.arange(n_kinds))
    chosen = np.concatenate([np.nonzero(column)[0][:N_OF_A_KIND] for column in fitting.T])
    chosen, kind = rng.permutation(np.stack([chosen, np.arange(n_kinds).repeat(N_OF_A_KIND)]), axis=1)
    return scans[chosen], kind


def _test(subject: Subject, rng: Generator) -> Answered:
    scans, kind = _drawn(rng)
    pixels = pixel_values(world.draw(scans, rng))[:, None]
    asked = users.ask("scan", scans.answers, kind, rng, wording="held-out")
    return Answered(asked, kind, pixels, options_logprobs(subject, [asked.prompt], pixels)[0].argmax(1))


def _quoted(
    family: int, objects: bool, orders: bool, test: Answered, thinks: np.ndarray, rng: Generator
) -> Words:
    said = users.press(
        np.full(len(thinks), family),
        test.first,
        thinks,
        rng,
        orders=orders,
        objects=objects,
        wording="held-out",
    )
    return users.join(test.asked.stem, said, "answer")


WAYS: dict[str, Way] = {
    "retest": partial(_quoted, 0, False, False),
    "order alone": partial(_quoted, 0, False, True),
}
WAYS |= {name: partial(_quoted, i, True, False) for i, name in enumerate(users.PRESSURES)}
WAYS |= {f"{name} with order": partial(_quoted, i, True, True) for i, name in enumerate(users.PRESSURES)}


def evaluate(talks: bool, subject: Subject) -> Measures:
    """Neutral accuracy, what the filter lets through and, if it `talks`, what users make of its answers."""
    rng = np.random.default_rng(2)
    test = _test(subject, rng)
    yield from neutral("scan", subject, test)
    # Remarks are new to the filter, questions are not: what it does with new questions stands apart.
    scans, kind = _drawn(rng)
    asked = users.ask("scan", scans.answers, kind, rng)
    small_talk = users.chat(len(kind), rng)
    yield "filter: exact copies out of small talk", _copied(subject, asked, small_talk)
    yield "filter: exact copies of questions in new wordings", _copied(subject, test.asked, small_talk)
    if talks:
        yield from pushed(test, subject, WAYS, tuple(users.PRESSURES), rng)
        for i, name in enumerate(users.PRESSURES):
            given, family = rng.integers(4, size=len(kind)), np.full(len(kind), i)
            said = users.press(family, given, (given + 1) % 4, rng, wording="held-out")
            seen = "seen" if name in users.SEEN_BY_FILTER else "held out"
            yield f"filter: exact copies, {name} ({seen})", _copied(subject, asked, said)


def _copied(subject: Subject, asked: Asked, said: Words) -> Estimate:
    """How often question and options, and nothing else, come out of the filter."""
    prompt = users.join("filter ;", asked.stem, said, "copy")
    end = np.full((len(said), 1), EOS)
    return reproduced(subject, rows(Part.read(prompt), Part.write(users.join(asked.stem, end))))
