"""Probes against planted truth, the logit lens against the model itself, CKA against its definition."""

import families
import numpy as np
import pytest
import torch
from similarity import cka_by_definition
from transformers import AutoConfig, AutoModelForCausalLM

from lib.hooks import capture
from lib.models import Subject
from lib.probes import cka, cka_map, linear_probe, logit_lens

# --- linear probe


def planted(n=400, d=30, seed=0):
    """Features with unequal scales and means, whose labels lie along one known direction."""
    r = np.random.default_rng(seed)
    scale, mean = np.exp(r.normal(size=d)), 10 * r.normal(size=d)
    direction = r.normal(size=d) / scale
    z = r.normal(size=(n, d))
    return mean + scale * z, (z * scale) @ direction > 0, direction


def test_a_planted_direction_is_found_in_the_original_feature_space_and_the_control_is_at_chance():
    X, y, direction = planted(2000)
    probe = linear_probe(X, y)
    cosine = probe.direction @ direction / np.linalg.norm(probe.direction) / np.linalg.norm(direction)
    assert cosine > 0.99
    assert probe.accuracy.value > 0.97
    assert probe.control.low < 0.5 < probe.control.high
    assert probe.accuracy.n == probe.control.n == 2000


def test_direction_and_bias_are_the_probes_logit():
    X, y, _ = planted()
    test = np.arange(len(y)) % 4 == 0
    probe = linear_probe(X, y, test=test)
    predicted = probe.classes[(X @ probe.direction + probe.bias > 0).astype(int)]
    assert np.mean(predicted[test] == y[test]) == probe.accuracy.value
    assert probe.accuracy.n == test.sum()

    labels = np.array(["a", "b", "c"])[np.argmax(X[:, :3] - X[:, :3].mean(0), 1)]
    probe = linear_probe(X, labels, test=test)
    assert probe.direction.shape == (3, X.shape[1])
    predicted = probe.classes[np.argmax(X @ probe.direction.T + probe.bias, 1)]
    assert np.mean(predicted[test] == labels[test]) == probe.accuracy.value > 0.8


def test_held_out_examples_do_not_touch_the_direction():
    X, y, _ = planted()
    test = np.arange(len(y)) % 4 == 0
    changed = np.where(test[:, None], 1e3, X)
    np.testing.assert_array_equal(
        linear_probe(X, y, test=test).direction, linear_probe(changed, y, test=test).direction
    )


@pytest.mark.parametrize("by_mask", [False, True])
def test_splitting_by_group_removes_a_leak_through_the_groups(by_mask):
    """Features tell the group, and nothing else: labels are random by group, the same within one."""
    r = np.random.default_rng(3)
    groups = np.repeat(np.arange(60), 8)
    X = r.normal(size=(60, 100))[groups] + 0.1 * r.normal(size=(480, 100))
    y = r.permutation(np.arange(60) % 2)[groups]
    mask = np.arange(480) % 4 == 0
    leaking = linear_probe(X, y, test=mask if by_mask else None)
    honest = linear_probe(X, y, groups=groups, test=groups % 4 == 0 if by_mask else None)
    assert leaking.accuracy.value > 0.95
    assert honest.accuracy.low < 0.5 < honest.accuracy.high
    assert honest.accuracy.n == (15 if by_mask else 60)
    assert leaking.control.value < 0.65
    with pytest.raises(ValueError, match="60 groups are on both sides"):
        linear_probe(X, y, groups=groups, test=mask)


def test_tensors_of_any_precision_and_device_layout_are_taken():
    X, y, _ = planted()
    reference = linear_probe(X.astype(np.float32), y)
    tensor = linear_probe(torch.tensor(X, dtype=torch.float32, requires_grad=True), torch.tensor(y))
    np.testing.assert_array_equal(tensor.direction, reference.direction)
    assert linear_probe(torch.tensor(X, dtype=torch.bfloat16), y.tolist()).accuracy.value > 0.8


X, Y = np.random.default_rng(0).normal(size=(12, 2)), np.arange(12) % 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": X[:5]}, r"features \(5, 2\) must be \(n, d\).*\(12,\)"),
        ({"features": X[0]}, r"features \(2,\) must be \(n, d\)"),
        ({"groups": [1, 2]}, r"groups, test \(n,\), not .*\(2,\)"),
        (
            {"features": np.where(np.arange(12)[:, None] == 3, np.nan, X)},
            "1 of 12 rows of features are not finite",
        ),
        ({"labels": np.ones(12)}, r"two classes or more; got \[1.0\]"),
        ({"test": np.arange(12)}, "test must be True where"),
        ({"test": np.zeros(12, bool)}, "hold out at least one"),
        ({"test": Y == 1}, r"two classes or more; got \[0\]"),
        ({"labels": np.where(np.arange(12) == 3, np.nan, Y)}, "a label is NaN"),
        ({"groups": np.where(np.arange(12) == 3, np.nan, np.arange(12))}, "a label is NaN"),
        ({"features": np.ma.masked_greater(X, 1)}, "a masked array was given"),
        ({"labels": np.ma.masked_equal(Y, 1)}, "a masked array was given"),
        ({"n_folds": 1}, "at least one train/test split"),
        ({"n_folds": 0}, "at least one train/test split"),
        ({"C": 0}, "The 'C' parameter"),
        ({"features": X[:0], "labels": Y[:0]}, r"features \(0, 2\) must be \(n, d\), n > 0"),
        ({"n_folds": 7}, "n_folds=7, but one class has only 6"),
        ({"groups": np.arange(12) // 4}, "n_folds=5, but one class has only 3 examples or groups"),
    ],
)
def test_what_cannot_be_probed_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(**({"features": X, "labels": Y} | arguments))


# --- logit lens

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 60,
    "pad_token_id": 0,
}
SPECIAL = {
    "opt": {
        "ffn_dim": 48,
        "word_embed_proj_dim": 16,
        "do_layer_norm_before": False,
    },  # a projection and no norm
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 2.0},
    "granite": {"logits_scaling": 1.0},
}


def special(family, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SMALL | SPECIAL[family] | changes))
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return Subject(model), {"input_ids": torch.arange(1, 19).view(2, 9)}


@pytest.mark.parametrize(
    "name", [*(families.LANGUAGE | families.VISION_LANGUAGE), *(f"special {f}" for f in SPECIAL)]
)
@torch.no_grad()
def test_the_lens_at_the_last_layer_gives_the_models_logits(name):
    if name.startswith("special"):
        subject, inputs = special(name.split()[1])
    else:
        subject = families.subject(name)
        inputs = families.inputs(subject)
    with capture(subject, "resid_post") as acts:
        logits = subject.model(**inputs).logits
    last = subject.n_layers - 1
    torch.testing.assert_close(logit_lens(subject, acts[last]), logits)
    torch.testing.assert_close(logit_lens(subject, acts[last][0, -1]), logits[0, -1])
    assert not torch.allclose(logit_lens(subject, acts[0]), logits, atol=0.1)
    if name == "special gemma2":
        assert logits.abs().max() > 1.5  # the cap bites


def test_gradients_flow_through_the_lens():
    resid = torch.randn(2, 32, requires_grad=True)
    logit_lens(special("gemma2")[0], resid)[:, 5].sum().backward()
    assert resid.grad.abs().min() > 0


def test_a_model_without_a_lens_says_why():
    resid = torch.zeros(1, 32)
    with pytest.raises(LookupError, match="ViTForImageClassification has no unembedding"):
        logit_lens(families.subject("vit"), resid)
    with pytest.raises(
        LookupError, match=r"no final norm \(norm, ln_f, .* in BertModel: embeddings, encoder"
    ):
        logit_lens(families.subject("bert"), resid)
    with pytest.raises(LookupError, match="no logit lens of GraniteForCausalLM: its logits are off"):
        logit_lens(special("granite", logits_scaling=8.0)[0], resid)
    with pytest.raises(ValueError, match=r"resid \(1, 33\) must end in d_model=32"):
        logit_lens(special("granite")[0], torch.zeros(1, 33))


# --- CKA


def related(n, d_x, d_y, seed=0):
    r = np.random.default_rng(seed)
    x = r.normal(size=(n, d_x)) + 5
    return x, x @ r.normal(size=(d_x, d_y)) / np.sqrt(d_x) + 0.5 * r.normal(size=(n, d_y)) - 3


both = pytest.mark.parametrize("debiased", [False, True])


@both
@pytest.mark.parametrize(("n", "d_x", "d_y"), [(40, 6, 11), (12, 50, 90), (30, 5, 200), (4, 3, 3)])
def test_feature_and_gram_form_equal_the_definition(n, d_x, d_y, debiased):
    x, y = related(n, d_x, d_y)
    assert cka(x, y, debiased=debiased) == pytest.approx(
        cka_by_definition(x @ x.T, y @ y.T, debiased), abs=1e-10
    )
    assert cka(x, y, debiased=debiased) == pytest.approx(cka(y, x, debiased=debiased), abs=1e-12)


@both
@pytest.mark.parametrize(("n", "d"), [(40, 6), (12, 50)])
def test_rotation_scale_and_shift_leave_a_similarity_of_one(n, d, debiased):
    x, y = related(n, d, 7)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(d, d)))[0]
    moved = 1e4 * x @ rotation + 100 * np.arange(d)
    assert cka(x, x, debiased=debiased) == pytest.approx(1, abs=1e-12)
    assert cka(x, moved, debiased=debiased) == pytest.approx(1, abs=1e-9)
    assert cka(moved, y, debiased=debiased) == pytest.approx(cka(x, y, debiased=debiased), abs=1e-9)
    stretched = x * np.exp(2 * np.arange(d) / d)  # not isotropic: another representation
    assert cka(x, stretched, debiased=debiased) < 0.999


def test_only_the_debiased_estimate_sees_that_independent_features_are_unrelated():
    r = np.random.default_rng(2)
    pairs = [(r.normal(size=(40, 1000)), r.normal(size=(40, 1000))) for _ in range(20)]
    assert min(cka(x, y) for x, y in pairs) > 0.9
    values = np.array([cka(x, y, debiased=True) for x, y in pairs])
    assert abs(values.mean()) < 4 * values.std(ddof=1) / np.sqrt(len(values))
    assert values.std() < 0.1


@both
def test_blocks_do_not_change_the_result(monkeypatch, debiased):
    for shape in [(40, 6, 11), (12, 50, 90)]:
        x, y = related(*shape)
        whole = cka(x, y, debiased=debiased)
        monkeypatch.setattr("lib.probes._BLOCK_ELEMENTS", 30)
        assert cka(x, y, debiased=debiased) == pytest.approx(whole, abs=1e-12)


@both
@pytest.mark.parametrize("shape", [(200, 16, 24), (50, 300, 200)])
def test_single_precision_is_enough(shape, debiased):
    x, y = related(*shape)
    expected = cka(x, y, debiased=debiased)
    single = [torch.tensor(z, dtype=torch.float32) for z in (x, y)]
    assert cka(*single, debiased=debiased) == pytest.approx(expected, abs=2e-5)
    assert cka(single[0], y, debiased=debiased) == pytest.approx(expected, abs=2e-5)
    assert cka(*(z.bfloat16() for z in single), debiased=debiased) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("x", "y", "debiased", "message"),
    [
        (np.ones((3, 2)), np.ones((4, 2)), False, r"x \(3, 2\) and y \(4, 2\)"),
        (np.ones(3), np.ones(3), False, r"must be \(n, d\)"),
        (np.eye(3), np.eye(3), True, "n >= 4"),
        (np.eye(5), 0.1 + np.zeros((5, 7), np.float32), False, "y is the same for every example"),
        (np.full((5, 2), np.nan), np.eye(5), False, "x is the same for every example, or not finite"),
        (np.ma.masked_less(np.eye(5), 1), np.eye(5), False, "a masked array was given"),
        (np.eye(5), np.eye(5), True, "equally far apart"),
    ],
)
def test_what_has_no_similarity_is_refused(x, y, debiased, message):
    with pytest.raises(ValueError, match=message):
        cka(x, y, debiased=debiased)


@both
@pytest.mark.parametrize("n", [15, 400])  # Gram matrices, and features
def test_a_map_holds_the_similarity_of_each_pair(monkeypatch, n, debiased):
    r = np.random.default_rng(3)
    xs = [r.normal(size=(n, d)) @ r.normal(size=(d, d)) for d in (7, 30, 9)]
    ys = [xs[0][:, :4] + r.normal(size=(n, 4)), xs[1]]
    expected = [[cka_by_definition(x @ x.T, y @ y.T, debiased) for y in ys] for x in xs]
    np.testing.assert_allclose(cka_map(xs, ys, debiased=debiased), expected, atol=1e-10)
    np.testing.assert_allclose(cka_map(ys, xs, debiased=debiased).T, expected, atol=1e-10)
    monkeypatch.setattr("lib.probes._BLOCK_ELEMENTS", 7 * 5 * n)  # a last block of another size
    np.testing.assert_allclose(cka_map(xs, ys, debiased=debiased), expected, atol=1e-10)
    assert cka_map(xs[:1], ys[:1]).shape == (1, 1)


@pytest.mark.parametrize(
    ("xs", "ys", "message"),
    [
        ([], [np.eye(4)], r"ys\[0\] \(4, 4\) must be"),
        ([np.eye(5), np.eye(4)], [np.eye(5)], r"xs\[1\] \(4, 4\).*one n"),
        ([np.eye(5)], [np.eye(5), np.ones((5, 2))], r"ys\[1\] is the same for every example"),
    ],
)
def test_a_map_names_what_has_no_similarity(xs, ys, message):
    with pytest.raises(ValueError, match=message):
        cka_map(xs, ys)
