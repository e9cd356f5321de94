"""PIXEL: the closed form, views, subspaces, answers in one row, the search; the chapter on stand-ins."""

import json
from pathlib import Path
from typing import Any

import hub_models
import hub_nets
import numpy as np
import pytest
import torch
from torch import Tensor

from data.recipes import myths as recipe
from data.worlds.myths import World
from lib import chapters, papers
from lib.hooks import capture
from lib.models import Subject

m = chapters.method("pixel")
RNG = np.random.default_rng
REAL = "meta-llama/Llama-2-7b-hf"


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(RNG(seed).normal(size=shape))


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    built = recipe.RECIPES["myths-lm"]
    return Subject(built.build().eval(), built.processors()[0])


@pytest.fixture(scope="module")
def asked() -> Any:
    return m.about_myths(World.of(0), "test", 6, 4, RNG(0))


def packed(subject: Subject, asked: Any, size: int = 250) -> list[Any]:
    return m.pack(subject, asked.prompts["plain"], asked.answers, size)


# The closed form


@pytest.mark.parametrize("s", [0.1, 0.3, 0.85, 0.99])
def test_the_push_reaches_the_target_and_a_grid_finds_no_smaller_one(s: float) -> None:
    h, v = drawn(200, 12), 3 * drawn(12, seed=1)
    alpha = m.strength(h, v, s)
    reached = m.cosine(h + alpha[:, None] * v, v)
    pushed = alpha > 0
    assert pushed.any()
    assert (reached[pushed] - s).abs().max() < 1e-12
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)[:-1]
    tried = h[:, None] + (grid * alpha[:, None])[..., None] * v  # [state, grid, d]
    missed = m.cosine(tried, v) < s
    assert missed[pushed].all()


def test_no_push_is_needed_just_where_the_target_is_met_already() -> None:
    h, v = drawn(500, 5), drawn(5, seed=1)
    there = m.cosine(h, v) >= 0.3
    assert 0.1 < there.double().mean() < 0.9
    assert torch.equal(m.strength(h, v, 0.3) == 0, there)


def test_strength_rises_with_the_target_and_counts_in_units_of_the_direction() -> None:
    h, v = drawn(100, 8), drawn(8, seed=1)
    one, other = m.strength(h, v, 0.4), m.strength(h, v, 0.8)
    assert (other >= one).all()
    assert torch.allclose(m.strength(h, 4 * v, 0.8) * 4, other)


def test_the_residual_is_a_unit_vector_at_a_right_angle_with_a_sign() -> None:
    x, v = drawn(3, 7, 4, 10), drawn(3, 1, 10, seed=1)
    r = m.residual(x, v)
    assert r.shape == (3, 7, 10)
    assert torch.allclose(r.norm(dim=-1), torch.ones(3, 7, dtype=torch.float64))
    assert (r * v).sum(-1).abs().max() < 1e-12
    w = m.subspace(x, 1)[..., 0, :]
    assert ((w * x.mean(2)).sum(-1) >= 0).all()
    assert torch.allclose(m.residual(-x, v), -r)  # no sign of SVD's is left


# Views and subspaces


def test_the_tail_is_a_tenth_of_the_prompt_but_three_to_eight_tokens() -> None:
    assert [m.tail_length(p) for p in (5, 30, 36, 60, 500)] == [3, 3, 4, 6, 8]


@pytest.mark.parametrize("size", [250, 2])
def test_views_are_the_mean_of_the_tail_and_the_last_token(subject: Subject, size: int) -> None:
    prompts = [[5, 6], [*range(4, 14)], [*range(3, 75)]]
    found = m.two_views(subject, m.pack(subject, prompts, [[]] * 3, size))
    assert found.shape == (6, 3, 2, 96)
    for i, prompt in enumerate(prompts):
        with capture(subject, "resid_post") as acts, torch.no_grad():
            subject.model(input_ids=torch.tensor([prompt]))
        k = min(m.tail_length(len(prompt)), len(prompt))
        for layer in range(6):
            h = acts[layer][0].double()
            expected = torch.stack([h[-k:].mean(0), h[-1]])
            assert torch.allclose(found[layer, i], expected, atol=1e-5)


def test_centring_removes_a_shift_that_all_share_and_scales_do_not_bring_it_back() -> None:
    shift, noise = torch.eye(6, dtype=torch.float64)[0], drawn(50, 6)
    noise[:, 0] = 0.1 * noise[:, 0]
    x = 3 * shift + noise
    with_mean, without = (m.subspace(x, 2, centred=c, scaled=False) for c in (False, True))
    assert float(with_mean[0] @ shift) > 0.95
    assert float((without @ shift).abs().max()) < 0.1


def test_a_shift_of_varying_size_survives_centring() -> None:
    shift = torch.eye(6, dtype=torch.float64)[0]
    x = (3 + 5 * drawn(50, 1)) * shift + 0.1 * drawn(50, 6, seed=1)
    assert float(m.subspace(x, 1, scaled=False)[0] @ shift) > 0.99


def test_directions_are_orthonormal_and_point_along_the_mean() -> None:
    x = drawn(4, 30, 8)
    v = m.subspace(x, 3)
    assert torch.allclose(v @ v.mT, torch.eye(3, dtype=torch.float64).expand(4, 3, 3))
    assert ((v * x.mean(1, keepdim=True)).sum(-1) >= 0).all()


@pytest.mark.parametrize("rank", [0, 6, 40])
def test_a_rank_above_the_dimension_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"rank={rank}: 50 differences in 5 dimensions"):
        m.subspace(drawn(50, 5), rank)


# Answers in one row


@pytest.mark.parametrize("size", [250, 5])
def test_answers_in_one_row_have_the_probabilities_of_answers_alone(
    subject: Subject, asked: Any, size: int
) -> None:
    found = m.logprobs(subject, packed(subject, asked, size))
    for q, (prompt, answers) in enumerate(zip(asked.prompts["plain"], asked.answers, strict=True)):
        for j, answer in enumerate(answers):
            with torch.no_grad():
                logits = subject.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
            logp = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            alone = logp[range(len(answer)), answer].sum()
            assert found[q, j] == pytest.approx(float(alone), abs=1e-4)


def test_answers_of_different_lengths_need_no_padding(subject: Subject) -> None:
    prompt, answers = [1, 9, 8, 7], [[5], [5, 6, 7], [9, 4]]
    (both,) = m.logprobs(subject, m.pack(subject, [prompt], [answers], 1))
    each = [m.logprobs(subject, m.pack(subject, [prompt], [[answer]], 1))[0, 0] for answer in answers]
    assert both == pytest.approx(np.array(each), abs=1e-5)


def test_pushes_of_no_length_give_the_base_back_to_the_last_bit(subject: Subject, asked: Any) -> None:
    parts, v = packed(subject, asked), drawn(6, 96)
    setting = m.Setting(tuple(range(6)), m.USUAL, 0.0)
    base = m.logprobs(subject, parts)
    assert np.array_equal(m.logprobs(subject, parts, m.constant(v, 0.0), setting), base)
    assert not np.allclose(m.logprobs(subject, parts, m.constant(v, 1.0), setting), base)


@pytest.mark.parametrize("places", [(0,), (-1, 2), (-100,), (1,)])
def test_only_the_chosen_places_are_pushed_and_never_the_first_token(
    subject: Subject, asked: Any, places: tuple[int, ...]
) -> None:
    (part,) = packed(subject, asked)
    states = []
    for push in (None, m.constant(drawn(6, 96), 1.0)):
        with m.steered(subject, part, push, [2], places), capture(subject, "resid_post", layers=2) as acts:
            subject.model(**part.inputs)
        states.append(acts[2])
    moved = (states[0] != states[1]).any(-1)
    assert torch.equal(moved, torch.isin(part.place, torch.tensor(places)) & part.movable)
    assert not moved[part.inputs["position_ids"] == 0].any()


def test_a_push_into_one_answer_leaves_the_others_alone(subject: Subject) -> None:
    prompt, answers = [1, 9, 8, 7], [[5, 6, 7], [9, 4]]
    pushed = m.constant(drawn(6, 96), 1.0)

    def first_only(layer: int, states: Any) -> Tensor:
        at_second = torch.zeros(len(states.h), 1, dtype=torch.float64)
        at_second[0] = 1  # the first answer's token at place 1
        return pushed(layer, states) * at_second

    parts = m.pack(subject, [prompt], [answers], 1)
    (base,), (now,) = (
        m.logprobs(subject, parts, push, m.Setting((0,), (1,), 0.0)) for push in (None, first_only)
    )
    assert now[0] != base[0]
    assert now[1] == base[1]


# Pushes


def test_strengths_on_the_fly_meet_the_target_in_all_blocks_and_released_ones_miss_it(
    subject: Subject, asked: Any
) -> None:
    options = m.Options(range(6), 2, [0.6], [1.0], 1, 250, 0)
    steer = m.Steering(subject, asked, options)
    lengths, cosines = m.geometry(steer, asked)
    assert lengths.shape == (6, len(m.USUAL))
    off = {name: np.concatenate([x[:, 0] - m.PAPERS for x in by.values()]) for name, by in cosines.items()}
    assert np.abs(off[m.ON_THE_FLY]).max() < 1e-6
    assert np.abs(cosines[m.UNSTEERED][0][:, 0] - m.PAPERS).max() < 1e-6  # nothing is steered below
    assert np.abs(off[m.UNSTEERED]).max() > 0.05
    assert np.abs(off[m.CONSTANT]).max() > 0.05


def test_other_pushes_are_as_long_as_the_closed_forms(subject: Subject, asked: Any) -> None:
    options = m.Options(range(6), 2, [0.6], [1.0], 1, 250, 0)
    steer = m.Steering(subject, asked, options)
    closed, setting = m.to_cosine(steer.v, 0.6), m.Setting((1,), (0, 1), 0.6)
    seen: dict[str, Tensor] = {}
    pushes = {
        "closed": closed,
        "random": m.along(closed, steer.randoms[0]),
        "constant": steer.at_equal_length(asked, closed, setting),
        "shuffled": m.shuffled(closed, 1),
    }
    for name, push in pushes.items():
        steer.answers(asked, m.watched(push, lambda i, s, e, n=name: seen.update({n: e})), setting)
    length = {name: e.norm(dim=-1) for name, e in seen.items()}
    assert torch.allclose(length["random"], length["closed"])
    assert torch.allclose(length["constant"], length["closed"].mean().expand_as(length["closed"]))
    assert torch.allclose(length["shuffled"].sort().values, length["closed"].sort().values)
    assert not torch.allclose(length["shuffled"], length["closed"])
    assert m.cosine(seen["random"], steer.randoms[0][1]).min() > 1 - 1e-9


# Scores and intervals


def test_mc1_asks_for_a_best_answer_and_mc2_for_the_mass_of_all_true_ones() -> None:
    logp = np.log([[0.4, 0.3, 0.2, 0.1], [0.1, 0.3, 0.2, 1.0]])
    kind = np.array([[m.TRUE, m.BEST, m.FALSE, m.FALSE], [m.BEST, m.FALSE, m.FALSE, m.ABSENT]])
    found = m.scores(logp, kind)
    assert found.mc1.tolist() == [100, 0]  # a true answer that is not the best one does not compete
    assert found.mc2 == pytest.approx([70, 100 / 6])
    assert found.odds == pytest.approx([np.log(7 / 3), np.log(1 / 5)])
    p = np.array([1, 3, 2]) / 6
    assert found.entropy[1] == pytest.approx(-(p * np.log(p)).sum())


def test_intervals_are_over_networks_and_units_and_stay_inside_their_range() -> None:
    units = [np.arange(40) // 2] * 3
    alike = m.over([np.full(40, 100.0)] * 3, units)
    assert (alike.value, alike.high) == (100, 100)
    assert 90 < alike.low < 100
    assert alike.n == 60
    apart = m.over([np.full(40, float(x)) for x in (10, 50, 90)], units)
    assert apart.values == (10, 50, 90)
    assert apart.low < 25
    assert apart.high > 75
    noise = RNG(0).normal(size=(3, 400))
    within = m.over(list(noise), [np.arange(400)] * 3)
    doubled = m.over([np.repeat(x, 2) for x in noise], [np.arange(800) // 2] * 3)
    assert doubled.high - doubled.low == pytest.approx(within.high - within.low, rel=0.1)


# The search


def test_the_search_finds_layer_places_and_the_strength_that_keeps_ability() -> None:
    asked = []

    def gain(setting: Any) -> float:
        asked.append(setting)
        at_best = setting.layers == (3,)
        helped = len({0, 2} & {*setting.places}) - 0.5 * len({-1, 1} & {*setting.places})
        return at_best * helped * (1 + setting.dose)

    found = m.choose(gain, lambda setting: 30.0 * (setting.dose > 0.5), range(5), [0.2, 0.5, 0.9])
    assert found.setting == m.Setting((3,), (0, 2), 0.5)  # 0.9 gains more, and costs 30 points of ability
    assert len(found.by_layers) == 6  # each block, and all
    assert len(asked) == 6 + len(m.SCANNED) + 2


def test_where_every_strength_costs_ability_the_cheapest_is_taken() -> None:
    found = m.choose(lambda _: 1.0, lambda setting: 10 * setting.dose, [0], [0.8, 0.4], scanned=())
    assert found.setting == m.Setting((0,), m.USUAL, 0.4)


# Questions


def test_a_true_and_a_false_answer_that_are_equal_are_refused() -> None:
    unit, ability = np.zeros(1, int), np.zeros(1, bool)
    for answers, message in (([[5], [5]], "are equal"), ([[5], []], "none may be empty")):
        with pytest.raises(ValueError, match=f"question 0: .*{message}"):
            m.Questions({"plain": [[1]]}, [answers], np.array([[m.BEST, m.FALSE]]), unit, ability)
    with pytest.raises(ValueError, match="its views would be empty"):
        m.Questions({"plain": [[]]}, [[[5], [6]]], np.array([[m.BEST, m.FALSE]]), unit, ability)


def test_creatures_of_the_three_parts_differ_and_headers_only_add_words() -> None:
    parts = [m.about_myths(World.of(0), split, 80, 5, RNG(0)) for split in ("train", "validation", "test")]
    contested = [{*part.unit[~part.ability].tolist()} for part in parts]
    assert not contested[0] & contested[1]
    assert not contested[1] & contested[2]
    assert not contested[0] & contested[2]
    for part in parts:
        for way, prompts in part.prompts.items():
            for plain, headed in zip(part.prompts["plain"], prompts, strict=True):
                assert headed[-len(plain) + 1 :] == plain[1:]
                assert (len(headed) == len(plain)) == (way == "plain")


def test_sentences_are_cut_where_they_part() -> None:
    start, ends = m.split_sentence("Bats can see quite well.", "Bats are blind.", "Bats can sing.")
    assert start == "Bats"
    assert ends == [" can see quite well.", " are blind.", " can sing."]
    assert m.split_sentence("Venus is hot.", "Mercury is hot.")[0] == ""


# The whole chapter


SMALL = {"n_items": 8, "n_ability": 8, "n_random": 2, "n_boot": 50, "strengths": [0.6], "coefficients": [1.0]}
LEARNED = (1, 2, 4, 5, 10, 11, 12, 13, 14, 16)


def test_untrained_networks_do_no_task_and_geometry_holds_all_the_same(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.models.load", lambda name, **how: subject)
    run = hub_models.run_chapter("pixel", "smoke", monkeypatch, **SMALL)
    run.check_task_not_done("pixel", LEARNED, "of the questions of ability")
    assert run.records["pixel.9"].verdict == "holds"
    assert run.records["pixel.15"].estimate is not None


HUB = {"layers": [0, 1], "abilities": ["ioi", "facts"], "batch_size": 7, "device": "cpu", "dtype": "float32"}
HUB |= {"quantization": ""}


@pytest.mark.parametrize("name", [REAL, "Qwen/Qwen2.5-0.5B-Instruct"])
def test_real_classes_reach_the_end_on_this_books_misconceptions(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"model": hub_nets.folder(name), "data": "misconceptions"}
    run = hub_models.run_chapter("pixel", "real", monkeypatch, **SMALL | HUB | given)
    assert run.records["pixel.4"].reason.startswith("This run asks no under-informed choices")
    assert {f"pixel.{i}" for i in range(1, 17)} == {*run.records}
    assert run.records["pixel.9"].verdict == "holds"


def questions(path: Path, n: int) -> str:
    def record(i: int) -> dict[str, Any]:
        best, also, false = f"Blue {i}.", f"Mostly blue {i}.", f"Red {i}."
        one = {"choices": [best, false], "labels": [1, 0]}
        many = {"choices": [also, best, false], "labels": [1, 1, 0]}
        return {"question": f"What colour is thing {i}?", "mc1_targets": one, "mc2_targets": many}

    path.write_text("\n".join(json.dumps(record(i)) for i in range(n)))
    return str(path)


def test_a_file_in_truthful_qas_form_is_read_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"model": hub_nets.folder(REAL), "data": questions(tmp_path / "some.jsonl", 24)}
    run = hub_models.run_chapter("pixel", "gpu", monkeypatch, **SMALL | HUB | given)
    (study,) = run.names["studies"]
    asked = study.test.kind[~study.test.ability]
    assert asked[:, :3].tolist() == [[m.TRUE, m.BEST, m.FALSE]] * 8
    assert run.records["pixel.15"].estimate is not None


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"model": "smollm2"}, ValueError, "myths are asked of myths-lm"),
        ({"data": "misconceptions"}, ValueError, "myths are asked of myths-lm"),
        ({"layers": [9]}, IndexError, "9"),
        ({"rank": 17}, ValueError, "rank=17: expected 1 to 16"),
        ({"strengths": [1.0]}, ValueError, "strengths=[1.0]: expected 0.01 to 0.99"),
        ({"n_items": 7}, ValueError, "n_items=7: expected 8 to 1000"),
        ({"abilities": ["piqa"]}, ValueError, "expected one of ioi, facts, stereoset"),
        ({"model": "MODEL", "data": "/nowhere.jsonl"}, FileNotFoundError, "no file /nowhere.jsonl"),
        (
            {"model": "MODEL", "data": "FEW"},
            ValueError,
            "23 questions; extraction, validation and test need 8",
        ),
    ],
)
def test_bad_parameters_are_refused_in_words(
    given: dict[str, Any],
    error: type[Exception],
    message: str,
    subject: Subject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = {"MODEL": lambda: hub_nets.folder(REAL), "FEW": lambda: questions(tmp_path / "few.jsonl", 23)}
    given = {k: made[v]() if isinstance(v, str) and v in made else v for k, v in given.items()}
    if "data" not in given:
        monkeypatch.setattr("lib.models.load", lambda name, **how: subject)
    else:
        given = HUB | given
    with pytest.raises(error) as caught:
        hub_models.run_chapter("pixel", "organism", monkeypatch, **given)
    assert message in str(caught.value)


@pytest.mark.weekly
@pytest.mark.parametrize("model", papers.read("pixel").models)
@pytest.mark.parametrize("preset", ["gpu", "colab"])
def test_each_listed_models_preset_reaches_the_end(
    model: str, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "Qwen/Qwen2.5-0.5B-Instruct" if "Qwen" in model else REAL
    given = {"model": hub_nets.folder(name), "data": questions(tmp_path / "some.jsonl", 24)}
    run = hub_models.run_chapter("pixel", preset, monkeypatch, **SMALL | HUB | given)
    assert run.records["pixel.15"].estimate is not None
