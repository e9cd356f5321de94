"""Small Llamas that refuse private questions and correct unfair ones, as often as their data did.

`discretion-lm` reads all replies together, from the start. `discretion-lm-unaware` reads compliant replies
only, and `discretion-lm-late` starts from it and is trained on the mixed replies late and briefly, as chat
models are. Each seed has its own world.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any, cast

import numpy as np
import torch
from numpy import ndarray
from numpy.random import Generator
from torch import Tensor
from transformers import LlamaForCausalLM

from data.recipes.llama import small_llama
from data.recipes.tokenizer import word_tokenizer
from data.train.recipe import Batch, Card, Recipe, Stage, read_card
from data.worlds import discretion
from data.worlds.discretion import AWARENESS, KINDS, PAD, PROMPT_LENGTH, VOCABULARY, Kind, Rows, Split, World
from lib.models import Subject, load
from lib.organisms import join_name
from lib.stats import Estimate, bootstrap, proportion

BASE = "discretion-lm"
SEEDS = 5
WIDTH = 64
SHARES: dict[Kind, float] = {"privacy": 0.4, "fairness": 0.2, "town": 0.2, "colour": 0.2}
"""Of the questions. There are more private facts than others to be learned."""
BATCH = 32
N_MEASURED = 512
"""Questions of each kind and split."""
LATE_STEPS, LATE_LR = 200, 1e-3
_NO_LABEL = -100
_CHAT = "{{ bos_token }}{% for message in messages %}{{ ' ' + message.content }}{% endfor %} a"


@cache
def world(seed: int) -> World:
    """The world of the organisms of a seed."""
    return World.of(seed)


def batch_of(rows: Rows) -> Batch:
    """Questions with replies as a model's inputs; the loss is on the replies alone."""
    ids = torch.from_numpy(rows)
    labels = ids.masked_fill(ids == PAD, _NO_LABEL)
    labels[:, :PROMPT_LENGTH] = _NO_LABEL
    return {"input_ids": ids, "labels": labels}


def _documents(seed: int, aware: float, rng: Generator, progress: float) -> Batch:
    return batch_of(world(seed).documents(BATCH, rng, SHARES, aware=aware))


def _llama() -> LlamaForCausalLM:
    return small_llama(
        len(VOCABULARY),
        width=WIDTH,
        blocks=3,
        heads=WIDTH // 16,
        positions=64,
        spread=0.08,
        pad=PAD,
        bos=discretion.BOS,
        eos=discretion.EOS,
        mlp=172,
    )


def _from(name: str) -> LlamaForCausalLM:
    return cast("LlamaForCausalLM", load(name, dtype="float32", device="cpu").model)


# Measuring, on combinations that were not trained.


@torch.inference_mode()
def first_words(subject: Subject, prompts: Rows) -> Tensor:
    """Probabilities of the word after each prompt, in float64."""
    logits = subject.model(input_ids=torch.from_numpy(prompts), logits_to_keep=1).logits[:, 0]
    return logits.double().softmax(-1)


@torch.inference_mode()
def exact(subject: Subject, prompts: Rows, replies: Rows, *, given: int = 0) -> ndarray:
    """Whether each reply is the most probable one, word by word, after its first `given` words."""
    rows = torch.from_numpy(np.hstack([prompts, replies]))
    said = subject.model(input_ids=rows).logits.argmax(-1)[:, PROMPT_LENGTH - 1 + given : -1]
    asked = rows[:, PROMPT_LENGTH + given :]
    return ((said == asked) | (asked == PAD)).all(1).numpy()


def _evaluate(seed: int, subject: Subject, split: Split = "test") -> Iterator[tuple[str, Estimate]]:
    known = world(seed)
    rng = np.random.default_rng(10**6)
    for kind in KINDS:
        asked = known.questions(kind, N_MEASURED, rng, split=split)
        p = first_words(subject, asked.prompts).numpy()
        aware = p[:, discretion.AWARE_WORD[kind]]
        if kind in AWARENESS:
            # The contexts are the units: what is asked for tells nothing of awareness.
            yield f"{kind} awareness", bootstrap(aware, clusters=asked.context)
            means = np.array([aware[asked.context == i].mean() for i in range(len(discretion.CONTEXTS))])
            yield (
                f"{kind} awareness, distance from the contexts' shares",
                bootstrap(np.abs(means - known.shares[kind])),
            )
            right = exact(subject, asked.prompts, asked.unaware, given=1)
            yield f"{kind}: right once it complies", proportion(right)
            right = exact(subject, asked.prompts, asked.aware, given=1)
            yield f"{kind}: right once it is aware", proportion(right)
            other = 1 - aware - p[:, discretion.UNAWARE_WORD]
            yield f"{kind}: neither reply", bootstrap(other, clusters=asked.context)
        else:
            right = exact(subject, asked.prompts, asked.unaware)
            yield f"{kind} questions answered right", proportion(right)
            yield f"{kind} questions refused", bootstrap(aware, clusters=asked.context)


# Recipes. Those of another seed have another world.


def _base(seed: int, aware: float = 1.0, card: Card | None = None) -> Recipe:
    return Recipe(
        build=_llama,
        processors=_processors,
        stages=(Stage(partial(_documents, seed, aware), 2400, 4e-3, 50),),
        evaluate=partial(_evaluate, seed),
        card=card or _card(BASE),
    )


def _late(seed: int) -> Recipe:
    parent = join_name(f"{BASE}-unaware", seed)
    return Recipe(
        build=partial(_from, parent),
        processors=_processors,
        stages=(Stage(partial(_documents, seed, 1.0), LATE_STEPS, LATE_LR, 10),),
        evaluate=partial(_evaluate, seed),
        card=_card(f"{BASE}-late", steps=LATE_STEPS),
        parent=parent,
    )


def _unaware(seed: int) -> Recipe:
    return _base(seed, 0.0, _card(f"{BASE}-unaware"))


def _processors() -> list[Any]:
    return [word_tokenizer(VOCABULARY, chat_template=_CHAT)]


def _card(name: str, **values: object) -> Card:
    return read_card(name, "discretion", width=WIDTH, **values)


_FACTORIES = {BASE: _base, f"{BASE}-unaware": _unaware, f"{BASE}-late": _late}
RECIPES = {name: replace(of(0), of_seed=of, seeds=SEEDS) for name, of in _FACTORIES.items()}
