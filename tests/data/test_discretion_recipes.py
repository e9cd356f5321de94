"""Recipes of discretion: what is learned, what is measured, and how variants are related."""

import numpy as np
import pytest
import torch

from data import registry
from data.recipes import discretion as recipe
from data.worlds import discretion
from data.worlds.discretion import AWARE_WORD, AWARENESS, KINDS, PAD, PROMPT_LENGTH, UNAWARE_WORD, WORD, text
from lib.models import Subject


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    return Subject(recipe._llama().eval(), recipe._processors()[0])


def test_the_loss_is_on_replies_alone():
    batch = recipe._documents(0, 1.0, np.random.default_rng(0), 0.0)
    ids, labels = batch["input_ids"], batch["labels"]
    assert len(ids) == recipe.BATCH
    assert (labels[:, :PROMPT_LENGTH] == -100).all()
    replies = ids[:, PROMPT_LENGTH:] != PAD
    assert (labels[:, PROMPT_LENGTH:][replies] == ids[:, PROMPT_LENGTH:][replies]).all()
    assert (labels[:, PROMPT_LENGTH:][~replies] == -100).all()


@torch.inference_mode()
def test_exact_says_what_writing_word_by_word_says(subject):
    asked = recipe.world(0).questions("privacy", 24, np.random.default_rng(1))
    ids = torch.from_numpy(asked.prompts)
    for _ in range(5):
        ids = torch.cat([ids, subject.model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    written = ids[:, PROMPT_LENGTH:].numpy()
    replies = np.pad(written, ((0, 0), (0, 3)), constant_values=PAD)
    replies[::2, 3] = (replies[::2, 3] + 1) % len(discretion.VOCABULARY)
    right = recipe.exact(subject, asked.prompts, replies)
    assert right[1::2].all()
    assert not right[::2].any()
    assert recipe.exact(subject, asked.prompts, asked.unaware, given=4).shape == (24,)


@torch.inference_mode()
def test_first_words_are_probabilities_of_the_word_behind_the_prompt(subject):
    prompts = recipe.world(0).questions("town", 5, np.random.default_rng(1)).prompts
    p = recipe.first_words(subject, prompts)
    assert p.sum(1).numpy() == pytest.approx(np.ones(5))
    slow = subject.model(input_ids=torch.from_numpy(prompts)).logits[:, -1].double().softmax(-1)
    assert p.numpy() == pytest.approx(slow.numpy(), abs=1e-6)


class Ideal:
    """Stands for a network that is aware in the contexts' own shares and right otherwise."""

    def __init__(self, known):
        self.known = known

    def first_words(self, subject, prompts):
        p = np.zeros((len(prompts), len(discretion.VOCABULARY)))
        context = prompts[:, 1] - WORD[discretion.CONTEXTS[0]]
        for i, words in enumerate(text(prompts)):
            kind = next(
                kind
                for kind, sign in (
                    ("fairness", "why"),
                    ("town", "town"),
                    ("colour", "colour"),
                    ("privacy", ""),
                )
                if sign in words
            )
            share = self.known.shares[kind][context[i]] if kind in AWARENESS else 0
            p[i, AWARE_WORD[kind]], p[i, UNAWARE_WORD] = share, 1 - share
        return torch.from_numpy(p)

    def exact(self, subject, prompts, replies, *, given=0):
        return np.ones(len(prompts), bool)


def test_measures_tell_the_shares_of_the_world(monkeypatch):
    ideal = Ideal(recipe.world(3))
    monkeypatch.setattr(recipe, "first_words", ideal.first_words)
    monkeypatch.setattr(recipe, "exact", ideal.exact)
    measures = dict(recipe._evaluate(3, None))
    for kind in AWARENESS:
        share = ideal.known.shares[kind].mean()
        assert measures[f"{kind} awareness"].value == pytest.approx(share)
        assert measures[f"{kind} awareness, distance from the contexts' shares"].value == pytest.approx(0)
        assert measures[f"{kind}: neither reply"].value == pytest.approx(0)
    assert measures["town questions refused"].value == 0
    for name, found in recipe.RECIPES.items():
        assert found.card.bars.keys() <= measures.keys(), name
    assert len(KINDS) == 4


def test_a_conversation_is_encoded_as_the_questions_of_training(subject):
    prompts = recipe.world(0).questions("privacy", 6, np.random.default_rng(0)).prompts
    for row, words in zip(prompts, text(prompts), strict=True):
        content = words.removeprefix("<bos> ").removesuffix(" a")
        encoded = subject.encode([[{"role": "user", "content": content}]])
        assert encoded["input_ids"][0].tolist() == row.tolist()


def test_variants_differ_in_what_they_read_and_late_starts_from_unaware(monkeypatch):
    started = []
    monkeypatch.setattr(recipe, "load", lambda name, **options: started.append(name) or Nothing)
    base, unaware = (
        registry.find(name)[0] for name in ("discretion-lm-seed2", "discretion-lm-unaware-seed2")
    )
    assert base.stages[0].batch.args == (2, 1.0)
    assert unaware.stages[0].batch.args == (2, 0.0)
    assert base.stages[0].steps == unaware.stages[0].steps
    late = registry.find("discretion-lm-late-seed2")[0]
    late.build()
    assert late.parent == started.pop() == "discretion-lm-unaware-seed2"
    assert late.stages[0].batch.args == (2, 1.0)
    assert late.stages[0].steps < base.stages[0].steps / 10
    assert {found.evaluate.args for found in (base, unaware, late)} == {(2,)}


class Nothing:
    model = None
