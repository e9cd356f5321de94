"""What a representation holds: linear probe, logit lens, similarity of two representations (linear CKA)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from lib.models import Subject
from lib.stats import Estimate, as_array, as_labels, bootstrap, proportion

_BLOCK_ELEMENTS = 2**23


@dataclass(frozen=True)
class Probe:
    """A linear readout; `features @ direction.T + bias` is its logit in the original feature space.

    Attributes:
        accuracy: on examples that the probe was not fitted on.
        control: the same with shuffled labels, where only chance is left.
        direction: shape (d,) for two classes, towards the second; (n_classes, d) for more. Not normalised.
        bias: shape () or (n_classes,).
        classes: the labels, in the order of the logits.
    """

    accuracy: Estimate
    control: Estimate
    direction: Float[np.ndarray, "*classes d"]
    bias: Float[np.ndarray, "*classes"]
    classes: np.ndarray


def linear_probe(
    features: Float[Tensor | np.ndarray, "n d"],
    labels: Sequence[Any] | np.ndarray | Tensor,
    *,
    groups: Sequence[Any] | np.ndarray | Tensor | None = None,
    test: Sequence[bool] | np.ndarray | Tensor | None = None,
    n_folds: int = 5,
    C: float = 1.0,
    seed: int = 0,
) -> Probe:
    """Logistic regression on standardised features, judged on held-out groups (Alain & Bengio 2016).

    Args:
        features: one row for each example.
        labels: shape (n,), two or more classes.
        groups: shape (n,); examples of one group (one image, one wording) never stand on both sides of a
            split, and the intervals are over groups. Without it each example stands for itself.
        test: shape (n,), True where held out; the probe is fitted on the rest. Without it each example is
            held out once, in one of `n_folds` folds, and the direction is fitted on all.
        n_folds: number of folds.
        C: inverse strength of the L2 penalty.
        seed: of the folds and of the shuffled labels.

    Raises:
        ValueError: lengths differ, values are not finite, one class only, too few examples or groups for
            the folds, or a group on both sides of `test`.
    """
    X, y = _array(features), as_labels(_array(labels))
    by = np.arange(len(y)) if groups is None else np.unique(as_labels(_array(groups)), return_inverse=True)[1]
    everything = np.ones(len(y), dtype=bool)
    held_out, fitted = (
        (everything, everything) if test is None else (_array(test), ~_array(test).astype(bool))
    )
    _check(X, y, by, fitted, held_out)
    fewest = min(len(set(by[y == label])) for label in np.unique(y))
    if test is None and fewest < n_folds:
        raise ValueError(
            f"n_folds={n_folds}, but one class has only {fewest} examples or groups: use fewer folds"
        )
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    folds = splitter(n_folds, shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000))

    def score(y: np.ndarray) -> Estimate:
        if test is None:
            predicted = cross_val_predict(model, X, y, groups=None if groups is None else by, cv=folds)
        else:
            predicted = model.fit(X[fitted], y[fitted]).predict(X[held_out])
        correct = predicted == y[held_out]
        if groups is None:
            return proportion(correct)
        return bootstrap(correct, clusters=by[held_out])

    accuracy, control = score(y), score(np.random.default_rng(seed).permutation(y))
    scaler, regression = (step for _, step in model.fit(X[fitted], y[fitted]).steps)
    direction = regression.coef_ / scaler.scale_
    bias = regression.intercept_ - direction @ scaler.mean_
    if len(regression.classes_) == 2:
        direction, bias = direction[0], bias[0]
    return Probe(accuracy, control, direction, np.asarray(bias), regression.classes_)


def _array(x: ArrayLike | Tensor) -> np.ndarray:
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = x.float() if x.dtype is torch.bfloat16 else x  # which NumPy does not have
    return as_array(x)


def _check(X: np.ndarray, y: np.ndarray, by: np.ndarray, fitted: np.ndarray, held_out: np.ndarray) -> None:
    shapes = y.shape, by.shape, held_out.shape
    if X.ndim != 2 or not len(X) or set(shapes) != {X.shape[:1]}:
        raise ValueError(f"features {X.shape} must be (n, d), n > 0; labels, groups, test (n,), not {shapes}")
    if bad := int((~np.isfinite(X)).any(1).sum()):
        raise ValueError(f"{bad} of {len(X)} rows of features are not finite")
    if held_out.dtype != bool or not held_out.any():
        raise ValueError("test must be True where an example is held out, and hold out at least one")
    if len(set(y[fitted])) < 2:
        raise ValueError(f"a probe is fitted on two classes or more; got {sorted(set(y[fitted].tolist()))}")
    if not fitted.all() and (both := set(by[fitted]) & set(by[held_out])):
        raise ValueError(f"{len(both)} groups are on both sides of `test`; hold out whole groups")


def logit_lens(subject: Subject, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
    """Logits as if `resid` left the last block: final norm, unembedding, soft cap (nostalgebraist 2020).

    Args:
        subject: a causal language model, or a vision-language model, whose language model is then used.
        resid: the residual stream at any layer, as captured at `resid_pre`, `resid_mid` or `resid_post`.

    Raises:
        LookupError: the model has no unembedding, or does more than these three after its last block.
        ValueError: the last axis is not d_model.
    """
    model = subject.model
    head = model.get_output_embeddings()
    if head is None or subject.tower_name != "text":
        raise LookupError(f"{type(model).__name__} has no unembedding: the logit lens needs a language model")
    if resid.shape[-1] != subject.d_model:
        raise ValueError(f"resid {tuple(resid.shape)} must end in d_model={subject.d_model}")
    if subject.layout.no_lens:
        raise LookupError(f"no logit lens of {type(model).__name__}: {subject.layout.no_lens}")
    return subject.layout.logits(head, resid)


def cka(
    x: Float[Tensor | np.ndarray, "n d_x"], y: Float[Tensor | np.ndarray, "n d_y"], *, debiased: bool = False
) -> float:
    """Linear centred kernel alignment of two representations of the same examples (Kornblith et al. 2019).

    It is 1 if they are equal up to rotation, isotropic scale and shift. For unrelated ones the plain
    estimate tends to 1 too where n is not far above d; the debiased one (unbiased HSIC, Song et al. 2012)
    scatters about 0. Takes min(n d_x d_y, n^2 (d_x + d_y) / 2) operations and a bounded amount of memory.

    Args:
        x: one row for each example; float64 is kept, everything else is computed in float32.
        y: rows of the same examples.
        debiased: use the unbiased estimate; needs 4 examples.

    Raises:
        ValueError: numbers of rows differ or are too small, or a representation does not vary.
    """
    return float(_cka_map({"x": x}, {"y": y}, debiased)[0, 0])


def cka_map(
    xs: Sequence[Float[Tensor | np.ndarray, "n _"]],
    ys: Sequence[Float[Tensor | np.ndarray, "n _"]],
    *,
    debiased: bool = False,
) -> Float[np.ndarray, "x y"]:
    """`cka` of each of several representations (the layers of a model) with each of several others.

    Each Gram matrix is computed once for the whole map, half of it, and never held as a whole; where examples
    are many and features few, no Gram matrix is computed at all.

    Raises:
        ValueError: as for `cka`.
    """
    named = {side: {f"{side}[{i}]": z for i, z in enumerate(zs)} for side, zs in (("xs", xs), ("ys", ys))}
    return _cka_map(named["xs"], named["ys"], debiased)


def _cka_map(xs: dict[str, Any], ys: dict[str, Any], debiased: bool) -> Float[np.ndarray, "x y"]:
    given = {
        name: z.detach() if isinstance(z, Tensor) else torch.as_tensor(as_array(z))
        for name, z in (xs | ys).items()
    }
    shapes = " and ".join(f"{name} {tuple(z.shape)}" for name, z in given.items())
    least = 4 if debiased else 2
    if not (xs and ys) or {z.ndim for z in given.values()} != {2} or len(set(map(len, given.values()))) > 1:
        raise ValueError(f"{shapes or 'nothing was given:'} must be (n, d) with one n >= {least}")
    first = next(iter(given.values()))
    if len(first) < least:
        raise ValueError(f"{shapes} must be (n, d) with one n >= {least}")
    double = any(z.dtype == torch.float64 for z in given.values())
    dtype = torch.float64 if double else torch.float32
    centred = {name: _centred(z.to(first.device, dtype), name) for name, z in given.items()}
    x, y = [centred[name] for name in xs], [centred[name] for name in ys]
    xx, xy, yy = _gram_products(x, y)
    if debiased:
        a, b = (torch.stack([z.double().square().sum(1) for z in zs]) for zs in (x, y))
        xx, yy = _debias(xx, (a * a).sum(1), a, a), _debias(yy, (b * b).sum(1), b, b)
        xy = _debias(xy, a @ b.T, a[:, None], b)
        if min(xx.min(), yy.min()) <= 10 * torch.finfo(dtype).eps:
            raise ValueError("all examples are equally far apart: the debiased similarity is undefined")
    return (xy / (xx[:, None] * yy).sqrt()).cpu().numpy()


def _centred(x: Float[Tensor, "n d"], name: str) -> Float[Tensor, "n d"]:
    centred = x - x.mean(0)
    if not (norm := centred.norm()) > 10 * torch.finfo(x.dtype).eps * x.norm():
        raise ValueError(f"{name} is the same for every example, or not finite: its similarity is undefined")
    return centred.div_(norm)


def _gram_products(
    xs: list[Float[Tensor, "n _"]], ys: list[Float[Tensor, "n _"]]
) -> tuple[Float[Tensor, " x"], Float[Tensor, "x y"], Float[Tensor, " y"]]:
    """Inner products of the Gram matrices K = xx' and L = yy': <K, K>, <K, L>, <L, L>; block by block.

    <K, L> is |x'y|^2 as well, which is cheaper where features are few.
    """
    n, everything = len(xs[0]), xs + ys
    widths = [z.shape[1] for z in everything]
    # Multiplications of |x'y|^2 for each pair, against those of half of each n by n Gram matrix.
    across = sum(x.shape[1] for x in xs) * sum(y.shape[1] for y in ys)
    if across + sum(d * d for d in widths) <= n * sum(widths) / 2 + n * len(xs) * len(ys) / 2:
        # Summed in float64: there are many entries, and most are small.
        def product(a: Tensor, b: Tensor) -> Tensor:
            parts = a.split(max(1, _BLOCK_ELEMENTS // b.shape[1]), dim=1)
            return torch.stack([(part.T @ b).square().sum(dtype=torch.float64) for part in parts]).sum()

        xx, yy = (torch.stack([product(z, z) for z in zs]) for zs in (xs, ys))
        return xx, torch.stack([torch.stack([product(x, y) for y in ys]) for x in xs]), yy

    squares = torch.zeros(len(everything), dtype=torch.float64, device=xs[0].device)
    across_products = squares.new_zeros(len(xs), len(ys))
    rows = max(1, _BLOCK_ELEMENTS // (n * len(everything)))
    for start in range(0, n, rows):
        grams = torch.stack([z[start : start + rows] @ z[start:].T for z in everything])
        grams[:, :, rows:] *= 2**0.5  # they stand for their mirror images too
        flat = grams.flatten(1).double()
        squares += flat.square().sum(1)
        across_products += flat[: len(xs)] @ flat[len(xs) :].T
    return squares[: len(xs)], across_products, squares[len(xs) :]


def _debias(
    product: Float[Tensor, "*pair"],
    diagonals: Float[Tensor, "*pair"],
    a: Float[Tensor, "*pair n"],
    b: Float[Tensor, "*pair n"],
) -> Float[Tensor, "*pair"]:
    """n(n - 3) times Song et al.'s estimator (eq. 5), from <K, L>, <a, b> and the diagonals a, b of K and L.

    The estimator is about K and L with the diagonals set to 0. Rows of a centred K sum to 0, so without the
    diagonal a they sum to -a.
    """
    n = a.shape[-1]
    return product + a.sum(-1) * b.sum(-1) / ((n - 1) * (n - 2)) - (1 + 2 / (n - 2)) * diagonals
