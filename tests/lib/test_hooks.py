"""Captures and edits do what they say, in every family, and leave nothing behind."""

from contextlib import ExitStack
from copy import deepcopy

import pytest
import torch
from families import (
    ALL,
    LANGUAGE,
    TOWERS,
    VISION_LANGUAGE,
    captured,
    eager,
    inputs,
    last_residual,
    offered,
    picture,
    skip_unless_causal,
    subject,
)
from torch.utils.checkpoint import checkpoint
from transformers import CompileConfig, ViTConfig, ViTForImageClassification

from lib.hooks import capture, edit
from lib.models import Subject
from lib.sites import SITES, module

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma

GENERATING = [*LANGUAGE, *VISION_LANGUAGE]


def n_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("family", TOWERS)
def test_an_edit_that_returns_its_input_changes_nothing(family):
    s = subject(family)
    batch = inputs(s)
    with eager(s):
        expected = last_residual(s, batch)
        for site in offered(s, SITES):
            layers = [0] if site == "embed" else range(s.n_layers)
            with edit(s, site, layer=layers, fn=lambda x: x):
                assert torch.equal(last_residual(s, batch), expected), site


@pytest.mark.parametrize("family", TOWERS)
def test_what_a_capture_opened_inside_an_edit_sees_is_what_the_edit_made(family):
    s = subject(family)
    batch = inputs(s)
    for site in offered(s, SITES):
        made = {}

        def halve(x, made=made):
            made["x"] = x / 2
            return made["x"]

        with torch.no_grad(), edit(s, site, layer=0, fn=halve), capture(s, site, layers=0) as acts:
            s.model(**batch)
        torch.testing.assert_close(acts[0], made["x"], rtol=0, atol=0, msg=site)


@pytest.mark.parametrize("family", TOWERS)
def test_an_edit_acts_on_all_that_comes_after_it(family):
    """Adding to a part of the residual stream shows, unchanged, at the next site along the stream."""
    s = subject(family)
    batch = inputs(s)
    order = offered(s, ["resid_pre", "resid_mid", "resid_post"])
    if family == "bert":
        pytest.skip("bert: each sum is followed by a norm, so that what is added is withheld")
    clean = captured(s, batch, [*order, "attn_out", "mlp_out"])
    shift = torch.randn(s.d_model, generator=torch.Generator().manual_seed(0))
    for site in order[1:]:
        with edit(s, site, layer=1, fn=lambda x: x + shift):
            acts = captured(s, batch, [*order, "mlp_out"])
        torch.testing.assert_close(acts[site][1], clean[site][1] + shift)
        torch.testing.assert_close(acts["resid_pre"][2], acts["resid_post"][1])
        if site == "resid_mid":  # the skip connection carries the edit too, not only the MLP
            torch.testing.assert_close(
                acts["resid_post"][1], clean["resid_mid"][1] + shift + acts["mlp_out"][1]
            )
    for site in ["attn_out", "mlp_out"]:
        with edit(s, site, layer=1, fn=lambda x: x + shift):
            acts = captured(s, batch, order)
        following = "resid_mid" if site == "attn_out" and "resid_mid" in order else "resid_post"
        before = clean["resid_mid" if following == "resid_post" and "resid_mid" in order else "resid_pre"][1]
        if family != "gpt_neox":
            torch.testing.assert_close(acts[following][1], before + clean[site][1] + shift)


@pytest.mark.parametrize("family", TOWERS)
def test_an_edit_at_one_position_changes_no_earlier_one(family):
    skip_unless_causal(family)
    s = subject(family)
    batch = inputs(s)
    expected = last_residual(s, batch)
    position = expected.shape[1] - 3
    real = ~s.spans(batch).padding  # a padding position sees nothing, and so, by the softmax, everything
    for site in offered(s, SITES):
        if site in ("embed", "scores", "pattern"):
            continue

        def add(x):
            x[:, position] += torch.linspace(-1, 1, x.shape[-1])  # the argument is a copy
            return x

        with edit(s, site, layer=1, fn=add):
            changed = last_residual(s, batch)
        difference = (changed - expected).abs().amax(-1)
        assert difference[:, :position][real[:, :position]].max() == 0, site
        assert difference[0, position:].min() > 1e-3, site


@pytest.mark.parametrize("family", TOWERS)
def test_zeroing_a_heads_z_is_zeroing_its_slice_of_the_output_projection(family):
    s = subject(family)
    batch = inputs(s)
    head, layer = 2, 1

    def ablate(z):
        z[:, :, head] = 0
        return z

    with edit(s, "z", layer=layer, fn=ablate):
        edited = last_residual(s, batch)
    without = Subject(deepcopy(s.model), s.processor, tower=s.tower_name)
    out = module(without.layout.blocks[layer], s.layout.family.out)
    columns = slice(head * s.d_head, (head + 1) * s.d_head)
    with torch.no_grad():
        if type(out).__name__ == "Conv1D":
            out.weight[columns] = 0
        else:
            out.weight[:, columns] = 0
    torch.testing.assert_close(edited, last_residual(without, batch))
    assert not torch.allclose(edited, last_residual(s, batch), atol=1e-3)


@pytest.mark.parametrize("family", TOWERS)
def test_edits_of_q_k_and_v_touch_only_their_own_part(family):
    s = subject(family)
    batch = inputs(s)
    clean = captured(s, batch, "qkv")
    for site in "qkv":
        with edit(s, site, layer=0, fn=torch.neg):
            acts = captured(s, batch, "qkv")
        for other in "qkv":
            expected = -clean[other][0] if other == site else clean[other][0]
            assert torch.equal(acts[other][0], expected), (site, other)


def generated(s, batch):
    return s.model.generate(**batch, max_new_tokens=5, min_new_tokens=5, do_sample=False)


@pytest.mark.parametrize("family", GENERATING)
def test_greedy_tokens_are_the_same_under_identity_edits(family):
    s = subject(family)
    batch = inputs(s)
    expected = generated(s, batch)
    with ExitStack() as stack:
        for site in offered(s, SITES):
            stack.enter_context(edit(s, site, layer=0, fn=lambda x: x))
        assert torch.equal(generated(s, batch), expected)


@pytest.mark.parametrize("family", GENERATING)
def test_captures_of_decoded_steps_equal_those_of_one_forward_pass(family):
    s = subject(family)
    batch = inputs(s)
    sites = offered(s, ["resid_pre", "resid_mid", "mlp_act", "q", "z", "pattern"])
    with ExitStack() as stack:
        steps = {site: stack.enter_context(capture(s, site)) for site in sites}
        tokens = generated(s, batch)
    new = tokens.shape[1] - batch["input_ids"].shape[1] - 1  # the last token is never fed back
    whole = dict(batch, input_ids=tokens[:, :-1])
    ones = torch.ones(2, new, dtype=torch.long)
    whole["attention_mask"] = torch.cat([batch["attention_mask"], ones], 1)
    if "position_ids" in batch:
        positions = batch["position_ids"]
        whole["position_ids"] = torch.cat([positions, positions[..., -1:] + ones.cumsum(1)], -1)
    for name, fill in [("token_type_ids", 1), ("mm_token_type_ids", 0)]:
        if name in batch:
            whole[name] = torch.cat([batch[name], fill * ones], 1)
    full = captured(s, whole, sites)
    for site in sites:
        axis = 2 if site == "pattern" else 1
        for layer in range(s.n_layers):
            passes = steps[site].passes[layer]
            assert len(passes) == new + 1
            for i, step in enumerate(passes[1:]):
                expected = full[site][layer].select(axis, batch["input_ids"].shape[1] + i).unsqueeze(axis)
                if site == "pattern":  # a sliding window's cache holds no more keys than the window
                    assert (expected[..., step.shape[-1] :] == 0).all() or step.shape[-1] < expected.shape[-1]
                    end = batch["input_ids"].shape[1] + i + 1
                    expected = expected[..., end - step.shape[-1] : end]
                torch.testing.assert_close(step, expected, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("family", [f for f in TOWERS if "vision" not in f and f not in ("vit", "deit")])
def test_padding_does_not_change_what_is_captured_at_real_positions(family):
    s = subject(family)
    sites = offered(s, ["resid_mid", "resid_post", "z", "q", "pattern"])
    has_images = s.processor is not s.tokenizer
    both = s.encode(["the cat sees a red star .", "a dog"], [picture(1)] * 2 if has_images else None)
    alone = s.encode(["a dog"], [picture(1)] if has_images else None)
    padded, plain = captured(s, both, sites), captured(s, alone, sites)
    real = ~s.spans(both).padding[1]
    assert family == "siglip" or not real.all()
    for site in sites:
        for layer in range(s.n_layers):
            if site == "pattern":
                got, expected = padded[site][layer][1][:, real][:, :, real], plain[site][layer][0]
            else:
                got, expected = padded[site][layer][1][real], plain[site][layer][0]
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", TOWERS)
def test_bfloat16_runs_and_is_captured_as_such(family):
    s = subject(family, dtype="bfloat16")
    batch = inputs(s)
    with eager(s):
        expected = last_residual(s, batch)
        with ExitStack() as stack:
            for site in offered(s, SITES):
                stack.enter_context(edit(s, site, layer=0, fn=lambda x: x))
            assert torch.equal(last_residual(s, batch), expected)
    acts = captured(s, batch, offered(s, SITES))
    assert {acts[site][0].dtype for site in acts} == {torch.bfloat16}
    torch.testing.assert_close(
        acts["pattern"][0].sum(-1).float(), torch.ones(acts["pattern"][0].shape[:-1]), atol=0.03, rtol=0
    )


@pytest.mark.parametrize("family", TOWERS)
def test_gradients_flow_through_an_edit(family):
    """Along the direction in which an edit moves the result, the derivative is the one by differences."""
    s = subject(family, dtype="float64")
    batch = inputs(s, ["the cat sees a red star ."] * 2)  # eager attention makes NaN of padding in float64

    def outcome(site, t):
        def stretch(x):  # unevenly, since norms undo what is even
            return x * (1 + t * torch.arange(x.shape[-1]) / x.shape[-1])

        with edit(s, site, layer=1, fn=stretch), capture(s, "resid_post", layers=2, grad=True) as acts:
            s.model(**batch)
        return acts[2]

    step = 0.01  # not smaller: some of the arithmetic of transformers is in float32 in any case
    for site in offered(s, [site for site in SITES if site != "embed"]):
        with torch.no_grad():
            moved = outcome(site, step) - outcome(site, -step)
        t = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        (by_autograd,) = torch.autograd.grad((outcome(site, t) * moved / moved.norm()).sum(), t)
        assert by_autograd > 0.01, site
        torch.testing.assert_close(
            by_autograd.squeeze(), moved.norm() / (2 * step), rtol=0.01, atol=0, msg=site
        )


@pytest.mark.parametrize("family", TOWERS)
def test_nothing_is_left_behind(family):
    s = subject(family)
    batch = inputs(s)
    expected = last_residual(s, batch)  # in its first pass transformers may leave hooks of its own
    before, implementation = n_hooks(s.model), s.layout.owner.config._attn_implementation
    assert implementation == ("eager" if family in ("bloom", "gemma2") else "sdpa")

    def fail(x):
        raise ArithmeticError

    for site in offered(s, SITES):
        with pytest.raises(ArithmeticError), edit(s, site, layer=0, fn=fail), capture(s, site):
            s.model(**batch)
        with capture(s, site), capture(s, site, layers=0), edit(s, site, layer=0, fn=lambda x: 0 * x):
            pass
    assert n_hooks(s.model) == before
    assert s.layout.owner.config._attn_implementation == implementation
    assert torch.equal(last_residual(s, batch), expected)


def vit(**options):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
    )
    return Subject(ViTForImageClassification(config).eval())


IMAGES = {"pixel_values": torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))}


def test_positions_index_the_sequence_and_for_patterns_the_queries():
    s = vit()
    whole = captured(s, IMAGES, ["resid_post", "pattern"])
    for positions in [-1, slice(1, 3), [0, 2], torch.tensor([True, False, True, False, False])]:
        at = {"positions": positions}
        with (
            torch.no_grad(),
            capture(s, "resid_post", **at) as residual,
            capture(s, "pattern", **at) as patterns,
        ):
            s.model(**IMAGES)
        for layer in range(2):
            assert torch.equal(residual[layer], whole["resid_post"][layer][:, positions])
            torch.testing.assert_close(patterns[layer], whole["pattern"][layer][:, :, positions])


def test_a_captured_position_does_not_keep_the_whole_sequence_alive():
    s = vit()
    with capture(s, "resid_post", positions=-1) as acts:
        s.model(**IMAGES)
    assert acts[0].untyped_storage().nbytes() == acts[0].nbytes


@pytest.mark.parametrize("site", ["mlp_out", "pattern"])
def test_reduce_folds_over_forward_passes(site):
    s = vit()

    def add(total, x):
        return x.sum(0) if total is None else total + x.sum(0)

    with torch.no_grad(), capture(s, site, reduce=add) as acts:
        with pytest.raises(LookupError, match="no forward pass has reached layer 0"):
            acts[0]
        for image in IMAGES["pixel_values"]:
            s.model(pixel_values=image[None])
    whole = captured(s, IMAGES, [site])[site]
    for layer in range(2):
        torch.testing.assert_close(acts[layer], whole[layer].sum(0))
    assert dict(acts).keys() == {0, 1}


def test_captures_are_detached_unless_gradients_are_asked_for():
    s = vit()
    with capture(s, "z") as detached, capture(s, "z", grad=True) as attached:
        logits = s.model(**IMAGES).logits
    assert not detached[0].requires_grad
    (gradient,) = torch.autograd.grad(logits.sum(), attached[0])
    assert gradient.abs().max() > 0


def test_a_capture_is_not_changed_by_a_later_edit():
    s = vit()
    clean = captured(s, IMAGES, ["resid_mid"])["resid_mid"][0]
    with (
        torch.no_grad(),
        capture(s, "resid_mid", layers=0) as acts,
        edit(s, "resid_mid", layer=0, fn=torch.neg),
    ):
        s.model(**IMAGES)
    assert torch.equal(acts[0], clean)


def test_edits_apply_in_the_order_of_opening():
    s = vit()
    with (
        torch.no_grad(),
        edit(s, "resid_pre", layer=1, fn=lambda x: x * 0),
        edit(s, "resid_pre", layer=1, fn=lambda x: x + 1),
        capture(s, "resid_pre", layers=1) as acts,
    ):
        s.model(**IMAGES)
    assert (acts[1] == 1).all()


def test_an_edit_can_train():
    """As when a chapter fine-tunes with attention replaced by a mixture with what enters the block."""
    s = vit()
    entering = {}

    def remember(x):
        entering["x"] = x
        return x

    share = torch.zeros(1, requires_grad=True)
    s.model.train()

    def mix(a):
        return share * a + (1 - share) * entering["x"]

    with edit(s, "resid_pre", layer=1, fn=remember), edit(s, "attn_out", layer=1, fn=mix):
        loss = s.model(**IMAGES).logits.square().sum()
    loss.backward()
    assert share.grad.abs() > 0
    v_proj = s.layout.blocks[1].attention.v_proj.weight
    assert v_proj.grad.abs().max() == 0  # its attention has no share yet
    assert s.layout.blocks[0].attention.v_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("family", "site", "layer", "error", "message"),
    [
        ("vit", "residual", 0, LookupError, "no site 'residual'; the sites are embed, resid_pre, "),
        ("vit", "z", [0, 3], IndexError, "no layer 3 of site 'z': ViTModel has layers 0 to 2"),
        ("vit", "z", -1, IndexError, "no layer -1 of site 'z': ViTModel has layers 0 to 2"),
        ("vit", "embed", 1, IndexError, "no layer 1 of site 'embed': ViTModel has layer 0 only"),
        (
            "gpt_neox",
            "resid_mid",
            0,
            LookupError,
            "no site 'resid_mid' in GPTNeoXModel: attention and MLP run in",
        ),
        (
            "bloom",
            "scores",
            0,
            LookupError,
            "no site 'scores' in BloomModel: it computes attention by itself, ",
        ),
    ],
)
def test_errors_name_what_was_given_and_what_exists(family, site, layer, error, message):
    s = subject(family)
    for context in (capture(s, site, layers=layer), edit(s, site, layer=layer, fn=torch.neg)):
        with pytest.raises(error, match=message), context:
            pass


@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (
            lambda x: None,
            TypeError,
            r"the edit of '{}' at layer 1 returned NoneType; it must return the activation",
        ),
        (
            lambda x: x[:, :1],
            ValueError,
            r"the edit of '{}' at layer 1 returned shape \(.*\); the activation has \(",
        ),
        (
            lambda x: x.double(),
            ValueError,
            r"the edit of '{}' at layer 1 returned dtype torch.float64; .* torch.float32",
        ),
    ],
)
@pytest.mark.parametrize("site", ["resid_mid", "z", "scores"])
def test_an_edit_that_returns_something_else_is_an_error(site, fn, error, message):
    s = vit()
    with pytest.raises(error, match=message.format(site)), edit(s, site, layer=1, fn=fn):
        s.model(**IMAGES)


def test_asking_for_what_was_not_captured_is_an_error():
    s = vit()
    with capture(s, "z", layers=1) as acts:
        with pytest.raises(LookupError, match="no forward pass has reached layer 1 of 'z'"):
            acts[1]
        s.model(**IMAGES)
        with pytest.raises(LookupError, match=r"layer 0 of 'z' was not captured; captured: \[1\]"):
            acts[0]
        s.model(**IMAGES)
    with pytest.raises(LookupError, match=r"layer 1 of 'z' was captured in 2 forward passes.*`.passes\[1\]`"):
        acts[1]
    assert [x.shape for x in acts.passes[1]] == [(3, 5, 2, 8)] * 2


# What would be silent: code that calls no hooks, places that are not run, blocks that are run again


COMPILED = {
    "model.compile": lambda model: model.compile(backend="eager"),
    "model.forward": lambda model: setattr(model, "forward", torch.compile(model.forward, backend="eager")),
    "a block": lambda model: model.model.layers[1].compile(backend="eager"),
    "torch.compile(model)": lambda model: torch.compile(model, backend="eager"),
    "a function": lambda model: None,
}


@pytest.mark.parametrize("how", COMPILED)
def test_a_compiled_model_is_edited_and_captured_as_the_plain_one(how):
    s = subject("llama")
    batch = inputs(s)
    model = deepcopy(s.model)
    wrapper = COMPILED[how](model)
    compiled = Subject(model if wrapper is None else wrapper, s.processor)
    run = torch.compile(lambda **batch: compiled.model(**batch), backend="eager")
    run = run if how == "a function" else compiled.model
    with torch.no_grad():
        plain = run(**batch).logits  # is compiled here, before there is any hook
        for site in ("resid_post", "z", "pattern"):
            with edit(s, site, layer=1, fn=torch.zeros_like):
                expected = captured(s, batch, ["resid_post", "attn_out"])
            with (
                edit(compiled, site, layer=1, fn=torch.zeros_like),
                capture(compiled, "resid_post") as after,
                capture(compiled, "attn_out") as between,
            ):
                run(**batch)
            for found, name in ((after, "resid_post"), (between, "attn_out")):
                assert [len(passes) for passes in found.passes.values()] == [1] * 3
                torch.testing.assert_close(dict(found), dict(expected[name]))
        assert torch.equal(run(**batch).logits, plain)
    torch._dynamo.reset()


def test_compiled_code_runs_compiled_again_when_the_last_context_is_left():
    s, n_compiled = subject("llama"), []

    def count(graph, examples):
        n_compiled.append(graph)
        return graph.forward

    double = torch.compile(lambda x: 2 * x, backend=count)
    outer, inner = capture(s, "z"), edit(s, "z", layer=0, fn=torch.neg)
    outer.__enter__()
    inner.__enter__()
    for context in (outer, inner):  # not in the order of a with statement
        assert double(torch.ones(2)).tolist() == [2, 2]
        assert not n_compiled
        context.__exit__(None, None, None)
    double(torch.ones(2))
    assert len(n_compiled) == 1
    torch._dynamo.reset()


def test_generation_with_a_cache_that_compiles_is_edited_at_every_step():
    s = subject("llama")
    batch = s.encode("the cat sees a red star .")
    config = CompileConfig(backend="eager", fullgraph=False, mode=None)
    config._compile_all_devices = True  # as on a GPU
    static = {"cache_implementation": "static", "compile_config": config}
    model = deepcopy(s.model)
    model.generate(**batch, max_new_tokens=5, do_sample=False, **static)
    with edit(Subject(model), "resid_post", layer=1, fn=torch.neg):
        found = model.generate(**batch, max_new_tokens=5, min_new_tokens=5, do_sample=False, **static)
    with edit(s, "resid_post", layer=1, fn=torch.neg):
        assert torch.equal(found, generated(s, batch))
    torch._dynamo.reset()


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision"])
def test_what_llava_takes_from_its_tower_is_what_an_edit_made_of_it_also_after_a_first_pass(family):
    s = Subject(deepcopy(subject(family).model))
    vision, batch = s.tower("vision"), inputs(subject(family))
    # The last blocks: which of them is taken is the configuration's to say.
    how = {"layer": range(vision.n_layers), "fn": torch.zeros_like}
    with edit(vision, "resid_post", **how):
        fresh = s.model(**batch).logits
    plain = s.model(**batch).logits
    with edit(vision, "resid_post", **how):
        later = s.model(**batch).logits
    assert torch.equal(fresh, later)
    assert not torch.allclose(plain, later)


@pytest.mark.parametrize("opened", [edit, capture])
def test_a_place_that_is_not_run_is_an_error_when_the_context_is_left(opened):
    s = subject("llava")
    vision, text_alone = s.tower("vision"), s.encode(["a dog"])
    how = {"layer": [0, 2], "fn": torch.neg} if opened is edit else {"layers": [0, 2]}
    with (
        pytest.raises(RuntimeError, match=r"LlavaFor.* did not compute 'z' at layers \[0, 2\] of CLIPVision"),
        opened(vision, "z", **how),
    ):
        s.model(**text_alone)

    def fail():
        s.model(**text_alone)
        raise ArithmeticError

    with pytest.raises(ArithmeticError), opened(vision, "z", **how):  # which is not hidden
        fail()
    with opened(vision, "z", **how):
        pass  # nothing has run at all
    with opened(vision, "z", **how):
        s.model(**inputs(s))
        s.model(**text_alone)  # one pass with images is enough


def test_layers_that_a_pass_skips_are_an_error():
    s = Subject(deepcopy(subject("llama").model))
    s.model.model.config.num_hidden_layers = 2
    with (
        pytest.raises(RuntimeError, match=r"did not compute 'z' at layers \[2\] of LlamaModel"),
        edit(s, "z", layer=[1, 2], fn=torch.neg),
    ):
        s.model(input_ids=torch.tensor([[1, 5, 6]]))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "llava", "vit"])
def test_gradient_checkpointing_is_refused_since_it_runs_blocks_again_without_the_edit(family, use_reentrant):
    s = subject(family)
    batch = inputs(s)
    s = Subject(deepcopy(s.model).train())
    s.model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    s.model.enable_input_require_grads()
    contexts = edit(s, "resid_mid", layer=1, fn=lambda x: x), capture(s, "pattern")
    for context in contexts:
        with pytest.raises(RuntimeError, match=r"Switch it off: model.gradient_check"), context:
            s.model(**batch)
    s.model.gradient_checkpointing_disable()
    with capture(s, "resid_mid") as acts:
        s.model(**batch).logits.sum().backward()
    assert len(acts.passes[0]) == 1


def test_checkpointing_by_hand_is_refused_too():
    s = vit()
    images = IMAGES["pixel_values"].clone().requires_grad_()
    with pytest.raises(RuntimeError, match="gradient checkpointing"), capture(s, "z"):
        checkpoint(lambda x: s.model(x).logits, images, use_reentrant=False)


def test_all_families_are_covered():
    assert set(ALL) <= set(TOWERS)
