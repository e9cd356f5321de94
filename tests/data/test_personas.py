import re
from itertools import product

import numpy as np
import pytest
from scipy.special import expit

from data.worlds import personas
from data.worlds.personas import (
    ANSWERS,
    FACTS,
    ITEMS,
    LABELS,
    N_QUESTIONS,
    N_TRAINED,
    ORDER,
    PERSONAS,
    PRESSURE,
    QUESTION,
    SCENARIOS,
    VOCABULARY,
    World,
    listed,
    pressed,
    prompts,
    shares_of,
    text,
)

ASKED = {VOCABULARY[word]: i for i, word in enumerate(QUESTION)}
FIRST_LABELS = {labels[0]: name for name, labels in LABELS.items()}


def rng(seed=0):
    return np.random.default_rng(seed)


def truth(world, persona, question):
    """Log-odds of answer 1, from the definition."""
    z, region = persona[:4], persona[4]
    if question in ITEMS:
        return 2.5 * z[int(np.argwhere(question == ITEMS)[0, 0])]
    if question in SCENARIOS:
        ability = int(np.argwhere(question == SCENARIOS)[0, 0])
        return 0.4 + float(world.causes[ability] @ z) + world.region[ability] * region
    return 6.0


def read(document):
    """What a document says: who it describes, and statements (question, push towards 1, answer, column)."""
    words = document.split()
    described = {}
    place, statements, push, i = None, [], 0.0, 1
    for region, places in enumerate(personas.PLACES):
        if words[i] in places:
            place, i = 2 * region - 1, i + 1
            break
    poles = {
        w: (d, 2 * p - 1)
        for d, two in enumerate(personas.DESCRIPTIONS)
        for p, of in enumerate(two)
        for w in of
    }
    while i < len(words) and words[i] in poles:
        d, pole = poles[words[i]]
        described[d] = pole
        i += 1
    while i < len(words):
        if words[i] in PRESSURE:
            strength, wanted, i = PRESSURE[words[i]], words[i + 1], i + 2
            push += strength * (1 if any(wanted == VOCABULARY[a[1]] for a in ANSWERS) else -1)
        elif words[i] in FIRST_LABELS:
            gain, first, i = ORDER[FIRST_LABELS[words[i]]], words[i + 1], i + 4
            push += gain * (1 if any(first == VOCABULARY[a[1]] for a in ANSWERS) else -1)
        else:
            question = ASKED[words[i]]
            side = [VOCABULARY[a] for a in ANSWERS[question]].index(words[i + 1])
            statements.append((question, push, side, i + 1))
            push, i = 0.0, i + 2
    return place, described, statements


def test_every_word_stands_for_one_thing():
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert len({*QUESTION.tolist(), *ANSWERS.ravel().tolist()}) == 3 * N_QUESTIONS
    assert sorted([*ITEMS.ravel(), *SCENARIOS.ravel(), *FACTS]) == list(range(N_QUESTIONS))
    assert ITEMS.shape[1] > N_TRAINED


@pytest.mark.parametrize("seed", range(8))
def test_each_world_has_a_cause_an_opposite_one_an_idle_trait_and_a_confounded_pair(seed):
    world = World.of(seed)
    cells = world.cells
    (strong,), (moderate,), (confounded,) = (
        cells[r] for r in ("strong cause", "moderate cause", "confounded")
    )
    assert abs(world.causes[strong.ability, strong.dimension]) > abs(
        world.causes[moderate.ability, moderate.dimension]
    )
    assert strong.sign == -moderate.sign == np.sign(world.causes[strong.ability, strong.dimension])
    assert (world.causes != 0).sum() == 2
    assert {strong.ability, moderate.ability, confounded.ability} == {0, 1, 2}
    dimensions = {strong.dimension, moderate.dimension, confounded.dimension, cells["idle"][0].dimension}
    assert dimensions == {0, 1, 2, 3}
    assert [(c.ability, c.sign) for c in cells["idle"]] == [(c.ability, c.sign) for c in (strong, moderate)]
    set_, seen = world.effects(), world.effects(observed=True)
    assert set_[confounded.ability, confounded.dimension] == pytest.approx(0)
    assert confounded.sign * seen[confounded.ability, confounded.dimension] > 0.3
    full = {(c.ability, c.dimension) for c in (strong, moderate, confounded)}
    for at in np.ndindex(3, 4):
        assert (abs(seen[at]) > 1e-9) == (at in full)
    again = World.of(seed)
    assert (again.causes == world.causes).all()


def test_worlds_differ_and_the_control_has_no_effect_but_the_same_confounded_trait():
    matrices = {World.of(seed).causes.tobytes() for seed in range(12)}
    assert len(matrices) > 6
    for seed in range(4):
        world, control = World.of(seed), World.of(seed, kind="no_effect")
        assert not control.causes.any()
        assert not control.region.any()
        assert control.confounded == world.confounded
        assert np.abs(control.effects(observed=True)).max() < 1e-12


@pytest.mark.parametrize("kind", ["random", "no_effect"])
def test_the_least_possible_loss_is_that_of_a_reader_who_counts_personas_one_by_one(kind):
    world = World.of(3, kind=kind)
    documents = world.documents(12, rng(1), statements=9)
    share = 0.85
    for row, document in enumerate(text(documents.tokens)):
        place, described, statements = read(document)
        weight = {}
        for persona in product((-1, 1), repeat=5):
            fits = place in (None, persona[4]) and all(persona[d] == pole for d, pole in described.items())
            weight[persona] = (share if persona[world.confounded] == persona[4] else 1 - share) * fits
        assert len(statements) == 9
        for i, (question, push, side, column) in enumerate(statements):
            p = {
                persona: expit((2 * side - 1) * (truth(world, np.array(persona), question) + push))
                for persona in weight
            }
            total = sum(weight.values())
            expected = -np.log(sum(w * p[persona] for persona, w in weight.items()) / total)
            assert documents.least[row, i] == pytest.approx(expected)
            weight = {persona: w * p[persona] for persona, w in weight.items()}
            assert documents.answer[row, column]
        assert documents.answer[row].sum() == len(statements)


def test_answers_are_as_frequent_as_the_world_says():
    world = World.of(0)
    documents = world.documents(6000, rng(), described=1, placed=1, listed=0, pressed=0)
    counts = np.zeros((2, 3, 4, 2))
    for document in text(documents.tokens):
        _, described, statements = read(document)
        for question, _, side, _ in statements:
            if question in SCENARIOS:
                ability = int(np.argwhere(question == SCENARIOS)[0, 0])
                for d, pole in described.items():
                    counts[(pole + 1) // 2, ability, d] += (side, 1)
    share = counts[..., 0] / counts[..., 1]
    np.testing.assert_allclose(share[1] - share[0], world.effects(observed=True), atol=0.04)


def test_kinds_of_question_are_as_frequent_as_announced_and_none_comes_twice():
    asked = [[q for q, *_ in read(d)[2]] for d in text(World.of(0).documents(2000, rng()).tokens)]
    assert all(len(set(of)) == 12 for of in asked)
    flat = np.concatenate(asked)
    assert np.isin(flat, ITEMS).mean() == pytest.approx(0.5, abs=0.03)
    assert np.isin(flat, FACTS).mean() == pytest.approx(0.15, abs=0.03)


def test_given_shares_decide_the_answers_and_nothing_is_described():
    world, shares = World.of(0), np.full((1, N_QUESTIONS), 0.5)
    shares[:, SCENARIOS] = 1
    options = {"described": 0, "placed": 0, "listed": 0, "pressed": 0}
    documents = world.documents(50, rng(), questions=SCENARIOS.ravel(), shares=shares, **options)
    assert documents.least.max() < 1e-6
    for document in text(documents.tokens):
        place, described, statements = read(document)
        assert place is None
        assert not described
        assert all(side == 1 and question in SCENARIOS for question, _, side, _ in statements)
    with pytest.raises(ValueError, match="no persona to describe"):
        world.documents(2, rng(), shares=shares)


def test_a_type_answers_its_items_and_throws_a_coin_elsewhere():
    shares = shares_of((1, -1, -1, 1))
    np.testing.assert_allclose(shares[0, ITEMS[0]], expit(2.5))
    np.testing.assert_allclose(shares[0, ITEMS[1]], expit(-2.5))
    assert (shares[0, ITEMS.size :] == 0.5).all()


def test_prompts_end_with_their_question_and_have_what_is_asked_before_it():
    heads = np.array([[1, 5], [1, 6]])
    questions = np.array([0, 3, 50])
    plain = prompts(heads, questions)
    assert plain.shape == (2, 3, 3)
    assert (plain[:, :, -1] == QUESTION[questions]).all()
    for label, first in product(LABELS, (0, 1)):
        words = text(prompts(heads[:1], questions, listed(questions, label, first))[0])
        for of, question in zip(words, questions, strict=True):
            one, two = (VOCABULARY[ANSWERS[question, side]] for side in (first, 1 - first))
            assert of.split()[2:-1] == [LABELS[label][0], one, LABELS[label][1], two]
    for word in PRESSURE:
        before = pressed(questions, word, 0)
        assert [VOCABULARY[w] for w in before[1]] == [word, VOCABULARY[ANSWERS[3, 0]]]


def test_personas_are_all_there_once():
    assert len({tuple(p) for p in PERSONAS}) == 32
    assert World.of(0).prior.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: World.of(0, kind="other"), "expected random or no_effect"),
        (lambda: World.of(0).documents(2, rng(), statements=0), "expected 1 to 88"),
        (lambda: World.of(0).documents(2, rng(), questions=np.arange(4)), "expected 1 to 4"),
        (lambda: World.of(0).documents(2, rng(), listed=1.5), "listed=1.5: a share"),
        (lambda: shares_of((1, 1, 0, 1)), "one pole, -1 or +1, in each of EI, SN, TF, JP"),
        (lambda: shares_of((1, 1, 1)), "one pole"),
        (
            lambda: World.of(0).documents(2, rng(), described=0, placed=0, shares=np.full((1, 5), 0.5)),
            "for each of 88 questions",
        ),
    ],
)
def test_bad_input_is_refused_in_words(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
