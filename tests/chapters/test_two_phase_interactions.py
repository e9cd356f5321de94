"""The method cells of notebooks/two-phase-interactions.ipynb: the very code that the reader reads."""

import io
import math
from itertools import combinations

import hub_models
import hub_nets
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from PIL import Image
from scipy.optimize import linprog
from torch import Tensor

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
    for label in range(5):
        p = logits.softmax(-1)[:, label]
        torch.testing.assert_close(m.log_odds(logits, label), (p / (1 - p)).log())
    sure = torch.tensor([[200.0, 0.0, 0.0]])
    assert m.log_odds(sure, 0).item() == pytest.approx(200 - math.log(2))


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


def test_zeta_sums_over_subsets_and_over_what_a_set_meets_and_the_transpose_is_the_transpose() -> None:
    n = 4
    effects, y = random_game(n, 2), random_game(n, seed=1)
    effects[:, 0] = 0
    for mask in range(2**n):
        inside = sum(effects[0, T] for T in range(2**n) if T & mask == T)
        met = sum(effects[1, T] for T in range(2**n) if T & mask)
        assert m.zeta(effects[0])[mask].item() == pytest.approx(float(inside), abs=1e-12)
        assert m.or_zeta(effects[1])[mask].item() == pytest.approx(float(met), abs=1e-12)
    there, back = m.image(effects) @ y, (effects * m.image_transposed(y)).sum()
    assert there.item() == pytest.approx(back.item())


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


def linear_programme(v: np.ndarray, bound: float, tie: float = m.TIE):
    """The sparsest split of one input, exactly, by the simplex method: the reference."""
    n, size = len(v).bit_length() - 1, len(v) - 1
    transform = sp.csr_array([[1.0]])
    for _ in range(n):
        transform = sp.kron(transform, sp.csr_array([[1.0, 0.0], [-1.0, 1.0]]), format="csr")
    A, B = transform[1:, 1:], -transform[:, ::-1][1:, 1:]  # without the empty set
    one = sp.identity(size)
    # A v_and = p - q are the AND effects, B (v - delta - v_and) = r - s the OR effects.
    found = linprog(
        np.r_[np.zeros(2 * size), np.tile(m.prices(n, tie)[1:], 4)],
        A_eq=sp.block_array(
            [[A, None, -one, one, None, None], [-B, -B, None, None, -one, one]], format="csc"
        ),
        b_eq=np.r_[np.zeros(size), -(B @ v[1:])],
        bounds=[(None, None)] * size + [(-bound, bound)] * size + [(0, None)] * 4 * size,
        method="highs-ds",
    )
    v_and, delta = (torch.from_numpy(np.r_[0.0, part]) for part in (found.x[:size], found.x[size : 2 * size]))
    return m.effects_of_split(v_and, torch.from_numpy(v) - v_and - delta, delta)


@pytest.mark.parametrize("solver", ["programme", "admm"])
def test_a_planted_sparse_game_is_found_with_its_own_norm(solver: str) -> None:
    v = planted(6, *PLANTED)
    size = sum(map(abs, [*PLANTED[0].values(), *PLANTED[1].values()]))
    if solver == "programme":
        effects, exact = linear_programme(v.numpy(), 0.0), 1e-8
    else:
        found, _ = m.extract(v[None], 1500, 0.0)
        effects, exact = m.Effects(found.both[0], found.delta[0]), 2e-3
    assert effects.both.abs().sum().item() == pytest.approx(size, rel=exact)
    for type_, terms in enumerate(PLANTED):
        for T, c in terms.items():
            assert effects.both[type_, T].item() == pytest.approx(c, abs=20 * exact)
    torch.testing.assert_close(effects.rebuilt(), v, atol=1e-8, rtol=0)


@pytest.mark.parametrize("tie", [m.TIE, -m.TIE])
def test_many_splits_at_once_come_near_the_programme_and_their_lower_bound_is_one(tie: float) -> None:
    v = torch.stack([random_game(6, seed=s).cumsum(0) for s in range(4)])
    v = v - v[:, :1]
    found, low = m.extract(v, 1500, 0.05, tie=tie)
    bounds = 0.05 * v[:, -1].abs()
    solved = [linear_programme(a.numpy(), b.item(), tie) for a, b in zip(v, bounds, strict=True)]
    exact = torch.stack([m.priced(one, tie) for one in solved])
    assert (low <= exact * (1 + 1e-9)).all()
    assert (low > 0.95 * exact).all()
    assert (m.priced(found, tie) >= exact * (1 - 1e-9)).all()
    assert (m.priced(found, tie) < 1.02 * exact).all()
    torch.testing.assert_close(found.rebuilt() + found.delta, v, atol=1e-8, rtol=0)
    assert (found.delta.abs() <= bounds[:, None] * (1 + 1e-6)).all()


def test_no_multiplier_whatsoever_gives_a_bound_above_the_optimum() -> None:
    v = random_game(5, seed=3)
    v = v - v[0]
    exact = m.priced(linear_programme(v.numpy(), 0.1))
    wild = random_game(5, 500, seed=4)
    bounds = m.lower_bound(v.expand(500, -1), torch.full((500,), 0.1, dtype=torch.float64), wild)
    assert (bounds <= exact).all()


def test_ties_are_broken_towards_low_orders_or_high_ones_as_asked() -> None:
    """x_0 + x_1 costs as much as (both) plus (either)."""
    v = planted(3, {0b001: 1.0, 0b010: 1.0}, {})[None]
    low, high = (m.extract(v, 2000, 0.0, tie=tie)[0].both[0] for tie in (m.TIE, -m.TIE))
    assert low[0, [1, 2]].tolist() == pytest.approx([1, 1], abs=0.01)
    assert high[:, 0b011].tolist() == pytest.approx([1, 1], abs=0.01)


def test_any_shape_of_inputs_is_kept() -> None:
    v = random_game(4, 2, 3)
    v = v - v[..., :1]
    effects, low = m.extract(v, 50, 0.02)
    assert effects.both.shape == (2, 3, 2, 16)
    assert low.shape == (2, 3)
    torch.testing.assert_close(effects.rebuilt() + effects.delta, v, atol=1e-8, rtol=0)


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


def test_effects_of_equal_variance_form_the_spindle_and_those_of_order_one_are_far_from_it() -> None:
    both = random_game(8, 400, 2)
    both[..., 0] = 0
    shares = m.distribution(m.strength(m.Effects(both, both), torch.zeros(400)))
    assert m.total_variation(shares, m.spindle(8)) < 0.02
    single = torch.eye(8, dtype=torch.float64)[0]
    assert m.total_variation(single, m.spindle(8)).item() == pytest.approx(1 - 8 / 255)
    uniform = torch.full((8,), 1 / 8, dtype=torch.float64)
    assert m.total_variation(uniform, m.spindle(8)) > 0.15  # middle orders do not dominate it


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


def norms_at(n: int, sigma2: float) -> Tensor:
    return m.row_norms(n, torch.tensor([sigma2], dtype=torch.float64))[0]


def test_row_norms_are_those_of_every_row_of_their_order() -> None:
    n = 6
    norms = dense(n, 0.02).norm(dim=1)
    expected = norms_at(n, 0.02)[m.order(n)]
    torch.testing.assert_close(norms, expected, atol=1e-10, rtol=1e-9)


def test_row_norms_have_the_values_that_were_worked_out_by_hand_and_the_limit_root_ten() -> None:
    assert norms_at(4, 1.0).tolist() == pytest.approx([0.5570, 0.2195, 0.0805, 0.0284, 0.0098], abs=1e-4)
    ratios = norms_at(8, 1e6)
    assert (ratios[:-1] / ratios[1:]).tolist() == pytest.approx([math.sqrt(10)] * 8, abs=1e-4)


@pytest.mark.parametrize(("n", "noise"), [(12, 1e-7), (14, 1e-8), (14, 1e-7)])
def test_proposition_1_fails_by_a_hair_for_many_variables_and_little_noise(n: int, noise: float) -> None:
    """In extended precision, by sums over orders instead of Kronecker products."""
    sigma2 = np.longdouble(noise)
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
    assert norms_at(n, noise)[1:4].tolist() == pytest.approx(exact, abs=1e-8)
    assert exact[0] < exact[1]


def test_independent_outputs_double_the_variance_of_an_effect_with_each_order_not_independent_effects() -> (
    None
):
    """Lemma 1, and the null of the claim about its assumption with an effect planted in it."""
    assert m.noise_growth(random_game(6, 4000)) == pytest.approx(2, abs=0.03)
    assert m.noise_growth(m.zeta(random_game(6, 4000))) == pytest.approx(1, abs=0.03)


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
    assert found.distance.abs().max() < 1e-12
    mirrored = m.fit(theory, grid, real[None].flip(-1), 0.03)
    assert (mirrored.distance > 0.15).all()
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


def test_effects_correlate_with_themselves_and_not_with_others() -> None:
    a, b = random_game(6, 2, 3, 20, 2), random_game(6, 2, 3, 20, 2, seed=1)
    torch.testing.assert_close(m.correlation(3 * a, a), torch.ones(2, 3, dtype=torch.float64))
    assert m.correlation(a, b).abs().max() < 0.1


def test_a_planted_dip_is_measured_and_a_low_point_of_one_network_alone_is_no_dip() -> None:
    """What the null of the two phases would show if it had any."""
    common = np.array([4.0, 3.0, 1.0, 3.0, 4.0])[:, None].repeat(3, 1)
    ratio, rise = m.fall_and_rise(common)
    assert ratio.tolist() == [0.25] * 3
    assert rise.tolist() == [3.0] * 3
    noise = np.random.default_rng(0).normal(4, 0.3, (15, 2000))
    each = [m.fall_and_rise(noise[:, i : i + 5]) for i in range(0, 2000, 5)]
    ratios, rises = np.array(each).mean((0, 2))
    assert ratios == pytest.approx(1, abs=0.02)
    assert rises == pytest.approx(0, abs=0.05)


def test_onset_is_where_a_tenth_of_the_largest_rise_is_made_wherever_that_is() -> None:
    epochs = [0, 10, 20, 40, 80]
    assert m.onset(epochs, np.array([9.0, 0.0, 1.0, 2.0, 2.0])) == pytest.approx(12.0)
    assert m.onset(epochs, np.array([0.0, 8.0, 1.0, 2.0, 2.0])) == pytest.approx(1.0)  # before any dip
    assert m.onset(epochs, np.array([1.0, 2.0, 0.0, 0.0, 5.0])) == pytest.approx(44.0)
    assert m.onset(epochs, np.array([9.0, 3.0, 2.0, 1.0, 0.0])) == 80.0  # never
    assert m.doublings(0.0, 4.0) == m.doublings(4.0, 1.0) == 2.0


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


def small(seed: int):
    torch.manual_seed(seed)
    return m.perceptron(6, 3, depth=1, width=5)


def small_stack(n: int):
    return m.stacked([small(seed) for seed in range(n)], "cpu", "float64")


def test_outputs_are_the_log_odds_of_each_network_on_each_masked_input() -> None:
    stack, n, label = small_stack(2), 3, 2
    x = torch.rand(1, 1, 6, dtype=torch.float64)
    players = torch.tensor([[0, 0, 1, -1, 2, 2]])
    v = m.outputs(lambda keep: stack.logits(x[None], keep), label, players, n)
    assert v.dtype == torch.float64
    assert v.shape == (2, 8)
    for net in range(2):
        alone = small(net).double()
        for mask in range(2**n):
            present = members(mask, n)
            keep = torch.tensor([[p < 0 or p in present for p in players[0].tolist()]])
            p = alone((x * keep)[None]).softmax(-1)[0, label]
            assert v[net, mask].item() == pytest.approx((p / (1 - p)).log().item(), abs=1e-9)
    torch.testing.assert_close(
        m.outputs(lambda keep: stack[1:].logits(x[None], keep), label, players, n), v[1:]
    )


def test_networks_side_by_side_are_trained_as_torch_trains_each_alone() -> None:
    stack = small_stack(2)
    x = torch.rand(20, 1, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.stack([torch.arange(20) % 3, torch.arange(20) // 7])
    seeds = [4, 5]
    list(m.train(stack, x, labels, 3, lr=0.1, momentum=0.9, batch_size=8, seeds=seeds))
    for net, seed in enumerate(seeds):
        alone = small(net).double()
        optimiser = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
        order = torch.Generator().manual_seed(seed)
        for _ in range(3):
            for batch in torch.randperm(20, generator=order).split(8):
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(alone(x[batch]), labels[net, batch]).backward()
                optimiser.step()
        for name, weight in alone.named_parameters():
            torch.testing.assert_close(stack.params[name][net], weight.detach())


def test_a_displaced_network_lies_as_far_from_the_start_as_the_trained_one_in_a_direction_of_its_own() -> (
    None
):
    start, moved = small_stack(2), small_stack(2)
    x = torch.rand(20, 1, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = (torch.arange(20) % 3).expand(2, -1)
    list(m.train(moved, x, labels, 2, lr=0.1, momentum=0.9, batch_size=8, seeds=[0, 1]))
    null, again = (m.displaced(start, moved, 0) for _ in range(2))
    for name, origin in start.params.items():
        there, here = (stack.params[name] - origin for stack in (moved, null))
        torch.testing.assert_close(here.flatten(1).norm(dim=1), there.flatten(1).norm(dim=1))
        assert not torch.allclose(here, there)
        assert not torch.allclose(here[0] / here[0].norm(), here[1] / here[1].norm())
        assert torch.equal(null.params[name], again.params[name])


def test_permuted_labels_are_the_same_labels_elsewhere() -> None:
    labels = torch.arange(1000) % 10
    assert torch.equal(m.permuted(labels, 0).bincount(), labels.bincount())
    assert (m.permuted(labels, 0) == labels).double().mean() < 0.15


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


# Data and untrained networks


def test_training_digits_and_measured_digits_are_those_of_their_splits() -> None:
    x, y, test, labels = m.pictures("digits", "test", 20, 8, 1, 0)
    assert torch.equal(y, torch.from_numpy(digits("train").labels[:20]))
    assert torch.equal(labels, torch.from_numpy(digits("test").labels))
    assert x.shape == (20, 1, 8, 8)
    assert 0 <= test.min() <= test.max() <= 1


def test_real_images_are_scaled_and_validation_is_cut_off_training(tmp_path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        cells = []
        for _ in range(24):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(file, format="PNG")
            cells.append({"bytes": file.getvalue()})
        pq.write_table(
            pa.table({"img": cells, "label": list(np.arange(24) % 3)}), tmp_path / f"{name}.parquet"
        )
    x, y, test, labels = m.pictures(str(tmp_path), "test", 20, 16, 3, 0)
    assert x.shape == (20, 3, 16, 16)
    assert test.shape == (24, 3, 16, 16)
    assert -1 <= x.min() <= x.max() <= 1
    assert (len(y), len(labels)) == (20, 24)
    x, _, held_out, _ = m.pictures(str(tmp_path), "validation", 10, 16, 3, 0)
    rows = {tuple(image.flatten()[:50].tolist()) for image in x}
    assert not rows & {tuple(image.flatten()[:50].tolist()) for image in held_out}


@pytest.mark.parametrize("kind", ["BERT", "ViT", "linear"])
def test_untrained_networks_are_measured_from_the_empty_set_each_on_its_own_inputs(kind: str) -> None:
    v = m.untrained(kind, 0.02, 3, 2, [0, 1])
    assert v.shape == (2, 2, 8)
    assert v.dtype == torch.float64
    assert not v[..., 0].any()
    assert (v[0] != v[1]).any()


def test_a_linear_classifier_of_two_classes_would_be_additive_and_a_wide_start_makes_bert_less_so() -> None:
    low, high = (m.moebius(m.untrained("BERT", scale, 4, 2, [0])) for scale in (0.02, 0.4))
    more = m.order(4) > 1
    shares = [(e[..., more].abs().sum() / e.abs().sum()).item() for e in (low, high)]
    assert shares[0] < 0.5 < shares[1]


# Bad input


def test_a_grid_with_too_few_patches_or_too_many_for_the_map_is_refused() -> None:
    for grid in (2, 9):
        with pytest.raises(ValueError, match=f"grid={grid}: 8 players need as many patches"):
            m.patches(8, grid, 8, np.random.default_rng(0))


@pytest.mark.parametrize("model", ["cnn", pytest.param("vgg11", marks=pytest.mark.weekly)])
def test_the_gpu_preset_reaches_the_end_on_files_of_the_real_schema(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller = {"n_players": 4, "n_inputs": 2, "n_train": 16, "epochs": 5, "checkpoints": [1, 2, 3, 4]}
    smaller |= {"iterations": 5, "batch_size": 8, "inits": [0.1], "device": "cpu", "model": model}
    data = hub_nets.images(n_classes=4, n=24, column="img")
    run = hub_models.run_chapter("two-phase-interactions", "gpu", monkeypatch, data=data, **smaller)
    assert {row.verdict for row in run.records.values()} - {"not testable here"}
