"""The method cells of notebooks/d-leaf.ipynb: the very code that the reader reads."""

import math
import re
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import families
import hub_models
import numpy as np
import pytest
import torch
from families import QUESTIONS
from sklearn.metrics import roc_auc_score
from torch import Tensor

from data.sets import hallucination as scores
from data.worlds import scene_words, scenes
from lib import chapters, papers
from lib.generate import generate
from lib.hooks import capture, edit
from lib.models import Subject

m = chapters.method("d-leaf")
NEW = 5
DOSES = {"cell_noise": 0.8, "noisy_share": 0.5, "noise": 0.25, "prompt": "describe the picture"}


@pytest.fixture(scope="module")
def prompt(llava: Subject, batch: dict[str, Tensor]) -> object:
    return m.Prompt(llava, batch)


@pytest.fixture(scope="module")
def organism() -> Subject:
    return families.organism()


def some_rows(n_samples: int = 4, n_heads: int = 8, n_keys: int = 20) -> tuple[Tensor, Tensor]:
    """Random attention rows in float64, and image columns that differ from sample to sample."""
    rng = torch.Generator().manual_seed(0)
    rows = (2 * torch.randn(n_samples, n_heads, n_keys, generator=rng).double()).softmax(-1)
    image = torch.zeros(n_samples, n_keys, dtype=torch.bool)
    for i in range(n_samples):
        image[i, 1 + i : 13 + i] = True
    return rows, image


# Entropy and focus


def test_entropy_of_an_even_look_is_log_n_and_of_a_single_patch_zero() -> None:
    image = torch.arange(10)[None] < 8
    even = torch.full((1, 4, 10), 0.1, dtype=torch.float64)
    one = torch.zeros(1, 4, 10, dtype=torch.float64)
    one[..., 3] = 0.7
    one[..., 9] = 0.3
    for rows, expected, mass in ((even, math.log(8), 0.8), (one, 0.0, 0.7)):
        assert m.layer_entropy(rows, image).item() == pytest.approx(expected)
        assert m.image_focus(rows, image)[0].tolist() == pytest.approx([mass] * 4)
    assert m.layer_entropy(even, image, "raw").item() == pytest.approx(-8 * 0.1 * math.log(0.1))
    assert m.layer_entropy(one, image, "raw").item() == pytest.approx(-0.7 * math.log(0.7))


def test_heads_that_look_at_different_patches_make_an_even_layer() -> None:
    rows = torch.eye(4).double()[None]
    image = torch.ones(1, 4, dtype=torch.bool)
    assert m.layer_entropy(rows, image).item() == pytest.approx(math.log(4))


def test_a_layer_that_does_not_look_at_the_image_has_entropy_zero_and_not_nan() -> None:
    rows = torch.zeros(1, 2, 5)
    rows[..., 4] = 1
    image = torch.arange(5)[None] < 3
    assert m.layer_entropy(rows, image).item() == 0


def test_entropy_and_focus_equal_a_slow_loop() -> None:
    rows, image = some_rows()
    for i in range(len(rows)):
        mean = [np.mean([rows[i, h, k] for h in range(8)]) for k in range(20) if image[i, k]]
        p = np.array(mean) / sum(mean)
        assert m.layer_entropy(rows, image)[i].item() == pytest.approx(-sum(p * np.log(p)))
        assert m.layer_entropy(rows, image, "raw")[i].item() == pytest.approx(-sum(mean * np.log(mean)))
        for h in range(8):
            assert m.image_focus(rows, image)[i, h] == pytest.approx(rows[i, h][image[i]].sum().item())


# Thresholds


def slow_flags(rule: str, passes: list[list[float]], delta: float) -> list[bool]:
    """One sample, pass by pass and layer by layer, as the text says it."""
    flags, lowest_ever = [], math.inf
    for entropies in passes:
        below: list[float] = []
        for value in entropies:
            tau = {
                "running_min": min(below, default=math.inf),
                "running_min_tokens": lowest_ever,
                "all": -math.inf,
            }[rule]
            flags.append(value > (1 + delta) * tau if math.isfinite(tau) else tau < 0)
            below.append(value)
            lowest_ever = min(lowest_ever, value)
    return flags


@pytest.mark.parametrize("rule", ["running_min", "running_min_tokens", "all"])
@pytest.mark.parametrize("delta", [0.0, 0.1])
def test_thresholds_equal_a_slow_loop(rule: str, delta: float) -> None:
    entropies = torch.rand(3, 6, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    threshold = m.Threshold(rule, delta)
    flags = torch.stack([threshold.flag(layer, e[layer]) for e in entropies for layer in range(6)])
    for sample in range(10):
        expected = slow_flags(rule, entropies[:, :, sample].tolist(), delta)
        assert flags[:, sample].tolist() == expected


def test_the_first_layer_is_never_flagged_by_a_running_threshold() -> None:
    threshold = m.Threshold("running_min")
    for _ in range(3):
        assert not threshold.flag(0, 10 * torch.rand(50)).any()
        assert threshold.flag(1, torch.full((50,), 11.0)).all()


def test_random_layers_are_flagged_as_often_as_asked() -> None:
    threshold = m.Threshold("random", rates=[0.0, 0.3, 1.0])
    rates = [threshold.flag(layer, torch.zeros(20_000)).float().mean().item() for layer in range(3)]
    assert rates == pytest.approx([0, 0.3, 1], abs=0.02)
    again = m.Threshold("random", rates=[0.5], seed=3), m.Threshold("random", rates=[0.5], seed=3)
    assert torch.equal(*(t.flag(0, torch.zeros(99)) for t in again))


# Heads and the correction


def test_low_focus_heads_are_those_that_the_rule_names() -> None:
    focus, rng = torch.tensor([[0.1, 0.9, 0.2, 0.3, 0.8, 0.4, 0.5, 0.6]]), torch.Generator()
    low = {rule: m.low_focus_heads(rule, focus, rng)[0] for rule in m.LOW_FOCUS}
    assert low["median"].nonzero().flatten().tolist() == [0, 2, 3, 5]
    assert low["all"].all()
    assert low["random"].sum() == 4
    assert m.low_focus_heads("median", torch.tensor([[0.3, 0.1, 0.2]]), rng).tolist() == [
        [False, True, False]
    ]
    assert not m.low_focus_heads("median", torch.full((1, 8), 0.5), rng).any()


def test_the_target_is_the_head_that_the_rule_names() -> None:
    rows, image = some_rows()
    focus, rng = m.image_focus(rows, image), torch.Generator().manual_seed(0)
    chosen = m.target_head("iaf", focus, rng)
    for i in range(4):
        assert chosen[i] == int(np.argmax([rows[i, h][image[i]].sum() for h in range(8)]))
    drawn = m.target_head("random", focus.repeat(200, 1), rng)
    assert sorted(set(drawn.tolist())) == list(range(8))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_corrected_rows_sum_to_one_and_follow_the_equation(gamma: float) -> None:
    rows, image = some_rows()
    focus = m.image_focus(rows, image)
    best, low = focus.argmax(1), m.low_focus_heads("median", focus, torch.Generator())
    after = m.corrected(rows, best, low, gamma)
    torch.testing.assert_close(after.sum(-1), torch.ones(4, 8, dtype=torch.float64))
    for i in range(4):
        for h in range(8):
            expected = gamma * rows[i, best[i]] + (1 - gamma) * rows[i, h] if low[i, h] else rows[i, h]
            torch.testing.assert_close(after[i, h], expected)
    if gamma == 0:
        assert torch.equal(after, rows)
    if gamma == 1:
        assert torch.equal(after[low], rows[torch.arange(4), best].repeat_interleave(low.sum(1), 0))


# Inside a model


def extended(batch: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    """The batch with further tokens behind each prompt."""
    longer = dict(batch)
    longer["input_ids"] = torch.cat([batch["input_ids"], ids], 1)
    longer["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(ids)], 1)
    if "position_ids" in batch:
        behind = batch["position_ids"][..., -1:] + torch.arange(1, 1 + ids.shape[1])
        longer["position_ids"] = torch.cat([batch["position_ids"], behind], -1)
    return longer


def slow_d_leaf(subject: Subject, batch: dict[str, Tensor], gamma: float, said: Tensor) -> Tensor:
    """Log-probabilities of what was said in one pass without a cache, each row corrected by loops."""
    image, first = subject.spans(batch).image, batch["input_ids"].shape[1] - 1
    longer = extended(batch, said[:, :-1])
    tau = torch.full(longer["input_ids"].shape, math.inf)

    def change(layer: int, pattern: Tensor) -> Tensor:
        for i in range(len(pattern)):
            on = torch.nn.functional.pad(image[i], (0, pattern.shape[-1] - image.shape[1]))
            for q in range(first, pattern.shape[2]):
                rows = pattern[i, :, q].clone()
                mean = rows.mean(0)[on]
                p = mean / mean.sum()
                entropy = -(p * p.clamp_min(1e-30).log()).sum()
                focus = rows[:, on].sum(-1)
                if layer and entropy > tau[i, q]:
                    for h in range(len(rows)):
                        if focus[h] < np.median(focus.numpy()):
                            pattern[i, h, q] = gamma * rows[focus.argmax()] + (1 - gamma) * rows[h]
                tau[i, q] = min(tau[i, q], entropy)
        return pattern

    with ExitStack() as stack, torch.no_grad():
        for layer in range(subject.n_layers):
            stack.enter_context(edit(subject, "pattern", layer=layer, fn=partial(change, layer)))
        logits = subject.model(**longer).logits[:, first:]
    return logits.log_softmax(-1).gather(-1, said[..., None])[..., 0]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_generation_with_a_cache_equals_slow_loops_without_one(
    llava: Subject, batch: dict[str, Tensor], prompt: object, gamma: float
) -> None:
    method = m.DLeaf(prompt.image, gamma)
    said = m.write(prompt, NEW, method)
    torch.testing.assert_close(said.logp, slow_d_leaf(llava, batch, gamma, said.ids), atol=1e-5, rtol=1e-4)
    if gamma:
        plain = m.write(prompt, NEW)
        assert not torch.allclose(said.logp[:, 0], plain.logp[:, 0], atol=1e-4)
        assert any(heads.any() for _, _, heads in method.flags)


def test_gamma_zero_gives_the_base_models_logits_bit_for_bit(
    llava: Subject, batch: dict[str, Tensor]
) -> None:
    image = m.image_columns(llava, batch)
    with torch.no_grad():
        with edit(llava, "pattern", layer=0, fn=lambda pattern: pattern):
            base = llava.model(**batch).logits
        for settings in ({}, {"threshold": "all", "low_focus": "all"}):
            with m.applied(llava, m.DLeaf(image, 0.0, **settings)):
                assert torch.equal(llava.model(**batch).logits, base)
            with m.applied(llava, m.DLeaf(image, 1.0, **settings)):
                edited = llava.model(**batch).logits
            others = batch["attention_mask"].bool()  # rows of padding see the last one
            others[:, -1] = False
            assert torch.equal(edited[others], base[others])
            assert not torch.allclose(edited[:, -1], base[:, -1], atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"threshold": "running_min_tokens"},
        {"threshold": "all", "entropy": "raw", "low_focus": "all"},
    ],
)
def test_a_padded_batch_says_what_each_prompt_alone_says(
    llava: Subject, prompt: object, settings: dict
) -> None:
    together = m.write(prompt, NEW, m.DLeaf(prompt.image, 0.8, **settings))
    for i, text in enumerate(QUESTIONS):
        alone = m.Prompt(llava, llava.encode([text], images=[families.picture(i)]))
        said = m.write(alone, NEW, m.DLeaf(alone.image, 0.8, **settings))
        n = said.ids.shape[1]
        assert said.ids[0].tolist() == together.ids[i, :n].tolist()
        torch.testing.assert_close(said.logp[0], together.logp[i, :n], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "internvl"])
def test_without_a_method_it_writes_what_the_library_generates_and_methods_leave_nothing_behind(
    family: str,
) -> None:
    subject = families.subject(family)
    pictures = [families.picture(i) for i in range(3)]
    prompt = m.Prompt(subject, subject.encode(QUESTIONS, images=pictures))
    expected = generate(subject, QUESTIONS, pictures, max_new_tokens=NEW)
    first = m.write(prompt, NEW)
    assert first.texts == expected.texts
    for method in (m.DLeaf(prompt.image, 1.0), m.PAI(prompt.image, 1.0, 0)):
        assert not torch.equal(m.write(prompt, NEW, method).logp[:, :1], first.logp[:, :1])
    again = m.write(prompt, NEW)
    assert torch.equal(again.ids, first.ids)
    assert torch.equal(again.logp, first.logp)


def test_the_librarys_generation_runs_under_the_correction(
    llava: Subject, batch: dict, prompt: object
) -> None:
    said = m.write(prompt, NEW, m.DLeaf(prompt.image, 1.0))
    with m.applied(llava, m.DLeaf(prompt.image, 1.0)):
        expected = generate(llava, QUESTIONS, [families.picture(i) for i in range(3)], max_new_tokens=NEW)
    assert expected.texts == said.texts


# What stands beside it


def test_pai_equals_a_slow_loop(llava: Subject, batch: dict[str, Tensor], prompt: object) -> None:
    image, layer = prompt.image, llava.n_layers - 1
    with torch.no_grad(), capture(llava, "scores") as scores, capture(llava, "pattern") as plain:
        llava.model(**batch)
    with torch.no_grad(), m.applied(llava, m.PAI(image, 0.5, layer)), capture(llava, "pattern") as edited:
        llava.model(**batch)
    for i in range(len(image)):
        seen = batch["attention_mask"][i].bool()
        for h in range(llava.n_heads):
            row = scores[layer][i, h, -1].double()
            raised = torch.tensor(
                [s + 0.5 * abs(s) if image[i, k] else s for k, s in enumerate(row.tolist())]
            )
            expected = raised.masked_fill(~seen, -torch.inf).softmax(-1)
            torch.testing.assert_close(
                edited[layer][i, h, -1].double(), expected.double(), atol=1e-6, rtol=1e-4
            )
    assert torch.equal(edited[layer][:, :, :-1], plain[layer][:, :, :-1])


def test_raising_by_nothing_changes_nothing(prompt: object) -> None:
    plain, said = m.write(prompt, NEW), m.write(prompt, NEW, m.PAI(prompt.image, 0.0))
    assert torch.equal(said.ids, plain.ids)
    torch.testing.assert_close(said.logp, plain.logp)


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.5}, r"gamma=1.5: expected a weight from 0"),
        ({"gamma": -0.1}, r"gamma=-0.1"),
        ({"threshold": "lowest"}, r"threshold='lowest': expected one of running_min"),
        ({"target": "best"}, r"target='best': expected one of iaf, random"),
        ({"low_focus": "few"}, r"low_focus='few': expected one of median"),
        ({"entropy": "log2"}, r"entropy='log2': expected one of normalised, raw"),
        ({"threshold": "random"}, r"needs `rates`: how often each layer is flagged"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        m.DLeaf(torch.ones(1, 4, dtype=torch.bool), **settings)


def test_prompts_without_image_are_named(llava: Subject) -> None:
    with pytest.raises(ValueError, match="prompt 0 of the batch has no image token"):
        m.Prompt(llava, llava.encode(QUESTIONS))


# Scoring


@pytest.fixture(scope="module")
def pictures() -> object:
    return m.noisy_scenes(30, "validation", **DOSES, seed=0)


def world_of(pictures: object, seed: int = 0, n: int = 30) -> scenes.Scenes:
    rng = np.random.default_rng([seed, len("validation")])
    return scenes.sample(n, rng, pairs=(2, 3), rate=0, distractors=2)


def test_pictures_are_noisy_in_the_way_that_is_said_and_true_captions_are_true(pictures: object) -> None:
    true = pictures.counts(pictures.captions).sum(0)
    assert (scores.chair_i(true), scores.recall(true)) == (0, 100)
    filled = np.repeat(np.repeat(world_of(pictures).objects.reshape(-1, 4, 4) >= 0, 16, 1), 16, 2)
    change = abs(pictures.images.astype(int) - pictures.clean).max(-1)
    assert (change[:15][~filled[:15]] == 0).all()
    assert change[:15][filled[:15]].mean() > 20
    cells = (
        change[:15]
        .reshape(15, 4, 16, 4, 16)
        .mean((2, 4))[world_of(pictures).objects[:15].reshape(15, 4, 4) >= 0]
    )
    assert (cells > 20).mean() == pytest.approx((cells > 0).mean())
    assert 0.35 < (cells > 0).mean() < 0.65
    assert change[15:][~filled[15:]].mean() > 20
    assert not (pictures.present & pictures.tempting).any()
    assert (pictures.unreadable[:15].sum(), pictures.unreadable[15:].sum()) == ((cells > 20).sum(), 0)
    objects = world_of(pictures).objects
    for row, there in enumerate(pictures.present):
        assert (objects[row, pictures.cells[row, there]] == np.nonzero(there)[0]).all()


def test_mentions_are_wrong_and_prior_as_the_world_counts_them(pictures: object) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice([*scenes.OBJECTS, "red", "a1"], rng.integers(0, 9))) for _ in range(30)]
    found, chair = m.mentions(texts, pictures, range(30)), scene_words.chair(texts, world_of(pictures))
    for kind, expected in (
        (found.wrong >= 0, chair.mentioned),
        (found.wrong, chair.hallucinated),
        (found.prior, chair.partners),
    ):
        assert np.bincount(found.image[kind], minlength=30).tolist() == expected.tolist()


def test_mentions_are_found_at_their_tokens(organism: Subject, pictures: object) -> None:
    texts = ["star blue two red", "nothing", "two red two blue"]
    ids = [organism.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    ids = torch.tensor([row + [0] * (4 - len(row)) for row in ids])
    found = m.mentions(texts, pictures, range(3))
    step = m.token_of(organism, m.Said(ids, torch.zeros(3, 4), texts, torch.tensor([4, 1, 4])), found)
    assert step.tolist() == [0, 2, 0, 2]
    assert [scenes.OBJECTS[k] for k in found.object] == ["star", "two", "two", "two"]
    assert found.place.tolist() == [0, 1, 0, 1]


def test_the_area_under_the_curve_is_scikit_learns_within_places() -> None:
    rng = np.random.default_rng(0)
    n = 400
    image, place = rng.integers(0, 60, n), rng.integers(0, 3, n)
    wrong = rng.random(n) < 0.2 + 0.2 * place
    score = rng.normal(size=(2, n)).round(1) + 0.5 * wrong + 3 * place
    pairs = m.pair_up(score, image, place, wrong, ~wrong, 60)
    areas, weights = [], []
    for here in range(3):
        own = place == here
        areas.append([roc_auc_score(wrong[own], s[own]) for s in score])
        weights.append(wrong[own].sum() * (~wrong[own]).sum())
    expected = np.average(np.array(areas), axis=0, weights=weights).mean()
    found = m.auroc(pairs)
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high
    assert roc_auc_score(wrong, score[0]) > expected + 0.05  # what place alone would add
    drawn = rng.integers(0, 60, 60)  # a bootstrap draw is the area of the drawn images
    own = np.concatenate([np.nonzero(image == i)[0] for i in drawn])
    again = np.concatenate([np.full((image == i).sum(), k) for k, i in enumerate(drawn)])
    redrawn = m.pair_up(score[:, own], again, place[own], wrong[own], ~wrong[own], 60)
    count = np.bincount(drawn, minlength=60).astype(float)
    right, total = (count @ t @ count for t in (pairs.right.mean(0), pairs.all))
    assert right / total == pytest.approx(redrawn.right.mean(0).sum() / redrawn.all.sum())


def counts(recall: float, chair: float) -> np.ndarray:
    """Counts of one image with the given shares."""
    return scores.count_table([1000], [10 * chair], [0], [10 * recall], [1000])[0]


def test_equal_recall_is_found_by_interpolation_and_beyond_the_sweep_at_its_nearest_end() -> None:
    sweep = [counts(80, 20), counts(70, 18), counts(50, 10), counts(40, 12)]
    wanted = np.array([80.0, 75.0, 70.0, 60.0, 45.0, 90.0, 10.0])
    found = m.at_recall(wanted, [np.tile(t, (len(wanted), 1)) for t in sweep])
    assert found.tolist() == pytest.approx([20, 19, 18, 14, 11, 20, 12])


# Diagnostics and patching


def test_diagnostics_are_those_of_the_rows_that_wrote_each_word(llava: Subject, prompt: object) -> None:
    said = m.write(prompt, NEW)
    found = m.diagnose(prompt, said)
    n_image = int(prompt.image[0].sum())
    for step in range(said.ids.shape[1]):
        seen: list[Tensor] = []
        with capture(llava, "pattern", positions=-1) as acts:
            m.write(prompt, step + 1)
        for layer in range(llava.n_layers):
            seen = acts.passes[layer][step].float()
            image = m.columns(prompt.image, seen)
            entropy = m.layer_entropy(seen, image) / math.log(n_image)
            np.testing.assert_allclose(found.entropy[layer, :, step], entropy, atol=1e-5)
            np.testing.assert_allclose(found.focus[layer, :, step], m.image_focus(seen, image), atol=1e-5)


def test_patching_rows_of_the_same_image_changes_nothing_and_of_another_does(
    organism: Subject, pictures: object
) -> None:
    same = replace(pictures, clean=pictures.images)
    found = m.patch_rows(organism, same, range(5))
    np.testing.assert_allclose(found.patched, np.tile(found.noisy, (6, 1)), atol=1e-5)
    for other in (found.clean, found.together):
        np.testing.assert_allclose(other, found.noisy, atol=1e-5)
    other = m.patch_rows(organism, pictures, range(5))
    assert abs(other.control - other.noisy).max(1).min() > 1e-4
    assert len(found.image) == pictures.present[:5].sum()
    assert pictures.present[found.image, found.object].all()
    np.testing.assert_allclose(found.cells.sum(1), 1, atol=1e-5)


def test_attention_on_the_right_cell_is_measured_where_it_was_put() -> None:
    """Rows that put half of their image attention on one cell, and the rest evenly on the others."""
    image = torch.zeros(1, 70, dtype=torch.bool)
    image[:, 3:67] = True
    pattern = torch.zeros(1, 2, 1, 72)
    of_patch = torch.as_tensor(scenes.CELL_OF_PATCH)
    pattern[..., 3:67] = torch.where(of_patch == 5, 0.5 / 4, 0.5 / 60)
    shares = m.cell_attention([0.6 * pattern, 0.2 * pattern], image)
    assert shares.shape == (1, 1, 16)
    assert shares[0, 0, 5] == pytest.approx(0.5)
    present, cells = np.array([[True, True, False, True]] * 2), np.array([[5, 2, 0, 9]] * 2)
    found = m.right_minus_others(shares[[0, 0], 0], np.array([0, 1]), present, cells)
    even = 0.5 / 15
    assert found.tolist() == pytest.approx([100 * (0.5 - even), 100 * (even - (0.5 + even) / 2)])


def test_uneven_heads_exceed_random_dealing_and_dealt_heads_do_not() -> None:
    """Fed with heads that differ by layer, the statistic of the null shows it."""
    rng = np.random.default_rng(0)
    uneven = np.arange(6)[:, None] + 0.5 * rng.normal(size=(6, 8))
    assert m.beyond_dealing([uneven], rng).low > 0.5
    dealt = rng.permutation(uneven.ravel()).reshape(uneven.shape)
    found = m.beyond_dealing([dealt], rng)
    assert found.low < 0 < found.high
    assert found.n == 48
    assert m.between_layers(np.repeat(np.arange(6.0)[:, None], 8, 1)) == pytest.approx(1)


# Rates


def test_rates_count_words_that_were_said_only() -> None:
    method = m.DLeaf(torch.ones(2, 3, dtype=torch.bool))
    for flags in ([True, True], [False, True], [True, True], [True, True]):  # two passes, two layers
        flagged = torch.tensor(flags)
        method.flags.append((0, flagged, flagged[:, None].expand(2, 3)))
    said = m.Said(torch.zeros(2, 2), torch.zeros(2, 2), [], torch.tensor([2, 1]))  # the second stops early
    assert m.flag_rates(method, said, 2).tolist() == pytest.approx([1.0, 2 / 3])


# Real classes

LISTED = papers.read("d-leaf").models
SMALLER = {"n_images": 8, "n_sweep": 8, "n_calibration": 8, "n_questions": 8, "n_patched": 8}
SMALLER |= {"max_new_tokens": 6, "device": "cpu", "dtype": "float32", "quantization": ""}


@pytest.mark.parametrize(
    ("model", "preset", "depth"), hub_models.cases(LISTED, LISTED[0], depth=3, colab=LISTED[0])
)
def test_each_listed_model_reaches_the_end_whether_or_not_it_names_an_object(
    model: str, preset: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights describe nothing. They name no object; then those are looked for that they name."""
    of, names = {"model": hub_models.folder(model, depth)}, hub_models.COCO_NAMES
    for named in (False, True):
        of["data"] = hub_models.coco_folder(tuple(names))
        run = hub_models.run_chapter("d-leaf", preset, monkeypatch, **SMALLER | of)
        run.check_task_not_done("d-leaf", (1, 2, 3, 6, 7, 9, 10, 12, 13))
        said = " ".join(f"{row.note} {row.reason}" for row in run.records.values())
        assert not re.search("partner|network this small", said)
        assert (run.names["n_named"] > 0) == named
        said = re.findall(r"(?<!\w)[a-z]{2,}(?!\w)", " ".join(run.names["texts"]["greedy"][0]))
        names = [*dict.fromkeys(said), *names][:8]


def test_an_area_without_a_pair_is_unknown_and_a_resample_without_one_says_nothing() -> None:
    none = m.Pairs(np.zeros((2, 9, 9)), np.zeros((9, 9)))
    assert math.isnan(m.auroc(none).value)
    one = m.pair_up(np.array([[1.0, 0.0]]), np.array([0, 1]), np.zeros(2, int), *np.eye(2, dtype=bool), 9)
    e = m.auroc(one)
    assert e.value == 1.0
    assert e.low <= 0.5
