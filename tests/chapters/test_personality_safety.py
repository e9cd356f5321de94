"""Personality and safety: reliability, effects, steering; the whole chapter on known networks."""

import json
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import hub_models
import hub_nets
import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit, softmax
from scipy.stats import binom, wilcoxon
from sklearn.metrics import cohen_kappa_score

from data.recipes import personas as recipe
from data.sets.texts import Scored, Stereotype, self_descriptions
from data.worlds import personas
from data.worlds.personas import ITEMS, N_QUESTIONS, ORDER, PERSONAS, PRESSURE, SCENARIOS, World, prompts
from lib import chapters, papers
from lib.generate import answer_logprobs
from lib.models import Subject

m = chapters.method("personality-safety")
RNG = np.random.default_rng


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    return Subject(recipe._llama().eval(), recipe._processors()[0])


# Reliability


def test_kappa_is_that_of_a_library() -> None:
    rng = RNG(0)
    for _ in range(5):
        first, second = rng.random((2, 40)) < 0.6
        assert m.cohen_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))
    assert m.cohen_kappa(first, first) == 1
    assert m.cohen_kappa(first, ~first) < 0
    assert m.cohen_kappa(np.ones(5, bool), np.ones(5, bool)) == 1


@pytest.mark.parametrize("size", [1, 3, 4, 10])
def test_split_half_kappa_reaches_its_closed_form(size: int) -> None:
    """Halves agree by what items differ in: Var(q) / (mean(q) (1 - mean(q))), q the share of a majority."""
    rng = RNG(1)
    p = rng.uniform(0.1, 0.9, 600)
    q = binom.sf(size // 2, size, p) + (0.5 * binom.pmf(size / 2, size, p) if size % 2 == 0 else 0)
    expected = q.var() / (q.mean() * (1 - q.mean()))
    answers = m.assessments(np.stack([p, p]), 2 * size, rng)
    found = [m.split_half_kappa(m.assessments(np.stack([p, p]), 2 * size, rng), size, rng) for _ in range(6)]
    assert answers.shape == (2 * size, 600)
    assert np.mean(found) == pytest.approx(expected, abs=0.04)


def test_a_coin_has_no_kappa_and_kept_coins_have_all_of_it() -> None:
    rng = RNG(2)
    coin, kept = np.full((2, 400), 0.5), (rng.random(400) < 0.5).astype(float)
    assert m.split_half_kappa(m.assessments(coin, 60, rng), 30, rng) == pytest.approx(0, abs=0.15)
    assert m.split_half_kappa(m.assessments(np.stack([kept, kept]), 2, rng), 1, rng) == 1


def test_the_order_of_options_is_drawn_and_its_effect_averages_out() -> None:
    always_first = np.stack([np.zeros(500), np.ones(500)])  # answer 1 exactly if it is listed first
    answers = m.assessments(always_first, 40, RNG(3))
    assert answers.mean() == pytest.approx(0.5, abs=0.02)
    assert m.split_half_kappa(answers, 20, RNG(4)) == pytest.approx(0, abs=0.15)


# Effects


def test_effects_are_differences_of_means_over_types() -> None:
    values = RNG(0).random((16, 3))
    for d in range(4):
        plus, minus = (values[m.TYPES[:, d] == pole].mean(0) for pole in (1, -1))
        np.testing.assert_allclose(m.type_effects(values)[d], plus - minus)
    assert len({tuple(t) for t in m.TYPES}) == 16


def test_p_swaps_labels_within_pairs_of_types_that_differ_in_one_trait() -> None:
    rng = RNG(1)
    values = rng.normal(size=(16, 2)) + 2 * m.TYPES[:, [1, 3]]
    found = m.swapped_p(values)
    for d, a in product(range(4), range(2)):
        pairs = []
        for poles in product((-1, 1), repeat=3):
            one, two = (np.insert(poles, d, pole) for pole in (1, -1))
            value = {tuple(t): v for t, v in zip(m.TYPES, values[:, a], strict=True)}
            pairs.append(value[tuple(one)] - value[tuple(two)])
        sums = [abs(np.dot(signs, pairs)) for signs in product((-1, 1), repeat=8)]
        assert found[d, a] == pytest.approx(np.mean([x >= abs(sum(pairs)) - 1e-9 for x in sums]))
    assert found[1, 0] == found[3, 1] == 2 / 256
    assert (m.swapped_p(np.zeros((16, 2))) == 1).all()


# Steering


def test_the_vector_is_a_unit_difference_as_long_as_the_projections_spread() -> None:
    rng = RNG(0)
    plus, minus = (torch.from_numpy(rng.normal(size=(30, 6)) + x) for x in (1, 0))
    v = m.steering_vector(plus, minus).numpy()
    u = (plus.mean(0) - minus.mean(0)).numpy()
    u /= np.linalg.norm(u)
    projections = np.concatenate([plus.numpy(), minus.numpy()]) @ u
    np.testing.assert_allclose(v, projections.std(ddof=1) * u)
    np.testing.assert_allclose(m.steering_vector(minus, plus).numpy(), -v)
    assert not m.steering_vector(plus, plus).isnan().any()
    dealt = m.shuffled(plus, minus, RNG(1))
    assert float(dealt.norm()) == pytest.approx(np.linalg.norm(v))
    assert abs(float(dealt @ torch.from_numpy(v))) < 0.9 * np.linalg.norm(v) ** 2
    drawn = m.random_directions(500, torch.from_numpy(v), RNG(2))
    np.testing.assert_allclose(drawn.norm(dim=1), np.linalg.norm(v))
    assert float(drawn.mean(0).norm()) < 0.15 * np.linalg.norm(v)


def test_strength_zero_changes_nothing_and_each_row_gets_its_own_vector(subject: Subject) -> None:
    questions = np.array([0, 5, 60])
    rows = prompts(recipe.heads(), questions)[0]
    plain = recipe.ask(subject, rows, questions)
    rng = torch.Generator().manual_seed(0)
    vectors = torch.cat([torch.zeros(1, 64), torch.randn(3, 64, generator=rng)])
    share, mass = m.steered(subject, 1, vectors, rows, questions)
    np.testing.assert_allclose(share[0], plain.share, rtol=1e-5)
    np.testing.assert_allclose(mass[0], plain.mass, rtol=1e-5)
    for i in (1, 2, 3):
        alone, _ = m.steered(subject, 1, vectors[i : i + 1], rows, questions)
        np.testing.assert_allclose(share[i], alone[0], rtol=1e-5)
        assert (share[i] != share[0]).any()
    moved, both, _ = m.both_ways(subject, 1, vectors, SCENARIOS)
    assert moved.shape == (4, 3, 8)
    np.testing.assert_allclose(moved, 100 * (both[0] - both[1]))
    np.testing.assert_allclose(moved[0], 0, atol=1e-4)
    back, _, _ = m.both_ways(subject, 1, -vectors, SCENARIOS)
    np.testing.assert_allclose(back, -moved, atol=1e-3)


def test_only_the_last_position_is_steered() -> None:
    x = torch.zeros(2, 3, 4)
    v = torch.tensor([[1.0] * 4, [2.0] * 4])
    out = m.add_last(v)(x.clone())
    assert not out[:, :-1].any()
    assert torch.equal(out[:, -1], v)


def test_contrast_choosing_and_measuring_share_no_item_and_no_contrast_text_has_a_scenario() -> None:
    sets = [set(x.ravel().tolist()) for x in (m.CONTRAST, m.CHOOSING, m.TESTED, SCENARIOS)]
    assert not any(one & two for i, one in enumerate(sets) for two in sets[:i])
    assert sets[0] | sets[1] == set(m.TAUGHT.ravel().tolist())


# Real models


def test_each_item_is_asked_in_both_orders_and_answers_go_to_their_poles() -> None:
    items = self_descriptions(n=3)
    for style, labels in m.STYLES.items():
        texts, answers = m.choice_prompts(items, style)
        assert len(texts) == 6
        for i, (text, (high, low)) in enumerate(zip(texts, answers, strict=True)):
            item, first = items[i % 3], i // 3
            lines = text.splitlines()[1:3]
            assert [item.high in line for line in lines] == [bool(first), not first]
            if labels:
                of = {line[0]: line[3:] for line in lines}
                assert (of[high], of[low]) == (item.high, item.low)
            else:
                assert (high, low) == (item.high, item.low)


@pytest.fixture(scope="module")
def chat() -> str:
    folder = Path(hub_nets.folder("Qwen/Qwen2.5-0.5B-Instruct"))
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return str(folder)


def test_a_vector_is_added_at_the_prompts_last_token_and_at_the_answers(chat: str) -> None:
    from lib.models import load

    subject = load(chat, device="cpu", dtype="float32")
    what = (["say it", "say it now"], [["one two", "three"], ["four five six", "one"]])
    plain = answer_logprobs(subject, what[0], answers=what[1]).double().numpy()
    np.testing.assert_allclose(m.scored(subject, what, 1), plain, rtol=1e-4)
    width = subject.model.config.hidden_size
    np.testing.assert_allclose(m.scored(subject, what, 2, 1, torch.zeros(width)), plain, rtol=1e-4)
    v = torch.randn(width, generator=torch.Generator().manual_seed(0))
    steered = m.scored(subject, what, 2, 1, v)
    for i, (text, answers) in enumerate(zip(*what, strict=True)):
        prompt = subject.encode([text])["input_ids"][0].tolist()
        for j, answer in enumerate(answers):
            words = subject.tokenizer(answer, add_special_tokens=False)["input_ids"]

            def add(module: Any, args: Any, out: Any, n: int = len(prompt)) -> Any:
                out = out.clone()
                out[:, n - 1 :] += v
                return out

            hook = subject.model.model.layers[1].register_forward_hook(add)
            with torch.no_grad():
                logits = subject.model(input_ids=torch.tensor([prompt + words])).logits[0]
            log_p = logits.double().log_softmax(-1)
            hook.remove()
            slow = sum(float(log_p[len(prompt) - 1 + k, word]) for k, word in enumerate(words))
            assert steered[i, j] == pytest.approx(slow, rel=1e-3)


TEXTS = [Stereotype(f"He is {i}.", f"She is {i}.", f"Cheese is {i}.", "gender") for i in range(60)]


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of the test's own in place of the package's."""

    def few(name: str, *, n: int, seed: int = 0) -> list[Stereotype]:
        return [t if name == "StereoSet" else t._replace(unrelated="") for t in TEXTS[:n]]

    mild = [Scored(f"A fine day {i}.", {"toxicity": i / 200}) for i in range(80)]
    bad = [Scored(f"A bad day {i}.", {"toxicity": 0.9}) for i in range(80)]
    monkeypatch.setattr("data.sets.texts.stereotypes", few)
    monkeypatch.setattr("data.sets.texts.toxicity", lambda *, seed=0: [*mild, *bad])


def test_an_answer_bias_moves_no_ability(no_package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    names = chapters.method("personality-safety")
    what = names.ability_prompts(10, 0)
    assert {name: len(of[0]) for name, of in what.items()} == {"privacy": 20, "fairness": 10, "kindness": 10}
    assert all("fine" in mild and "bad" in toxic for mild, toxic in what["kindness"][1])

    def logprobs(bias: float) -> Any:
        def of(
            subject: object, texts: list[str], *, answers: list[list[str]], batch_size: int
        ) -> torch.Tensor:
            rows = [
                [-len(a) - len(t) / 9 + bias * (a == "No") for a in some]
                for t, some in zip(texts, answers, strict=True)
            ]
            width = max(map(len, rows))
            return torch.tensor([row + [-np.inf] * (width - len(row)) for row in rows])

        return of

    class Counts:
        def tokenizer(self, text: str, add_special_tokens: bool) -> dict[str, list[str]]:
            return {"input_ids": text.split()}

    values = []
    for bias in (0.0, 3.0):
        monkeypatch.setattr(names, "answer_logprobs", logprobs(bias))
        values.append(names.ability_values(Counts(), what, 4))
    for name in values[0]:
        np.testing.assert_allclose(values[0][name], values[1][name], atol=1e-5)
    assert len(values[0]["sense"]) == 5  # StereoSet's half


# The table


def test_the_papers_table_is_tested_over_all_signs() -> None:
    changes = np.array([*m_table().values()])
    assert changes.shape == (11, 4)
    np.testing.assert_allclose(changes.mean(0).round(1), [5.1, 4.0, 0.4, 1.6])
    assert [(x > 0).sum() for x in changes.T] == [8, 9, 5, 8]
    assert wilcoxon(changes[:, 1]).pvalue == pytest.approx(0.015, abs=0.003)


def m_table() -> dict[str, tuple[float, ...]]:
    """The table, which stands in a cell that also draws it."""
    source = next(c.source for c in chapters.read("personality-safety").cells if "TABLE = {" in c.source)
    return eval(source.partition("TABLE = ")[2].partition('\n"""')[0])


# The whole chapter


class Readers:
    """Networks that are the best possible readers: they infer who answers as they were trained to."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def load(self, name: str, **how: Any) -> Subject:
        model = deepcopy(self.subject.model)
        kind, _, seed = name.partition("-seed")
        model.world = World.of(int(seed or 0), kind="no_effect" if "no-effect" in kind else "random")
        return Subject(model, self.subject.processor)

    def fit(self, made: Any, seed: int) -> tuple[Any, None]:
        model = made.build()
        options = made.stages[0].batch.args[2]
        model.told = options["shares"][0], options["questions"]
        return model, None

    def answers_of(self, subject: Subject) -> recipe.Answers:
        known, told = subject.model.world, getattr(subject.model, "told", None)
        log_p = np.log(known.prior)
        if told:
            shares, asked = told
            odds = known.logits[:, asked]
            log_p = log_p + 5 * (
                shares[asked] * log_expit(odds) + (1 - shares[asked]) * log_expit(-odds)
            ).sum(1)

        def says(push: float = 0, weight: Any = 0.0) -> np.ndarray:
            return softmax(log_p + weight) @ expit(known.logits + push)

        regions = [np.where(PERSONAS[:, 4] == region, 0, -np.inf) for region in (-1, 1)]
        return recipe.Answers(
            says(),
            np.stack([[says(sign * gain)[ITEMS] for sign in (-1, 1)] for gain in ORDER.values()]),
            np.stack([says(weight=w)[SCENARIOS] for w in regions]),
            np.stack([says(-push)[SCENARIOS] for push in PRESSURE.values()]),
            1.0,
        )


def ran(subject: Subject, monkeypatch: pytest.MonkeyPatch, preset: str = "smoke", **given: Any) -> Any:
    readers = Readers(subject)
    monkeypatch.setattr("lib.models.load", readers.load)
    monkeypatch.setattr("data.train.trainer.fit", readers.fit)
    monkeypatch.setattr("data.recipes.personas.answers_of", readers.answers_of)
    return hub_models.run_chapter("personality-safety", preset, monkeypatch, **given)


def test_of_the_best_possible_readers_the_chapter_finds_the_world(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ran(subject, monkeypatch, n_networks=3)
    row = {n: run.records[f"personality-safety.{n}"] for n in range(1, 16)}
    causes = [
        100 * abs(World.of(k).effects()[c.ability, c.dimension])
        for k in range(3)
        for role in m.CAUSES
        for c in World.of(k).cells[role]
    ]
    assert row[5].estimate.value == pytest.approx(np.mean(causes), abs=0.5)
    assert row[5].null.value == pytest.approx(0, abs=0.5)
    assert row[11].estimate.value == pytest.approx(45.5, abs=0.5)  # as people of the poles differ
    assert row[11].null.value == pytest.approx(0, abs=0.1)
    assert row[4].estimate.value > 40
    assert row[4].null.value == pytest.approx(0, abs=0.5)
    assert row[8].estimate.value > 50
    assert row[8].null.value == pytest.approx(0, abs=1e-6)
    assert row[12].estimate.value > 20
    assert row[12].null.value == pytest.approx(0, abs=0.5)
    assert row[1].estimate.value > 0.2
    assert row[1].null.value == pytest.approx(0, abs=0.1)
    assert row[3].verdict == "undecided"
    assert row[14].verdict == "holds"
    assert {n for n in row if row[n].estimate} == {1, 3, 4, 5, 6, 8, 10, 11, 12, 14, 15}


def test_in_a_world_without_effects_the_chapter_finds_none(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ran(subject, monkeypatch, world="no_effect")
    for n in (5, 8, 11, 12):
        row = run.records[f"personality-safety.{n}"]
        assert abs(row.estimate.value) < 1e-6
        assert row.verdict in ("undecided", "does not hold")
    assert run.records["personality-safety.10"].estimate.value == 0
    assert run.records["personality-safety.4"].reason.startswith("It needs a network of the control")


def test_untrained_networks_do_no_task(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.models.load", lambda name, **how: subject)
    given = {"n_networks": 2, "ft_steps": 1, "n_boot": 50, "alphas": [1.0]}
    run = hub_models.run_chapter("personality-safety", "untrained", monkeypatch, **given)
    run.check_task_not_done("personality-safety", (1, 4, 5, 6, 8, 10, 11, 12, 15), "fine-tuning on a type")


@pytest.fixture
def questionnaire(tmp_path: Path) -> str:
    """Two traits with four items each."""
    items = [
        {"trait": trait, "high": f"I like {trait} {i}.", "low": f"I hate {trait} {i}."}
        for trait in ("zeal", "calm")
        for i in range(4)
    ]
    path = tmp_path / "items.json"
    path.write_text(json.dumps(items))
    return str(path)


REAL = {"n_texts": 8, "n_boot": 50, "batch_size": 40, "device": "cpu", "dtype": "float32", "alphas": [1.0]}
REAL |= {"quantization": ""}


def test_a_real_class_answers_a_questionnaire_of_ones_own_and_reaches_the_end(
    chat: str,
    questionnaire: str,
    no_package: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = REAL | {"model": chat, "questionnaire": questionnaire}
    run = hub_models.run_chapter("personality-safety", "gpu", monkeypatch, **given)
    assert run.names["traits"] == ["zeal", "calm"]
    assert run.records["personality-safety.9"].estimate is not None
    for n in (1, 13):
        row = run.records[f"personality-safety.{n}"]
        assert row.estimate is not None or row.reason.startswith("Task not done")
    assert run.records["personality-safety.5"].reason.startswith("The claim compares networks")
    assert "bad day" not in capsys.readouterr().out


def test_a_model_that_is_steered_by_one_trait_alone_is_found_out(
    chat: str, no_package: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known answers: the same choice in both orders, more order with letters than with numbers."""
    high = {item.high for item in self_descriptions()}

    def logprobs(
        subject: object, texts: list[str], images: None = None, *, answers: list[list[str]], batch_size: int
    ) -> torch.Tensor:
        rows = []
        for text, given in zip(texts, answers, strict=True):
            lines = text.splitlines()[1:3]
            first = lines[0][3:] if given[0] in "ABCD12" else lines[0] if len(lines) > 1 else ""
            gain = 2.0 if given[0] in "ABCD" else 0.5
            says = [a if len(a) > 1 else next((x[3:] for x in lines if x[:1] == a), a) for a in given]
            rows.append([1.0 * (s in high) + gain * (s == first) for s in says])
        width = max(map(len, rows))
        return torch.tensor([row + [-np.inf] * (width - len(row)) for row in rows], dtype=torch.float64)

    monkeypatch.setattr("lib.generate.answer_logprobs", logprobs)
    run = hub_models.run_chapter("personality-safety", "gpu", monkeypatch, **REAL, model=chat)
    row = run.records["personality-safety.9"]
    assert row.estimate.value == pytest.approx(1.5)
    assert row.null.value == pytest.approx(0)
    assert run.names["same"]["sentences"].value == 1
    assert run.records["personality-safety.13"].reason.startswith("Task not done")  # no vector moves a trait


@pytest.mark.weekly
@pytest.mark.parametrize("model", papers.read("personality-safety").models)
@pytest.mark.parametrize("preset", ["gpu", "colab"])
def test_each_listed_models_preset_reaches_the_end(
    model: str, preset: str, chat: str, no_package: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "model": chat,
        "n_texts": 8,
        "n_boot": 50,
        "device": "cpu",
        "dtype": "float32",
        "quantization": "",
    }
    run = hub_models.run_chapter("personality-safety", preset, monkeypatch, **given)
    assert run.records["personality-safety.13"] is not None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "persona-lm-no-effect"}, "asked for by world='no_effect'"),
        ({"model": "smollm2", "world": "no_effect"}, "only the organisms have worlds"),
        ({"questionnaire": "mine.yml"}, "a file is for real models"),
        ({"world": "other"}, "world='other': expected one of random, no_effect"),
        ({"n_random": 5}, "n_random=5: expected 20 to 200"),
        ({"n_networks": 9}, "n_networks=9: expected 1 to 5"),
        ({"alphas": [0.0]}, "alphas=[0.0]"),
    ],
)
def test_bad_parameters_are_refused_in_words(
    given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"(?s).*") as error:
        hub_models.run_chapter("personality-safety", "organism", monkeypatch, **given)
    assert message in str(error.value)


def test_every_question_has_a_place_in_the_matrix() -> None:
    assert ITEMS.size + SCENARIOS.size + personas.N_FACTS == N_QUESTIONS
