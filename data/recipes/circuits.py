"""Small GPT-2s that learn a circuit."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from data.recipes.tokenizer import word_tokenizer
from data.train.recipe import Batch, Recipe, Stage, read_card
from data.worlds import circuits as world
from lib.models import Subject
from lib.stats import Estimate, bootstrap, wilson

SPECIAL = ("<pad>", "<bos>", "<unk>")
N_HEADS, WIDTH = 4, 64


def tokenizer(task: str) -> PreTrainedTokenizerFast:
    """A word a token; a prompt begins with <bos>."""
    return word_tokenizer((*SPECIAL, *world.VOCABULARY[task]))


def gpt2_config(task: str, n_layers: int, **others: Any) -> GPT2Config:
    """Four heads, 64 wide, no dropout; as many words as the task has."""
    return GPT2Config(
        vocab_size=len(SPECIAL) + len(world.VOCABULARY[task]),
        n_positions=32,
        n_embd=WIDTH,
        n_layer=n_layers,
        n_head=N_HEADS,
        n_inner=2 * WIDTH,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        tie_word_embeddings=False,
        **others,
    )


def _build(task: str, n_layers: int) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(gpt2_config(task, n_layers, initializer_range=0.1))


def _batch(task: str, size: int, rng: Generator, progress: float) -> Batch:
    """Prompts with an answer that is right, drawn from those that are: plain next-word prediction."""
    drawn = world.prompts(task, size, rng)
    ids = {word: len(SPECIAL) + i for i, word in enumerate(world.VOCABULARY[task])}
    rows = [
        [1, *(ids[word] for word in text.split()), ids[str(rng.choice(right)).strip()]]
        for text, right in zip(drawn.clean, drawn.right, strict=True)
    ]
    input_ids = torch.tensor(rows)
    return {"input_ids": input_ids, "labels": input_ids}


def _answers(words: Sequence[str], subject: Subject) -> list[int]:
    return [subject.tokenizer.convert_tokens_to_ids(word.strip()) for word in words]


@torch.inference_mode()
def _evaluate(task: str, subject: Subject) -> Iterator[tuple[str, Estimate]]:
    """Is the answer right: on prompts like those of training, on held-out ones, without the information?"""
    for name, held_out in (("validation", False), ("test", True)):
        drawn = world.prompts(task, 1000, np.random.default_rng([held_out, 1]), held_out=held_out)
        for kind, texts in (("accuracy", drawn.clean), ("accuracy, corrupted", drawn.corrupted)):
            p = subject.model(**subject.encode(list(texts))).logits[:, -1].softmax(-1)
            right = [row[_answers(words, subject)].sum() for row, words in zip(p, drawn.right, strict=True)]
            best = p.argmax(-1).tolist()
            hits = [b in _answers(words, subject) for b, words in zip(best, drawn.right, strict=True)]
            yield f"{name} {kind}", wilson(sum(hits), len(hits))
            if kind == "accuracy":
                yield f"{name} probability of what is right", bootstrap(torch.stack(right).numpy())


def _recipe(name: str, task: str, n_layers: int, steps: int) -> Recipe:
    return Recipe(
        build=partial(_build, task, n_layers),
        processors=lambda: [tokenizer(task)],
        stages=(Stage(partial(_batch, task, 64), steps=steps, lr=3e-3, warmup=100, weight_decay=0.1),),
        evaluate=partial(_evaluate, task),
        seeds=3,
        card=read_card(name, "circuits", n_layers=n_layers, task=task),
    )


RECIPES = {
    "induction-gpt": _recipe("induction-gpt", "induction", 2, 1600),
    "ioi-gpt": _recipe("ioi-gpt", "ioi", 3, 1400),
    "greater-gpt": _recipe("greater-gpt", "greater", 2, 1200),
    "docstring-gpt": _recipe("docstring-gpt", "docstring", 3, 2000),
}
