"""Intervals: against SciPy, against closed forms, and by their coverage of a known truth."""

from functools import partial

import numpy as np
import pytest
import scipy.stats

from lib.stats import Estimate, bootstrap, paired_difference, proportion, t_interval, wilson


def coverage(sample, interval, truth, n_samples=400):
    """Share of simulated samples whose interval contains the truth; standard error 0.011 at 95 %."""
    estimates = [interval(sample(np.random.default_rng(i))) for i in range(n_samples)]
    return np.mean([e.low <= truth <= e.high for e in estimates])


# Four standard errors of a coverage of 0.95 measured on 400 samples.
SLACK = 4 * np.sqrt(0.95 * 0.05 / 400)


@pytest.mark.parametrize("statistic", [np.mean, np.median, np.std])
def test_bootstrap_is_scipys_bca(statistic):
    x = np.random.default_rng(1).exponential(size=60)
    ours = bootstrap(x, statistic, n_resamples=999, confidence=0.9, seed=5)
    theirs = scipy.stats.bootstrap(
        (x,), statistic, n_resamples=999, confidence_level=0.9, method="BCa", rng=np.random.default_rng(5)
    ).confidence_interval
    assert (ours.low, ours.high) == (theirs.low, theirs.high)
    assert (ours.value, ours.n, ours.confidence) == (statistic(x), 60, 0.9)


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    found = coverage(lambda r: r.normal(3, 2, size=60), lambda x: bootstrap(x, n_resamples=500), 3)
    assert abs(found - 0.95) < SLACK


def test_bootstrap_covers_a_correlation_of_rows():
    covariance = [[1, 0.6], [0.6, 1]]
    found = coverage(
        lambda r: r.multivariate_normal([0, 0], covariance, size=80),
        lambda rows: bootstrap(rows, lambda rows: np.corrcoef(rows.T)[0, 1], n_resamples=200),
        0.6,
        n_samples=100,
    )
    assert abs(found - 0.95) < 2 * SLACK  # a quarter of the samples


def test_beyond_the_jackknife_limit_the_interval_is_that_of_the_normal_approximation():
    x = np.random.default_rng(2).exponential(size=20_000)
    found, half_width = bootstrap(x), 1.96 * x.std() / np.sqrt(len(x))
    np.testing.assert_allclose(
        [found.low - x.mean(), found.high - x.mean()], [-half_width, half_width], rtol=0.1
    )


def correlated(r):
    """30 clusters of 10 examples that share most of their noise; the mean is 0."""
    return (r.normal(size=(30, 1)) + 0.3 * r.normal(size=(30, 10))).ravel()


LABELS = np.repeat([f"image {i}" for i in range(30)], 10)


def test_only_the_cluster_bootstrap_covers_the_mean_of_correlated_examples():
    by_cluster = coverage(correlated, lambda x: bootstrap(x, clusters=LABELS, n_resamples=500), 0)
    by_example = coverage(correlated, lambda x: bootstrap(x, n_resamples=500), 0, n_samples=100)
    assert abs(by_cluster - 0.94) < SLACK  # 30 clusters: a little below nominal
    assert by_example < 0.6


def test_clusters_of_one_example_change_nothing():
    x = np.random.default_rng(3).normal(size=40)
    one_each = bootstrap(x, clusters=np.arange(40), seed=7)
    np.testing.assert_allclose(
        [one_each.low, one_each.high], [bootstrap(x, seed=7).low, bootstrap(x, seed=7).high]
    )


def test_the_vectorised_cluster_mean_equals_the_mean_of_the_clusters_rows():
    r = np.random.default_rng(4)
    x, labels = r.normal(size=90), r.integers(0, 25, size=90)  # unequal sizes, not in order
    fast = bootstrap(x, clusters=labels)
    slow = bootstrap(x, lambda rows: rows.mean(), clusters=labels)
    np.testing.assert_allclose([fast.value, fast.low, fast.high], [slow.value, slow.low, slow.high])
    assert fast.n == len(np.unique(labels))


def test_the_seed_decides_the_interval():
    x = np.random.default_rng(5).normal(size=30)
    assert bootstrap(x, seed=1) == bootstrap(x, seed=1) != bootstrap(x, seed=2)


@pytest.mark.filterwarnings("error")
def test_a_constant_sample_has_an_interval_of_zero_width():
    assert bootstrap([0.75] * 12) == Estimate(0.75, 0.75, 0.75, 12)
    assert bootstrap([1.0] * 12, clusters=[1, 2] * 6) == Estimate(1, 1, 1, 2)
    assert t_interval([0.25] * 3) == Estimate(0.25, 0.25, 0.25, 3, values=(0.25,) * 3)


@pytest.mark.filterwarnings("error")
def test_where_bca_is_undefined_the_percentile_interval_is_given():
    x = np.array([0] * 7 + [1] * 2)  # leaving one out never changes the median, resampling does
    beyond = scipy.stats.binom.sf(4, 9, 2 / 9)  # probability that a resample's median is 1
    assert 0.025 < beyond < 0.05
    assert bootstrap(x, np.median, n_resamples=20_000) == Estimate(0, 0, 1, 9)
    assert bootstrap(1 - x, np.median, n_resamples=20_000) == Estimate(1, 0, 1, 9)
    assert bootstrap(x, np.median, n_resamples=20_000, confidence=0.9) == Estimate(0, 0, 0, 9, 0.9)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        ([], {}, r"at least 2 examples \(got 0\)"),
        ([1.0], {}, r"at least 2 examples \(got 1\)"),
        ([1.0, 2.0], {"clusters": [4, 4]}, r"at least 2 clusters \(got 1\)"),
        ([1.0, np.nan, np.inf], {}, "2 of 3 not finite"),
        (3.0, {}, "a single number"),
        ([1.0, 2.0, 3.0], {"clusters": [0, 1, np.nan]}, "a label is NaN: leave its example out"),
        ([1.0, 2.0, 3.0], {"clusters": [0, 1]}, r"clusters has shape \(2,\); x has 3 examples"),
        ([1.0, 2.0, 3.0], {"statistic": lambda x: 1 / x.std()}, r"not finite on \d+ of 2000 resamples"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_sample_that_gives_no_interval_is_refused(x, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(x, **options)


MASKED = np.ma.masked_array([1.0, 2.0, 999.0], mask=[False, False, True])
CONFIDENCES = [0, 1, 95, -0.5, np.nan]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize(
    "interval",
    [
        partial(bootstrap, [1.0, 2.0, 4.0]),
        partial(t_interval, [1.0, 2.0, 4.0]),
        partial(wilson, 3, 10),
        partial(paired_difference, [1.0, 2.0, 4.0], [0.0, 0.0, 1.0]),
        partial(Estimate, 1.0, 0.0, 2.0, 3),
    ],
)
def test_a_confidence_that_is_none_is_refused(interval, confidence):
    with pytest.raises(ValueError, match=r"confidence"):
        interval(confidence=confidence)


@pytest.mark.parametrize("n_resamples", [0, -5, 10])
def test_too_few_resamples_for_the_ends_of_an_interval_are_refused(n_resamples):
    with pytest.raises(ValueError, match=f"n_resamples={n_resamples}: .* one resample beyond each end"):
        bootstrap([1.0, 2.0, 4.0], n_resamples=n_resamples)


def test_a_masked_array_is_refused_and_not_read_without_its_mask():
    for interval in (
        lambda: bootstrap(MASKED),
        lambda: bootstrap([1.0, 2.0, 4.0], clusters=MASKED),
        lambda: t_interval(MASKED),
        lambda: paired_difference(MASKED, [0.0, 0.0, 0.0]),
    ):
        with pytest.raises(ValueError, match=r"a masked array was given: give .*compressed"):
            interval()


def test_paired_difference_is_the_bootstrap_of_the_differences_and_narrower_than_an_unpaired_one():
    r = np.random.default_rng(6)
    difficulty = r.normal(size=100)
    a, b = difficulty + 0.5 + 0.1 * r.normal(size=100), difficulty + 0.1 * r.normal(size=100)
    found = paired_difference(a, b)
    assert found == bootstrap(a - b)
    assert found.low < 0.5 < found.high
    assert found.high - found.low < 0.3 * (bootstrap(a).high - bootstrap(a).low)
    mirrored = paired_difference(b, a)
    np.testing.assert_allclose([mirrored.low, mirrored.high], [-found.high, -found.low], atol=5e-3)
    with pytest.raises(ValueError, match=r"shapes \(100,\) and \(99,\)"):
        paired_difference(a, b[:99])


def test_t_interval_covers_the_mean_of_five_values_and_a_bootstrap_does_not():
    five = coverage(lambda r: r.normal(size=5), t_interval, 0)
    assert abs(five - 0.95) < SLACK
    assert coverage(lambda r: r.normal(size=5), lambda x: bootstrap(x, n_resamples=500), 0) < 0.9


def test_t_interval_is_scipys():
    x = [0.1, 0.4, 0.35, 0.8]
    theirs = scipy.stats.ttest_1samp(x, 0).confidence_interval(0.9)
    np.testing.assert_allclose(
        [t_interval(x, confidence=0.9).low, t_interval(x, confidence=0.9).high], theirs
    )
    with pytest.raises(ValueError, match="at least 2 finite values"):
        t_interval([1.0])


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (7, 10), (30, 30), (480, 1000)])
def test_wilson_is_its_closed_form(successes, n):
    z, p = scipy.stats.norm.ppf(0.975), successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = wilson(successes, n)
    np.testing.assert_allclose(
        [found.value, found.low, found.high], [p, centre - half, centre + half], atol=1e-12
    )


def test_proportion_counts_hits():
    assert proportion([True, False, True]) == proportion(np.array([1, 0, 1])) == wilson(2, 3)
    with pytest.raises(ValueError, match="n=0"):
        proportion([])


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5), (2.5, 5), (2, 5.5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match=f"successes={successes} of n={n}"):
        wilson(successes, n)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.97, 0.95, 0.98, 100), "0.97 [0.95, 0.98]"),
        (Estimate(0.97, 0.96, 0.974, 100), "0.970 [0.960, 0.974]"),
        (Estimate(-0.06, -0.24, 0.09, 10), "-0.06 [-0.24, 0.09]"),
        (Estimate(-0.001, -0.2, 0.2, 10), "0.00 [-0.20, 0.20]"),
        (Estimate(81.832, 79.2, 83.1, 10), "81.8 [79.2, 83.1]"),
        (Estimate(1234.5, 1100, 1400, 10), "1234 [1100, 1400]"),
        (Estimate(2e-7, 1e-7, 4e-7, 10), "2e-07 [1e-07, 4e-07]"),
        (Estimate(0.5, 0.5, 0.5, 10), "0.5 (all 10 alike)"),
        (Estimate(float("nan"), float("nan"), float("nan"), 0), "nan [nan, nan]"),
    ],
)
def test_an_estimate_is_printed_with_the_digits_that_its_interval_justifies(estimate, text):
    assert str(estimate) == text


def test_a_t_interval_within_bounds_stays_there_and_is_fishers_for_a_correlation():
    shares = t_interval([0.99, 0.95, 0.7], bounds=(0, 1))
    assert 0 < shares.low < shares.value < shares.high < 1
    assert t_interval([0.99, 0.95, 0.7]).high > 1, "the plain one leaves the range"
    rho = np.array([0.90, 0.92, 0.97, 0.99])
    made = t_interval(rho, bounds=(-1, 1))
    half = scipy.stats.sem(rho) * scipy.stats.t.isf(0.025, 3) / (1 - rho.mean() ** 2)
    assert made.low == pytest.approx(np.tanh(np.arctanh(rho.mean()) - half))
    assert made.values == tuple(rho)
    with pytest.raises(ValueError, match=r"leave the bounds \(0, 1\)"):
        t_interval([0.5, 1.2], bounds=(0, 1))
