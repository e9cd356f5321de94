"""The method cells of notebooks/pgm.ipynb: the very code that the reader reads."""

import json
from pathlib import Path

import hub_models
import hub_nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import beta, binom
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from data.worlds.digits import digits
from lib import chapters
from lib.models import Subject, load

m = chapters.method("pgm")
U, R, S = 0, 2, 3  # bits: unique to A, redundant, synergistic
N_BITS = len(m.BITS)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def worlds() -> object:
    """Two vector worlds in float64."""
    sample = m.stacked([m.vector_world((400,), 0.6, rng(i))[0] for i in range(2)])
    return m.Sample(sample.x.double(), sample.y.double(), sample.parts)


def stack(kind: str, n: int, *, n_in: int = 24) -> tuple[dict[str, Tensor], Tensor]:
    """Weights in float64 of a stack of untrained networks, and random gates."""
    drawn = m.first_weights(m.shapes(kind, n_in, N_BITS), range(n))
    return {name: t.double() for name, t in drawn.items()}, m.random_gates(range(n), 0.2).double()


def inputs(n_networks: int, n: int = 7, n_in: int = 24) -> Tensor:
    drawn = torch.Generator().manual_seed(3)
    return torch.randn(n_networks, m.M, n, n_in, dtype=torch.float64, generator=drawn)


def mutual_information(*columns: np.ndarray) -> float:
    """Bits that the last column shares with the others, by counting."""

    def entropy(*of: np.ndarray) -> float:
        p = np.unique(np.stack(of, 1), axis=0, return_counts=True)[1] / len(of[0])
        return float(-(p * np.log2(p)).sum())

    return entropy(*columns[:-1]) + entropy(columns[-1]) - entropy(*columns)


# Worlds


def test_information_is_where_the_world_says_it_is() -> None:
    (sample,) = m.vector_world((20_000,), 0.6, rng())
    y, (inA, inB) = sample.y.numpy(), sample.parts.numpy()
    for part, bit, in_a, in_b in ((0, 0, 1, 0), (1, S, 0, 0)):
        assert mutual_information(inA[part], y[:, bit]) == pytest.approx(in_a, abs=1e-3)
        assert mutual_information(inB[part], y[:, bit]) == pytest.approx(in_b, abs=1e-3)
    assert mutual_information(inA[1], inB[1], y[:, S]) == pytest.approx(1, abs=1e-3)
    assert mutual_information(y[:, R], y[:, S]) == pytest.approx(0, abs=1e-2)
    assert mutual_information(*inA, y[:, S]) == pytest.approx(0, abs=1e-2)
    np.testing.assert_allclose(y.mean(0), 0.5, atol=0.02)


def test_parity_bits_are_in_one_modality_and_independent_of_everything_else_there() -> None:
    """The noiseless input of modality A decides its parity; that of B tells nothing about it."""
    (sample,) = m.vector_world((4000,), 0.0, rng(1))
    hA = sample.y[:, m.BITS.index("parity in A")].double() * 2 - 1
    held = {}
    for modality in range(2):
        x = sample.x[modality].double()
        products = torch.stack([x[:, i] * x[:, j] for i in range(24) for j in range(i)], 1)
        design = torch.cat([products, torch.ones(4000, 1)], 1)
        w = torch.linalg.lstsq(design[:3000], hA[:3000, None]).solution
        held[modality] = ((design[3000:] @ w)[:, 0].sign() == hA[3000:]).double().mean().item()
    assert held[0] > 0.95
    assert abs(held[1] - 0.5) < 0.06


def test_worlds_differ_in_their_mixing_and_splits_of_one_world_share_it() -> None:
    first, second = m.vector_world((3000, 3000), 0.3, rng(0))
    (other,) = m.vector_world((3000,), 0.3, rng(1))

    def unmixed(sample: object) -> np.ndarray:
        y = sample.y[:, U].numpy() * 2 - 1
        return np.linalg.lstsq(sample.x[0].numpy(), y, rcond=None)[0]

    assert np.corrcoef(unmixed(first), unmixed(second))[0, 1] > 0.98
    assert abs(np.corrcoef(unmixed(first), unmixed(other))[0, 1]) < 0.8


@pytest.mark.parametrize("capacity", [0.0, 1e-6, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_a_channel_with_its_flip_rate_passes_the_capacity(capacity: float) -> None:
    e = m.flip_rate(capacity)
    entropy = 0.0 if e == 0 else -(e * np.log2(e) + (1 - e) * np.log2(1 - e))
    assert 0 <= e <= 0.5
    assert 1 - entropy == pytest.approx(capacity, abs=1e-9)


@pytest.mark.parametrize("capacity", [-0.1, 1.1, float("nan")])
def test_more_than_a_bit_of_a_bit_is_refused(capacity: float) -> None:
    with pytest.raises(ValueError, match=r"bits of information in a binary label: expected 0 to 1"):
        m.flip_rate(capacity)


def test_labels_pass_on_as_many_bits_as_the_task_says() -> None:
    sample = m.stacked([m.vector_world((40_000,), 0.6, rng())[0]])
    task = (1.0, 0.7, 0.3, 0.1, 0.0, 0.0)
    (y,) = m.targets([m.Member(0, task)], sample.y, seed=0).numpy()
    clean = sample.y[0].numpy()
    for bit, capacity in enumerate(task):
        assert mutual_information(clean[:, bit], y[:, bit]) == pytest.approx(capacity, abs=0.015)
    np.testing.assert_array_equal(y[:, 0], clean[:, 0])


def test_networks_of_a_task_get_the_same_labels_and_the_null_gets_those_of_other_examples(
    worlds: object,
) -> None:
    members = [m.Member(1), m.Member(1, order=1), m.Member(1, shuffled=True), m.Member(0)]
    a, b, shuffled, elsewhere = m.targets(members, worlds.y, seed=0)
    assert torch.equal(a, b)
    assert torch.equal(a[:, U], worlds.y[1, :, U])
    assert not torch.equal(a, elsewhere)
    assert torch.equal(shuffled.sum(0), a.sum(0))
    assert abs(((shuffled == a).double().mean(0) - 0.5).abs()).max() < 0.1


def test_random_tasks_spread_their_true_shares_evenly_and_the_largest_amount_is_one_bit() -> None:
    tasks = m.random_tasks(40, rng())
    shares = np.sort([m.true_share(task) for task in tasks])
    np.testing.assert_allclose(shares, (np.arange(40) + 0.5) / 40)
    assert {max(task) for task in tasks} == {1.0}
    assert min(map(min, tasks)) >= 0
    assert all(task[0] == task[1] and task[4] == task[5] == 0 for task in tasks)
    assert [m.true_share(t) for t in tasks] != sorted(m.true_share(t) for t in tasks)


def test_true_share_counts_everything_but_the_synergistic_bit() -> None:
    truth = {name: m.true_share(task) for name, task in m.TASKS.items()}
    assert truth == {"uni": 1, "both": pytest.approx(2 / 3), "paired": 0, "redundant": 1, "parity": 1}
    assert m.true_share((0.5, 0.5, 0.25, 0.25, 0, 0)) == pytest.approx(5 / 6)


def test_a_world_that_is_empty_or_not_finite_is_refused_by_its_number() -> None:
    good, bad = (m.vector_world((50,), 0.6, rng())[0] for _ in range(2))
    bad.x[0, 3, 5] = float("nan")
    with pytest.raises(ValueError, match=r"world 1: x \(2, 50, 24\) is empty, or not all of it is finite"):
        m.stacked([good, bad])
    with pytest.raises(ValueError, match=r"world 0: .* is empty"):
        m.stacked(m.vector_world((0,), 0.6, rng()))
    with pytest.raises(ValueError, match=r"world 1: x \(2, 60, 24\) with 60 labels"):
        m.stacked([good, m.vector_world((60,), 0.6, rng())[0]])


# The network


class Reference(nn.Module):
    """R2 for one network, written with torch's own layers and a loop over everything."""

    def __init__(self, w: dict[str, Tensor], network: int, variant: object) -> None:
        super().__init__()
        self.v, self.layers = variant, nn.ModuleDict()
        for name in {key.rpartition(".")[0] for key in w}:
            weight, bias = w[f"{name}.weight"][network], w[f"{name}.bias"][network]
            for modality in range(m.M if weight.ndim == 3 else 1):
                own, shift = (weight[modality], bias[modality, 0]) if weight.ndim == 3 else (weight, bias[0])
                if name == "norm":
                    layer = nn.LayerNorm(m.D, dtype=torch.float64)
                    layer.weight.data, layer.bias.data = own[0].clone(), shift.clone()
                else:
                    layer = nn.Linear(*own.shape, dtype=torch.float64)
                    layer.weight.data, layer.bias.data = own.T.clone(), shift.clone()
                self.layers[f"{name}{modality}"] = layer

    def mlp(self, name: str, modality: int, x: Tensor) -> Tensor:
        return self.layers[f"{name}2{modality}"](F.relu(self.layers[f"{name}1{modality}"](x)))

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        out: dict[str, list[Tensor]] = {name: [] for name in ("h", "g", "a", "h_hat", "p", "u")}
        for i in range(m.M):
            h = self.layers[f"norm{i}"](self.mlp("encoder", i, x[i]))
            e = (self.layers[f"gate{i}"](h) / self.v.tau).exp()
            g = torch.stack([1 - e[:, : k + 1].sum(1) / e.sum(1) for k in range(m.D)], 1)
            u, p = g * h, h - g * h
            out["a"].append(self.mlp("uni", i, u))
            out["h_hat"].append(self.layers[f"decoder{i}"](torch.cat([u, p], 1)))
            for name, value in (("h", h), ("g", g), ("u", u), ("p", p)):
                out[name].append(value)
        out["b"] = [self.mlp("paired", 0, torch.cat(out["p"], 1))]
        return out

    def loss(self, x: Tensor, y: Tensor, bits: list[int]) -> Tensor:
        out, v = self(x), self.v

        def ce(z: Tensor) -> Tensor:
            return sum(F.binary_cross_entropy_with_logits(z[:, k], y[:, k]) for k in bits)

        a = sum(out["a"])
        total = ce((a.detach() if v.stop_gradient else a) + out["b"][0])
        total = total + v.alpha * sum(ce(own) for own in out["a"])
        for h, h_hat in zip(out["h"], out["h_hat"], strict=True):
            total = total + v.gamma * (h_hat - h.detach()).square().sum(1).mean()
        return total


@pytest.mark.parametrize(
    "variant",
    [
        m.Variant(),
        m.Variant(tau=1.0, alpha=0.3, gamma=0.7),
        m.Variant(stop_gradient=False),
        m.Variant(alpha=0.0, gamma=0.0),
    ],
)
def test_r2_its_loss_and_its_gradient_equal_a_network_written_with_torchs_own_layers(variant: object) -> None:
    w, frozen = stack("r2", 3)
    for t in w.values():
        t.requires_grad_()
    x, members = inputs(3), [m.Member(0)] * 3
    y = torch.from_numpy(rng(5).integers(2, size=(3, 7, N_BITS))).double()
    o = m.r2(w, x, variant, frozen)
    losses = m.loss("r2", o, y, m.asked_bits(members).double(), variant)
    losses.sum().backward()
    for i in range(3):
        slow = Reference({name: t.detach() for name, t in w.items()}, i, variant)
        out = slow(x[i])
        for name in ("h", "g", "u", "p", "a", "h_hat"):
            torch.testing.assert_close(getattr(o, name)[i], torch.stack(out[name]))
        torch.testing.assert_close(o.scores[i], sum(out["a"]) + out["b"][0])
        loss = slow.loss(x[i], y[i], [0, 1, 3])
        torch.testing.assert_close(losses[i], loss)
        loss.backward()
        for name in ("gate", "uni1", "paired2", "encoder1", "decoder"):
            expected = slow.layers[f"{name}1" if name != "paired2" else "paired20"].weight.grad.T
            found = w[f"{name}.weight"].grad[i]
            torch.testing.assert_close(found if found.ndim == 2 else found[1], expected)


@pytest.mark.parametrize("gate", ["cummax", "sigmoid", "hard", "random"])
def test_the_two_parts_add_up_and_a_cumulative_gate_falls_along_the_features(gate: str) -> None:
    w, frozen = stack("r2", 2)
    o = m.r2(w, inputs(2), m.Variant(gate=gate), frozen)
    torch.testing.assert_close(o.u + o.p, o.h)
    assert o.g.min() > -1e-6
    assert o.g.max() < 1 + 1e-6
    if gate != "sigmoid":
        assert (o.g.diff(dim=-1) <= 1e-12).all()
        assert o.g[..., -1].abs().max() < 1e-6
    if gate == "hard":
        assert set(o.g.unique().tolist()) <= {0.0, 1.0}


def test_a_hard_gate_passes_the_gradient_of_the_soft_one() -> None:
    h, passed = inputs(1, n_in=m.D), []
    for gate in ("cummax", "hard"):
        w, frozen = stack("r2", 1)
        w["gate.weight"].requires_grad_()
        (m.partition(h, w, m.Variant(gate=gate), frozen) * h).sum().backward()
        passed.append(w["gate.weight"].grad)
    assert passed[0].abs().max() > 0
    torch.testing.assert_close(*passed)


def test_random_gates_see_no_input_and_differ_by_seed() -> None:
    w, frozen = stack("r2", 2)
    g = m.r2(w, inputs(2), m.Variant(gate="random"), frozen).g
    assert (g == g[:, :, :1]).all()
    assert not torch.allclose(g[0], g[1])


def test_gates_and_uni_modal_learners_see_one_modality_and_the_paired_learner_both() -> None:
    w, frozen = stack("r2", 1)
    x = inputs(1).requires_grad_()
    o = m.r2(w, x, m.Variant(), frozen)
    for seen in (o.g[:, 0], o.a[:, 0]):
        (gradient,) = torch.autograd.grad(seen.sum(), x, retain_graph=True)
        assert gradient[:, 0].abs().max() > 0
        assert gradient[:, 1].abs().max() == 0
    (gradient,) = torch.autograd.grad(o.b.sum(), x)
    assert (gradient.abs().amax((0, 2, 3)) > 0).all()


@pytest.mark.parametrize("stop", [True, False])
def test_the_stop_gradient_takes_the_first_term_from_the_uni_modal_learners(stop: bool) -> None:
    v = m.Variant(alpha=0.0, gamma=0.0, stop_gradient=stop)
    w, frozen = stack("r2", 1)
    for t in w.values():
        t.requires_grad_()
    asked = m.asked_bits([m.Member(0)]).double()
    m.loss("r2", m.r2(w, inputs(1), v, frozen), torch.ones(1, 7, N_BITS).double(), asked, v).sum().backward()
    for name in ("uni1.weight", "uni2.bias"):
        assert (w[name].grad.abs().max() == 0) == stop
    assert w["paired1.weight"].grad.abs().max() > 0
    assert w["decoder.weight"].grad.abs().max() == 0


def test_bits_that_are_not_asked_for_cost_nothing() -> None:
    w, frozen = stack("r2", 1)
    v = m.Variant(gamma=0.0)
    o = m.r2(w, inputs(1), v, frozen)
    asked = m.asked_bits([m.Member(0, m.TASKS["paired"])]).double()
    y = torch.zeros(1, 7, N_BITS).double()
    other = y.clone()
    other[..., [0, 1, 2, 4, 5]] = 1
    assert torch.equal(m.loss("r2", o, y, asked, v), m.loss("r2", o, other, asked, v))


def test_the_ensemble_averages_probabilities() -> None:
    w, frozen = stack("single", 1)
    o = m.single(w, inputs(1), m.Variant(), frozen)
    torch.testing.assert_close(o.scores.sigmoid(), (o.a[:, 0].sigmoid() + o.a[:, 1].sigmoid()) / 2)


@pytest.mark.parametrize(("n_in", "n_bits"), [(24, 6), (64, 10), (768, 3)])
def test_baselines_have_as_many_parameters_as_r2(n_in: int, n_bits: int) -> None:
    target = m.size(m.shapes("r2", n_in, n_bits))
    for kind in ("joint", "single"):
        assert m.size(m.shapes(kind, n_in, n_bits)) == pytest.approx(target, rel=0.01)
    assert m.size(m.shapes("joint", n_in, n_bits, narrow=True)) < target
    narrow = m.shapes("joint", n_in, n_bits, narrow=True)
    assert narrow["paired1.weight"] == m.shapes("r2", n_in, n_bits)["paired1.weight"]


def test_first_weights_are_those_of_torchs_linear_layers_in_distribution() -> None:
    w = m.first_weights(m.shapes("r2", 24, N_BITS), range(40))
    for name, fan in (("encoder1", 24), ("paired1", 32), ("gate", 16)):
        for part in ("weight", "bias"):
            values = w[f"{name}.{part}"]
            assert values.abs().max() <= fan**-0.5
            assert values.std().item() == pytest.approx((3 * fan) ** -0.5, rel=0.05)
    assert (w["norm.weight"] == 1).all()
    assert (w["norm.bias"] == 0).all()


# Training


SHORT = m.Recipe(steps=12, batch_size=16, lr=1e-2, seed=4)


def test_rates_of_parts_are_those_of_torchs_parameter_groups(worlds: object) -> None:
    member = m.Member(1, rate_uni=3.0, rate_paired=1 / 3)
    found = m.train("r2", [member], worlds, SHORT)
    (w,) = ({name: t.clone().requires_grad_() for name, t in found.first.items()},)
    groups = [{"params": [t], "factor": 1 / 3 if name.startswith("paired") else 3.0} for name, t in w.items()]
    peer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=1e-2)
    drawn = torch.Generator().manual_seed(SHORT.seed)
    y, asked = m.targets([member], worlds.y, SHORT.seed), m.asked_bits([member]).double()
    for step in range(SHORT.steps):
        rows = torch.randint(400, (1, 2, 16), generator=drawn)[0, 1]
        for group in peer.param_groups:
            group["lr"] = SHORT.rate(step) * group["factor"]
        peer.zero_grad()
        o = m.r2(w, worlds.x[[1]][:, :, rows], m.Variant(), found.frozen)
        m.loss("r2", o, y[:, rows], asked, m.Variant()).sum().backward()
        peer.step()
    for name, t in w.items():
        torch.testing.assert_close(found.weights[name], t.detach())


@pytest.mark.parametrize("kind", ["r2", "joint", "single"])
def test_a_network_in_a_stack_is_the_network_trained_alone(kind: str, worlds: object) -> None:
    members = [
        m.Member(0),
        m.Member(1, m.TASKS["paired"], rate_paired=3.0),
        m.Member(1, m.TASKS["uni"], order=1, draw=1),
    ]
    stack = m.train(kind, members, worlds, SHORT)
    for i, member in enumerate(members[:2]):
        alone = m.train(kind, [member, members[2]], worlds, SHORT)
        for name, t in stack.weights.items():
            torch.testing.assert_close(alone.weights[name][0], t[i])
        assert not torch.allclose(stack.weights["encoder1.weight"][i], stack.first["encoder1.weight"][i])


def test_networks_of_a_world_start_alike_and_order_weights_and_draw_set_them_apart(worlds: object) -> None:
    members = [m.Member(0), m.Member(0), m.Member(0, order=1), m.Member(0, weights=1), m.Member(1)]
    members.append(m.Member(0, draw=1))
    trained = m.train("r2", members, worlds, SHORT)
    first, last = (w["encoder1.weight"] for w in (trained.first, trained.weights))
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[3])
    assert not torch.equal(first[0], first[4])
    assert torch.equal(last[0], last[1])
    assert not torch.allclose(last[0], last[2])
    assert torch.equal(first[0], first[5])
    assert torch.equal(trained.frozen[0], trained.frozen[1])
    assert not torch.equal(trained.frozen[0], trained.frozen[5])


def test_a_rate_of_zero_keeps_its_part_where_it_was(worlds: object) -> None:
    trained = m.train("r2", [m.Member(0, rate_paired=0.0), m.Member(0, rate_uni=0.0)], worlds, SHORT)
    for name, before in trained.first.items():
        paired, after = name.startswith("paired"), trained.weights[name]
        assert torch.equal(before[0], after[0]) is paired
        assert torch.equal(before[1], after[1]) is not paired


def test_training_learns_the_unique_bits_and_labels_of_other_examples_teach_nothing(worlds: object) -> None:
    recipe = m.Recipe(steps=100, batch_size=32, lr=1e-2, seed=0)
    ticks: list[int] = []
    members = [m.Member(0), m.Member(1), m.Member(1, shuffled=True)]
    trained = m.train("r2", members, worlds, recipe, tick=lambda: ticks.append(1))
    assert len(ticks) == 100
    found = m.accuracy(m.forward(trained, worlds).scores, worlds.y[[0, 1, 1]])
    assert found[:2, :2].min() > 85
    assert abs(found[2, :2] - 50).max() < 30
    some = m.accuracy(m.forward(trained, worlds, [1]).scores, worlds.y[[1]])
    np.testing.assert_allclose(some[0], found[1])


# Measures


def test_probes_equal_least_squares_one_at_a_time_and_find_nothing_in_noise() -> None:
    drawn = rng(2)
    features = torch.from_numpy(drawn.standard_normal((3, 2, 600, 5)))
    facts = torch.from_numpy(drawn.random((3, 2, 4, 600)) > 0.5)
    facts[..., 0, :] = features[..., 1] > features[..., 2]
    found = m.probe(features, facts)
    for stack in np.ndindex(3, 2, 4):
        X = np.column_stack([features[stack[:2]], np.ones(600)])
        y = facts[stack].numpy() * 2.0 - 1
        w = np.linalg.lstsq(X[:300], y[:300], rcond=None)[0]
        assert found[stack] == pytest.approx(100 * np.mean((X[300:] @ w > 0) == (y[300:] > 0)), abs=0.5)
    assert found[..., 0].min() > 95
    assert abs(found[..., 1:].mean() - 50) < 2


def test_the_explained_share_is_that_of_the_information_read_by_counting() -> None:
    """Scores that are the true log odds explain what the labels hold; a silent learner explains nothing."""
    y = torch.from_numpy(rng(1).integers(2, size=(1, 4000, 2))).double()
    known, none = 20 * (2 * y - 1), torch.zeros_like(y)
    asked = torch.ones(1, 1, 2).double()
    one_of_two = torch.cat([known[..., :1], none[..., 1:]], -1)
    cases = {1.0: (known, known), 0.0: (none, known), 0.5: (one_of_two, known)}
    for share, (alone, together) in cases.items():
        assert m.explained_share(alone, together, y, asked)[0] == pytest.approx(share, abs=1e-6)
    only_second = torch.tensor([[[0.0, 1.0]]]).double()
    assert m.explained_share(one_of_two, known, y, only_second)[0] == pytest.approx(0, abs=1e-6)
    wrong = torch.full_like(y, 3.0)
    assert m.explained_share(wrong, wrong, y, asked)[0] == 0.5


def test_measures_do_not_depend_on_how_many_networks_are_read_at_a_time(worlds: object) -> None:
    members = [m.Member(i % 2, task) for i, task in enumerate(m.TASKS.values())]
    trained = m.train("r2", members, worlds, SHORT)
    one, all_ = (m.measure(trained, worlds, 0, chunk=chunk) for chunk in (1, 24))
    for a, b in zip(one, all_, strict=True):
        np.testing.assert_allclose(a, b)
    before = m.forward(trained, worlds, untrained=True).g.mean((2, 3)).numpy()
    np.testing.assert_allclose(one.before, before)
    assert not np.allclose(one.before, one.share)


def measures(**parts: np.ndarray) -> object:
    """Measures of which only some are given."""
    return m.Measures(**{name: parts.get(name, np.empty(0)) for name in m.Measures._fields})


def test_gaps_are_positive_where_each_part_holds_its_own_bit() -> None:
    clean = measures(
        from_u=np.array([[[95.0, 50.0], [93.0, 50.0]]]), from_p=np.array([[[50.0, 90.0], [49.0, 88.0]]])
    )
    np.testing.assert_allclose(clean.gaps(), [[44.5, 39.0]])
    exchanged = measures(from_u=clean.from_p, from_p=clean.from_u)
    np.testing.assert_allclose(exchanged.gaps(), -clean.gaps())


# Statistics of the claims; each null's function shows an effect that is planted in it


def test_a_rank_correlation_shows_a_planted_order_and_covers_zero_without_one() -> None:
    truth = np.linspace(0, 1, 30)
    planted = m.of_truth(truth**2 + 0.05 * rng().standard_normal(30), truth)
    assert planted.low > 0.7
    assert m.of_truth(-truth, truth).high < -0.9
    covered = []
    for seed in range(400):
        e = m.of_truth(rng(seed).random(30), truth)
        covered.append(e.low < 0 < e.high)
    assert np.mean(covered) > 0.92
    constant = m.of_truth(np.full(30, 0.5), truth)
    assert constant.value == 0
    assert constant.low < 0 < constant.high


def test_slopes_are_one_hundred_where_shares_are_the_truth_and_show_a_planted_half() -> None:
    truth = np.array([1.0, 1.0, 1.0, 2 / 3, 0.0])
    start = rng().random((6, 1))  # where a share begins does not matter
    assert m.slopes(np.tile(truth, (3, 1)), truth).value == pytest.approx(100)
    planted = m.slopes(start + 0.5 * truth + 0.01 * rng(1).standard_normal((6, 5)), truth)
    assert planted.low < 50 < planted.high
    assert planted.low > 40
    flat = m.slopes(start + 0.1 * rng(2).standard_normal((6, 5)), truth)
    assert flat.low < 0 < flat.high


@pytest.mark.parametrize(("k", "n"), [(0, 6), (6, 6), (18, 20), (10, 20)])
def test_exact_shares_are_clopper_and_pearsons(k: int, n: int) -> None:
    e = m.exact_share(np.arange(n) < k)
    assert e.value == pytest.approx(100 * k / n)
    low, high = (beta.ppf(0.025, k, n - k + 1), beta.ppf(0.975, k + 1, n - k))
    assert e.low == pytest.approx(100 * (0 if k == 0 else low))
    assert e.high == pytest.approx(100 * (1 if k == n else high))


def test_an_exact_difference_decides_as_mcnemars_exact_test() -> None:
    for only_a, only_b in ((0, 2), (5, 0), (6, 0), (10, 0), (8, 1), (7, 3), (0, 9)):
        a = np.arange(20) < only_a
        b = (np.arange(20) >= only_a) & (np.arange(20) < only_a + only_b)
        e = m.exact_difference(a | (np.arange(20) == 19), b | (np.arange(20) == 19))
        assert e.value == pytest.approx(100 * (only_a - only_b) / 20)
        p = min(1, 2 * binom.cdf(min(only_a, only_b), only_a + only_b, 0.5))
        assert (e.low > 0 or e.high < 0) == (p < 0.05)
        assert -100 <= e.low <= e.value <= e.high <= 100
    alike = m.exact_difference(np.ones(5, bool), np.ones(5, bool))
    assert (alike.value, alike.low, alike.high) == (0, 0, 0)


# Transfer


def test_sentences_name_the_digit_in_one_half_of_the_cases() -> None:
    pairs = m.digit_sentences("validation", 3000, rng())
    labels = digits("validation").labels[pairs.which]
    words = [text.split() for text in pairs.texts]
    said = np.array([m.NUMBERS.index(w[4]) for w in words])
    glad = np.array([w[-1] in m.MOODS[1] for w in words])
    y = pairs.y.numpy()
    np.testing.assert_array_equal(y[:, 0], labels >= 5)
    np.testing.assert_array_equal(y[:, 1], glad)
    np.testing.assert_array_equal(y[:, 2], said == labels)
    for alone in (labels, said, glad):
        assert mutual_information(alone, y[:, 2]) < 0.01
    assert abs(y[:, 2].mean() - 0.5) < 0.03


@pytest.fixture(scope="module")
def bert() -> Subject:
    return m.word_model(0, steps=25)


def test_features_are_means_over_the_words_and_do_not_depend_on_the_batch(bert: Subject) -> None:
    texts = ["the red sign shows one", "people are glad", "the card has nine and we are sad"]
    found = m.features(bert, "text", texts)
    for text, row in zip(texts, found, strict=True):
        ids = bert.tokenizer([text], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            tokens = bert.model.bert(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(row, tokens.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(m.features(bert, "text", texts, batch=2), found, atol=1e-5, rtol=1e-4)


def test_every_word_of_the_sentences_has_a_token(bert: Subject) -> None:
    texts = [m.sentence(n, mood, rng(n)) for n in range(10) for mood in (0, 1)]
    ids = bert.tokenizer(texts, return_tensors="pt")["input_ids"]
    assert not (ids == bert.tokenizer.unk_token_id).any()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, bert: Subject) -> dict[str, str]:
    """Checkpoints with random weights, of the classes that are used at full size."""
    root, size = tmp_path_factory.mktemp("encoders"), {"hidden_size": 16, "intermediate_size": 32}
    size |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    ViTModel(ViTConfig(**size, image_size=32, patch_size=8)).save_pretrained(root / "vit")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(root / "vit")
    vocabulary = {"vocab_size": len(bert.tokenizer), "pad_token_id": 0, "max_position_embeddings": 24}
    BertModel(BertConfig(**size, **vocabulary)).save_pretrained(root / "bert")
    bert.tokenizer.save_pretrained(root / "bert")
    towers = {"text_config": size | vocabulary, "vision_config": size | {"image_size": 32, "patch_size": 8}}
    CLIPModel(CLIPConfig(**towers, projection_dim=8)).save_pretrained(root / "clip")
    image = CLIPImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=image, tokenizer=bert.tokenizer).save_pretrained(root / "clip")
    return {name: str(root / name) for name in ("vit", "bert", "clip")}


@pytest.mark.parametrize(("image", "text"), [("vit", "bert"), ("clip", "clip")])
def test_saved_checkpoints_go_the_whole_way_from_pictures_and_words_to_a_partition(
    image: str, text: str, folders: dict[str, str]
) -> None:
    pairs = {name: m.digit_sentences(name, 40, rng(i)) for i, name in enumerate(("train", "test"))}
    pairs["train"] = pairs["train"]._replace(
        images=pairs["train"].images[:300], which=pairs["train"].which % 300
    )
    samples = m.encoded(load(folders[image]), load(folders[text]), pairs)
    x = samples["train"].x
    assert x.shape == (2, 40, 16)
    torch.testing.assert_close(x.mean(1), torch.zeros(2, 16), atol=1e-4, rtol=0)
    trained = m.train("r2", [m.Member(0, (1.0, 1.0, 1.0))], m.stacked([samples["train"]]), SHORT)
    assert m.forward(trained, m.stacked([samples["test"]])).g.shape == (1, 2, 40, m.D)


def test_the_narrower_encoder_is_padded(bert: Subject) -> None:
    pairs = m.digit_sentences("validation", 30, rng())
    narrow = m.load("digits-vit")
    wide = Subject(
        BertModel(
            BertConfig(
                vocab_size=len(bert.tokenizer),
                hidden_size=48,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
            )
        ).eval(),
        bert.tokenizer,
    )
    x = m.encoded(narrow, wide, {"train": pairs})["train"].x
    assert x.shape == (2, 30, 48)
    assert not x[0, :, 32:].any()
    assert x.isfinite().all()


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as COCO's, with a dog in every second photograph and captions that name the photograph."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    (root / "val2014").mkdir()
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(40)]
    for image in images:
        Image.new("RGB", (20, 16), (6 * image["id"], 0, 0)).save(root / "val2014" / image["file_name"])
    marked = [{"image_id": i, "category_id": 1} for i in range(0, 40, 2)]
    marked += [{"image_id": i, "category_id": 2} for i in range(40)]
    said = [{"image_id": i, "caption": f"photo {i}" + " with words" * (i % 3)} for i in range(40)]
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "sky"}]
    parts = {"images": images, "annotations": marked, "categories": categories}
    (root / "annotations" / "instances_val2014.json").write_text(json.dumps(parts))
    (root / "annotations" / "captions_val2014.json").write_text(
        json.dumps({"images": images, "annotations": said})
    )
    return root


def test_captions_of_photographs_are_their_own_in_one_half_and_no_photograph_is_in_two_splits(
    coco_folder: Path, folders: dict[str, str]
) -> None:
    splits = m.coco_captions(coco_folder, 40, seed=0)
    assert [len(pairs.texts) for pairs in splits.values()] == [24, 8, 8]
    numbers = {name: [int(path.stem) for path in pairs.images] for name, pairs in splits.items()}
    assert sorted(n for own in numbers.values() for n in own) == list(range(40))
    for name, pairs in splits.items():
        shown = np.array(numbers[name])[pairs.which]
        said = np.array([int(text.split()[1]) for text in pairs.texts])
        np.testing.assert_array_equal(pairs.y[:, 0], shown % 2 == 0)
        np.testing.assert_array_equal(pairs.y[:, 2], shown == said)
        assert pairs.y[:, 2].mean() == 0.5
        assert set(said) <= set(numbers[name])
    samples = m.encoded(load(folders["vit"]), load(folders["bert"]), splits)
    assert samples["test"].x.shape == (2, 8, 16)


def test_too_few_photographs_are_refused(coco_folder: Path) -> None:
    with pytest.raises(ValueError, match="has 5 photographs: expected at least 10"):
        m.coco_captions(coco_folder, 5, seed=0)


VIT, BERT, CLIP = "google/vit-base-patch16-224", "bert-base-uncased", "openai/clip-vit-base-patch32"
SMALL_RUN = {"n_heads": 2, "n_seeds": 4, "n_few": 4, "n_worlds": 8, "n_train": 200, "n_test": 80, "steps": 10}


@pytest.mark.parametrize(
    ("image", "text", "preset"),
    [
        (CLIP, CLIP, "gpu"),
        pytest.param(VIT, BERT, "gpu", marks=pytest.mark.weekly),
        pytest.param(VIT, BERT, "colab", marks=pytest.mark.weekly),
    ],
)
def test_each_listed_encoder_reaches_the_end_and_one_that_sees_nothing_is_said_so(
    image: str, text: str, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"model": hub_nets.folder(image, **({"blocks": 1} if image == VIT else {}))}
    models["text_model"] = models["model"] if text == image else hub_nets.folder(text)
    run = hub_models.run_chapter("pgm", preset, monkeypatch, **models, **SMALL_RUN, device="cpu")
    row, chance = run.records["pgm.5"], run.names["read_alone"].low <= 50
    assert row.reason.startswith("Task not done on this model") == chance
    assert chance or row.estimate.n == 2  # networks on the one pair of encoders
