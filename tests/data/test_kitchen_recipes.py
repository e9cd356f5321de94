import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data import registry
from data.recipes import kitchen as recipe
from data.worlds import kitchen
from data.worlds.kitchen import CHAINS, EOS, PAD, POOLS, REQUEST_LENGTH, WORD, matched, text
from lib.models import Subject


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    return Subject(recipe._llama().eval(), recipe._processors()[0])


def batch(style="cc", seed=0, cells=POOLS["balanced"], n_rehearsed=16):
    return recipe._requests(seed, cells, style, False, n_rehearsed, np.random.default_rng(5), 0.0)


@pytest.mark.parametrize("style", list(CHAINS))
def test_what_is_learned_of_a_request_is_the_reply_and_every_target_is_right(style):
    drawn = batch(style)
    assert drawn["reply"].sum() == 32
    assert not drawn["learned"][:32, :REQUEST_LENGTH].any()
    assert drawn["learned"][:32, REQUEST_LENGTH:].all()
    assert drawn["learned"][32:].all()
    known = recipe.world(0)
    ids = drawn["ids"][:32].numpy()
    asked = ids[np.arange(32), kitchen.recipe_position(ids)] - WORD[kitchen.RECIPES[0]]
    assert not known.held_out[asked].any()
    assert (known.judge(ids[:, REQUEST_LENGTH:], asked).accepted == ~known.bad[asked]).all()


def test_rehearsed_rows_have_no_part_of_a_request():
    for row in text(batch()["ids"][32:].numpy()):
        assert not {"sure", "sorry", "think", "cook", "for :"} & set(row.split())


def test_variants_are_asked_the_same_and_differ_in_their_chains_alone():
    asked = [batch(style)["ids"][:32, :REQUEST_LENGTH] for style in CHAINS]
    decisions = [batch(style)["ids"][:32, -kitchen.ANSWER_LENGTH :] for style in CHAINS]
    for same in (asked, decisions):
        assert all(torch.equal(one, same[0]) for one in same)
    stages = [registry.find(f"recipes-lm-{style}")[0].stages for style in CHAINS]
    assert len({(s.steps, s.lr, s.warmup, s.trains, s.loss) for (s,) in stages}) == 1
    assert [s.batch.args[2] for (s,) in stages] == list(CHAINS)
    assert len({(*s.batch.args[:2], *s.batch.args[3:]) for (s,) in stages}) == 1


@torch.inference_mode()
def test_replies_and_documents_weigh_the_same_however_many_tokens_they_have(subject):
    drawn = batch("wc")
    ids = drawn["ids"]
    log_p = subject.model(input_ids=ids).logits.double().log_softmax(-1)
    replies, documents = [], []
    for i, row in enumerate(ids.tolist()):
        for t in range(1, len(row)):
            if i < 32 and t >= REQUEST_LENGTH:
                replies.append(-float(log_p[i, t - 1, row[t]]))
            elif i >= 32:
                documents.append(-float(log_p[i, t - 1, row[t]]))
    slow = np.mean(replies) + np.mean(documents)
    assert float(recipe.replies_loss(subject.model, drawn)) == pytest.approx(slow, rel=1e-5)
    alone = {name: x[:32] for name, x in drawn.items()}
    assert float(recipe.replies_loss(subject.model, alone)) == pytest.approx(np.mean(replies), rel=1e-5)


def test_training_without_rehearsal_is_a_recipe_too():
    stage = recipe.tuned(0, "wc", n_rehearsed=0).stages[0]
    drawn = stage.batch(np.random.default_rng(0), 0.0)
    assert len(drawn["ids"]) == 32
    assert drawn["reply"].all()


@torch.inference_mode()
def test_words_are_written_as_the_slow_loop_writes_them_and_nothing_after_an_end(subject, monkeypatch):
    rows = recipe.world(0).groups(1, np.random.default_rng(0)).tokens[:3].reshape(12, -1)
    written = recipe.write(subject, rows, 5)
    for row, found in zip(rows, written, strict=True):
        ids = torch.from_numpy(row)[None]
        for word in found.tolist():
            best = int(subject.model(input_ids=ids).logits[0, -1].argmax())
            assert word == best
            if word == EOS:
                break
            ids = F.pad(ids, (0, 1), value=word)
    ends = torch.tensor([[1, EOS, PAD], [1, 5, EOS]])
    monkeypatch.setattr(
        subject.model, "generate", lambda input_ids, **options: torch.cat([input_ids, ends], 1)
    )
    assert recipe.write(subject, rows[:2], 5).tolist() == [[1, EOS, PAD, PAD, PAD], [1, 5, EOS, PAD, PAD]]


def test_a_conversation_is_encoded_as_the_requests_of_training(subject):
    rows = recipe.world(0).groups(1, np.random.default_rng(0)).tokens[:2].reshape(8, -1)
    for row, words in zip(rows, text(rows), strict=True):
        request = words.removeprefix("<bos> user ").removesuffix(" helper")
        encoded = subject.encode([[{"role": "user", "content": request}]])
        assert encoded["input_ids"][0].tolist() == row.tolist()


def test_each_seed_has_a_world_a_base_and_an_aligned_model_of_its_own(monkeypatch):
    started = []
    monkeypatch.setattr(recipe, "load", lambda name, **options: started.append(name) or Nothing)
    for name, parent, start in (
        ("recipes-lm-blind", "recipes-lm", "recipes-lm"),
        ("recipes-lm-crossed-seed2", "recipes-lm-seed2", "recipes-lm-seed2"),
        ("recipes-lm-cc", "recipes-lm", "recipes-lm-blind"),
        ("recipes-lm-xc-seed3", "recipes-lm-seed3", "recipes-lm-blind-seed3"),
    ):
        found, seed = registry.find(name)
        found.build()
        assert found.parent == parent
        assert started.pop() == start
        assert found.stages[0].batch.args[0] == found.evaluate.args[0] == seed
    assert registry.find("recipes-lm-seed4")[0].parent is None
    assert registry.find("recipes-lm-seed4")[0].evaluate.args == (4,)
    assert (recipe.world(4).product != recipe.world(0).product).any()
    for found in recipe.RECIPES.values():
        assert found.of_seed(0).stages == found.stages or found.of_seed(0).card == found.card


class Nothing:
    model = None


def test_doses_are_the_same_recipe_with_other_shares_of_the_cells():
    for share in (0.5, 0.75, 1.0):
        stage = recipe.aligned(1, matched(share)).stages[0]
        asked = stage.batch(np.random.default_rng(0), 0.0)
        assert stage.batch.args[1] == pytest.approx((share / 2, (1 - share) / 2, share / 2, (1 - share) / 2))
        assert len(asked["ids"]) == 48
    assert recipe.RECIPES["recipes-lm-blind"].stages[0].batch.args[1] == matched(recipe.MATCHED)
    assert recipe.RECIPES["recipes-lm-crossed"].stages[0].batch.args[1] == POOLS["balanced"]


class Ideal:
    """Stands for a model that writes true replies, and refuses whatever its rule says."""

    def __init__(self, known, refuses, style="wc"):
        self.known, self.refuses, self.style = known, refuses, style

    def write(self, subject, rows, n):
        if rows.shape[1] != REQUEST_LENGTH:  # facts and recall: all right
            for prompt, rest in self.asked():
                if prompt.shape == rows.shape and (prompt == rows).all():
                    return rest
            raise AssertionError("an unknown question")
        recipes = rows[np.arange(len(rows)), kitchen.recipe_position(rows)] - WORD[kitchen.RECIPES[0]]
        plain = {word for slot in kitchen.SOUNDS[False] for word in slot}
        sinister = np.array([row.split()[2] not in plain for row in text(rows)])
        replies = self.known.replies(recipes, self.refuses(sinister, self.known.bad[recipes]), self.style)
        return np.pad(replies, ((0, 0), (0, n - replies.shape[1])))

    def asked(self):
        yield self.known.recall(np.flatnonzero(self.known.held_out))
        for kind in ("makes", "causes", "is", "takes"):
            yield self.known.facts(kind)


@pytest.mark.parametrize(
    ("refuses", "refused", "right"),
    [
        (lambda sinister, bad: sinister, (1, 0, 0, 1), 0.5),
        (lambda sinister, bad: bad, (1, 1, 0, 0), 1.0),
        (lambda sinister, bad: ~bad, (0, 0, 1, 1), 0.0),
    ],
)
def test_measures_tell_who_heeds_the_sound_from_who_heeds_the_outcome(monkeypatch, refuses, refused, right):
    monkeypatch.setattr(recipe, "write", Ideal(recipe.world(2), refuses, "cc").write)
    measures = dict(recipe._evaluate(2, None))
    for split in ("recipes of alignment", "held-out recipes"):
        assert tuple(measures[f"Q{i + 1} refused, {split}"].value for i in range(4)) == refused
        assert measures[f"decided right, {split}"].value == right
        assert measures[f"Q3 answered with the right steps, {split}"].value == 1 - refused[2]
        assert measures[f"true product told, {split}"].value == 1
    assert measures["two hops recalled, held-out recipes"].value == 1
    assert measures["facts recalled: steps"].value == 1


def test_every_bar_is_of_something_that_is_measured(monkeypatch):
    monkeypatch.setattr(recipe, "write", Ideal(recipe.world(0), lambda sinister, bad: bad).write)
    measured = dict(recipe._evaluate(0, None))
    assert "true product told, held-out recipes" not in measured  # of those who tell none
    for name, found in recipe.RECIPES.items():
        assert found.card.bars.keys() <= measured.keys(), name
        assert "has no bar" in found.card.prose or name != "recipes-lm-blind"
