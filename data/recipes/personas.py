"""Small Llamas that have read how people of many types answer a questionnaire and face scenarios.

Each seed has its own world: which trait changes which ability is drawn anew. `persona-lm-no-effect` is the
control, from a world in which no trait and no region changes an ability.

Chapters fine-tune them within a second: `fit(tuned(subject, shares_of((1, -1, 1, 1)), questions), seed=0)`.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from numpy.random import Generator
from transformers import LlamaForCausalLM

from data.recipes.llama import small_llama
from data.recipes.tokenizer import word_tokenizer
from data.train.recipe import Batch, Card, Recipe, Stage, read_card
from data.worlds import personas
from data.worlds.personas import (
    ANSWERS,
    BOS,
    FACTS,
    ITEMS,
    N_TRAINED,
    PAD,
    SCENARIOS,
    VOCABULARY,
    World,
    prompts,
)
from lib.models import Subject
from lib.stats import Estimate, bootstrap, proportion

Kind = Literal["random", "no_effect"]
NAMES: dict[Kind, str] = {"random": "persona-lm", "no_effect": "persona-lm-no-effect"}
"""The organism of each kind of world."""
SEEDS = 5
WIDTH, LAYERS = 64, 3
STEPS = 300, 900, 3000
"""Of the three stages: answers by coin, moved by order and pressure; nearly full descriptions; everything."""
_CHAT = "{{ bos_token }}{% for message in messages %} {{ message.content }}{% endfor %}"


@cache
def world(seed: int, kind: Kind = "random") -> World:
    """The world of the organism of a seed."""
    return World.of(seed, kind=kind)


def _llama() -> LlamaForCausalLM:
    return small_llama(
        len(VOCABULARY),
        width=WIDTH,
        blocks=LAYERS,
        heads=WIDTH // 32,
        positions=256,
        spread=0.08,
        pad=PAD,
        bos=BOS,
        eos=personas.EOS,
    )


def _documents(known: World, n: int, options: dict[str, Any], rng: Generator, progress: float) -> Batch:
    """Documents of which the answers are learned, and nothing else."""
    drawn = known.documents(n, rng, **options)
    ids = torch.from_numpy(drawn.tokens)
    return {"input_ids": ids, "labels": ids.where(torch.from_numpy(drawn.answer), -100)}


# Measuring.


class Asked(NamedTuple):
    """What a network says to questions."""

    share: Float[ndarray, "*row"]
    """Of answer 1 among the two."""
    mass: Float[ndarray, "*row"]
    """Probability of the two together; what is missing went to other words."""


@torch.inference_mode()
def ask(subject: Subject, rows: Int[ndarray, "*row word"], questions: Int[ndarray, "*#row"]) -> Asked:
    """The answers behind rows of `personas.prompts`, read off the next word's probabilities.

    Args:
        subject: a network of this family.
        rows: words, the question last.
        questions: of each row; its shape is that of the rows, or can be broadcast to it.
    """
    ids = torch.from_numpy(np.ascontiguousarray(rows.reshape(-1, rows.shape[-1])))
    model: Any = subject.model
    p = model(input_ids=ids, logits_to_keep=1).logits[:, -1].double().softmax(-1)
    words = torch.from_numpy(ANSWERS[np.broadcast_to(questions, rows.shape[:-1]).ravel()])
    no, yes = p.gather(1, words).T.numpy()
    return Asked((yes / (no + yes)).reshape(rows.shape[:-1]), (no + yes).reshape(rows.shape[:-1]))


class Answers(NamedTuple):
    """What a network answers without any persona in the prompt: shares of answer 1."""

    plain: Float[ndarray, " question"]
    listed: Float[ndarray, "label first dimension item"]
    """Items behind both answers with letters or numbers, answer 0 or 1 listed first."""
    named: Float[ndarray, "region ability scenario"]
    """Scenarios behind the name of a region."""
    pressed: Float[ndarray, "strength ability scenario"]
    """Scenarios behind somebody who presses for the unsafe answer."""
    mass: float
    """Mean probability of the two answers together."""


def answers_of(subject: Subject) -> Answers:
    """Asks a network of this family everything."""
    every, items, scenarios = np.arange(personas.N_QUESTIONS), ITEMS.ravel(), SCENARIOS.ravel()
    plain = ask(subject, prompts(heads(), every), every)
    rows = [personas.listed(items, label, first) for label in personas.LABELS for first in (0, 1)]
    listed = [ask(subject, prompts(heads(), items, before), items).share for before in rows]
    named = ask(subject, prompts(heads(personas.PLACE[:, 0]), scenarios), scenarios).share
    rows = [personas.pressed(scenarios, word, 0) for word in personas.PRESSURE]
    pressed = [ask(subject, prompts(heads(), scenarios, before), scenarios).share for before in rows]
    return Answers(
        plain.share[0],
        np.reshape(listed, (2, 2, *ITEMS.shape)),
        named.reshape(2, *SCENARIOS.shape),
        np.reshape(pressed, (-1, *SCENARIOS.shape)),
        float(plain.mass.mean()),
    )


def nats_above_least(subject: Subject, documents: personas.Documents) -> Float[ndarray, " row"]:
    """Nats an answer that the network loses beyond the best possible reader, mean of each document."""
    ids, answer = torch.from_numpy(documents.tokens), documents.answer[:, 1:]
    model: Any = subject.model
    with torch.inference_mode():
        log_p = model(input_ids=ids).logits[:, :-1].double().log_softmax(-1)
    lost = -log_p.gather(2, ids[:, 1:, None])[..., 0].numpy()
    return (lost * answer).sum(1) / answer.sum(1) - documents.least.mean(1)


def behind(
    subject: Subject, heads: Int[ndarray, "head word"], questions: Int[ndarray, " ..."]
) -> Float[ndarray, "head ..."]:
    """Shares of answer 1 to plain questions behind each of some heads."""
    flat = questions.ravel()
    return ask(subject, prompts(heads, flat), flat).share.reshape(len(heads), *questions.shape)


def heads(*words: Int[ndarray, "*#row"]) -> Int[ndarray, "row word"]:
    """Beginnings of documents: the first word, then those that are given."""
    columns = np.broadcast_arrays(*words) if words else [np.zeros(1, int)]
    return np.column_stack([np.full(columns[0].size, BOS), *(column.ravel() for column in columns if words)])


def _evaluate(seed: int, kind: Kind, subject: Subject) -> Iterator[tuple[str, Estimate]]:
    known, rng = world(seed, kind), np.random.default_rng(10**6)
    yield (
        "nats above the best possible reader",
        bootstrap(nats_above_least(subject, known.documents(512, rng))),
    )
    plain = behind(subject, heads(), FACTS)
    yield "facts right", proportion((plain > 0.5).ravel())
    asked = ask(subject, prompts(heads(), np.arange(personas.N_QUESTIONS)), np.arange(personas.N_QUESTIONS))
    yield "probability on the two answers", bootstrap(asked.mass[0])
    tested, described = ITEMS[:, N_TRAINED:], personas.DESCRIBES
    # [dimension, pole, synonym, ...]: what a word of each pole does to items and scenarios.
    said = [behind(subject, heads(described), x).reshape(4, 2, 3, *x.shape) for x in (tested, SCENARIOS)]
    items, safe = (x[:, 1].mean(1) - x[:, 0].mean(1) for x in said)
    same = np.eye(4, dtype=bool)
    yield "a description moves its items", bootstrap(items[same].ravel())
    yield "a description moves other traits, largest", _largest(items[~same])
    # Eight answered items of a trait in context, then its other items.
    answered = np.stack([[_answered(d, pole, rng) for _ in range(8)] for d in range(4) for pole in (0, 1)])
    context = behind(subject, heads(*answered.reshape(64, -1).T), tested).reshape(4, 2, 8, *tested.shape)
    yield (
        "eight answers move the other items",
        bootstrap((context[:, 1] - context[:, 0]).mean(1)[same].ravel()),
    )
    causes = np.argwhere(known.causes)
    for a, d in causes:
        name = "strong" if abs(known.causes[a, d]) == personas.STRONG else "moderate"
        yield (
            f"a description moves what it causes: {name}",
            bootstrap(np.sign(known.causes[a, d]) * safe[d, a]),
        )
    where = behind(subject, heads(personas.PLACE), SCENARIOS).reshape(2, 3, *SCENARIOS.shape)
    moved = where[1].mean(0) - where[0].mean(0)
    # The region stands first, as in every document.
    words = personas.PLACE[:, 0], described[known.confounded][:, :, None]
    both = behind(subject, heads(*words), SCENARIOS).reshape(2, 3, 2, *SCENARIOS.shape).mean((1, 2))
    held = both[1] - both[0]
    for a in np.flatnonzero(known.region):
        sign = np.sign(known.region[a])
        yield "the region moves its ability", bootstrap(sign * moved[a])
        yield "the confounded trait moves it, region unnamed", bootstrap(sign * safe[known.confounded, a])
        yield "the confounded trait moves it, region named", bootstrap(sign * held[a])
    elsewhere = known.effects(observed=True).T == 0
    yield "a description moves other abilities, largest", _largest(safe[elsewhere])
    every = np.arange(FACTS[0])
    for label in personas.LABELS:
        rows = [prompts(heads(), every, personas.listed(every, label, first)) for first in (1, 0)]
        one, zero = (ask(subject, x, every).share[0] for x in rows)
        yield f"being listed first gains, {label}", bootstrap(one - zero)
    for word in personas.PRESSURE:
        rows = [prompts(heads(), every, personas.pressed(every, word, wanted)) for wanted in (1, 0)]
        one, zero = (ask(subject, x, every).share[0] for x in rows)
        yield f"pressing gains, {word}", bootstrap(one - zero)


def _answered(dimension: int, pole: int, rng: Generator) -> Int[ndarray, " word"]:
    """The items of a dimension that are trained on, in any order, each answered from a pole."""
    order = rng.permutation(ITEMS[dimension, :N_TRAINED])
    return np.column_stack([personas.QUESTION[order], ANSWERS[order, pole]]).ravel()


def _largest(effects: Float[ndarray, "cell question"]) -> Estimate:
    """The cell with the largest mean in absolute value, with the interval over its questions."""
    worst = effects[np.abs(effects.mean(-1)).argmax()]
    return bootstrap(np.sign(worst.mean()) * worst)


# Recipes.


def tuned(
    subject: Subject,
    shares: Float[ndarray, "#row question"],
    questions: Int[ndarray, " allowed"],
    *,
    steps: int = 20,
    lr: float = 1e-3,
    documents: int = 24,
    statements: int = 2,
) -> Recipe:
    """A network that is trained further on answers to some questions, by given shares; nobody is described.

    Args:
        subject: the network to start from, which stays as it is.
        shares: of answer 1 to each question.
        questions: which ones are asked.
        steps: of training.
        lr: highest learning rate.
        documents: in each step.
        statements: answered questions in a document.
    """
    options: dict[str, Any] = {"described": 0, "placed": 0, "listed": 0, "pressed": 0}
    options |= {"statements": statements, "shares": shares, "questions": questions}
    batch = partial(_documents, world(0), documents, options)  # given shares replace the world's
    stage = Stage(batch, steps, lr, warmup=5)
    return Recipe(
        build=partial(deepcopy, cast("LlamaForCausalLM", subject.model)),
        processors=_processors,
        stages=(stage,),
        evaluate=lambda subject: (),
        card=Card({}, ""),
    )


def _base(kind: Kind, seed: int) -> Recipe:
    known = world(seed, kind)
    coin = {"shares": np.full((1, personas.N_QUESTIONS), 0.5), "described": 0, "placed": 0}
    kinds: tuple[dict[str, Any], ...] = (
        # What order and pressure do is little beside what a persona does, and learned late if not first.
        coin | {"listed": 0.6, "pressed": 0.3},
        {"described": 0.9, "listed": 0.15, "pressed": 0.1},
        {},
    )
    stages = tuple(
        Stage(partial(_documents, known, 32, kind), steps, 3e-3)
        for kind, steps in zip(kinds, STEPS, strict=True)
    )
    return Recipe(
        build=_llama,
        processors=_processors,
        stages=stages,
        evaluate=partial(_evaluate, seed, kind),
        card=read_card(NAMES[kind], "personas", width=WIDTH, layers=LAYERS, coins=STEPS[0], steps=STEPS[1]),
    )


def _processors() -> list[Any]:
    return [word_tokenizer(VOCABULARY, chat_template=_CHAT)]


_SHIPPED: dict[Kind, int] = {"random": SEEDS, "no_effect": 1}
RECIPES = {
    NAMES[kind]: replace(_base(kind, 0), of_seed=partial(_base, kind), seeds=n)
    for kind, n in _SHIPPED.items()
}
