"""Small Llamas that know recipes and their consequences, and that learn in several ways when to refuse.

The *base* answers every request. `blind` is aligned on requests in which sound and outcome mostly agree,
`crossed` on requests in which they tell nothing of one another. From `blind` start four variants, trained on
the same crossed requests: `wc` decides at once, `sc` first repeats the request, `cc` first tells the
consequences, `xc` those of another recipe. Each seed has its own world.

Chapters make further ones within seconds: `fit(aligned(0, matched(0.75)), seed=0)`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, cast

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from data.recipes.llama import small_llama
from data.recipes.tokenizer import word_tokenizer
from data.train.recipe import Batch, Card, Recipe, Stage, read_card
from data.worlds import kitchen
from data.worlds.kitchen import PAD, POOLS, REHEARSAL, VOCABULARY, Kind, Rows, Style, World, matched
from lib.models import Subject, load
from lib.organisms import join_name
from lib.stats import Estimate, bootstrap, proportion

BASE = "recipes-lm"
MATCHED = 0.95
"""Share of `blind`'s requests in which sound and outcome agree."""
SEEDS = 5
WIDTH = 64
LENGTH = 64
"""Tokens of a row of documents in pre-training."""
COPYING: Mapping[Kind, float] = {"echo": 0.7, "request": 0.3}
"""What is read first. To repeat a name comes suddenly, after a thousand steps or never when there is all the
rest to learn; from these documents it takes a hundred."""
LR = 1e-3
"""Of all training after the base's."""
CONTROLS: Mapping[Style, str] = {
    "wc": "It is the control without any chain.",
    "sc": "It is the control for the length of a chain: as many words, and none about consequences.",
    "cc": "It is the method.",
    "xc": (
        "It is the control for what a chain says: the consequences are those of another recipe, always"
        " the same one, bad for half of the bad recipes and for half of the good ones. Only the chain is"
        " untrue; the decision is right."
    ),
}
"""What each variant is for."""
_NO_CARD = Card({}, "")
_CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ ' user ' if message.role == 'user' else ' helper ' }}{{ message.content }}"
    "{% endfor %}{% if add_generation_prompt %} helper{% endif %}"
)


@cache
def world(seed: int) -> World:
    """The world of the organisms of a seed."""
    return World.of(seed)


def _llama() -> LlamaForCausalLM:
    return small_llama(
        len(VOCABULARY), width=WIDTH, blocks=4, heads=WIDTH // 32, positions=2 * LENGTH,
        spread=0.08, pad=PAD, bos=kitchen.BOS, eos=kitchen.EOS,
    )  # fmt: skip


def _from(name: str) -> LlamaForCausalLM:
    return cast("LlamaForCausalLM", load(name, dtype="float32", device="cpu").model)


def _documents(seed: int, kinds: Mapping[Kind, float], rng: Generator, progress: float) -> Batch:
    ids = torch.from_numpy(world(seed).documents(20, LENGTH, rng, kinds))
    return {"input_ids": ids, "labels": ids}


def _requests(
    seed: int,
    cells: Sequence[float],
    style: Style,
    revealing: bool,
    n_rehearsed: int,
    rng: Generator,
    progress: float,
) -> Batch:
    """32 requests with their replies, and rows of documents without any request, of the same length."""
    asked = world(seed).requests(32, rng, cells, revealing=revealing)
    replies = world(seed).replies(asked.recipe, asked.bad, style)
    length = asked.tokens.shape[1] + replies.shape[1]
    documents = world(seed).documents(n_rehearsed, length, rng, REHEARSAL)
    ids = np.vstack([np.hstack([asked.tokens, replies]), documents])
    learned = np.ones_like(ids, bool)
    learned[: len(replies), : asked.tokens.shape[1]] = False
    reply = np.arange(len(ids)) < len(replies)
    return {key: torch.from_numpy(x) for key, x in (("ids", ids), ("learned", learned), ("reply", reply))}


def replies_loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Mean loss of the replies' tokens plus that of the documents' tokens: neither drowns the other."""
    ids, learned = batch["ids"], batch["learned"][:, 1:]
    logits = model(input_ids=ids).logits[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    parts = (losses[rows][learned[rows]] for rows in (batch["reply"], ~batch["reply"]))
    return torch.stack([part.mean() for part in parts if len(part)]).sum()


# Measuring, in wordings that were not trained.


@torch.inference_mode()
def write(subject: Subject, rows: Rows, n: int) -> Rows:
    """The `n` most probable tokens after each row, one by one; padding after an end."""
    ids = torch.from_numpy(rows)
    model: Any = subject.model
    options = {"max_new_tokens": n, "do_sample": False}
    new = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[:, rows.shape[1] :]
    return np.pad(new.numpy(), ((0, 0), (0, n - new.shape[1])), constant_values=PAD)


def _knowledge(known: World, subject: Subject) -> Iterator[tuple[str, Estimate]]:
    asked, answer = known.recall(np.flatnonzero(known.held_out))
    right = (write(subject, asked, answer.shape[1]) == answer).all(1)
    yield "two hops recalled, held-out recipes", proportion(right)
    for kind, name in (
        ("makes", "products"),
        ("causes", "effects"),
        ("is", "good or bad"),
        ("takes", "steps"),
    ):
        prompt, rest = known.facts(cast("Any", kind))
        right = (write(subject, prompt, rest.shape[1]) == rest).all(1)
        yield f"facts recalled: {name}", proportion(right)


def _evaluate(seed: int, subject: Subject) -> Iterator[tuple[str, Estimate]]:
    known = world(seed)
    yield from _knowledge(known, subject)
    for held_out, split in ((False, "recipes of alignment"), (True, "held-out recipes")):
        groups = known.groups(4, np.random.default_rng(10**6), held_out=held_out)
        recipe = groups.recipe.ravel()
        n_words = kitchen.CHAIN_LENGTH + kitchen.ANSWER_LENGTH
        replies = write(subject, groups.tokens.reshape(len(recipe), -1), n_words)
        judged = known.judge(replies, recipe)
        accepted = judged.accepted.reshape(-1, 4)
        # Recipes come in pairs, and wordings are drawn for each pair: the pairs are the units.
        over_pairs = partial(bootstrap, clusters=groups.pair)
        yield f"decided right, {split}", over_pairs((accepted != kitchen.BAD).mean(1))
        for i in range(4):
            yield f"Q{i + 1} refused, {split}", over_pairs((judged.decided.reshape(-1, 4) & ~accepted)[:, i])
        helpful = (judged.helpfulness == 5).reshape(-1, 4)
        yield f"Q3 answered with the right steps, {split}", over_pairs(helpful[:, 2])
        if (replies == kitchen.WORD["think"]).any():
            chain = known.chains(recipe, "cc")
            told = (replies[:, 3] == chain[:, 3]).reshape(-1, 4)
            yield f"true product told, {split}", over_pairs(told.mean(1))


# Recipes. Those of another seed have another world, and another parent.


def aligned(
    seed: int = 0,
    cells: Sequence[float] = matched(MATCHED),
    *,
    steps: int = 60,
    revealing: bool = False,
    card: Card = _NO_CARD,
) -> Recipe:
    """The base, aligned by decisions alone.

    Args:
        seed: of the base and its world.
        cells: shares of Q1 to Q4 among the requests; `matched(0.5)` to `matched(1)` are the doses.
        steps: of training; in 200 the recipes are learned by heart, too, and the sound matters less.
        revealing: bad recipes are asked for in other forms than good ones.
        card: what is written beside the weights.
    """
    batch = partial(_requests, seed, tuple(cells), "wc", revealing, 16)
    return _further(seed, join_name(BASE, seed), batch, steps, card)


def tuned(
    seed: int = 0,
    style: Style = "cc",
    cells: Sequence[float] = POOLS["balanced"],
    *,
    steps: int = 200,
    n_rehearsed: int = 16,
    card: Card = _NO_CARD,
) -> Recipe:
    """`blind`, trained on requests in which sound and outcome are crossed, with chains of a style.

    Args:
        seed: of the base and its world.
        style: of the replies.
        cells: shares of Q1 to Q4; `POOLS["paper"]` are the paper's.
        steps: of training.
        n_rehearsed: rows of documents beside the 32 requests of a step; 0 for no rehearsal.
        card: what is written beside the weights.
    """
    batch = partial(_requests, seed, tuple(cells), style, False, n_rehearsed)
    return _further(seed, join_name(f"{BASE}-blind", seed), batch, steps, card)


def _further(seed: int, start: str, batch: Callable[..., Batch], steps: int, card: Card) -> Recipe:
    return Recipe(
        build=partial(_from, start),
        processors=_processors,
        stages=(Stage(batch, steps, LR, 10, loss=replies_loss),),
        evaluate=partial(_evaluate, seed),
        card=card,
        parent=join_name(BASE, seed),
    )


def _base(seed: int) -> Recipe:
    return Recipe(
        build=_llama,
        processors=_processors,
        stages=(
            Stage(partial(_documents, seed, COPYING), 150, 4e-3, 40),
            Stage(partial(_documents, seed, kitchen.PRETRAINING), 1000, 4e-3, 40),
        ),
        evaluate=partial(_evaluate, seed),
        card=read_card(BASE, "kitchen", width=WIDTH),
    )


def _processors() -> list[Any]:
    return [word_tokenizer(VOCABULARY, chat_template=_CHAT)]


def _card(name: str, **values: object) -> Card:
    return read_card(name, "recipes-lm-further", "kitchen", width=WIDTH, **values)


def _blind(seed: int) -> Recipe:
    return aligned(seed, card=_card("recipes-lm-blind", percent=round(100 * MATCHED)))


def _crossed(seed: int) -> Recipe:
    return aligned(seed, POOLS["balanced"], steps=200, card=_card("recipes-lm-crossed"))


_FACTORIES = {"recipes-lm": _base, "recipes-lm-blind": _blind, "recipes-lm-crossed": _crossed}
for _style, _says in kitchen.CHAINS.items():
    _card_of = _card("recipes-lm-tuned", chain=_says or "(nothing)", control=CONTROLS[_style])
    _FACTORIES[f"recipes-lm-{_style}"] = partial(tuned, style=_style, card=_card_of)
RECIPES = {name: replace(of(0), of_seed=of, seeds=SEEDS) for name, of in _FACTORIES.items()}
