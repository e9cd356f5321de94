"""The method cells of notebooks/eah.ipynb: the very code that the reader reads."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import families
import hub_models
import numpy as np
import pytest
import torch
from families import QUESTIONS
from scipy.stats import spearmanr
from torch import Tensor

from data.sets import hallucination as scores
from data.worlds import scene_words as words
from data.worlds import scenes as world
from lib import chapters, papers
from lib.generate import answer_logprobs
from lib.hooks import capture, edit
from lib.models import Subject

m = chapters.method("eah")


def causal_pattern(*shape: int, seed: int = 0) -> Tensor:
    """A random attention pattern [..., n, n] whose rows sum to 1, concentrated enough to have sinks."""
    scores = 3 * torch.randn(*shape, shape[-1], generator=torch.Generator().manual_seed(seed))
    later = torch.ones(shape[-1], shape[-1], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)


@torch.inference_mode()
def logits(subject: Subject, batch: dict[str, Tensor]) -> Tensor:
    return subject.model(**batch).logits


@contextmanager
def same_implementation(subject: Subject) -> Iterator[None]:
    """The attention that edits use, changed by nothing."""
    with edit(subject, "pattern", layer=0, fn=lambda pattern: pattern):
        yield


def heads_of(subject: Subject, batch: dict[str, Tensor], layer: int) -> Tensor:
    with torch.inference_mode(), capture(subject, "pattern", layers=layer) as acts:
        subject.model(**batch)
    return acts[layer]


# Counting


def test_column_strength_and_counts_equal_a_slow_loop_in_float64() -> None:
    pattern, n = causal_pattern(2, 3, 9), 9
    image = torch.zeros(2, n, dtype=torch.bool)
    image[0, 2:6], image[1, 3:8] = True, True
    beta = torch.tensor([0.08, 0.12])
    expected = np.zeros((2, 3, n))
    counts = np.zeros((2, 3), int)
    for b in range(2):
        for h in range(3):
            for y in range(n - 1):
                paid = [float(pattern[b, h, x, y].double()) for x in range(y + 1, n)]
                expected[b, h, y] = sum(paid) / (n - 1 - y)
                counts[b, h] += bool(image[b, y]) and expected[b, h, y] > float(beta[b])
    np.testing.assert_allclose(m.column_strength(pattern).numpy(), expected, atol=1e-6)
    assert m.sink_counts(pattern, image, beta).tolist() == counts.tolist()
    assert counts.min() < counts.max()


def test_uniform_causal_attention_gives_the_closed_form_with_harmonic_numbers() -> None:
    n = 40
    uniform = torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]
    written = torch.ones(1, n, dtype=torch.bool)
    measured = m.column_strength(uniform[None, None])[0, 0]
    torch.testing.assert_close(m.uniform_strength(written)[0], measured)
    harmonic = [sum(1 / i for i in range(1, k + 1)) for k in range(n + 1)]
    closed = [(harmonic[n] - harmonic[y + 1]) / (n - 1 - y) for y in range(n - 1)]
    assert measured[:-1].tolist() == pytest.approx(closed, abs=1e-6)


def test_at_llavas_length_the_papers_thresholds_select_the_shares_that_uniform_attention_exceeds() -> None:
    """648 tokens, image columns 35 to 610: all exceed 0.0008, and 59 % exceed 0.002."""
    strength = m.uniform_strength(torch.ones(1, 648, dtype=torch.bool))[0, 35:611]
    assert (strength > 0.0008).all()
    assert round(100 * (strength > 0.002).float().mean().item()) == 59


def test_beta_is_kappa_times_the_mean_uniform_column_and_kappa_one_splits_the_uniform_head() -> None:
    written, image = torch.ones(1, 30, dtype=torch.bool), torch.zeros(1, 30, dtype=torch.bool)
    image[:, 5:25] = True
    mean = m.uniform_strength(written)[0, 5:25].mean()
    torch.testing.assert_close(m.threshold(image, written, 1.7), 1.7 * mean[None])
    uniform = torch.ones(30, 30).tril() / torch.arange(1, 31)[:, None]
    counts = [
        m.sink_counts(uniform[None, None], image, m.threshold(image, written, k)).item() for k in (0.1, 1, 9)
    ]
    assert counts[0] == 20
    assert 0 < counts[1] < 20
    assert counts[2] == 0


def test_left_padding_changes_no_strength_threshold_or_count(
    llava: Subject, batch: dict[str, Tensor]
) -> None:
    spans = llava.spans(batch)
    assert spans.padding.any()
    patterns = heads_of(llava, batch, 1)
    beta = m.threshold(spans.image, ~spans.padding, 1.0)
    for i, prompt in enumerate(QUESTIONS):
        alone = llava.encode([prompt], images=[families.picture(i)])
        own, pattern = llava.spans(alone), heads_of(llava, alone, 1)
        n = own.image.shape[1]
        strength = m.column_strength(pattern)
        torch.testing.assert_close(
            m.column_strength(patterns)[i : i + 1, :, -n:], strength, atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(beta[i : i + 1], m.threshold(own.image, ~own.padding, 1.0))
        assert torch.equal(
            m.sink_counts(patterns, spans.image, beta)[i : i + 1],
            m.sink_counts(pattern, own.image, m.threshold(own.image, ~own.padding, 1.0)),
        )
        torch.testing.assert_close(
            m.image_mass(patterns, spans.image)[i : i + 1],
            m.image_mass(pattern, own.image),
            atol=1e-5,
            rtol=1e-4,
        )


def test_mass_of_attention_behind_the_image() -> None:
    pattern = torch.zeros(1, 1, 12, 12)
    pattern[:, :, torch.arange(12), torch.arange(12)] = 1.0
    image = torch.zeros(1, 12, dtype=torch.bool)
    image[:, 2:10] = True
    pattern[0, 0, 10:] = 0.0
    pattern[0, 0, 10:, 2:10] = 0.75 / 8
    pattern[0, 0, 10:, 0] = 0.25
    assert m.image_mass(pattern, image).item() == pytest.approx(0.75)


def test_facts_over_several_batches_are_those_of_each_prompt(
    llava: Subject, batch: dict[str, Tensor]
) -> None:
    facts = m.head_facts(llava, [batch, batch])
    assert facts.mass.shape == (6, 3, 4)
    assert facts.strength.shape == (6, 3, 4, 16)
    assert all(torch.equal(x[:3], x[3:]) for x in facts)
    spans, pattern = llava.spans(batch), heads_of(llava, batch, 2)
    beta = m.threshold(spans.image, ~spans.padding, 0.8)
    counts = m.sink_counts(pattern, spans.image, beta)
    torch.testing.assert_close(facts.density(0.8)[:3, 2], counts / 16)
    torch.testing.assert_close(facts.mass[:3, 2], m.image_mass(pattern, spans.image))
    absolute = m.head_facts(llava, [batch], beta=0.03).density(1.0)[:, 2]
    torch.testing.assert_close(absolute, m.sink_counts(pattern, spans.image, torch.full((3,), 0.03)) / 16)


# Broadcasting


def test_a_head_broadcast_to_itself_or_to_no_head_gives_the_base_logits_bit_for_bit(
    llava: Subject, batch: dict[str, Tensor]
) -> None:
    with same_implementation(llava):
        base = logits(llava, batch)
    for select in m.SELECT:
        with m.broadcasting(llava, 1, select, to=[]):
            assert torch.equal(logits(llava, batch), base)
    spans, pattern = llava.spans(batch), heads_of(llava, batch, 1)
    densest = m.sink_counts(pattern, spans.image, m.threshold(spans.image, ~spans.padding, 0.84)).argmax(-1)
    for i in range(len(QUESTIONS)):
        with m.broadcasting(llava, 1, to=[int(densest[i])]):
            assert torch.equal(logits(llava, batch)[i], base[i])
    with m.broadcasting(llava, 1):
        assert not torch.allclose(logits(llava, batch), base, atol=1e-3)


def test_all_heads_get_the_map_of_the_selected_head(llava: Subject, batch: dict[str, Tensor]) -> None:
    spans, before = llava.spans(batch), heads_of(llava, batch, 1)
    beta = m.threshold(spans.image, ~spans.padding, 0.84)
    counts = m.sink_counts(before, spans.image, beta)
    expected = {
        "dense": counts.argmax(-1),
        "sparse": counts.argmin(-1),
        "mass": m.image_mass(before, spans.image).argmax(-1),
    }
    for select, source in expected.items():
        with m.broadcasting(llava, 1, select):
            after = heads_of(llava, batch, 1)
        for i, head in enumerate(source.tolist()):
            assert torch.equal(after[i], before[i, head].expand_as(after[i]))


def test_half_are_the_heads_with_fewest_sinks(llava: Subject, batch: dict[str, Tensor]) -> None:
    spans, before = llava.spans(batch), heads_of(llava, batch, 1)
    counts = m.sink_counts(before, spans.image, m.threshold(spans.image, ~spans.padding, 0.84))
    with m.broadcasting(llava, 1, to="half"):
        after = heads_of(llava, batch, 1)
    changed = (after != before).flatten(2).any(-1)
    assert changed.sum(-1).tolist() == [2, 2, 2]
    for i in range(3):
        assert counts[i][changed[i]].max() <= counts[i][~changed[i]].min()


def test_random_heads_are_drawn_for_each_prompt_and_repeat_with_the_seed(llava: Subject) -> None:
    many = llava.encode(["a cat"] * 12, images=[families.picture(0)] * 12)
    drawn = []
    for seed in (0, 0, 1):
        with m.broadcasting(llava, 1, "random", seed=seed):
            drawn.append(heads_of(llava, many, 1))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert len({float(x[0, -1, 3]) for x in drawn[0]}) > 1


def test_uniform_has_the_layers_mean_mass_evenly_and_keeps_how_the_rest_is_divided() -> None:
    pattern = causal_pattern(2, 4, 10)
    image = torch.zeros(2, 10, dtype=torch.bool)
    image[0, 2:7], image[1, 4:8] = True, True
    everyone = torch.ones(2, 4, dtype=torch.bool)
    after = m.smear(pattern, image, everyone)
    torch.testing.assert_close(after.sum(-1), torch.ones(2, 4, 10))
    assert not after.triu(1).any()
    for b in range(2):
        for x in range(10):
            seen = [y for y in range(x + 1) if image[b, y]]
            if not seen:
                assert torch.equal(after[b, :, x], pattern[b, :, x])
                continue
            mean = pattern[b, :, x, seen].double().sum(-1).mean()
            expected = (mean / len(seen)).expand(4, len(seen)).float()
            torch.testing.assert_close(after[b, :, x, seen], expected)
            others = [y for y in range(x + 1) if not image[b, y]]
            ratio = after[b, :, x, others] / pattern[b, :, x, others]
            torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=1e-5)


def test_a_causal_edit_stays_causal(llava: Subject, batch: dict[str, Tensor]) -> None:
    for select in m.SELECT:
        with m.broadcasting(llava, [0, 1, 2], select):
            pattern = heads_of(llava, batch, 2)
        for i, padded in enumerate(llava.spans(batch).padding.sum(-1).tolist()):
            assert not pattern[i, :, padded:, padded:].triu(1).any()


def test_prefill_only_leaves_the_rows_of_new_words_alone(llava: Subject, batch: dict[str, Tensor]) -> None:
    same: dict[bool, list[bool]] = {}
    for prefill_only in (True, False):
        with (
            torch.inference_mode(),
            m.broadcasting(llava, 1, prefill_only=prefill_only),
            capture(llava, "pattern", layers=1) as acts,
        ):
            llava.model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        assert [p.shape[2] == 1 for p in acts.passes[1]] == [False, True, True, True]
        same[prefill_only] = [torch.equal(p, p[:, :1].expand_as(p)) for p in acts.passes[1]]
    assert same == {True: [True, False, False, False], False: [True] * 4}


def test_the_head_chosen_in_the_prompt_is_the_one_that_new_words_follow(
    llava: Subject, batch: dict[str, Tensor]
) -> None:
    spans, before = llava.spans(batch), heads_of(llava, batch, 1)
    densest = m.sink_counts(before, spans.image, m.threshold(spans.image, ~spans.padding, 0.84)).argmax(-1)
    with (
        torch.inference_mode(),
        capture(llava, "pattern", layers=1) as own,
        m.broadcasting(llava, 1, prefill_only=False),
        capture(llava, "pattern", layers=1) as acts,
    ):
        llava.model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    for step in (1, 2):
        for i, head in enumerate(densest.tolist()):
            assert torch.equal(acts.passes[1][step][i, 0], own.passes[1][step][i, head])


def test_an_answer_read_on_after_the_prompt_is_not_taken_for_a_prompt(llava: Subject) -> None:
    texts, pictures = ["a cat"] * 2, [families.picture(0), families.picture(1)]
    answers = [["the red star", "a blue dog"]] * 2
    with m.broadcasting(llava, 1):
        edited = answer_logprobs(llava, texts, pictures, answers=answers)
    with m.broadcasting(llava, 1, to=[]):
        base = answer_logprobs(llava, texts, pictures, answers=answers)
    assert edited.isfinite().all()
    assert not torch.allclose(edited, base)


def test_nothing_is_left_behind(llava: Subject, batch: dict[str, Tensor]) -> None:
    base = logits(llava, batch)
    with pytest.raises(RuntimeError, match="stop"), m.broadcasting(llava, [0, 1]):
        raise RuntimeError("stop")
    assert torch.equal(logits(llava, batch), base)
    assert not llava.model._forward_pre_hooks


# The released code


def official_loop(pattern: Tensor, beta: float, first: int, n_image: int, behind: int) -> int:
    """Sinks of one head as the released code counts them, column by column; its numbers at LLaVA's length:
    first = 35, n_image = 576, behind = 37, 0.4 beta = 0.0008."""
    count = 0
    for t in range(n_image - 1):
        column = pattern[:, first + 1 + t].double().clone()
        column[first + 1 + t] = 0
        count += float(column.sum()) / (behind + n_image - 2 - t) > 0.4 * beta
    return count


def test_official_counts_have_a_lower_threshold_fixed_denominators_and_no_first_column() -> None:
    assert 37 + 576 - 2 == 611
    n_image, behind = 32, 2  # 37 tokens behind 576, in proportion
    for text in (2, 9):
        n = 3 + n_image + text
        pattern = causal_pattern(1, 4, n, seed=text)
        image = torch.zeros(1, n, dtype=torch.bool)
        image[:, 3 : 3 + n_image] = True
        for beta in (0.02, 0.06, 0.15):
            expected = [official_loop(pattern[0, h], beta, 3, n_image, behind) for h in range(4)]
            assert m.official_counts(pattern, image, torch.tensor([beta]))[0].tolist() == expected


def test_official_changes_every_layer_but_those_where_head_zero_wins(
    llava: Subject, batch: dict[str, Tensor]
) -> None:
    spans = llava.spans(batch)
    beta = m.threshold(spans.image, ~spans.padding, 1.0)
    kept = copied = 0
    for kappa in (0.5, 1.0, 1.5, 2.0):
        with (
            torch.inference_mode(),
            capture(llava, "pattern") as before,
            m.broadcasting(llava, 1, kappa=kappa, official_quirks=True),
            capture(llava, "pattern") as after,
        ):
            llava.model(**batch)
        for layer in range(llava.n_layers):
            winner = m.official_counts(before[layer], spans.image, kappa * beta).argmax(-1)
            for i, head in enumerate(winner.tolist()):
                if head == 0:
                    assert torch.equal(after[layer][i], before[layer][i])
                    kept += 1
                else:
                    assert torch.equal(after[layer][i], before[layer][i, head].expand_as(after[layer][i]))
                    copied += 1
    assert kept
    assert copied


# Bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layers": 3}, IndexError, "3"),
        ({"layers": 1, "select": "densest"}, ValueError, "'densest'.*dense, sparse, random, mass, uniform"),
        ({"layers": 1, "to": "most"}, ValueError, "'most'.*all, half"),
    ],
)
def test_arguments_that_cannot_work_are_refused(
    llava: Subject, arguments: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message), m.broadcasting(llava, **arguments):
        pass


def test_a_prompt_without_an_image_is_refused(llava: Subject) -> None:
    with pytest.raises(ValueError, match=r"no image token.*encode"), m.broadcasting(llava, 1):
        logits(llava, llava.encode(["a cat"]))


def test_a_model_without_image_tokens_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="LlamaForCausalLM has no image tokens"),
        m.broadcasting(families.subject("llama"), 1),
    ):
        pass


def test_a_threshold_of_zero_times_uniform_attention_is_refused() -> None:
    image = torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="kappa=0"):
        m.threshold(image, image, 0)


def test_a_part_of_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="whole prompt"):
        m.column_strength(torch.ones(1, 1, 2, 5))


# Captions


SYNONYMS = {"dog": "dog", "puppy": "dog", "person": "person", "man": "person", "bus": "bus"}


def test_an_album_counts_what_the_world_counts() -> None:
    rng = np.random.default_rng(0)
    drawn, others = world.sample(50, rng, rate=0), world.sample(50, rng)
    names = {name: name for name in world.OBJECTS}
    none = np.zeros(50, int)
    album = m.Album(none, drawn.present, drawn.missing, drawn.present, world.OBJECTS, names, "", none)
    captions = [words.text(row) for row in words.captions(others)]
    expected = scores.count_table(*words.chair(captions, drawn))
    assert album.counts(captions).tolist() == expected.tolist()
    assert album.counts(captions[:7]).tolist() == expected[:7].tolist()


# Silence, and equal recall


def chair_of(mentioned: list[int], hallucinated: list[int]) -> np.ndarray:
    zero = np.zeros(len(mentioned), int)
    return scores.count_table(mentioned, hallucinated, zero, zero, zero)


def test_cutting_captions_at_random_leaves_hallucinations_as_often_as_counting_all_choices_says() -> None:
    base = chair_of([5, 5, 4, 3, 2, 0], [2, 0, 4, 1, 1, 0])
    for keep in range(6):
        expected = []
        for m_, h in zip(base[:, 2], base[:, 3], strict=True):
            choices = list(combinations([True] * h + [False] * (m_ - h), min(keep, m_)))
            expected.append(np.mean([any(choice) for choice in choices]))
        np.testing.assert_allclose(m.chair_s_when_cut(base, np.full(6, keep)), expected, atol=1e-12)


def test_captions_that_are_as_long_as_before_keep_their_chair() -> None:
    base = chair_of([5, 4, 2], [2, 0, 1])
    assert m.chair_s_when_cut(base, base[:, 2]).tolist() == [1, 0, 1]
    assert m.chair_s_when_cut(base, np.array([9, 9, 9])).tolist() == [1, 0, 1]


def test_silence_explains_the_whole_fall_of_silent_captions_and_little_where_errors_alone_are_struck() -> (
    None
):
    """The null of eah.11, fed with the effect, shows it."""
    rng = np.random.default_rng(0)
    base = chair_of(rng.integers(2, 6, 400), rng.integers(0, 3, 400))
    silent = base.copy()
    keep = np.minimum(base[:, 2], 1)
    left = rng.hypergeometric(base[:, 3], base[:, 2] - base[:, 3], keep)
    silent[:, 1], silent[:, 2], silent[:, 3] = left > 0, keep, left
    fall = scores.chair_s(base.sum(0)) - scores.chair_s(silent.sum(0))
    beyond_half = m.silence_beyond_half(m.beside_cut(silent, base).sum(0))
    assert beyond_half == pytest.approx(fall / 2, abs=4)
    share = 1 - silent[:, 1].sum() / base[:, 1].sum()
    mended = m.without_errors(base, share, rng)
    assert scores.chair_s(mended.sum(0)) == pytest.approx(scores.chair_s(silent.sum(0)), abs=5)
    assert m.silence_beyond_half(m.beside_cut(mended, base).sum(0)) < -fall / 8
    assert (base[:, 2] - base[:, 3] == mended[:, 2] - mended[:, 3]).all()


def count_names(texts: list[str]) -> np.ndarray:
    return scores.caption_counts(texts, [{"dog", "bus"}, {"person"}], SYNONYMS)


def test_the_least_sure_mentions_go_first_and_no_more_than_equal_recall_needs() -> None:
    mentions = [[("dog", -0.1), ("person", -2.0), ("bus", -1.0)], [("person", -0.2), ("bus", -3.0)]]
    complete = m.cut_to_recall(mentions, 100, count_names)
    assert complete.sum(0)[[2, 3, 5]].tolist() == [5, 2, 3]
    two_of_three = m.cut_to_recall(mentions, 67, count_names)
    assert two_of_three[:, 2].tolist() == [1, 1]
    assert two_of_three.sum(0)[[3, 5]].tolist() == [0, 2]
    assert m.cut_to_recall(mentions, 0, count_names)[:, 2].sum() == 0


def test_certainty_of_a_mention_is_its_log_probability_after_what_stands_before(llava: Subject) -> None:
    names = {"cat": "cat", "dog": "dog", "star": "star"}
    there = np.zeros((3, 3), bool)
    pictures = [families.picture(i) for i in range(3)]
    album = m.Album(pictures, there, there, there, list(names), names, "the cat sees", np.zeros(3, int))
    captions = ["a red star and dogs", "of the", "cat"]
    found = m.mention_logprobs(llava, album, captions)
    assert [[name for name, _ in own] for own in found] == [["star", "dog"], [], ["cat"]]

    def total(number: int, answer: str) -> float:
        return answer_logprobs(llava, [album.prompt], [pictures[number]], answers=[[answer]]).item()

    assert found[0][0][1] == pytest.approx(total(0, "a red star") - total(0, "a red"), abs=1e-4)
    assert found[2][0][1] == pytest.approx(total(2, "cat"), abs=1e-4)


# The baseline


def test_pai_raises_the_scores_of_image_columns_at_the_newest_row_only(
    llava: Subject, batch: dict[str, Tensor]
) -> None:
    image, layer = llava.spans(batch).image, llava.n_layers - 1
    with torch.no_grad(), capture(llava, "scores") as plain:
        llava.model(**batch)
    with torch.no_grad(), m.paying_attention(llava, 0.5, layer), capture(llava, "scores") as raised:
        llava.model(**batch)
    expected = plain[layer].clone()
    for i in range(len(image)):
        for h in range(llava.n_heads):
            for k in range(image.shape[1]):
                if image[i, k]:
                    expected[i, h, -1, k] += 0.5 * abs(expected[i, h, -1, k])
    torch.testing.assert_close(raised[layer], expected)
    assert torch.equal(raised[0], plain[0])


def test_counterfactual_scenes_tempt_with_the_partners_that_are_not_there() -> None:
    album = m.scene_album(40, np.random.default_rng(0), noise=0.8)
    assert not (album.present & album.tempting).any()
    assert (album.tempting.sum(1) == album.present.sum(1)).all()
    assert album.seen[:, 0].mean() > 0.1
    few = album.first(7)
    assert len(few) == len(few.images) == len(few.tempting) == 7


# Statistics


def test_rank_correlation_is_scipys_and_zero_where_nothing_varies() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 30), rng.normal(size=30)  # a has ties
    assert m.rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert m.rank_correlation(np.ones(9), np.arange(9)) == 0
    assert m.rank_agreement(np.array([[1, 2, 3], [1, 1, 1]]), np.array([[3, 2, 1], [1, 2, 3]])).tolist() == [
        -1,
        0,
    ]


def test_the_permutation_null_keeps_an_effect_that_runs_through_the_groups() -> None:
    """Fed with an effect that the permutation leaves in, the null shows it; without one it does not."""
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1, 2, 3], 40)
    heads, rates = group + rng.normal(size=160), -group + rng.normal(size=160)
    through = m.permutation_null([heads], [rates], group, rng, 50)
    assert through.high < -0.2
    within = m.permutation_null([heads], [rates], np.zeros(160), rng, 50)
    assert within.low < 0 < within.high


def test_columns_of_equal_strength_are_perfectly_even_and_a_single_one_is_not_even_at_all() -> None:
    strength = torch.tensor([[2.0, 2.0, 2.0, 2.0], [0.0, 3.0, 0.0, 0.0]])
    assert m.evenness(strength).tolist() == pytest.approx([1, 0], abs=1e-6)


def test_permuting_within_groups_keeps_each_groups_values() -> None:
    rng = np.random.default_rng(0)
    values, groups = np.arange(60.0), np.arange(60) % 3
    shuffled = m.permuted_within(values, groups, rng)
    for group in range(3):
        assert sorted(shuffled[groups == group]) == sorted(values[groups == group])
    assert (shuffled != values).mean() > 0.8


def test_correlation_within_groups_is_blind_to_what_the_groups_differ_in() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], 200)
    a, b, shared = (
        group + 0.1 * rng.normal(size=600),
        group + 0.1 * rng.normal(size=600),
        rng.normal(size=600),
    )
    assert m.rank_correlation(a, b) > 0.8
    assert abs(m.rank_correlation(a, b, group)) < 0.15
    assert m.rank_correlation(a + shared, b + shared, group) > 0.9


# Photographs


def test_photographs_come_with_their_objects_and_what_usually_goes_with_them(tmp_path: Path) -> None:
    kinds, shown = ["fork", "plate", "dog", "cat"], [{1, 2}, {1, 2}, {1, 2, 3}, {1}, {3}, set()]
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(6)]
    annotations = [{"image_id": i, "category_id": c} for i, own in enumerate(shown) for c in own]
    categories = [{"id": i, "name": name} for i, name in enumerate(kinds, 1)]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2014").mkdir()
    instances = {"images": images, "annotations": annotations, "categories": categories}
    captions = {"annotations": [{"image_id": i, "caption": "A photograph"} for i in range(6)]}
    for name, content in (("instances", instances), ("captions", captions)):
        (tmp_path / "annotations" / f"{name}_val2014.json").write_text(json.dumps(content))
    for i in range(6):
        families.picture(i).save(tmp_path / "val2014" / f"{i}.jpg")
    album = m.photo_album(str(tmp_path), 6, seed=0)  # the one without an object is left out
    assert sorted(map(tuple, album.present)) == sorted(
        tuple(k in own for k in range(1, 5)) for own in shown[:5]
    )
    lone_fork = np.flatnonzero((album.present == [True, False, False, False]).all(1))[0]
    assert album.tempting[lone_fork].tolist() == [False, True, False, False]
    assert album.images[0].mode == "RGB"
    assert album.words["dog"] == "dog"


# Real classes

LISTED = papers.read("eah").models
SMALLER = {"n_images": 8, "n_sweep": 8, "n_swept": 2, "n_resamples": 100, "max_new_tokens": 3}
SMALLER |= {"device": "cpu", "dtype": "float32", "quantization": ""}


@pytest.mark.parametrize(
    ("model", "preset", "depth"), hub_models.cases(LISTED, LISTED[0], depth=3, colab=LISTED[0])
)
def test_each_listed_model_reaches_the_end_and_what_it_cannot_do_is_said(
    model: str, preset: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights describe nothing: no row is judged that rests on captions or answers."""
    of = {"model": hub_models.folder(model, depth), "folder": hub_models.coco_folder()}
    run = hub_models.run_chapter("eah", preset, monkeypatch, **SMALLER | of)
    run.check_task_not_done("eah", (2, 3, 4, 7, 8, 11))
    assert run.records["eah.1"].verdict != "not testable here"  # of attention, not of words
    said = " ".join(f"{row.note} {row.reason}" for row in run.records.values())
    assert not re.search("partner|small architecture", said)
