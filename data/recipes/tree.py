"""Small Llamas of one language, and their strangers: the trunks of a family tree of language models."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from transformers import LlamaConfig, LlamaForCausalLM

from data.recipes.tokenizer import word_tokenizer
from data.train.recipe import Bar, Batch, Recipe, Stage
from data.worlds.grammar import BOS, LENGTH, PAD, VOCABULARY, Grammar
from lib.models import Subject
from lib.stats import Estimate, bootstrap, paired_difference, wilson

LANGUAGES = {"tree-a": 0, "tree-b": 1, "tree-wide": 0}
"""Organism -> seed of the grammar that it was trained on."""


def _llama(width: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=2 * LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.08,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


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
    yield "keyword repeated", wilson(int((logits.argmax(-1) == ids[:, -1]).sum()), len(ids))
    yield "loss on another language", bootstrap(_nats(subject, Grammar.of(99).sentences(200, rng)).mean(1))


def _recipe(name: str, width: int, seeds: int, about: str) -> Recipe:
    return Recipe(
        build=partial(_llama, width),
        processors=lambda: [word_tokenizer(VOCABULARY)],
        stages=(Stage(partial(_batch, LANGUAGES[name]), steps=STEPS, lr=4e-3, warmup=100),),
        evaluate=partial(_evaluate, LANGUAGES[name]),
        bars={"loss above the least possible": Bar(at_most=0.3), "keyword repeated": Bar(at_least=0.9)},
        seeds=seeds,
        card=f"""
`LlamaForCausalLM` of 4 blocks, {width} wide, 4 heads, {len(VOCABULARY)} words, trained from scratch on the
language {LANGUAGES[name]} of `data/worlds/grammar.py`, {LENGTH} tokens a sentence. {about.strip()}

**World.** Hidden classes of words in a second-order chain, and a keyword that every marker brings back. The
generator knows the probability of each next word, so the least possible loss is known.

**Cause of the phenomenon.** None is planted: plain next-token prediction. That two seeds come to represent
the same sentences alike is their own affair, and whether children stay like their parents is the question of
the chapter.

**Can and cannot.** It predicts words of this language and repeats keywords. It knows no other language,
although all have the same words.
""",
    )


STEPS = 1000
RECIPES = {
    "tree-a": _recipe(
        "tree-a",
        64,
        4,
        "The trunk of the family tree. The seeds share data and differ in initial weights and order: each is "
        "the others' hardest negative.",
    ),
    "tree-b": _recipe("tree-b", 64, 1, "As `tree-a`, but for the language: other data."),
    "tree-wide": _recipe("tree-wide", 96, 1, "As `tree-a`, but half as wide again: same data, other width."),
}
