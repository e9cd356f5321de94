"""The method of chapter msrs: subspaces, intervention, loss, trainings side by side, and what it says."""

import json
from pathlib import Path
from typing import Any

import hub_models
import hub_nets
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from data.recipes.tokenizer import word_tokenizer
from data.sets.attributes import Item
from data.worlds import myths
from lib import chapters, papers
from lib.hooks import edit as hooked
from lib.models import Subject, load

m = chapters.method("msrs")
RNG = np.random.default_rng
D = 12


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def edits(n: int = 3, r: int = 4, groups: int = 3, seed: int = 0, **changed: Tensor) -> Any:
    """Interventions of which each has rows of all groups, in float64."""
    rows = m.orthonormal(draw(n, r, D, seed=seed))
    group = torch.arange(r).remainder(groups).expand(n, -1)
    gate = draw(n, 5, D, seed=4), draw(n, 5, seed=5), draw(n, groups, 5, seed=6), draw(n, groups, seed=7)
    made = m.Edit(rows, draw(n, r, D, seed=2), draw(n, r, seed=3), group, torch.ones(n).bool(),
                  torch.ones(n, groups, dtype=torch.float64), *gate)  # fmt: skip
    return made._replace(**changed)


# Subspaces


def test_singular_vectors_are_numpys_with_the_sign_of_the_mean() -> None:
    x = draw(30, D) + 0.5
    found = m.right_singular(x)
    assert np.allclose(np.abs(found.numpy()), np.abs(np.linalg.svd(x.numpy())[2]))
    assert ((x @ found.T).mean(0) >= 0).all()
    assert torch.allclose(m.right_singular(-x), -found)


def test_private_bases_are_orthogonal_to_the_shared_one_and_find_what_is_planted() -> None:
    basis = torch.linalg.qr(draw(D, D))[0].T
    common = draw(80, 1, seed=1) * 10 @ basis[:1]
    x = [common[:40] + draw(40, 1, seed=2) @ basis[1:2], common[40:] + draw(40, 1, seed=3) @ basis[2:3]]
    shared, private = m.bases(x, (1, 1, 1))
    for i, found in enumerate(private):
        assert (found @ shared.T).abs().max() < 1e-9
        assert float((found @ basis[i + 1]).abs()) > 0.99
    assert float((shared[0] @ basis[0]).abs()) > 0.99


def test_the_released_projection_on_all_vectors_leaves_rounding_error() -> None:
    x = (draw(40, D) + 1).float()
    whole = torch.linalg.svd(x, full_matrices=True).Vh
    assert (x - x @ whole.T @ whole).norm() / x.norm() < 1e-5


@pytest.mark.parametrize(("energy", "expected"), [(0.5, 1), (0.64, 1), (0.7, 2), (0.8, 2), (0.99, 4), (1, 4)])
def test_energy_counts_squared_singular_values(energy: float, expected: int) -> None:
    x = torch.diag(torch.tensor([8.0, 4.0, 4.0, 2.0]))  # squares 64, 16, 16, 4 of 100
    assert m.energy_size(x, energy) == expected


def test_adaptive_sizes_keep_the_total_and_one_vector_a_group() -> None:
    wide, narrow = draw(60, D), draw(60, 1, seed=1) @ draw(1, D, seed=2)
    for total in (3, 8, 11):
        sizes = m.adaptive_sizes([wide, narrow], total, 0.9)
        assert sum(sizes) == total
        assert min(sizes) >= 1
    assert sizes[1] > sizes[2]


def test_rows_become_orthonormal_and_the_first_do_not_depend_on_later_ones() -> None:
    free = draw(2, 5, D)
    rows = m.orthonormal(free)
    assert torch.allclose(rows @ rows.mT, torch.eye(5, dtype=rows.dtype).expand(2, -1, -1))
    assert torch.allclose(m.orthonormal(free[:, :3]), rows[:, :3])
    assert torch.allclose(m.orthonormal(rows), rows)
    assert torch.allclose(m.orthonormal(free * torch.tensor([3.0, 1, 2, 1, 5])[:, None]), rows)


def test_sizes_are_dealt_evenly_or_refused() -> None:
    assert m.even_sizes(8, 4, 2) == (4, 2, 2)
    assert m.equal_sizes(8, 2) == (2, 3, 3)
    assert m.equal_sizes(9, 2) == (3, 3, 3)
    for total, shared in ((8, 3), (8, 8), (8, 7), (8, -1)):
        with pytest.raises(ValueError, match=f"rank={total}, shared_rank={shared}: deal the rest evenly"):
            m.even_sizes(total, shared, 2)


# The intervention


def test_the_intervention_is_the_papers_equation() -> None:
    e, h = edits(), draw(3, 7, D, seed=9)
    gate = m.gates(e, h)
    found = m.phi(e, h, gate)
    for k in range(3):
        for j in range(7):
            hidden = torch.relu(e.w1[k] @ h[k, j] + e.b1[k])
            g = torch.sigmoid(e.w2[k] @ hidden + e.b2[k])
            assert torch.allclose(gate[k, j], g)
            assert 0 < g.min() < g.max() < 1
            r = e.r[k]
            expected = h[k, j] + r.T @ torch.diag(g[e.group[k]]) @ (e.w[k] @ h[k, j] + e.b[k] - r @ h[k, j])
            assert torch.allclose(found[k, j], expected)


def test_without_a_gate_the_subspace_holds_what_is_written_and_nothing_else_changes() -> None:
    e, h = edits(gated=torch.zeros(3).bool()), draw(3, 7, D, seed=9)
    found = m.phi(e, h, m.gates(e, h))
    assert torch.allclose(found @ e.r.mT, h @ e.w.mT + e.b[:, None])
    rest = torch.eye(D, dtype=h.dtype) - e.r.mT @ e.r
    assert torch.allclose(found @ rest, h @ rest)


def test_gates_of_zero_rows_of_no_group_and_w_equal_to_r_leave_everything_as_it_was() -> None:
    h = draw(3, 7, D, seed=9)
    off, none = edits(on=torch.zeros(3, 3, dtype=h.dtype)), edits(group=torch.full((3, 4), -1))
    same = edits()
    for e in (off, none, same._replace(w=same.r, b=torch.zeros_like(same.b))):
        assert torch.equal(m.phi(e, h, m.gates(e, h)), h)


def test_a_group_that_is_off_takes_its_rows_only() -> None:
    h = draw(3, 7, D, seed=9)
    on = torch.tensor([1.0, 0, 1]).double().expand(3, -1)
    change = m.phi(edits(on=on), h, m.gates(edits(), h)) - h
    along = change @ edits().r.mT
    off = edits().group[0] == 1
    assert along[..., off].abs().max() < 1e-12
    assert along[..., ~off].abs().min() > 0


def test_added_vectors_are_added_with_their_strength() -> None:
    vectors, h = [*draw(2, D, seed=1).float()], draw(1, 7, D, seed=2).float()
    for strengths in ([0.0, 0.0], [2.0, 0.0], [1.0, -3.0]):
        e = m.caa(vectors, strengths)
        found = m.phi(e, h, m.gates(e, h))
        assert torch.allclose(found, h + strengths[0] * vectors[0] + strengths[1] * vectors[1], atol=1e-5)


def test_stacking_adds_rows_that_do_nothing() -> None:
    one, other = edits(1, r=2, seed=1), edits(2, r=4, seed=2)
    h = draw(1, 7, D, seed=9)
    both = m.stacked([one, other])
    wide = h.expand(3, -1, -1)
    found = m.phi(both, wide, m.gates(both, wide))
    assert torch.allclose(found[:1], m.phi(one, h, m.gates(one, h)))
    assert torch.allclose(found[1:], m.phi(other, wide[1:], m.gates(other, wide[1:])))


def test_the_loss_is_task_prior_and_alignment() -> None:
    nll, gate = draw(2, 4) ** 2, draw(2, 4, 3, seed=1).sigmoid()
    prior, rows, s = torch.full((2, 4, 3), 0.9).double(), draw(2, 5, D, seed=2), draw(2, 5, D, seed=3)
    s[1, 3:] = 0
    used = torch.tensor([[1.0, 1, 1, 1], [0, 1, 0, 1]]).double()
    weights = torch.tensor([[0.5, 0.8], [0.1, 0.3]]).double()
    found = m.loss(nll, gate, prior, used, rows, s, weights)
    for k, (kept, n) in enumerate((([0, 1, 2, 3], 5), ([1, 3], 3))):
        cosines = [rows[k, i] @ s[k, i] / rows[k, i].norm() / s[k, i].norm() for i in range(n)]
        expected = nll[k, kept].mean() + weights[k, 0] * ((gate[k, kept] - 0.9) ** 2).mean()
        assert found[k] == pytest.approx(float(expected - weights[k, 1] * sum(cosines) / n))


# Reading and training


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(myths.LANGUAGE.vocabulary), hidden_size=24, intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3, tie_word_embeddings=True,
        max_position_embeddings=64, bos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return Subject(LlamaForCausalLM(config).eval(), word_tokenizer(myths.LANGUAGE.vocabulary))


@pytest.fixture(scope="module")
def items() -> list[list[Item]]:
    known, rng = myths.World.of(0), RNG(0)
    asked = {"wording": "trained"}
    return [
        m.facts(known, known.pairs("train")[:8], rng, **asked),
        m.choices(known, 8, rng, split="train", **asked),
    ]


@pytest.fixture(scope="module")
def learned(subject: Subject, items: list[list[Item]]) -> Any:
    return m.view(subject, [item for of in items for item in of])


LABEL = torch.tensor([1] * 8 + [2] * 8)
SETTINGS = {"n_steps": 3, "batch_size": 6, "lr": 0.05, "weights": (0.5, 0.8), "seed": 0}


@pytest.mark.parametrize("rule", ["last", "subspace"])
def test_blocks_above_side_by_side_say_what_the_whole_edited_model_says(
    rule: str, subject: Subject, learned: Any
) -> None:
    layer = 1
    (trunk,) = m.read(subject, learned, [layer], rule)
    s = torch.linalg.qr(draw(24, 4).float())[0].T
    variants = [m.Variant((2, 1, 1), s), m.Variant((4, 0, 0), gated=False), m.Variant((0, 1, 1))]
    trained = m.train(trunk, learned, LABEL, variants, rule, **SETTINGS)
    found = m.answer_logprobs(trained, trunk, learned, rule, n_logits=12_000)
    for k in range(3):
        one = m.Edit(*(x[k : k + 1] for x in trained))
        for i in (0, 5, 9, 15):
            prompt = learned.tokens[i][learned.mask[i]]

            def steer(h: Tensor, one: Any = one, n: int = len(prompt)) -> Tensor:
                where = m.places(rule, one, h[:, :n], torch.ones(1, n).bool(), None)
                h[:, :n] = m.phi(one, h[:, :n], m.gates(one, h[:, :n]) * where[0])
                return h

            for c in torch.nonzero(learned.written[i].any(1))[:, 0].tolist():
                answer = learned.answers[i, c][learned.written[i, c]]
                with torch.no_grad(), hooked(subject, "resid_post", layer=layer, fn=steer):
                    logits = subject.model(torch.cat([prompt, answer])[None]).logits[0].log_softmax(-1)
                expected = logits[len(prompt) - 1 : -1].gather(1, answer[:, None]).sum()
                assert float(found[k, i, c]) == pytest.approx(float(expected), abs=1e-3)
    if rule == "last":
        before = m.answer_logprobs(m.caa([*draw(2, 24).float()], [0.0, 0.0]), trunk, learned)
        assert (before - found)[..., :3].abs().amax((1, 2)).min() > 0.1


def test_states_at_the_end_of_answers_are_the_models(subject: Subject, learned: Any) -> None:
    (trunk,) = m.read(subject, learned, [2], batch_size=20)
    ends = m.answer_states(trunk, learned)
    ids = torch.cat([learned.tokens[3][learned.mask[3]], learned.answers[3, 2][learned.written[3, 2]]])[None]
    expected = []
    with torch.no_grad(), hooked(subject, "resid_post", layer=2, fn=lambda h: expected.append(h) or h):
        subject.model(ids)
    assert torch.allclose(ends[3, 2], expected[0][0, -1], atol=1e-4)


def test_trainings_side_by_side_are_those_apart(subject: Subject, learned: Any) -> None:
    (trunk,) = m.read(subject, learned, [1])
    s = torch.linalg.qr(draw(24, 4).float())[0].T
    variants = [m.Variant((2, 1, 1), s), m.Variant((4, 0, 0), gated=False), m.Variant((2, 1, 1), only=2)]
    both = m.train(trunk, learned, LABEL, variants, **SETTINGS)
    for k, variant in enumerate(variants):
        alone = m.train(trunk, learned, LABEL, [variant], **SETTINGS)
        for a, b in zip(alone[:3], both[:3], strict=True):
            assert torch.allclose(a[0], b[k], atol=1e-3)
        assert torch.allclose(alone.w1[0], both.w1[k], atol=1e-3)


def test_frozen_rows_stay_and_alignment_moves_the_others(subject: Subject, learned: Any) -> None:
    (trunk,) = m.read(subject, learned, [1])
    s = torch.linalg.qr(draw(24, 4).float())[0].T
    variants = [m.Variant((2, 1, 1), frozen=True), m.Variant((2, 1, 1), s), m.Variant((2, 1, 1))]
    found = m.train(trunk, learned, LABEL, variants, **SETTINGS | {"n_steps": 30, "weights": (0.5, 20.0)})
    first = m.orthonormal(m.start(variants, 24, 0).r)
    assert torch.allclose(found.r[0], first[0])
    near = [float((found.r[k] * s).sum(1).mean()) for k in range(3)]
    assert near[1] > 0.8
    assert abs(near[2]) < 0.5


def test_an_attribute_alone_does_not_see_the_others_answers(subject: Subject, learned: Any) -> None:
    """Its answers are exchanged; the trainings for the other attribute alone stay the same."""
    good = learned.good.clone()
    good[8:, :3] = good[8:, :3].roll(1, 1)
    other = learned._replace(good=good)
    (trunk,) = m.read(subject, learned, [1])
    variants = [m.Variant((2, 1, 1), only=1), m.Variant((2, 1, 1))]
    before, after = (m.train(trunk, of, LABEL, variants, **SETTINGS) for of in (learned, other))
    assert torch.equal(before.w[0], after.w[0])
    assert not torch.equal(before.w[1], after.w[1])


def test_equal_starts_are_at_the_same_place_and_others_elsewhere() -> None:
    variants = [m.Variant((2, 1, 1), start=k) for k in (0, 1, 0)]
    e = m.start(variants, D, 3)
    for x in (e.r, e.w, e.b, e.w1, e.b1, e.w2, e.b2):
        assert torch.equal(x[0], x[2])
        assert not torch.equal(x[0], x[1])
    eye = torch.eye(4).expand(3, -1, -1)
    assert torch.allclose(e.r @ e.r.mT, eye, atol=1e-5)


@pytest.mark.parametrize(("sizes", "gated"), [((4, 2, 2), True), ((8, 0, 0), False)])
def test_trained_numbers_are_counted(sizes: tuple[int, ...], gated: bool) -> None:
    variant = m.Variant(sizes, gated=gated)
    e = m.start([variant], D, 0)
    parts = (e.r, e.w, e.b, *((e.w1, e.b1, e.w2, e.b2) if gated else ()))
    assert m.n_parameters(variant, D) == sum(x.numel() for x in parts)


@pytest.mark.parametrize("rule", ["last", "subspace", "random"])
def test_each_group_acts_at_one_token_that_is_no_padding(rule: str) -> None:
    live = torch.tensor([[False] * 3 + [True] * 5, [True] * 8])
    e, h = edits(), draw(2, 8, D)
    where = m.places(rule, e, h, live, torch.Generator().manual_seed(1))
    assert where.shape == (3, 2, 8, 3)
    assert (where.sum(2) == 1).all()
    assert (where[:, :, -1, 0] == 1).all()
    if rule != "last":
        assert not where[:, 0, :4].any()  # padding, and the first token
        assert not where[:, 1, 0].any()
    if rule == "subspace":
        rows = e.r[0][e.group[0] == 2]
        size = (h[1] @ rows.T).norm(dim=1)
        assert int(where[0, 1, :, 2].argmax()) == 1 + int(size[1:].argmax())


def test_the_organisms_items_are_what_the_world_says(items: list[list[Item]]) -> None:
    known = myths.World.of(0)
    words = myths.LANGUAGE.vocabulary
    for item in items[0]:
        creature = next(w for w in item.prompt.split() if w in myths.CREATURES)
        relation = next(w for w in item.prompt.split() if w in myths.RELATIONS)
        pair = myths.CREATURES.index(creature) * myths.N_RELATIONS + myths.RELATIONS.index(relation)
        assert not item.prompt.startswith("<bos>")
        for text, good in zip(item.candidates, item.good, strict=True):
            assert (text.split()[-1] == words[known.truth[pair]]) == good
    for i, item in enumerate(items[1]):
        assert sum(item.good) == 1
        right = {text.split()[-1] for text, good in zip(item.candidates, item.good, strict=True) if good}
        assert (right == {myths.UNKNOWN}) == (i < 4)  # the first half has no evidence
    for item in m.copies(6, RNG(1)):
        said = item.prompt.split()[2:5]
        assert [text.split() == said for text in item.candidates] == [*item.good] == [True] + [False] * 3


def test_views_that_can_show_nothing_are_refused(subject: Subject) -> None:
    with pytest.raises(ValueError, match="an empty view"):
        m.view(subject, [])
    with pytest.raises(ValueError, match="item 0: two answers are equal"):
        m.view(subject, [Item("q: who", ("lake", "lake"), (True, False))])


def test_scores_are_probability_mass_and_the_best_candidate(subject: Subject) -> None:
    items = [Item("q: who", ("lake", "cave", "mill"), (True, True, False))] * 2
    of = m.view(subject, [*items, Item("q: who", ("lake", "cave"), (True, False))])
    logprob = torch.tensor([[[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [0.1, 0.3, 0.0]]]).log()
    assert m.scored(logprob, of, True)[0] == pytest.approx([50, 90, 25])
    assert m.scored(logprob, of, False)[0].tolist() == [0, 100, 0]


def test_interference_is_the_mean_loss_by_joining() -> None:
    means = {"A": np.array([50.0, 80, 1]), "A alone 1": np.array([70.0, 0, 1])}
    means["A alone 2"] = np.array([0.0, 90, 1])
    assert m.interference(means, "A", 2) == pytest.approx(15)
    assert m.worst(means["A"], 2) == 50


def test_the_controls_differ_from_the_method_in_one_thing() -> None:
    x = [(draw(30, D, seed=i) + i).float() for i in (1, 2)]
    plan = m.plans({0: x, 1: x, 2: x}, 1, (4, 2, 2), [2], 0.9, True, 2, RNG(0))
    of = plan[1]
    ours, noise = of["MSRS"].s, of[m.NOISE].s
    assert torch.equal(ours[:4], noise[:4])
    assert not torch.allclose(ours[4:], noise[4:], atol=0.1)
    assert torch.equal(ours[4:], of["noise shared"].s[4:])
    assert of["gated LoReFT"] == of["MSRS"]._replace(s=None)
    eye = of["random subspaces"].s @ of["random subspaces"].s.T
    assert torch.allclose(eye, torch.eye(8), atol=1e-5)
    assert {sum(v.sizes) for name, v in of.items() if " r2" not in name} == {8}
    assert of["MSRS r2"].sizes == (0, 1, 1)
    assert of["LoReFT alone 2 start 1"] == of["LoReFT"]._replace(only=2, start=1)
    assert {name for name in of if name.startswith("shared ")} == {f"shared {k}" for k in (0, 2, 4, 6)}
    assert [*plan[0]] == ["layer 0", "random layer 0"]
    assert plan[2]["random layer 2"].frozen


# The whole chapter


def tiny(subject: Subject) -> dict[str, Any]:
    return {"n_train": 8, "n_test": 8, "n_steps": 2, "batch_size": 4, "n_boot": 50, "ranks": [4]}


def test_untrained_networks_do_no_task(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.models.load", lambda name, **how: subject)
    run = hub_models.run_chapter("msrs", "untrained", monkeypatch, n_networks=2, **tiny(subject))
    run.check_task_not_done("msrs", (1, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13), "unsteered it does")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Files in two schemas, of this test's own texts."""
    targets = {"choices": ["It is a dog.", "It is a cat."], "labels": [1, 0]}
    truthful = [{"question": f"What is in place {i}?", "mc2_targets": targets} for i in range(24)]
    said = {"question": "Who is?", "ans0": "dog", "ans1": "cat", "ans2": "unknown"}
    bbq = [said | {"context": f"A dog and a cat are in place {i}.", "label": i % 3} for i in range(24)]
    paths = []
    for name, records in (("truthful.jsonl", truthful), ("bbq.jsonl", bbq)):
        (tmp_path / name).write_text("\n".join(map(json.dumps, records)))
        paths.append(str(tmp_path / name))
    return paths


def no_language(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stereotypes need a package: sentences of the test's own."""
    from data.sets.texts import Stereotype

    made = [
        Stereotype(f"The dog {i} is old", f"The dog {i} is wet", f"The dog {i} is of", "x") for i in range(40)
    ]
    monkeypatch.setattr("data.sets.attributes.stereotypes", lambda name: made)


SMALLER = {"n_train": 8, "n_test": 8, "n_steps": 2, "batch_size": 4, "n_boot": 50, "device": "cpu"}
SMALLER |= {"dtype": "float32", "quantization": ""}


@pytest.mark.parametrize("name", ["meta-llama/Llama-2-7b-hf", "Qwen/Qwen2.5-0.5B-Instruct"])
def test_real_classes_reach_the_end(name: str, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    no_language(monkeypatch)
    given = SMALLER | {"model": hub_nets.folder(name), "attributes": files, "ranks": []}
    run = hub_models.run_chapter("msrs", "gpu", monkeypatch, **given)
    assert {run.records[f"msrs.{i}"].verdict for i in (2, 4, 5, 6, 7, 8)} == {"not testable here"}
    assert len(run.records) == 13


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"model": "smollm2"}, ValueError, "truth and fairness are asked of the family myths-lm"),
        ({"attributes": ["facts"]}, ValueError, "truth and fairness are asked of the family myths-lm"),
        ({"model": "smollm2", "attributes": ["facts"]}, ValueError, "two at least"),
        ({"shared_rank": 3}, ValueError, "rank=8, shared_rank=3: deal the rest evenly to the 2 attributes"),
        ({"rank": 98, "shared_rank": 4}, ValueError, "there are 24 dimensions"),
        ({"layer": 9}, IndexError, "layer=9: there are blocks 0 to 2"),
        ({"lambda_align": -1.0}, ValueError, "lambda_align"),
    ],
)
def test_bad_parameters_are_refused_in_words(
    given: dict[str, Any],
    error: type[Exception],
    message: str,
    subject: Subject,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lib.models.load", lambda name, **how: subject)
    with pytest.raises(error) as found:
        hub_models.run_chapter("msrs", "organism", monkeypatch, **tiny(subject) | given)
    assert message in str(found.value)


def test_a_set_that_is_too_small_is_refused(monkeypatch: pytest.MonkeyPatch, files: list[str]) -> None:
    Path(files[0]).write_text("\n".join(Path(files[0]).read_text().splitlines()[:9]))
    given = SMALLER | {"model": hub_nets.folder("meta-llama/Llama-2-7b-hf"), "attributes": files}
    with pytest.raises(ValueError, match="9 items are too few for training, validation and test"):
        hub_models.run_chapter("msrs", "gpu", monkeypatch, **given)


@pytest.mark.weekly
@pytest.mark.parametrize("model", papers.read("msrs").models)
@pytest.mark.parametrize("preset", ["gpu", "colab"])
def test_each_listed_models_preset_reaches_the_end(
    model: str, preset: str, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_language(monkeypatch)
    stand_in = "Qwen/Qwen2.5-0.5B-Instruct" if "Qwen" in model else "meta-llama/Llama-2-7b-hf"
    given = SMALLER | {"model": hub_nets.folder(stand_in), "attributes": files, "ranks": []}
    run = hub_models.run_chapter("msrs", preset, monkeypatch, **given)
    assert len(run.records) == 13


def test_the_shipped_organism_knows_what_it_is_to_tell() -> None:
    """Steering can bring out only what is there: behind a careful header it tells truths and says unknown."""
    network, known, rng = load("myths-lm", device="cpu", dtype="float32"), myths.World.of(0), RNG(0)
    of = m.of_world(known, 8, 40, rng)
    for plain, careful, mass in zip(of["test"], of["careful"], (True, False), strict=True):
        nothing = m.caa([torch.ones(network.d_model)] * 2, [0.0, 0.0])
        scores = []
        for items in (plain, careful):
            seen = m.view(network, items)
            (trunk,) = m.read(network, seen, [2])
            scores.append(m.scored(m.answer_logprobs(nothing, trunk, seen), seen, mass).mean())
        assert scores[1] > 90
        assert scores[0] < scores[1] - 20
