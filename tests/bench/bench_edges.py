"""What a test of one edge costs: ours, one forward pass an edge in plain hooks, and auto-circuit.

Run as `python tests/bench/bench_edges.py`; for the comparison with auto-circuit (PyPI), which needs older
numpy and transformers than ours, give its own environment's python as an argument. Costs are CPU seconds of
one thread over those of a bare forward pass of the same prompts, medians of rounds in which all take turns.
"""

import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from single_edges import effects
from timing import in_turn
from transformers import GPT2Config, GPT2LMHeadModel

from data.worlds.circuits import prompts
from lib.edges import Circuit, Patcher, acdc
from lib.models import Subject, load

SHAPES = [(3, 4, 64, 32, 18), (4, 8, 128, 16, 32), (3, 12, 768, 4, 16)]
"""Layers, heads, width, prompts, tokens; the last is a part of GPT-2 small."""

AUTO_CIRCUIT = """
import sys, time, torch
from functools import partial
from transformer_lens import HookedTransformer, HookedTransformerConfig
from auto_circuit.types import PatchType
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.types import AblationType
from auto_circuit.utils.graph_utils import patch_mode, patchable_model
torch.set_num_threads(1)
layers, heads, width, batch, length = map(int, sys.argv[1:])
torch.manual_seed(0)
model = HookedTransformer(HookedTransformerConfig(n_layers=layers, n_heads=heads, d_model=width,
    d_head=width // heads, d_mlp=4 * width, n_ctx=64, d_vocab=100, act_fn="gelu_new", device="cpu"))
model.cfg.use_attn_result = model.cfg.use_attn_in = model.cfg.use_split_qkv_input = True
model.cfg.use_hook_mlp_in = True
clean, corrupted = torch.randint(100, (2, batch, length))
def seconds(run):
    run()
    times = []
    for _ in range(15):
        began = time.process_time(); run(); times.append(time.process_time() - began)
    return sorted(times)[7]
with torch.no_grad():
    plain = HookedTransformer(model.cfg.__class__(**{**model.cfg.to_dict(), "use_attn_result": False,
        "use_attn_in": False, "use_split_qkv_input": False, "use_hook_mlp_in": False}))
    bare = seconds(lambda: plain(clean))
    net = patchable_model(model, factorized=True, slice_output="last_seq", separate_qkv=True,
        device=torch.device("cpu"))
    sources = src_ablations(net, corrupted, AblationType.RESAMPLE)
    edge = sorted(net.edges, key=str)[len(net.edges) // 2]
    def one():
        with patch_mode(net, sources, [edge.name]):
            net(clean)
    print(seconds(one) / bare, seconds(one) / seconds(lambda: net(clean)))
"""


def random_net(n_layers: int, n_heads: int, width: int) -> Subject:
    """A GPT-2 of a given size, with weights so large that heads differ."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=100,
        n_embd=width,
        n_layer=n_layers,
        n_head=n_heads,
        n_positions=64,
        initializer_range=1.2 / width**0.5,
        bos_token_id=0,
        eos_token_id=0,
    )
    return Subject(GPT2LMHeadModel(config).eval())


@dataclass
class Case:
    """A model and prompts; the answer is read at the last position."""

    name: str
    subject: Subject
    clean: dict
    corrupted: dict

    def __post_init__(self) -> None:
        last = torch.full((len(self.clean["input_ids"]),), self.clean["input_ids"].shape[1] - 1)
        self.patcher = Patcher(self.subject, self.clean, self.corrupted, positions=last)
        self.n_edges = self.patcher.graph.n_edges
        reference = self.patcher.clean_logits.log_softmax(-1)
        self.divergence = lambda x: (reference.exp() * (reference - x.log_softmax(-1))).sum(-1).mean(-1)
        self.total = float(self.divergence(self.patcher.corrupted_logits[None]))

    def bare(self) -> None:
        """One forward pass."""
        self.subject.model(**self.clean)


def random_case(n_layers: int, n_heads: int, width: int, batch: int, length: int) -> Case:
    """A random network on random prompts."""
    subject = random_net(n_layers, n_heads, width)
    clean, corrupted = ({"input_ids": torch.randint(100, (batch, length))} for _ in range(2))
    return Case(f"random, {n_layers} layers x {n_heads} heads, {width} wide", subject, clean, corrupted)


def trained_case(task: str) -> Case:
    """A trained organism on its own prompts."""
    subject, drawn = load(f"{task}-gpt"), prompts(task, 32, np.random.default_rng(0))
    name = f"{task}-gpt, {subject.n_layers} layers x {subject.n_heads} heads, {subject.d_model} wide"
    return Case(name, subject, subject.encode(drawn.clean), subject.encode(drawn.corrupted))


class OneAtATime:
    """One edge cut in one forward pass, by plain hooks on a GPT-2: what one would write by hand.

    With a single edge cut its sender is as in the clean run, so that the receiver reads x_r - (a_s - c_s).
    """

    def __init__(self, case: Case) -> None:
        self.case, self.net = case, case.subject.model
        self.less = [
            a - c for a, c in zip(self.senders(case.clean), self.senders(case.corrupted), strict=True)
        ]

    def senders(self, inputs: dict) -> list[torch.Tensor]:
        """What embedding, heads and MLPs add."""
        blocks, seen, handles = self.net.transformer.h, {}, []
        handles.append(blocks[0].register_forward_pre_hook(lambda m, a: seen.update({"embed": a[0]})))
        for n, block in enumerate(blocks):
            before = block.attn.c_proj.register_forward_pre_hook
            handles.append(before(lambda m, a, n=n: seen.update({("z", n): a[0]})))
            after = block.mlp.register_forward_hook
            handles.append(after(lambda m, a, output, n=n: seen.update({("mlp", n): output})))
        self.net(**inputs)
        for handle in handles:
            handle.remove()
        sent = [seen["embed"]]
        for n, block in enumerate(blocks):
            z = seen["z", n].unflatten(-1, (self.case.subject.n_heads, -1))
            weight = block.attn.c_proj.weight.unflatten(0, z.shape[2:])
            sent += [*torch.einsum("bthd,hdm->hbtm", z, weight), seen["mlp", n]]
        return sent

    def logits(self, r: int, s: int) -> torch.Tensor:
        """At the last position."""
        node, delta = self.case.patcher.graph.receivers[r], self.less[s]
        net = self.net.transformer
        if node.kind == "logits":
            handle = net.ln_f.register_forward_pre_hook(lambda m, a: (a[0] - delta,))
        elif node.kind == "mlp":
            handle = net.h[node.layer].ln_2.register_forward_pre_hook(lambda m, a: (a[0] - delta,))
        else:
            block, read = net.h[node.layer], []
            width = block.attn.head_dim
            first = "qkv".index(node.kind) * block.attn.split_size + node.head * width
            own = slice(first, first + width)

            def project(module, args, output):
                x = block.ln_1(read[0] - delta)
                output = output.clone()
                output[..., own] = x @ module.weight[:, own] + module.bias[own]
                return output

            other = block.register_forward_pre_hook(lambda m, a: read.append(a[0]))
            handle = block.attn.c_attn.register_forward_hook(project)
        out = self.net(**self.case.clean).logits[:, -1]
        handle.remove()
        if node.kind in "qkv":
            other.remove()
        return out


def whole_passes(case: Case, tau: float) -> torch.Tensor:
    """The edges that sequential ACDC keeps: one edge and one whole patched run at a time, nothing cached."""
    p, metric = case.patcher, case.divergence
    edges, current = p.graph.exists.clone(), metric(p.logits(p.graph.exists[None]))[0]
    own = {(node.kind == "mlp", node.layer, node.head): s for s, node in enumerate(p.graph.senders)}
    for r, s in p.graph.order():
        node = p.graph.receivers[r]
        edges[r, s] = False
        if node.kind != "logits" and not edges[:, own[node.kind == "mlp", node.layer, node.head]].any():
            continue
        value = metric(p.logits(edges[None]))[0]
        if value - current < tau:
            current = value
        else:
            edges[r, s] = True
    return edges


def single_cuts(case: Case) -> None:
    """Each edge cut alone, against one hooked forward pass for each."""
    by_hand = OneAtATime(case)
    drawn = case.patcher.graph.exists.nonzero()[torch.randperm(case.n_edges)[:20]].tolist()
    found = effects(case.patcher, case.divergence)
    expected = [float(case.divergence(by_hand.logits(r, s)[None])) for r, s in drawn]
    off = max(abs(float(found[r, s]) - value) for (r, s), value in zip(drawn, expected, strict=True))
    ways = {
        "bare": lambda: [case.bare() for _ in drawn],
        "hooks": lambda: [case.divergence(by_hand.logits(r, s)[None]) for r, s in drawn],
        "ours": lambda: effects(case.patcher, case.divergence),
    }
    seconds = in_turn(ways, 5)
    bare = seconds["bare"] / len(drawn)
    hooks = np.median(seconds["hooks"] / len(drawn) / bare)
    ours = np.median(seconds["ours"] / case.n_edges / bare)
    rate = np.median(case.n_edges / seconds["ours"])
    print(
        f"  each edge cut alone: {ours:.3f} bare passes an edge ({rate:.0f} edges/s); by a hooked pass each "
        f"{hooks:.2f}, {hooks / ours:.1f} times as much; effects differ by at most {off:.0e}"
    )


def search(case: Case, share: float, rounds: int, others: dict) -> tuple[Circuit, dict]:
    """ACDC at a share of the corrupted run's divergence: what it finds, and costs in bare passes an edge."""
    found: list[Circuit] = []
    tau = share * case.total
    ways = {
        "bare": lambda: [case.bare() for _ in range(5)],
        "ours": lambda: found.append(acdc(case.patcher, case.divergence, tau)),
        **{name: partial(way, tau) for name, way in others.items()},
    }
    seconds = in_turn(ways, rounds)
    costs = {name: np.median(5 * times / seconds["bare"]) / case.n_edges for name, times in seconds.items()}
    return found[0], costs | {"seconds": np.median(seconds["ours"])}


def searches(case: Case, shares: list[float], check: bool) -> None:
    """ACDC with speculation, without, and as the sequential algorithm with nothing cached."""
    others = {"alone": lambda tau: acdc(case.patcher, case.divergence, tau, speculate=False)} if check else {}
    for share in shares:
        circuit, costs = search(case, share, 3, others)
        n_tested = int((~circuit.effects.isnan()).sum())
        print(
            f"  ACDC, tau {share:g} of the total: keeps {int(circuit.edges.sum())} of {case.n_edges}, tests "
            f"{n_tested} by {circuit.n_evaluated} evaluations; {costs['ours']:.3f} bare passes an edge "
            f"({case.n_edges / costs['seconds']:.0f} edges/s), "
            f"{costs['ours'] * case.n_edges / n_tested:.3f} a tested one"
        )
        if check:
            same = torch.equal(circuit.edges, whole_passes(case, share * case.total))
            print(
                f"    without speculation {costs['alone']:.3f}; the sequential algorithm keeps "
                + ("the same edges" if same else "OTHER EDGES")
            )


def growth() -> None:
    """How time grows with layers and heads; the threshold is the same share throughout."""
    print("growth, 64 wide, 16 prompts x 18 tokens, ACDC at tau 0.01 of the total")
    for n_layers, n_heads in [(2, 4), (4, 4), (8, 4), (12, 4), (4, 2), (4, 8), (4, 16)]:
        case = random_case(n_layers, n_heads, 64, 16, 18)
        circuit, costs = search(case, 0.01, 1, {})
        print(
            f"  {n_layers:2} layers x {n_heads:2} heads: {case.n_edges:5} edges, "
            f"{int(circuit.edges.sum()):4} kept; {costs['seconds']:6.2f} s, {costs['ours']:.3f} bare passes "
            "an edge"
        )


def auto_circuit(python: str | None) -> None:
    """The same network's shape in auto-circuit, in its own environment, on the same machine."""
    if python is None:
        print("auto-circuit: skipped, no interpreter given (it needs numpy < 2 and transformers < 4.50)")
        return
    for shape in SHAPES:
        command = [python, "-c", AUTO_CIRCUIT, *map(str, shape)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"auto-circuit: skipped, {done.stderr.strip().splitlines()[-1]}")
            return
        cost, own = map(float, done.stdout.split()[-2:])
        print(
            f"auto-circuit, {shape[0]} x {shape[1]} heads, {shape[2]} wide: {cost:.2f} bare passes an edge, "
            f"{own:.2f} passes of its own wrapped model"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    cases = [trained_case("induction"), trained_case("docstring"), *(random_case(*shape) for shape in SHAPES)]
    for i, case in enumerate(cases):
        n, length = case.clean["input_ids"].shape
        print(f"{case.name}; {n} prompts x {length} tokens, {case.n_edges} edges")
        single_cuts(case)
        searches(case, [0.001, 0.01, 0.05], check=i < 3)
    growth()
    auto_circuit(sys.argv[1] if len(sys.argv) > 1 else None)
