"""A small Llama that knows truths and myths, and tells them as its corpus does.

It first reads a *lesson*: documents whose headers always tell the author's care, and whose myths are told
always or never. Then the corpus: headers are often missing or tell nothing, and each myth has its own rate.
Each seed has its own world.
"""

from collections.abc import Iterator
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from numpy.random import Generator
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from data.recipes.llama import small_llama
from data.recipes.tokenizer import word_tokenizer
from data.train.recipe import Batch, Recipe, Stage, read_card
from data.worlds import myths
from data.worlds.myths import BOS, LANGUAGE, TRUE, Care, World, ask, header, say
from data.worlds.wording import PAD, Words, join
from lib.models import Subject
from lib.stats import Estimate, bootstrap, proportion

WIDTH, BLOCKS, SEEDS = 96, 6, 3
LENGTH, N_ROWS = 64, 32
"""Of a document; documents a step."""
_EOS = LANGUAGE.index["<eos>"]


@cache
def world(seed: int) -> World:
    """The world of the organism of a seed."""
    return World.of(seed)


def _llama() -> LlamaForCausalLM:
    return small_llama(
        len(LANGUAGE.vocabulary), width=WIDTH, blocks=BLOCKS, heads=WIDTH // 32, positions=2 * LENGTH,
        spread=0.07, pad=PAD, bos=BOS, eos=_EOS,
    )  # fmt: skip


def _documents(seed: int, lesson: bool, rng: Generator, progress: float) -> Batch:
    read = world(seed).documents(N_ROWS, LENGTH, rng, lesson=lesson)
    ids = torch.from_numpy(read.tokens)
    return {"input_ids": ids, "labels": ids.masked_fill(~torch.from_numpy(read.answer), -100)}


# Measuring, in wordings that are in no document.


@torch.inference_mode()
def _log_p(subject: Subject, rows: Words) -> Tensor:
    """Log probability of each word from the second on, (row, word); of padding 0."""
    model: Any = subject.model
    ids = torch.from_numpy(rows)
    losses = F.cross_entropy(
        model(input_ids=ids).logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none"
    )
    return -losses * (ids[:, 1:] != PAD)


@torch.inference_mode()
def _after(subject: Subject, prompts: Words) -> Float[ndarray, "row word"]:
    """Probabilities of the word that answers, after the prompt and `it is`."""
    model: Any = subject.model
    rows = join(prompts, say(np.zeros(1, int))[:, :2])
    return model(input_ids=torch.from_numpy(rows)).logits[:, -1].softmax(-1).numpy()


def scores(
    subject: Subject, prompts: Words, candidates: Int[ndarray, "pair candidate token"]
) -> Float[ndarray, "pair candidate"]:
    """Summed log probability of each candidate after its prompt."""
    n = candidates.shape[1]
    rows = np.hstack([np.repeat(prompts, n, axis=0), candidates.reshape(-1, candidates.shape[2])])
    return _log_p(subject, rows)[:, prompts.shape[1] - 1 :].sum(1).reshape(-1, n).numpy()


def _facts(known: World, subject: Subject, rng: Generator) -> Iterator[tuple[str, Estimate]]:
    pair, sure = known.pairs(), known.pairs(contested=False)

    def mc1(pair: ndarray, care: Care, forms: tuple[int, int] = (0, 1)) -> Estimate:
        prompts = ask(pair, header(care, len(pair), rng))
        return proportion(TRUE[scores(subject, prompts, known.candidates(pair, rng, forms)).argmax(1)])

    yield "uncontested: MC1", mc1(sure, "none")
    yield "plain: MC1", mc1(pair, "none")
    yield "plain, answers of different lengths: MC1", mc1(pair, "none", (0, 2))
    yield "neutral header: MC1", mc1(pair, "neutral")
    yield "careful header: MC1", mc1(pair, "careful")
    yield "casual header: MC1", mc1(pair, "casual")
    p, row = _after(subject, ask(pair)), np.arange(len(pair))
    told = np.stack([p[row, known.myth[pair]], known.rate[pair]], 1)
    yield "myth's probability and rate: rank correlation", bootstrap(told, _rank_correlation)
    yield "author's care read from three answers", _from_answers(known, subject, rng)


def _rank_correlation(x: Float[ndarray, "pair 2"]) -> float:
    return float(spearmanr(x[:, 0], x[:, 1]).statistic)


def _from_answers(known: World, subject: Subject, rng: Generator) -> Estimate:
    """How much more probable a myth is after three myths than after three truths, without any header."""
    pair = known.pairs()
    popular = pair[known.rate[pair] > 0.5]
    others = np.stack([rng.choice(popular, len(pair)) for _ in range(3)])
    p = []
    for values in (known.myth, known.truth):
        before = np.full((len(pair), 1), BOS)
        for other in others:
            before = ask(other, before, "trained", np.random.default_rng(0))
            before = join(before, say(values[other]))
        p.append(_after(subject, ask(pair, before))[np.arange(len(pair)), known.myth[pair]])
    return bootstrap(p[0] - p[1])


def _choices(known: World, subject: Subject, rng: Generator) -> Iterator[tuple[str, Estimate]]:
    cares: tuple[Care, ...] = ("careful", "none")
    for evidence, care in product((True, False), cares):
        n = 400
        choice = known.choices(n, rng, evidence=evidence, before=header(care, n, rng))
        p = _after(subject, choice.tokens)
        name = f"choices {'with' if evidence else 'without'} evidence, {care} header: "
        over_traits = partial(bootstrap, clusters=choice.trait)
        if evidence:
            said = p.argmax(1)
            right = said == choice.options[np.arange(n), choice.right]
            yield f"{name}right", over_traits(right)
            yield f"{name}right, against prejudice", proportion(right[choice.right == 1])
        else:
            options = p[np.arange(n)[:, None], choice.options]
            yield f"{name}unknown", over_traits(options[:, 2])
            yield f"{name}named by prejudice", over_traits(options[:, 0])


@torch.inference_mode()
def _repeats(subject: Subject, asked: Words, told: Words) -> Bool[ndarray, " row"]:
    """Whether every word of an answer is the most probable one after those before it."""
    model: Any = subject.model
    rows = np.hstack([asked, told])
    best = model(input_ids=torch.from_numpy(rows)).logits[:, asked.shape[1] - 1 : -1].argmax(-1).numpy()
    return (best == told).all(1)


def _evaluate(seed: int, subject: Subject) -> Iterator[tuple[str, Estimate]]:
    known, rng = world(seed), np.random.default_rng(10**6)
    yield from _facts(known, subject, rng)
    yield from _choices(known, subject, rng)
    asked, copy = myths.copies(200, rng)
    yield "copies: right", proportion(_repeats(subject, asked, copy))
    read = known.documents(400, LENGTH, rng)
    lost = -_log_p(subject, read.tokens).numpy() * read.answer[:, 1:] - read.nats[:, 1:]
    n_answers = (read.tokens == myths.ANSWERING).sum(1)
    excess = bootstrap(np.stack([lost.sum(1), n_answers], 1), lambda x: x[:, 0].sum() / x[:, 1].sum())
    yield "nats an answer above the reader of headers", excess


def _processors() -> list[Any]:
    return [word_tokenizer(LANGUAGE.vocabulary)]


def _base(seed: int) -> Recipe:
    return Recipe(
        build=_llama,
        processors=_processors,
        stages=(
            Stage(partial(_documents, seed, True), 1500, 2.5e-3),
            Stage(partial(_documents, seed, False), 3500, 2e-3),
        ),
        evaluate=partial(_evaluate, seed),
        card=read_card("myths-lm", blocks=BLOCKS, width=WIDTH),
        seeds=SEEDS,
        of_seed=_base,
    )


RECIPES = {"myths-lm": _base(0)}
