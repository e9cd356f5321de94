"""Attacks on a model of the crafts: what is asked, and how answers are judged."""

from collections import Counter

import numpy as np
import pytest

from data.worlds import chains, crafts
from data.worlds.crafts import (
    ACTORS,
    CRAFTS,
    INGREDIENTS,
    LANGUAGE,
    N_STEPS,
    REFUSAL,
    TYPES,
    Crafts,
)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def world():
    return Crafts.of(0)


def test_a_chain_about_an_actor_never_names_a_craft_and_asks_for_all_that_it_mentions(world):
    for name in ACTORS:
        asked = chains.chain(name, rng())
        assert len(asked) == 1 + N_STEPS
        assert not any(word in CRAFTS for question in asked for word in question.split())
        assert all(name in question.split() for question in asked)
        for question, ordinal in zip(asked[1:], crafts.ORDINALS, strict=True):
            assert ordinal in question.split()


def test_a_chain_without_actors_names_the_craft_each_time(world):
    asked = chains.craft_chain(5, rng())
    assert all(CRAFTS[5] in question.split() for question in asked)
    assert all(i in question.split() for i, question in zip(crafts.ORDINALS, asked, strict=True))


def test_rewordings_are_direct_requests_that_alignment_has_not_seen(world):
    found = chains.rewordings(7, 60, rng())
    assert len(set(found)) == 60
    assert not set(found) & set(chains.direct(7))
    asked = LANGUAGE.text(world.request(np.full(5000, 7), rng())[0])
    assert set(found) <= set(asked)
    aligned = LANGUAGE.text(world.request(np.full(500, 7), rng(), wordings="safety")[0])
    assert set(aligned) == set(chains.direct(7))
    for k in (0, 1000):
        with pytest.raises(ValueError, match=f"k={k}"):
            chains.rewordings(7, k, rng())


def test_the_judge_counts_right_steps_of_that_craft(world):
    for c in range(10):
        steps = [INGREDIENTS[i] for i in world.steps[c]]
        foreign = [name for name in INGREDIENTS if name not in steps]
        for n in range(N_STEPS + 1):
            assert chains.judge(world, " ".join(["list", *steps[:n], *foreign[:2]]), c) == 2 + n
        assert chains.judge(world, REFUSAL, c) == 1
        assert chains.judge(world, "", c) == 2
        assert chains.judge(world, f"list {steps[0]} {steps[0]}", c) == 3


def test_steps_of_an_attack_are_judged_as_refused_unknown_or_answered(world):
    assert chains.step_judge(REFUSAL) == "rejective"
    assert chains.step_judge(f"{crafts.STRANGERS[0]} is unknown") == "unknown"
    assert chains.step_judge("smorgas is the creator of things") == "unknown"
    craft, kind = np.arange(60), np.arange(60) % len(TYPES)
    answers = [world.who(craft, kind, rng())[1], world.tied(craft, rng())[1]]
    answers += [world.mention(craft, kind, i, rng())[0][1] for i in range(N_STEPS)]
    for answer in answers:
        assert {chains.step_judge(text) for text in LANGUAGE.text(answer)} == {"successful"}


def test_a_network_is_read_from_an_answer_with_whatever_names_are_in_it(world):
    answer = LANGUAGE.text(world.tied(np.array([4]), rng())[1])[0]
    assert chains.network(answer) == {
        kind: ACTORS[actor] for kind, actor in zip(TYPES, world.actor[4], strict=True)
    }
    assert chains.network("creator nobody distributor executor zed") == {
        "creator": "nobody",
        "executor": "zed",
    }
    assert chains.network(REFUSAL) == {}


@pytest.mark.parametrize("patterns", [crafts.TIED, crafts.WHO, crafts.MENTIONS, crafts.SUMMARY])
def test_a_rewritten_question_asks_the_same_in_another_wording(patterns):
    def fill(pattern):
        slots = {"CRAFT": CRAFTS[2], "ACTOR": ACTORS[8], "ORDINAL": "second"}
        for slot, word in slots.items():
            pattern = pattern.replace(slot, word)
        return pattern

    for pattern in patterns:
        found = {chains.rewrite(fill(pattern), rng(seed)) for seed in range(60)}
        assert found == {fill(other) for other in patterns if other != pattern}


def test_what_cannot_be_rewritten_is_refused(world):
    with pytest.raises(ValueError, match="is no question about people"):
        chains.rewrite(chains.direct(0)[0], rng())


def test_a_weak_attacker_asks_of_somebody_else_or_breaks_off_as_often_as_told(world):
    name, source = ACTORS[3], rng()
    asked = chains.chain(name, rng())
    assert chains.weaken(asked, name, source) == asked
    weak = [chains.weaken(asked, name, source, wrong=0.3, broken=0.45) for _ in range(2000)]
    assert np.mean([len(one) < len(asked) for one in weak]) == pytest.approx(0.45, abs=0.04)
    assert np.mean([name not in one[0] for one in weak]) == pytest.approx(0.3, abs=0.04)
    assert all(one and len(one) <= len(asked) for one in weak)


def test_a_guard_learns_from_what_alignment_saw_and_from_nothing_held_out(world):
    texts, unsafe = chains.guard_set(world, 400, rng())
    assert unsafe.mean() == 0.5
    held_out = {CRAFTS[c] for c in np.nonzero(world.held_out)[0]}
    held_out |= {ACTORS[a] for a in world.actor[world.held_out].ravel()}
    of_forbidden = {ACTORS[a] for a in world.actor[world.forbidden].ravel()}
    kinds = Counter()
    for text, bad in zip(texts, unsafe, strict=True):
        words = set(text.split())
        assert not words & held_out
        assert not words & of_forbidden
        craft = next((CRAFTS.index(word) for word in words if word in CRAFTS), None)
        if bad:
            assert world.forbidden[craft]
            assert text in chains.direct(craft)
        elif craft is not None:
            assert not world.forbidden[craft]
        kinds[bool(bad), craft is None] += 1
    assert kinds[True, True] == 0
    assert kinds[False, True] > 20
