"""Attention through the one function: edits of scores and patterns, causality, what families add to it."""

import pytest
import torch
import transformers as hf
from families import TOWERS, captured, eager, inputs, last_residual, skip_unless_causal, subject
from transformers import AttentionInterface, AttentionMaskInterface

from lib.attention import NAME, attend
from lib.hooks import capture, edit
from lib.models import Subject

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma

HAS_SCORES = [family for family in TOWERS if family != "bloom"]


@pytest.mark.parametrize("family", TOWERS)
def test_a_layers_own_pattern_put_back_gives_the_same_result(family):
    s = subject(family)
    batch = inputs(s)
    with eager(s):
        expected = last_residual(s, batch)
        patterns = captured(s, batch, ["pattern"])["pattern"]
        for layer in range(s.n_layers):
            with edit(s, "pattern", layer=layer, fn=lambda p, own=patterns[layer]: own):
                assert torch.equal(last_residual(s, batch), expected)


@pytest.mark.parametrize("family", TOWERS)
def test_broadcasting_one_heads_pattern_equals_the_computation_by_hand(family):
    s = subject(family, dtype="float64")
    batch = inputs(s, ["the cat sees a red star ."] * 2)
    layer = 1
    acts = captured(s, batch, ["pattern", "v"])
    with edit(s, "pattern", layer=layer, fn=lambda p: p[:, :1].expand_as(p)):
        edited = captured(s, batch, ["z"])["z"][layer]
    pattern, v = acts["pattern"][layer].numpy(), acts["v"][layer].numpy()
    for head in range(s.n_heads):
        by_hand = pattern[:, 0] @ v[:, :, head * s.n_kv_heads // s.n_heads]
        torch.testing.assert_close(edited[:, :, head], torch.from_numpy(by_hand), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", HAS_SCORES)
def test_no_edit_of_scores_lets_a_position_see_a_later_one(family):
    skip_unless_causal(family)
    s = subject(family)
    batch = inputs(s)
    with edit(s, "scores", layer=range(s.n_layers), fn=lambda x: x + 5 * torch.randn(x.shape[-1])):
        pattern = captured(s, batch, ["pattern"])["pattern"]
    for layer in range(s.n_layers):
        above = torch.ones(pattern[layer].shape[-2:], dtype=torch.bool).triu(1)
        assert pattern[layer][0][:, above].max() == 0
        assert pattern[layer][0][:, ~above].min() >= 0


@pytest.mark.parametrize("family", TOWERS)
def test_later_tokens_do_not_reach_earlier_positions_under_a_capture(family):
    skip_unless_causal(family)
    s = subject(family)
    batch = inputs(s)
    other = dict(batch, input_ids=batch["input_ids"].clone())
    other["input_ids"][:, -1] = s.tokenizer.convert_tokens_to_ids("blue")
    one, two = (captured(s, x, ["pattern", "resid_post"]) for x in (batch, other))
    real = ~s.spans(batch).padding[:, :-1]
    for layer in range(s.n_layers):
        a, b = one["pattern"][layer], two["pattern"][layer]
        assert torch.equal(a.transpose(1, 2)[:, :-1][real], b.transpose(1, 2)[:, :-1][real])
        a, b = one["resid_post"][layer], two["resid_post"][layer]
        assert torch.equal(a[:, :-1][real], b[:, :-1][real])
        assert not torch.equal(a[:, -1], b[:, -1])


@pytest.mark.parametrize("family", HAS_SCORES)
def test_scores_of_minus_infinity_cut_an_edge(family):
    s = subject(family)
    batch = inputs(s)
    clean = captured(s, batch, ["pattern"])["pattern"][1]
    position = clean.shape[-1] - 2

    def cut(scores):
        scores[:, 1, :, position] = -torch.inf
        return scores

    with edit(s, "scores", layer=1, fn=cut):
        pattern = captured(s, batch, ["pattern"])["pattern"][1]
    assert pattern[0, 1, :, position].max() == 0
    assert torch.equal(pattern[:, 0], clean[:, 0])
    torch.testing.assert_close(pattern[0].sum(-1), torch.ones(pattern.shape[1:3]))


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma2", "gemma3", "phi3"])
def test_sliding_windows_are_respected(family):
    s = subject(family)
    pattern = captured(s, inputs(s), ["pattern"])["pattern"]
    beyond = torch.ones(pattern[0].shape[-2:], dtype=torch.bool).tril(-4)
    assert beyond.any()
    kinds = getattr(s.model.config, "layer_types", None) or ["sliding_attention"] * s.n_layers
    for layer, kind in enumerate(kinds):
        seen = pattern[layer][0][:, beyond].max()
        assert seen == 0 if kind == "sliding_attention" else seen > 0


def gpt_oss():
    torch.manual_seed(0)
    config = hf.GptOssConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        initializer_range=0.2,
    )
    model = hf.GptOssForCausalLM(config).eval()
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks)
    return Subject(model)


def test_sinks_take_their_share_as_in_the_models_own_attention():
    s = gpt_oss()
    batch = {"input_ids": torch.arange(14).view(2, 7)}
    s.model.set_attn_implementation("eager")
    with torch.no_grad():
        own = s.model(**batch, output_attentions=True)
    acts = captured(s, batch, ["pattern", "resid_post"])
    for layer in range(2):
        assert torch.equal(acts["pattern"][layer], own.attentions[layer])
        assert acts["pattern"][layer].sum(-1).max() < 1


def test_dropout_comes_after_the_pattern_is_handed_over():
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        attention_dropout=0.5,
    )
    s = Subject(hf.LlamaForCausalLM(config).train())
    batch = {"input_ids": torch.arange(8).view(1, 8)}
    acts = captured(s, batch, ["pattern", "v", "z"])
    torch.testing.assert_close(acts["pattern"][0].sum(-1), torch.ones(1, 4, 8))
    undropped = torch.einsum("bhqk,bkhd->bqhd", acts["pattern"][0], acts["v"][0])
    assert not torch.allclose(acts["z"][0], undropped)


def test_a_boolean_mask_is_applied_and_not_added():
    """transformers' eager attention adds it, which silently breaks causality."""
    s = subject("llama")
    mask = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]
    ids = torch.arange(1, 8)[None]
    pattern = captured(s, {"input_ids": ids, "attention_mask": mask}, ["pattern"])["pattern"]
    expected = captured(s, {"input_ids": ids}, ["pattern"])["pattern"]
    for layer in range(s.n_layers):
        torch.testing.assert_close(pattern[layer], expected[layer])


def test_causal_attention_without_a_mask_is_refused():
    attention = subject("llama").layout.attention(0)
    q, kv = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    with pytest.raises(RuntimeError, match="LlamaAttention is causal, but was given no mask"):
        attend(attention, q, kv, kv, None)
    attend(attention, q[:, :, :1], kv, kv, None)  # a decoded step sees all that came before


def test_a_position_bias_is_refused_and_not_dropped():
    attention = subject("vit").layout.attention(0)
    x = torch.randn(1, 4, 5, 8)
    with pytest.raises(NotImplementedError, match="ViTAttention adds a position bias"):
        attend(attention, x, x, x, None, position_bias=torch.zeros(1, 4, 5, 5))


def test_attention_and_its_mask_are_registered_under_one_name():
    assert AttentionInterface()[NAME] is attend
    assert AttentionMaskInterface()[NAME] is AttentionMaskInterface()["eager"]


def test_nested_contexts_give_the_implementation_back_when_the_last_is_left():
    s = subject("llama")
    config = s.layout.owner.config
    outer, inner = capture(s, "pattern"), edit(s, "scores", layer=0, fn=lambda x: x)
    outer.__enter__()
    assert config._attn_implementation == NAME
    inner.__enter__()
    outer.__exit__(None, None, None)  # not in the order of a with statement
    assert config._attn_implementation == NAME
    inner.__exit__(None, None, None)
    assert config._attn_implementation == "sdpa"


def test_only_the_tower_in_question_leaves_its_fast_implementation():
    s = subject("llava")
    with capture(s, "pattern"):
        assert s.layout.owner.config._attn_implementation == NAME
        assert s.tower("vision").layout.owner.config._attn_implementation == "sdpa"
    with capture(s.tower("vision"), "pattern") as vision, torch.no_grad():
        assert s.layout.owner.config._attn_implementation == "sdpa"
        s.model(**inputs(s))
    assert vision[0].shape == (2, 4, 17, 17)
