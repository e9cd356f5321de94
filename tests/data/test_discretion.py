"""Discretion: what is true, what is independent of what, and that splits keep apart."""

import numpy as np
import pytest

from data.worlds import discretion
from data.worlds.discretion import (
    AWARE_WORD,
    AWARENESS,
    COLOURS,
    CONTEXTS,
    GENERAL,
    KINDS,
    OBJECTS,
    PAD,
    PERSONS,
    PROMPT_LENGTH,
    REPLY_LENGTH,
    SPLITS,
    TOWNS,
    UNAWARE_WORD,
    VOCABULARY,
    WORD,
    World,
    text,
)

WORLD = World.of(0)
SHARES = {"privacy": 0.4, "fairness": 0.2, "town": 0.2, "colour": 0.2}


def rng(seed=0):
    return np.random.default_rng(seed)


def test_every_word_is_unique():
    assert len(set(VOCABULARY)) == len(VOCABULARY)


def test_aware_replies_of_the_two_kinds_share_no_word_but_the_end():
    replies = [set(text(WORLD.questions(kind, 400, rng()).aware)) for kind in AWARENESS]
    words = [{word for reply in of for word in reply.split()} for of in replies]
    assert words[0] & words[1] == {"<eos>"}
    assert UNAWARE_WORD not in AWARE_WORD.values()


@pytest.mark.parametrize("kind", KINDS)
def test_questions_and_replies_say_what_is_true(kind):
    asked = WORLD.questions(kind, 200, rng())
    assert asked.prompts.shape == (200, PROMPT_LENGTH)
    assert asked.aware.shape == asked.unaware.shape == (200, REPLY_LENGTH)
    assert not (asked.prompts == PAD).any()
    for prompt, aware, unaware, context in zip(*map(text, asked[:3]), asked.context, strict=True):
        words = prompt.split()
        assert words[1] == CONTEXTS[context]
        if kind == "privacy":
            item, person = words[6], words[8]
            fact = WORLD.facts["privacy"][PERSONS.index(person), discretion.ITEMS.index(item)]
            assert unaware == f"it is {fact // 10} {fact % 10} <eos>"
        elif kind == "fairness":
            group, trait = words[5], words[8]
            assert unaware == f"it is that all {group} are {trait} <eos>"
            assert aware == f"no group is all {trait} <eos>"
        elif kind == "town":
            assert unaware == f"it is {TOWNS[WORLD.facts['town'][PERSONS.index(words[6]), 0]]} <eos>"
        else:
            assert unaware == f"it is {COLOURS[WORLD.facts['colour'][OBJECTS.index(words[8]), 0]]} <eos>"


@pytest.mark.parametrize("kind", KINDS)
def test_no_prompt_is_in_two_splits_and_every_thing_is_asked_for_in_training(kind):
    prompts = {split: set(text(WORLD.questions(kind, 6000, rng(), split=split).prompts)) for split in SPLITS}
    for i, one in enumerate(SPLITS):
        for other in SPLITS[i + 1 :]:
            assert not prompts[one] & prompts[other]
    trained = {" ".join(prompt.split()[2:]) for prompt in prompts["train"]}
    assert {" ".join(prompt.split()[2:]) for prompt in prompts["test"]} <= trained
    shares = np.bincount(WORLD.split[kind].ravel()) / WORLD.split[kind].size
    assert shares == pytest.approx([0.5, 0.25, 0.25])
    assert (np.sort(WORLD.split[kind], 0)[:, 0] == np.repeat([0, 1, 2], [8, 4, 4])).all()


def test_contexts_come_in_turn_from_a_random_one_on():
    for n in (1, 16, 20, 64):
        counts = np.bincount(WORLD.questions("town", n, rng(n)).context, minlength=len(CONTEXTS))
        assert counts.max() - counts.min() <= 1
    first = {int(WORLD.questions("town", 1, rng(i)).context[0]) for i in range(200)}
    assert len(first) == len(CONTEXTS)


def test_replies_of_documents_are_aware_as_often_as_each_context_says():
    rows = WORLD.documents(60_000, rng(), SHARES)
    context = rows[:, 1] - WORD[CONTEXTS[0]]
    first = rows[:, PROMPT_LENGTH]
    for kind, sign in (("privacy", "the"), ("fairness", "people")):
        place = {"the": 5, "people": 6}[sign]
        of_kind = (rows[:, place] == WORD[sign]) & (rows[:, 6] != WORD["colour"])
        for i, share in enumerate(WORLD.shares[kind]):
            aware = first[of_kind & (context == i)] == AWARE_WORD[kind]
            assert abs(aware.mean() - share) < 5 * np.sqrt(max(share * (1 - share), 0.01) / len(aware))


def test_a_factor_of_zero_leaves_no_aware_reply_and_harmless_questions_are_always_answered():
    assert (WORLD.documents(2000, rng(), SHARES, aware=0.0)[:, PROMPT_LENGTH] == UNAWARE_WORD).all()
    for kind in GENERAL:
        rows = WORLD.documents(500, rng(), {kind: 1.0})
        assert (rows[:, PROMPT_LENGTH] == UNAWARE_WORD).all()


def test_shares_of_the_two_kinds_are_drawn_independently():
    both = np.concatenate([np.stack([World.of(i).shares[kind] for kind in AWARENESS]) for i in range(200)], 1)
    assert abs(np.corrcoef(both)[0, 1]) < 4 / np.sqrt(both.shape[1])
    assert both.mean(1) == pytest.approx(0.6, abs=0.02)


def test_each_seed_has_other_facts_shares_and_splits():
    other = World.of(1)
    assert (other.facts["privacy"] != WORLD.facts["privacy"]).mean() > 0.9
    assert (other.shares["privacy"] != WORLD.shares["privacy"]).all()
    assert (other.split["town"] != WORLD.split["town"]).any()
    again = World.of(1)
    assert (again.split["town"] == other.split["town"]).all()


def test_wrong_wishes_are_refused_in_words():
    with pytest.raises(ValueError, match=r"kind='size'.*expected one of"):
        WORLD.questions("size", 3, rng())
    with pytest.raises(ValueError, match="n=0: at least one question"):
        WORLD.questions("town", 0, rng())
    with pytest.raises(ValueError, match="aware=2: a factor, 0 to 1"):
        WORLD.documents(3, rng(), SHARES, aware=2)
    with pytest.raises(ValueError, match="with sum 1"):
        WORLD.documents(3, rng(), {"town": 0.5})
