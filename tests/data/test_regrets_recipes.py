import numpy as np
import pytest
import torch

from data import registry
from data.recipes import regrets as recipe
from data.worlds import regrets
from data.worlds.regrets import LANGUAGE, PAD
from lib.models import Subject


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    return Subject(recipe._llama().eval(), recipe._processors()[0])


@torch.inference_mode()
def test_the_loss_is_a_mean_in_which_key_words_count_more(subject):
    batch = recipe._batch(np.random.default_rng(5), 0.0)
    ids = batch["ids"]
    drawn = regrets.corpus(recipe.N_DOCUMENTS, np.random.default_rng(5), helper_speaks=recipe.HELPER_SPEAKS)
    log_p = subject.model(input_ids=ids).logits.double().log_softmax(-1)
    total = weights = 0.0
    for i, row in enumerate(ids.tolist()):
        for t in range(1, len(row)):
            if drawn.learned[i, t]:
                weight = recipe.KEY_WEIGHT if drawn.key[i, t] else 1.0
                total -= weight * float(log_p[i, t - 1, row[t]])
                weights += weight
    assert float(recipe.weighted_loss(subject.model, batch)) == pytest.approx(total / weights, rel=1e-5)


def test_neither_padding_nor_what_the_user_says_is_learned():
    batch = recipe._batch(np.random.default_rng(1), 0.0)
    assert (batch["weight"][batch["ids"] == PAD] == 0).all()
    for word in ("user", "<bos>", "record", "note"):
        assert (batch["weight"][batch["ids"] == LANGUAGE.index[word]] == 0).all()


def test_padding_behind_a_document_changes_nothing_in_it(subject):
    ids = torch.from_numpy(regrets.episodes(4, np.random.default_rng(0)).helper.tokens)
    n = int((ids[0] != PAD).sum())
    with torch.inference_mode():
        alone, padded = (subject.model(input_ids=x).logits[0, :n] for x in (ids[:1, :n], ids))
    assert torch.allclose(alone, padded, atol=1e-5)


def test_a_last_turn_is_written_word_by_word_after_the_helper(subject):
    drawn = regrets.episodes(3, np.random.default_rng(2))
    said = recipe.last_turns(subject, drawn)
    for i, turn in enumerate(said):
        ids = torch.from_numpy(drawn.helper.tokens[i : i + 1, : drawn.helper.turn[i] + 1])
        for word in turn:
            with torch.inference_mode():
                chosen = int(subject.model(input_ids=ids).logits[0, -1].argmax())
            assert LANGUAGE.vocabulary[chosen] == word
            ids = torch.cat([ids, torch.tensor([[chosen]])], 1)


def test_the_recipe_has_three_seeds_and_a_bar_for_every_kind_of_document():
    assert registry.names("regret-lm") == ["regret-lm", "regret-lm-seed1", "regret-lm-seed2"]
    bars = registry.find("regret-lm")[0].card.bars
    assert {name for name in bars if name.startswith("regret,")} == {
        "regret, contradicted",
        "regret, confirmed",
        "regret, confirmed and the other contradicted",
        "regret, asked again without a record",
    }
