"""Children of a model: what is made, and that the parent stays as it is."""

from itertools import islice

import families
import numpy as np
import pytest
import torch
from families import TEXTS, double
from torch import Tensor

from data import children as m
from lib.models import Subject

RNG = np.random.default_rng(0)
TAKEN_APART = pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])


@torch.no_grad()
def logits(subject: Subject, texts: list[str] = TEXTS) -> Tensor:
    inputs = subject.encode(texts, chat=False)
    return subject.model(**inputs).logits[inputs["attention_mask"] == 1]


def states(subject: Subject, layer: int) -> Tensor:
    """Behind a block, at the last token of each text."""
    rows = []
    for text in TEXTS:
        inputs = {"input_ids": subject.tokenizer(text, return_tensors="pt")["input_ids"]}
        with torch.no_grad():
            rows.append(subject.model(**inputs, output_hidden_states=True).hidden_states[layer + 1][0, -1])
    return torch.stack(rows).double()


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
    after = child.model.state_dict()
    assert any(not torch.allclose(v, after[k], atol=1e-2) for k, v in before.items())
    assert all(torch.equal(v, before[k]) for k, v in subject.model.state_dict().items())
    single = families.subject(family)
    scale = logits(single).abs().max()
    change = (logits(m.REWRITINGS[name](single, np.random.default_rng(3))) - logits(single)).abs().max()
    assert change < 1e-5 * max(1, scale)


@TAKEN_APART
def test_the_principal_rotation_keeps_the_logits_and_makes_units_uncorrelated(family: str) -> None:
    subject = double(family)
    x = states(subject, 1)
    child = m.principal_rotation(subject, x)
    torch.testing.assert_close(logits(child), logits(subject), atol=2e-5, rtol=2e-5)
    y = states(child, 1)
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
