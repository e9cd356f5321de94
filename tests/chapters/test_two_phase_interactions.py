"""The method cells of notebooks/two-phase-interactions.ipynb: the very code that the reader reads."""

import csv
import io
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import BertConfig, PreTrainedTokenizerFast, ViTConfig

from data.worlds.digits import digits
from lib import chapters

m = chapters.method("two-phase-interactions")


def random_game(n: int, *batch: int, seed: int = 0) -> Tensor:
    return torch.randn(*batch, 2**n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def members(mask: int, n: int) -> list[int]:
    return [i for i in range(n) if mask >> i & 1]


def subsets(players: list[int]) -> list[frozenset[int]]:
    return [frozenset(c) for size in range(len(players) + 1) for c in combinations(players, size)]


def bits(players: frozenset[int] | set[int]) -> int:
    return sum(1 << i for i in players)


def planted(n: int, ands: dict[int, float], ors: dict[int, float]) -> Tensor:
    """A game by its definition: an AND fires if all its players are there, an OR if any is."""
    v = torch.zeros(2**n, dtype=torch.float64)
    for mask in range(2**n):
        v[mask] = sum(c for T, c in ands.items() if T & mask == T) + sum(
            c for T, c in ors.items() if T & mask
        )
    return v


# Masks and log-odds


def test_bit_i_of_a_mask_says_whether_player_i_stays_and_what_belongs_to_no_player_always_stays() -> None:
    players = torch.tensor([[2, -1], [0, 0]])
    kept = m.kept(players, 3)
    assert kept.shape == (8, 2, 2)
    for mask in range(8):
        present = members(mask, 3)
        assert kept[mask].tolist() == [[2 in present, True], [0 in present, 0 in present]]


def test_log_odds_are_those_of_the_softmax_and_stay_finite_where_the_probability_rounds_to_one() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 3, 4, 1])
    p = logits.softmax(-1)[range(4), label]
    torch.testing.assert_close(m.log_odds(logits, label), (p / (1 - p)).log())
    sure = torch.tensor([[200.0, 0.0, 0.0]])
    assert m.log_odds(sure, torch.tensor([0])).item() == pytest.approx(200 - math.log(2))


# The transforms


def test_both_transforms_equal_the_double_sums_of_their_definitions() -> None:
    n = 5
    v = random_game(n)
    for mask in range(2**n):
        S = members(mask, n)
        total = sum((-1) ** (len(S) - len(T)) * v[bits(T)] for T in subsets(S))
        either = -sum((-1) ** (len(S) - len(T)) * v[2**n - 1 - bits(T)] for T in subsets(S))
        assert m.moebius(v)[mask].item() == pytest.approx(total.item(), abs=1e-12)
        assert m.or_moebius(v)[mask].item() == pytest.approx(either.item(), abs=1e-12)


def test_zeta_sums_over_subsets_and_over_what_a_set_meets_and_the_transposes_are_transposes() -> None:
    n = 4
    effects, y = random_game(n), random_game(n, seed=1)
    for mask in range(2**n):
        inside = sum(effects[T] for T in range(2**n) if T & mask == T)
        met = sum(effects[T] for T in range(2**n) if T & mask)
        assert m.zeta(effects)[mask].item() == pytest.approx(float(inside), abs=1e-12)
        assert m.or_zeta(effects)[mask].item() == pytest.approx(float(met), abs=1e-12)
    assert torch.dot(m.zeta(effects), y).item() == pytest.approx(
        torch.dot(effects, m.zeta_transposed(y)).item()
    )
    effects[0] = 0
    own = m.or_zeta_transposed(y)
    assert torch.dot(m.or_zeta(effects), y).item() == pytest.approx(torch.dot(effects, own).item())


def test_transforms_invert_each_other_in_any_batch_and_leave_their_argument_alone() -> None:
    v = random_game(7, 2, 3)
    before = v.clone()
    torch.testing.assert_close(m.zeta(m.moebius(v)), v)
    torch.testing.assert_close(m.moebius(v)[1, 2], m.moebius(v[1, 2]))
    assert torch.equal(v, before)


def test_the_axioms_efficiency_dummy_symmetry_and_recursion() -> None:
    n = 5
    v = random_game(n)
    effects = m.moebius(v)
    assert effects.sum().item() == pytest.approx(v[-1].item())
    dummy = v.view(2, 2**4)[0].repeat(2)  # player 4 changes nothing
    assert m.moebius(dummy)[2**4 :].abs().max() < 1e-12
    swapped = v.view([2] * n).transpose(-1, -3).reshape(-1)  # players 0 and 2 change places
    torch.testing.assert_close(m.moebius(swapped), effects.view([2] * n).transpose(-1, -3).reshape(-1))
    always = m.moebius(v.view(2**4, 2)[:, 1])  # player 0 is always there
    torch.testing.assert_close(effects.view(2**4, 2)[:, 1], always - effects.view(2**4, 2)[:, 0])


def test_a_planted_and_is_one_effect_and_a_planted_or_is_one_effect_of_the_other_transform() -> None:
    one_and, one_or = planted(6, {0b101100: 2.5}, {}), planted(6, {}, {0b000111: -1.5})
    expected = torch.zeros(64, dtype=torch.float64)
    expected[0b101100] = 2.5
    torch.testing.assert_close(m.moebius(one_and), expected)
    either = torch.zeros(64, dtype=torch.float64)
    either[0b000111] = -1.5
    torch.testing.assert_close(m.or_moebius(one_or)[1:], either[1:])


# Universal matching


def test_any_split_rebuilds_the_output_on_every_mask_by_the_definition_of_and_and_or() -> None:
    n = 5
    v, part = random_game(n), random_game(n, seed=1)
    v[0] = part[0] = 0
    effects = m.effects_of_split(part, v - part, torch.zeros_like(v))
    both = effects.both.numpy()
    slow = [
        sum(both[0, T] * (T & S == T) + both[1, T] * bool(T & S) for T in range(1, 2**n)) for S in range(2**n)
    ]
    np.testing.assert_allclose(slow, v.numpy(), atol=1e-12)
    torch.testing.assert_close(effects.rebuilt(), v)


def test_single_players_and_the_empty_set_have_no_or_effect() -> None:
    effects = m.effects_of_split(random_game(4), random_game(4, seed=1), random_game(4, seed=2)).both
    single = [1, 2, 4, 8]
    assert not effects[1, single].any()
    assert effects[0, single].all()
    assert not effects[:, 0].any()


# The sparsest split

PLANTED = ({0b000011: 1.0, 0b111000: -2.0, 0b000100: 0.7}, {0b011110: 1.5, 0b100001: -0.8})


@pytest.mark.parametrize("solver", ["programme", "admm"])
def test_a_planted_sparse_game_is_found_with_its_own_norm(solver: str) -> None:
    v = planted(6, *PLANTED)
    size = sum(map(abs, [*PLANTED[0].values(), *PLANTED[1].values()]))
    if solver == "programme":
        effects = m.linear_programme(v.numpy(), 0.0)
        exact = 1e-8
    else:
        found, _ = m.sparsest_split(v[None], torch.zeros(1, dtype=torch.float64), 1500)
        effects, exact = m.Effects(found.both[0], found.delta[0]), 2e-3
    assert m.l1(effects).item() == pytest.approx(size, rel=exact)
    for type_, terms in enumerate(PLANTED):
        for T, c in terms.items():
            assert effects.both[type_, T].item() == pytest.approx(c, abs=20 * exact)
    torch.testing.assert_close(effects.rebuilt(), v, atol=1e-8, rtol=0)


def test_many_splits_at_once_come_near_the_programme_and_their_lower_bound_is_one() -> None:
    v = torch.stack([random_game(6, seed=s).cumsum(0) for s in range(4)])
    v = v - v[:, :1]
    bound = 0.05 * v[:, -1].abs()
    found, low = m.sparsest_split(v, bound, 1500)
    exact = torch.stack(
        [m.priced(m.linear_programme(a.numpy(), b.item())) for a, b in zip(v, bound, strict=True)]
    )
    assert (low <= exact * (1 + 1e-9)).all()
    assert (low > 0.95 * exact).all()
    assert (m.priced(found) >= exact * (1 - 1e-9)).all()
    assert (m.priced(found) < 1.01 * exact).all()
    assert (found.delta.abs() <= bound[:, None] * (1 + 1e-9)).all()
    torch.testing.assert_close(found.rebuilt() + found.delta, v, atol=1e-8, rtol=0)


def test_no_multiplier_whatsoever_gives_a_bound_above_the_optimum() -> None:
    v = random_game(5, seed=3)
    v = v - v[0]
    exact = m.priced(m.linear_programme(v.numpy(), 0.1))
    wild = random_game(5, 500, seed=4)
    bounds = m.lower_bound(v.expand(500, -1), torch.full((500,), 0.1, dtype=torch.float64), wild)
    assert (bounds <= exact).all()


def test_ties_are_broken_towards_low_orders_or_high_ones_as_asked() -> None:
    """x_0 + x_1 costs as much as (both) plus (either)."""
    v = planted(3, {0b001: 1.0, 0b010: 1.0}, {})
    low, high = (m.linear_programme(v.numpy(), 0.0, tie) for tie in (0.1, -0.1))
    assert m.l1(low).item() == pytest.approx(m.l1(high).item()) == pytest.approx(2.0)
    assert low.both[0, [1, 2]].tolist() == pytest.approx([1, 1])
    assert high.both[:, 0b011].tolist() == pytest.approx([1, 1])


def test_the_gradient_version_descends_to_a_feasible_split_above_the_optimum() -> None:
    v = random_game(5, 3, seed=5)
    v = v - v[:, :1]
    bound = 0.05 * v[:, -1].abs()
    found = m.gradient_split(v, bound, 400)
    start = m.effects_of_split(v / 2, v / 2, torch.zeros_like(v))
    exact = [m.priced(m.linear_programme(a.numpy(), b.item())) for a, b in zip(v, bound, strict=True)]
    assert (m.priced(found) < m.priced(start)).all()
    assert (m.priced(found) >= torch.stack(exact) * (1 - 1e-9)).all()
    assert (found.delta.abs() <= bound[:, None] * (1 + 1e-9)).all()
    torch.testing.assert_close(found.rebuilt() + found.delta, v, atol=1e-8, rtol=0)


@pytest.mark.parametrize("extractor", m.EXTRACTORS)
def test_every_extractor_keeps_the_shape_and_rebuilds_the_output(extractor: str) -> None:
    v = random_game(4, 2, 3)
    v = v - v[..., :1]
    effects, low = m.extract(v, extractor, 50, 0.02)
    assert effects.both.shape == (2, 3, 2, 16)
    assert low.shape == (2, 3)
    torch.testing.assert_close(effects.rebuilt() + effects.delta, v, atol=1e-8, rtol=0)
    if extractor == "and_only":
        torch.testing.assert_close(effects.both[..., 0, 1:], m.moebius(v)[..., 1:])
        assert not effects.both[..., 1, :].any()


# Strength by order


def test_strength_counts_what_reaches_tau_by_order_and_type() -> None:
    both = torch.zeros(1, 2, 8, dtype=torch.float64)
    both[0, 0, 0b001], both[0, 0, 0b011], both[0, 1, 0b101], both[0, 1, 0b111] = 0.5, -2.0, 1.0, 0.09
    effects = m.Effects(both, torch.zeros(1, 8))
    assert m.strength(effects, torch.tensor([0.1])).tolist() == [[0.5, 3.0, 0.0]]
    assert m.strength(effects, torch.tensor([0.0])).tolist() == [[0.5, 3.0, 0.09]]
    assert m.strength(effects, torch.tensor([1.0])).tolist() == [[0.0, 3.0, 0.0]]


def test_a_distribution_is_of_mean_strengths_and_sums_to_one() -> None:
    strengths = torch.tensor([[3.0, 1.0], [0.0, 4.0]])
    shares = m.distribution(strengths)
    assert shares.tolist() == [3 / 8, 5 / 8]
    assert m.mean_order(shares).item() == pytest.approx(1 * 3 / 8 + 2 * 5 / 8)


# The theory


def dense(n: int, sigma2: float) -> Tensor:
    """M_hat as theorem 3 writes it."""
    J = torch.tensor([[float(T & S == T) for T in range(2**n)] for S in range(2**n)], dtype=torch.float64)
    c = torch.tensor([2.0 ** mask.bit_count() * sigma2 for mask in range(2**n)], dtype=torch.float64)
    return torch.linalg.solve(J.T @ J + 2**n * torch.diag(c), J.T @ J)


@pytest.mark.parametrize("sigma2", [1e-5, 0.03, 2.0])
def test_the_fast_form_of_theorem_3_equals_the_dense_solve(sigma2: float) -> None:
    w = random_game(6, 3)
    fast = m.regressed(w, torch.full((3,), sigma2, dtype=torch.float64))
    torch.testing.assert_close(fast, w @ dense(6, sigma2).T, atol=1e-9, rtol=1e-9)


def test_without_noise_the_regression_gives_the_final_effects_back() -> None:
    w = random_game(6)
    torch.testing.assert_close(m.regressed(w, torch.tensor(0.0, dtype=torch.float64)), w)


def test_theorem_3_minimises_the_expected_loss_under_noisy_switches() -> None:
    """Monte Carlo over the noise of the switches, not over its penalty."""
    n, sigma2 = 3, 0.05
    w_star = random_game(n, seed=6)
    J = torch.tensor([[float(T & S == T) for T in range(8)] for S in range(8)], dtype=torch.float64)
    noise = torch.randn(40_000, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy = J + noise * (sigma2 * 2.0 ** m.order(n).double()).sqrt()
    rows, targets = noisy.flatten(0, 1), (J @ w_star).repeat(40_000)
    fitted = torch.linalg.solve(rows.T @ rows, rows.T @ targets)
    closed = m.regressed(w_star, torch.tensor(sigma2, dtype=torch.float64))
    assert (fitted - closed).abs().max() < 0.02
    assert (fitted - w_star).abs().max() > 0.1


def test_the_minimiser_by_least_squares_is_theorem_3_only_with_penalties_that_double() -> None:
    w, doubling = random_game(5), 2.0 ** m.order(5).double()
    closed = m.regressed(w, torch.tensor(0.1, dtype=torch.float64))
    torch.testing.assert_close(m.minimiser(w, 0.1 * doubling), closed)
    assert (m.minimiser(w, 0.1 * torch.ones_like(doubling)) - closed).abs().max() > 0.05


def test_row_norms_are_those_of_every_row_of_their_order() -> None:
    n = 6
    norms = dense(n, 0.02).norm(dim=1)
    expected = m.row_norms(n, 0.02)[m.order(n)]
    torch.testing.assert_close(norms, expected, atol=1e-10, rtol=1e-9)


def test_row_norms_have_the_values_that_were_worked_out_by_hand_and_the_limit_root_ten() -> None:
    assert m.row_norms(4, 1.0).tolist() == pytest.approx([0.5570, 0.2195, 0.0805, 0.0284, 0.0098], abs=1e-4)
    ratios = m.row_norms(8, 1e6)
    assert (ratios[:-1] / ratios[1:]).tolist() == pytest.approx([math.sqrt(10)] * 8, abs=1e-4)


def test_proposition_1_fails_by_a_hair_for_twelve_variables_and_little_noise() -> None:
    """In extended precision, by sums over orders instead of Kronecker products."""
    n, sigma2 = 12, np.longdouble(1e-7)
    K = np.array([[2, np.sqrt(np.longdouble(0.5))], [np.sqrt(np.longdouble(0.5)), 0.5]], dtype=np.longdouble)
    root = np.sqrt(np.longdouble(4.25))
    values = [(np.longdouble(2.5) - root) / 2, (np.longdouble(2.5) + root) / 2]
    vectors = [np.array([K[0, 1], value - K[0, 0]]) for value in values]
    Q = np.stack([vector / np.sqrt((vector**2).sum()) for vector in vectors], 1)

    def norm(k: int) -> np.longdouble:
        """Of a row with k players; an entry depends on how many of these and of the others a column has."""
        total = np.longdouble(0)
        choose = {(a, b): math.comb(a, b) for a in range(n + 1) for b in range(n + 1)}
        pair = Q[:, None, :] * Q[None, :, :]  # row bit, column bit, eigenvalue
        for p in range(k + 1):
            for q in range(n - k + 1):
                groups = [(p, pair[1, 1]), (k - p, pair[1, 0]), (q, pair[0, 1]), (n - k - q, pair[0, 0])]
                spectrum = np.array([1], dtype=np.longdouble)  # by the number of large eigenvalues
                for count, (small, large) in groups:
                    for _ in range(count):
                        spectrum = np.convolve(spectrum, [small, large])
                e = values[0] ** np.arange(n, -1, -1) * values[1] ** np.arange(n + 1)
                entry = (spectrum * e / (e + 2**n * sigma2)).sum() * np.sqrt(np.longdouble(2)) ** (p + q - k)
                total += choose[k, p] * choose[n - k, q] * entry**2
        return np.sqrt(total)

    exact = [float(norm(k)) for k in (1, 2, 3)]
    assert m.row_norms(n, 1e-7)[1:4].tolist() == pytest.approx(exact, abs=1e-8)
    assert exact[0] < exact[1]


def test_noise_doubles_its_variance_with_each_order_on_outputs_and_not_on_effects() -> None:
    generator = torch.Generator().manual_seed(0)
    assert m.noise_growth(5, 20_000, generator, on_outputs=True) == pytest.approx(2, abs=0.05)
    assert m.noise_growth(5, 20_000, generator, on_outputs=False) == pytest.approx(1, abs=0.05)


# Fitting the theory


def test_a_network_that_obeys_the_theory_is_fitted_with_its_own_noise_and_no_distance() -> None:
    w = random_game(5, 2, 4, 2)
    w[..., 0] = 0
    grid = torch.tensor([0.0, 1e-3, 1e-2, 1e-1], dtype=torch.float64)

    def theory(noise: Tensor) -> Tensor:
        return m.regressed(w, noise)

    obeying = theory(grid[2])
    obeying[..., 0] = 0
    total = theory(grid[2])[..., 1:].sum((-1, -2)).abs().mean(-1, keepdim=True).expand(2, 4)
    real = m.strength(m.Effects(obeying, obeying), 0.03 * total)
    found = m.fit(theory, grid, real[None], 0.03)
    assert found.best.tolist() == [[0.01, 0.01]]
    assert found.held_out.abs().max() < 1e-12
    torch.testing.assert_close(found.shares[0], m.distribution(real))
    torch.testing.assert_close(found.effects[0], theory(grid[2]))


def test_the_distance_is_measured_on_inputs_that_the_parameter_was_not_fitted_to() -> None:
    """Even inputs want one value, odd inputs the other: each half is judged with the wrong one."""
    shapes = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)  # of order 1, of order 2

    def predict(value: Tensor) -> Tensor:
        both = torch.zeros(1, 2, 2, 4, dtype=torch.float64)
        both[..., 0, 1], both[..., 0, 3] = 1 - value, value
        return both

    real = shapes[[0, 1]][None, None]  # checkpoint, net, input, order
    found = m.fit(predict, torch.tensor([0.0, 1.0], dtype=torch.float64), real, 0.0)
    assert found.held_out.item() == 1.0


def test_shuffling_within_orders_keeps_each_orders_values_and_moves_them() -> None:
    w = random_game(6, 2, 3)
    mixed = m.shuffled_within_orders(w, 0)
    for k in range(7):
        own = m.order(6) == k
        torch.testing.assert_close(mixed[..., own].sort(-1)[0], w[..., own].sort(-1)[0])
    assert (mixed != w).double().mean() > 0.8
    assert not torch.equal(mixed[0, 0].argsort(), mixed[0, 1].argsort())


def test_onset_is_where_a_tenth_of_the_rise_is_made_between_checkpoints() -> None:
    epochs = [0, 10, 20, 40]
    assert m.onset(epochs, np.array([9.0, 0.0, 1.0, 2.0]), 1) == pytest.approx(12.0)
    assert m.onset(epochs, np.array([9.0, 0.0, 0.0, 2.0]), 1) == pytest.approx(22.0)
    assert m.onset(epochs, np.array([9.0, 3.0, 2.0, 1.0]), 1) == 40.0


# Networks


def test_masking_behind_the_stem_equals_masking_by_hand() -> None:
    torch.manual_seed(0)
    network = m.convolutional(m.CONVOLUTIONS["cnn"], 1, 8, 10).eval()
    x, players = torch.rand(1, 1, 8, 8), m.patches(8, 4, 6, np.random.default_rng(0))
    keep = m.kept(players, 6)
    out = network(x, keep)
    for mask in (0, 5, 63):
        torch.testing.assert_close(out[mask], network.rest(network.stem(x) * keep[mask])[0])
    assert isinstance(network.stem[-1], torch.nn.ReLU)
    assert sum(isinstance(layer, torch.nn.ReLU) for layer in network.stem) == 2


def test_vgg_has_the_convolutions_of_the_paper_that_introduced_it() -> None:
    for name, weights in (("vgg11", 9_220_480), ("vgg16", 14_714_688)):
        network = m.convolutional(m.CONVOLUTIONS[name], 3, 32, 10)
        convolutions = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
        assert sum(w.numel() for layer in convolutions for w in layer.parameters()) == weights
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def small_stack(n: int, dtype: str = "float64"):
    networks = []
    for seed in range(n):
        torch.manual_seed(seed)
        networks.append(m.perceptron(6, 3, depth=1, width=5))
    return m.Stack(networks, "cpu", dtype)


def test_outputs_are_the_log_odds_of_each_network_on_each_masked_input() -> None:
    stack, n = small_stack(2), 3
    x = torch.rand(2, 1, 1, 6, dtype=torch.float64)
    labels = torch.tensor([2, 0])
    players = torch.tensor([[[0, 0, 1, -1, 2, 2]], [[-1, 2, 1, 0, 0, 1]]])
    v = m.outputs(stack, x, labels, players, n)
    assert v.dtype == torch.float64
    for net in range(2):
        torch.manual_seed(net)
        alone = m.perceptron(6, 3, depth=1, width=5).double()
        for item in range(2):
            for mask in range(2**n):
                present = members(mask, n)
                keep = torch.tensor([[p < 0 or p in present for p in players[item, 0].tolist()]])
                p = alone((x[item] * keep)[None]).softmax(-1)[0, labels[item]]
                assert v[net, item, mask].item() == pytest.approx((p / (1 - p)).log().item(), abs=1e-9)


def test_networks_side_by_side_are_trained_as_torch_trains_each_alone() -> None:
    stack = small_stack(2)
    x = torch.rand(20, 1, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.stack([torch.arange(20) % 3, torch.arange(20) // 7])
    seeds = [4, 5]
    list(m.train(stack, x, labels, 3, lr=0.1, momentum=0.9, batch_size=8, seeds=seeds))
    for net, seed in enumerate(seeds):
        torch.manual_seed(net)
        alone = m.perceptron(6, 3, depth=1, width=5).double()
        optimiser = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
        order = torch.Generator().manual_seed(seed)
        for _ in range(3):
            for batch in torch.randperm(20, generator=order).split(8):
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(alone(x[batch]), labels[net, batch]).backward()
                optimiser.step()
        for name, weight in alone.named_parameters():
            torch.testing.assert_close(stack.params[name][net], weight.detach())


def test_a_random_walker_steps_as_far_as_its_leader_elsewhere_and_leaves_it_undisturbed() -> None:
    x = torch.rand(8, 1, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = (torch.arange(8) % 3).expand(2, -1)
    moved = {}
    for leaders in ((), (0,)):
        stack = m.Stack([m.perceptron(6, 3, depth=1, width=5) for _ in range(2)], "cpu", "float64")
        for name, weight in small_stack(1).params.items():
            stack.params[name] = weight.repeat(2, *[1] * (weight.ndim - 1))
        start = {name: weight.clone() for name, weight in stack.params.items()}
        list(m.train(stack, x, labels, 1, lr=0.1, momentum=0.9, batch_size=8, seeds=[0, 0], leaders=leaders))
        moved[bool(leaders)] = {name: stack.params[name] - start[name] for name in start}
    for name, step in moved[True].items():
        torch.testing.assert_close(step[0], moved[False][name][0])
        torch.testing.assert_close(step[1].norm(), step[0].norm())
        assert abs(torch.cosine_similarity(step[0].flatten(), step[1].flatten(), 0)) < 0.99


def test_flipped_draws_a_share_anew_and_nothing_at_zero() -> None:
    labels = torch.arange(1000) % 10
    assert torch.equal(m.flipped(labels, 0.0, 10, 0), labels)
    changed = (m.flipped(labels, 0.5, 10, 0) != labels).double().mean().item()
    assert changed == pytest.approx(0.45, abs=0.03)  # a tenth of those drawn anew stay what they were
    assert torch.equal(m.flipped(labels, 0.5, 10, 0), m.flipped(labels, 0.5, 10, 0))


def test_players_are_whole_patches_of_the_middle_and_eight_fill_the_middle_columns() -> None:
    players = m.patches(8, 4, 8, np.random.default_rng(0))
    assert (players[:, [0, 1, 6, 7]] == -1).all()
    assert sorted(players[::2, 2:6:2].flatten().tolist()) == list(range(8))
    blocks = players.view(4, 2, 4, 2)
    assert (blocks == blocks[:, :1, :, :1]).all()
    many = m.patches(16, 8, 10, np.random.default_rng(0))
    assert set(many[[0, 1, 14, 15]].flatten().tolist() + many[:, [0, 1, 14, 15]].flatten().tolist()) == {-1}
    assert sorted(set(many.flatten().tolist())) == list(range(-1, 10))


# Transformers and data of their own


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT shape with its tokenizer, and texts in GLUE's form."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["the", "gripping", "film", "was", "dull", "slow", "brilliant", "acting", "story", "music"]
    words += ["scenes", "rushed", "ending", "lovely"]
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    raw = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = Lowercase(), Whitespace()
    raw.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=raw, **names).save_pretrained(folder)
    BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        pad_token_id=0,
    ).save_pretrained(folder)
    rng = np.random.default_rng(0)
    for name in ("train", "dev"):
        with (folder / f"{name}.tsv").open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t")
            writer.writerow(["sentence", "label"])
            for i in range(30):
                chosen = " ".join(rng.permutation(words[1:3] + words[4:])[: 5 + i % 5])
                writer.writerow([f"The {chosen} .", i % 2])
    return folder


def make(model: object, data: str, **changes: int | str) -> tuple:
    given = {"split": "test", "n_train": 20, "n_inputs": 3, "n": 4, "grid": 4, "seed": 0} | changes
    return m.make_examples(str(model), data, given.pop("split"), **given)


def test_a_bert_is_trained_and_masked_word_by_word(bert: Path) -> None:
    examples, build = make(bert, str(bert))
    for ids, players in zip(examples.test[examples.probes], examples.players, strict=True):
        assert sorted(set(players.tolist())) == [-1, 0, 1, 2, 3]
        assert (players[ids < 6] == -1).all()  # padding, [CLS], [SEP], "the" (a stop word)
    stack = m.Stack([build(1.0), build(1.0)], "cpu", "float32")
    stack.network.eval()
    chosen = examples.test[examples.probes]
    v = m.outputs(stack, chosen, examples.test_labels[examples.probes], examples.players, 4)
    assert v.shape == (2, 3, 16)
    by_hand = torch.where((examples.players[0] < 0), chosen[0], 4)[None]  # 4 is [MASK]
    logits = stack.logits(by_hand)
    expected = m.log_odds(logits[:, 0], examples.test_labels[examples.probes][:1].expand(2))
    torch.testing.assert_close(v[:, 0, 0], expected, atol=1e-5, rtol=1e-5)
    before = {name: weight.clone() for name, weight in stack.params.items()}
    labels = examples.train_labels.expand(2, -1)
    list(m.train(stack, examples.train, labels, 1, lr=0.1, momentum=0.9, batch_size=10, seeds=[0, 1]))
    assert all(torch.isfinite(weight).all() for weight in stack.params.values())
    assert any(not torch.equal(before[name], weight) for name, weight in stack.params.items())


def test_padding_changes_nothing_that_a_bert_says(bert: Path) -> None:
    _, build = make(bert, str(bert))
    network = build(5.0).eval()
    ids = torch.tensor([[2, 6, 7, 8, 3]])
    padded = torch.nn.functional.pad(ids, (0, 4), value=0)
    torch.testing.assert_close(network(ids), network(padded), atol=1e-5, rtol=1e-5)


def test_an_image_transformer_is_trained_in_its_own_shape_with_scaled_weights(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTConfig(image_size=16, patch_size=4, num_channels=3, **shape).save_pretrained(tmp_path / "vit")
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        cells = []
        for _ in range(24):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(file, format="PNG")
            cells.append({"bytes": file.getvalue()})
        table = pa.table({"img": cells, "label": list(np.arange(24) % 3)})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    examples, build = make(tmp_path / "vit", str(tmp_path), n=5)
    assert examples.train.shape == (20, 3, 16, 16)
    assert examples.test.shape == (24, 3, 16, 16)
    assert examples.train.min() >= -1
    assert examples.train.max() <= 1
    assert examples.players.shape == (3, 16, 16)
    torch.manual_seed(0)
    one = build(1.0)
    torch.manual_seed(0)
    three = build(3.0)
    name = next(name for name, _ in one.named_parameters() if name.endswith("q_proj.weight"))
    weights = [dict(network.named_parameters())[name] for network in (one, three)]
    torch.testing.assert_close(3 * weights[0], weights[1])
    stack = m.Stack([one], "cpu", "float32")
    list(
        m.train(
            stack, examples.train, examples.train_labels[None], 1, lr=0.1, momentum=0.9, batch_size=10,
            seeds=[0],
        )
    )  # fmt: skip
    v = m.outputs(stack, examples.test[:2], examples.test_labels[:2], examples.players[:2], 5)
    assert torch.isfinite(v).all()
    held = make(tmp_path / "vit", str(tmp_path), n_train=10, split="validation")[0]
    rows = {tuple(image.flatten()[:50].tolist()) for image in held.train}
    assert not rows & {tuple(image.flatten()[:50].tolist()) for image in held.test}


def test_training_digits_and_measured_digits_are_those_of_their_splits() -> None:
    examples, build = make("mlp", "digits", n=8)
    assert torch.equal(examples.train_labels, torch.from_numpy(digits("train").labels[:20]))
    assert torch.equal(examples.test_labels, torch.from_numpy(digits("test").labels))
    assert len(set(examples.probes.tolist())) == 3
    torch.manual_seed(0)
    plain = dict(build(1.0).named_parameters())
    torch.manual_seed(0)
    scaled = dict(build(2.0).named_parameters())
    for name, weight in plain.items():
        torch.testing.assert_close(scaled[name], weight * (2 if weight.ndim > 1 else 1))


@pytest.mark.parametrize("kind", ["BERT", "ViT", "linear"])
def test_untrained_networks_are_measured_from_the_empty_set(kind: str) -> None:
    v = m.untrained(kind, 0.02, 3, 2, [0, 1], 0)
    assert v.shape == (2, 2, 8)
    assert v.dtype == torch.float64
    assert not v[..., 0].any()
    assert (v[0] != v[1]).any()


# Bad input

GOOD = {
    "n_players": 8,
    "n_problems": 1000,
    "extractor": "admm",
    "split": "test",
    "label_noise": 0.1,
    "memory": 8 * 2**30,
    "n_inputs": 6,
    "n_seeds": 5,
    "n_train": 500,
}


def test_good_parameters_pass() -> None:
    m.check_parameters(**GOOD)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_noise": 1.2}, r"label_noise=1.2: expected a share of the labels, 0 to 1"),
        ({"label_noise": -0.1}, "label_noise=-0.1"),
        ({"label_noise": math.nan}, "label_noise=nan"),
        ({"extractor": "sgd"}, "extractor='sgd': expected one of admm, lp, adam, and_only"),
        ({"split": "train"}, "split='train': expected test, or validation"),
        ({"n_players": 2}, "n_players=2: expected at least 3"),
        ({"n_seeds": 1}, "n_seeds=1: expected at least 2"),
        ({"n_inputs": 1}, "n_inputs=1: expected at least 2"),
    ],
)
def test_what_cannot_work_is_refused_with_what_was_expected(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        m.check_parameters(**GOOD | changes)


def test_too_many_variables_are_refused_with_the_memory_they_would_need() -> None:
    with pytest.raises(ValueError, match=r"n_players=30: 2\^30 masks of 1000 inputs.*8\.0 GiB") as error:
        m.check_parameters(**GOOD | {"n_players": 30, "extractor": "and_only"})
    needed = m.memory_needed(30, 1000, "and_only")
    assert f"{needed / 2**30:,.1f} GiB" in str(error.value)
    largest = int(str(error.value).split("at most n_players=")[1].split(",")[0])
    assert m.memory_needed(largest, 1000, "and_only") <= GOOD["memory"]
    assert m.memory_needed(largest + 1, 1000, "and_only") > GOOD["memory"]


def test_a_grid_with_too_few_patches_or_too_many_for_the_map_is_refused() -> None:
    for grid in (2, 9):
        with pytest.raises(ValueError, match=f"grid={grid}: 8 players need as many patches"):
            m.patches(8, grid, 8, np.random.default_rng(0))


def test_texts_that_are_missing_or_of_another_form_or_too_short_are_refused(
    bert: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.tsv is missing; expected train\.tsv and dev\.tsv"):
        m.sentences(str(tmp_path), "test", 5, 0)
    (tmp_path / "train.tsv").write_text("text\tlabel\nfine\t1\n")
    with pytest.raises(LookupError, match=r"columns \['text', 'label'\]; needed: sentence, label"):
        m.sentences(str(tmp_path), "test", 5, 0)
    with pytest.raises(ValueError, match="n_inputs=3: only 0 test sentences have 11 content words"):
        make(bert, str(bert), n=11)
