"""The method cells of notebooks/modality-following.ipynb: the very code that the reader reads."""

import families
import hub_models
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit

from lib import chapters, papers
from lib.generate import next_logprobs
from lib.models import Subject
from lib.stats import Estimate

m = chapters.method("modality-following")
RNG = np.random.default_rng


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A LLaVA of the organisms' class with random weights, whose answers are far from uniform."""
    subject = families.organism()
    with torch.no_grad():
        subject.model.get_output_embeddings().weight.mul_(3)
    return subject


@pytest.fixture(scope="module")
def items() -> object:
    return m.draw_items("scenes", 16, 2, seed=0)


@pytest.fixture(scope="module")
def study(subject: Subject, items: object) -> object:
    return m.study("random", subject, items, 20)


# Uncertainty


def test_entropy_is_ln_n_for_a_uniform_answer_zero_for_a_sure_one_and_that_of_torch_otherwise() -> None:
    n = 148
    assert m.entropy(torch.zeros(n).log_softmax(0)).item() == pytest.approx(np.log(n), rel=1e-6)
    sure = torch.full((n,), -torch.inf)
    sure[3] = 0
    assert m.entropy(sure).item() == 0
    log_p = torch.randn(7, n, dtype=torch.float64).log_softmax(-1)
    torch.testing.assert_close(m.entropy(log_p), torch.distributions.Categorical(logits=log_p).entropy())


def test_relative_uncertainty_is_twice_the_hyperbolic_tangent_of_half_the_log_ratio() -> None:
    text, vision = RNG(0).uniform(1e-6, 2, (2, 1000))
    x = m.relative_uncertainty(text, vision)
    np.testing.assert_allclose(x, 2 * np.tanh(0.5 * np.log(text / vision)), atol=1e-12)
    np.testing.assert_allclose(m.relative_uncertainty(vision, text), -x)
    np.testing.assert_allclose(m.relative_uncertainty(80 * text, 80 * vision), x, atol=1e-12)
    ends = m.relative_uncertainty(np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0]))
    assert ends.tolist() == [-2, 2, 0]


@pytest.mark.parametrize("bad", [-0.1, np.nan, np.inf])
def test_relative_uncertainty_refuses_what_is_no_uncertainty(bad: float) -> None:
    with pytest.raises(ValueError, match="finite and at least 0"):
        m.relative_uncertainty(np.array([0.5, bad]), np.array([0.5, 0.5]))


def test_measures_of_uncertainty_have_their_closed_forms() -> None:
    p = torch.tensor([[0.6, 0.3, 0.1], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    found = m.uncertainties(p.log(), p.log()[:, :2])
    h = -(0.6 * np.log(0.6) + 0.3 * np.log(0.3) + 0.1 * np.log(0.1))
    within = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    np.testing.assert_allclose(found["entropy"], [h, np.log(3)])
    np.testing.assert_allclose(found["answer_entropy"], [within, np.log(2)])
    np.testing.assert_allclose(found["margin"], [0.7, 1])
    np.testing.assert_allclose(found["maxprob"], [0.4, 2 / 3])


# Asking


def test_the_lens_of_the_last_layer_is_what_the_model_says(
    subject: Subject, items: object, study: object
) -> None:
    tokens = m.colour_tokens(subject, items.colours)
    log_p = next_logprobs(subject, items.texts, items.images[items.image])
    np.testing.assert_allclose(study.both.log_p, log_p[:, [t for (t,) in tokens]], atol=1e-4)
    np.testing.assert_allclose(study.both.uncertainty["entropy"], m.entropy(log_p), atol=1e-4)
    said = torch.tensor([next((c for c, own in enumerate(tokens) if t in own), -1) for t in log_p.argmax(1)])
    np.testing.assert_array_equal(study.both.top[-1], said)
    assert study.both.logits.shape == (6, 32, 6)
    assert len(study.vision.answer) == 16


def test_the_lens_of_a_middle_layer_is_the_model_without_the_layers_above(
    subject: Subject, items: object, study: object
) -> None:
    language = subject.model.model.language_model
    layers, language.layers = language.layers, language.layers[:2]
    try:
        expected = next_logprobs(subject, items.questions, items.images)
    finally:
        language.layers = layers
    red = subject.tokenizer.convert_tokens_to_ids("red")
    z = study.vision.logits[1]
    np.testing.assert_allclose(
        z - z[:, :1], (expected[:, red : red + 6] - expected[:, red : red + 1]), atol=1e-4
    )


def test_the_size_of_the_batches_does_not_matter(subject: Subject, items: object, study: object) -> None:
    tokens = m.colour_tokens(subject, items.colours)
    again = m.ask(subject, items.texts, items.images[items.image], tokens, 7)
    np.testing.assert_allclose(again.logits, study.both.logits, atol=1e-4)


def test_text_alone_does_not_see_the_image_and_image_alone_not_the_sentence(
    subject: Subject, items: object, study: object
) -> None:
    tokens = m.colour_tokens(subject, items.colours)
    other = items._replace(images=255 - items.images)
    np.testing.assert_array_equal(m.study("other", subject, other, 20).text.log_p, study.text.log_p)
    swapped = items._replace(texts=items.unrelated)
    np.testing.assert_array_equal(m.study("other", subject, swapped, 20).vision.log_p, study.vision.log_p)
    assert tokens == [[t] for t in range(tokens[0][0], tokens[0][0] + 6)]


def test_only_deep_models_are_asked_with_an_unrelated_sentence(
    subject: Subject, items: object, study: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert study.unrelated is None
    monkeypatch.setattr(m, "MIN_LAYERS", subject.n_layers)
    few = items._replace(images=items.images[:1], questions=items.questions[:1], texts=items.texts[:2],
                         unrelated=items.unrelated[:2], image=items.image[:2])  # fmt: skip
    assert m.study("deep", subject, few, 20).unrelated.top.shape == (subject.n_layers, 2)


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl"])
def test_other_families_of_vision_language_models_are_asked_the_same_way(family: str) -> None:
    subject = families.subject(family)
    texts = ["the cat is blue . what is the cat ?", "what is red"]
    images = RNG(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    tokens = m.colour_tokens(subject, ["red", "blue"])
    for pictures in (images, None):
        found = m.ask(subject, texts, pictures, tokens, 2)
        log_p = next_logprobs(subject, texts, pictures)
        np.testing.assert_allclose(found.log_p, log_p[:, [t for (t,) in tokens]], atol=1e-4)
        np.testing.assert_allclose(found.uncertainty["entropy"], m.entropy(log_p), atol=1e-3)
        assert found.logits.shape == (subject.n_layers, 2, 2)


class Spelling:
    """A tokenizer that takes words apart into letters."""

    unk_token_id = None

    def __call__(self, words: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in word] for word in words]}


def test_colours_are_told_by_tokens_that_begin_no_other_colour(subject: Subject) -> None:
    by_letter = Subject(subject.model, tokenizer=Spelling())
    tokens = m.colour_tokens(by_letter, ["red", "green"])
    assert tokens == [sorted(map(ord, "rR")), sorted(map(ord, "gG"))]
    with pytest.raises(ValueError, match="no token by which to tell blue, black from other colours"):
        m.colour_tokens(by_letter, ["blue", "black", "red"])


# Choices


def answers(answer: list[int], h: list[float]) -> object:
    log_p = np.log(np.full((len(answer), 6), 0.02))
    log_p[np.arange(len(answer)), answer] = np.log(0.9)
    return m.Asked(log_p[None], np.array([answer]), log_p, {"entropy": np.array(h)})


def test_only_items_with_both_single_answers_right_count_and_other_answers_are_no_choice() -> None:
    n = 6
    items = m.Items(
        images=np.zeros((n, 2, 2, 3), np.uint8),
        questions=["?"] * n,
        texts=["?"] * n,
        unrelated=["?"] * n,
        image=np.arange(n),
        visual_tier=np.zeros(n, int),
        text_tier=np.zeros(n, int),
        seen=np.zeros(n, int),
        told=np.ones(n, int),
        colours=("a", "b", "c", "d", "e", "f"),
    )
    h = [1.0, 1.0, 1.0, 1.0, 1.0, 0.001]
    vision, text = answers([0, 0, 0, 2, 0, 0], [0.5] * 5 + [0.001]), answers([1, 1, 1, 1, 2, 1], h)
    both = answers([1, 0, 3, 1, 1, 1], h)
    study = m.Study("made up", vision, text, both, both)
    t = m.trials(study, items, floor=0.05)
    assert t.item.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(t.follows_text, [1, 0, np.nan])
    np.testing.assert_allclose(t.x, 2 * 0.5 / 1.5)
    assert t.n_right == 4
    assert t.decided.item.tolist() == [0, 1]
    assert m.trials(study, items).item.tolist() == [0, 1, 2, 5]
    assert m.trials(study, items, floor=0.05, right_only=False).item.tolist() == [0, 1, 2, 3, 4]


# The curve


def curve(slope: float, balance: float, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = RNG(seed)
    x = rng.uniform(-2, 2, n)
    return x, (rng.random(n) < expit(slope * (x - balance))).astype(float)


def test_the_logistic_fit_is_the_minimum_that_scipy_finds_for_every_weighting() -> None:
    x, y = curve(-2, 0.3, 300, seed=1)
    weight = RNG(2).multinomial(300, np.full(300, 1 / 300), size=4).astype(float)
    for w, beta in zip(weight, m.logistic_fit(x, y, weight), strict=True):

        def loss(b: np.ndarray, w: np.ndarray = w) -> float:
            z = b[0] + b[1] * x
            return (w * (np.logaddexp(0, z) - y * z)).sum() + 0.0005 * (b**2).sum()

        np.testing.assert_allclose(beta, minimize(loss, np.zeros(2), tol=1e-10).x, atol=1e-4)


def test_separable_choices_give_a_finite_steep_fit() -> None:
    x = np.linspace(-1, 1, 40)
    intercept, slope = m.logistic_fit(x, (x < 0.2).astype(float), np.ones(40))
    assert np.isfinite(slope)
    assert slope < -20
    assert -intercept / slope == pytest.approx(0.2, abs=0.03)


def test_the_balance_point_of_a_known_curve_is_found_within_its_interval() -> None:
    inside = 0
    for seed in range(20):
        x, y = curve(-2, 0.4, 600, seed)
        weights = m.resampled(600, 200, seed)
        b = m.estimate(m.balance_point(m.logistic_fit(x, y, weights), x), 600)
        assert b.value == pytest.approx(0.4, abs=0.25)
        inside += b.low <= 0.4 <= b.high
    assert inside >= 16


def test_no_crossing_is_reported_and_nothing_is_extrapolated() -> None:
    x = np.linspace(-2, 1, 100)
    always, never = m.balance_point(np.array([[4.0, -1.0], [-4.0, -1.0]]), x)
    assert (always, never) == (np.inf, -np.inf)
    assert np.isnan(m.balance_point(np.array([0.0, 1.0]), x))
    assert m.balance_point(np.array([0.5, -1.0]), x) == 0.5
    assert m.crossing(Estimate(np.inf, 0.5, np.inf, 9), x) == "no crossing (b > 1.0)"
    assert m.crossing(Estimate(-np.inf, -np.inf, 0.5, 9), x) == "no crossing (b < -2.0)"
    assert m.crossing(Estimate(0.5, 0.25, np.inf, 9), x) == "0.50 [0.25, > 1.0]"
    assert m.crossing(Estimate(np.nan, np.nan, np.nan, 9), x) == "does not fall"


def test_infinite_balance_points_of_resamples_stay_in_the_interval() -> None:
    values = np.concatenate([[0.5], np.linspace(0, 1, 90), np.full(10, np.inf)])
    e = m.estimate(values, 100)
    assert (e.value, e.high) == (0.5, np.inf)
    assert 0 < e.low < 0.1
    assert np.isnan(m.estimate(np.array([np.nan, 1, 2]), 3).value)


def test_resamples_draw_as_many_images_as_there_are_and_row_zero_takes_each_once() -> None:
    weights = m.resampled(30, 100, seed=0)
    assert (weights[0] == 1).all()
    assert (weights.sum(1) == 30).all()
    assert len(np.unique(weights, axis=0)) == 101


def test_bins_hold_equally_many_items_in_order_and_few_items_make_fewer_bins() -> None:
    x, y = curve(-2, 0, 120, seed=3)
    centre, share = m.equal_count_bins(x, y, 12)
    assert (np.diff(centre) > 0).all()
    assert [e.n for e in share] == [10] * 12
    order = np.argsort(x)
    np.testing.assert_allclose([e.value for e in share], y[order].reshape(12, 10).mean(1))
    few, shares = m.equal_count_bins(x[:5], y[:5], 12)
    np.testing.assert_allclose(few, np.sort(x[:5]))
    assert [e.n for e in shares] == [1] * 5
    assert m.equal_count_bins(x[:0], y[:0], 12)[1] == []


# The test of shape


def slow_falling(k: list[float], n: list[float]) -> list[float]:
    """Pool adjacent violators."""
    blocks = [[a, b, 1] for a, b in zip(k, n, strict=True)]
    i = 0
    while i < len(blocks) - 1:
        if blocks[i][0] / blocks[i][1] < blocks[i + 1][0] / blocks[i + 1][1] - 1e-12:
            blocks[i : i + 2] = [[a + b for a, b in zip(blocks[i], blocks[i + 1], strict=True)]]
            i = max(i - 1, 0)
        else:
            i += 1
    return [a / b for a, b, times in blocks for _ in range(times)]


def test_the_falling_fit_is_that_of_pooling_adjacent_violators() -> None:
    rng = RNG(4)
    n = rng.integers(5, 20, 10).astype(float)
    k = rng.binomial(n.astype(int), 0.5, size=(6, 10)).astype(float)
    expected = [slow_falling(list(row), list(n)) for row in k]
    np.testing.assert_allclose(m.falling(k, n), expected, atol=1e-9)


@pytest.mark.parametrize("slope", [0.0, -2.0])
def test_the_test_for_a_rise_is_calibrated_where_the_curve_is_monotone(slope: float) -> None:
    p = [m.rise_test(*curve(slope, 0, 240, seed), 8, 60, seed)[1] for seed in range(100)]
    assert np.mean(np.array(p) <= 0.1) <= 0.2


def test_the_test_sees_a_rise_and_no_rise_in_a_fall() -> None:
    assert m.rise_test(*curve(-2, 0, 400, seed=5), 10, 99, seed=0)[1] > 0.05
    assert m.rise_test(*curve(2, 0, 400, seed=5), 10, 99, seed=0)[1] == 0.01


def test_permuted_choices_keep_their_number_and_lose_their_slope() -> None:
    x, y = curve(-2, 0, 400, seed=5)
    weights = m.resampled(400, 200, seed=0)
    dealt = m.permuted(y, 200, RNG(0))
    assert (dealt.sum(1) == y.sum()).all()
    null = m.estimate(m.logistic_fit(x, dealt, weights)[:, 1], 400)
    planted = m.estimate(m.logistic_fit(x, np.tile(y, (201, 1)), weights)[:, 1], 400)
    assert null.low < 0 < null.high
    assert planted.high < -1  # the null's own function shows an effect that is there


# Layers


def slow_oscillations(side: list[int]) -> int:
    held, switches = 0, 0
    for value in side:
        if value and held and value != held:
            switches += 1
        held = value or held
    return switches


def test_oscillations_equal_those_of_a_slow_loop() -> None:
    side = RNG(6).integers(-1, 2, (9, 500))
    assert m.oscillations(side).tolist() == [slow_oscillations(column) for column in side.T.tolist()]


@pytest.mark.parametrize(
    ("side", "expected"),
    [([0, 0, 0], 0), ([-1, 0, 1], 1), ([1, 1, 1], 0), ([1, -1, 1, 0, -1], 3), ([0, 0, 1], 0)],
)
def test_zeros_do_not_count_as_switches(side: list[int], expected: int) -> None:
    assert m.oscillations(np.array(side)[:, None]).tolist() == [expected]


def test_sides_tell_the_told_from_the_seen_colour_and_from_the_rest() -> None:
    top = np.array([[1, 2, 3, -1]])
    assert m.sides(top, np.full(4, 1), np.full(4, 2)).tolist() == [[1, -1, 0, 0]]


# Mixes


def test_the_parts_of_a_ratios_change_add_up_and_other_items_on_one_curve_leave_the_curve() -> None:
    x, y = curve(-2, 0.3, 4000, seed=6)
    first, second = (np.where(easy, 4.0, 1.0)[None] for easy in (x < 0, x > 1))
    of_items, of_curve = m.decomposition(x, y, first, second)
    total = (first @ y / first.sum(1) - second @ y / second.sum(1))[0]
    assert of_items[0] + of_curve[0] == pytest.approx(total, abs=1e-3)
    assert of_items[0] > 0.2
    assert abs(of_curve[0]) < 0.05


def test_another_curve_is_told_from_other_items() -> None:
    x, rng = RNG(7).uniform(-2, 2, 4000), RNG(8)
    group = rng.random(4000) < 0.5  # of equal items, with another balance point
    y = (rng.random(4000) < expit(-2 * (x - np.where(group, 1.0, -1.0)))).astype(float)
    of_items, of_curve = m.decomposition(
        x, y, np.where(group, 9.0, 1.0)[None], np.where(group, 1.0, 9.0)[None]
    )
    assert of_curve[0] > 0.2
    assert abs(of_items[0]) < 0.05


# Is anything compared?


def chosen_by(w_text: float, w_vision: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entropies, relative uncertainty and choices by known weights."""
    rng = RNG(seed)
    h = rng.uniform(0.02, 1.79, (3000, 2))
    y = rng.random(3000) < expit(w_text * (h[:, 0] - 0.9) + w_vision * (h[:, 1] - 0.9))
    return h, m.relative_uncertainty(h[:, 0], h[:, 1]), y.astype(float)


def test_a_one_sided_rule_falls_where_the_image_decides_and_not_where_it_does_not() -> None:
    ones = np.ones(3000)
    h, x, y = chosen_by(0, 4, seed=9)
    own = m.logistic_fit(x, y, ones)[1]
    assert m.one_sided_fit(h[:, 1], x, y, ones)[1] == pytest.approx(own, abs=0.1)
    assert own < -0.8
    h, x, y = chosen_by(-4, 0, seed=9)
    assert m.one_sided_fit(h[:, 1], x, y, ones)[1] == pytest.approx(0, abs=0.1)
    assert m.one_sided_fit(h[:, 0], x, y, ones)[1] < -0.8


def test_exchanging_the_modalities_makes_their_weights_equal_and_opposite() -> None:
    h, _, y = chosen_by(-1, 5, seed=10)
    ones = np.ones(3000)
    _, of_text, of_vision = m.logistic_fit(h, y, ones)
    assert (of_text, of_vision) == (pytest.approx(-1, abs=0.4), pytest.approx(5, abs=0.6))
    _, of_text, of_vision = m.logistic_fit(*m.exchanged(h, y, RNG(0)), ones)
    assert of_text + of_vision == pytest.approx(0, abs=0.4)
    assert of_vision > 1


# Prediction


def test_the_sum_of_log_probabilities_of_a_made_up_pool_predicts_it_wholly() -> None:
    rng = RNG(8)
    n = 200
    text, vision = (np.log(rng.dirichlet(np.ones(6), n)) for _ in range(2))
    told, seen = np.zeros(n, int), np.ones(n, int)
    base = {"entropy": np.ones(n), "margin": np.ones(n)}
    asked = [m.Asked(log_p[None], None, log_p, base) for log_p in (vision, text)]
    y = ((text + vision)[:, 0] > (text + vision)[:, 1]).astype(float)
    t = m.Trials(np.arange(n), np.arange(n), np.zeros(n), np.ones(n), y, n)
    items = m.Items(*[None] * 4, np.arange(n), None, None, seen, told, ())
    features = m.predictors(m.Study("pool", *asked, None, None), t, items)
    assert ((features["sum of log-probabilities"][:, 0] > 0) == y).all()
    p = m.predicted(features["log-probabilities with weights and bias"], y, np.arange(n))
    assert ((p > 0.5) == y).mean() > 0.95
    assert p.shape == (n,)


# Items and parameters


def test_both_kinds_of_items_have_one_form() -> None:
    for data in ("scenes", "shapes"):
        items = m.draw_items(data, 8, 2, seed=0)
        assert (items.seen != items.told).all()
        assert len(items.texts) == len(items.unrelated) == len(items.image) == 16
        assert max(items.seen.max(), items.told.max()) < len(items.colours) == 6


def test_the_family_stands_for_its_variants_and_their_seeds_and_any_other_name_for_itself() -> None:
    found = m.model_names("conflict-vlm", ["another"])
    assert found == [*m.VARIANTS, f"{m.VARIANTS[0]}-seed1", "another"]
    assert m.model_names("some/model", []) == ["some/model"]


# Real classes

LISTED = papers.read("modality-following").models
SMALLER = {"n_images": 28, "n_texts": 1, "n_boot": 50, "batch_size": 7, "others": [], "quantization": ""}
SMALLER |= {"device": "cpu", "dtype": "float32"}
JUDGED = (1, 4, 6, 7, 9, 10, 12, 13)


@pytest.mark.parametrize(
    ("model", "preset", "depth"),
    hub_models.cases(
        LISTED, "llava-hf/llava-interleave-qwen-0.5b-hf", depth=3, colab="Qwen/Qwen2.5-VL-3B-Instruct"
    ),
)
def test_each_listed_model_reaches_the_end_and_what_it_cannot_do_is_said(
    model: str, preset: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights know no colour: no choice between image and sentence is judged."""
    of = {"model": hub_models.folder(model, depth)}
    run = hub_models.run_chapter("modality-following", preset, monkeypatch, **SMALLER | of)
    run.check_task_not_done("modality-following", JUDGED, "of the ")
    said = " ".join(f"{row.note} {row.reason} {row.claim.statistic}" for row in run.records.values())
    assert "rganism" not in said


def test_a_copy_of_a_checkpoint_is_no_further_model_and_a_run_without_an_item_reaches_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = hub_models.folder("Qwen/Qwen2.5-VL-3B-Instruct", 3)
    none_counts = {"model": folder, "others": [f"{folder}/."], "min_total_entropy": 1e6}
    run = hub_models.run_chapter("modality-following", "gpu", monkeypatch, **SMALLER | none_counts)
    assert run.names["names"] == [folder]
    assert len(run.names["decided"][folder].item) == 0
