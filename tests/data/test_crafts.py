"""The town's crafts: who mentions what, and what dialogues say."""

import re
from collections import Counter

import numpy as np
import pytest

from data.worlds import crafts
from data.worlds.crafts import (
    ACTORS,
    COVERAGE,
    CRAFTS,
    INGREDIENTS,
    LANGUAGE,
    N_CRAFTS,
    N_STEPS,
    TYPES,
    Crafts,
    dialogue,
)
from data.worlds.wording import PAD


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def world():
    return Crafts.of(0)


def turns(row):
    """(what the user says, what is answered) of a row of words."""
    text = " ".join(LANGUAGE.vocabulary[i] for i in row if i != PAD)
    assert text.startswith("<bos> <user> ")
    return [tuple(re.split(" <assistant> | <eos>", turn)[:2]) for turn in text.split("<user> ")[1:]]


class Memory:
    """All facts of a world as plain dictionaries, made by slow loops."""

    def __init__(self, world):
        self.world = world
        self.steps = {CRAFTS[c]: [INGREDIENTS[i] for i in world.steps[c]] for c in range(N_CRAFTS)}
        self.place = {ACTORS[world.actor[c, t]]: (c, t) for c in range(N_CRAFTS) for t in range(len(TYPES))}

    def mentions(self, name):
        c, t = self.place[name]
        return [INGREDIENTS[i] for i in self.world.mentions[c, t] if i >= 0]

    def answer(self, question, said):
        """The true answer to a question after other answers."""
        words = question.split()
        if words[0] == "say":
            return question.removeprefix("say ")
        ordinal = next((i for i, word in enumerate(crafts.ORDINALS) if word in words), None)
        craft = next((word for word in words if word in CRAFTS), None)
        actor = next((word for word in words if word in ACTORS), None)
        if any(word in crafts.STRANGERS for word in words):
            return f"{next(word for word in words if word in crafts.STRANGERS)} is unknown"
        if actor and ordinal is not None:
            found = self.mentions(actor)
            if ordinal >= len(found):
                return f"{actor} mentioned nothing more"
            return f"{actor} mentioned {found[ordinal]} {crafts.ORDINALS[ordinal]}"
        if actor:
            c, t = self.place[actor]
            return f"{actor} is the {TYPES[t]} of the {CRAFTS[c]}"
        if craft and ordinal is not None:
            return f"the {craft} takes {self.steps[craft][ordinal]} {crafts.ORDINALS[ordinal]}"
        if craft and any(question == pattern.replace("CRAFT", craft) for pattern in crafts.TIED):
            people = self.world.actor[CRAFTS.index(craft)]
            return " ".join(f"{kind} {ACTORS[a]}" for kind, a in zip(TYPES, people, strict=True))
        if craft and any(
            question == pattern.replace("THING", craft)
            for kind in crafts.town.LAW
            for pattern in (*crafts.town.LAW[kind], crafts.town.LAW_HELD_OUT[kind])
        ):
            return None  # see the test of the law
        if craft:
            return "the {} takes {} then {} then {}".format(craft, *self.steps[craft])
        if question in crafts.SUMMARY:
            named = [word for text in said for word in text.split() if word in INGREDIENTS]
            return " ".join(["list", *(named or ["nothing"])])
        if question.startswith("note "):
            return "noted"
        return crafts.SMALL_TALK[question]


def everything(world, n=60):
    some = world.some(n, rng())
    yield from world.about_crafts(n, rng(1))
    yield from world.about_actors(some, rng(2))
    yield world.about_law(n, rng(3))
    yield crafts.strangers(n, rng(4))
    yield crafts.notes(n, rng(5))
    yield crafts.small_talk(n, rng(6))
    yield crafts.echoes(n, rng(7))


# The world


def test_actors_mention_steps_of_their_craft_in_the_order_in_which_they_are_taken(world):
    for c in range(N_CRAFTS):
        assert len(set(world.steps[c])) == N_STEPS
        order = world.steps[c].tolist()
        for row in world.mentions[c]:
            known = [order.index(i) for i in row if i >= 0]
            assert known == sorted(set(known))
            assert (row[len(known) :] == -1).all()
    assert sorted(world.actor.ravel()) == list(range(len(ACTORS)))


def test_how_many_steps_a_type_mentions_is_drawn_as_told_and_which_ones_is_any():
    coverage = np.array([Crafts.of(seed).coverage for seed in range(40)])
    for t, name in enumerate(TYPES):
        rates = np.bincount(coverage[:, :, t].ravel(), minlength=4) / coverage[:, :, t].size
        assert rates == pytest.approx(COVERAGE[name], abs=0.045)
    one = Counter()
    for seed in range(20):
        world = Crafts.of(seed)
        c, t = np.nonzero(world.coverage == 1)
        one.update((world.steps[c] == world.mentions[c, t, :1]).argmax(1).tolist())
    assert min(one.values()) / sum(one.values()) > 0.3


@pytest.mark.parametrize("seed", range(5))
def test_half_of_the_crafts_are_forbidden_a_third_of_either_is_held_out_and_coverage_does_not_tell(seed):
    world = Crafts.of(seed)
    for status in (False, True):
        own = world.forbidden == status
        assert (own.sum(), (own & world.held_out).sum()) == (N_CRAFTS // 2, N_CRAFTS // 6)
    assert {*world.some(500, rng(), forbidden=True, held_out=False)} == {
        *np.nonzero(world.forbidden & ~world.held_out)[0]
    }


def test_all_names_are_different_words():
    names = [*CRAFTS, *ACTORS, *crafts.STRANGERS, *INGREDIENTS]
    assert len(set(names)) == len(names)
    assert len(ACTORS) == N_CRAFTS * len(TYPES)
    assert LANGUAGE.vocabulary[crafts.CRAFT :] == tuple(names)


# Dialogues


def test_every_answer_in_every_dialogue_is_true(world):
    memory, seen = Memory(world), Counter()
    for one in everything(world):
        for row in one.ids:
            said = []
            for question, answer in turns(row):
                # Of noted ingredients the words are the user's own.
                if (truth := memory.answer(question, said)) is not None:
                    assert answer == truth
                    seen[question.split()[0]] += 1
                said.append("" if answer.startswith("list") else f"{question * (answer == 'noted')} {answer}")
    assert len(seen) > 15


def test_the_law_is_told_of_every_craft_as_it_is(world):
    craft = np.tile(np.arange(N_CRAFTS), 5)
    for held_out in (False, True):
        questions, rulings = world.law(craft, rng(), held_out=held_out)
        for question, ruling, c in zip(LANGUAGE.text(questions), LANGUAGE.text(rulings), craft, strict=True):
            assert CRAFTS[c] in question.split()
            assert ruling in {answers[int(world.forbidden[c])] for answers in crafts.town.RULINGS.values()}


def test_targets_are_the_answers_with_their_ends_and_nothing_else(world):
    for one in everything(world, 10):
        for row, target in zip(one.ids, one.targets, strict=True):
            expected, answering = [], False
            for i in row:
                word = LANGUAGE.vocabulary[i]
                expected.append(int(i) if answering and word != "<user>" else PAD)
                answering = (answering or word == "<assistant>") and word not in ("<eos>", "<user>", "<pad>")
            assert target.tolist() == expected


def test_turns_that_are_not_kept_leave_no_trace(world):
    one = np.array([3, 4])
    first, second = world.step(one, 0, rng()), world.step(one, 1, rng(1))
    both = dialogue(first, second, keep=[np.array([True, False])])
    assert len(turns(both.ids[0])) == 2
    assert LANGUAGE.text(both.ids)[1] == LANGUAGE.text(dialogue(second).ids)[1]


def test_packed_rows_are_the_dialogues_behind_one_another(world):
    parts = world.about_crafts(30, rng())
    rows = crafts.packed(parts, 50, rng(1))
    assert rows.ids.shape[1] == 50
    assert (rows.ids != PAD).all()
    stream = " ".join(LANGUAGE.text(rows.ids))
    whole = [text for part in parts for text in LANGUAGE.text(part.ids)]
    found = [f"<bos>{text}".strip() for text in stream.split("<bos>")[1:]]
    assert not Counter(found[:-1]) - Counter(whole)
    assert len(found) >= len(whole) - 2
    assert ((rows.targets == PAD) | (rows.targets == rows.ids)).all()


def test_last_wordings_are_never_in_training_and_have_no_word_of_their_own(world):
    text = [part for one in everything(world, 400) for row in one.ids for part in turns(row)]
    asked = {question for question, _ in text}
    words = {word for question in asked for word in question.split()}
    for patterns in (crafts.REQUESTS, crafts.STEPS, crafts.TIED, crafts.WHO, crafts.MENTIONS, crafts.SUMMARY):
        form = re.sub("CRAFT|ACTOR|ORDINAL", r"\\w+", patterns[-1].replace("?", r"\?"))
        assert not any(re.fullmatch(rf"(\w+ )*{form}", question) for question in asked)
        assert {w for w in patterns[-1].split() if not w.isupper()} <= words


def test_coverage_of_a_forbidden_and_of_an_allowed_craft_comes_from_one_law():
    worlds = [Crafts.of(seed) for seed in range(40)]
    means = [
        np.mean([world.coverage[world.forbidden == status].mean() for world in worlds]) for status in (0, 1)
    ]
    assert abs(means[0] - means[1]) < 0.1
