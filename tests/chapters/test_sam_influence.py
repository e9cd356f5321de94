"""The method cells of notebooks/sam-influence.ipynb: the very code that the reader reads."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import hub_models
import hub_nets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import grad, hessian, jacfwd, vmap
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from lib import chapters

m = chapters.method("sam-influence")
N, CLASSES, INPUTS, LAM, LR, STEPS = 14, 3, 4, 0.05, 0.4, 12
SEEDS, D = 2, (INPUTS + 1) * 3 + (3 + 1) * CLASSES


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def net() -> SimpleNamespace:
    """Two seeds of a tanh network in float64, trained for a few steps, with a small validation set."""
    torch.manual_seed(0)
    modules = [m.small_network(INPUTS, 3, CLASSES).double() for _ in range(SEEDS)]
    loss = m.cross_entropy(m.as_function(modules[0]))
    x = torch.randn(SEEDS, N, INPUTS, dtype=torch.float64)
    data = m.Labelled(x, torch.randint(CLASSES, (SEEDS, N)))
    validation = m.Labelled(torch.randn(9, INPUTS, dtype=torch.float64), torch.randint(CLASSES, (9,)))
    start = torch.stack([m.flat_weights(module) for module in modules])
    return SimpleNamespace(loss=loss, data=data, validation=validation, start=start, modules=modules)


@pytest.fixture(scope="module")
def sam(net: SimpleNamespace) -> object:
    return m.Sam(net.loss, 0.7, LAM)  # a radius at which A is far from symmetric


@pytest.fixture(scope="module")
def batches() -> Tensor:
    """Mini-batches, so that a sample is in some steps only."""
    return m.batch_order(N, 5, STEPS, np.random.default_rng(0))


def ends(sam: object, net: SimpleNamespace, s: Tensor, batches: Tensor) -> Tensor:
    """Final weights [seed, run, D] of trainings with sample weights s [seed, run, sample]."""
    w = net.start[:, None].expand(-1, s.shape[1], -1)
    return list(m.train(sam, w, s, net.data, batches, LR))[-1]


def trained(sam: object, net: SimpleNamespace, batches: Tensor) -> object:
    """A whole training with all weights of the samples 1."""
    ones = torch.ones(SEEDS, 1, N, dtype=torch.float64)
    path = torch.stack(list(m.train(sam, net.start[:, None], ones, net.data, batches, LR)))[:, :, 0]
    return m.Training(path, net.data, batches, LR)


def validation_loss(net: SimpleNamespace) -> Callable[[Tensor], Tensor]:
    return lambda w: net.loss(w, *net.validation).mean()


def by_finite_differences(sam: object, net: SimpleNamespace, batches: Tensor) -> Tensor:
    """-dw_T/ds_k [seed, k, D] by central differences of whole trainings."""
    bump = 1e-5 * torch.eye(N, dtype=torch.float64).expand(SEEDS, -1, -1)
    return -(ends(sam, net, 1 + bump, batches) - ends(sam, net, 1 - bump, batches)) / 2e-5


def own(net: SimpleNamespace, i: int = 0) -> object:
    return m.Labelled(net.data.x[i], net.data.y[i])


# Data


def test_flips_are_as_many_as_asked_and_every_one_is_to_a_wrong_class() -> None:
    labels = np.arange(200) % 10
    given, flipped = m.flip_labels(labels, 0.35, 10, np.random.default_rng(0))
    assert flipped.sum() == 70
    assert ((given != labels) == flipped).all()
    assert set(given) <= set(range(10))
    assert len({(g - t) % 10 for g, t in zip(given[flipped], labels[flipped], strict=True)}) == 9


@pytest.mark.parametrize("fraction", [0.0, 0.01, 1.0, 1.1, -0.1])
def test_label_noise_that_flips_no_label_or_all_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="some labels to flip and not all"):
        m.flip_labels(np.zeros(20, int), fraction, 10, np.random.default_rng(0))


def test_a_flip_needs_a_second_class() -> None:
    with pytest.raises(ValueError, match="second class"):
        m.flip_labels(np.zeros(4, int), 0.5, 1, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("flip_fraction", 1.1, "0.01 to 0.9"),
        ("rho", 0.0, "more than 0"),
        ("lam", 0.0, "more than 0"),
        ("rho_grid", [1.0, -0.5], "more than 0"),
        ("solver", "lu", "one of exact, gmres"),
        ("remove_grid", [1.0], "0.01 to 0.9"),
        ("n_seeds", 1, "at least 2"),
        ("steps", 9, "at least 10"),
    ],
)
def test_a_parameter_that_cannot_work_is_refused_and_named(name: str, value: object, complaint: str) -> None:
    good = {name: p.default for name, p in chapters.parameters("sam-influence").items()}
    chapters.check_parameters("sam-influence", good)
    with pytest.raises(ValueError, match=f"{name}=.*{complaint}"):
        chapters.check_parameters("sam-influence", {**good, name: value})


def test_training_sets_share_no_image_and_the_other_splits_none_with_them() -> None:
    sizes = {"train": 60, "validation": 12, "test": 15}
    drawn = m.drawn_pictures("digits", sizes, 3)
    assert {split: len(labels) for split, (_, labels) in drawn.items()} == sizes
    rows = [image.tobytes() for pictures, _ in drawn.values() for image in pictures]
    assert len(set(rows)) == len(rows)


def test_more_training_images_than_there_are_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"1300 images.*take fewer seeds or smaller sets"):
        m.labelled_pictures("digits", "train", 1300, 0)


def test_principal_components_equal_an_eigendecomposition_of_the_training_covariance() -> None:
    rng = torch.Generator().manual_seed(0)
    rows, other = torch.randn(30, 6, generator=rng).double(), torch.randn(5, 6, generator=rng).double()
    seen, placed = m.principal_components(rows, [other], 3)
    values, vectors = torch.linalg.eigh(torch.cov(rows.T, correction=0))
    expected = ((other - rows.mean(0)) @ vectors.flip(1)[:, :3]).abs() / values[-1].sqrt()
    torch.testing.assert_close(placed.abs(), expected)
    assert seen[:, 0].var(correction=0).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="pca_dim=8: these images have 1 to 6"):
        m.principal_components(rows, [other], 8)


# SAM


def test_sams_gradient_is_that_of_the_risk_at_the_worst_point_of_the_ball(
    sam: object, net: SimpleNamespace
) -> None:
    w, s = net.start[0], torch.rand(N, dtype=torch.float64)
    x, y = own(net)
    with torch.enable_grad():
        leaf = w.clone().requires_grad_()
        logits = net.modules[0].__class__(*net.modules[0])  # the real modules, with the weights put in
        nn.utils.vector_to_parameters(leaf.detach(), logits.parameters())
        (s * nn.functional.cross_entropy(logits(x), y, reduction="none")).mean().backward()
        g = torch.cat([p.grad.flatten() for p in logits.parameters()])
        e = 0.7 * g / g.norm()
        logits.zero_grad()
        nn.utils.vector_to_parameters(leaf.detach() + e, logits.parameters())
        (s * nn.functional.cross_entropy(logits(x), y, reduction="none")).mean().backward()
        expected = torch.cat([p.grad.flatten() for p in logits.parameters()]) + LAM * w
        nn.utils.vector_to_parameters(leaf.detach(), logits.parameters())
    torch.testing.assert_close(sam.gradient(w, s, x, y), expected)
    torch.testing.assert_close(sam.gradient(w, s, x, y, frozen=True), expected)
    torch.testing.assert_close(sam.ascent(w, s, x, y).norm(), torch.tensor(0.7, dtype=torch.float64))


def test_radius_zero_is_gradient_descent_with_weight_decay(net: SimpleNamespace) -> None:
    plain = m.Sam(net.loss, 0.0, LAM)
    s = torch.ones(N, dtype=torch.float64)
    expected = grad(plain.risk)(net.start[0], s, *own(net)) + LAM * net.start[0]
    torch.testing.assert_close(plain.gradient(net.start[0], s, *own(net)), expected)


def test_trainings_side_by_side_equal_trainings_one_by_one(
    sam: object, net: SimpleNamespace, batches: Tensor
) -> None:
    s = (torch.rand(SEEDS, 3, N, generator=torch.Generator().manual_seed(1)) > 0.2).double()
    together = ends(sam, net, s, batches)
    for seed in range(SEEDS):
        for run in range(3):
            w = net.start[seed]
            for batch in batches:
                x, y = net.data.x[seed, batch], net.data.y[seed, batch]
                w = w - LR * sam.gradient(w, s[seed, run, batch], x, y)
            torch.testing.assert_close(together[seed, run], w)


def test_an_epoch_shows_each_sample_once_and_size_zero_is_the_full_batch() -> None:
    order = m.batch_order(12, 4, 7, np.random.default_rng(0))
    assert order.shape == (7, 4)
    assert sorted(order[:3].flatten().tolist()) == sorted(order[3:6].flatten().tolist()) == list(range(12))
    assert order[:3].tolist() != order[3:6].tolist()
    assert m.batch_order(12, 0, 2, np.random.default_rng(0)).tolist() == [list(range(12))] * 2


# Influence from the trained weights


def exact_pieces(sam: object, net: SimpleNamespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """w, A = dG/dw, r = dG/ds · n and v0, by differentiating the algorithm itself."""
    w, s = net.start[0], torch.ones(N, dtype=torch.float64)
    A = jacfwd(sam.gradient)(w, s, *own(net))
    r = N * jacfwd(sam.gradient, argnums=1)(w, s, *own(net))
    return w, A, r, grad(validation_loss(net))(w)


def test_operators_are_the_jacobian_of_sams_gradient_and_its_transpose(
    sam: object, net: SimpleNamespace
) -> None:
    w, A, _, _ = exact_pieces(sam, net)
    curve = m.curvature(sam, w, *own(net))
    torch.testing.assert_close(m.matrix(curve.operator("SAM-HIF", LAM), D, w), A)
    torch.testing.assert_close(m.matrix(curve.transposed("SAM-HIF", LAM), D, w), A.mT)
    assert ((A - A.mT).norm() / A.norm()).item() > 0.05  # else the transpose would not be tested
    risk = lambda w: sam.risk(w, torch.ones(N, dtype=torch.float64), *own(net))  # noqa: E731
    eye = torch.eye(D, dtype=torch.float64)
    torch.testing.assert_close(m.matrix(curve.operator("IF", 0.3), D, w), hessian(risk)(w) + 0.3 * eye)
    at_worst = hessian(risk)(w + curve.e) + 0.3 * eye
    torch.testing.assert_close(m.matrix(curve.operator("SAM-IF", 0.3), D, w), at_worst)


@pytest.mark.parametrize("dense", [False, True])
def test_one_transposed_solve_gives_the_influence_of_every_sample(
    sam: object, net: SimpleNamespace, dense: bool
) -> None:
    """Against the direct form: n solves with dG/dw, right-hand sides dG/ds."""
    w, A, r, v0 = exact_pieces(sam, net)
    shift = LAM + 0.5
    changes = torch.linalg.solve(A + 0.5 * torch.eye(D, dtype=torch.float64), r) / N  # D sample
    curve = m.curvature(sam, w, *own(net))
    curve = m.with_matrices(curve) if dense else curve
    v = m.solve(curve.transposed("SAM-HIF", shift), v0, "exact")
    torch.testing.assert_close(m.influence(sam, w, own(net), curve, "SAM-HIF", v), changes.mT @ v0)


@pytest.mark.parametrize("kind", ["IF", "SAM-IF"])
def test_influence_that_ignores_the_perturbation_equals_its_textbook_formula(
    sam: object, net: SimpleNamespace, kind: str
) -> None:
    w, _, _, v0 = exact_pieces(sam, net)
    x, y = own(net)
    ones = torch.ones(N, dtype=torch.float64)
    at = w if kind == "IF" else w + sam.ascent(w, ones, x, y)
    H = hessian(lambda w: sam.risk(w, ones, x, y))(at) + 0.6 * torch.eye(D, dtype=torch.float64)
    each = jacfwd(lambda w: net.loss(w, x, y))(at)
    curve = m.curvature(sam, w, x, y)
    v = m.solve(curve.transposed(kind, 0.6), v0, "exact")
    expected = each @ torch.linalg.solve(H, v0) / N
    torch.testing.assert_close(m.influence(sam, w, own(net), curve, kind, v), expected)


def test_without_sam_the_three_estimators_are_one(net: SimpleNamespace) -> None:
    plain = m.Sam(net.loss, 0.0, LAM)
    curve = m.curvature(plain, net.start[0], *own(net))
    v0 = grad(validation_loss(net))(net.start[0])
    found = [
        m.influence(
            plain, net.start[0], own(net), curve, kind, m.solve(curve.transposed(kind, 1.0), v0, "exact")
        )
        for kind in m.KINDS
    ]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


def test_a_vanishing_gradient_is_refused_because_the_perturbation_has_no_direction() -> None:
    loss = lambda w, x, y: (w.sum() * 0.0) * x[:, 0]  # noqa: E731
    with pytest.raises(ArithmeticError, match="direction"):
        m.curvature(m.Sam(loss, 0.1, 0.1), torch.ones(3), torch.ones(2, 1), torch.zeros(2, dtype=torch.long))


def test_a_matrix_beyond_memory_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MemoryError, match=r"460,000 weights.*1,576\.5 GiB.*solver='gmres'"):
        m.matrix(lambda v: v, 460_000, torch.zeros(1, dtype=torch.float64))


# Solvers


@pytest.mark.parametrize("kind", ["IF", "SAM-IF", "SAM-HIF"])
@pytest.mark.parametrize("transposed", [True, False])
def test_gmres_finds_the_exact_solution_of_every_system(
    sam: object, net: SimpleNamespace, kind: str, transposed: bool
) -> None:
    curve = m.with_matrices(m.curvature(sam, net.start[0], *own(net)))
    v0 = grad(validation_loss(net))(net.start[0])
    systems = curve.operator(kind, 0.8), curve.transposed(kind, 0.8)
    exact = m.solve(systems[transposed], v0, "exact")
    found = m.solve(systems[transposed], v0, "gmres", tolerance=1e-10)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-8)
    other = m.solve(systems[not transposed], v0, "exact")
    assert torch.allclose(other, exact) == (kind != "SAM-HIF")
    both = m.solve(systems[transposed], torch.stack([v0, 2 * v0]), "gmres", tolerance=1e-10)
    torch.testing.assert_close(both, torch.stack([exact, 2 * exact]), rtol=1e-6, atol=1e-8)


def test_conjugate_gradients_go_wrong_on_a_matrix_that_is_not_symmetric_and_gmres_does_not() -> None:
    """Why the chapter puts them on trial: they assume what A is not."""
    rng = torch.Generator().manual_seed(0)
    skew = torch.randn(6, 6, generator=rng, dtype=torch.float64)
    M, b = 2 * torch.eye(6, dtype=torch.float64) + skew - skew.mT, torch.ones(6, dtype=torch.float64)
    try:
        assert (M @ m.iterated(M.matmul, b, tolerance=1e-8, method=m.cg) - b).norm() > 1e-3
    except ArithmeticError as error:
        assert "cg did not reach" in str(error)  # noqa: PT017
    torch.testing.assert_close(M @ m.iterated(M.matmul, b, tolerance=1e-10), b)


def test_a_solver_that_does_not_converge_says_so() -> None:
    singular = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    with pytest.raises(ArithmeticError, match=r"gmres did not reach.*raise the damping"):
        m.iterated(singular.matmul, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["IF", "SAM-IF", "SAM-HIF"])
def test_changes_of_the_weights_without_a_group_solve_the_estimators_own_system(
    sam: object, net: SimpleNamespace, kind: str
) -> None:
    """Against right-hand sides and matrices that are written out from the chapter's table."""
    w, A, r, _ = exact_pieces(sam, net)
    x, y = own(net)
    ones = torch.ones(N, dtype=torch.float64)
    if kind != "SAM-HIF":
        at = w if kind == "IF" else w + sam.ascent(w, ones, x, y)
        eye = torch.eye(D, dtype=torch.float64)
        A = hessian(lambda w: sam.risk(w, ones, x, y))(at) + LAM * eye
        r = jacfwd(lambda w: net.loss(w, x, y))(at).mT
    removed = torch.zeros(2, N, dtype=torch.float64)
    removed[0, 3], removed[1, [1, 5, 6]] = 1, 1
    curve = m.with_matrices(m.curvature(sam, w, x, y))
    found = m.weight_changes(sam, w, own(net), curve, kind, removed, LAM)
    torch.testing.assert_close(found, torch.linalg.solve(A, r @ removed.mT).mT / N)


# Influence along the path


def test_the_adjoint_is_the_derivative_of_the_whole_training(
    sam: object, net: SimpleNamespace, batches: Tensor
) -> None:
    run = trained(sam, net, batches)
    v0 = vmap(grad(validation_loss(net)))(run.path[-1])
    scores = m.adjoint(sam, run, v0)
    expected = torch.einsum("skd,sd->sk", by_finite_differences(sam, net, batches), v0)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-9)
    frozen = m.adjoint(sam, run, v0, frozen=True)
    assert ((frozen - scores).norm() / scores.norm()).item() > 0.01


def test_the_frozen_adjoint_equals_the_recursion_with_its_hessian_written_out(
    sam: object, net: SimpleNamespace, batches: Tensor
) -> None:
    """dw ← (I − η (B + λ)) dw − η/|B| g_k(w + e), forward, sample by sample."""
    run = trained(sam, net, batches)
    v0 = vmap(grad(validation_loss(net)))(run.path[-1])
    dw = torch.zeros(N, D, dtype=torch.float64)
    for t, batch in enumerate(batches):
        x, y, ones = net.data.x[0, batch], net.data.y[0, batch], torch.ones(len(batch), dtype=torch.float64)
        at = run.path[t, 0] + sam.ascent(run.path[t, 0], ones, x, y)
        B = hessian(lambda w: sam.risk(w, ones, x, y))(at)  # noqa: B023
        dw = dw - LR * (dw @ B + LAM * dw)
        dw[batch] -= LR / len(batch) * jacfwd(lambda w: net.loss(w, x, y))(at)  # noqa: B023
    found = m.adjoint(sam, run, v0, frozen=True)[0]
    torch.testing.assert_close(found, -dw @ v0[0])


def test_gif_is_the_sum_of_gradients_at_the_perturbed_weights(
    sam: object, net: SimpleNamespace, batches: Tensor
) -> None:
    run = trained(sam, net, batches)
    v0 = vmap(grad(validation_loss(net)))(run.path[-1])
    expected = torch.zeros(N, dtype=torch.float64)
    for t, batch in enumerate(batches):
        x, y, ones = net.data.x[1, batch], net.data.y[1, batch], torch.ones(len(batch), dtype=torch.float64)
        e = sam.ascent(run.path[t, 1], ones, x, y)
        for k in batch.tolist():
            g = grad(lambda w: net.loss(w, net.data.x[1, [k]], net.data.y[1, [k]])[0])(run.path[t, 1] + e)  # noqa: B023
            expected[k] += LR / len(batch) * (v0[1] @ g)
    torch.testing.assert_close(m.sam_gif(sam, run, v0)[1], expected)
    torch.testing.assert_close(m.sam_gif(sam, run.of(1), v0[1:])[0], expected)


def test_a_sample_that_no_batch_holds_has_no_influence(sam: object, net: SimpleNamespace) -> None:
    batches = torch.tensor([[0, 1, 2], [3, 4, 5]])
    run = trained(sam, net, batches)
    v0 = vmap(grad(validation_loss(net)))(run.path[-1])
    for scores in (
        m.adjoint(sam, run, v0),
        m.sam_gif(sam, run, v0),
    ):
        assert (scores[:, 6:] == 0).all()
        assert (scores[:, :6] != 0).all()


def test_the_last_step_alone_needs_no_hessian_of_the_weights(sam: object, net: SimpleNamespace) -> None:
    """After one step from fixed weights, SAM-GIF with a frozen e is exact."""
    batches = m.batch_order(N, 0, 1, np.random.default_rng(0))
    run = trained(sam, net, batches)
    v0 = vmap(grad(validation_loss(net)))(run.path[-1])
    gif = m.sam_gif(sam, run, v0)
    torch.testing.assert_close(m.adjoint(sam, run, v0, frozen=True), gif)


def test_tangents_of_groups_are_sums_over_their_members(
    sam: object, net: SimpleNamespace, batches: Tensor
) -> None:
    run = trained(sam, net, batches)
    groups = torch.zeros(SEEDS, 2, N, dtype=torch.float64)
    groups[:, 0, [1, 4, 7]], groups[:, 1, 3] = 1, 1
    exact = by_finite_differences(sam, net, batches)
    found = m.tangent(sam, run, groups)
    torch.testing.assert_close(found, torch.einsum("sgk,skd->sgd", groups, exact), rtol=1e-5, atol=1e-8)
    v0 = vmap(grad(validation_loss(net)))(run.path[-1])
    gif = m.sam_gif(sam, run, v0)
    rough = m.tangent(sam, run, groups, hessian=False)
    torch.testing.assert_close(torch.einsum("sgd,sd->sg", rough, v0), torch.einsum("sgk,sk->sg", groups, gif))


def test_the_adjoint_predicts_real_retraining_without_a_sample(sam: object, net: SimpleNamespace) -> None:
    gentle = m.Sam(net.loss, 0.1, LAM)
    batches = m.batch_order(N, 0, 40, np.random.default_rng(0))
    run = trained(gentle, net, batches)
    v0 = vmap(grad(validation_loss(net)))(run.path[-1])
    predicted = m.adjoint(gentle, run, v0)
    s = 1 - torch.eye(N, dtype=torch.float64).expand(SEEDS, -1, -1)
    runs = vmap(vmap(validation_loss(net)))(ends(gentle, net, s, batches))
    truth = runs - vmap(validation_loss(net))(run.path[-1])[:, None]
    assert m.spearman(predicted.numpy(), truth.numpy()).min() > 0.8  # one of 14 samples is no small change


# The other scores


def test_tracin_is_the_sum_of_gradient_products_at_checkpoints(
    sam: object, net: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(m, "CHECKPOINT_EVERY", 4)
    batches = m.batch_order(N, 0, STEPS, np.random.default_rng(0))
    run = trained(sam, net, batches)
    expected = torch.zeros(N, dtype=torch.float64)
    for t in (0, 4, 8):
        v = grad(validation_loss(net))(run.path[t, 0])
        expected += 4 * LR / N * (jacfwd(lambda w: net.loss(w, *own(net)))(run.path[t, 0]) @ v)
    torch.testing.assert_close(m.tracin(net.loss, run, net.validation)[0], expected)


def test_rank_correlation_and_area_under_the_curve_are_those_of_each_seed() -> None:
    up, down = np.array([1.0, 2.0, 3.0, 4.0]), np.array([4.0, 3.0, 2.0, 1.0])
    assert m.spearman(np.stack([up, up]), np.stack([up, down])) == pytest.approx([1, -1])
    positive = np.array([[False, False, True, True], [True, False, False, True]])
    assert m.area_under_roc(np.stack([up, up]), positive) == pytest.approx([1, 0.5])


def test_the_permutation_null_removes_a_planted_effect_and_shows_that_of_a_faulty_statistic() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((5, 24))
    marked = truth > 1
    planted = lambda t: m.spearman(truth, t) - m.spearman(rng.standard_normal((5, 24)), t)  # noqa: E731
    assert planted(truth).mean() > 0.7
    null = m.permutation_null(planted, truth, rng, 40)
    assert null.low < 0 < null.high
    assert abs(null.value) < 0.1
    assert m.area_under_roc(truth, marked).mean() == 1
    auc = m.permutation_null(lambda p: m.area_under_roc(truth, p), marked, rng)
    assert auc.low < 0.5 < auc.high
    # One that never looks at the values that were dealt would claim the effect everywhere.
    assert m.permutation_null(lambda t: planted(truth), truth, rng, 5).low > 0


def test_a_geometric_mean_keeps_its_interval_above_zero() -> None:
    e = m.geometric_mean(np.array([0.01, 0.1, 10.0]))
    assert e.value == pytest.approx(10 ** (-2 / 3))
    assert 0 < e.low < e.value < e.high


# The convex model, solved to the end


@pytest.fixture(scope="module")
def convex() -> SimpleNamespace:
    torch.manual_seed(1)
    x = nn.functional.pad(torch.randn(SEEDS, 60, 3, dtype=torch.float64), (0, 1), value=1.0)
    y = (x @ torch.randn(4, 3, dtype=torch.float64) + torch.randn(SEEDS, 60, 3)).argmax(-1)
    data = m.Labelled(x, y)
    loss = m.cross_entropy(m.as_function(nn.Linear(4, 3, bias=False)))
    with torch.no_grad():
        found = list(m.along_radii(loss, LAM, data, 12, [0.0, 0.4, 1.2]))
    return SimpleNamespace(data=data, loss=loss, found=found)


def test_the_ends_of_training_are_reached_and_are_where_descent_arrives(convex: SimpleNamespace) -> None:
    ones = torch.ones(60, dtype=torch.float64)
    for sam, w in convex.found:
        for i in range(SEEDS):
            x, y = convex.data.x[i], convex.data.y[i]
            assert sam.gradient(w[i, 0], ones, x, y).norm() < 1e-10
    sam, w = convex.found[1]
    slow = torch.zeros(12, dtype=torch.float64)
    for _ in range(400):
        slow = slow - 1.0 * sam.gradient(slow, ones, convex.data.x[0], convex.data.y[0])
    torch.testing.assert_close(slow, w[0, 0], rtol=1e-5, atol=1e-6)


def test_sam_hif_is_the_exact_derivative_of_the_solved_model_and_the_others_are_not(
    convex: SimpleNamespace,
) -> None:
    sam, w = convex.found[2]
    removed = torch.eye(60, dtype=torch.float64)[:4]
    bump = 1e-4 * removed.expand(SEEDS, -1, -1)
    up, down = (
        m.settled(sam, w.expand(-1, 4, -1), 1 + sign * bump, convex.data, tolerance=1e-13) for sign in (1, -1)
    )
    quotient = (down - up)[0] / 2e-4
    data = m.Labelled(convex.data.x[0], convex.data.y[0])
    curve = m.with_matrices(m.curvature(sam, w[0, 0], *data))
    error = {
        kind: (m.weight_changes(sam, w[0, 0], data, curve, kind, removed, LAM) - quotient).norm(dim=1)
        / quotient.norm(dim=1)
        for kind in m.KINDS
    }
    assert error["SAM-HIF"].max() < 1e-5
    assert error["IF"].min() > 1e-3
    assert error["SAM-IF"].min() > 1e-3


def test_leaving_one_out_is_solved_for_all_samples_at_once(convex: SimpleNamespace) -> None:
    sam, w = convex.found[2]
    s = (1 - torch.eye(60, dtype=torch.float64)).expand(SEEDS, -1, -1)
    together = m.settled(sam, w.expand(-1, 60, -1), s, convex.data)
    alone = m.settled(sam, w[:, :1], s[:, 7:8], convex.data)
    torch.testing.assert_close(together[:, 7:8], alone, rtol=1e-7, atol=1e-8)
    for i in range(SEEDS):
        for k in (0, 31, 59):
            residual = sam.gradient(together[i, k], s[i, k], convex.data.x[i], convex.data.y[i])
            assert residual.norm() < 1e-10


def test_no_end_of_training_is_an_error_that_says_what_to_do(convex: SimpleNamespace) -> None:
    sam, w = convex.found[1]
    ones = torch.ones(SEEDS, 1, 60, dtype=torch.float64)
    with pytest.raises(ArithmeticError, match=r"rho=0.4: no point with G = 0.*raise lam, or lower rho"):
        m.settled(sam, w + 1, ones, convex.data, tolerance=0.0, rounds=1)


# Features of a vision transformer in place of pixels


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8, patch_size=4, num_channels=3, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_labels=5, initializer_range=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("vit")
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in the form of CIFAR-100's on the hub."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, n in (("train", 30), ("test", 24)):
        cells = []
        for _ in range(n):
            file = io.BytesIO()
            Image.fromarray(rng.integers(256, size=(10, 10, 3), dtype=np.uint8)).save(file, "PNG")
            cells.append({"bytes": file.getvalue()})
        table = arrow.table({"img": cells, "fine_label": [i % 4 for i in range(n)]})
        parquet.write_table(table, folder / f"{split}-00000.parquet")
    return folder


def test_features_are_the_class_token_that_the_classifier_reads(vit_folder: Path, image_folder: Path) -> None:
    drawn = m.drawn_pictures(str(image_folder), {"train": 12, "validation": 8, "test": 9}, 0)
    subject = m.load(str(vit_folder), dtype="float64")
    pictures = drawn["train"][0]
    found = m.features_of(pictures, subject, batch=5)
    logits = subject.model(**subject.encode(images=pictures)).logits
    torch.testing.assert_close(subject.model.classifier(found), logits)
    held = [image.tobytes() for split in ("validation", "test") for image in drawn[split][0]]
    assert len(set(held)) == len(held) == 17


def test_pixels_are_grey_and_between_zero_and_one() -> None:
    white, black = Image.new("RGB", (8, 8), "white"), Image.new("L", (8, 8))
    assert m.features_of([white, black], None).tolist() == [[1.0] * 64, [0.0] * 64]


def test_accuracy_counts_what_each_of_several_networks_gets_right(net: SimpleNamespace) -> None:
    logits = m.as_function(net.modules[0])
    found = m.accuracy(logits, net.start[:, None].expand(-1, 2, -1), net.validation)
    right = [
        (module(net.validation.x).argmax(1) == net.validation.y).double().mean() for module in net.modules
    ]
    assert found.tolist() == [[pytest.approx(100 * share.item())] * 2 for share in right]


SMALL_RUN = {"n_seeds": 2, "n_train": 60, "n_validation": 30, "n_test": 60, "n_loo": 4, "batch_size": 30}
SMALL_RUN |= {"pca_dim": 8, "hidden": 8, "steps": 20, "rho_grid": [0.1, 0.5], "remove_grid": [0.2]}
SMALL_RUN |= {"damping": 0.3, "damping_grid": [0.3, 1.0], "device": "cpu", "dtype": "bfloat16"}


@pytest.mark.parametrize("preset", ["gpu", pytest.param("colab", marks=pytest.mark.weekly)])
def test_the_listed_model_reaches_the_end_in_half_precision_and_what_is_trained_on_it_is_double(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hub_nets.folder("google/vit-base-patch16-224", blocks=1)
    given = {"model": model, "data": hub_nets.images(n=130)}
    run = hub_models.run_chapter("sam-influence", preset, monkeypatch, **given, **SMALL_RUN)
    assert next(run.names["subject"].model.parameters()).dtype == torch.bfloat16
    assert run.names["trained"].dtype == run.names["end"].dtype == torch.float64
    unlearnt = run.names["before"].mean() <= 10
    for n in (3, 4, 5, 6, 9, 11, 12):
        assert run.records[f"sam-influence.{n}"].reason.startswith("Task not done") or not unlearnt
