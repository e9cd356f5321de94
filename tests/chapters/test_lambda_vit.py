"""The method cells of notebooks/lambda-vit.ipynb: the very code that the reader reads."""

import io
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_models import run_chapter
from hub_nets import folder, images
from PIL import Image
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from lib import chapters, papers
from lib.models import Subject
from lib.organisms import FOLDER

m = chapters.method("lambda-vit")
N_LAYERS = 4


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        num_labels=5,
        initializer_range=0.2,
        layer_norm_eps=1e-6,
    )
    return Subject(ViTForImageClassification(config).eval())


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def skips(subject: Subject, pixels: torch.Tensor) -> dict:
    return m.Skips(subject, pixels)


@pytest.fixture(scope="module")
def task(subject: Subject, pixels: torch.Tensor) -> object:
    labels = torch.arange(12) % 5
    other = Subject(deepcopy(subject.model))
    with torch.no_grad():
        for weight in other.model.parameters():
            weight.mul_(1.05)
    return m.Task("random", [subject, other], pixels, labels, pixels[:6], labels[:6])


def lam(*values: float) -> torch.Tensor:
    return torch.tensor(values)


RECIPE = m.Recipe(steps=4, fade_fraction=0.75, batch_size=4, lr=1e-2, noise=0.1, seed=0)


# Entropy


def test_entropy_is_that_of_a_gaussian_up_to_the_dropped_constants() -> None:
    sigma = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    features = (
        torch.randn(200_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * sigma
    )
    closed_form = torch.distributions.Normal(0.0, sigma).entropy().sum()
    constants = 3 * (0.5 + 0.5 * np.log(2 * np.pi))
    assert m.entropy(features + 7.0) == pytest.approx((closed_form - constants).item(), abs=0.02)


def test_entropy_of_scaled_features_grows_by_the_log_of_the_scale_for_each_channel() -> None:
    features = torch.randn(50, 4)
    assert m.entropy(3 * features) - m.entropy(features) == pytest.approx(4 * np.log(3), abs=1e-5)


def test_layer_entropies_equal_the_standard_deviation_over_all_tokens_of_all_images(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(m, "BATCH", 5, raising=False)
    images = torch.randn(23, 1, 8, 8)
    with torch.no_grad(), m.capture(subject, "attn_out") as acts:
        subject.model(images)
    expected = [acts[i].double().flatten(0, 1).std(0, correction=0).log().mean() for i in range(N_LAYERS)]
    np.testing.assert_allclose(m.layer_entropies(subject, "attn_out", images), expected, atol=1e-5)


def test_an_untrained_network_can_show_low_entropy_at_the_bottom_if_it_is_there(
    subject: Subject, pixels: torch.Tensor
) -> None:
    """The null of claim 8 and the contrast of 6, 7, 15 and 16, with an effect planted."""
    fresh = m.reinitialised(subject, seed=0)
    for site, module in (("attn_out", "attention.o_proj"), ("mlp_out", "mlp.fc2")):
        planted = Subject(deepcopy(fresh.model))
        with torch.no_grad():
            for layer in planted.model.vit.layers[:2]:
                layer.get_submodule(module).weight.mul_(0.1)
        before, after = (m.layer_entropies(s, site, pixels) for s in (fresh, planted))
        assert after[0] - before[0] == pytest.approx(-np.log(10), abs=1e-4)
        assert (after[:2].mean() - after[2:].mean()) - (before[:2].mean() - before[2:].mean()) < -1


@pytest.mark.parametrize("broken", [0.0, float("nan"), float("inf")])
def test_a_dead_channel_is_refused_where_its_entropy_would_be_infinite(broken: float) -> None:
    features = torch.randn(20, 3)
    features[:, 1] = broken
    with pytest.raises(ValueError, match=r"1 of 3 channels do not vary or are not finite"):
        m.entropy(features)


def test_a_dead_unit_of_the_network_is_refused_and_not_ranked_first(
    subject: Subject, pixels: torch.Tensor
) -> None:
    dead = Subject(deepcopy(subject.model))
    with torch.no_grad():
        dead.model.classifier.weight[2] = 0  # a logit that never varies
        dead.model.vit.layers[1].mlp.fc2.weight[3] = 0
    skips = m.Skips(dead, pixels)
    with pytest.raises(ValueError, match="not vary"):
        m.greedy(lambda layers: abs(m.transfer_entropy(skips, layers, "head", 12)), N_LAYERS, 2)
    with pytest.raises(ValueError, match="not vary"):
        m.layer_entropies(dead, "mlp_out", pixels)


# Transfer entropy and the choice of layers


def test_transfer_entropy_of_the_empty_set_is_zero(skips: dict) -> None:
    for at in ("head", "last_block"):
        assert m.transfer_entropy(skips, [], at, 12) == 0.0


def test_transfer_entropy_is_complete_minus_skipped(skips: dict) -> None:
    complete, skipped = m.entropy(skips[frozenset()].head), m.entropy(skips[frozenset({1, 2})].head)
    assert m.transfer_entropy(skips, [1, 2], "head", 12) == complete - skipped != 0


def test_all_sets_in_one_sweep_equal_networks_whose_attention_returns_zeros(
    subject: Subject, pixels: torch.Tensor, skips: dict
) -> None:
    assert len(skips) == 2**N_LAYERS
    for layers, readout in skips.items():
        with torch.no_grad(), m.edit(subject, "attn_out", layer=sorted(layers), fn=torch.zeros_like):
            torch.testing.assert_close(readout.head, subject.model(pixels).logits, atol=1e-5, rtol=1e-4)


def test_deep_networks_are_skipped_set_by_set_with_the_same_result(
    subject: Subject, pixels: torch.Tensor, skips: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(m, "LAYERS_FOR_ALL_SETS", 2)
    monkeypatch.setitem(m.Skips.__init__.__globals__, "LAYERS_FOR_ALL_SETS", 2)
    one_by_one = m.Skips(subject, pixels)
    assert not one_by_one
    for layers in (frozenset(), frozenset({0, 3})):
        torch.testing.assert_close(one_by_one[layers].head, skips[layers].head, atol=1e-5, rtol=1e-4)
    assert len(one_by_one) == 2


def test_greedy_equals_exhaustive_search_for_one_layer_and_nests() -> None:
    rng = np.random.default_rng(0)
    table: dict[frozenset[int], float] = {}

    def score(layers: frozenset[int]) -> float:
        return table.setdefault(layers, rng.random())

    first = m.greedy(score, 6, 1)
    assert score(frozenset(first)) == min(score(frozenset({layer})) for layer in range(6))
    path = m.greedy(score, 6, 4)
    for k in range(1, 5):
        assert m.greedy(score, 6, k) == path[:k]
        rest = [layer for layer in range(6) if layer not in path[: k - 1]]
        assert score(frozenset(path[:k])) == min(score(frozenset((*path[: k - 1], i))) for i in rest)


def test_without_any_attention_all_images_get_one_answer_so_the_last_layer_is_never_scored(
    skips: dict,
) -> None:
    """The null of claims 1 and 2: what removes all attention must leave guessing."""
    logits = skips[frozenset(range(N_LAYERS))].head
    torch.testing.assert_close(logits, logits[:1].expand_as(logits))
    order = m.greedy(lambda s: abs(m.transfer_entropy(skips, s, "head", 12)), N_LAYERS, N_LAYERS)
    assert sorted(order) == list(range(N_LAYERS))


def test_greedy_looks_at_combinations() -> None:
    """Layers 0 and 1 replace each other: either can go, both cannot."""
    cost = {0: 0.1, 1: 0.1, 2: 1.0}
    assert m.greedy(lambda s: sum(cost[i] for i in s) + 5 * ({0, 1} <= s), 3, 2) == (0, 2)


def test_rules_choose_the_layers_that_they_are_named_for() -> None:
    def score(layers: frozenset[int]) -> float:
        return sum(2.0**layer for layer in layers)

    chosen = {rule: m.choose(rule, score, 6, 3, seed=0) for rule in m.RULES}
    assert chosen["nose"] == chosen["bottom"] == (0, 1, 2)
    assert chosen["anti"] == chosen["top"] == (5, 4, 3)
    assert chosen["alternate"] == (0, 2, 4)
    assert len(set(chosen["random"])) == 3
    assert len({m.choose("random", score, 6, 3, seed=seed) for seed in range(10)}) > 3


# Dilution


def test_lambda_one_gives_the_base_models_logits_bit_for_bit(subject: Subject, pixels: torch.Tensor) -> None:
    with torch.no_grad():
        base = subject.model(pixels).logits
        with m.diluted(subject, lam(1, 1, 1, 1), [0, 1, 2, 3]):
            diluted = subject.model(pixels).logits
    assert torch.equal(diluted, base)


def test_lambda_zero_equals_the_network_whose_attention_is_really_deleted(
    subject: Subject, pixels: torch.Tensor
) -> None:
    plan = m.Plan(0, (0, 2))
    small = m.shrunk(subject.model, plan)
    with torch.no_grad(), m.diluted(subject, lam(0, 1, 0, 1), [0, 2]):
        diluted = subject.model(pixels).logits
    torch.testing.assert_close(small(pixels).logits, diluted)
    names = dict(small.named_modules())
    assert "vit.layers.1.attention" in names
    assert "vit.layers.0.attention" not in names
    assert "vit.layers.0.layernorm_before" not in names
    removed_weights = 2 * (4 * 16**2 + 4 * 16 + 2 * 16)
    assert small.num_parameters() == subject.model.num_parameters() - removed_weights


def test_the_diluted_block_is_the_formula_in_float64(subject: Subject) -> None:
    model = deepcopy(subject.model).double()
    block, x, strength = model.vit.layers[1], torch.randn(2, 17, 16, dtype=torch.float64), 0.3
    attention = block.attention(block.layernorm_before(x))[0]
    expected = (2 - strength) * x + strength * attention
    expected = expected + block.mlp(block.layernorm_after(expected))
    half = Subject(model)
    with m.diluted(half, torch.tensor([1, strength, 1, 1], dtype=torch.float64), [1]):
        torch.testing.assert_close(block(x), expected)


def test_the_mlp_does_not_see_the_factor_two() -> None:
    norm = torch.nn.LayerNorm(16, eps=1e-12)
    x = torch.randn(5, 16)
    torch.testing.assert_close(norm(2 * x), norm(x))


def test_a_skipped_layers_attention_has_exactly_zero_gradient(subject: Subject, pixels: torch.Tensor) -> None:
    model = deepcopy(subject.model)
    with m.diluted(Subject(model), lam(1, 0, 1, 0.5), [1, 3]):
        model(pixels).logits.square().sum().backward()
    for layer, expected in ((0, False), (1, True), (2, False), (3, False)):
        gradients = [weight.grad for weight in model.vit.layers[layer].attention.parameters()]
        assert all(not gradient.any() for gradient in gradients) is expected


def test_lambda_falls_from_one_to_zero_and_stays_there_as_in_the_paper() -> None:
    paper = [m.strength(epoch, 300) for epoch in range(400)]
    assert paper[:300] == pytest.approx([1 - epoch / 299 for epoch in range(300)])
    assert paper[299:] == [0.0] * 101
    assert m.strength(0, 0) == 0.0


# Training


def test_side_by_side_training_equals_training_one_by_one(task: object) -> None:
    plans = [m.Plan(0), m.Plan(0, (1, 3)), m.Plan(1, (0,), fade=False), m.Plan(1, (2,))]
    together = m.train_together(task, plans, RECIPE)
    for plan, network in zip(plans, together, strict=True):
        (alone,) = m.train_together(task, [plan], RECIPE)
        np.testing.assert_allclose(alone.loss, network.loss, rtol=1e-3)
        # Not weight by weight: Adam makes noise of the biases of keys, whose true gradient is zero.
        logits = [m.read(one.subject.model, task.test).head for one in (alone, network)]
        torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)
    assert len({network.loss[-1] for network in together}) == len(plans)


def test_training_equals_a_plain_loop_with_adamw(task: object) -> None:
    (network,) = m.train_together(task, [m.Plan(1, order=3)], RECIPE)
    model = deepcopy(task.subjects[1].model)
    groups = [[w for w in model.parameters() if w.ndim > 1], [w for w in model.parameters() if w.ndim <= 1]]
    optimizer = torch.optim.AdamW(
        [{"params": g, "weight_decay": d} for g, d in zip(groups, (0.05, 0.0), strict=True)]
    )
    stream = np.random.default_rng([RECIPE.seed, 1, 3])
    for step in range(RECIPE.steps):
        for group in optimizer.param_groups:
            group["lr"] = RECIPE.learning_rate(step)
        pixels, labels = RECIPE.batch(task, [stream])
        loss = torch.nn.functional.cross_entropy(model(pixels[0]).logits, labels[0])
        assert loss.item() == pytest.approx(network.loss[step], rel=1e-3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_networks_from_one_base_see_the_same_images_and_other_orders_do_not(task: object) -> None:
    streams = [np.random.default_rng([0, base, order]) for base, order in ((0, 0), (0, 0), (0, 1), (1, 0))]
    pixels, labels = RECIPE.batch(task, streams)
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(labels[0], labels[1])
    assert not torch.equal(pixels[0], pixels[2])
    assert not torch.equal(pixels[0], pixels[3])


def test_training_leaves_the_base_networks_alone_and_changes_every_used_weight(task: object) -> None:
    before = deepcopy(task.subjects[0].model.state_dict())
    (network,) = m.train_together(task, [m.Plan(0, (1,), fade=False)], RECIPE)
    after = task.subjects[0].model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    trained = network.subject.model.state_dict()
    same = {name for name in before if torch.equal(before[name], trained[name])}
    assert all(name.startswith("vit.layers.1.") for name in same), same
    assert network.lam.tolist() == [0, 0, 0, 0]


# Frequencies and cost


def test_spectrum_of_a_constant_map_has_no_high_frequency_and_a_chessboard_only_that(
    subject: Subject, pixels: torch.Tensor
) -> None:
    network = m.Trained(m.Plan(0), subject, np.zeros(1), np.zeros(1))
    plain = m.spectrum(network, pixels)
    assert plain.shape == (N_LAYERS, 3)
    assert (plain[:, 0] == 0).all()
    chess = torch.ones(4, 4)
    chess[::2, 1::2] = chess[1::2, ::2] = -1
    for pattern, peak in ((torch.ones(4, 4), 0), (chess, 2)):
        tokens = torch.cat([torch.zeros(1), pattern.flatten()])[None, :, None].expand(12, 17, 16)
        with m.edit(subject, "resid_post", layer=0, fn=lambda x, tokens=tokens: tokens.clone()):
            amplitude = m.spectrum(network, pixels)[0]
        assert amplitude.argmax() == peak
        assert abs(amplitude[2] - amplitude[0]) > 10


def test_doubling_the_features_does_not_change_the_spectrum(subject: Subject, pixels: torch.Tensor) -> None:
    network = m.Trained(m.Plan(0), subject, np.zeros(1), np.zeros(1))
    last = N_LAYERS - 1
    plain = m.spectrum(network, pixels)[last]
    with m.edit(subject, "resid_post", layer=last, fn=lambda x: 2 * x):
        np.testing.assert_allclose(m.spectrum(network, pixels)[last], plain, atol=1e-5)


def test_a_resized_network_has_the_tokens_that_were_asked_for(subject: Subject) -> None:
    assert m.resized(subject.model, 14).vit.embeddings.position_embeddings.shape[1] == 197


# Criteria


def test_criteria_of_skipping_nothing_are_those_of_the_complete_network(
    subject: Subject, skips: dict
) -> None:
    pixels = skips.pixels
    scores = m.criteria(skips, subject, pixels, torch.arange(12) % 5, "head")
    complete = torch.nn.functional.cross_entropy(skips[frozenset()].head, torch.arange(12) % 5).item()
    for name, score in scores.items():
        expected = complete if name == "training loss" else 0
        assert score(frozenset()) == pytest.approx(expected, abs=1e-6), name
    assert scores["KL of the prediction"](frozenset({0})) > 0
    assert scores["|TE| (NOSE)"](frozenset({0})) == abs(m.transfer_entropy(skips, [0], "head", 12))


# Parameters and the way to full size

GOOD = {name: parameter.default for name, parameter in chapters.parameters("lambda-vit").items()}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_examples": 0}, r"n_examples=0: expected at least 8"),
        ({"n_seeds": 1}, r"n_seeds=1: expected at least 2"),
        ({"n_remove": -1}, r"n_remove=-1: expected at least 0"),
        ({"selection": "best"}, r"selection='best': expected one of nose, random, anti"),
        ({"readout": "middle"}, r"readout='middle': expected one of head, last_block"),
        ({"fade_fraction": 1.5}, r"fade_fraction=1.5: expected 0 to 1"),
        ({"batch_size": 0}, r"batch_size=0: expected at least 1"),
        ({"lr": 0.0}, r"lr=0.0: expected more than 0"),
    ],
)
def test_parameters_that_cannot_work_are_named_before_anything_runs(wrong: dict, message: str) -> None:
    chapters.check_parameters("lambda-vit", GOOD)
    with pytest.raises(ValueError, match=message):
        chapters.check_parameters("lambda-vit", GOOD | wrong)


def test_the_declared_choices_are_those_of_the_method() -> None:
    declared = {name: p.help for name, p in chapters.parameters("lambda-vit").items()}
    assert declared["selection"].endswith("one of " + ", ".join(m.RULES))
    assert sorted(m.Readout._fields) == sorted(declared["readout"].partition("one of ")[2].split(", "))


def test_base_networks_of_an_organism_are_its_seeds() -> None:
    networks = m.base_networks("digits-vit", 3, "cpu", "float32")
    heads = [network.model.classifier.weight for network in networks]
    assert not torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[1], heads[2])
    assert (FOLDER / "digits-vit-seed4").is_dir()


def test_images_of_an_organism_reach_the_network_as_in_training() -> None:
    (network,) = m.base_networks("digits-vit", 1, "cpu", "float32")
    pixels, labels = m.prepared(network, "digits", "test", 397, seed=0)
    expected = torch.from_numpy(m.digits("test").images)[:, None] / 127.5 - 1
    torch.testing.assert_close(pixels, expected)
    accuracy = (m.read(network.model, pixels).head.argmax(-1) == labels).float().mean()
    assert accuracy > 0.97


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random network of DeiT's class and colour channels, at 32 pixels."""
    folder = tmp_path_factory.mktemp("deit")
    torch.manual_seed(0)
    size = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32}
    config = ViTConfig(
        **size, num_hidden_layers=3, num_attention_heads=2, num_labels=50, initializer_range=0.2
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def real_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as the hub's, with pictures whose brightness tells the class."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, n in (("train", 60), ("test", 30)):
        labels, cells = rng.integers(4, size=n), []
        for label in labels:
            noise = rng.integers(0, 20, size=(40, 30, 3))
            file = io.BytesIO()
            Image.fromarray((60 * label + noise).astype(np.uint8)).save(file, format="PNG")
            cells.append({"bytes": file.getvalue(), "path": None})
        pq.write_table(pa.table({"img": cells, "fine_label": labels}), folder / f"{split}.parquet")
    return folder


def test_a_checkpoint_with_other_classes_gets_a_new_head_and_goes_the_whole_way(
    checkpoint: Path, real_images: Path
) -> None:
    networks = m.base_networks(str(checkpoint), 2, "cpu", "float32")
    sizes = {"n_train": 60, "n_test": 30, "seed": 0}
    task = m.make_task(str(checkpoint), networks, str(real_images), new_head=True, **sizes)
    assert task.train.shape == (60, 3, 32, 32)
    assert task.subjects[0].model.config.num_labels == 4
    assert m.correct(task.subjects[0].model, task).mean() > 0.9
    skips = m.Skips(task.subjects[0], task.train)
    layers = m.greedy(lambda s: abs(m.transfer_entropy(skips, s, "last_block", 60)), 3, 2)
    (network,) = m.train_together(task, [m.Plan(1, layers)], RECIPE)
    assert m.correct(network.model, task).shape == (30,)
    assert m.spectrum(network, task.test).shape == (3, 3)


def test_a_model_without_images_of_its_own_or_with_too_few_classes_says_what_to_set(
    checkpoint: Path, real_images: Path, subject: Subject
) -> None:
    networks = m.base_networks(str(checkpoint), 2, "cpu", "float32")
    sizes = {"n_train": 60, "n_test": 30, "seed": 0, "new_head": False}
    with pytest.raises(ValueError, match="no images of its own; give data="):
        m.make_task(str(checkpoint), networks, "", **sizes)
    narrow = Subject(deepcopy(networks[0].model), networks[0].processor)
    narrow.model.config.num_labels = 2
    with pytest.raises(ValueError, match="set new_head=True"):
        m.make_task(str(checkpoint), [narrow], str(real_images), **sizes)


LISTED = papers.read("lambda-vit").models
SMALLER = {"n_train": 64, "n_test": 8, "n_examples": 8, "n_seeds": 2, "dilute_steps": 1, "device": "cpu"}


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        (LISTED[0], "gpu"),
        *(pytest.param(name, "gpu", marks=pytest.mark.weekly) for name in (*LISTED[1:], "another/deit")),
        pytest.param(LISTED[0], "colab", marks=pytest.mark.weekly),
    ],
)
def test_each_listed_model_reaches_the_end_and_copies_of_it_are_one_network(
    model: str, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_chapter("lambda-vit", preset, monkeypatch, model=folder(model), data=images(), **SMALLER)
    assert run.names["tasks"][0].train.shape[1:] == (3, 224, 224)
    one_network = run.records["lambda-vit.6"]
    assert one_network.verdict == "not testable here"
    assert one_network.reason.startswith("One network")


def test_a_model_that_guesses_is_said_not_to_do_the_task(
    checkpoint: Path, real_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own random head answers, and it knows no class."""
    small = {"data": str(real_images), "new_head": False, "n_remove": 2, "n_train": 16, "batch_size": 4}
    run = run_chapter("lambda-vit", "gpu", monkeypatch, model=str(checkpoint), **SMALLER | small)
    run.check_task_not_done("lambda-vit", (1, 3, 4, 5, 8, 10, 13), "an accuracy of")


def test_a_network_with_two_classifiers_is_refused_by_name(tmp_path: Path) -> None:
    config = DeiTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"WithTeacher; the chapter needs a ViTForImageClassification or DeiT"
    ):
        m.base_networks(str(tmp_path), 2, "cpu", "float32")
