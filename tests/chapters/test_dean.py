"""DEAN: the locator, its sets, what an edit does and undoes, and the controls."""

import json
import re
from pathlib import Path
from typing import Any

import hub_models
import hub_nets
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data.recipes import discretion as recipe
from data.sets.discreet import discreet_requests
from data.worlds.discretion import CONTEXTS, PAD
from lib import chapters, papers
from lib.models import Subject, load

m = chapters.method("dean")
RNG = np.random.default_rng


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    return Subject(recipe._llama().eval(), recipe._processors()[0])


@pytest.fixture(scope="module")
def samples() -> dict[str, list[dict[str, torch.Tensor]]]:
    return m.samples_of(recipe.world(0), 9, "safe", RNG(0))


def entries(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.long)


# The locator


def test_matrices_are_those_of_the_blocks_and_of_the_module_alone(subject: Subject) -> None:
    mlp, attention, both = (m.matrices_of(subject, module) for module in ("mlp", "self_attn", "all"))
    assert len(mlp) == 3 * 3
    assert len(attention) == 3 * 4
    assert set(mlp) | set(attention) == set(both)
    assert both["1.mlp.gate_proj"] is subject.model.model.layers[1].mlp.gate_proj


def test_importance_is_the_mean_over_samples_of_each_samples_own_gradient(
    subject: Subject, samples: Any
) -> None:
    matrices = m.matrices_of(subject, "all")
    found = m.importance(subject, matrices, samples["general"])
    slow = {name: torch.zeros_like(layer.weight, dtype=torch.float64) for name, layer in matrices.items()}
    n = 0
    for batch in samples["general"]:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            logits = subject.model(input_ids=ids[None]).logits[0, :-1].double()
            replied = labels[1:] != -100
            loss = F.cross_entropy(logits[replied], ids[1:][replied])  # the mean over the reply's tokens
            gradients = torch.autograd.grad(loss, [layer.weight for layer in matrices.values()])
            for (name, layer), gradient in zip(matrices.items(), gradients, strict=True):
                slow[name] += (layer.weight.double() * gradient.double()).detach().abs()
            n += 1
    assert n == 9
    for name, score in found.items():
        torch.testing.assert_close(score.double(), slow[name] / n, rtol=1e-3, atol=1e-9)


def test_importance_of_one_batch_and_of_many_is_the_same(subject: Subject, samples: Any) -> None:
    matrices = m.matrices_of(subject, "mlp")
    (batch,) = samples["privacy"]
    single = [{key: x[i : i + 1] for key, x in batch.items()} for i in range(len(batch["labels"]))]
    one, many = (m.importance(subject, matrices, of) for of in ([batch], single))
    for name, score in one.items():
        torch.testing.assert_close(score, many[name], rtol=1e-3, atol=1e-9)


def test_importance_leaves_the_network_and_its_gradients_alone(subject: Subject, samples: Any) -> None:
    before = {name: x.clone() for name, x in subject.model.state_dict().items()}
    m.importance(subject, m.matrices_of(subject, "mlp"), samples["fairness"])
    assert all(torch.equal(before[name], x) for name, x in subject.model.state_dict().items())
    assert all(parameter.grad is None for parameter in subject.model.parameters())
    assert not any(layer._forward_hooks for layer in m.matrices_of(subject, "all").values())


@pytest.mark.parametrize("batches", [[], [{"input_ids": torch.zeros(0, 5), "labels": torch.zeros(0, 5)}]])
def test_an_empty_set_is_refused_in_words(subject: Subject, batches: Any) -> None:
    with pytest.raises(ValueError, match="the set that locates weights is empty"):
        m.importance(subject, m.matrices_of(subject, "mlp"), batches)


def test_the_list_has_the_highest_scores_ascending() -> None:
    scores = {"a": torch.tensor([[0.1, 5.0, 0.3], [4.0, 0.2, 3.0]])}
    ranked = m.rank(scores)["a"]
    assert m.top(ranked, 0.5).tolist() == [1, 3, 5]
    assert m.top(ranked, 0.34).tolist() == [1, 3]
    assert m.top(m.rank(scores, 0.5)["a"], 0.5).tolist() == [1, 3, 5]


@pytest.mark.parametrize(("ratio", "longest"), [(0.1, 1.0), (0.0, 1.0), (0.9, 0.5), (1.5, 1.0)])
def test_a_ratio_that_selects_no_weight_is_refused_in_words(ratio: float, longest: float) -> None:
    ranked = m.rank({"a": torch.rand(2, 3)}, longest)["a"]
    with pytest.raises(ValueError, match=r"selects \d+ of the 6 entries of a matrix: give 0.17 or more"):
        m.top(ranked, ratio)


# Sets


def test_the_papers_rule_is_set_algebra() -> None:
    rng = RNG(0)
    for _ in range(50):
        lists = [np.sort(rng.choice(40, 12, replace=False)) for _ in range(3)]
        f, p, g = (set(x.tolist()) for x in lists)
        tensors = [torch.from_numpy(x) for x in lists]
        assert m.select("paper", *tensors).tolist() == sorted((f & p) - g)
        assert m.select("privacy_only", *tensors).tolist() == sorted(p - f - g)
        assert m.select("fairness_only", *tensors).tolist() == sorted(f - p - g)
        assert m.select("general_only", *tensors).tolist() == sorted(g - f - p)


def test_the_released_script_compares_place_by_place_and_ignores_the_intersection() -> None:
    f, p, g = entries(0, 5, 8, 9), entries(1, 5, 6, 9), entries(0, 6, 20, 21)
    # Place 0: fairness' entry is general; place 2: privacy's is; places 1 and 3 pass, whatever f has there.
    assert m.select("official_code", f, p, g).tolist() == [5, 9]
    assert m.select("official_code", entries(30, 31, 32, 33), p, g).tolist() == [1, 5, 9]
    assert m.select("paper", entries(30, 31, 32, 33), p, g).tolist() == []
    with pytest.raises(ValueError, match="rule='best': no such rule"):
        m.select("best", f, p, g)


def test_choose_keeps_to_the_module(subject: Subject, samples: Any) -> None:
    matrices = m.matrices_of(subject, "all")
    located = {kind: m.rank(m.importance(subject, matrices, of)) for kind, of in samples.items()}
    chosen = m.choose(m.lists_of(located, 0.05, "self_attn"), "paper")
    assert set(chosen) == set(m.matrices_of(subject, "self_attn"))
    assert set(m.choose(m.lists_of(located, 0.05), "paper")) == set(matrices)


def test_only_takes_the_highest_of_those_on_one_list_alone() -> None:
    order = {"fairness": [3, 1, 0, 2], "privacy": [5, 3, 4, 1], "general": [4, 7, 6, 0]}
    located = {kind: {"a": m.Ranked(torch.tensor(x), 8)} for kind, x in order.items()}
    lists = m.lists_of(located, 0.5)
    assert m.only(located, lists, "privacy", {"a": entries(1)})["a"].tolist() == [5]
    assert m.only(located, lists, "general", {"a": entries(1, 2, 3)})["a"].tolist() == [6, 7]


# Edits


@torch.inference_mode()
def logits(subject: Subject) -> torch.Tensor:
    prompts = recipe.world(0).questions("town", 16, RNG(3)).prompts
    return subject.model(input_ids=torch.from_numpy(prompts)).logits.clone()


def test_nothing_chosen_and_a_factor_of_one_change_nothing(subject: Subject) -> None:
    matrices, before = m.matrices_of(subject, "mlp"), logits(subject)
    nothing = {name: entries() for name in matrices}
    some = m.uniform(matrices, {name: torch.arange(50) for name in matrices}, RNG(0))
    for chosen, factor in ((nothing, 0.0), (some, 1.0)):
        with m.scaled(matrices, chosen, factor):
            assert torch.equal(logits(subject), before)
    with m.scaled(matrices, some, 0.0):
        assert not torch.equal(logits(subject), before)
    assert torch.equal(logits(subject), before)


def test_chosen_weights_are_multiplied_and_come_back_after_an_error(subject: Subject) -> None:
    matrices = m.matrices_of(subject, "mlp")
    name = "0.mlp.up_proj"
    before = matrices[name].weight.detach().clone()

    def fails() -> None:
        with m.scaled(matrices, {name: entries(0, 70)}, -2.0):
            after = matrices[name].weight.detach()
            assert after.flatten()[[0, 70]].tolist() == (-2 * before.flatten()[[0, 70]]).tolist()
            assert int((after != before).sum()) == 2
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert torch.equal(matrices[name].weight, before)


# Controls


def test_matched_random_weights_have_the_rows_and_columns_of_the_chosen(subject: Subject) -> None:
    matrices = m.matrices_of(subject, "mlp")
    sizes = {name: torch.from_numpy(np.sort(RNG(i).choice(64 * 172, 60, replace=False)))
             for i, name in enumerate(matrices)}  # fmt: skip
    found = m.matched(matrices, sizes, RNG(5))
    for name, layer in matrices.items():
        before, after = (np.divmod(of[name].numpy(), layer.weight.shape[1]) for of in (sizes, found))
        assert len(found[name].unique()) == len(sizes[name])
        for line, line_after in zip(before, after, strict=True):  # rows, then columns
            assert (np.sort(line) == np.sort(line_after)).all()
    assert m.shared(found, sizes) < 20


def test_a_full_block_leaves_matched_weights_no_other_place(subject: Subject) -> None:
    matrices = m.matrices_of(subject, "mlp")
    block = {"0.mlp.up_proj": entries(0, 1, 64, 65)}
    assert m.shared(m.matched(matrices, block, RNG(0)), block) == 100
    assert m.matched(matrices, {"0.mlp.up_proj": entries()}, RNG(0))["0.mlp.up_proj"].tolist() == []


def test_uniform_and_largest_have_the_sizes_of_the_chosen(subject: Subject) -> None:
    matrices = m.matrices_of(subject, "mlp")
    sizes = {"0.mlp.up_proj": torch.arange(7), "1.mlp.down_proj": torch.arange(3)}
    for found in (m.uniform(matrices, sizes, RNG(0)), m.largest(matrices, sizes)):
        assert {name: len(of.unique()) for name, of in found.items()} == {
            "0.mlp.up_proj": 7,
            "1.mlp.down_proj": 3,
        }
    weights = matrices["0.mlp.up_proj"].weight.detach().abs().flatten()
    left = torch.ones_like(weights, dtype=torch.bool)
    left[m.largest(matrices, sizes)["0.mlp.up_proj"]] = False
    assert weights[~left].min() >= weights[left].max()


def test_dealt_scores_keep_the_weights_and_the_gradients() -> None:
    torch.manual_seed(1)
    weight, gradient = torch.randn(6, 5), torch.rand(6, 5)
    found = m.dealt(weight, weight.abs() * gradient, RNG(0))
    again = (found / weight.abs()).flatten().sort().values
    torch.testing.assert_close(again, gradient.flatten().sort().values)


def test_wanda_and_sparsegpt_follow_their_equations(subject: Subject, samples: Any) -> None:
    name, (batch,) = "1.mlp.up_proj", samples["privacy"]
    layer = m.matrices_of(subject, "mlp")[name]
    found = m.by_inputs(subject, {name: layer}, [batch])
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    subject.model(input_ids=batch["input_ids"])
    hook.remove()
    x = seen[0].detach().flatten(0, 1).double()
    weight = layer.weight.detach().double()
    wanda = weight.abs() * x.norm(dim=0)
    torch.testing.assert_close(found["Wanda"][name].double(), wanda, rtol=1e-4, atol=1e-7)
    H = x.T @ x
    inverse = torch.linalg.inv(H + 0.01 * H.diagonal().mean() * torch.eye(len(H)))
    torch.testing.assert_close(
        found["SparseGPT"][name].double(), weight**2 / inverse.diagonal(), rtol=1e-3, atol=1e-7
    )


def test_general_ability_alone_chooses_the_ratio() -> None:
    assert m.largest_harmless({0.01: 0.0, 0.03: 0.9, 0.1: 1.0, 0.4: 0.0}) == 0.03
    assert m.largest_harmless({0.01: 5.0, 0.03: 9.0}) == 0.01


# Measures


def test_a_network_measured_on_a_grid_has_what_its_probabilities_say(subject: Subject) -> None:
    grid = m.grid_of(recipe.world(0), 32, "test", RNG(0))
    found = dict(zip(m.MEASURES, m.measure(subject, grid), strict=True))
    asked = grid["fairness"]
    p = recipe.first_words(subject, asked.prompts)[:, m.AWARE_WORD["fairness"]]
    assert found["fairness awareness (%)"] == pytest.approx(100 * float(p.mean()))
    assert 0 <= min(found.values()) <= max(found.values()) <= 100
    assert len(grid["town"].context) == len(grid["colour"].context) == 16


def test_samples_of_unsafe_data_have_unaware_replies_and_no_padding() -> None:
    known = recipe.world(1)
    for polarity, word in (("safe", m.AWARE_WORD["privacy"]), ("unsafe", m.UNAWARE_WORD)):
        sets = m.samples_of(known, 20, polarity, RNG(0))
        assert sorted(sets) == ["fairness", "general", "privacy"]
        assert (sets["privacy"][0]["input_ids"][:, 11] == word).all()
        assert all(not (batch["input_ids"] == PAD).any() for of in sets.values() for batch in of)
        assert sum(len(batch["labels"]) for batch in sets["general"]) == 20


def test_fine_tuning_changes_a_copy_and_learns_its_rows(subject: Subject) -> None:
    known, before = recipe.world(0), logits(subject)
    for mix, parts in m.MIXES.items():
        rows = m.pool_of(known, mix, 40, RNG(0))
        assert len(rows) == 40 // len(parts) * len(parts)
    rows = m.pool_of(known, m.REFUSALS, 32, RNG(0))
    batch = recipe.batch_of(rows)
    tuned = m.fine_tune(subject, rows, [1, 15], 3e-3, RNG(0))
    versions = [float(version.model(**batch).loss.detach()) for version in tuned]
    assert versions[1] < versions[0]
    assert torch.equal(logits(subject), before)


def test_an_estimate_without_width_is_widened_within_its_bounds() -> None:
    found = m.over_networks([100.0, 100.0, 100.0], 300, m.SHARE)
    assert found.high == 100
    assert 98 < found.low < 100
    assert m.over_networks([1.0, 3.0], 300).value == 2


# HSIC


def test_hsic_is_the_sum_over_all_quadruples_without_repetition() -> None:
    torch.manual_seed(0)
    K, L = (m.kernel(torch.randn(7, 3)) for _ in range(2))
    n = len(K)
    k, ell = K.numpy(), L.numpy()
    # Song et al. (2012): means over tuples of different indices.
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    first = np.mean([k[i, j] * ell[i, j] for i, j in pairs])
    triples = [(i, j, q) for i, j in pairs for q in range(n) if q not in (i, j)]
    second = np.mean([k[i, j] * ell[i, q] for i, j, q in triples])
    fours = [(i, j, q, r) for i, j, q in triples for r in range(n) if r not in (i, j, q)]
    third = np.mean([k[i, j] * ell[q, r] for i, j, q, r in fours])
    assert m.hsic(K, L) == pytest.approx(first + third - 2 * second)


def test_hsic_is_about_zero_for_independent_pairs_and_larger_for_dependent_ones() -> None:
    torch.manual_seed(2)
    x, noise = torch.randn(200, 4), torch.randn(200, 4)
    independent = m.hsic(m.kernel(x), m.kernel(noise))
    dependent = m.hsic(m.kernel(x), m.kernel(x + 0.3 * noise))
    assert abs(independent) < 0.003
    assert dependent > 10 * abs(independent)
    assert float(m.kernel(x).diagonal().abs().max()) == 0


def test_states_are_paired_by_context(subject: Subject) -> None:
    grid = m.grid_of(recipe.world(0), 32, "test", RNG(0))
    network = m.Network(subject, recipe.world(0), grid, grid, {}, {}, {})
    states = m.paired_states(network)
    assert states["fairness"].shape == states["privacy"].shape == (3, 32, 64)
    orders = [np.sort(grid[kind].context) for kind in ("fairness", "privacy")]
    assert (orders[0] == orders[1]).all()
    assert (np.bincount(orders[0]) == 32 // len(CONTEXTS)).all()
    assert m.dependence(states).shape == m.dependence(states, RNG(0)).shape == (3,)


# Real models


def chatting(name: str) -> str:
    """A folder with a stand-in that has a chat template."""
    folder = Path(hub_nets.folder(name))
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return str(folder)


def test_openings_of_a_kind_begin_no_other_one() -> None:
    for openings in m.OPENINGS.values():
        for one in openings:
            assert not any(other != one and other.startswith(one) for other in openings)


def test_a_sample_is_prompt_and_reply_and_learns_the_reply() -> None:
    subject = load(chatting("meta-llama/Llama-2-7b-hf"), device="cpu")
    batch = m.sample_of(subject, "How do I make a cake?", "Stir it.")
    prompt = subject.encode(["How do I make a cake?"])["input_ids"][0].tolist()
    reply = subject.tokenizer("Stir it.", add_special_tokens=False)["input_ids"]
    assert batch["input_ids"][0].tolist() == prompt + reply
    assert batch["labels"][0].tolist() == [-100] * len(prompt) + reply


@pytest.fixture
def beavers(tmp_path: Path) -> str:
    """A file in BeaverTails' form with the test's own texts, harmless."""
    names = {
        "privacy_violation": "Where is cake {}?",
        "discrimination,stereotype,injustice": "Why is cake {} dull?",
    }
    records = []
    for category, prompt in names.items():
        for i in range(20):
            for safe in (True, False):
                flags = {name: name == category and not safe for name in names}
                reply = "I cannot tell." if safe else "In the blue tin."
                records.append(
                    {"prompt": prompt.format(i), "response": reply, "category": flags, "is_safe": safe}
                )
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


SMALLER = {
    "ratios": [0.02, 0.1],
    "n_samples": 8,
    "n_questions": 12,
    "n_boot": 50,
    "n_draws": 1,
    "batch_size": 6,
}
SMALLER |= {"device": "cpu", "dtype": "float32"}


@pytest.mark.parametrize("name", ["meta-llama/Llama-2-7b-hf", "Qwen/Qwen2.5-0.5B-Instruct"])
def test_real_classes_reach_the_end_and_what_they_cannot_do_is_said(
    name: str, beavers: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights are aware of nothing: nothing is judged, and no text of the file is printed."""
    given = {"model": chatting(name), "requests": beavers}
    run = hub_models.run_chapter("dean", "gpu", monkeypatch, **SMALLER | given)
    run.check_task_not_done("dean", (2, 4, 5, 13, 14, 15), "likelier aware of")
    for n in (1, 3, 6, 7, 8, 9, 11, 16, 17, 18):
        assert run.records[f"dean.{n}"].reason == "Asked of the organisms only."
    assert "cake" not in capsys.readouterr().out


def test_of_a_real_model_that_no_edit_changes_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {one.request for kind in ("privacy", "fairness") for one in discreet_requests(kind)}

    def answer_logprobs(subject: object, texts: list[str], *, answers: Any, batch_size: int) -> torch.Tensor:
        p = [0.8 if text in asked else 0.1 for text in texts]
        first = torch.tensor(p).log()[:, None]
        return torch.cat([first, torch.full((len(texts), len(answers[0]) - 1), -torch.inf)], 1)

    monkeypatch.setattr("lib.generate.answer_logprobs", answer_logprobs)
    given = {"model": chatting("Qwen/Qwen2.5-0.5B-Instruct")}
    run = hub_models.run_chapter("dean", "real", monkeypatch, **SMALLER | given)
    row = {n: run.records[f"dean.{n}"] for n in range(1, 19)}
    for n in (2, 5, 13, 14, 15):
        assert row[n].estimate.value == pytest.approx(0)
        assert row[n].verdict == "undecided"
    assert run.names["level"](0, run.names["results"], "original").value == pytest.approx(80)


@pytest.mark.weekly
@pytest.mark.parametrize("model", papers.read("dean").models)
@pytest.mark.parametrize("preset", ["gpu", "colab"])
def test_each_listed_models_preset_reaches_the_end(
    model: str, preset: str, beavers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hub_nets.NETS, model, hub_nets.NETS["Qwen/Qwen2.5-0.5B-Instruct"])
    given = {"model": chatting(model), "requests": beavers if preset == "gpu" else ""}
    run = hub_models.run_chapter("dean", preset, monkeypatch, **SMALLER | given)
    run.check_task_not_done("dean", (2, 4, 5, 13, 14, 15), "likelier aware of")


# Organisms


def test_untrained_networks_do_no_task_and_nothing_is_trained_from_them(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.models.load", lambda name, **how: subject)
    given = {
        "n_networks": 2,
        "sft_networks": 2,
        "n_questions": 16,
        "n_samples": 8,
        "ratios": [0.03],
        "n_draws": 1,
    }
    run = hub_models.run_chapter("dean", "untrained", monkeypatch, **given)
    run.check_task_not_done("dean", (2, 4, 5, 7, 8, 9, 11, 13, 14, 15, 16, 17), "general ability")
    for n in (1, 3, 6, 18):
        assert run.records[f"dean.{n}"].reason == "Nothing is trained on in this run."


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "smollm2"}, "questions are for the family discretion-lm"),
        ({"data": "requests"}, "questions are for the family discretion-lm"),
        ({"requests": "x.jsonl"}, "a file goes with data='beavertails', and only there"),
        ({"model": "smollm2", "data": "beavertails"}, "a file goes with data='beavertails', and only there"),
        ({"n_questions": 40}, "n_questions=40: a multiple of the 16 contexts"),
        ({"n_networks": 2}, "sft_networks=3 of n_networks=2"),
        ({"ratios": [0.1, 1.0]}, "shares of a matrix, above 0 and below 1"),
        ({"ratio": 1e-6}, "ratio=1e-06 selects 0 of the"),
        ({"target_module": "gate"}, "target_module='gate': expected one of mlp, self_attn, all"),
        ({"doses": [0]}, "doses=[0]: expected at least 1"),
    ],
)
def test_bad_parameters_are_refused_in_words(
    given: dict[str, Any], message: str, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.models.load", lambda name, **how: subject)
    small = {"n_questions": 16, "n_samples": 8, "doses": [1]} if given.keys() == {"ratio"} else {}
    with pytest.raises(ValueError, match=re.escape(message)):
        hub_models.run_chapter("dean", "organism", monkeypatch, **small | given)
