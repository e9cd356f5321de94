"""Edge patching: equal to patching by hand, exact under speculation, and refusing what it cannot patch."""

import math
from contextlib import ExitStack

import architectures
import families
import pytest
import torch
import transformers as hf
from single_edges import effects

from lib.edges import Graph, Node, Patcher, acdc, full_precision
from lib.hooks import capture, edit
from lib.models import Subject

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma

POST_NORM = ["gemma2", "gemma3", "olmo2"]
DECODERS = [family for family in {**families.LANGUAGE, **families.VISION_LANGUAGE} if family not in POST_NORM]
CLEAN, CORRUPTED = ["the cat sees a red star .", "a dog"], ["what dog of a blue user .", "is ?"]
LAST = torch.tensor([7, 7])  # padded on the left


def padded(s, texts):
    """With pictures where the model sees them."""
    return families.inputs(s, texts)


def patcher(family="gpt2", dtype="float64", positions=None, **options):
    s = families.subject(family, dtype=dtype)
    clean, corrupted = padded(s, CLEAN), padded(s, CORRUPTED)
    last = torch.full((2,), clean["input_ids"].shape[1] - 1)
    return Patcher(s, clean, corrupted, positions=last if positions is None else positions, **options)


def tiny(n_layers, n_heads, **options):
    torch.manual_seed(0)
    config = hf.GPT2Config(
        vocab_size=20, n_embd=4 * n_heads, n_layer=n_layers, n_head=n_heads, n_positions=16, bos_token_id=0,
        eos_token_id=0, initializer_range=0.4, **options,
    )  # fmt: skip
    return Subject(hf.GPT2LMHeadModel(config).eval())


def difference(logits):
    """Logit of one token less that of another; over prompts and answers."""
    return (logits[..., 5] - logits[..., 6]).flatten(1).mean(-1)


def divergence(p):
    reference = p.clean_logits.log_softmax(-1)
    return lambda x: (reference.exp() * (reference - x.log_softmax(-1))).sum(-1).flatten(1).mean(-1)


def random_edges(graph, seed=0):
    draw = torch.rand(4, *graph.exists.shape, generator=torch.Generator().manual_seed(seed))
    return (draw < torch.tensor([0.2, 0.5, 0.8, 0.95])[:, None, None]) & graph.exists


def by_hand(s, clean, corrupted, edges, zero=False):
    """Logits of one set of edges, in plain loops over nodes and the library's hooks.

    A node at a time, in topological order: its input is summed up, its own projection put in its place by a
    hook, and the whole model run again to see what the node then adds.
    """
    graph = Graph.of(s)
    sites = ("resid_pre", "z", "mlp_out", "attn_out")
    outputs = {}
    for name, inputs in (("clean", clean), ("corrupted", corrupted)):
        with ExitStack() as stack:
            acts = {site: stack.enter_context(capture(s, site)) for site in sites}
            s.model(**inputs)
        outputs[name] = {site: dict(acts[site]) for site in sites}
    blocks = s.model.transformer.h

    def heads(layer, z):
        weight = blocks[layer].attn.c_proj.weight.view(s.n_heads, s.d_head, s.d_model)
        return [z[:, :, h] @ weight[h] for h in range(s.n_heads)]

    bias = [block.attn.c_proj.bias for block in blocks]
    old = [outputs["corrupted"]["resid_pre"][0]]
    for layer in range(s.n_layers):
        old += [*heads(layer, outputs["corrupted"]["z"][layer]), outputs["corrupted"]["mlp_out"][layer]]
    old = [torch.zeros_like(x) for x in old] if zero else old
    new = [outputs["clean"]["resid_pre"][0]]

    def reads(receiver):
        r = graph.receivers.index(receiver)
        n_bias = receiver.layer + (receiver.kind == "mlp")
        x = sum(bias[:n_bias], torch.zeros_like(new[0]))
        for i in graph.exists[r].nonzero()[:, 0].tolist():
            x = x + (new[i] if edges[r, i] else old[i])
        return x

    for layer, block in enumerate(blocks):
        weight = block.attn.c_attn.weight.view(s.d_model, 3, s.n_heads, s.d_head)
        shift = block.attn.c_attn.bias.view(3, s.n_heads, s.d_head)
        with ExitStack() as stack:
            for i, kind in enumerate("qkv"):
                own = [
                    block.ln_1(reads(Node(kind, layer, h))) @ weight[:, i, h] + shift[i, h]
                    for h in range(s.n_heads)
                ]
                stack.enter_context(edit(s, kind, layer=layer, fn=lambda _, own=own: torch.stack(own, 2)))
            z = stack.enter_context(capture(s, "z", layers=layer))
            s.model(**clean)
        new += heads(layer, z[layer])
        new.append(block.mlp(block.ln_2(reads(Node("mlp", layer)))))
    return s.model.lm_head(s.model.transformer.ln_f(reads(Node("logits", s.n_layers))))


@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_all_edges_give_the_librarys_logits_and_none_those_of_the_corrupted_prompts(family):
    p = patcher(family, "float32")
    every = p.graph.exists
    found = p.logits(torch.stack([every, torch.zeros_like(every)]))
    torch.testing.assert_close(found[0], p.clean_logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], p.corrupted_logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "phi3", "gpt_neox", "opt", "qwen2_vl"])
@torch.no_grad()
def test_all_edges_give_the_librarys_logits_to_the_last_digits_in_float64(family):
    p = patcher(family)
    torch.testing.assert_close(p.logits(p.graph.exists[None])[0], p.clean_logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ablation", ["corrupt", "zero"])
@torch.no_grad()
def test_batched_sets_equal_each_set_patched_by_hand(dtype, ablation):
    s = families.subject("gpt2", dtype=dtype)
    positions = torch.tensor([[7, 5], [6, 7]])
    p = patcher("gpt2", dtype, positions, ablation=ablation)
    edges = random_edges(p.graph)
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    for found, own in zip(p.logits(edges), edges, strict=True):
        expected = by_hand(s, padded(s, CLEAN), padded(s, CORRUPTED), own, zero=ablation == "zero")
        expected = expected[torch.arange(2)[:, None], positions]
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_effects_of_edges_cut_together_equal_those_of_one_at_a_time(family, dtype, tolerance):
    p = patcher(family, dtype)
    metric = divergence(p)
    found = effects(p, metric)
    assert torch.equal(found.isnan(), ~p.graph.exists)
    draw = torch.randperm(p.graph.n_edges, generator=torch.Generator().manual_seed(0))[:12]
    for r, s in p.graph.exists.nonzero()[draw].tolist():
        cut = p.graph.exists.clone()
        cut[r, s] = False
        expected = metric(p.logits(cut[None]))[0] - metric(p.logits(p.graph.exists[None]))[0]
        assert found[r, s].item() == pytest.approx(expected.item(), abs=tolerance)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_a_sets_logits_do_not_depend_on_its_company(family):
    p = patcher(family)
    edges = random_edges(p.graph)
    together = p.logits(edges)
    for i, own in enumerate(edges):
        torch.testing.assert_close(p.logits(own[None])[0], together[i], rtol=1e-6, atol=1e-7)


def test_padding_changes_nothing():
    s = families.subject("gpt2", dtype="float64")
    texts, others = ["a dog"], ["is ?"]
    alone = Patcher(s, padded(s, texts), padded(s, others), positions=torch.tensor([2]))
    beside = patcher("gpt2")
    edges = random_edges(alone.graph)
    with torch.no_grad():
        torch.testing.assert_close(
            alone.logits(edges)[:, 0], beside.logits(edges)[:, 1], rtol=1e-10, atol=1e-10
        )


def sequential(p, metric, tau, order):
    """ACDC as its paper has it: one edge and one whole run at a time."""
    edges, tested = p.graph.exists.clone(), []
    senders = {(node.kind == "mlp", node.layer, node.head): i for i, node in enumerate(p.graph.senders)}
    current = metric(p.logits(edges[None]))[0]
    for r, s in order:
        node = p.graph.receivers[r]
        if node.kind != "logits" and not edges[:, senders[node.kind == "mlp", node.layer, node.head]].any():
            edges[r, s] = False
            continue
        tested.append((r, s))
        edges[r, s] = False
        value = metric(p.logits(edges[None]))[0]
        if value - current < tau:
            current = value
        else:
            edges[r, s] = True
    return edges, tested


@pytest.mark.parametrize(("tau", "seed"), [(0.003, None), (0.02, 1)])
@torch.no_grad()
def test_acdc_keeps_and_tests_what_the_sequential_algorithm_does(tau, seed):
    p = patcher("gpt2")
    metric = divergence(p)
    order = p.graph.order(None if seed is None else torch.Generator().manual_seed(seed))
    edges, tested = sequential(p, metric, tau, order)
    assert 0 < edges.sum() < p.graph.n_edges
    for speculate in (True, False):
        circuit = acdc(p, metric, tau, order=order, speculate=speculate)
        assert torch.equal(circuit.edges, edges)
        assert sorted(tested) == sorted(map(tuple, (~circuit.effects.isnan()).nonzero().tolist()))
        assert circuit.metric == pytest.approx(metric(p.logits(edges[None])).item(), abs=1e-12)
    assert circuit.n_evaluated == 1 + len(tested)


@torch.no_grad()
def test_speculation_gives_the_same_effects_with_grouped_query_heads():
    p = patcher("llama")
    metric = divergence(p)
    one, other = (acdc(p, metric, 0.01, speculate=speculate) for speculate in (True, False))
    assert torch.equal(one.edges, other.edges)
    torch.testing.assert_close(one.effects, other.effects, rtol=1e-5, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize(("n_layers", "n_heads"), [(1, 2), (2, 4), (3, 3), (12, 12)])
def test_the_number_of_edges_is_the_closed_form(n_layers, n_heads):
    L, H = n_layers, n_heads
    expected = sum(3 * H * (1 + m * (H + 1)) + 1 + m * (H + 1) + H for m in range(L)) + 1 + L * (H + 1)
    graph = Graph.of(tiny(L, H))
    assert graph.n_edges == expected
    if (L, H) == (12, 12):  # GPT-2 small has 32,923 with the 3 H L edges from q, k, v inputs to q, k, v
        assert graph.n_edges + 3 * L * H == 32_923
    assert sorted(graph.order()) == sorted(map(tuple, graph.exists.nonzero().tolist()))


def test_nodes_are_named_and_ordered_as_in_the_field():
    graph = Graph.of(tiny(2, 2))
    assert " ".join(map(str, graph.senders)) == "embed a0.h0 a0.h1 m0 a1.h0 a1.h1 m1"
    assert " ".join(map(str, graph.receivers[:7])) == "a0.h0.q a0.h1.q a0.h0.k a0.h1.k a0.h0.v a0.h1.v m0"
    first = [(str(graph.receivers[r]), str(graph.senders[s])) for r, s in graph.order()]
    assert first[:2] == [("logits", "m1"), ("logits", "a1.h1")]
    receivers = list(dict.fromkeys(r for r, _ in first))
    assert receivers[1:5] == ["m1", "a1.h1.v", "a1.h0.v", "a1.h1.k"]


def test_grouped_query_heads_have_one_k_and_one_v_input_a_group():
    graph = Graph.of(families.subject("llama"))
    kinds = [node.kind for node in graph.receivers if node.layer == 1]
    assert [kinds.count(kind) for kind in ("q", "k", "v", "mlp")] == [4, 2, 2, 1]


@torch.no_grad()
def test_heads_feed_the_mlp_of_their_layer_unless_the_two_run_in_parallel():
    for family, expected in (("gpt_neox", 1 + 5), ("opt", 1 + 5 + 4)):
        graph = Graph.of(families.subject(family))
        assert graph.exists[graph.receivers.index(Node("mlp", 1))].sum() == expected


def test_attribution_is_the_derivative_of_the_metric_by_each_edges_weight():
    p = patcher("gpt2")
    weights = p.graph.exists.double()[None].requires_grad_()
    (gradient,) = torch.autograd.grad(difference(p.logits(weights)).sum(), weights)
    expected = -gradient[0]
    found = p.attribution(difference)
    assert torch.equal(found.isnan(), ~p.graph.exists)
    torch.testing.assert_close(found[p.graph.exists], expected[p.graph.exists], rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_attribution_is_exact_for_edges_into_the_logits_if_the_metric_is_linear():
    s = tiny(2, 2)
    s.model.transformer.ln_f = torch.nn.Identity()
    s.model.double()
    draw = torch.Generator().manual_seed(0)
    clean, corrupted = ({"input_ids": torch.randint(20, (3, 6), generator=draw)} for _ in range(2))
    p = Patcher(s, clean, corrupted, positions=torch.tensor([5, 4, 5]))
    torch.testing.assert_close(p.attribution(difference)[-1], effects(p, difference)[-1])


def test_a_divergence_has_no_gradient_in_the_clean_run_but_on_the_way_to_it():
    p = patcher("gpt2")
    assert p.attribution(divergence(p)).nan_to_num().abs().max() < 1e-12
    assert p.attribution(divergence(p), steps=4).nan_to_num().abs().max() > 1e-3


def test_gradients_reach_weights_of_edges_and_are_right():
    s = tiny(1, 2)
    s.model.double()
    draw = torch.Generator().manual_seed(0)
    clean, corrupted = ({"input_ids": torch.randint(20, (2, 5), generator=draw)} for _ in range(2))
    p = Patcher(s, clean, corrupted, positions=torch.tensor([4, 4]))
    weights = torch.rand(1, *p.graph.exists.shape, dtype=torch.float64, generator=draw) * p.graph.exists
    weights[0, -1, 1] = 0  # an absent edge has a gradient, too
    assert torch.autograd.gradcheck(lambda w: difference(p.logits(w)), weights.requires_grad_())


def rounded(x, weight, bias, *, kind, layer, heads, precise):
    """Coarse inputs but for the precise heads."""
    coarse = (4 * x).round() / 4
    if precise:
        coarse[precise] = x[precise]
    return full_precision(coarse, weight, bias, kind=kind, layer=layer, heads=heads, precise=precise)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_other_arithmetic_is_used_everywhere_but_in_precise_heads(family):
    seen = []

    def watched(x, weight, bias, *, kind, layer, heads, precise):
        seen.append((kind, layer, tuple(heads or ()), tuple(precise), weight.data_ptr(), len(x)))
        return full_precision(x, weight, bias, kind=kind, layer=layer, heads=heads, precise=precise)

    p = patcher(family, linear=watched)
    every = p.graph.exists[None]
    torch.testing.assert_close(p.logits(every, precise=frozenset({(1, 3)}))[0], p.clean_logits)
    assert {kind for kind, *_ in seen} == {"q", "k", "v", "o", "mlp", "unembed"}
    n_kv = p.graph.receivers[-1].layer and sum(
        node.kind == "k" and node.layer == 1 for node in p.graph.receivers
    )
    own = {"q": 3, "o": 3, "k": 3 * n_kv // 4, "v": 3 * n_kv // 4}
    for kind, layer, heads, precise, _, n in seen:
        assert [heads[i] for i in precise] == ([own[kind]] if layer == 1 and kind in own else [])
        assert not heads or n == len(heads)
    count = len({pointer for *_, pointer, _ in seen})
    p.logits(random_edges(p.graph))
    assert len({pointer for *_, pointer, _ in seen}) == count  # the weights are the same tensors


@torch.no_grad()
def test_other_arithmetic_changes_the_corrupted_run_with_the_patched_one():
    p = patcher("gpt2", linear=rounded)
    none = torch.zeros_like(p.graph.exists)[None]
    assert (p.logits(none)[0] - p.corrupted_logits).abs().max() > 1e-2
    everywhere = frozenset((layer, head) for layer in range(3) for head in range(4))
    closer = (p.logits(none, precise=everywhere)[0] - p.corrupted_logits).abs().mean()
    assert closer < (p.logits(none)[0] - p.corrupted_logits).abs().mean()


@torch.no_grad()
def test_acdc_moves_the_precision_with_the_receiving_head():
    asked = set()

    def watched(x, weight, bias, *, kind, layer, heads, precise):
        asked.update((kind, layer, heads[i]) for i in precise)
        return full_precision(x, weight, bias, kind=kind, layer=layer, heads=heads, precise=precise)

    p = patcher("gpt2", linear=watched)
    plain = acdc(patcher("gpt2"), divergence(p), 0.01)

    def of_receiver(sender, receiver):
        return frozenset({(receiver.layer, receiver.head)} if receiver.kind in "qkv" else ())

    moved = acdc(p, divergence(p), 0.01, precise=of_receiver)
    assert torch.equal(plain.edges, moved.edges)
    tested = [p.graph.receivers[r] for r in (~moved.effects.isnan()).any(1).nonzero()[:, 0]]
    heads = {(node.layer, node.head) for node in tested if node.kind in "qkv"}
    assert asked == {(kind, *head) for kind in "qkvo" for head in heads}
    asked.clear()
    acdc(p, divergence(p), 0.2, precise=lambda sender, receiver: frozenset({(0, 1)}))
    assert asked == {(kind, 0, 1) for kind in "qkvo"}


@torch.no_grad()
def test_a_patched_run_leaves_the_model_as_it_was():
    s = families.subject("gpt2", dtype="float64")
    before = s.model(**padded(s, CLEAN)).logits
    p = patcher("gpt2")
    acdc(p, divergence(p), 0.05)
    assert torch.equal(s.model(**padded(s, CLEAN)).logits, before)
    assert not any("forward" in vars(module) or module._forward_hooks for module in s.model.modules())


@pytest.mark.parametrize("family", POST_NORM)
def test_heads_that_are_normalised_together_are_refused(family):
    with pytest.raises(LookupError, match=r"normalises the sum of its heads' outputs"):
        Graph.of(families.subject(family))


MIXED = {  # norms over all heads' queries, or over all heads' outputs; differences of heads
    "olmoe": ("OlmoeForCausalLM", "its heads cannot be told apart, since a head's query changes"),
    "minimax_m2": ("MiniMaxM2ForCausalLM", "its heads cannot be told apart, since a head's query changes"),
    "bitnet": ("BitNetForCausalLM", r"no site 'v' in BitNetModel: z is off pattern @ v"),
    "diffllama": ("DiffLlamaForCausalLM", "no site 'q' in DiffLlamaModel: without scores or pattern"),
    "megatron-bert": ("MegatronBertForCausalLM", "it could not be run in parts on these prompts"),
    "cohere": ("CohereForCausalLM", "with all edges its logits are off"),  # scales them
}


@pytest.mark.parametrize("name", MIXED)
def test_heads_that_are_mixed_and_logits_that_are_scaled_are_refused(name):
    architecture, reason = MIXED[name]
    model = architectures.build(name, architecture)
    batch = {"input_ids": torch.randint(1, 20, (2, 5))}
    with pytest.raises(LookupError, match=reason):
        Patcher(Subject(model), batch, batch, positions=torch.tensor([4, 4]))


@pytest.mark.parametrize("family", ["bert", "vit", "clip", "llava-vision"])
def test_what_is_no_decoder_is_refused(family):
    with pytest.raises(LookupError, match="it is no decoder"):
        Graph.of(families.subject(family))


def test_a_residual_stream_that_something_else_scales_is_refused():
    scaled = tiny(2, 2)
    scaled.model.transformer.h[0].register_forward_hook(lambda module, args, output: 2 * output)
    batch = {"input_ids": torch.randint(20, (2, 5))}
    with pytest.raises(LookupError, match=r"with all edges its logits are off by .* of the largest"):
        Patcher(scaled, batch, batch, positions=torch.tensor([4, 4]))


def test_bad_input_is_refused_in_words():
    s = families.subject("gpt2")
    clean = padded(s, CLEAN)
    with pytest.raises(ValueError, match=r"clean prompts are 2 x 8 tokens, corrupted ones 2 x 3: give"):
        Patcher(s, clean, padded(s, ["a dog", "is ?"]), positions=LAST)
    with pytest.raises(ValueError, match=r"clean prompt 1 has 3 tokens, its corrupted one 4: patching needs"):
        Patcher(s, clean, padded(s, [CORRUPTED[0], "a cat ."]), positions=LAST)
    with pytest.raises(ValueError, match="corrupted prompts are missing"):
        Patcher(s, clean, positions=LAST)
    with pytest.raises(ValueError, match="ablation='mean': expected 'corrupt' or 'zero'"):
        Patcher(s, clean, clean, positions=LAST, ablation="mean")
    for positions in (torch.tensor([7]), torch.tensor([7.0, 7.0]), torch.tensor([7, 8])):
        with pytest.raises(
            ValueError, match="expected whole numbers from 0 to 7, one row for each of 2 prom"
        ):
            Patcher(s, clean, clean, positions=positions)
    p = patcher("gpt2", "float32")
    with pytest.raises(ValueError, match=r"expected \(variants, 40 receivers, 16 senders\)"):
        p.logits(p.graph.exists)
    for tau in (0, -0.1, math.nan):
        with pytest.raises(ValueError, match="the threshold must be positive"):
            acdc(p, difference, tau)
    with pytest.raises(ValueError, match="the order must name each of the 262 edges once"):
        acdc(p, difference, 0.1, order=p.graph.order()[1:])
    with pytest.raises(ValueError, match="steps=0: the gradient needs at least one run"):
        p.attribution(difference, steps=0)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"the metric is (nan|inf|-inf) for 262 edges, and .* with"):
            acdc(p, lambda logits, bad=bad: bad * difference(logits), 0.1)
        with pytest.raises(ValueError, match="the metric's gradient is not finite"):
            p.attribution(lambda logits, bad=bad: bad * difference(logits))
    training = tiny(1, 2)
    training.model.train()
    with pytest.raises(ValueError, match="training mode"):
        Patcher(training, clean, clean, positions=LAST)


@torch.no_grad()
def test_half_precision_works():
    p = patcher("llama", "bfloat16")
    error = (p.logits(p.graph.exists[None])[0] - p.clean_logits).abs().max()
    assert error < 0.05 * p.clean_logits.abs().max()
