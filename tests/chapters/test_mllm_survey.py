"""The method cells of notebooks/mllm-survey.ipynb: the very code that the reader reads."""

import re
from functools import cache
from itertools import permutations

import hub_models
import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import f1_score
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from data.recipes import scenes as recipe
from data.worlds import scene_words, scenes
from lib import ROOT, chapters, papers
from lib.models import Subject, load

m = chapters.method("mllm-survey")


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        image_size=64,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
    )
    text = LlamaConfig(
        vocab_size=len(scene_words.VOCABULARY),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=24,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=scene_words.IMAGE,
        image_seq_length=64,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config).eval()
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        for name, parameter in part.named_parameters():
            if parameter.ndim > 1 and "embedding" not in name:
                torch.nn.init.normal_(parameter, std=0.3)
    model.requires_grad_(False)
    return Subject(model, recipe.processors()[0])


@pytest.fixture(scope="module")
def items() -> object:
    return m.make_items(6, np.random.default_rng(0))


@pytest.fixture(scope="module")
def prefix(subject: Subject, items: object) -> object:
    return m.read_prefix(subject, items.texts, items.images)


def game_of(subject: Subject, items: object) -> object:
    def value(at: np.ndarray, images: np.ndarray) -> np.ndarray:
        some = m.replace(items[at], images=images)
        return m.lead(m.next_logprobs(subject, some.texts, some.images), subject, some)

    return m.Coalitions(items.images, value)


def additive(weights: np.ndarray) -> object:
    """A game in which each cell of a bright image is worth its weight."""
    images = np.zeros((len(weights), 64, 64, 3), np.uint8)
    images[:, :16] = images[:, 16:32, :16] = 200  # five active cells, fewer than half of the pixels

    def value(at: np.ndarray, shown: np.ndarray) -> np.ndarray:
        bright = shown.reshape(-1, 4, 16, 4, 16, 3).any((2, 4, 5)).reshape(-1, 16)
        return (bright * weights[at]).sum(1)

    return m.Coalitions(images, value)


# Questions


def test_items_have_a_true_answer_and_a_foil_that_is_true_of_another_object(items: object) -> None:
    names = list(scenes.COLOURS)
    for i in range(len(items)):
        seen = items.scenes.colours[i]
        assert items.scenes.objects[i, items.cell[i]] == items.about[i]
        assert names[seen[items.cell[i]]] == items.words[i] != items.foils[i]
        assert names.index(items.foils[i]) in seen
        assert items.texts[i].endswith(scenes.OBJECTS[items.about[i]])
    some = items[np.array([4, 1])]
    assert some.words == [items.words[4], items.words[1]]
    assert np.array_equal(some.images[1], items.images[1])


def test_too_few_fitting_scenes_are_an_error() -> None:
    with pytest.raises(ValueError, match="0 of 220 scenes fit, 3 are needed"):
        m.make_items(3, np.random.default_rng(0), keep=lambda s: np.zeros(len(s), bool))


def test_the_lead_is_a_difference_of_logits(subject: Subject, items: object) -> None:
    log_p = m.next_logprobs(subject, items.texts, items.images)
    for _, batch in m.batches(subject, items, 10):
        logits = subject.model(**batch).logits[:, -1]
    rows, ids = np.arange(6), scene_words.WORD
    answers, foils = ([ids[w] for w in words] for words in (items.words, items.foils))
    expected = (logits[rows, answers] - logits[rows, foils]).numpy()
    np.testing.assert_allclose(m.lead(log_p, subject, items), expected, atol=1e-4)


# Sets of cells


def brute_force_shapley(v: np.ndarray, n: int) -> np.ndarray:
    total = np.zeros(n)
    orders = list(permutations(range(n)))
    for order in orders:
        code = 0
        for player in order:
            total[player] += v[code | 1 << player] - v[code]
            code |= 1 << player
    return total / len(orders)


def test_shapley_values_are_the_mean_marginal_contribution_over_all_orders() -> None:
    v = np.random.default_rng(0).normal(size=2**5)
    phi = m.shapley(v)
    np.testing.assert_allclose(phi, brute_force_shapley(v, 5), atol=1e-12)
    assert phi.sum() == pytest.approx(v[-1] - v[0])


def test_players_that_can_be_exchanged_have_equal_shapley_values() -> None:
    code = np.arange(16)
    both = (code & 3 == 3) * 2.0 + (code >> 2 & 1) * 5.0
    phi = m.shapley(both)
    np.testing.assert_allclose(phi, [1, 1, 5, 0], atol=1e-12)


def test_interaction_is_zero_in_a_sum_and_the_product_s_weight_in_a_product() -> None:
    code = np.arange(32)
    total = sum((code >> i & 1) * w for i, w in enumerate((1.0, -2.0, 3.0, 0.5, 7.0)))
    assert m.interaction(total, 1, 3) == pytest.approx(0)
    product = total + 4.0 * (code >> 1 & 1) * (code >> 3 & 1)
    assert m.interaction(product, 1, 3) == m.interaction(product, 3, 1) == pytest.approx(4)
    assert m.interaction(product, 0, 3) == pytest.approx(0)


def test_occlusion_equals_a_slow_loop_over_cells(subject: Subject, items: object) -> None:
    game = game_of(subject, items)
    fast = m.occlusion(game)
    whole = m.lead(m.next_logprobs(subject, items.texts, items.images), subject, items)
    for cell in range(16):
        images = items.images.copy()
        y, x = divmod(cell, 4)
        for i in range(len(items)):
            colour = np.median(items.images[i].reshape(-1, 3), axis=0).astype(np.uint8)
            images[i, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16] = colour
        edited = m.replace(items, images=images)
        slow = whole - m.lead(m.next_logprobs(subject, edited.texts, edited.images), subject, edited)
        np.testing.assert_allclose(fast[:, cell], slow, atol=1e-4)
    assert len(game.table) == (1 + game.active.sum(1)).sum()  # an empty cell needs no pass


def test_the_active_cells_are_those_with_an_object(items: object) -> None:
    np.testing.assert_array_equal(
        m.Coalitions(items.images, lambda *_: np.zeros(1)).active, items.scenes.objects >= 0
    )


def test_in_a_sum_every_exact_method_gives_the_weights_and_predicts_all_effects() -> None:
    weights = np.random.default_rng(1).normal(size=(6, 16))
    game = additive(weights)
    game.compute_all()
    assert game.active[0].sum() == 5
    exact = np.where(game.active, weights, 0)
    np.testing.assert_allclose(m.occlusion(game), exact, atol=1e-12)
    for i in range(6):
        np.testing.assert_allclose(m.shapley(game.all_sets(i)), weights[i][game.active[i]], atol=1e-12)
    pairs = m.effects_of_removal(game, exact)
    assert len(pairs[0][0]) == 31
    assert m.prediction_r2(pairs)(np.array([1, 3, 5])) == pytest.approx(1)
    assert m.prediction_r2(m.effects_of_removal(game, 0 * exact))(np.array([1, 3, 5])) <= 0


def test_deletion_runs_from_the_whole_image_to_nothing_in_the_order_of_the_map() -> None:
    weights = np.tile(np.arange(16.0), (2, 1))
    game = additive(weights)
    curve = m.deletion(game, weights)
    assert curve.shape == (2, 17)
    total = weights[0][game.active[0]].sum()
    np.testing.assert_allclose(curve[0, [0, -1]], [total, 0])
    assert curve[0, 12] == total - 4  # of the active cells (0 to 4), cell 4 is the first to go
    exact = np.where(game.active, weights, -1)
    assert m.deletion(game, exact).mean() < curve.mean()
    np.testing.assert_allclose(m.deletion(game, exact)[0, :6], [10, 6, 3, 1, 0, 0])


# Maps


def test_pointing_takes_the_largest_value_and_shares_ties() -> None:
    maps = np.zeros((3, 16))
    maps[0, 5], maps[1, [2, 7]] = 1, 3
    np.testing.assert_allclose(m.points_at(maps, np.array([5, 7, 0])), [1, 1 / 2, 1 / 16])
    assert m.points_at(maps, np.array([4, 0, 0]))[:2].sum() == 0


def test_rollout_is_the_product_of_mixed_layers_and_its_rows_sum_to_one() -> None:
    patterns = [torch.rand(2, 3, 5, 5).softmax(-1) for _ in range(4)]
    total = m.rollout(patterns)
    torch.testing.assert_close(total.sum(-1), torch.ones(2, 5))
    expected = torch.eye(5)
    for pattern in patterns:
        expected = (0.5 * pattern[1].mean(0) + 0.5 * torch.eye(5)) @ expected
    torch.testing.assert_close(total[1], expected)


def test_gradient_weighted_attention_ignores_attention_without_positive_influence() -> None:
    patterns = [torch.rand(2, 3, 5, 5).softmax(-1) for _ in range(2)]
    nothing = m.gradient_attention(patterns, [-torch.rand_like(p) for p in patterns])
    torch.testing.assert_close(nothing, torch.eye(5).expand(2, 5, 5))
    one = m.gradient_attention(patterns[:1], [torch.ones_like(patterns[0])])
    torch.testing.assert_close(one, torch.eye(5) + patterns[0].mean(1))


def test_grad_cam_weights_channels_by_their_mean_gradient() -> None:
    features, gradients = torch.randn(2, 9, 4), torch.randn(2, 9, 4)
    alpha = gradients.mean(1)
    expected = torch.stack([(features[i] @ alpha[i]).relu() for i in range(2)])
    torch.testing.assert_close(m.grad_cam(features, gradients), expected)


def test_integrated_gradients_of_a_square_are_exact_and_complete() -> None:
    x, base = torch.randn(3, 5).double(), torch.randn(3, 5).double()
    weights = torch.randn(5).double()
    path = m.integrated_gradients(lambda z: 2 * weights * z, x, base, 4)  # the gradient of sum w z^2
    torch.testing.assert_close(path, weights * (x**2 - base**2))


def test_integrated_gradients_add_up_to_the_change_of_the_lead(subject: Subject, items: object) -> None:
    gaps = [m.gradient_maps(subject, items, ig_steps=n, batch_size=6)["IG gap"] for n in (2, 48)]
    assert np.median(gaps[1]) < 0.02 < np.median(gaps[0])


def test_maps_are_of_cells_and_gradient_times_input_is_zero_where_the_image_is_empty(
    subject: Subject, items: object
) -> None:
    maps = m.gradient_maps(subject, items, ig_steps=2, batch_size=4) | m.attention_maps(subject, items, 4)
    assert {f"attention, layer {layer}" for layer in range(3)} <= maps.keys()
    for name, values in maps.items():
        assert values.shape == ((6, 1) if name == "IG gap" else (6, 16))
        assert np.isfinite(values).all()
    empty = items.scenes.objects < 0
    for name in ("gradient × input", "integrated gradients"):
        assert abs(maps[name][empty]).max() < 1e-6 < abs(maps[name][~empty]).max()
    attention = sum(maps[f"attention, layer {layer}"] for layer in range(3)) / 3
    np.testing.assert_allclose(maps["attention, mean of layers"], attention, atol=1e-6)


def test_shuffled_weights_are_the_same_numbers_elsewhere(subject: Subject) -> None:
    other = m.shuffled_weights(subject, 0)
    for (name, one), two in zip(subject.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one.flatten().sort().values, two.flatten().sort().values), name
        assert one.ndim < 2 or not torch.equal(one, two)


def test_cells_of_tokens_are_those_of_the_world_at_any_resolution() -> None:
    tokens = m.tokens_of_cells(64)
    assert (scenes.CELL_OF_PATCH[tokens.numpy()] == np.arange(16)[:, None]).all()
    for n_tokens in (16, 576, 729):
        tokens = m.tokens_of_cells(n_tokens)
        assert set(tokens.flatten().tolist()) == set(range(n_tokens))
        row, column = (4 * np.stack(np.divmod(tokens.numpy(), n_tokens**0.5)) // n_tokens**0.5).astype(int)
        assert (4 * row + column == np.arange(16)[:, None]).all()
    assert m.tokens_of_cells(729).shape == (16, 49)  # cells of 36 to 49 tokens; the smaller ones repeat some
    tokens = m.tokens_of_cells(64)
    per_token = torch.zeros(1, 64)
    per_token[0, tokens[6]] = 2.0
    assert m.to_cells(per_token)[0].tolist() == [2.0 if c == 6 else 0.0 for c in range(16)]
    with pytest.raises(ValueError, match="60 image tokens form no square"):
        m.to_cells(torch.zeros(1, 60))


# Reading an image once


def test_reading_on_from_the_image_equals_one_whole_pass(
    subject: Subject, items: object, prefix: object
) -> None:
    whole = m.next_logprobs(subject, items.texts, items.images)
    with torch.no_grad():
        torch.testing.assert_close(prefix.read(), whole, atol=1e-4, rtol=1e-4)
        again = prefix.rows(torch.tensor([2, 2, 5])).read()
    torch.testing.assert_close(again, whole[[2, 2, 5]], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_other_texts_after_the_same_images_equal_whole_passes_whatever_their_length(
    subject: Subject, items: object, prefix: object
) -> None:
    short, long = m.ask_about("exists", items.about), [f"the moon is red ; {text}" for text in items.texts]
    mixed = [(short, items.texts, long)[i % 3][i] for i in range(6)]
    before = [layer.keys.clone() for layer in prefix.cache.layers]
    again = prefix.asking(mixed, items.images)
    whole = m.next_logprobs(subject, mixed, items.images)
    torch.testing.assert_close(again.read(), whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        m.read_prefix(subject, mixed, items.images).read(), whole, atol=1e-4, rtol=1e-4
    )
    some = torch.tensor([1, 0, 0])
    torch.testing.assert_close(again.rows(some).read(), whole[some], atol=1e-4, rtol=1e-4)
    for layer, keys in zip(prefix.cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)  # reading on leaves what was read alone
    padding = again.batch["attention_mask"] == 0
    assert padding.any()
    assert not padding[:, : again.start].any()  # behind the image
    with pytest.raises(ValueError, match="not those that were read"):
        m.replace(prefix, start=prefix.start - 1).asking(items.texts, items.images)
    with pytest.raises(ValueError, match="the images do not end at the same position"):
        prefix.asking(items.texts, [None, *items.images[1:]])


@torch.no_grad()
def test_a_blocked_image_token_has_no_influence_at_all(
    subject: Subject, prefix: object, items: object
) -> None:
    keys = m.keys_of(prefix, m.cell_places(subject, prefix.batch, items.cell))
    assert keys.sum(1).tolist() == [4] * 6
    changed = prefix.rows(torch.arange(6))
    for layer in changed.cache.layers:
        layer.values[keys[:, None, : prefix.start].expand_as(layer.values[..., 0])] += 5.0
    with m.blocked(subject, range(3), keys):
        assert torch.equal(prefix.read(), changed.read())
    with m.blocked(subject, [0, 1], keys):
        assert not torch.equal(prefix.read(), changed.read())


@torch.no_grad()
def test_settings_that_change_nothing_give_the_same_logits(
    subject: Subject, prefix: object, items: object
) -> None:
    nowhere = torch.zeros_like(prefix.batch["input_ids"], dtype=torch.bool)
    with m.edit(subject, "scores", layer=range(3), fn=lambda x: x):
        plain = prefix.read()
    with m.blocked(subject, range(3), nowhere):
        assert torch.equal(prefix.read(), plain)
    plain = prefix.read()
    with m.switched_off(subject, torch.arange(0), 24):
        assert torch.equal(prefix.read(), plain)
    torch.testing.assert_close(m.contrastive(plain, plain.roll(1, 0), 0.0), plain)
    torch.testing.assert_close(m.contrastive(plain, plain, 3.0), plain)


def test_a_deaf_model_gives_the_same_answer_whatever_object_is_named(subject: Subject, items: object) -> None:
    def ask(some: object) -> torch.Tensor:
        return m.answers_under(subject, some, lambda rows, batch: m.deaf(subject, batch, scenes.OBJECTS), 4)

    others = m.replace(items, texts=[text.rsplit(" ", 1)[0] + " moon" for text in items.texts])
    assert torch.equal(ask(items), ask(others))
    assert not torch.equal(*(m.next_logprobs(subject, x.texts, items.images) for x in (items, others)))


def test_answers_under_no_change_are_the_plain_ones_in_the_items_order(
    subject: Subject, items: object
) -> None:
    seen = []

    def nothing(rows: np.ndarray, batch: dict) -> object:
        seen.extend(rows.tolist())
        return m.ExitStack()

    found = m.answers_under(subject, items, nothing, 4)
    whole = m.next_logprobs(subject, items.texts, items.images)
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-4)
    assert seen == list(range(6))


def test_the_game_with_words_is_the_game_of_cells_when_all_words_are_in(subject: Subject) -> None:
    some = m.make_items(2, np.random.default_rng(3), pairs=(2, 2))
    absent = [scenes.OBJECTS[o] for o in (~some.scenes.present).argmax(1)]
    swaps = [{scenes.OBJECTS[o]: a, "the": "a"} for o, a in zip(some.about, absent, strict=True)]
    tables = m.word_game(subject, some, swaps, 250)
    game = game_of(subject, some)
    game.compute_all()
    swapped = m.replace(some, texts=[f"what colour is the {a}" for a in absent])
    without_name = m.lead(m.next_logprobs(subject, swapped.texts, swapped.images), subject, some)
    for i, v in enumerate(tables):
        n = int(game.active[i].sum())
        assert len(v) == 2 ** (n + 2)
        np.testing.assert_allclose(v[3 * 2**n :], game.all_sets(i), atol=1e-3)
        assert v[3 * 2**n - 1] == pytest.approx(without_name[i], abs=1e-3)  # all cells, and "the" only


# States, neurons, concepts


@torch.no_grad()
def test_restoring_the_last_state_brings_the_whole_answer_back_and_restoring_nothing_none(
    subject: Subject,
) -> None:
    some = m.make_items(5, np.random.default_rng(2))
    clean, swapped = m.recoloured(
        some, np.random.default_rng(0), lambda s: scenes.draw(s, np.random.default_rng(9), split="test")
    )
    at = np.arange(5)
    assert (swapped.scenes.colours != clean.scenes.colours).sum() == 5
    assert [list(scenes.COLOURS)[c] for c in swapped.scenes.colours[at, some.cell]] == some.foils
    pair = [m.read_prefix(subject, x.texts, x.images) for x in (clean, swapped)]
    last = m.last_token_effects(*pair, clean)
    assert last.shape == (4, 5)
    assert last[-1].mean() == pytest.approx(1, abs=1e-3)
    assert abs(last[0]).max() < 1e-3  # before the first block the last token is the same in both
    (_, good), (_, bad) = (next(m.batches(subject, x, 5)) for x in (clean, swapped))
    with m.capture(subject, "resid_post", layers=1, positions=-1) as acts:
        whole = m.lead(subject.model(**good).logits[:, -1].log_softmax(-1), subject, clean)

    def restore(h: torch.Tensor) -> torch.Tensor:
        h[:, -1] = acts[1]
        return h

    spoilt = m.lead(subject.model(**bad).logits[:, -1].log_softmax(-1), subject, clean)
    with m.edit(subject, "resid_post", layer=1, fn=restore):
        restored = m.lead(subject.model(**bad).logits[:, -1].log_softmax(-1), subject, clean)
    np.testing.assert_allclose(last[2], (restored - spoilt) / (whole - spoilt).mean(), rtol=1e-3)


@torch.no_grad()
def test_restoring_a_cell_s_tokens_equals_a_slow_loop_and_the_object_s_cell_is_the_whole_input(
    subject: Subject,
) -> None:
    some = m.make_items(4, np.random.default_rng(4))
    clean, swapped = m.recoloured(
        some, np.random.default_rng(0), lambda s: scenes.draw(s, np.random.default_rng(9), split="test")
    )
    empty = scenes.pick(some.scenes.objects < 0, np.random.default_rng(1))
    asked, other = m.indirect_effects(subject, clean, swapped, [some.cell, empty])
    assert asked.shape == other.shape == (4, 4)
    (_, good), (_, bad) = (next(m.batches(subject, x, 4)) for x in (clean, swapped))
    with m.capture(subject, "resid_post", layers=0) as acts:
        f_clean = m.lead(subject.model(**good).logits[:, -1].log_softmax(-1), subject, clean)
    f_bad = m.lead(subject.model(**bad).logits[:, -1].log_softmax(-1), subject, clean)
    slow = []
    for i in range(4):

        def restore(h: torch.Tensor, i: int = i) -> torch.Tensor:
            for patch in np.nonzero(some.cell[i] == scenes.CELL_OF_PATCH)[0]:
                h[i, 1 + patch] = acts[0][i, 1 + patch]
            return h

        with m.edit(subject, "resid_post", layer=0, fn=restore):
            log_p = subject.model(**bad).logits[:, -1].log_softmax(-1)
        slow.append(m.lead(log_p, subject, clean)[i] - f_bad[i])
    np.testing.assert_allclose(asked[1], np.array(slow) / (f_clean - f_bad).mean(), atol=1e-3)


@torch.no_grad()
def test_contributions_of_units_add_up_to_what_the_block_writes(subject: Subject, items: object) -> None:
    added = m.contributions(subject, items, 4).view(6, 3, 24)
    (_, batch) = next(m.batches(subject, items, 6))
    with m.capture(subject, "mlp_out", positions=-1) as out:
        subject.model(**batch)
    ids = m.word_ids(subject, items.words)[:, 0]
    direction = subject.model.lm_head.weight[ids] * subject.layout.owner.norm.weight
    for layer in range(3):
        expected = (out[layer] * direction).sum(-1)
        torch.testing.assert_close(added[:, layer].sum(-1), expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_units_are_switched_off_by_their_number_at_all_positions(subject: Subject, prefix: object) -> None:
    units = torch.tensor([3, 24 + 5, 48 + 23])
    with m.switched_off(subject, units, 24), m.capture(subject, "mlp_act") as acts:
        prefix.read()
    for layer, unit in enumerate((3, 5, 23)):
        off = (acts[layer] == 0).all(0).all(0)
        assert off.nonzero()[:, 0].tolist() == [unit]


def test_entropy_of_a_unit_is_zero_for_one_domain_and_log_two_for_both() -> None:
    rates = torch.tensor([[0.5, 0.4, 0.0, 0.01], [0.5, 0.0, 0.8, 0.0]])
    entropy, domain = m.specific_units(rates, 0.5)
    np.testing.assert_allclose(entropy, [np.log(2), 0, 0, 0], atol=1e-6)
    assert domain.tolist() == [-1, 0, 1, -1]  # the last unit hardly ever fires


def test_of_equally_specific_units_those_that_fire_more_are_taken_wherever_they_sit() -> None:
    rates = torch.zeros(2, 200)
    rates[0, 100:] = torch.linspace(0.1, 0.9, 100)  # all specific to the first domain
    rates[:, :100] = 0.5
    _, domain = m.specific_units(rates, 0.01)
    assert (domain >= 0).nonzero()[:, 0].tolist() == [198, 199]


def test_firing_rates_are_shares_of_tokens(subject: Subject, items: object) -> None:
    image, text = m.firing_rates(subject, items, 4)
    (_, batch) = next(m.batches(subject, items, 6))
    with torch.no_grad(), m.capture(subject, "mlp_act", layers=1) as acts:
        subject.model(**batch)
    torch.testing.assert_close(image[:, 24:48], (acts[1][:, 1:65] > 0).float().mean(1))
    torch.testing.assert_close(text[2, 24:48], (acts[1][2, [0, *range(65, 70)]] > 0).float().mean(0))


@torch.no_grad()
def test_exchanging_units_moves_values_at_the_given_patches_only(subject: Subject, items: object) -> None:
    (_, batch) = next(m.batches(subject, items, 6))
    projector = subject.model.model.multi_modal_projector
    seen: list[torch.Tensor] = []
    one, two = torch.arange(6), torch.arange(6) + 10
    places = torch.rand(6, 64) < 0.5

    def hidden(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with m.units_exchanged(subject, places, first, second):
            handle = projector.linear_2.register_forward_pre_hook(
                lambda module, inputs: seen.append(inputs[0])
            )
            logits = subject.model(**batch).logits
            handle.remove()
        return seen.pop(), logits

    plain = subject.model(**batch).logits
    same, logits = hidden(one, one)
    assert torch.equal(logits, plain)
    moved, _ = hidden(one, two)
    for i in range(6):
        assert torch.equal(moved[i, ~places[i]], same[i, ~places[i]])
        assert torch.equal(moved[i, places[i], two[i]], same[i, places[i], one[i]])
        assert torch.equal(moved[i, places[i], one[i]], same[i, places[i], two[i]])
    assert not projector.linear_2._forward_pre_hooks


def test_states_are_those_of_the_chosen_tokens(subject: Subject, items: object) -> None:
    empty = scenes.pick(items.scenes.objects < 0, np.random.default_rng(0))
    states = m.read_states(subject, items, empty, 4)
    (_, batch) = next(m.batches(subject, items, 6))
    with torch.no_grad(), m.capture(subject, "resid_post") as acts:
        logits = subject.model(**batch).logits
    places = 1 + np.nonzero(items.cell[3] == scenes.CELL_OF_PATCH)[0]
    torch.testing.assert_close(states.object[2, 3], acts[1][3, places], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(states.last[3], acts[2][:, -1], atol=1e-5, rtol=1e-4)
    final = m.logit_lens_words(subject, states.last[:, :, None])[-1, :, 0]
    assert torch.equal(final, logits[:, -1].argmax(-1))


def test_words_at_empty_cells_would_be_seen_by_the_lens_s_null() -> None:
    true = torch.tensor([[3, 7], [4, 8]])
    top = torch.tensor([[[3, 7, 0, 0], [9, 9, 9, 8]]])  # layer, item, token
    np.testing.assert_allclose(m.names_one_of(top, true), [[0.5, 0.25]])
    np.testing.assert_allclose(m.names_one_of(top, true.roll(1, 0)), [[0, 0]])


# Dictionaries and metrics


def test_the_autoencoder_finds_a_planted_dictionary_and_keeps_unit_rows() -> None:
    torch.manual_seed(0)
    atoms = torch.linalg.qr(torch.randn(8, 8))[0]
    codes = torch.rand(2000, 8) * (torch.rand(2000, 8) < 0.2)
    z = 3 * codes @ atoms
    sae = m.train_autoencoder(z, 16, 0.4, 600, 0)
    torch.testing.assert_close(sae.W_d.norm(dim=1), torch.ones(16))
    with torch.no_grad():
        rest = (z - sae.encode(z) @ sae.W_d - sae.b_d).square().sum() / (z - z.mean(0)).square().sum()
    assert rest < 0.1
    assert (sae.W_d @ atoms.T).max(0).values.min() > 0.8


def test_the_best_feature_is_the_one_that_is_the_factor_and_f1_is_scikit_learn_s() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = torch.rand(400, 3, generator=generator) < 0.3
    noise = torch.rand(400, 5, generator=generator)
    features = torch.cat([noise, factors.float() * 2 + 0.1 * noise[:, :3]], 1)
    chosen_on = torch.arange(400) < 200
    feature, predicted = m.best_features(features, factors, chosen_on, n_thresholds=300)
    assert feature.tolist() == [5, 6, 7]
    np.testing.assert_allclose(m.f1_scores(predicted, factors), 1)
    wrong = predicted.roll(3, 0)
    expected = [f1_score(factors[:, k], wrong[:, k]) for k in range(3)]
    np.testing.assert_allclose(m.f1_scores(wrong, factors), expected, rtol=1e-5)


def test_a_factor_that_a_random_direction_holds_would_be_seen_by_the_dictionary_s_null() -> None:
    generator = torch.Generator().manual_seed(1)
    factor = torch.rand(600, 1, generator=generator) < 0.3
    direction = torch.nn.functional.normalize(torch.randn(16, 1, generator=generator), dim=0)
    z = 0.4 * torch.randn(600, 16, generator=generator) + factor * direction.T
    chosen_on = torch.arange(600) < 300
    scores = {}
    for name, features in {"random": (z @ direction).relu(), "neurons": torch.cat([z, -z], 1)}.items():
        _, predicted = m.best_features(features, factor, chosen_on)
        scores[name] = m.f1_scores(predicted[300:], factor[300:])[0]
    assert scores["random"] > scores["neurons"] + 0.05


def test_percentages_of_zeros_and_ones_have_a_width_even_if_all_agree() -> None:
    whole = m.percent(np.ones(20))
    assert (whole.value, whole.n) == (100, 20)
    assert whole.low < 90 < whole.high
    assert m.percent(np.array([0.5, 1.0, 0.0, 0.25])).value == pytest.approx(43.75)


def test_differences_that_all_agree_keep_the_width_of_what_was_not_seen() -> None:
    none, all_lost = m.points(np.ones(40), np.ones(40)), m.points(np.ones(40), np.zeros(40))
    assert (none.value, all_lost.value, all_lost.high) == (0, 100, 100)
    assert none.low == -none.high < 0
    assert 80 < all_lost.low < 95
    some = m.points(np.array([1.0, 0, 1, 1]), np.array([0.0, 0, 0, 1]))
    assert some.value == 50


def test_the_interval_of_several_networks_is_over_networks_and_shows_them() -> None:
    per_network = [np.full(50, x) for x in (10.0, 20.0, 30.0)]
    found = m.over_networks(per_network, (-100, 100))
    assert (found.n, found.values) == (3, (10, 20, 30))
    assert found.low < 0 < found.high  # three networks: Student's t is wide
    single = m.over_networks([100 * np.array([0.0, 1, 1, 0])], (-100, 100))
    assert (single.n, single.value) == (4, 50)


# The works and demonstrations


def test_the_works_have_known_leaves_valid_identifiers_and_no_doubles() -> None:
    data = yaml.safe_load((ROOT / "data" / "survey-works.yml").read_text())
    assert data["perspectives"].keys() == {leaf.split(".")[0] for leaf in data["leaves"]}
    for work in data["works"]:
        assert work.keys() == {"title", "year", "arxiv", "leaf"}
        assert work["leaf"] in data["leaves"]
        if work["arxiv"]:
            assert re.fullmatch(r"\d{4}\.\d{5}", work["arxiv"])
            assert work["year"] == 2000 + int(work["arxiv"][:2])
    for key in ("title", "arxiv"):
        given = [work[key] for work in data["works"] if work[key]]
        assert len(given) == len(set(given))
    assert data["leaves"].keys() - {work["leaf"] for work in data["works"]} == {"I.3"}


def test_every_leaf_has_a_demonstration_that_says_what_it_takes() -> None:
    data = yaml.safe_load((ROOT / "data" / "survey-works.yml").read_text())
    shown = data["demonstrations"]
    assert {d["leaf"] for d in shown} == data["leaves"].keys()
    names = [d["name"] for d in shown]
    assert len(names) == len(set(names))
    fields = {"name", "leaf", "asks", "measures", "needs", "intervenes", "passes", "fails"}
    assert all(d.keys() == fields and all(d.values()) for d in shown)
    source = "".join(cell.source for cell in chapters.code_cells(chapters.read("mllm-survey")))
    assert set(re.findall(r'(?:results\[|keep\(\s*)"(.+?)"', source)) == set(names)


# Real classes

LISTED = papers.read("mllm-survey").models


@cache
def listed(name: str) -> Subject:
    """A stand-in of a hub model, of three blocks."""
    return m.in_one_tile(load(hub_models.folder(name, 3)))


@cache
def large_scenes() -> object:
    return m.make_items(4, np.random.default_rng(0), zoom=7)


@pytest.mark.parametrize("model", LISTED)
def test_texts_of_any_length_read_behind_a_kept_image_are_answered_as_whole_prompts(model: str) -> None:
    subject, items = listed(model), large_scenes()
    others = [" ".join(["where ;"] * k + [text]) for k, text in enumerate(items.texts)]
    prefix = m.read_prefix(subject, items.texts, items.images)
    for texts in (items.texts, others):
        whole = m.next_logprobs(subject, texts, items.images)
        torch.testing.assert_close(prefix.asking(texts, items.images).read(), whole, atol=1e-4, rtol=1e-3)
    rolled = torch.arange(4).roll(1)
    expected = m.next_logprobs(subject, items.texts, items.images[rolled.numpy()])
    read = prefix.rows(rolled).asking(items.texts, items.images).read()
    torch.testing.assert_close(read, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("model", LISTED)
def test_a_change_in_one_cell_is_found_in_its_pixels_and_reaches_its_tokens(model: str) -> None:
    subject = listed(model)
    bright = np.zeros((17, 448, 448, 3), np.uint8)
    for cell in range(16):
        row, column = divmod(cell, 4)
        bright[cell, 112 * row : 112 * (row + 1), 112 * column : 112 * (column + 1)] = 255
    batch = subject.encode(["what"] * 17, list(bright))
    image = subject.spans(batch).image
    pixels = batch["pixel_values"].view(17, -1)
    change = (pixels[:16] - pixels[16]).abs().view(-1, *batch["pixel_values"].shape[1:])
    assert m.pixel_cells(change, image[:16]).argmax(1).tolist() == list(range(16))
    places = m.cell_places(subject, batch, np.arange(17) % 16)
    assert image.gather(1, places).all()


@pytest.mark.parametrize("model", LISTED)
def test_words_begin_with_tokens_of_their_own_whatever_stands_before_them(model: str) -> None:
    subject = listed(model)
    for kind in m.KINDS[::3]:  # colours, and yes or no
        ids = m.word_ids(subject, kind)
        for word, own in zip(kind, ids.tolist(), strict=True):
            assert all(word.startswith(subject.tokenizer.decode([t]).strip().lower()) for t in own)
        assert not set(ids[0].tolist()) & set(ids[1:].flatten().tolist())
    (ids,) = m.word_ids(subject, ["red"]).tolist()
    written = subject.tokenizer("it is red", add_special_tokens=False)["input_ids"][-1]
    alone = subject.tokenizer("Red", add_special_tokens=False)["input_ids"][0]
    assert {written, alone} & set(ids)
    assert written in ids


@pytest.mark.parametrize("model", LISTED)
def test_a_deaf_model_of_a_listed_class_does_not_hear_which_object_is_meant(model: str) -> None:
    subject, items = listed(model), large_scenes()

    def ask(name: str) -> torch.Tensor:
        some = m.replace(items, texts=[f"what colour is the {name} now"] * 4)
        return m.answers_under(subject, some, lambda rows, batch: m.deaf(subject, batch, scenes.OBJECTS), 4)

    torch.testing.assert_close(ask("star"), ask("moon"))
    assert (ask("star") - ask("house")).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("model", LISTED)
def test_units_of_a_listed_class_add_up_to_what_the_block_writes(model: str) -> None:
    subject, items = listed(model), large_scenes()
    (_, batch) = next(m.batches(subject, items, 4))
    with m.capture(subject, "mlp_out", positions=-1) as out:
        logits = subject.model(**batch).logits[:, -1]
    ids = m.word_ids(subject, items.words)
    best = ids.gather(1, logits.gather(1, ids).argmax(1, keepdim=True))[:, 0]
    direction = subject.model.get_output_embeddings().weight[best] * subject.layout.owner.norm.weight
    added = m.contributions(subject, items, 4).unflatten(1, (3, -1)).sum(-1)
    expected = torch.stack([(out[layer] * direction).sum(-1) for layer in range(3)], 1)
    torch.testing.assert_close(added, expected, atol=1e-3, rtol=1e-3)


SMALLER = {"n_maps": 8, "n_items": 12, "n_traced": 8, "n_groups": 2, "ig_steps": 1, "sae_steps": 20}
SMALLER |= {"batch_size": 8, "state_layer": 1, "knockout_window": 2, "device": "cpu", "dtype": "float32"}
NEEDS_ANSWERS = (2, 4, 5, 7, 9, 16, 17)


@pytest.mark.parametrize(
    ("model", "preset", "depth"),
    hub_models.cases(LISTED, LISTED[-1], depth=2, colab="llava-hf/llava-interleave-qwen-0.5b-hf"),
)
def test_each_listed_model_reaches_the_end_and_what_it_cannot_do_is_said(
    model: str, preset: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights name no colour: nothing that rests on answers is judged."""
    of = {"model": hub_models.folder(model, depth)}
    run = hub_models.run_chapter("mllm-survey", preset, monkeypatch, **SMALLER | of)
    run.check_task_not_done("mllm-survey", NEEDS_ANSWERS, "an accuracy of")
    assert "not known here" in run.records["mllm-survey.23"].reason
    assert run.records["mllm-survey.6"].verdict != "not testable here"  # of features, not of answers
    said = " ".join(f"{row.note} {row.reason}" for row in run.records.values())
    assert not re.search("partner|small tower|small model", said)
