"""The method cells of notebooks/d-leaf.ipynb: the very code that the reader reads."""

import json
import math
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from families import QUESTIONS
from sklearn.metrics import roc_auc_score
from torch import Tensor

from data.worlds import scene_words, scenes
from lib import chapters
from lib.generate import generate
from lib.hooks import capture, edit
from lib.models import Subject

m = chapters.method("d-leaf")
eah = chapters.method("eah")
NEW = 5
DOSES = {"cell_noise": 0.8, "noisy_share": 0.5, "noise": 0.25}


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
        assert m.head_entropy(rows, image)[0].tolist() == pytest.approx([expected] * 4)
        assert m.image_focus(rows, image)[0].tolist() == pytest.approx([mass] * 4)
    assert m.layer_entropy(even, image, "raw").item() == pytest.approx(-8 * 0.1 * math.log(0.1))
    assert m.layer_entropy(one, image, "raw").item() == pytest.approx(-0.7 * math.log(0.7))


def test_heads_that_look_at_different_patches_make_an_even_layer() -> None:
    rows = torch.eye(4).double()[None]
    image = torch.ones(1, 4, dtype=torch.bool)
    assert m.layer_entropy(rows, image).item() == pytest.approx(math.log(4))
    assert m.head_entropy(rows, image).abs().max() == 0


def test_a_layer_that_does_not_look_at_the_image_has_entropy_zero_and_not_nan() -> None:
    rows = torch.zeros(1, 2, 5)
    rows[..., 4] = 1
    image = torch.arange(5)[None] < 3
    assert m.layer_entropy(rows, image).item() == 0
    assert m.head_entropy(rows, image).tolist() == [[0, 0]]


def test_entropy_and_focus_equal_a_slow_loop() -> None:
    rows, image = some_rows()
    for i in range(len(rows)):
        mean = [np.mean([rows[i, h, k] for h in range(8)]) for k in range(20) if image[i, k]]
        p = np.array(mean) / sum(mean)
        assert m.layer_entropy(rows, image)[i].item() == pytest.approx(-sum(p * np.log(p)))
        assert m.layer_entropy(rows, image, "raw")[i].item() == pytest.approx(-sum(mean * np.log(mean)))
        for h in range(8):
            assert m.image_focus(rows, image)[i, h] == pytest.approx(rows[i, h][image[i]].sum().item())
    top = m.without_top(rows, image)
    assert (image & ~top).sum(1).tolist() == [3] * 4
    kept = rows.mean(1).masked_fill(~top, -1).max(1).values
    dropped = rows.mean(1).masked_fill(top | ~image, 2).min(1).values
    assert (kept < dropped).all()


# Thresholds


def slow_flags(rule: str, passes: list[list[float]], delta: float, quantiles: list[float]) -> list[bool]:
    """One sample, pass by pass and layer by layer, as the text says it."""
    flags, lowest_ever = [], math.inf
    for entropies in passes:
        below: list[float] = []
        for layer, value in enumerate(entropies):
            tau = {
                "running_min": min(below, default=math.inf),
                "running_min_tokens": lowest_ever,
                "running_mean": sum(below) / len(below) if below else math.inf,
                "quantile": quantiles[layer],
                "all": -math.inf,
            }[rule]
            flags.append(value > (1 + delta) * tau if math.isfinite(tau) else tau < 0)
            below.append(value)
            lowest_ever = min(lowest_ever, value)
    return flags


@pytest.mark.parametrize("rule", ["running_min", "running_min_tokens", "running_mean", "quantile", "all"])
@pytest.mark.parametrize("delta", [0.0, 0.1])
def test_thresholds_equal_a_slow_loop(rule: str, delta: float) -> None:
    entropies = torch.rand(3, 6, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    quantiles = [0.8 + 0.1 * layer for layer in range(6)]
    threshold = m.Threshold(rule, delta, reference=quantiles)
    flags = torch.stack([threshold.flag(layer, e[layer]) for e in entropies for layer in range(6)])
    for sample in range(10):
        expected = slow_flags(rule, entropies[:, :, sample].tolist(), delta, quantiles)
        assert flags[:, sample].tolist() == expected


def test_the_first_layer_is_never_flagged_by_a_running_threshold() -> None:
    for rule in ("running_min", "running_mean"):
        threshold = m.Threshold(rule)
        for _ in range(3):
            assert not threshold.flag(0, 10 * torch.rand(50)).any()
            assert threshold.flag(1, torch.full((50,), 11.0)).all()


def test_random_layers_are_flagged_as_often_as_asked() -> None:
    threshold = m.Threshold("random", reference=[0.0, 0.3, 1.0])
    rates = [threshold.flag(layer, torch.zeros(20_000)).float().mean().item() for layer in range(3)]
    assert rates == pytest.approx([0, 0.3, 1], abs=0.02)
    again = m.Threshold("random", reference=[0.5], seed=3), m.Threshold("random", reference=[0.5], seed=3)
    assert torch.equal(*(t.flag(0, torch.zeros(99)) for t in again))


# Heads and the correction


def test_low_focus_heads_are_those_that_the_rule_names() -> None:
    focus, rng = torch.tensor([[0.1, 0.9, 0.2, 0.3, 0.8, 0.4, 0.5, 0.6]]), torch.Generator()
    low = {rule: m.low_focus_heads(rule, focus, rng)[0] for rule in m.LOW_FOCUS}
    assert low["median"].nonzero().flatten().tolist() == [0, 2, 3, 5]
    assert low["mean"].nonzero().flatten().tolist() == [0, 2, 3, 5]
    assert low["bottom"].nonzero().flatten().tolist() == [0, 2]
    assert low["all"].all()
    assert low["random"].sum() == 4
    assert m.low_focus_heads("median", torch.tensor([[0.3, 0.1, 0.2]]), rng).tolist() == [
        [False, True, False]
    ]
    assert not m.low_focus_heads("median", torch.full((1, 8), 0.5), rng).any()


def test_the_target_is_the_head_that_the_rule_names() -> None:
    rows, image = some_rows()
    focus, sinks, rng = (
        m.image_focus(rows, image),
        torch.eye(8, dtype=torch.long)[[3, 1, 0, 7]],
        torch.Generator(),
    )
    chosen = {rule: m.target_head(rule, rows, image, focus, sinks, rng) for rule in m.TARGETS}
    for i in range(4):
        inside = [rows[i, h][image[i]] for h in range(8)]
        entropies = [-(p / p.sum() * (p / p.sum()).log()).sum() for p in inside]
        assert chosen["iaf"][i] == int(np.argmax([p.sum() for p in inside]))
        assert chosen["low_entropy"][i] == int(np.argmin(entropies))
    assert chosen["sink_count"].tolist() == [3, 1, 0, 7]
    assert chosen["random"].shape == (4,)


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
        for settings in ({}, {"threshold": "all", "low_focus": "all"}, {"target": "low_entropy"}):
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
        {"threshold": "running_mean", "entropy": "raw", "low_focus": "bottom"},
        {"threshold": "all", "target": "low_entropy", "low_focus": "all"},
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
    for method in (m.DLeaf(prompt.image, 1.0), m.PAI(prompt.image, 1.0, 0), m.SPIN(prompt.image, 0.5, 0.0)):
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


def test_spin_equals_a_slow_loop(llava: Subject, batch: dict[str, Tensor], prompt: object) -> None:
    image, layer = prompt.image, 0
    with torch.no_grad(), capture(llava, "scores") as scores, capture(llava, "z") as plain:
        llava.model(**batch)
    with torch.no_grad(), m.applied(llava, m.SPIN(image, 0.5, 0.1)), capture(llava, "z") as edited:
        llava.model(**batch)
    expected = plain[layer].clone()
    for i in range(len(image)):
        ranked = sorted(range(llava.n_heads), key=lambda h: -scores[layer][i, h, -1][image[i]].sum().item())
        for h in ranked[int(0.5 * llava.n_heads) :]:
            expected[i, -1, h] *= 0.1
    torch.testing.assert_close(edited[layer], expected)


def test_keeping_all_heads_or_raising_by_nothing_changes_nothing(llava: Subject, prompt: object) -> None:
    plain = m.write(prompt, NEW)
    for method in (m.PAI(prompt.image, 0.0), m.SPIN(prompt.image, 1.0)):
        said = m.write(prompt, NEW, method)
        assert torch.equal(said.ids, plain.ids)
        torch.testing.assert_close(said.logp, plain.logp)


def test_the_contrast_equals_a_slow_loop_over_whole_prompts(llava: Subject, prompt: object) -> None:
    texts = llava.encode(QUESTIONS)
    without = m.Prompt(llava, texts, torch.zeros_like(texts["input_ids"], dtype=torch.bool))
    said = m.write(prompt, 3, m.PAI(prompt.image, 0.5, 0), without)
    for i, text in enumerate(QUESTIONS):
        written: list[int] = []
        for step in range(3):
            both = []
            for pictures in ([families.picture(i)], None):
                batch = llava.encode([text], images=pictures)
                begun = extended(batch, torch.tensor([written], dtype=torch.long))
                first = batch["input_ids"].shape[1] - 1
                image = torch.nn.functional.pad(llava.spans(batch).image, (0, len(written)))

                def raise_all(
                    layer: int, scores: Tensor, first: int = first, image: Tensor = image
                ) -> Tensor:
                    scores[:, :, first:] += 0.5 * scores[:, :, first:].abs() * image
                    return scores

                with ExitStack() as stack, torch.no_grad():
                    for layer in range(llava.n_layers if pictures else 0):
                        change = partial(raise_all, layer)
                        stack.enter_context(edit(llava, "scores", layer=layer, fn=change))
                    both.append(llava.model(**begun).logits[0, -1].double().log_softmax(-1))
            combined = 1.1 * (both[0] - both[1]) + both[1]
            combined[both[0] < math.log(0.1) + both[0].max()] = -math.inf
            written.append(int(combined.argmax()))
            assert said.ids[i, step] == written[-1]
            assert said.logp[i, step].item() == pytest.approx(combined.max().item(), abs=1e-4)
            if written[-1] == 2:
                break


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.5}, r"gamma=1.5: expected a weight from 0"),
        ({"gamma": -0.1}, r"gamma=-0.1"),
        ({"threshold": "lowest"}, r"threshold='lowest': expected one of running_min"),
        ({"target": "best"}, r"target='best': expected one of iaf, low_entropy"),
        ({"low_focus": "few"}, r"low_focus='few': expected one of median"),
        ({"entropy": "log2"}, r"entropy='log2': expected one of normalised, raw"),
        ({"delta": -1}, r"delta=-1: expected 0 or more"),
        ({"threshold": "quantile"}, r"threshold='quantile' needs `reference`: an entropy for each layer"),
        ({"threshold": "random"}, r"needs `reference`: a rate for each layer"),
        ({"target": "sink_count"}, r"target='sink_count' needs `sinks`"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        m.DLeaf(torch.ones(1, 4, dtype=torch.bool), **settings)


def test_models_and_prompts_without_image_and_wrong_batches_are_named(llava: Subject, batch: dict) -> None:
    text_only = families.subject("llama")
    with pytest.raises(ValueError, match="LlamaForCausalLM has no image tokens"):
        m.Prompt(text_only, text_only.encode(QUESTIONS))
    with pytest.raises(ValueError, match="prompt 0 of the batch has no image token"):
        m.Prompt(llava, llava.encode(QUESTIONS))
    with (
        pytest.raises(ValueError, match="image columns of 2 prompts were given for a batch of 3"),
        torch.no_grad(),
        m.applied(llava, m.DLeaf(m.image_columns(llava, batch)[:2])),
    ):
        llava.model(**batch)
    with pytest.raises(ValueError, match=r"split='train': expected validation or test"):
        m.noisy_scenes(8, "train", **DOSES, seed=0)
    with pytest.raises(ValueError, match=r"cell_noise=-1"):
        m.noisy_scenes(8, "test", **DOSES | {"cell_noise": -1}, seed=0)


# Scoring


@pytest.fixture(scope="module")
def pictures() -> object:
    return m.noisy_scenes(30, "validation", **DOSES, seed=0)


def world_of(pictures: object, seed: int = 0, n: int = 30) -> scenes.Scenes:
    rng = np.random.default_rng([seed, len("validation")])
    return scenes.sample(n, rng, pairs=(2, 3), rate=0, distractors=2)


def test_pictures_are_noisy_in_the_way_that_is_said_and_true_captions_are_true(pictures: object) -> None:
    assert m.tally(pictures.captions, pictures)[:, 3].sum() == 0
    assert m.recall(m.tally(pictures.captions, pictures).sum(0)) == 100
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
    assert not any(a & b for a, b in zip(pictures.objects, pictures.tempting, strict=True))


def test_counts_are_those_of_the_world_and_shares_those_of_eah(pictures: object) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice([*scenes.OBJECTS, "red", "a1"], rng.integers(0, 9))) for _ in range(30)]
    table, chair = m.tally(texts, pictures), scene_words.chair(texts, world_of(pictures))
    for column, expected in ((2, chair.mentioned), (3, chair.hallucinated), (4, chair.partners)):
        assert (table[:, column] == expected).all()
    assert (table[:, 5] == chair.found).all()
    assert (table[:, 6] == chair.present).all()
    for name, share in (("CHAIR_S", m.chair_s), ("CHAIR_I", m.chair_i), ("recall", m.recall), ("F1", m.f1)):
        assert share(table.sum(0)) == pytest.approx(eah.SHARES[name](np.stack(chair, 1)))
    estimate = m.estimate(m.chair_i, table)
    slow = m.bootstrap(table, lambda rows: m.chair_i(rows.sum(0)))
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
        (slow.value, slow.low, slow.high), abs=1.5
    )


def test_mentions_are_found_at_their_tokens(organism: Subject, pictures: object) -> None:
    texts = ["star blue two red", "nothing", "two red two blue"]
    ids = [organism.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    ids = torch.tensor([row + [0] * (4 - len(row)) for row in ids])
    found = m.mentions(texts, pictures)
    step = m.token_of(organism, m.Said(ids, torch.zeros(3, 4), texts, torch.tensor([4, 1, 4])), found)
    assert step.tolist() == [0, 2, 0, 2]
    assert found.name.tolist() == ["star", "two", "two", "two"]
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


def test_permuted_labels_keep_their_number_in_each_stratum() -> None:
    rng = np.random.default_rng(0)
    labels, strata = rng.random(200) < 0.3, rng.integers(0, 4, 200)
    dealt = m.permuted_within(labels, strata, rng)
    assert (dealt != labels).any()
    assert all(dealt[strata == s].sum() == labels[strata == s].sum() for s in range(4))


def counts(recall: float, chair: float) -> np.ndarray:
    """Counts of one image with the given shares."""
    table = np.zeros(8)
    table[[0, 2, 3, 5, 6]] = 1, 1000, 10 * chair, 10 * recall, 1000
    return table


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
    same = pictures._replace(clean=pictures.images)
    found = m.patch_rows(organism, same, range(5), "describe the picture")
    np.testing.assert_allclose(found.patched, np.tile(found.noisy, (6, 1)), atol=1e-5)
    for other in (found.clean, found.together):
        np.testing.assert_allclose(other, found.noisy, atol=1e-5)
    other = m.patch_rows(organism, pictures, range(5), "describe the picture")
    assert abs(other.control - other.noisy).max(1).min() > 1e-4
    assert len(found.image) == sum(map(len, pictures.objects[:5]))


# One operator


@pytest.mark.parametrize("which", ["D-LEAF", "SPIN", "PAI"])
def test_the_common_operator_equals_each_method(prompt: object, which: str) -> None:
    image = prompt.image
    methods = {
        "D-LEAF": (m.DLeaf(image, 0.6), m.above(m.Threshold("running_min")), m.fused(0.6), 0.0),
        "SPIN": (m.SPIN(image, 0.5, 0.1), m.these(0, 1, 2), m.suppressed(0.5, 0.1), 0.0),
        "PAI": (m.PAI(image, 0.7, 1), m.these(1, 2), m.identity, 0.7),
    }
    method, layers, heads, alpha = methods[which]
    expected = m.write(prompt, NEW, method)
    found = m.write(prompt, NEW, m.Broadcast(image, layers, heads, alpha=alpha))
    assert found.ids.tolist() == expected.ids.tolist()
    torch.testing.assert_close(found.logp, expected.logp, atol=1e-5, rtol=1e-4)


def test_the_common_operator_equals_eah(llava: Subject, batch: dict[str, Tensor]) -> None:
    spans = llava.spans(batch)
    bar = eah.threshold(spans.image, ~spans.padding, 1.0)

    def densest(layer: object) -> Tensor:
        return eah.sink_counts(layer.pattern, layer.image, bar).argmax(1)

    method = m.Broadcast(spans.image, m.these(1), m.one_for_all(densest), newest=False)
    with torch.no_grad():
        with m.applied(llava, method):
            found = llava.model(**batch).logits
        with eah.broadcasting(llava, 1, "dense"):
            expected = llava.model(**batch).logits
    written = batch["attention_mask"].bool()
    torch.testing.assert_close(found[written], expected[written], atol=1e-5, rtol=1e-4)


def test_the_common_operator_without_mixing_or_layers_changes_nothing(prompt: object) -> None:
    plain = m.write(prompt, NEW)
    for layers, heads in ((m.these(), m.one_for_all(m.most_looking)), (m.these(0, 1, 2), m.identity)):
        said = m.write(prompt, NEW, m.Broadcast(prompt.image, layers, heads))
        assert torch.equal(said.ids, plain.ids)
        torch.testing.assert_close(said.logp, plain.logp)


# Parameters, time and the way to full size


def test_parameters_that_cannot_work_are_named(llava: Subject) -> None:
    rule = {"threshold": "running_min", "entropy": "raw", "target": "iaf", "low_focus": "mean", "delta": 0.0}
    good = {"gamma": 0.5, "rule": rule, "n_images": 8, "batch_size": 1}
    m.check_parameters(llava, **good)
    for wrong, message in (
        ({"gamma": 2.0}, "gamma=2.0: expected a weight from 0"),
        ({"n_images": 7}, "n_images=7: expected at least 8"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"rule": rule | {"threshold": "lowest"}}, "threshold='lowest': expected one of running_min, "),
        ({"rule": rule | {"target": "best"}}, "target='best': expected one of iaf, low_entropy"),
        ({"rule": rule | {"delta": -1.0}}, "delta=-1.0: expected 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            m.check_parameters(llava, **good | wrong)
    with pytest.raises(ValueError, match="LlamaForCausalLM has no image tokens"):
        m.check_parameters(families.subject("llama"), **good)


def test_rates_count_words_that_were_said_only() -> None:
    method = m.DLeaf(torch.ones(2, 3, dtype=torch.bool))
    for flags in ([True, True], [False, True], [True, True], [True, True]):  # two passes, two layers
        flagged = torch.tensor(flags)
        method.flags.append((0, flagged, flagged[:, None].expand(2, 3)))
    said = m.Said(torch.zeros(2, 2), torch.zeros(2, 2), [], torch.tensor([2, 1]))  # the second stops early
    layers, heads = m.flag_rates(method, said, 2)
    assert layers.tolist() == pytest.approx([1.0, 2 / 3])
    assert heads.shape == (2, 3)


def test_photographs_come_with_their_objects_and_synonyms(tmp_path: Path) -> None:
    (tmp_path / "val2014").mkdir()
    (tmp_path / "annotations").mkdir()
    names = ["dog", "hot dog", "dining table"]
    marked = [(0, 0), (1, 1), (1, 2), (2, 2)]
    for i in range(4):
        families.picture(i).save(tmp_path / "val2014" / f"{i}.jpg")
    instances = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(4)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
        "annotations": [{"image_id": i, "category_id": k} for i, k in marked],
    }
    captions = {"images": instances["images"], "annotations": [{"image_id": 0, "caption": "A dog."}]}
    for kind, content in (("instances", instances), ("captions", captions)):
        (tmp_path / "annotations" / f"{kind}_val2014.json").write_text(json.dumps(content))
    (tmp_path / "synonyms.txt").write_text("dog, puppy\nhot dog\ndining table, table\n")
    pictures = m.photographs(str(tmp_path), 3, 0)
    assert sorted(map(sorted, pictures.objects)) == [["dining table"], ["dining table", "hot dog"], ["dog"]]
    assert pictures.present.sum() == 4
    dog = [i for i, objects in enumerate(pictures.objects) if objects == {"dog"}]
    texts = ["a puppy and a hot dog on two tables"] * 3
    table = m.tally(texts, pictures)
    assert table[:, 2].tolist() == [3, 3, 3]
    assert table[dog[0], 3] == 2
