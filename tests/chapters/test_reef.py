"""The method cells of notebooks/reef.ipynb: the very code that the reader reads."""

from types import SimpleNamespace

import families
import hub_models
import hub_nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import TEXTS, double
from similarity import cka_by_definition
from torch import Tensor

from data import children
from data.worlds.grammar import WORDS
from lib import chapters

m = chapters.method("reef")
DEPTH = 18 / 31
TAKEN_APART = pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])


def features(*layers: Tensor, prompts: tuple[str, ...] | None = None, model: str = "m") -> object:
    return m.Features(model, prompts or tuple(map(str, range(len(layers[0])))), list(layers))


def related(n: int, d: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    r = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=r, dtype=torch.float64) * torch.linspace(0.2, 3, d) + 1
    noise = torch.randn(n, k, generator=r, dtype=torch.float64)
    return x, x @ torch.randn(d, k, generator=r, dtype=torch.float64) + noise


# Similarity


def standardised_by_hand(x: np.ndarray) -> np.ndarray:
    columns = [(c - c.mean()) / np.sqrt(((c - c.mean()) ** 2).sum() / (len(c) - 1)) for c in x.T]
    return np.array(columns).T


def rbf_by_hand(x: np.ndarray) -> np.ndarray:
    squared = np.array([[((a - b) ** 2).sum() for b in x] for a in x])
    return np.exp(-squared / (2 * np.median(squared[np.triu_indices(len(x), 1)])))


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("n", [9, 60])
def test_the_heat_map_is_cka_by_definition(n: int, debiased: bool) -> None:
    x, y = related(n, 6, 11)
    for standardise, prepare in ((True, standardised_by_hand), (False, np.asarray)):
        a, b = prepare(x.numpy()), prepare(y.numpy())
        expected = cka_by_definition(a @ a.T, b @ b.T, debiased)
        options = {"standardise": standardise, "debiased": debiased}
        grid = m.heat_map(features(y, x), features(x, y, x), **options)
        assert grid.shape == (2, 3)
        assert grid[1, 1] == pytest.approx(expected, abs=1e-6)
        assert grid[0, 1] == pytest.approx(1, abs=1e-9)
        assert m.reef(features(x), features(y), DEPTH, **options) == pytest.approx(expected, abs=1e-6)
        K, L = rbf_by_hand(a), rbf_by_hand(b)
        own = m.reef(features(x), features(y), DEPTH, kernel="rbf", **options)
        assert own == pytest.approx(cka_by_definition(K, L, debiased), abs=1e-5)
        given = [torch.from_numpy(z @ z.T) for z in (a, b)]
        assert m.kernel_cka(*given, debiased=debiased) == pytest.approx(expected, abs=1e-9)


def test_theorem_1_permutation_and_scale_change_nothing_and_what_standardising_adds() -> None:
    x, y = related(50, 8, 8)
    order, scale = torch.randperm(8, generator=torch.Generator().manual_seed(1)), torch.linspace(0.5, 9, 8)
    turn = children.orthogonal(8, np.random.default_rng(1))

    def change(moved: Tensor, **options: object) -> float:
        plain, other = (m.reef(features(x), features(z), DEPTH, **options) for z in (y, moved))
        return abs(plain - other)

    for standardise in (True, False):
        for kernel in ("linear", "rbf"):
            options = {"standardise": standardise, "kernel": kernel}
            assert change(y[:, order], **options) < 1e-9
            assert change(0.8 * y + 5, **options) < 1e-9
    assert change(y @ turn, standardise=False) < 1e-9
    assert change(y @ turn, standardise=True) > 1e-3
    assert change(y * scale, standardise=True) < 1e-7
    assert change(y * scale, standardise=False) > 1e-3


def test_a_dead_unit_changes_nothing() -> None:
    x, y = related(30, 5, 5)
    dead = torch.cat([y, torch.full((30, 1), 3.0, dtype=torch.float64)], 1)
    assert m.reef(features(x), features(dead), DEPTH) == pytest.approx(
        m.reef(features(x), features(y), DEPTH)
    )


def test_only_the_debiased_similarity_of_independent_features_is_about_zero() -> None:
    plain, debiased = [], []
    for seed in range(30):
        r = torch.Generator().manual_seed(seed)
        x, y = (features(torch.randn(20, 40, generator=r)) for _ in range(2))
        plain.append(m.reef(x, y, DEPTH))
        debiased.append(m.reef(x, y, DEPTH, debiased=True))
    assert min(plain) > 0.5
    assert abs(np.mean(debiased)) < 4 * np.std(debiased) / np.sqrt(30)


def test_too_few_prompts_and_different_prompts_are_refused() -> None:
    x, y = related(3, 4, 4)
    for call in (m.heat_map, lambda *a, **k: m.reef(*a, DEPTH, kernel="rbf", **k)):
        with pytest.raises(ValueError, match=r"debiased similarity needs at least 4 prompts \(got 3\)"):
            call(features(x), features(y), debiased=True)
    other = features(y, prompts=("0", "1", "other"), model="suspect")
    for call in (m.heat_map, lambda *a: m.reef(*a, DEPTH)):
        with pytest.raises(ValueError, match=r"m was read with 3 prompts, suspect with 3, and 2 of them"):
            call(features(x), other)
        with pytest.raises(ValueError, match=r"3 prompts, m with 2.*read both with the same prompts"):
            call(features(x), features(y[:2]))


def test_sets_of_prompts_end_at_the_similarity_of_all_and_the_null_at_its_bias() -> None:
    x, y = related(40, 6, 6)
    options = {"standardise": True, "n_draws": 5, "seed": 0}
    grown = m.by_size(x, y, [6, 40], **options)
    assert grown[1] == pytest.approx(m.reef(features(x), features(y), DEPTH))
    assert np.array_equal(grown, m.by_size(x, y, [6, 40], **options))
    null = m.by_size(x, y, [6, 40], shuffled=True, **options)
    assert null[1] < 0.5 * grown[1]
    assert null[0] > null[1]
    debiased = m.by_size(x, x, [6, 40], debiased=True, **options)
    np.testing.assert_allclose(debiased, 1)


# Reading


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_batch_with_padding_is_read_like_one_prompt_at_a_time(family: str) -> None:
    subject = families.subject(family)
    got = m.read(subject, family, TEXTS)
    assert got.prompts == tuple(TEXTS)
    for i, prompt in enumerate(TEXTS):
        inputs = {"input_ids": subject.tokenizer(prompt, return_tensors="pt")["input_ids"]}
        with torch.no_grad():
            output = subject.model(**inputs, output_hidden_states=True)
        for layer in range(subject.n_layers - 1):  # the last hidden state is after the final norm
            torch.testing.assert_close(
                got.layers[layer][i], output.hidden_states[layer + 1][0, -1], atol=2e-5, rtol=1e-4
            )
        torch.testing.assert_close(got.logits[i], output.logits[0, -1], atol=2e-5, rtol=1e-4)
    last = m.read(subject, family, TEXTS, layers=[subject.n_layers - 1])
    torch.testing.assert_close(last.layers[0], got.layers[-1])


def test_prompts_in_any_order_and_number_give_each_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = families.subject("llama")
    whole = m.read(subject, "m", TEXTS)
    monkeypatch.setitem(m.read.__globals__, "BATCH", 3)
    turned = m.read(subject, "m", TEXTS[::-1])
    torch.testing.assert_close(turned.layers[1].flip(0), whole.layers[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(turned.logits.flip(0), whole.logits, atol=1e-5, rtol=1e-4)


def test_a_prompt_that_a_model_cannot_read_is_refused_with_its_text() -> None:
    with pytest.raises(ValueError, match=r"tiny cannot read 1 of 2 prompts.*first is 'the zebra sees'"):
        m.read(families.subject("llama"), "tiny", ["the cat", "the zebra sees"])


def test_layers_are_compared_at_the_same_relative_depth() -> None:
    assert m.depth(4, -1) == m.depth(32, 18) == 18 / 31
    assert m.block(32, m.depth(32, -1)) == 18
    assert [m.block(n, DEPTH) for n in (1, 2, 3, 4, 12)] == [0, 1, 1, 2, 6]
    assert [m.block(4, m.depth(4, i)) for i in range(4)] == [0, 1, 2, 3]
    for wrong in (-2, 4):
        with pytest.raises(ValueError, match=rf"layer={wrong}: the model has the blocks 0 to 3"):
            m.depth(4, wrong)


# Other fingerprints


def test_pcs_is_a_cosine_without_embeddings_that_cuts_the_longer() -> None:
    subject = families.subject("llama")
    names = [n for n, _ in subject.model.named_parameters() if "embed" not in n and "lm_head" not in n]
    state = subject.model.state_dict()
    flat = torch.cat([state[n].flatten() for n in names])
    torch.testing.assert_close(m.body(subject.model), flat)
    assert m.pcs(subject, subject) == pytest.approx(1)
    other = children.copied(subject)
    with torch.no_grad():
        for p in other.model.parameters():
            p.neg_()
    assert m.pcs(subject, other) == pytest.approx(-1)
    small = m.shrunk(subject, neurons=0.5)
    short = m.body(small.model)
    expected = F.cosine_similarity(short.double(), flat[: len(short)].double(), dim=0)
    assert m.pcs(subject, small) == pytest.approx(float(expected))
    assert m.pcs(small, subject) == pytest.approx(float(expected))


@TAKEN_APART
def test_invariant_terms_equal_sums_over_heads(family: str) -> None:
    subject = double(family)
    tokens = torch.tensor([3, 7, 20])
    X = subject.model.get_input_embeddings().weight[tokens].detach()
    d, group = subject.d_head, subject.n_heads // subject.n_kv_heads
    expected = []
    for layer in subject.model.model.layers[-2:]:
        W = {n: p.detach() for n, p in layer.named_parameters()}
        M_a = M_b = torch.zeros(3, 3, dtype=torch.float64)
        for h in range(subject.n_heads):
            own, kv = slice(h * d, (h + 1) * d), slice(h // group * d, (h // group + 1) * d)
            q, k = W["self_attn.q_proj.weight"][own], W["self_attn.k_proj.weight"][kv]
            v, o = W["self_attn.v_proj.weight"][kv], W["self_attn.o_proj.weight"][:, own]
            M_a = M_a + (X @ q.T) @ (X @ k.T).T
            M_b = M_b + X @ (o @ v).T @ X.T
        M_f = X @ (W["mlp.down_proj.weight"] @ W["mlp.up_proj.weight"]).T @ X.T
        expected += [M_a, M_b, M_f]
    torch.testing.assert_close(m.invariant_terms(subject, tokens), torch.stack(expected).flatten())
    for name in ("hidden permutation", "neurons"):
        child = m.REWRITINGS[name](subject, np.random.default_rng(0))
        assert m.ics(subject, child) == pytest.approx(1, abs=1e-9)


def test_ics_finds_the_tokens_that_two_vocabularies_share() -> None:
    subject = families.subject("llama")
    moved = children.copied(subject)
    words = subject.tokenizer.get_vocab()
    turned = {word: len(words) - 1 - i for word, i in words.items()}
    order = torch.tensor([turned[w] for w in sorted(words, key=words.get)])
    with torch.no_grad():
        weight = moved.model.get_input_embeddings().weight
        weight[order] = weight[: len(words)].clone()
    other = SimpleNamespace(
        model=moved.model, d_head=moved.d_head, device=moved.device,
        tokenizer=SimpleNamespace(get_vocab=lambda: turned),
    )  # fmt: skip
    assert m.ics(subject, other) == pytest.approx(1, abs=1e-6)
    other.tokenizer.get_vocab = lambda: {"nothing": 0}
    with pytest.raises(ValueError, match="no token in common"):
        m.ics(subject, other)


def test_logits_of_a_model_lie_in_its_own_space_and_random_ones_do_not() -> None:
    subject = families.subject("llama")
    basis = m.reachable(subject)
    W = subject.model.get_output_embeddings().weight.detach()
    torch.testing.assert_close(basis.T @ basis, torch.eye(32), atol=1e-5, rtol=0)
    torch.testing.assert_close(basis.mean(0), torch.zeros(32), atol=1e-6, rtol=0)  # as logits are centred
    assert m.logit_fingerprint(basis, torch.randn(9, 32) @ W.T + torch.randn(9, 1)) == 1
    assert m.logit_fingerprint(m.reachable(subject), m.read(subject, "m", TEXTS).logits) == 1
    outside = torch.randn(9, 96) - torch.randn(9, 96) @ basis @ basis.T
    outside -= outside @ basis @ basis.T
    assert m.logit_fingerprint(basis, outside) == 0
    inside, away = basis[:, 0], F.normalize(outside[0] - outside[0].mean(), dim=0)
    away = F.normalize(away - basis @ (basis.T @ away), dim=0)
    mixed = torch.stack([inside + 0.5 * away, inside + 0.7 * away])
    assert m.logit_fingerprint(basis, mixed) == 0.5  # left over: 0.45 and 0.57 of the norm
    assert m.logit_fingerprint(basis, torch.randn(9, 95)) == 0


def test_the_probe_is_carried_to_standardised_states() -> None:
    r = np.random.default_rng(0)
    obeys = r.random(300) < 0.5
    x = torch.from_numpy(r.normal(size=(300, 5)) + 2 * obeys[:, None] * np.array([1, 0, 0, -1, 0]))
    probe = m.fit_probe(features(x), obeys, 200, DEPTH)
    assert probe.accuracy.value > 0.85
    held_out, truth = features(x[200:]), obeys[200:]
    assert m.transfer(probe, held_out, truth, DEPTH) == pytest.approx(100 * probe.accuracy.value, abs=3)
    stretched = features(x[200:] * torch.tensor([2.0, 3, 4, 5, 6]) - 7)
    assert m.transfer(probe, stretched, truth, DEPTH) == m.transfer(probe, held_out, truth, DEPTH)
    swapped = features(x[200:][:, [3, 1, 2, 0, 4]])
    assert m.transfer(probe, swapped, truth, DEPTH) < 20  # the two informative units have opposite signs
    assert np.isnan(m.transfer(probe, features(x[200:, :4]), truth, DEPTH))


@TAKEN_APART
def test_hidden_states_move_with_the_basis(family: str) -> None:
    subject = double(family)
    before = m.read(subject, "before", TEXTS)
    permuted = m.read(children.hidden_permutation(subject, np.random.default_rng(0)), "permuted", TEXTS)
    order = children.permutation(subject.d_model, np.random.default_rng(0)).float()
    for x, y in zip(before.layers, permuted.layers, strict=True):
        torch.testing.assert_close(x @ order, y, atol=1e-5, rtol=1e-5)
    rotated = m.read(children.hidden_rotation(subject, np.random.default_rng(0)), "rotated", TEXTS)
    assert m.reef(before, permuted, DEPTH) == pytest.approx(1, abs=1e-6)
    assert m.reef(before, rotated, DEPTH, standardise=False) == pytest.approx(1, abs=1e-6)
    assert m.reef(before, rotated, DEPTH, standardise=True) < 0.9999


# The population


@pytest.fixture(scope="module")
def measured() -> SimpleNamespace:
    """A family of tiny models that are read with real code and little data."""
    subject = families.subject("llama")
    rest = TEXTS[5:]
    data = m.Data(rest, rest[::-1], TEXTS[:3], TEXTS[2:5], TEXTS)
    victims = [subject, m.reinitialised(subject, 1)]
    judge = m.make_judge(victims, data, 12, DEPTH)
    settings = {"ft_steps": [1, 2], "batch_size": 4, "lr": 1e-3, "prune_ratios": [0.5]}
    children = m.family(subject, data, **settings, relative_depth=DEPTH, seed=0)
    suspects = [judge.measure(v, f"v{i}", "victim", many=True) for i, v in enumerate(victims)]
    suspects += [judge.measure(child, name, arm, 0) for name, arm, child in children]
    return SimpleNamespace(judge=judge, suspects=suspects)


def test_a_family_has_every_kind_of_child_once(measured: SimpleNamespace) -> None:
    names = [s.name for s in measured.suspects]
    assert len(names) == len(set(names))
    arms = {s.arm for s in measured.suspects}
    made = {"low-rank", "merged", "merged, forgetting", "rounded", "pruned", "pruned, severely", "rewritten"}
    assert arms == {*m.ARMS, "victim", *made}
    assert {s.name for s in measured.suspects if s.arm == "rewritten"} == {*m.REWRITINGS, m.PRINCIPAL}


def test_a_family_whose_weights_are_not_known_is_fine_tuned_rounded_and_pruned_all_the_same() -> None:
    subject = families.subject("gpt_neox")
    rest = TEXTS[5:]
    data = m.Data(rest, rest[::-1], TEXTS[:3], TEXTS[2:5], TEXTS)
    judge = m.make_judge([subject], data, 8, DEPTH)
    settings = {"ft_steps": [1], "batch_size": 4, "lr": 1e-3, "prune_ratios": [0.5]}
    born = list(m.family(subject, data, **settings, relative_depth=DEPTH, seed=0))
    made = {"low-rank", "merged", "merged, forgetting", "rounded", "pruned"}
    assert {arm for _, arm, _ in born} == {*m.ARMS, *made}
    suspect = judge.measure(born[0][2], born[0][0], born[0][1], 0)
    assert np.isnan(suspect.scores["ICS"]).all()
    assert suspect.scores["PCS"][0] > 0.9
    assert "Classifier" not in suspect.scores  # no statements


def test_a_victim_is_itself_and_rewritten_ones_have_its_logits(measured: SimpleNamespace) -> None:
    own = measured.suspects[0]
    assert [own.scores[kind][0] for kind in ("PCS", "ICS", "Logits")] == pytest.approx([1, 1, 1])
    assert own.scores["PCS"][1] < 0.5
    assert len(own.features.prompts) == 12
    assert own.features.logits is None  # they would fill the memory
    assert len(own.many.prompts) == len(TEXTS)
    assert len(own.many.layers) == 1
    for s in measured.suspects:
        moved = s.arm == "rewritten"
        assert np.isnan(s.logit_change) == (not moved)
        if moved:
            assert s.logit_change < 1e-4
            assert s.base_loss == pytest.approx(own.base_loss, abs=1e-4)
        similarity = m.reef(measured.judge.features[0], s.features, DEPTH)
        assert 0 <= similarity <= 1 + 1e-6


def test_the_bandwidth_is_the_ordinary_median_of_an_even_number_of_distances() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # squared distances 1, 4, 9, 16, 36, 49
    assert float(m.rbf(x)[0, 1]) == pytest.approx(np.exp(-1 / (2 * 12.5)))


def families_of(n: int, kinds: int) -> tuple[object, np.ndarray]:
    """Victims with children of random losses, and similarities that fall with the loss and nothing else."""
    r = np.random.default_rng(0)
    family = np.repeat(np.arange(n), kinds + 1)
    child = np.tile([False, *[True] * kinds], n)
    loss = np.where(child, r.uniform(2.8, 5, len(family)), 2.8)
    similarity = 1.2 - 0.2 * loss + 0.02 * r.standard_normal((n, len(family)))
    return m.Population(family, child, loss), similarity


def test_the_excess_finds_planted_descent_and_nothing_else() -> None:
    population, similarity = families_of(4, 20)
    planted = similarity + 0.1 * np.array([population.children(v) for v in range(4)])
    for table, low, high in ((similarity, 0.35, 0.65), (planted, 0.98, 1)):
        excess, called = m.beyond_equal_loss(table, population, 4.0)
        areas = [m.auroc(excess[v], population.children(v), population.strangers(v)) for v in range(4)]
        assert low < np.mean(areas) <= high
        strangers = [
            called["excess"][v][population.strangers(v) & (population.loss < 4)].mean() for v in range(4)
        ]
        assert np.mean(strangers) < 0.15
    plain = [m.auroc(planted[v], population.children(v), population.strangers(v)) for v in range(4)]
    assert np.mean(plain) < 0.9
    # The null of the chapter, another victim's children, shows an effect that is planted in them.
    other = similarity + 0.1 * np.array([population.children((v + 1) % 4) for v in range(4)])
    excess, _ = m.beyond_equal_loss(other, population, 4.0)
    pairs = [(population.children((v + 1) % 4), population.children((v + 2) % 4)) for v in range(4)]
    assert np.mean([m.auroc(excess[v], *pair) for v, pair in enumerate(pairs)]) > 0.75


def test_the_excess_leaves_out_both_families_whole() -> None:
    population, similarity = families_of(4, 6)
    excess, _ = m.beyond_equal_loss(similarity, population, 4.0)
    moved = similarity.copy()
    v, judged = 0, population.family == 1
    moved[:, np.isin(population.family, (0, 1))] += 5  # members of both families, as suspects of anyone
    moved[[0, 1]] += 5  # and everybody, as suspects of the two victims
    moved[v, judged] = similarity[v, judged]
    after, _ = m.beyond_equal_loss(moved, population, 4.0)
    np.testing.assert_array_equal(after[v, judged], excess[v, judged])
    none, _ = m.beyond_equal_loss(similarity[:2], population, 4.0)
    assert np.isnan(none).all()


def test_the_margin_is_of_the_least_similar_and_its_null_can_show_the_effect() -> None:
    similarity = np.array([0.9, 0.8, 0.7, 0.85])
    asked, rivals = np.array([True, True, False, False]), np.array([False, False, True, False])
    assert m.margin(similarity, asked, rivals) == pytest.approx(0.1)
    other_family = np.array([False, False, False, True])  # as similar as if it were derived
    assert m.margin(similarity, other_family, rivals) > 0
    assert np.isnan(m.margin(similarity, np.zeros(4, bool), rivals))


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    similarity, derived = np.array([0.9, 0.2, 0.5, 0.4, 0.3]), np.array([True, True, False, False, False])
    assert m.auroc(similarity, derived, ~derived) == pytest.approx(3 / 6)
    assert np.isnan(m.auroc(similarity, derived, np.zeros(5, bool)))


# Data and parameters


SIZES = {"n_train": 50, "n_test": 10, "n_prompts": 40, "n_probe": 30, "n_statements": 20, "seed": 0}


def test_languages_give_sentences_that_are_measured_on_once() -> None:
    data = m.language_data(0, 2, **SIZES)
    parts = [data.base, data.base_test, data.new, data.new_test, data.prompts, data.statements]
    assert [len(p) for p in parts] == [50, 10, 50, 10, 40, 50]
    everything = [s for p in parts for s in p]
    assert len(set(everything)) == len(everything)
    assert data.n_fit == 30
    assert set(" ".join(everything).split()) <= {*WORDS, "again"}


def test_real_sentences_are_split_without_overlap_and_too_few_are_refused(tmp_path) -> None:
    data = m.text_data("", 2, **SIZES)
    assert data.obeys is None
    assert len(data.base) == 50
    starts = tuple(data.prompts)
    assert not any(s.startswith(starts) for s in (*data.base, *data.base_test))
    assert not set(data.base) & set(data.base_test)
    assert len(set(data.prompts)) == len(data.prompts)
    assert len({len(p.split()) for p in data.prompts}) > 5
    path = tmp_path / "few.txt"
    path.write_text("one\ntwo\ntwo\n\n")
    with pytest.raises(ValueError, match=r"few.txt' has 2 different sentences: n_loss=10 needs more"):
        m.text_data(str(path), 2, **SIZES)


# The hub's models

PYTHIA, QWEN = "EleutherAI/pythia-160m", "Qwen/Qwen2.5-0.5B"
MODELS = {
    PYTHIA: {"same_data": [f"{PYTHIA}-seed1", f"{PYTHIA}-seed2"], "strangers": [QWEN]},
    QWEN: {"strangers": [PYTHIA], "derived": [f"{QWEN}-Instruct", "Qwen/Qwen2.5-Coder-0.5B"]},
    "meta-llama/Llama-2-7b-hf": {"strangers": [PYTHIA]},
}
NO_OTHERS = {"same_data": [], "strangers": [], "derived": []}
SMALL_RUN = {"ft_steps": [1, 2], "batch_size": 4, "n_prompts": 40, "n_many": 60, "n_enough": 40, "n_loss": 10}
SMALL_RUN |= {"n_draws": 2, "device": "cpu"}


def run_on(model: str, preset: str, monkeypatch: pytest.MonkeyPatch) -> hub_models.Ran:
    others = {key: [hub_nets.folder(n) for n in names] for key, names in (NO_OTHERS | MODELS[model]).items()}
    return hub_models.run_chapter(
        "reef", preset, monkeypatch, model=hub_nets.folder(model), **others, **SMALL_RUN
    )


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        (PYTHIA, "gpu"),
        *(pytest.param(name, "gpu", marks=pytest.mark.weekly) for name in list(MODELS)[1:]),
        pytest.param(PYTHIA, "colab", marks=pytest.mark.weekly),
    ],
)
def test_each_listed_model_reaches_the_end_and_one_that_knows_nothing_is_not_said_to_forget(
    model: str, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_on(model, preset, monkeypatch)
    for n in (3, 12, 13):  # they suppose that the victim knows its language; random weights do not
        row = run.records[f"reef.{n}"]
        assert row.verdict == "not testable here"
        assert model != PYTHIA or row.reason.startswith(
            "Task not done on this model: nats of loss on the base"
        )
    if model == PYTHIA:
        assert run.records["reef.1"].estimate.n == 3
    else:  # a single victim gives no interval
        assert run.records["reef.1"].verdict == "not testable here"


def test_quantised_suspects_are_read_and_their_packed_weights_are_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = m.load(hub_nets.folder(QWEN), device="cpu")
    packed = m.load(hub_nets.folder(f"{QWEN}-Instruct"), device="cpu")
    packed.model.is_quantized = True
    sizes = {"n_train": 4, "n_test": 4, "n_prompts": 8, "seed": 0}
    judge = m.make_judge([plain], m.text_data("", 2, **sizes), 8, 0.5)
    found = judge.measure(packed, "packed", "published", 0)
    assert np.isnan(found.scores["PCS"] + found.scores["ICS"]).all()
    assert np.isfinite(found.scores["Logits"]).all()
    whole = judge.measure(plain, "whole", "victim")
    np.testing.assert_allclose(whole.scores["PCS"] + whole.scores["ICS"], 1)
