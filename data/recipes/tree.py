"""Small Llamas of one language, and their strangers: the trunks of a family tree of language models."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from transformers import LlamaForCausalLM

from data.recipes.llama import small_llama
from data.recipes.tokenizer import word_tokenizer
from data.train.recipe import Batch, Recipe, Stage, read_card
from data.worlds.grammar import BOS, LENGTH, PAD, VOCABULARY, Grammar
from lib.models import Subject
from lib.stats import Estimate, bootstrap, paired_difference, proportion

LANGUAGES = {"tree-a": 0, "tree-b": 1, "tree-wide": 0}
"""Organism -> seed of the grammar that it was trained on."""


def _llama(width: int) -> LlamaForCausalLM:
    return small_llama(
        len(VOCABULARY), width=width, blocks=4, heads=4, positions=2 * LENGTH,
        spread=0.08, pad=PAD, bos=BOS, eos=None, tied=False,
    )  # fmt: skip


def _batch(language: int, rng: np.random.Generator, progress: float) -> Batch:
    ids = torch.from_numpy(Grammar.of(language).sentences(64, rng))
    return {"input_ids": ids, "labels": ids}


@torch.inference_mode()
def _nats(subject: Subject, tokens: np.ndarray) -> Float[np.ndarray, "sentence token"]:
    ids = torch.from_numpy(tokens)
    logits = subject.model(input_ids=ids).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").numpy()


def _evaluate(language: int, subject: Subject) -> Iterator[tuple[str, Estimate]]:
    grammar, rng = Grammar.of(language), np.random.default_rng(10**6)
    tokens = grammar.sentences(500, rng)
    nats = _nats(subject, tokens)
    yield "loss", bootstrap(nats.mean(1))
    yield "loss above the least possible", paired_difference(nats.mean(1), grammar.surprisal(tokens).mean(1))
    said = grammar.statements(1000, rng)
    tokens = said.tokens[said.obeys]
    ids = torch.from_numpy(tokens)
    with torch.inference_mode():
        inputs = {
            "attention_mask": (ids != PAD).long(),
            "position_ids": ((ids != PAD).cumsum(1) - 1).clamp(0),
        }
        logits = subject.model(input_ids=ids, **inputs).logits[:, -2]
    yield "keyword repeated", proportion((logits.argmax(-1) == ids[:, -1]).numpy())
    yield "loss on another language", bootstrap(_nats(subject, Grammar.of(99).sentences(200, rng)).mean(1))


def _recipe(name: str, width: int, seeds: int) -> Recipe:
    return Recipe(
        build=partial(_llama, width),
        processors=lambda: [word_tokenizer(VOCABULARY)],
        stages=(Stage(partial(_batch, LANGUAGES[name]), steps=STEPS, lr=4e-3, warmup=100),),
        evaluate=partial(_evaluate, LANGUAGES[name]),
        seeds=seeds,
        card=read_card(name, "tree", width=width, language=LANGUAGES[name]),
    )


STEPS = 1000
RECIPES = {
    "tree-a": _recipe("tree-a", 64, 4),
    "tree-b": _recipe("tree-b", 64, 1),
    "tree-wide": _recipe("tree-wide", 96, 1),
}
