"""Estimates with intervals: bootstrap (BCa), paired difference, Student's t, Wilson."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import ArrayLike

# BCa's jackknife costs n^2; beyond this many examples its correction, of order 1/sqrt(n), is below
# the noise of the resampling, and the plain percentile interval is used.
_JACKKNIFE_LIMIT = 5_000
_ELEMENTS_PER_BATCH = 2**22


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval.

    Attributes:
        n: the number of independent examples (clusters, seeds) behind it.
        values: those of a handful of seeds, which are shown one by one.
        exact: nothing was sampled (an enumeration, an identity), so that an interval without width is right.
    """

    value: float
    low: float
    high: float
    n: int
    confidence: float = 0.95
    values: tuple[float, ...] = ()
    exact: bool = False

    def __post_init__(self) -> None:
        """Turn NumPy's numbers into Python's, which JSON can hold.

        Raises:
            ValueError: the confidence is none.
        """
        _check_confidence(self.confidence)
        for name in ("value", "low", "high", "confidence"):
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "n", int(self.n))

    def __str__(self) -> str:
        """With the digits that the interval's width justifies, as in `0.97 [0.95, 0.98]`."""
        if self.low == self.high:  # an interval without width is not shown as certainty
            return f"{self.value:.4g} ({'exact' if self.exact else f'all {self.n} alike'})"
        half_width = (self.high - self.low) / 2
        decimals = -math.floor(math.log10(half_width)) if 0 < half_width < math.inf else 3
        decimals += half_width >= 0.1
        kind = f"z.{max(decimals, 0)}f" if decimals <= 5 else ".4g"
        return f"{self.value:{kind}} [{self.low:{kind}}, {self.high:{kind}}]"


def as_array(x: ArrayLike) -> np.ndarray:
    """An array of what was given.

    Raises:
        ValueError: it is a masked array, which would come out without its mask.
    """
    if isinstance(x, np.ma.MaskedArray):
        raise ValueError("a masked array was given: give the values that count, as x.compressed() has them")
    return np.asarray(x)


def as_labels(x: ArrayLike) -> np.ndarray:
    """An array of labels, such as those of clusters.

    Raises:
        ValueError: it is a masked array, or one of them is NaN.
    """
    labels = as_array(x)
    if (labels != labels).any():
        raise ValueError("a label is NaN: leave its example out, or say where it belongs")
    return labels


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: a share between 0 and 1, such as 0.95")


def bootstrap(
    x: ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    *,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """BCa bootstrap interval of `statistic(x)` (Efron 1987), by SciPy.

    A sample whose resamples all agree (30 correct answers out of 30) gives an interval of zero width, which
    says nothing about the next example: for a proportion near 0 or 1 use `wilson`. With few examples
    the interval is too narrow (nominally 95 %, for 5 normal values it covers 84 %): use `t_interval`.

    Args:
        x: one row per example, shape (n,) or (n, ...); `statistic` gets resampled rows.
        statistic: maps rows to a number. One with an `axis` argument is vectorised when x has shape (n,).
        clusters: shape (n,), a label for each example; whole clusters are then resampled (several
            questions about one image, several examples of one seed).
        confidence: of the two-sided interval.
        n_resamples: number of bootstrap samples.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: fewer than 2 examples (or clusters), values that are not finite, lengths that differ, a
            confidence outside 0 to 1, or too few resamples for it.
    """
    x = as_array(x).astype(float)
    if x.ndim == 0 or (bad := _count_not_finite(x)):
        problem = "a single number" if x.ndim == 0 else f"{bad} of {x.size} not finite"
        raise ValueError(f"x must hold finite numbers, one row for each example (got {problem})")
    units, over_units = _units(x, statistic, clusters)
    n = len(units)
    _check_confidence(confidence)
    if n_resamples * (1 - confidence) < 2:
        raise ValueError(
            f"n_resamples={n_resamples}: too few for one resample beyond each end of a {confidence} interval"
        )
    if n < 2:
        what = "examples" if clusters is None else "clusters"
        raise ValueError(f"an interval needs at least 2 {what} (got {n})")
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        result = scipy.stats.bootstrap(
            (units,),
            over_units,
            n_resamples=n_resamples,
            batch=max(1, _ELEMENTS_PER_BATCH // n),
            confidence_level=confidence,
            method="BCa" if n <= _JACKKNIFE_LIMIT else "percentile",
            rng=np.random.default_rng(seed),
        )
    if bad := _count_not_finite(result.bootstrap_distribution):
        raise ValueError(f"the statistic is not finite on {bad} of {n_resamples} resamples: add examples")
    low, high = result.confidence_interval
    if not (math.isfinite(low) and math.isfinite(high)):  # BCa is undefined where resamples hardly differ
        tail = (1 - confidence) / 2
        low, high = np.quantile(result.bootstrap_distribution, [tail, 1 - tail])
    return Estimate(float(statistic(x)), float(low), float(high), n, confidence)


def _count_not_finite(x: np.ndarray) -> int:
    return int(np.size(x) - np.isfinite(x).sum())


def _units(
    x: np.ndarray, statistic: Callable[..., Any], clusters: ArrayLike | None
) -> tuple[np.ndarray, Callable[..., Any]]:
    """What SciPy resamples, and the statistic of a resample: of values, or of indices of rows or clusters."""
    if clusters is None:
        if x.ndim == 1:
            return x, statistic
        return np.arange(len(x)), lambda rows: statistic(x[rows])
    labels = as_labels(clusters)
    if labels.shape != x.shape[:1]:
        raise ValueError(f"clusters has shape {labels.shape}; x has {len(x)} examples: give each one label")
    _, cluster, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    units = np.arange(len(sizes))
    if statistic is np.mean and x.ndim == 1:
        sums = np.bincount(cluster, weights=x)
        return units, lambda c, axis: sums[c].sum(axis) / sizes[c].sum(axis)
    members = np.split(np.argsort(cluster, kind="stable"), np.cumsum(sizes)[:-1])
    return units, lambda c: statistic(x[np.concatenate([members[i] for i in c])])


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean of a - b over examples measured both ways, shape (n,) each, with its `bootstrap` interval."""
    a, b = as_array(a).astype(float), as_array(b).astype(float)
    if a.shape != b.shape:
        raise ValueError(f"a and b must be measured on the same examples; got shapes {a.shape} and {b.shape}")
    return bootstrap(a - b, clusters=clusters, confidence=confidence, n_resamples=n_resamples, seed=seed)


def t_interval(
    x: ArrayLike, *, bounds: tuple[float, float] | None = None, confidence: float = 0.95
) -> Estimate:
    """Mean of a few independent runs (seeds), shape (n,), with Student's t interval.

    Exact for normally distributed values; a sample of equal values gives an interval of zero width.

    Args:
        x: one value a run; up to eight are kept in the estimate's `values`.
        bounds: of a quantity that cannot leave a range: (0, 1) or (0, 100) for a share, (-1, 1) for a
            correlation. The interval is then made on the logit scale (Fisher's z for a correlation) by the
            delta method, and stays inside.
        confidence: of the interval.

    Raises:
        ValueError: fewer than 2 values, values that are not finite, or outside the bounds.
    """
    x = as_array(x).astype(float)
    if x.ndim != 1 or len(x) < 2 or _count_not_finite(x):
        raise ValueError(f"an interval needs at least 2 finite values (got {x.tolist()})")
    mean = float(x.mean())
    half_width = float(scipy.stats.sem(x) * scipy.stats.t.isf((1 - confidence) / 2, len(x) - 1))
    low, high = mean - half_width, mean + half_width
    if bounds is not None:
        least, most = bounds
        if x.min() < least or x.max() > most:
            raise ValueError(f"values from {x.min():g} to {x.max():g} leave the bounds {bounds}")
        share = (mean - least) / (most - least)
        if half_width and 0 < share < 1:
            # d logit(p) = dp / (p (1 - p)): the same half width, on a scale without ends.
            step = half_width / (most - least) / (share * (1 - share))
            centre = scipy.special.logit(share)
            low, high = (least + (most - least) * scipy.special.expit(centre + s * step) for s in (-1, 1))
    values = tuple(x.tolist()) if len(x) <= 8 else ()
    return Estimate(mean, float(low), float(high), len(x), confidence, values)


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """Proportion of successes in n independent trials, with Wilson's (1927) score interval.

    Raises:
        ValueError: n < 1, or successes outside 0..n; or they are no whole numbers.
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n or n % 1 or successes % 1:
        raise ValueError(f"successes={successes} of n={n}: needs whole numbers, n >= 1, 0 <= successes <= n")
    test = scipy.stats.binomtest(int(successes), int(n))
    interval = test.proportion_ci(confidence, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), int(n), confidence)


def proportion(hits: ArrayLike) -> Estimate:
    """Share of hits among independent trials, true or false each, with `wilson`'s interval.

    Raises:
        ValueError: there is no trial.
    """
    trials = np.asarray(hits)
    return wilson(int(trials.sum()), len(trials))
