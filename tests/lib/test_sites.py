"""Each site of each family is what its name says, by the model's own outputs."""

import architectures
import pytest
import torch
import transformers as hf
from families import ALL, LLAMA_SIZE, SIZE, TOWERS, VISION, captured, eager, inputs, offered, subject

from lib.hooks import capture
from lib.models import Subject
from lib.probes import logit_lens
from lib.sites import FAMILIES, LLAMA, SITES, module

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma

ACTIVATIONS = [site for site in SITES if site not in ("scores", "pattern")]


def own_outputs(subject, batch, what):
    """The model's own `hidden_states` or `attentions`, of the tower."""
    with torch.no_grad():
        if hasattr(subject.model, "get_image_features") and subject.tower_name == "vision":
            out = subject.layout.owner(batch["pixel_values"], **{f"output_{what}": True})
        elif hasattr(subject.model, "get_text_features"):
            text = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
            out = subject.layout.owner(**text, **{f"output_{what}": True})
        else:
            out = subject.model(**batch, **{f"output_{what}": True})
    return out[what]


@pytest.mark.parametrize("family", TOWERS)
def test_resid_pre_and_resid_post_are_the_models_own_hidden_states(family):
    s = subject(family)
    batch = inputs(s)
    with eager(s):
        hidden = own_outputs(s, batch, "hidden_states")
        acts = captured(s, batch, ["resid_pre", "resid_post"])
    for layer in range(s.n_layers):
        assert torch.equal(acts["resid_pre"][layer], hidden[layer])
    for layer in range(s.n_layers - 1):
        assert torch.equal(acts["resid_post"][layer], hidden[layer + 1])
    last = acts["resid_post"][
        s.n_layers - 1
    ]  # transformers applies the final norm to the last one, if there is one
    inside = set(s.layout.blocks.modules())
    norms = [m for m in s.layout.owner.modules() if "Norm" in type(m).__name__ and m not in inside]
    assert any(torch.equal(norm(last), hidden[-1]) for norm in [torch.nn.Identity(), *norms])


@pytest.mark.parametrize("family", TOWERS)
def test_pattern_is_the_models_own_attention(family):
    s = subject(family)
    batch = inputs(s)
    with eager(s):
        own = own_outputs(s, batch, "attentions")
    acts = captured(s, batch, ["pattern"])["pattern"]
    for layer in range(s.n_layers):
        assert torch.equal(acts[layer], own[layer])
        torch.testing.assert_close(acts[layer].sum(-1), torch.ones(acts[layer].shape[:-1]))
        assert acts[layer].shape[1] == s.n_heads
    assert (
        max(acts[layer].max() for layer in acts) > 0.5
    )  # far from uniform, so that the equality says something


ADDING = [family for family in TOWERS if family != "bert"]  # whose sums are followed by norms


@pytest.mark.parametrize("family", ADDING)
def test_z_through_the_output_projection_is_attn_out(family):
    s = subject(family)
    acts = captured(s, inputs(s), ["z", "attn_out"])
    for layer, block in enumerate(s.layout.blocks):
        out = module(block, s.layout.family.out)
        weight = out.weight.T if type(out).__name__ == "Conv1D" else out.weight
        z = acts["z"][layer]
        assert z.shape[2:] == (s.n_heads, s.d_head)
        per_head = torch.einsum("bshd,mhd->bshm", z, weight.view(s.d_model, s.n_heads, s.d_head))
        expected = per_head.sum(2) + (0 if out.bias is None else out.bias)
        if s.layout.family.attn_out:
            expected = module(block, s.layout.family.attn_out)(expected)
        torch.testing.assert_close(acts["attn_out"][layer], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ADDING)
def test_the_residual_stream_is_the_sum_of_what_is_added_to_it(family):
    s = subject(family)
    sites = offered(s, ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"])
    acts = captured(s, inputs(s), sites)
    for layer in range(s.n_layers):
        pre, attn, mlp, post = (
            acts[site][layer] for site in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        )
        if family == "gpt_neox":  # parallel
            torch.testing.assert_close(pre + attn + mlp, post)
        else:
            torch.testing.assert_close(pre + attn, acts["resid_mid"][layer])
            torch.testing.assert_close(acts["resid_mid"][layer] + mlp, post)


@pytest.mark.parametrize("family", ADDING)
def test_mlp_act_through_the_last_projection_is_mlp_out(family):
    s = subject(family)
    acts = captured(s, inputs(s), ["mlp_act", "mlp_out"])
    for layer, block in enumerate(s.layout.blocks):
        expected = module(block, s.layout.family.down)(acts["mlp_act"][layer])
        if s.layout.family.mlp_out:
            expected = module(block, s.layout.family.mlp_out)(expected)
        torch.testing.assert_close(acts["mlp_out"][layer], expected)


@pytest.mark.parametrize("family", TOWERS)
def test_z_is_the_pattern_times_v(family):
    s = subject(family)
    acts = captured(s, inputs(s), ["pattern", "v", "z"])
    for layer in range(s.n_layers):
        v = acts["v"][layer]
        assert v.shape[2:] == (s.n_kv_heads, s.d_head)
        v = v.repeat_interleave(s.n_heads // s.n_kv_heads, dim=2)
        expected = torch.einsum("bhqk,bkhd->bqhd", acts["pattern"][layer], v)
        torch.testing.assert_close(acts["z"][layer], expected)


@pytest.mark.parametrize("family", ["gpt2", "opt", "bert", "vit", "deit", "clip", "clip-vision", "siglip"])
def test_q_and_k_give_the_scores_where_positions_are_not_in_the_heads(family):
    s = subject(family)
    acts = captured(s, inputs(s), ["q", "k", "scores"])
    for layer in range(s.n_layers):
        expected = torch.einsum("bqhd,bkhd->bhqk", acts["q"][layer], acts["k"][layer]) / s.d_head**0.5
        torch.testing.assert_close(acts["scores"][layer], expected)


@pytest.mark.parametrize("family", [f for f in TOWERS if f != "bloom"])
def test_pattern_is_the_softmax_of_the_masked_scores(family):
    s = subject(family)
    acts = captured(s, inputs(s), ["scores", "pattern"])
    for layer in range(s.n_layers):
        pattern = acts["pattern"][layer]
        expected = acts["scores"][layer].masked_fill(pattern == 0, -torch.inf).softmax(-1)
        visible = (
            pattern.max(-1).values > pattern.min(-1).values
        )  # a padding row sees nothing, and is uniform
        torch.testing.assert_close(pattern[visible], expected[visible])


@pytest.mark.parametrize("family", ["gemma2"])
def test_scores_are_soft_capped(family):
    s = subject(family)
    cap = s.model.config.attn_logit_softcapping
    scores = captured(s, inputs(s), ["scores"])["scores"]
    largest = max(scores[layer].abs().max() for layer in scores)
    assert 0.9 * cap < largest <= cap  # the cap bites


@pytest.mark.parametrize("family", TOWERS)
def test_embed_is_what_the_embedding_layer_gives(family):
    s = subject(family)
    batch = inputs(s)
    embed = captured(s, batch, ["embed"])["embed"][0]
    if s.tower_name == "vision":
        torch.testing.assert_close(embed, s.layout.owner.embeddings(batch["pixel_values"]))
    else:
        spans = s.spans(batch)
        table = s.layout.owner.get_input_embeddings()
        torch.testing.assert_close(embed[spans.text], table(batch["input_ids"][spans.text]))


def test_every_family_of_the_issue_has_a_row_of_its_own():
    for family in ALL:
        assert subject(family).layout.listed, family
    assert subject("llama").layout.family is LLAMA


def test_an_unlisted_architecture_with_a_usual_structure_has_all_sites():
    config = hf.StableLmConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    assert config.model_type not in FAMILIES
    s = Subject(hf.StableLmForCausalLM(config).eval())
    assert not s.layout.listed
    assert s.layout.withheld == {}


def test_sites_that_do_not_add_up_in_an_unlisted_architecture_are_withheld():
    """Granite multiplies what it adds to the residual stream, which no path of modules can tell."""
    config = hf.GraniteConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        residual_multiplier=0.5,
    )
    s = Subject(hf.GraniteForCausalLM(config).eval())
    assert set(s.layout.withheld) == {"attn_out", "resid_mid", "mlp_out"}
    with (
        pytest.raises(
            LookupError,
            match=r"no site 'attn_out' in GraniteModel: resid_post is off resid_pre .* by .*; it has embed",
        ),
        capture(s, "attn_out"),
    ):
        pass
    batch = {"input_ids": torch.tensor([[1, 2, 3]])}
    assert torch.equal(
        captured(s, batch, ["resid_pre"])["resid_pre"][1], s.model(**batch, output_hidden_states=True)[2][1]
    )


def test_an_architecture_that_nothing_fits_is_refused_with_its_modules_names():
    config = hf.MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=40)
    with pytest.raises(
        LookupError, match=r"no text tower in MptForCausalLM: .*MptBlock has norm_1, attn, norm_2, ffn"
    ):
        Subject(hf.MptForCausalLM(config))


def test_a_configuration_that_contradicts_the_modules_is_refused():
    model = hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
        )
    )
    model.config.num_attention_heads = 8
    model.config.head_dim = 8
    with pytest.raises(
        LookupError, match="LlamaModel: by its configuration, attention maps 32 to 8 heads of 8"
    ):
        Subject(model)


def test_a_mixture_of_experts_has_all_sites_but_its_neurons():
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
    )
    s = Subject(hf.GptOssForCausalLM(config).eval())
    assert set(s.layout.withheld) == {"mlp_act"}
    acts = captured(s, {"input_ids": torch.tensor([[1, 2, 3]])}, ["resid_mid", "mlp_out", "resid_post"])
    torch.testing.assert_close(acts["resid_mid"][1] + acts["mlp_out"][1], acts["resid_post"][1])


# What models are given and what they keep


VARIANTS = {
    "opt-350m": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(**SIZE, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False)
    ),
    "bloom": lambda: hf.BloomForCausalLM(
        hf.BloomConfig(**SIZE, apply_residual_connection_post_layernorm=True)
    ),
    "falcon-7b": lambda: hf.FalconForCausalLM(hf.FalconConfig(**SIZE, multi_query=True)),
    "falcon-rw": lambda: hf.FalconForCausalLM(
        hf.FalconConfig(**SIZE, multi_query=False, parallel_attn=False, alibi=True)
    ),
    "falcon-40b": lambda: hf.FalconForCausalLM(
        hf.FalconConfig(**SIZE, new_decoder_architecture=True, num_kv_heads=2)
    ),
    "gpt_bigcode": lambda: hf.GPTBigCodeForCausalLM(
        hf.GPTBigCodeConfig(**SIZE, n_inner=48, multi_query=False)
    ),
    "biogpt": lambda: hf.BioGptForCausalLM(hf.BioGptConfig(**SIZE, intermediate_size=48)),
    "llama-without-values": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA_SIZE)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_variants_of_architectures_offer_is_right_and_the_rest_is_withheld(name):
    """Listed or not: the identities are tried on other inputs than the library's own."""
    model = randomised(VARIANTS[name]())
    if name == "llama-without-values":  # heads that add nothing contradict nothing
        for layer in model.model.layers:
            torch.nn.init.zeros_(layer.self_attn.v_proj.weight)
            torch.nn.init.zeros_(layer.self_attn.q_proj.weight)
    s = Subject(model)
    assert architectures.wrong(s) == ""
    withheld = {
        "opt-350m": {"embed", "resid_mid", "attn_out", "mlp_out"},
        "bloom": {"scores", "resid_mid", "attn_out", "mlp_out"},
        "falcon-7b": {"scores", "pattern", "q", "k", "v", "resid_mid"},
        "falcon-rw": {"scores", "pattern"},
        "falcon-40b": {"scores", "pattern", "q", "k", "v", "resid_mid"},
    }
    assert set(s.layout.withheld) == withheld.get(name, set())


def randomised(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return model.eval()


def test_streams_of_another_shape_are_withheld_with_their_shape_and_have_no_lens():
    s = Subject(architectures.build("gemma3n_text", "Gemma3nForCausalLM"))
    assert "its shape is (4, 2, 5, 32), not (2, 5, 32)" in s.layout.withheld["resid_post"]
    with pytest.raises(LookupError, match="no logit lens of Gemma3nForCausalLM"):
        logit_lens(s, torch.zeros(1, 32))


ENCODER_DECODERS = {
    "bart": "BartForConditionalGeneration",
    "t5": "T5ForConditionalGeneration",
    "whisper": "WhisperForConditionalGeneration",
    "pegasus": "PegasusForConditionalGeneration",
}


@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
def test_encoder_decoders_are_refused_and_what_is_supported_is_said(model_type):
    model = architectures.build(model_type, ENCODER_DECODERS[model_type])
    with pytest.raises(LookupError, match=r"is an encoder-decoder, which is not supported: give a decoder"):
        Subject(model)


def test_an_encoder_decoder_of_two_models_is_refused():
    vision, text = hf.ViTConfig(**VISION), hf.GPT2Config(**SIZE)
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    with pytest.raises(LookupError, match="is an encoder-decoder"):
        Subject(hf.VisionEncoderDecoderModel(config))


def test_a_vision_encoder_is_never_shown_as_the_language_model():
    model = architectures.build("kosmos-2", "Kosmos2ForConditionalGeneration")
    with pytest.raises(
        LookupError, match=r'no text tower in Kosmos2.*; Subject\(model, tower="vision"\) shows'
    ):
        Subject(model)
    assert Subject(model, tower="vision").layout.withheld == {}


def test_of_several_vision_encoders_none_is_shown():
    model = architectures.build("deepseek_vl_hybrid", "DeepseekVLHybridForConditionalGeneration")
    s = Subject(model)
    assert type(s.layout.owner).__name__ == "LlamaModel"
    with pytest.raises(LookupError, match=r"several stacks .* \(SamVisionEncoder, SiglipVisionModel\)"):
        s.tower("vision")


def test_an_audio_encoder_is_no_text_tower():
    encoder = hf.Qwen2AudioEncoderConfig(d_model=32, encoder_layers=2, encoder_attention_heads=4)
    config = hf.Qwen2AudioConfig(audio_config=encoder, text_config=hf.Qwen2Config(**LLAMA_SIZE))
    s = Subject(hf.Qwen2AudioForConditionalGeneration(config).eval())
    assert type(s.layout.owner).__name__ == "Qwen2Model"
    with pytest.raises(LookupError, match="it has no stack of blocks that reads texts or images"):
        Subject(hf.Wav2Vec2Model(hf.Wav2Vec2Config(**VISION)).eval())


def test_a_model_is_measured_once_and_left_as_it_was():
    model = randomised(hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA_SIZE))).train()
    model.model.layers[1].eval()  # a frozen part
    passes = []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    modes = [part.training for part in model.modules()]
    attributes = [set(vars(part)) for part in model.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    for _ in range(3):
        s = Subject(model)
    assert len(passes) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in model.modules()] == modes
    assert [set(vars(part)) for part in model.modules()] == attributes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert sum(len(part._forward_pre_hooks) for part in model.modules()) == 0
    assert model.config._attn_implementation == "sdpa"
    assert s.layout.withheld == {}


def test_a_model_without_values_has_dimensions_and_is_not_measured():
    with torch.device("meta"):
        s = Subject(hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA_SIZE)))
    assert (s.n_layers, s.n_heads, s.n_kv_heads, s.d_head) == (3, 4, 2, 8)


def test_a_model_that_is_not_finite_offers_nothing_that_is_compared():
    model = randomised(hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA_SIZE)))
    model.model.layers[0].self_attn.v_proj.weight.data.fill_(torch.nan)
    assert {"v", "z", "attn_out", "resid_mid", "mlp_out"} <= set(Subject(model).layout.withheld)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rounding_is_no_contradiction(dtype):
    model = randomised(hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA_SIZE))).to(dtype)
    assert Subject(model).layout.withheld == {}
