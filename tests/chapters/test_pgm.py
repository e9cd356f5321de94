"""The method cells of notebooks/pgm.ipynb: the very code that the reader reads."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
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


def stack(kind: str, variants: list, *, n_in: int = 24, narrow: bool = False) -> tuple:
    """Shapes, weights in float64 and switches of a stack of untrained networks."""
    own = m.shapes(kind, n_in, N_BITS, narrow=narrow)
    seeds = list(range(len(variants)))
    flat = m.first_weights(own, seeds).double()
    return own, flat, m.switches(variants, seeds).to(flat)


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
    for part, bit, in_a, in_b in ((0, 0, 1, 0), (1, R, 1, 1), (2, S, 0, 0)):
        assert mutual_information(inA[part], y[:, bit]) == pytest.approx(in_a, abs=1e-3)
        assert mutual_information(inB[part], y[:, bit]) == pytest.approx(in_b, abs=1e-3)
    assert mutual_information(inA[2], inB[2], y[:, S]) == pytest.approx(1, abs=1e-3)
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


def test_two_digits_are_real_images_with_the_bits_that_they_show() -> None:
    sample = m.two_digits("validation", 600, rng())
    images, labels = digits("validation")
    known = {
        m.pixels(image[None])[0].numpy().tobytes(): label for image, label in zip(images, labels, strict=True)
    }
    shown = np.array([[known[x.numpy().tobytes()] for x in own] for own in sample.x])
    y = sample.y.numpy()
    np.testing.assert_array_equal(y[:, :2].T, shown >= 5)
    np.testing.assert_array_equal(y[:, S], shown.sum(0) % 2)
    np.testing.assert_array_equal(sample.parts[:, 2], shown % 2 == 1)
    assert not y[:, [R, 4, 5]].any()
    assert mutual_information(shown[0], y[:, S]) < 0.03  # of ten digits, by chance about 9 / (2 ln 2 n)
    assert mutual_information(shown[0] % 2, shown[0] >= 5) < 0.01


@pytest.mark.parametrize("overlap", [0, 2, 4, 6, 8])
def test_two_views_share_exactly_the_overlap(overlap: int) -> None:
    sample = m.two_views("validation", overlap)
    whole = m.pixels(digits("validation").images).unflatten(-1, (8, 8))
    left, right = sample.x.unflatten(-1, (8, 8))
    seen = [{c for c in range(8) if torch.equal(view[..., c], whole[..., c])} for view in (left, right)]
    assert seen[0] | seen[1] == set(range(8))
    assert len(seen[0] & seen[1]) == overlap
    assert len(seen[0]) == len(seen[1]) == 4 + overlap // 2
    assert not left[..., 4 + overlap // 2 :].any()
    np.testing.assert_array_equal(sample.y.argmax(1), digits("validation").labels)


@pytest.mark.parametrize("overlap", [-2, 3, 9, 10])
def test_an_overlap_that_cannot_be_is_refused(overlap: int) -> None:
    with pytest.raises(ValueError, match=f"overlap={overlap}: expected an even number of columns, 0 to 8"):
        m.two_views("validation", overlap)


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


def test_variants_of_a_task_get_the_same_labels_and_the_control_gets_those_of_other_examples(
    worlds: object,
) -> None:
    members = [m.Member(1, variant=m.Variant(gate=g)) for g in ("cummax", "half")]
    members += [m.Member(1, shuffled=True), m.Member(0)]
    a, b, shuffled, elsewhere = m.targets(members, worlds.y, seed=0)
    assert torch.equal(a, b)
    assert torch.equal(a[:, U], worlds.y[1, :, U])
    assert not torch.equal(a, elsewhere)
    assert torch.equal(shuffled.sum(0), a.sum(0))
    assert abs(((shuffled == a).double().mean(0) - 0.5).abs()).max() < 0.1


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


VARIANTS = [
    m.Variant(),
    m.Variant(tau=1.0, alpha=0.3, gamma=0.7),
    m.Variant(stop_gradient=False),
    m.Variant(alpha=0.0, gamma=0.0),
]


def test_r2_its_loss_and_its_gradient_equal_a_network_written_with_torchs_own_layers() -> None:
    own, flat, s = stack("r2", VARIANTS)
    flat.requires_grad_()
    x = inputs(len(VARIANTS))
    w = m.named(flat, own)
    y = torch.from_numpy(rng(5).integers(2, size=(len(VARIANTS), 7, N_BITS))).double()
    members = [m.Member(0, m.TASKS["both"], v) for v in VARIANTS]
    r = m.read_r2(w, x, s)
    losses = m.loss("r2", r, y, m.asked_bits(members).double(), s)
    gradient = m.named(torch.autograd.grad(losses.sum(), flat)[0], own)
    for i, variant in enumerate(VARIANTS):
        slow = Reference({name: t.detach() for name, t in w.items()}, i, variant)
        out = slow(x[i])
        for name in ("h", "g", "u", "p", "a", "h_hat"):
            torch.testing.assert_close(getattr(r, name)[i], torch.stack(out[name]))
        torch.testing.assert_close(r.scores[i], sum(out["a"]) + out["b"][0])
        loss = slow.loss(x[i], y[i], [0, 1, 3])
        torch.testing.assert_close(losses[i], loss)
        loss.backward()
        for name in ("gate", "uni1", "paired2", "encoder1", "decoder"):
            expected = slow.layers[f"{name}1" if name != "paired2" else "paired20"].weight.grad.T
            found = gradient[f"{name}.weight"][i]
            torch.testing.assert_close(found if found.ndim == 2 else found[1], expected)


def test_the_two_parts_add_up_and_the_gate_falls_along_the_features() -> None:
    own, flat, s = stack("r2", [m.Variant(), m.Variant(gate="sigmoid"), m.Variant(gate="hard")])
    r = m.read_r2(m.named(flat, own), inputs(3), s)
    torch.testing.assert_close(r.u + r.p, r.h)
    assert r.g.min() > -1e-12
    assert r.g.max() < 1 + 1e-12
    for cumulative in (0, 2):
        assert (r.g[cumulative].diff(dim=-1) <= 1e-12).all()
        assert r.g[cumulative, ..., -1].abs().max() < 1e-12
    assert set(r.g[2].unique().tolist()) <= {0.0, 1.0}


def test_a_hard_gate_passes_the_gradient_of_the_soft_one() -> None:
    own, flat, s = stack("r2", [m.Variant(), m.Variant(gate="hard")])
    flat = flat[:1].repeat(2, 1).requires_grad_()
    h = inputs(1, n_in=m.D).repeat(2, 1, 1, 1)
    g = m.partition(m.named(flat, own), h, s)
    soft, hard = torch.autograd.grad((g * h).sum(), flat)[0]
    assert soft.abs().max() > 0
    torch.testing.assert_close(soft, hard)


def test_frozen_gates_do_not_see_the_input_and_differ_by_seed_only_where_they_are_random() -> None:
    variants = [m.Variant(gate="half")] * 2 + [m.Variant(gate="random")] * 2
    own, flat, s = stack("r2", variants)
    g = m.read_r2(m.named(flat, own), inputs(4), s).g
    assert (g[:2] == 0.5).all()
    assert (g[2:] == g[2:, :, :1]).all()
    assert not torch.allclose(g[2], g[3])


@pytest.mark.parametrize(("kind", "depends"), [("r2", False), ("r1", True)])
def test_only_the_control_lets_a_gate_see_the_other_modality(kind: str, depends: bool) -> None:
    own, flat, s = stack(kind, [m.Variant()])
    x = inputs(1).requires_grad_()
    r = m.READ[kind](m.named(flat, own), x, s)
    for seen in (r.g[:, 0], *((r.a[:, 0],) if kind == "r2" else ())):
        (gradient,) = torch.autograd.grad(seen.sum(), x, retain_graph=True)
        assert gradient[:, 0].abs().max() > 0
        assert bool(gradient[:, 1].abs().max() > 0) is depends
    (gradient,) = torch.autograd.grad(r.b.sum(), x)
    assert (gradient.abs().amax((0, 2, 3)) > 0).all()


def test_the_stop_gradient_takes_the_first_term_from_the_uni_modal_learners() -> None:
    variants = [m.Variant(alpha=0.0, gamma=0.0, stop_gradient=stop) for stop in (True, False)]
    own, flat, s = stack("r2", variants)
    flat.requires_grad_()
    r = m.read_r2(m.named(flat, own), inputs(2), s)
    asked = m.asked_bits([m.Member(0, variant=v) for v in variants]).double()
    loss = m.loss("r2", r, torch.ones(2, 7, N_BITS).double(), asked, s).sum()
    gradient = m.named(torch.autograd.grad(loss, flat)[0], own)
    for name in ("uni1.weight", "uni2.bias"):
        assert gradient[name][0].abs().max() == 0
        assert gradient[name][1].abs().max() > 0
    assert gradient["paired1.weight"][0].abs().max() > 0
    assert gradient["decoder.weight"].abs().max() == 0


def test_bits_that_are_not_asked_for_cost_nothing() -> None:
    own, flat, s = stack("r2", [m.Variant(gamma=0.0)])
    r = m.read_r2(m.named(flat, own), inputs(1), s)
    asked = m.asked_bits([m.Member(0, m.TASKS["paired"])]).double()
    y = torch.zeros(1, 7, N_BITS).double()
    other = y.clone()
    other[..., [0, 1, 2, 4, 5]] = 1
    assert torch.equal(m.loss("r2", r, y, asked, s), m.loss("r2", r, other, asked, s))


def test_the_ensemble_averages_probabilities_and_the_distilled_network_is_drawn_to_its_teacher() -> None:
    own, flat, s = stack("single", [m.Variant()])
    r = m.read_single(m.named(flat, own), inputs(1), s)
    torch.testing.assert_close(r.scores.sigmoid(), (r.a[:, 0].sigmoid() + r.a[:, 1].sigmoid()) / 2)
    own, flat, s = stack("joint", [m.Variant(gamma=0.4)])
    r = m.read_joint(m.named(flat, own), inputs(1), s)
    y, asked = torch.ones(1, 7, N_BITS).double(), torch.ones(1, 1, N_BITS).double()
    teacher = torch.randn_like(r.h)
    extra = m.loss("umt", r, y, asked, s, teacher) - m.loss("joint", r, y, asked, s)
    torch.testing.assert_close(extra, 0.4 * (r.h - teacher).square().sum((1, 3)).mean(-1))
    assert torch.equal(m.loss("umt", r, y, asked, s, r.h.detach()), m.loss("joint", r, y, asked, s))


@pytest.mark.parametrize(("n_in", "n_bits"), [(24, 6), (64, 10), (768, 3)])
def test_baselines_have_as_many_parameters_as_r2(n_in: int, n_bits: int) -> None:
    target = m.size(m.shapes("r2", n_in, n_bits))
    for kind in ("joint", "single"):
        assert m.size(m.shapes(kind, n_in, n_bits)) == pytest.approx(target, rel=0.01)
    assert m.size(m.shapes("joint", n_in, n_bits, narrow=True)) < target
    narrow = m.shapes("joint", n_in, n_bits, narrow=True)
    assert narrow["paired1.weight"] == m.shapes("r2", n_in, n_bits)["paired1.weight"]


def test_first_weights_are_those_of_torchs_linear_layers_in_distribution() -> None:
    own = m.shapes("r2", 24, N_BITS)
    w = m.named(m.first_weights(own, range(40)), own)
    for name, fan in (("encoder1", 24), ("paired1", 32), ("gate", 16)):
        for part in ("weight", "bias"):
            values = w[f"{name}.{part}"]
            assert values.abs().max() <= fan**-0.5
            assert values.std().item() == pytest.approx((3 * fan) ** -0.5, rel=0.05)
    assert (w["norm.weight"] == 1).all()
    assert (w["norm.bias"] == 0).all()


# Training


def test_adamw_with_a_rate_for_each_parameter_equals_torchs_with_parameter_groups() -> None:
    recipe = m.Recipe(steps=30, batch_size=1, lr=0.05, seed=0, weight_decay=0.1)
    start = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.linspace(-1, 1, 15, dtype=torch.float64).view(3, 5)
    factors = torch.tensor([1.0, 3.0, 1 / 3]).double()[:, None].expand(3, 5)
    ours, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    rows = [nn.Parameter(row.clone()) for row in start]
    groups = [{"params": [row], "factor": f} for row, f in zip(rows, (1.0, 3.0, 1 / 3), strict=True)]
    peer = torch.optim.AdamW(groups, betas=recipe.betas, weight_decay=0.1)
    for step in range(recipe.steps):
        m.adamw(ours, 4 * (ours - target) ** 3, mean, square, step + 1, factors, recipe)
        for group in peer.param_groups:
            group["lr"] = recipe.rate(step) * group["factor"]
        peer.zero_grad()
        sum(((row - goal) ** 4).sum() for row, goal in zip(rows, target, strict=True)).backward()
        peer.step()
        torch.testing.assert_close(ours, torch.stack([row.detach() for row in rows]))


SHORT = m.Recipe(steps=12, batch_size=16, lr=1e-2, seed=4)


@pytest.mark.parametrize("kind", ["r2", "r1", "joint", "single"])
def test_a_network_in_a_stack_is_the_network_trained_alone(kind: str, worlds: object) -> None:
    members = [
        m.Member(0),
        m.Member(1, m.TASKS["paired"], m.Variant(gate="sigmoid", rate_paired=3.0)),
        m.Member(1, m.TASKS["uni"], m.Variant(gate="random", gamma=0.0), order=1),
    ]
    stack = m.train(kind, members, worlds, SHORT)
    for i, member in enumerate(members[:2]):
        single = m.train(kind, [replace(member), members[2]], worlds, SHORT)
        torch.testing.assert_close(single.weights[0], stack.weights[i])
        assert not torch.allclose(stack.weights[i], stack.first[i])


def test_networks_of_a_world_start_alike_and_order_and_weights_are_what_sets_them_apart(
    worlds: object,
) -> None:
    members = [m.Member(0), m.Member(0), m.Member(0, order=1), m.Member(0, weights=1), m.Member(1)]
    trained = m.train("r2", members, worlds, SHORT)
    first, last = trained.first, trained.weights
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[3])
    assert not torch.equal(first[0], first[4])
    assert torch.equal(last[0], last[1])
    assert not torch.allclose(last[0], last[2])


def test_a_rate_of_zero_keeps_its_part_where_it_was(worlds: object) -> None:
    variants = [m.Variant(rate_paired=0.0), m.Variant(rate_uni=0.0)]
    trained = m.train("r2", [m.Member(0, variant=v) for v in variants], worlds, SHORT)
    before, after = m.named(trained.first, trained.shapes), m.named(trained.weights, trained.shapes)
    for name in trained.shapes:
        paired = name.startswith("paired")
        assert torch.equal(before[name][0], after[name][0]) is paired
        assert torch.equal(before[name][1], after[name][1]) is not paired


def test_training_learns_the_unique_bits_and_follows_the_first_networks(worlds: object) -> None:
    recipe = m.Recipe(steps=100, batch_size=32, lr=1e-2, seed=0)
    ticks: list[int] = []
    trained = m.train(
        "r2",
        [m.Member(0), m.Member(1)],
        worlds,
        recipe,
        held_out=worlds,
        follow=1,
        tick=lambda: ticks.append(1),
    )
    assert len(ticks) == 100
    assert trained.history.shape == (20, 1, N_BITS)
    assert trained.history[-1, 0, :2].min() > 0.85
    found = m.accuracy(m.read(trained, worlds).scores, worlds.y)
    np.testing.assert_allclose(found[0], trained.history[-1, 0])
    np.testing.assert_allclose(m.accuracy(m.read(trained, worlds, [1]).scores, worlds.y[[1]]), found[[1]])


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
        assert found[stack] == pytest.approx(np.mean((X[300:] @ w > 0) == (y[300:] > 0)), abs=0.005)
    assert found[..., 0].min() > 0.95
    assert abs(found[..., 1:].mean() - 0.5) < 0.02


def test_what_is_explained_adds_up_and_a_silent_paired_learner_explains_nothing() -> None:
    own, flat, s = stack("r2", [m.Variant(), m.Variant()])
    w = m.named(flat.clone(), own)
    w["paired2.weight"][1], w["paired2.bias"][1] = 0, 0
    w["uni2.weight"][0], w["uni2.bias"][0] = 0, 0
    r = m.read_r2(w, inputs(2), s)
    asked = m.asked_bits([m.Member(0)] * 2).double()
    y = (r.scores > 0).double()  # so that what is said is right
    found = m.explained(r, y, asked)
    total = 3 * np.log(2) - m.cross_entropy(r.scores, y, asked).numpy()
    np.testing.assert_allclose(found.uni + found.paired, total)
    assert found.paired[1] == 0
    assert found.uni[0] == pytest.approx(0)
    np.testing.assert_allclose(found.share, [0, 1], atol=1e-12)
    nothing = m.Explained(np.array([-1.0, 0.0, -0.2]), np.array([-0.1, 0.0, 0.4]))
    np.testing.assert_allclose(nothing.share, [0.5, 0.5, 0])


def test_measures_do_not_depend_on_how_many_networks_are_read_at_a_time(worlds: object) -> None:
    members = [m.Member(i % 2, task, m.Variant()) for i, task in enumerate(m.TASKS.values())]
    trained = m.train("r2", members, worlds, SHORT)
    one, all_ = (m.measure(trained, worlds, 0, chunk=chunk) for chunk in (1, 24))
    for a, b in zip(one[:-1], all_[:-1], strict=True):
        np.testing.assert_allclose(a, b)
    np.testing.assert_allclose(one.explained, all_.explained)
    np.testing.assert_allclose(one.profile.mean(-1), one.share)
    before = m.read(trained, worlds, untrained=True).g.mean((2, 3)).numpy()
    np.testing.assert_allclose(one.before, before)
    assert not np.allclose(one.before, one.share)


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
    assert m.read(trained, m.stacked([samples["test"]])).g.shape == (1, 2, 40, m.D)


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


# Parameters

GOOD = {
    "n_seeds": 4,
    "n_few": 4,
    "n_grid": 4,
    "gate": "cummax",
    "tau": 0.2,
    "noise": 0.6,
    "learned": 0.7,
    "split": "test",
    "sizes": {"n_worlds": 8, "n_train": 100, "steps": 10},
    "weights": {"alpha": 1.0, "gamma": 0.0},
    "rates": {"lr": 1e-2},
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_few": 5}, r"n_few=5: expected 2 to n_seeds=4"),
        ({"n_seeds": 1}, r"n_few=4: expected 2 to n_seeds=1"),
        ({"n_grid": 3}, r"n_grid=3: .* at least 4"),
        ({"gate": "half"}, r"gate='half': expected one of cummax, sigmoid, hard"),
        ({"tau": 0.0}, r"tau=0.0: a temperature is positive"),
        ({"tau": float("nan")}, r"tau=nan"),
        ({"noise": -1.0}, r"noise=-1.0: a standard deviation"),
        ({"learned": 0.5}, r"learned=0.5: expected an accuracy between chance"),
        ({"split": "train"}, r"split='train': expected test or validation"),
        ({"sizes": {"n_train": 3}}, r"n_train=3: expected at least 40"),
        ({"sizes": {"steps": 0}}, r"steps=0: expected at least 1"),
        ({"weights": {"alpha": -1.0}}, r"alpha=-1.0: a weight of a loss is 0 or more"),
        ({"rates": {"lr": 0.0}}, r"lr=0.0: a learning rate is positive"),
    ],
)
def test_parameters_that_cannot_work_are_named_before_anything_runs(wrong: dict, message: str) -> None:
    m.check_parameters(**GOOD)
    with pytest.raises(ValueError, match=message):
        m.check_parameters(**GOOD | wrong)
