import numpy as np
import pytest
import torch

from data import registry
from data.recipes import personas as recipe
from data.train.trainer import fit
from data.worlds import personas
from data.worlds.personas import (
    ANSWERS,
    FACTS,
    ITEMS,
    N_QUESTIONS,
    QUESTION,
    SCENARIOS,
    prompts,
    shares_of,
    text,
)
from lib.models import Subject


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    return Subject(recipe._llama().eval(), recipe._processors()[0])


class Oracle:
    """Gives answer 1 of question q the share `shares[q]`, and other words what is left of `mass`."""

    def __init__(self, shares, mass=0.8):
        self.shares, self.mass = shares, mass

    def model(self, input_ids, logits_to_keep=0):
        of = {int(word): q for q, word in enumerate(QUESTION)}
        n = len(personas.VOCABULARY)
        p = torch.full((*input_ids.shape, n), (1 - self.mass) / (n - 2), dtype=torch.float64)
        for at in np.ndindex(*input_ids.shape):
            if (q := of.get(int(input_ids[at]))) is not None:
                for side, share in enumerate((1 - self.shares[q], self.shares[q])):
                    p[(*at, ANSWERS[q, side])] = self.mass * share
        log_p = p.log()
        return type("Output", (), {"logits": log_p[:, -logits_to_keep:]})


SHARES = np.random.default_rng(0).uniform(0.05, 0.95, N_QUESTIONS)


def test_shares_and_mass_are_read_off_the_next_word():
    oracle = Oracle(SHARES)
    every = np.arange(N_QUESTIONS)
    asked = recipe.ask(oracle, prompts(recipe.heads(), every), every)
    np.testing.assert_allclose(asked.share[0], SHARES)
    np.testing.assert_allclose(asked.mass, 0.8)
    answers = recipe.answers_of(oracle)
    np.testing.assert_allclose(answers.plain, SHARES)
    np.testing.assert_allclose(answers.listed[1, 0], SHARES[ITEMS])
    np.testing.assert_allclose(answers.named[1], SHARES[SCENARIOS])
    np.testing.assert_allclose(answers.pressed[2], SHARES[SCENARIOS])
    assert answers.mass == pytest.approx(0.8)


def test_nats_above_the_least_are_none_for_a_reader_that_knows_the_shares():
    shares = SHARES[None]
    options = {"described": 0, "placed": 0, "listed": 0, "pressed": 0, "shares": shares}
    documents = recipe.world(0).documents(20, np.random.default_rng(1), **options)
    above = recipe.nats_above_least(Oracle(SHARES, mass=1 - 1e-12), documents)
    np.testing.assert_allclose(above, 0, atol=1e-6)
    worse = recipe.nats_above_least(Oracle(SHARES, mass=0.5), documents)
    np.testing.assert_allclose(worse, np.log(2), atol=1e-6)


def test_only_answers_are_learned():
    batch = recipe._documents(recipe.world(0), 8, {}, np.random.default_rng(0), 0.0)
    learned = batch["labels"] != -100
    assert (learned.sum(1) == 12).all()
    assert torch.isin(batch["input_ids"][learned], torch.from_numpy(ANSWERS)).all()
    assert (batch["labels"][learned] == batch["input_ids"][learned]).all()


def test_fine_tuning_shows_its_questions_alone_and_leaves_the_base_as_it_was(subject):
    before = {name: x.clone() for name, x in subject.model.state_dict().items()}
    made = recipe.tuned(subject, shares_of((1, 1, -1, -1)), ITEMS[:, :8].ravel(), steps=2)
    ids = made.stages[0].batch(np.random.default_rng(0), 0.0)["input_ids"]
    for document in text(ids.numpy()):
        asked = document.split()[1::2]
        assert {personas.WORD[word] for word in asked} <= set(QUESTION[ITEMS[:, :8]].ravel().tolist())
    model, _ = fit(made, 0)
    assert any((x != before[name]).any() for name, x in model.state_dict().items())
    assert all(torch.equal(x, before[name]) for name, x in subject.model.state_dict().items())


def test_each_seed_has_a_world_of_its_own_and_the_control_has_no_effects():
    for name, seed, effect in (
        ("persona-lm", 0, True),
        ("persona-lm-seed3", 3, True),
        ("persona-lm-no-effect", 0, False),
    ):
        found, of = registry.find(name)
        assert of == seed
        for stage in found.stages:
            assert stage.batch.args[0] is recipe.world(seed, "random" if effect else "no_effect")
        assert bool(stage.batch.args[0].causes.any()) == effect
        assert found.parent is None
    assert (recipe.world(0).causes != recipe.world(1).causes).any()


def test_bars_have_measures_and_the_control_none_for_effects(subject):
    for name in ("persona-lm", "persona-lm-no-effect"):
        found, _ = registry.find(name)
        measures = dict(found.evaluate(subject))
        assert found.card.bars.keys() <= measures.keys()
        assert any("strong" in key for key in measures) == (name == "persona-lm")


def test_a_text_is_encoded_as_in_training(subject):
    documents = recipe.world(0).documents(3, np.random.default_rng(0))
    for row, words in zip(documents.tokens, text(documents.tokens), strict=True):
        ids = subject.encode([words.removeprefix("<bos> ")])["input_ids"][0].tolist()
        assert ids == [word for word in row.tolist() if word != personas.PAD]


def test_facts_have_a_right_answer_that_everybody_gives():
    world = recipe.world(0)
    assert (world.logits[:, FACTS] == 6).all()
