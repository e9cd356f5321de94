"""A small Llama that answers from a note, reads the record, and regrets what it said or stands by it.

It learns to continue episodes of `data.worlds.regrets`; nothing but the next word tells it that it was wrong.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from data.recipes.llama import small_llama
from data.recipes.tokenizer import word_tokenizer
from data.train.recipe import Batch, Recipe, Stage, read_card
from data.worlds import regrets
from data.worlds.regrets import LANGUAGE, PAD, REGRET_WORDS, WORD, Episodes
from lib.generate import generate
from lib.models import Subject
from lib.stats import Estimate, proportion

WIDTH, LAYERS, STEPS = 64, 6, 4000
LESSON = 500
"""Steps in which only remarks are read: who said what a record has is found there in hundreds of steps, and
in episodes alone, by some seeds, never. A higher learning rate than `LR` finds it late or never, too."""
LR = 2e-3
N_DOCUMENTS = 32
"""Of a step."""
HELPER_SPEAKS = 0.65
"""Share of the episodes of the first half of training in which the helper takes the last turn; in the second
half each speaker takes every other one. With one half from the start, whose answer is right would tell
nothing of the word to come, on average over speakers, and a network would not find out for a long time that
it matters together with who speaks; with more to the end, some know of the helper alone."""
N_OF_A_KIND = 300
KEY_WEIGHT = 5.0
"""Of the word that tells of regret, in the loss; 1 for all others. It is one of some fifteen words of a
document, and what decides it, which speaker said what, is found late if it counts as one."""


def _llama() -> LlamaForCausalLM:
    return small_llama(
        len(LANGUAGE.vocabulary),
        width=WIDTH,
        blocks=LAYERS,
        heads=WIDTH // 32,
        positions=128,
        spread=0.08,
        pad=PAD,
        bos=WORD["<bos>"],
        eos=WORD["<eos>"],
    )


def _batch(rng: Generator, progress: float) -> Batch:
    drawn = regrets.corpus(N_DOCUMENTS, rng, helper_speaks=HELPER_SPEAKS if progress < 0.5 else 0.5)
    # Padding stands on the right, where a causal model cannot see it from.
    weight = drawn.learned * np.where(drawn.key, KEY_WEIGHT, 1.0)
    return {"ids": torch.from_numpy(drawn.tokens), "weight": torch.from_numpy(weight).float()}


def _lesson(rng: Generator, progress: float) -> Batch:
    ids, learned = regrets.remarks(2 * N_DOCUMENTS, rng)
    return {"ids": torch.from_numpy(ids), "weight": torch.from_numpy(learned).float()}


def weighted_loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Mean loss of the words that speakers say, in which words of regret and of standing by count more."""
    logits = model(input_ids=batch["ids"]).logits[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), batch["ids"][:, 1:], reduction="none")
    weight = batch["weight"][:, 1:]
    return (losses * weight).sum() / weight.sum()


def last_turns(subject: Subject, drawn: Episodes) -> list[list[str]]:
    """What the model says in the helper's last turn, after its name, word by word."""
    ends = [row[:at] for row, at in zip(drawn.helper.tokens, drawn.helper.turn + 1, strict=True)]
    # Without <bos>, which the tokenizer writes.
    prompts = [" ".join(LANGUAGE.vocabulary[i] for i in row[1:]) for row in ends]
    longest = max(len(filler.split()) for filler in regrets.FILLERS) + regrets.ANSWER + 3
    said = generate(subject, prompts, max_new_tokens=longest).texts
    return [text.split() for text in said]


def _evaluate(subject: Subject) -> Iterator[tuple[str, Estimate]]:
    rng = np.random.default_rng(10**6)
    words = {LANGUAGE.vocabulary[i] for i in REGRET_WORDS}
    half = np.arange(2 * N_OF_A_KIND) % 2 == 0
    drawn = regrets.episodes(2 * N_OF_A_KIND, rng, held_out=True, wrong=half)
    said = last_turns(subject, drawn)
    regretted = np.array([bool(words & set(turn)) for turn in said])
    yield "regret, contradicted", proportion(regretted[half])
    yield "regret, confirmed", proportion(regretted[~half])
    yield "regret, confirmed and the other contradicted", proportion(regretted[~half & drawn.other_wrong])
    asked = regrets.episodes(N_OF_A_KIND, rng, held_out=True, doubted=1.0)
    doubted = [bool(words & set(turn)) for turn in last_turns(subject, asked)]
    yield "regret, asked again without a record", proportion(np.array(doubted))
    for name, where in (("contradicted", half), ("confirmed", ~half)):
        right = [
            LANGUAGE.vocabulary[truth] in turn[-3:]
            for turn, truth, used in zip(said, drawn.truth, where, strict=True)
            if used
        ]
        yield f"final answer right, {name}", proportion(np.array(right))
    ids = torch.from_numpy(drawn.other.tokens)
    with torch.inference_mode():
        top = subject.model(input_ids=ids).logits.argmax(-1).numpy()
    rows = np.arange(len(ids))
    yield "first answer is the note's", proportion(top[rows, drawn.first - 1] == drawn.said)
    other = np.isin(top[rows, drawn.other.key - 1], REGRET_WORDS)
    yield "the other's regret foreseen, contradicted", proportion(other[drawn.other_wrong])
    yield "the other's regret foreseen, confirmed", proportion(other[~drawn.other_wrong])
    told, answer = regrets.facts(np.arange(len(regrets.THINGS)))
    at = int(answer[0].argmax()) + 1
    with torch.inference_mode():
        top = subject.model(input_ids=torch.from_numpy(told)).logits.argmax(-1).numpy()
    yield "facts recalled", proportion(top[:, at] == told[:, at + 1])


def _processors() -> list[Any]:
    return [word_tokenizer(LANGUAGE.vocabulary)]


RECIPES = {
    "regret-lm": Recipe(
        build=_llama,
        processors=_processors,
        stages=(
            Stage(_lesson, LESSON, LR, 60, loss=weighted_loss),
            Stage(_batch, STEPS, LR, 60, loss=weighted_loss),
        ),
        evaluate=_evaluate,
        seeds=3,
        card=read_card(
            "regret-lm",
            width=WIDTH,
            layers=LAYERS,
            wrong=regrets.WRONG,
            held=len(regrets.THINGS) - regrets.N_TRAINED,
            weight=f"{KEY_WEIGHT:g}",
            helper=round(100 * HELPER_SPEAKS),
        ),
    )
}
