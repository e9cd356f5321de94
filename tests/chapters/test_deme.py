"""The method cells of notebooks/deme.ipynb: the very code that the reader reads."""

import io
import shutil
import sys
from copy import deepcopy
from pathlib import Path

import hub_models
import hub_nets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from data.recipes.diffusion import Denoiser, DenoiserConfig, load_denoiser, noised
from lib import ROOT, chapters
from lib.models import load

m = chapters.method("deme")
T = m.STEPS


def denoiser(seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    return Denoiser(DenoiserConfig(width=12, depth=2, embedding=8)).eval()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten().double() for value in weights.values()])


@pytest.fixture
def net() -> object:
    return m.Net(denoiser())


@pytest.fixture
def base(net: object) -> dict[str, Tensor]:
    return weights_of(net.model)


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    ).eval()


IMAGES = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


# Ranges of noise levels


@given(st.integers(1, T))
def test_each_level_is_in_the_range_that_equation_7_gives_it(n: int) -> None:
    owner = m.owners([torch.arange(*part) for part in m.equal_ranges(n)])
    assert owner == [t * n // T for t in range(T)]


def test_no_range_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="n_ranges=0"):
        m.equal_ranges(0)


# Noise, samples, distances


def test_noising_is_the_closed_form_of_the_chain_in_float64() -> None:
    betas = np.linspace(1e-4, 0.02, T)
    t = torch.tensor([0, 17, 500, 999])
    x0, noise = IMAGES[:4], torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = []
    for image, level, eps in zip(x0.double().numpy(), t.tolist(), noise.double().numpy(), strict=True):
        kept = np.prod([1 - beta for beta in betas[: level + 1]])
        expected.append(np.sqrt(kept) * image + np.sqrt(1 - kept) * eps)
    np.testing.assert_allclose(noised(x0, t, noise).numpy(), np.array(expected), atol=1e-5)
    kept = np.cumprod(1 - betas)
    np.testing.assert_allclose(m.p2_weight().numpy(), 1 - kept, rtol=1e-4, atol=1e-6)  # 1 / (1 + SNR)


class Oracle(nn.Module):
    """Knows the one image that there is."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = nn.Parameter(image)

    def forward(self, x: Tensor, t: Tensor) -> object:
        kept = m.alpha_bar()[t].reshape(-1, 1, 1, 1)
        return type("Output", (), {"sample": (x - kept.sqrt() * self.image) / (1 - kept).sqrt()})


@pytest.mark.parametrize("n_steps", [1, 2, 13])
def test_a_denoiser_that_knows_the_image_draws_it_from_any_noise(n_steps: int) -> None:
    oracle = m.Net(Oracle(IMAGES[0]))
    weights = weights_of(oracle.model)
    drawn = m.sample(oracle, lambda t: weights, torch.randn(3, 1, 8, 8), n_steps)
    torch.testing.assert_close(drawn, IMAGES[:1].expand(3, -1, -1, -1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("n_steps", [50, 7])
def test_sampling_is_that_of_the_official_scheduler(
    net: object, base: dict, n_steps: int, recompute: bool, monkeypatch
) -> None:
    diffusers = pytest.importorskip("diffusers")
    start = 3 * torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(2))  # much is clipped
    drawn = m.sample(net, lambda t: base, start, n_steps, recompute=recompute)
    scheduler = diffusers.DDIMScheduler(T, 1e-4, 0.02, "linear")
    scheduler.set_timesteps(n_steps)
    x = start
    for t in scheduler.timesteps:
        with torch.no_grad():
            noise = net.model(x, t.repeat(5)).sample
        x = scheduler.step(noise, t, x, use_clipped_model_output=recompute).prev_sample
    torch.testing.assert_close(drawn, x, atol=2e-3, rtol=0)
    monkeypatch.setattr(m, "CHUNK", 2)
    again = m.sample(net, lambda t: base, start, n_steps, recompute=recompute)
    torch.testing.assert_close(again, drawn, atol=1e-4, rtol=0)


def test_sampling_keeps_the_predicted_noise_as_the_printed_formula_does(net: object, base: dict) -> None:
    start = 3 * torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    asked = []

    def at(t: int) -> dict:
        asked.append(t)
        return base

    drawn = m.sample(net, at, start, 4)
    assert asked == [750, 500, 250, 0]
    double = deepcopy(net.model).double()
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, T))
    x = start.double()
    for t, s in ((750, 500), (500, 250), (250, 0), (0, None)):
        with torch.no_grad():
            noise = double(x, torch.full((5,), t)).sample
        image = ((x - np.sqrt(1 - kept[t]) * noise) / np.sqrt(kept[t])).clamp(-1, 1)
        x = image if s is None else np.sqrt(kept[s]) * image + np.sqrt(1 - kept[s]) * noise
    torch.testing.assert_close(drawn.double(), x, atol=2e-3, rtol=0)
    other = m.sample(net, lambda t: base, start, 4, recompute=True)
    assert not torch.allclose(other, drawn, atol=1e-2)


def test_frechet_distance_equals_the_matrix_square_root_and_its_closed_forms() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(200, 6)), rng.normal(size=(150, 6)) @ rng.normal(size=(6, 6)) + 1
    a, b = m.gaussian(one), m.gaussian(two)
    cross = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * cross)
    assert m.frechet(a, b) == pytest.approx(expected, rel=1e-8)
    assert m.frechet(b, a) == pytest.approx(expected, rel=1e-8)
    assert m.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert m.frechet(a, m.gaussian(one + 2)) == pytest.approx(4 * 6)
    # of scaled data: the distance of the standard deviations in every direction
    assert m.frechet(a, m.Gaussian(a.mean, 9 * a.covariance)) == pytest.approx(4 * np.trace(a.covariance))
    flat_feature = m.gaussian(np.c_[one, np.zeros(len(one))])  # a unit that is never active
    assert np.isfinite(m.frechet(flat_feature, flat_feature))


def test_digit_features_are_the_classifiers_own_hidden_units() -> None:
    rng = np.random.default_rng(0)
    images, labels = torch.tensor(rng.normal(size=(60, 1, 8, 8))).float(), rng.integers(3, size=60)
    hidden, classifier = m.digit_features(images, labels)
    features = hidden(images)
    assert features.shape == (60, 32)
    assert (features >= 0).all()
    scores = features @ classifier.coefs_[-1] + classifier.intercepts_[-1]
    assert (classifier.classes_[scores.argmax(1)] == classifier.predict(images.flatten(1).numpy())).all()


# Gradients


def test_gradient_is_that_of_the_mean_loss_by_finite_differences() -> None:
    model = denoiser().double()
    net, weights = m.Net(model), weights_of(model)
    levels = torch.arange(300, 310)

    def draw() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    images = IMAGES.double()
    found = m.gradient(net, weights, images, levels, 40, draw())
    generator = draw()
    picked = images[torch.randint(len(images), (40,), generator=generator)]
    t = levels[torch.randint(len(levels), (40,), generator=generator)]
    noise = torch.randn(picked.shape, generator=generator)

    def loss(moved: dict[str, Tensor]) -> float:
        return float(((net(moved, noised(picked, t, noise), t).double() - noise) ** 2).mean())

    position = 0
    for name, value in weights.items():
        up, down = (weights | {name: value.clone()} for _ in range(2))
        up[name].view(-1)[0] += 1e-2
        down[name].view(-1)[0] -= 1e-2
        slope = (loss(up) - loss(down)) / 2e-2
        assert found[position].item() == pytest.approx(slope, abs=2e-4), name
        position += value.numel()
    assert position == len(found)


def test_the_correction_recovers_a_cosine_that_noise_hides() -> None:
    rng = np.random.default_rng(0)
    true = np.zeros((2, 4000))
    true[0, 0], true[1, :2] = 1, (0.6, 0.8)
    grams = []
    for _ in range(40):
        noisy = true + rng.normal(size=(4, 2, 4000)) * 0.04
        grams.append(m.products(torch.tensor(noisy)))
    raw = np.mean([m.cosines(g, 0, 1) for g in grams], 0)
    assert raw[0, 0] < 0.3  # the floor: one gradient with itself
    assert raw[0, 1] < 0.3
    itself, between = np.eye(2, dtype=bool), ~np.eye(2, dtype=bool)
    assert np.mean([m.beyond_noise(g, between) for g in grams]) == pytest.approx(0.6, abs=0.06)
    assert np.mean([m.beyond_noise(g, itself) for g in grams]) == pytest.approx(1, abs=0.06)  # the null
    np.testing.assert_allclose(m.corrected(grams), [[1, 0.6], [0.6, 1]], atol=0.06)
    only_noise = [m.products(torch.tensor(rng.normal(size=(4, 2, 4000)))) for _ in range(40)]
    scale = np.mean([np.einsum("dsds->", g) / 8 for g in only_noise])
    assert np.abs(np.mean([m.unbiased(g) for g in only_noise], 0)).max() < 0.01 * scale
    slow = np.array([[np.mean([noisy[a, s] @ noisy[b, r] for a in range(4) for b in range(4) if a != b])
                      for r in range(2)] for s in range(2)])  # fmt: skip
    np.testing.assert_allclose(m.unbiased(grams[-1]), slow, rtol=1e-9)


def test_random_sets_are_a_partition_and_owners_name_it() -> None:
    sets = m.random_sets([100, 400, 500], np.random.default_rng(0))
    assert [len(s) for s in sets] == [100, 400, 500]
    assert torch.equal(torch.cat(sets).sort().values, torch.arange(T))
    owner = m.owners(sets)
    assert all(owner[t] == i for i, s in enumerate(sets) for t in s.tolist())


# Fine-tuning


def job(base: dict, first: int = 0, stop: int = T, draws: int = 0, **settings: float) -> object:
    return m.Job(base, torch.arange(first, stop), draws, **settings)


@pytest.mark.parametrize("coin", [0.29, 0.31])
def test_levels_are_the_ranges_own_or_with_probability_p_any_and_half_are_mirrored(
    base: dict, coin: float
) -> None:
    u = torch.rand(1, 5000, generator=torch.Generator().manual_seed(0))
    t = m.pick_levels(u, torch.tensor([coin]), [job(base, 250, 500, p_global=0.3)])[0]
    low, high = (0, T) if coin < 0.3 else (250, 500)
    assert (t.min(), t.max()) == (low, high - 1)
    drawn, mirrored = t[:5000], t[5000:]
    assert ((drawn + mirrored - (low + high - 1)).abs() <= 1).all()
    assert t.double().mean() == pytest.approx((low + high - 1) / 2, abs=0.5)
    shares = torch.bincount(t - low, minlength=high - low) / len(t)
    assert shares.max() < 4 / (high - low)
    edge = m.pick_levels(torch.zeros(1, 1), torch.ones(1), [job(base, 250, 500)])
    assert edge.tolist() == [[250, 499]]


def reference(model: nn.Module, job: object, images: Tensor, steps: int, batch: int, lr: float) -> dict:
    """Equations 3 to 6 as a plain training loop in float64, with torch's own clipping."""
    student, teacher = deepcopy(model).double(), deepcopy(model).double()
    average = {name: value.clone() for name, value in student.state_dict().items()}
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, betas=(0.95, 0.999), weight_decay=1e-6)
    for step, (x0, noise, t) in enumerate(m.batches([job], images, batch, steps)):
        x0, noise, t = x0[0].double(), noise[0].double(), t[0]
        x = noised(x0, t, noise)
        out = student(x, t).sample
        per_image = ((out - noise) ** 2).mean((1, 2, 3)) * job.loss_weight[t].double()
        loss = per_image.mean() + job.consistency * ((out - teacher(x, t).sample.detach()) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        decay = min(0.9999, 1 - (1 + step) ** (-3 / 4))
        for name, value in student.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * value
    return average


def test_copies_trained_side_by_side_equal_a_plain_loop_in_float64_each(net: object, base: dict) -> None:
    other = weights_of(denoiser(1))
    weight = torch.linspace(0.1, 30, T)  # large: the gradient is clipped
    jobs = [
        job(base, 0, 250, draws=1),
        job(base, 750, 1000, draws=1, p_global=0.5, consistency=1.0),
        m.Job(other, torch.arange(T), 2, loss_weight=weight),
    ]
    found = m.finetune(net, jobs, IMAGES, steps=12, batch_size=8, lr=1e-2)
    for j, weights in zip(jobs, found, strict=True):
        model = denoiser()
        model.load_state_dict(j.start)
        expected = reference(model, j, IMAGES, 12, 8, 1e-2)
        assert (flat(weights) - flat(j.start)).norm() > 0.1
        torch.testing.assert_close(flat(weights), flat(expected), atol=2e-4, rtol=0)
    alone = m.finetune(net, jobs[1:2], IMAGES, steps=12, batch_size=8, lr=1e-2)[0]
    torch.testing.assert_close(flat(alone), flat(found[1]), atol=1e-4, rtol=0)


def test_fine_tuning_changes_neither_the_start_nor_jobs_that_share_it(net: object, base: dict) -> None:
    before = {name: value.clone() for name, value in base.items()}
    one, two = m.finetune(net, [job(base), job(base)], IMAGES, steps=3, batch_size=4, lr=1e-2)
    assert all(torch.equal(base[name], before[name]) for name in base)
    assert all(torch.equal(one[name], two[name]) for name in base)  # the same draws


def test_consistency_holds_a_copy_back(net: object, base: dict) -> None:
    jobs = [job(base, 0, 250, consistency=c) for c in (0.0, 1.0, 100.0)]
    found = m.finetune(net, jobs, IMAGES, steps=25, batch_size=8, lr=3e-3)
    x, t = noised(IMAGES, torch.full((30,), 100), torch.zeros_like(IMAGES)), torch.full((30,), 100)
    moved = [(net(w, x, t) - net(base, x, t)).norm().item() for w in found]
    assert moved[0] > moved[1] > moved[2]


def test_a_training_that_diverges_is_reported(net: object, base: dict) -> None:
    with pytest.raises(ValueError, match="diverged"):
        m.finetune(net, [job(base)], IMAGES * float("nan"), steps=1, batch_size=4, lr=1e-3)


# Projections


def test_identity_projections_change_nothing_and_others_act_on_the_channels(net: object, base: dict) -> None:
    projected = m.add_projections(net, (1, 8, 8))
    weights = m.projected_weights(base, projected)
    extra = weights.keys() - base.keys()
    assert sorted(extra) == ["blocks.0.projection", "blocks.1.projection"]
    x, t = IMAGES[:5], torch.arange(5) * 200
    assert torch.equal(projected(weights, x, t), net(base, x, t))
    matrix = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    changed = weights | {"blocks.1.projection": matrix}
    model = deepcopy(net.model)
    model.blocks[1].register_forward_hook(lambda block, _, output: output @ matrix.T)
    torch.testing.assert_close(projected(changed, x, t), model(x, t).sample)
    assert not any("projection" in name for name in net.model.state_dict())
    tuned = m.finetune(
        projected, [m.Job(weights, torch.arange(T), 0)], IMAGES, steps=2, batch_size=4, lr=1e-2
    )[0]
    assert all((tuned[name] - torch.eye(12)).abs().max() > 0 for name in extra)


def test_in_a_unet_the_hidden_state_is_projected_and_the_skip_connections_are_not(unet: nn.Module) -> None:
    net = m.Net(unet)
    projected = m.add_projections(net, (3, 8, 8))
    base = weights_of(unet)
    weights = m.projected_weights(base, projected)
    sizes = {name: tuple(weights[name].shape) for name in weights.keys() - base.keys()}
    assert sizes == {
        "down_blocks.0.projection": (8, 8),
        "down_blocks.1.projection": (16, 16),
        "mid_block.projection": (16, 16),
        "up_blocks.0.projection": (16, 16),
        "up_blocks.1.projection": (8, 8),
    }
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 800])
    torch.testing.assert_close(projected(weights, x, t), unet(x, t).sample)
    # With the last down block's hidden state deleted, only skip connections tell one image from another.
    off = weights | {
        "down_blocks.1.projection": torch.zeros(16, 16),
        "mid_block.projection": torch.zeros(16, 16),
    }
    assert not torch.allclose(projected(off, x, t)[0], projected(off, x.flip(0), t)[0])
    seen = m.activations(projected, off, m.Probe(x, t, x))
    assert [tuple(a.shape[:2]) for a in seen] == [(2, 8), (2, 16), (2, 16), (2, 16), (2, 8)]
    assert (seen[1] == 0).all()
    assert (seen[2] == 0).all()


# Merging


def test_merging_with_weight_zero_is_the_base_and_with_a_single_one_that_copy(base: dict) -> None:
    copies = [weights_of(denoiser(seed)) for seed in (1, 2, 3)]
    vectors = [m.task_vector(copy, base) for copy in copies]
    assert all(torch.equal(m.merge(base, vectors, (0, 0, 0))[name], base[name]) for name in base)
    for i, copy in enumerate(copies):
        one = m.merge(base, vectors, [float(i == j) for j in range(3)])
        torch.testing.assert_close(flat(one), flat(copy), atol=1e-6, rtol=0)
    w = (0.2, -0.5, 1.5)
    expected = flat(base) + sum(a * (flat(c) - flat(base)) for a, c in zip(w, copies, strict=True))
    torch.testing.assert_close(flat(m.merge(base, vectors, w)), expected, atol=1e-5, rtol=0)


def test_integer_buffers_are_neither_trained_nor_merged() -> None:
    class Counting(nn.Module):
        """A denoiser with a counter, as of batches that a norm has seen."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = denoiser()
            self.register_buffer("seen", torch.tensor(7))

        def forward(self, x: Tensor, t: Tensor) -> object:
            return self.inner(x, t)

    net, base = m.Net(Counting()), weights_of(Counting())
    jobs = [job(base, 0, 500, consistency=1.0), job(base | {"seen": torch.tensor(9)}, 500, 1000)]
    tuned = m.finetune(net, jobs, IMAGES, steps=2, batch_size=4, lr=1e-2)
    assert [weights["seen"].item() for weights in tuned] == [7, 9]
    vectors = [m.task_vector(weights, base) for weights in tuned]
    assert all("seen" not in vector for vector in vectors)
    merged = m.merge(base, vectors, (0.5, 0.5))
    assert merged.keys() == base.keys()
    assert merged["seen"].dtype == torch.int64
    assert merged["seen"] == 7
    assert m.random_like(vectors[0], torch.Generator()).keys() == vectors[0].keys()
    slopes = m.gradient(net, base, IMAGES, torch.arange(T), 4, torch.Generator())
    assert slopes.numel() == flat(base).numel() - 1


def test_random_directions_have_the_norm_of_the_task_vector_in_each_tensor(base: dict) -> None:
    vector = m.task_vector(weights_of(denoiser(1)), base)
    chance = m.random_like(vector, torch.Generator().manual_seed(0))
    for name, value in vector.items():
        assert chance[name].norm().item() == pytest.approx(value.norm().item(), rel=1e-5)
    assert abs(torch.cosine_similarity(flat(vector), flat(chance), dim=0)) < 0.15


def test_an_ensemble_asks_each_copy_at_its_own_levels_and_of_equal_copies_is_one_model(
    net: object, base: dict
) -> None:
    sets = [torch.arange(0, 300), torch.arange(300, 1000)]
    copies = [dict(base), dict(base)]
    at = m.ensemble(copies, m.owners(sets))
    assert at(0) is copies[0]
    assert at(299) is copies[0]
    assert at(300) is copies[1]
    assert at(999) is copies[1]
    start = torch.randn(4, 1, 8, 8)
    assert torch.equal(m.sample(net, at, start, 5), m.sample(net, lambda t: base, start, 5))
    other = m.ensemble([base, weights_of(denoiser(1))], m.owners(sets))
    assert not torch.allclose(m.sample(net, other, start, 5), m.sample(net, at, start, 5))


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=5))
def test_the_search_finds_the_best_weights_of_a_score_that_adds_up(target: list[float]) -> None:
    tried = []

    def score(w: tuple[float, ...]) -> float:
        tried.append(w)
        return sum((i + 1) * abs(a - b) for i, (a, b) in enumerate(zip(w, target, strict=True)))

    best, value = m.search(score, [0.0, 0.25, 0.5, 0.75, 1.0], len(target))
    assert best == tuple(target)
    assert value == 0
    assert len(tried) == len(set(tried)) <= 5 + 4 * len(target)


# Judging


def test_errors_equal_a_slow_loop_and_levels_are_spread_evenly(net: object, base: dict, monkeypatch) -> None:
    on = m.probe(IMAGES, 100, 0, "cpu")
    assert sorted(on.t.tolist()) == [10 * i + 5 for i in range(100)]
    torch.testing.assert_close(on.x, noised(IMAGES[torch.arange(100) % 30], on.t, on.noise))
    model = deepcopy(net.model).double()
    expected = []
    for x, t, noise in zip(on.x, on.t, on.noise, strict=True):
        with torch.no_grad():
            out = model(x[None].double(), t[None]).sample[0]
        expected.append(float(((out - noise.double()) ** 2).mean()))
    monkeypatch.setattr(m, "CHUNK", 7)
    found = m.errors(net, base, on)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    owner = [0] * 300 + [1] * 700
    per_set = m.by_set(found, on, owner)
    late = on.t.numpy() >= 300
    np.testing.assert_allclose(per_set, [found[~late].mean(), found[late].mean()])
    assert per_set @ [0.3, 0.7] == pytest.approx(found.mean())


def test_shifted_channels_move_channel_means_only_and_a_pattern_in_space_moves_places_only(
    unet: nn.Module,
) -> None:
    old = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0)) + 1
    shift = torch.tensor([1.0, -1.0, 2.0, -2.0]).reshape(1, 4, 1, 1)
    channels, places = m.mean_changes(old, old + shift)
    means = old.double().mean((2, 3))
    expected = np.sqrt(3 * (1 + 1 + 4 + 4)) / np.linalg.norm(means.numpy())
    assert channels == pytest.approx(expected, rel=1e-5)
    assert places == pytest.approx(0, abs=1e-6)
    pattern = torch.randn(1, 1, 5, 5)
    channels, places = m.mean_changes(old, old + pattern - pattern.mean())
    assert channels == pytest.approx(0, abs=1e-6)
    assert places > 0.01
    net, base = m.Net(unet), weights_of(unet)
    on = m.Probe(torch.randn(2, 3, 8, 8), torch.tensor([10, 900]), torch.zeros(2, 3, 8, 8))
    moved = base | {"conv_in.bias": base["conv_in.bias"] + 0.1}
    assert [a.ndim for a in m.activations(net, base, on)] == [4] * 5
    assert np.isfinite(m.channels_over_places(net, base, moved, on))
    assert not any(block._forward_hooks for block in m.blocks_of(unet).values())


# Models and data


def test_seeds_of_the_organism_are_different_networks_that_denoise() -> None:
    model, states = m.load_networks("digits-ddpm", 2, "cpu")
    net = m.Net(model)
    on = m.probe(m.pixels("validation"), 400, 0, "cpu")
    for weights in states:
        assert m.errors(net, weights, on).mean() < 0.15
    assert not torch.equal(states[0]["embed.weight"], states[1]["embed.weight"])
    with pytest.raises(ValueError, match="n_seeds=99: digits-ddpm comes in"):
        m.load_networks("digits-ddpm", 99, "cpu")


def test_a_changed_file_of_the_organism_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "data" / "models" / "digits-ddpm", tmp_path / "ddpm")
    assert isinstance(load_denoiser(folder), Denoiser)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="sha256"):
        load_denoiser(folder)


def test_without_diffusers_a_unet_is_refused_with_the_way_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"model='google/ddpm-cifar10-32' .*pip install diffusers"):
        m.load_networks("google/ddpm-cifar10-32", 2, "cpu")


def test_a_unet_of_diffusers_is_tuned_merged_and_sampled_like_the_organism(
    unet: nn.Module, tmp_path: Path
) -> None:
    unet.save_pretrained(tmp_path / "unet")
    model, states = m.load_networks(str(tmp_path / "unet"), 2, "cpu")
    assert len(states) == 2
    assert all(torch.equal(states[0][name], value) for name, value in unet.state_dict().items())
    net = m.Net(model)
    images = torch.rand(6, 3, 8, 8) * 2 - 1
    sets = [torch.arange(0, 500), torch.arange(500, T)]
    copies = [
        m.finetune(
            net,
            [m.Job(states[0], levels, i, p_global=0.3, consistency=1.0)],
            images,
            steps=2,
            batch_size=4,
            lr=1e-3,
        )[0]
        for i, levels in enumerate(sets)
    ]
    merged = m.merge(states[0], [m.task_vector(copy, states[0]) for copy in copies], (0.5, 0.5))
    for at in (m.ensemble(copies, m.owners(sets)), lambda t: merged):
        drawn = m.sample(net, at, torch.randn(2, 3, 8, 8), 3)
        assert drawn.shape == (2, 3, 8, 8)
        assert drawn.abs().max() <= 1
    assert (
        m.gradient(net, states[0], images, sets[0], 3, torch.Generator()).numel() == flat(states[0]).numel()
    )


def test_images_of_a_data_set_are_brought_to_the_models_shape_and_range(tmp_path: Path) -> None:
    def cell(value: int) -> dict[str, bytes]:
        file = io.BytesIO()
        Image.new("RGB", (10, 12), (value, 255, 0)).save(file, format="PNG")
        return {"bytes": file.getvalue()}

    for split, n in (("train", 12), ("test", 5)):
        table = pyarrow.table({"img": [cell(i) for i in range(n)], "label": list(range(n))})
        pyarrow.parquet.write_table(table, tmp_path / f"{split}-0.parquet")
    data = m.load_data(str(tmp_path), n_train=8, n_test=4, shape=(3, 8, 6), seed=0)
    assert [tuple(part.shape[1:]) for part in data[:3]] == [(3, 8, 6)] * 3
    assert len(data.train) + len(data.validation) == 12
    assert len(data.train) == len(data.labels)
    assert (data.train[:, 1] == 1).all()
    assert (data.train[:, 2] == -1).all()
    reds = ((torch.cat([data.train, data.validation])[:, 0, 0, 0] + 1) * 127.5).round().int()
    assert sorted(reds.tolist()) == list(range(12))  # no image is in both
    with pytest.raises(ValueError, match=r"images of \(1, 8, 8\), the model takes \(3, 32, 32\)"):
        m.load_data("digits", n_train=8, n_test=4, shape=(3, 32, 32), seed=0)


def test_features_of_a_vision_transformer_are_its_class_token() -> None:
    subject = load("digits-vit")
    pixels = m.pixels("validation")[:7]
    features = m.vit_features("digits-vit", "cpu")(pixels)
    with torch.inference_mode():
        expected = subject.model.vit(pixels).last_hidden_state[:, 0]
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-4)


@pytest.mark.weekly  # a minute and more of processor time
@pytest.mark.parametrize("preset", ["gpu", "colab"])
def test_the_listed_unet_reaches_the_end_and_copies_of_it_are_one_network(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("diffusers")
    smaller = {
        "finetune_steps": 1,
        "batch_size": 2,
        "merge_grid": [0.0, 1.0],
        "n_samples": 40,
        "n_search": 40,
    }
    smaller |= {"ddim_steps": 1, "n_train": 60, "n_test": 40, "n_levels": 6, "n_gradient": 1, "n_ranges": 2}
    run = hub_models.run_chapter(
        "deme",
        preset,
        monkeypatch,
        model=hub_nets.folder("google/ddpm-cifar10-32"),
        data=hub_nets.images(n=110, column="img"),
        features=hub_nets.folder("facebook/deit-tiny-patch16-224", blocks=1),
        device="cpu",
        dtype="float32",  # the preset's bfloat16 is slow on a CPU
        **smaller,
    )
    for n in (6, 8):
        reason = run.records[f"deme.{n}"].reason
        assert reason.startswith("One network") or "lost in its noise" in reason or "lost in their" in reason
    assert run.records["deme.7"].verdict != "not testable here"  # a U-Net has places
