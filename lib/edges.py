"""Edge patching: which connections between a decoder's heads, MLPs, embeddings and logits carry a behaviour.

    patcher = Patcher(subject, clean, corrupted, positions=answer)
    logits = patcher.logits(edges)                  # edges: variant receiver sender
    circuit = acdc(patcher, metric, tau=0.02)
    scores = patcher.attribution(metric)            # edge attribution patching

The residual stream is a sum, so what a receiver reads is a sum over senders. With R'_r what receiver r reads
in the corrupted run, c_s what sender s adds there and a_s what it adds in the patched run, the edges E give r

    x_r = R'_r + sum over (s, r) in E of (a_s - c_s)            (Conmy et al. 2023, section 3)

One masked einsum over senders makes this sum for all receivers of a kind and all variants of E. The model's
own modules do the rest: norms, rotary positions, masks, attention, MLPs.

The page in its order: the graph; the patcher; ACDC as its paper has it; then what makes both fast. A set of
edges is run as the difference from a circuit that was run before, in nodes that reach the logits, and only at
the answers' positions if no attention looks elsewhere; and ACDC's next questions are answered in one batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from lib.models import Subject

Heads = frozenset[tuple[int, int]]
"""Attention heads, as pairs (layer, query head)."""

Edge = tuple[int, int]
"""An edge, as the numbers of its receiver and of its sender in `Graph.receivers` and `Graph.senders`."""

Metric = Callable[[Float[Tensor, "variant batch *n vocab"]], Float[Tensor, " variant"]]
"""What a circuit is judged by: smaller is better."""


@dataclass(frozen=True)
class Node:
    """What sends into the residual stream, or reads it.

    Attributes:
        kind: a sender is "embed", "head" or "mlp"; a receiver is "mlp", "logits" or the "q", "k" or "v" input
            of a head.
        layer: its block; -1 for the embedding, the number of blocks for the logits.
        head: which head; for "k" and "v", which key-value head. -1 where there is none.
    """

    kind: Literal["embed", "head", "mlp", "q", "k", "v", "logits"]
    layer: int
    head: int = -1

    def __str__(self) -> str:
        """As figures name it: "embed", "a1.h2", "a1.h2.q", "m0", "logits"."""
        if self.kind in ("embed", "logits"):
            return self.kind
        if self.kind == "mlp":
            return f"m{self.layer}"
        return f"a{self.layer}.h{self.head}" + (f".{self.kind}" if self.kind != "head" else "")


@dataclass(frozen=True)
class Graph:
    """The nodes of a decoder and the edges that can exist between them.

    Attributes:
        senders: embedding; then, layer by layer, the heads and the MLP.
        receivers: layer by layer the heads' q, k and v inputs and the MLP; then the logits.
        exists: which senders come before which receivers. Heads feed the MLP of their own layer, unless the
            two run in parallel.
        outputs: for each receiver, which senders compute from it: a head from its q, all heads of a group
            from their k and v; none from the logits.
    """

    senders: tuple[Node, ...]
    receivers: tuple[Node, ...]
    exists: Bool[Tensor, "receiver sender"]
    outputs: tuple[slice, ...]

    @staticmethod
    def of(subject: Subject) -> "Graph":
        """The graph of a decoder.

        Raises:
            LookupError: what its heads add to the residual stream cannot be told apart.
        """
        layout, n_heads = subject.layout, subject.n_heads
        reasons = [
            (subject.tower_name != "text" or not subject.model.can_generate(), "it is no decoder"),
            (
                layout.family.attn_out,
                "it normalises the sum of its heads' outputs, so that they do not add up",
            ),
        ]
        for site in ("resid_pre", "q", "k", "v", "z", "attn_out", "mlp_out", "resid_post"):
            reasons.append((site in layout.withheld, f"{site}: {layout.withheld.get(site)}"))
        for holds, reason in reasons:
            if holds:
                raise LookupError(f"no graph of edges of {type(subject.model).__name__}: {reason}")
        senders, receivers, outputs = [Node("embed", -1)], [], []
        for layer in range(subject.n_layers):
            first = len(senders)
            senders += [Node("head", layer, head) for head in range(n_heads)] + [Node("mlp", layer)]
            for kind, n in (("q", n_heads), ("k", subject.n_kv_heads), ("v", subject.n_kv_heads)):
                receivers += [Node(kind, layer, head) for head in range(n)]
                outputs += [slice(first + h * n_heads // n, first + (h + 1) * n_heads // n) for h in range(n)]
            receivers.append(Node("mlp", layer))
            outputs.append(slice(first + n_heads, first + n_heads + 1))
        receivers.append(Node("logits", subject.n_layers))
        outputs.append(slice(0))
        parallel = "resid_mid" in layout.withheld
        exists = [
            [
                s.layer < r.layer
                or (s.layer == r.layer and s.kind == "head" and r.kind == "mlp" and not parallel)
                for s in senders
            ]
            for r in receivers
        ]
        return Graph(tuple(senders), tuple(receivers), torch.tensor(exists), tuple(outputs))

    @property
    def n_edges(self) -> int:
        """How many edges there are."""
        return int(self.exists.sum())

    def is_read(self, receiver: int, edges: Bool[Tensor, "receiver sender"]) -> bool:
        """Whether anything reads what a receiver's node sends, if only some edges are left."""
        return self.receivers[receiver].kind == "logits" or bool(edges[:, self.outputs[receiver]].any())

    def order(self, generator: torch.Generator | None = None) -> list[Edge]:
        """All edges in ACDC's order: receivers from the logits down, and for each its senders, latest first.

        In a layer the MLP comes before the v, then the k, then the q inputs (Conmy et al. 2023, their code).

        Args:
            generator: draws the order of a layer's heads, which is arbitrary; None for the highest first.
        """
        kinds = ["embed", "q", "k", "v", "head", "mlp", "logits"]

        def latest_first(nodes: Sequence[Node]) -> list[int]:
            draw = torch.rand(len(nodes), generator=generator).tolist() if generator else []
            keys = [
                (node.layer, kinds.index(node.kind), draw[i] if draw else node.head)
                for i, node in enumerate(nodes)
            ]
            return sorted(range(len(nodes)), key=keys.__getitem__, reverse=True)

        receivers = latest_first(self.receivers)
        return [(r, s) for r in receivers for s in latest_first(self.senders) if self.exists[r, s]]


class Linear(Protocol):
    """Arithmetic of a projection: what takes the place of `x @ weight.mT + bias`.

    It must treat each row of `x` by itself: which rows come together depends on what is cached. Weights are
    views of the model's own at every call, so that `(weight.data_ptr(), weight.shape)` tells which one it is.
    """

    def __call__(
        self,
        x: Float[Tensor, "*head row d_in"],
        weight: Float[Tensor, "*all_heads d_out d_in"],
        bias: Float[Tensor, "*all_heads d_out"] | None,
        *,
        kind: Literal["q", "k", "v", "o", "mlp", "unembed"],
        layer: int,
        heads: list[int] | None,
        precise: list[int],
    ) -> Float[Tensor, "*head row d_out"]:
        """The projection of every row.

        Args:
            x: what is projected. For "q", "k", "v" and "o", its first axis runs over some heads (for "k" and
                "v", key-value heads); for "mlp" and "unembed" there is no such axis.
            weight: a matrix for each head of the layer, or one.
            bias: likewise; None where there is none ("o" has none: the model's is added in full precision).
            kind: which projection; "mlp" for each of an MLP's.
            layer: its block; the number of blocks for "unembed".
            heads: which heads the first axis of `x` holds; None where it has no such axis.
            precise: positions in that axis of the heads that must be computed in full precision.
        """
        ...


def full_precision(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    kind: str,
    layer: int,
    heads: list[int] | None,
    precise: list[int],
) -> Tensor:
    """The ordinary projection, in the model's own precision."""
    if heads is not None:
        weight, bias = _take(weight, heads), None if bias is None else _take(bias, heads)
    y = x @ weight.mT
    return y if bias is None else y + bias[..., None, :]


class Patcher:
    """Runs a decoder on clean prompts in which only some edges carry what the patched run computes.

    Attributes:
        graph: the decoder's nodes and edges.
        clean_logits: the model's own logits at the answer positions, by the library.
        corrupted_logits: the same for the corrupted prompts; under zero ablation, with all edges absent.
        n_passes: what all calls so far have computed, in forward passes of the batch: each half of a block
            that ran for a set of edges counts as its part of the model.
    """

    def __init__(
        self,
        subject: Subject,
        clean: Mapping[str, Tensor],
        corrupted: Mapping[str, Tensor] | None = None,
        *,
        positions: Int[Tensor, " batch *n"],
        ablation: Literal["corrupt", "zero"] = "corrupt",
        linear: Linear | None = None,
    ) -> None:
        """Runs both kinds of prompts, and checks that the graph with all its edges is the model.

        Args:
            subject: a decoder, in evaluation mode.
            clean: encoded prompts.
            corrupted: as many, of the same lengths; not needed under zero ablation.
            positions: where the answers are read: one place a prompt, or several.
            ablation: what an absent edge carries: the sender's output in the corrupted run, or nothing.
            linear: arithmetic of the projections in patched and corrupted runs; None for the model's own.

        Raises:
            LookupError: what the model's heads add to the residual stream cannot be told apart.
            ValueError: the prompts do not match one another or the positions.
        """
        self.graph = Graph.of(subject)
        _check_inputs(subject, clean, corrupted, positions, ablation)
        self.n_passes = 0.0
        self._zero, self._several = ablation == "zero", positions.ndim == 2
        self._positions = positions.to(subject.device).view(len(positions), -1)
        self._decoder = _Decoder(subject, clean, clean if corrupted is None else corrupted)
        self._group = subject.n_heads // subject.n_kv_heads
        # (layer, kind) -> numbers of its receivers; of its senders.
        self._rows: dict[tuple[int, str], list[int]] = {}
        self._sends: dict[tuple[int, str], list[int]] = {}
        for numbers, nodes in ((self._rows, self.graph.receivers), (self._sends, self.graph.senders)):
            for i, node in enumerate(nodes):
                numbers.setdefault((node.layer, node.kind), []).append(i)
        self._corrupted: dict[Heads, _Corrupted] = {}
        self._linear: Linear | None = None  # the graph is checked in the model's own arithmetic
        shape = (*positions.shape, -1)
        self.clean_logits, self.corrupted_logits = (
            self._at_answers(x).reshape(shape) for x in self._decoder.logits
        )
        with torch.no_grad():
            every = self.logits(self.graph.exists[None])[0]
            off = float((every - self.clean_logits).abs().max() / every.abs().max())
            if not off < (0.1 if every.dtype.itemsize == 2 else 1e-3):
                raise LookupError(
                    f"no graph of edges of {type(subject.model).__name__}: with all edges its logits are off "
                    f"by {off:.2g} of the largest; something beside embedding, heads and MLPs adds to its "
                    "residual stream, or scales it"
                )
            if self._zero:
                self.corrupted_logits = self.logits(torch.zeros_like(self.graph.exists[None]))[0]
        if linear is not None:
            self._linear = linear
            self._corrupted.clear()

    def logits(
        self,
        edges: Bool[Tensor, "variant receiver sender"] | Float[Tensor, "variant receiver sender"],
        *,
        precise: Heads = frozenset(),
    ) -> Float[Tensor, "variant batch *n vocab"]:
        """Logits at the answer positions, for several sets of edges at once, each from the corrupted run up.

        Args:
            edges: what is present. Weights between 0 and 1 mix the two values that an edge can carry;
                gradients reach them if they require any.
            precise: heads for which `linear` is to keep full precision; also in the corrupted run.

        Raises:
            ValueError: the shape is not that of the graph.
        """
        shape = tuple(self.graph.exists.shape)
        if edges.ndim != 3 or tuple(edges.shape[1:]) != shape:
            raise ValueError(
                f"edges have shape {tuple(edges.shape)}: expected (variants, {shape[0]} receivers, "
                f"{shape[1]} senders)"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and edges.requires_grad):
            return self._run(edges, self._start(self._decoder.embeds[0], precise)).logits

    def attribution(
        self, metric: Metric, *, steps: int = 1, precise: Heads = frozenset()
    ) -> Float[Tensor, "receiver sender"]:
        """Edge attribution patching: first-order estimates of all edges' effects, when cut alone.

        The estimate for an edge from s to r is the sum over prompts, positions and dimensions of
        (c_s - a_s) dF/dx_r (Syed et al. 2023), where the gradient is that of the clean run, or its mean over
        `steps` runs whose embeddings lead from the corrupted ones (left out) to the clean ones (Hanna et al.
        2024, EAP-IG). It has a sign; rankings take its absolute value. A metric that is least in the clean
        run, such as a divergence from it, has no gradient there: take several steps, or another metric.

        Args:
            metric: what the edges are judged by; differentiable.
            steps: number of runs for the gradient.
            precise: as for `logits`.

        Returns:
            One estimate an edge; NaN where there is none.

        Raises:
            ValueError: there is no step.
        """
        if steps < 1:
            raise ValueError(f"steps={steps}: the gradient needs at least one run")
        clean, corrupted = self._decoder.embeds
        from_ = torch.zeros_like(clean) if self._zero else corrupted
        estimates = torch.zeros(self.graph.exists.shape, dtype=torch.float64)
        for step in range(steps, 0, -1):
            with torch.enable_grad():
                start = self._start(from_ + step / steps * (clean - from_), precise)
                run = self._run(self.graph.exists[None], start, watch=True)
                gradients = torch.autograd.grad(metric(run.logits).sum(), [x for *_, x in run.reads])
            if step == steps:  # the clean run, which alone gives a_s
                sent = run.kept(0).sent
            for (rows, everywhere, _), gradient in zip(run.reads, gradients, strict=True):
                products = torch.einsum("rvbtd,svbtd->rs", gradient, sent[everywhere])
                estimates[rows] -= products.to(estimates) / steps
        return estimates.where(self.graph.exists, torch.nan)

    def _at_answers(self, x: Float[Tensor, "*axes batch seq d"]) -> Float[Tensor, "*axes batch n d"]:
        return x[..., torch.arange(x.shape[-3], device=x.device)[:, None], self._positions, :]

    def _spread(self, y: Float[Tensor, "*axes batch n d"]) -> Float[Tensor, "*axes batch seq d"]:
        """Puts values at the answer positions among zeros, which nothing will read."""
        full = y.new_zeros(*y.shape[:-2], self._decoder.embeds[0].shape[1], y.shape[-1])
        full[..., torch.arange(y.shape[-3], device=y.device)[:, None], self._positions, :] = y
        return full

    def _most(self, edges: Bool[Tensor, "receiver sender"]) -> int:
        """How many sets of edges, with no more than the given ones, memory allows at once."""
        embed = self._decoder.embeds[0]
        limit = 2**27 if embed.device.type == "cpu" else 2**30
        return max(1, limit // (embed.numel() * (int(edges.any(0).sum()) + self._group)))

    def _run(self, edges: Tensor, start: "_Known", *, watch: bool = False) -> "_Run":
        """The patched run for some sets of edges, which are parts of the one that the run starts from.

        Args:
            edges: variant receiver sender.
            start: a circuit that was run before, or the embedding alone.
            watch: keep what receivers read, each for itself, in the autograd graph.
        """
        run = _Run(self, edges, start, watch)
        for layer in range(len(self._decoder.weights)):
            self._run_heads(run, layer)
            self._run_mlp(run, layer)
        x = run.read([len(self.graph.receivers) - 1], False, -1)[0]  # variant batch n d_model
        logits = self._decoder.unembed(x, self._linear).expand(len(edges), -1, -1, -1)
        run.logits = logits if self._several else logits[:, :, 0]
        return run

    def _run_heads(self, run: "_Run", layer: int) -> None:
        """Computes those heads of a layer that reach the logits and read something new."""
        rows, sends, group = self._rows, self._sends[layer, "head"], self._group
        new = run.is_new(rows[layer, "k"]) | run.is_new(rows[layer, "v"])
        new = new.repeat(group) | run.is_new(rows[layer, "q"])
        heads = np.flatnonzero(new & run.needed[0, sends]).tolist()
        if not heads:
            return
        everywhere = bool(run.needed[1, [sends[h] for h in heads]].any())
        # Heads that share a key-value head are computed together; see `_Decoder.attend`.
        groups = self._decoder.groups(heads)
        queries = [g * group + i for g in groups for i in range(group)]
        inputs = []
        for kind, chosen, whole in (("q", queries, everywhere), ("k", groups, True), ("v", groups, True)):
            receivers = [rows[layer, kind][i] for i in chosen]
            x = run.read(receivers, whole, 2 * layer, self._decoder.norms[layer])
            y = self._project(x, kind, layer, chosen, run.start.precise)
            inputs.append(y if whole else self._spread(y))
        z = self._decoder.attend(layer, *inputs)  # query variant batch seq d_head
        z = _take(z, [queries.index(h) for h in heads])
        z = z if everywhere else self._at_answers(z)
        y = self._project(z, "o", layer, heads, run.start.precise)
        run.send([sends[h] for h in heads], y, everywhere)
        self.n_passes += y.shape[1] / (2 * len(self._decoder.weights))

    def _run_mlp(self, run: "_Run", layer: int) -> None:
        """Computes the MLP of a layer, under the same conditions."""
        rows, (sender,) = self._rows[layer, "mlp"], self._sends[layer, "mlp"]
        if run.needed[0, sender] and run.is_new(rows)[0]:
            everywhere = bool(run.needed[1, sender])
            x = run.read(rows, everywhere, 2 * layer + 1)[0]
            run.send([sender], self._decoder.mlp(layer, x, self._linear)[None], everywhere)
            self.n_passes += len(x) / (2 * len(self._decoder.weights))

    def _project(
        self,
        x: Float[Tensor, "head variant batch seq d_in"],
        kind: str,
        layer: int,
        heads: list[int],
        precise: Heads,
    ) -> Float[Tensor, "head variant batch seq d_out"]:
        """Some heads' projection."""
        weight, bias = self._decoder.weights[layer][kind]
        size = self._group if kind in "kv" else 1
        full = [i for i, h in enumerate(heads) if any((layer, h * size + j) in precise for j in range(size))]
        linear: Any = self._linear or full_precision
        y = linear(x.flatten(1, 3), weight, bias, kind=kind, layer=layer, heads=heads, precise=full)
        return y.unflatten(1, x.shape[1:4])

    def _start(self, embed: Float[Tensor, "batch seq d_model"], precise: Heads) -> "_Known":
        """What is known before anything has been computed: the embedding."""
        precise = frozenset() if self._linear is None else precise
        if precise not in self._corrupted:
            self._corrupted = {precise: self._run_corrupted(precise)}
        return self._known(embed, precise, self._corrupted[precise])

    def _known(self, embed: Tensor, precise: Heads, corrupted: "_Corrupted") -> "_Known":
        n_receivers, n_senders = self.graph.exists.shape
        sent = []
        for x, c in zip((self._at_answers(embed), embed), corrupted.sent, strict=True):
            sent.append(x.new_zeros(n_senders, 1, *x.shape))
            sent[-1][0, 0] = x - c[0]
        # No set of edges equals NaN, so that everything is computed.
        return _Known(precise, corrupted, np.full((n_receivers, n_senders), np.nan), (sent[0], sent[1]))

    @torch.no_grad()
    def _run_corrupted(self, precise: Heads) -> "_Corrupted":
        """What senders add in the corrupted run and what receivers read there; under zero ablation, biases."""
        embed, biases = self._decoder.embeds[1], self._decoder.biases[:, None, None]  # half 1 1 d_model
        nothing = embed.new_zeros(len(self.graph.senders), 1, 1, 1)
        shapes = (self._at_answers(embed).shape, embed.shape)
        empty = _Corrupted((nothing, nothing), tuple(biases.expand(-1, *shape) for shape in shapes))
        if self._zero:
            return empty
        # With nothing to stand in for absent edges, the run with all of them sends c_s.
        known = self._run(self.graph.exists[None], self._known(embed, precise, empty)).kept(0)
        halves = [self._rows[i, kind][0] for i in range(len(biases) // 2) for kind in ("q", "mlp")] + [-1]
        exists = self.graph.exists[halves].to(embed)
        sent = tuple(x[:, 0] for x in known.sent)  # sender batch seq d_model
        return _Corrupted(sent, tuple(torch.einsum("rs,sbtd->rbtd", exists, c) + biases for c in sent))

    def _needed(self, some: Bool[np.ndarray, "receiver sender"]) -> Bool[np.ndarray, "2 sender"]:
        """Which senders reach the logits; and which of them must be known away from the answers, too."""
        read, sent = (np.zeros((2, n), bool) for n in some.shape)
        read[0, -1] = True
        for layer in reversed(range(len(self._decoder.weights))):
            for kind in ("mlp", "head"):
                own = self._sends[layer, kind]
                sent[:, own] = (read[:, :, None] & some[:, own]).any(1)
                read[:, self._rows[layer, "mlp" if kind == "mlp" else "q"]] = sent[:, own]
            # Keys and values are read at all positions, whichever query asks.
            for kind in "kv":
                read[:, self._rows[layer, kind]] = sent[0, own].reshape(-1, self._group).any(1)
        return sent


@dataclass(frozen=True)
class Circuit:
    """What ACDC keeps.

    Attributes:
        edges: the kept edges.
        effects: by how much the metric rose when each edge was cut from the circuit as it was then; NaN where
            there is no edge, or where nothing read its receiver any more.
        metric: of the circuit.
        n_evaluated: how many sets of edges were evaluated.
        n_passes: the same in forward passes of the batch (see `Patcher`).
    """

    edges: Bool[Tensor, "receiver sender"]
    effects: Float[Tensor, "receiver sender"]
    metric: float
    n_evaluated: int
    n_passes: float


@torch.no_grad()
def acdc(
    patcher: Patcher,
    metric: Metric,
    tau: float,
    *,
    order: Sequence[Edge] | None = None,
    precise: Callable[[Node, Node], Heads] | None = None,
    speculate: bool = True,
) -> Circuit:
    """Automatic circuit discovery (Conmy et al. 2023, algorithm 1).

    Each edge in turn is cut; it stays cut if the metric rises by less than tau. A node whose output nothing
    reads any more loses the edges into it without a test.

    Args:
        patcher: model and prompts.
        metric: what is to stay small, such as the divergence from `patcher.clean_logits`.
        tau: the threshold, in the metric's units.
        order: all edges, in the order in which they are tested; None for `Graph.order()`.
        precise: (sender, receiver) -> heads in full precision while that edge is tested; the metric of the
            circuit is measured again whenever they change. None for the receiver's head (PAHQ).
        speculate: measure in one batch the sets of edges that will be asked for if the guesses at the
            answers are right. The result is the same: only what was asked for is used.

    Raises:
        ValueError: tau is not positive, or the order does not name each edge once.
    """
    graph, n_passes = patcher.graph, patcher.n_passes
    if not tau > 0:
        raise ValueError(f"tau={tau}: the threshold must be positive, in units of the metric")
    order = graph.order() if order is None else list(order)
    if sorted(order) != sorted(map(tuple, graph.exists.nonzero().tolist())):
        raise ValueError(f"the order must name each of the {graph.n_edges} edges once")

    def precision(r: int, s: int) -> Heads:
        if patcher._linear is None:
            return frozenset()  # nothing would change
        if precise is not None:
            return precise(graph.senders[s], graph.receivers[r])
        return frozenset((n.layer, n.head) for n in graph.senders[graph.outputs[r]] if n.kind == "head")

    measure = _Measure(patcher, metric, tau, order, [precision(r, s) for r, s in order], speculate)
    circuit = graph.exists.clone()
    effects = torch.full(circuit.shape, torch.nan, dtype=torch.float64)
    current = measure.whole(circuit, 0)
    for step, (r, s) in enumerate(order):
        if not graph.is_read(r, circuit):
            circuit[r, s] = False
            continue
        if measure.heads[step] != measure.heads[measure.at]:
            current = measure.whole(circuit, step)
        value = measure.without(circuit, step, current)
        effects[r, s] = value - current
        if value - current < tau:
            circuit[r, s], current = False, value
    return Circuit(circuit, effects, current, measure.n_evaluated, patcher.n_passes - n_passes)


class _Measure:
    """The metric of circuits, measured before ACDC asks for it.

    A run costs about as much as two tests, whatever their number. So it takes the edge that is asked for and
    those that come next, each cut from the circuit as it will be if the guesses before it are right. If one
    is wrong, the sets behind it are never asked for.
    """

    def __init__(
        self,
        patcher: Patcher,
        metric: Metric,
        tau: float,
        order: list[Edge],
        heads: list[Heads],
        speculate: bool,
    ) -> None:
        self.patcher, self.metric, self.tau = patcher, metric, tau
        self.order, self.heads, self.speculate = order, heads, speculate
        self.n_evaluated = 0
        self.wrong = 0.2  # how often a guess is
        self.was_cut: dict[tuple[str, int], bool] = {}  # (kind of receiver, sender) -> the last answer

    def whole(self, circuit: Bool[Tensor, "receiver sender"], step: int) -> float:
        """The metric of a circuit at the precision of a step, and a new start for all later runs."""
        self.at, self.tried, self.values = step, {}, {}
        self.start = self.patcher._start(self.patcher._decoder.embeds[0], self.heads[step])
        return self._values(circuit[None])[0]

    def without(self, circuit: Bool[Tensor, "receiver sender"], step: int, current: float) -> float:
        """The metric of a circuit, which is `current`, when a step's edge is cut."""
        if _without(circuit, self.order[step]).numpy().tobytes() not in self.values:
            self._look_ahead(circuit, step, current)
        return self.values[_without(circuit, self.order[step]).numpy().tobytes()]

    def _look_ahead(self, circuit: Bool[Tensor, "receiver sender"], step: int, current: float) -> None:
        # Runs start from the smallest set of the last batch that still has all of the circuit's edges.
        above = (circuit <= self.sets).flatten(1).all(1).nonzero()
        if len(above):
            self.start = self.run.kept(int(above[-1]))
        errors = [guess == bool(circuit[self.order[i]]) for i, guess in self.tried.items() if i < step]
        if errors:
            self.wrong = 0.8 * self.wrong + 0.2 * sum(errors) / len(errors)
        # Tests after a wrong guess are wasted.
        n = min(max(2, min(64, round(2 / max(self.wrong, 1e-3) ** 0.5))), self.patcher._most(circuit))
        receivers, last = self.patcher.graph.receivers, min(step + (n if self.speculate else 1), len(self.order))

        def is_near(i: int) -> bool:
            """Whether a test needs no more nodes than the first, at the same precision."""
            return self.order[i][0] == self.order[step][0] and self.heads[i] == self.heads[step]

        self.tried, sets, path = {}, [], circuit
        for i in takewhile(is_near, range(step, last)):
            r, s = self.order[i]
            self.tried[i] = self.was_cut.get((r, s), self.was_cut.get((receivers[r].kind, s), True))
            sets.append(_without(path, (r, s)))
            path = sets[-1] if self.tried[i] else path
        values = self._values(torch.stack(sets))
        self.values = {edges.numpy().tobytes(): value for edges, value in zip(sets, values, strict=True)}
        for (i, guess), value in zip(self.tried.items(), values, strict=True):
            r, s = self.order[i]
            self.was_cut[r, s] = self.was_cut[receivers[r].kind, s] = value - current < self.tau
            current = value if guess else current

    def _values(self, sets: Bool[Tensor, "variant receiver sender"]) -> list[float]:
        self.sets, self.run = sets, self.patcher._run(sets, self.start)
        self.n_evaluated += len(sets)
        return self.metric(self.run.logits).tolist()


def _without(edges: Bool[Tensor, "receiver sender"], edge: Edge) -> Bool[Tensor, "receiver sender"]:
    edges = edges.clone()
    edges[edge] = False
    return edges


@dataclass(frozen=True)
class _Corrupted:
    """The corrupted run, at the answers and everywhere: what senders add; what each half of a layer reads."""

    sent: tuple[Float[Tensor, "sender batch seq d_model"], Float[Tensor, "sender batch seq d_model"]]
    reads: tuple[Float[Tensor, "half batch seq d_model"], Float[Tensor, "half batch seq d_model"]]


@dataclass(frozen=True)
class _Known:
    """A circuit that was run, from which runs of its parts start.

    Attributes:
        precise: the heads in full precision.
        corrupted: the corrupted run.
        edges: the circuit.
        sent: a_s - c_s, at the answers and everywhere, as far as the circuit needs it.
    """

    precise: Heads
    corrupted: _Corrupted
    edges: Float[np.ndarray, "receiver sender"]
    sent: tuple[Float[Tensor, "sender 1 batch seq d_model"], Float[Tensor, "sender 1 batch seq d_model"]]


class _Sent:
    """a_s - c_s of the senders that a run has computed: sender variant batch seq d_model."""

    def __init__(self, room: Float[Tensor, "sender variant batch seq d_model"]) -> None:
        self.senders: list[int] = []
        self.room, self.values = room, room[:0]

    def append(self, senders: list[int], values: Float[Tensor, "sender variant batch seq d_model"]) -> None:
        n = len(self.senders)
        self.senders += senders
        if torch.is_grad_enabled():  # to write in place would spoil the gradients of what was read before
            self.values = torch.cat([self.values, values.expand(-1, *self.room.shape[1:])])
        else:
            self.room[n : len(self.senders)] = values
            self.values = self.room[: len(self.senders)]


class _Run:
    """A patched run of several sets of edges, as far as it differs from where it starts."""

    logits: Tensor

    def __init__(self, patcher: Patcher, edges: Tensor, start: _Known, watch: bool) -> None:
        exists, self.patcher, self.start, self.watch = patcher.graph.exists, patcher, start, watch
        self.edges = edges.detach().cpu().float().numpy() * exists.numpy()
        self.weights = edges.to(start.sent[0]) * exists.to(start.sent[0])
        # A weight of zero has a gradient, too.
        self.some = exists.numpy() if edges.requires_grad else (self.edges != 0).any(0)
        self.needed = patcher._needed(self.some)
        self.differs = (self.edges != start.edges).any((0, 2))  # receivers
        self.changed, self.varies = (np.zeros(exists.shape[1], bool) for _ in range(2))  # senders
        room = int(self.needed[0].sum())
        self.sent = [_Sent(x.new_empty(room, len(edges), *x.shape[2:])) for x in start.sent]
        self.reads: list[tuple[list[int], bool, Tensor]] = []

    def is_new(self, rows: list[int]) -> Bool[np.ndarray, " row"]:
        """Whether receivers read anything else than at the start."""
        return self.differs[rows] | (self.some[rows] & self.changed).any(1)

    def read(
        self, rows: list[int], everywhere: bool, half: int, norm: Callable[[Tensor], Tensor] | None = None
    ) -> Float[Tensor, "row variant batch seq d_model"]:
        """What receivers read: x_r above. One variant stands for all if they agree."""
        # Rows of equal edges are computed once, unless each has gradients of its own.
        apart, first = self.watch or self.weights.requires_grad, {}
        place = [first.setdefault(r if apart else self.edges[:, r].tobytes(), r) for r in rows]
        own = list(first.values())
        w = self.weights[:, own]  # variant row sender
        if not w.requires_grad and (self.edges[:, own] == self.edges[:1, own]).all():
            w = w[:1]
        x = self.start.corrupted.reads[everywhere][half].expand(len(own), 1, -1, -1, -1)
        used, new = self.some[own].any(0), self.sent[everywhere]
        if len(kept := np.flatnonzero(used & ~self.changed)):
            x = x + torch.einsum("vrs,svbtd->rvbtd", w[..., kept], _take(self.start.sent[everywhere], kept))
        if (used & self.changed).any():
            values = new.values if (used & self.varies).any() else new.values[:, :1]
            x = x + torch.einsum("vrs,svbtd->rvbtd", w[..., new.senders], values)
        if self.watch:
            x = x if x.requires_grad else x.requires_grad_()
            self.reads.append((rows, everywhere, x))
        x = x if norm is None else norm(x)
        if len(own) == 1:
            return x.expand(len(rows), -1, -1, -1, -1)
        return x if len(own) == len(rows) else x[[own.index(r) for r in place]]

    def send(self, senders: list[int], y: Tensor, everywhere: bool) -> None:
        """Notes what senders add (sender variant batch seq d_model), less what they add when corrupted."""
        c = [x[senders][:, None] for x in self.start.corrupted.sent]
        if everywhere:
            self.sent[1].append(senders, y - c[1])
        self.sent[0].append(senders, (self.patcher._at_answers(y) if everywhere else y) - c[0])
        self.changed[senders], self.varies[senders] = True, y.shape[1] > 1

    def kept(self, variant: int) -> _Known:
        """One of the sets as a start; what the run itself started from is used up."""
        for old, new in zip(self.start.sent, self.sent, strict=True):
            if new.senders:
                old[new.senders] = new.values[:, variant, None].detach()
        return replace(self.start, edges=self.edges[variant])


class _Call(NamedTuple):
    """What a module got and returned in one pass."""

    hidden: Tensor
    args: tuple
    kwargs: dict
    output: Any


class _Decoder:
    """A decoder in parts, which are its own modules.

    Attributes:
        embeds: the residual stream that enters the first block: clean, corrupted.
        logits: by the library, at all positions: clean, corrupted.
        norms: what stands before each layer's attention.
        weights: layer -> "q", "k", "v" or "o" -> weight (head d_out d_in) and bias.
        biases: what the attentions' output biases add up to before each half of a layer, and at the end.
    """

    def __init__(
        self, subject: Subject, clean: Mapping[str, Tensor], corrupted: Mapping[str, Tensor]
    ) -> None:
        layout = self._layout = subject.layout
        self._model, self._group = subject.model, layout.n_heads // layout.n_kv_heads
        # Qwen's positions are (kind, batch, seq).
        axes = {name: int(name == "position_ids" and x.ndim == 3) for name, x in clean.items()}
        both = {name: torch.cat([x, corrupted[name]], axes[name]) for name, x in clean.items()}
        one, clean_logits = self._watched(clean)
        two, logits = self._watched(both)
        n, entry = len(clean_logits), layout.blocks[0]
        self.logits, self.embeds = (clean_logits, logits[n:]), (one[entry].hidden, two[entry].hidden[n:])
        calls = list(one)
        self._tail = calls[calls.index(layout.blocks[-1]) + 1 :]
        self._passed = {module: (one[module][1:3], two[module][1:3]) for module in one}
        self._repeats: dict[int, Tensor] = {}
        self.norms: list[nn.Module | None] = []
        self.weights: list[dict[str, tuple[Tensor, Tensor | None]]] = []
        biases = [self.embeds[0].new_zeros(layout.d_model)]
        for layer, block in enumerate(layout.blocks):
            hidden = one[layout.attention(layer)].hidden
            children = [child for child in block.children() if child in one]
            self.norms.append(next((child for child in children if one[child].output is hidden), None))
            self.weights.append({})
            for site in "qkv":
                point = self._point(site, layer)
                weight, bias = _matrix(point.module)
                self.weights[-1][site] = (
                    point.view(weight.mT).permute(1, 2, 0),
                    None if bias is None else point.view(bias[None])[0],
                )
            weight, bias = _matrix(self._point("z", layer).module)
            self.weights[-1]["o"] = weight.unflatten(1, (layout.n_heads, -1)).transpose(0, 1), None
            after = biases[-1] if bias is None else biases[-1] + bias
            biases += [biases[-1] if "resid_mid" in layout.withheld else after, after]
        self.biases = torch.stack(biases)
        self._alike = all(self._heads_are_alike(layer) for layer in range(len(layout.blocks)))

    def _point(self, site: str, layer: int) -> Any:
        return self._layout.point(site, layer)

    @torch.no_grad()
    def _watched(self, inputs: Mapping[str, Tensor]) -> tuple[dict[nn.Module, _Call], Tensor]:
        """A pass of the library's model: its modules' calls, in the order in which they end, and logits."""
        layout, seen = self._layout, {}
        modules = [*layout.owner.children(), *layout.blocks]
        for layer, block in enumerate(layout.blocks):
            modules += [*block.children(), layout.attention(layer)]

        def note(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            hidden, *others = args or (kwargs.get("hidden_states"),)
            kwargs = {name: x for name, x in kwargs.items() if name != "hidden_states"}
            seen[module] = _Call(hidden, tuple(others), kwargs, output)

        with ExitStack() as stack:
            for module in dict.fromkeys(modules):
                stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
            return seen, self._model(**inputs, use_cache=False).logits

    @torch.no_grad()
    def _heads_are_alike(self, layer: int) -> bool:
        """Whether attention does the same in all heads (no ALiBi, no sinks), so that they can swap places.

        Raises:
            LookupError: a head's output depends on another head's input.
        """
        layout, (batch, seq, _) = self._layout, self.embeds[0].shape
        draw, group, x = torch.Generator().manual_seed(0), self._group, {}
        for site, n in zip("qkv", (layout.n_heads, layout.n_kv_heads, layout.n_kv_heads), strict=True):
            values = torch.randn(1, batch, seq, n, layout.d_head, generator=draw)
            x[site] = values.to(self.embeds[0])
        close = partial(torch.allclose, rtol=1e-3, atol=1e-3, equal_nan=True)
        z = self._attended(layer, x)
        for site in "qkv":
            n_readers = 1 if site == "q" else group
            changed = torch.cat([-10 * x[site][..., :1, :], x[site][..., 1:, :]], -2)
            others = self._attended(layer, x | {site: changed})[..., n_readers:, :]
            if not close(others, z[..., n_readers:, :]):
                raise LookupError(
                    f"no graph of edges of {type(self._model).__name__}: its heads are mixed in attention, "
                    f"so that they cannot be told apart (the first head's {site} changes other heads' output)"
                )
        rolled = {site: y.roll(group if site == "q" else 1, 3) for site, y in x.items()}
        return close(z.roll(group, 3), self._attended(layer, rolled))

    def groups(self, heads: list[int]) -> list[int]:
        """The key-value heads that must be computed for some heads: all, unless heads can swap places."""
        if self._alike:
            return sorted({head // self._group for head in heads})
        return list(range(self._layout.n_kv_heads))

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "query variant batch seq d_head"],
        k: Float[Tensor, "group variant batch seq d_head"],
        v: Float[Tensor, "group variant batch seq d_head"],
    ) -> Float[Tensor, "query variant batch seq d_head"]:
        """Outputs z of all heads of some groups.

        The library's attention always computes all heads. So groups of several variants are packed into one
        variant's heads, which is why they must be alike.
        """
        n, n_groups, n_kv = max(x.shape[1] for x in (q, k, v)), len(k), self._layout.n_kv_heads
        n_packed = -(-n * n_groups // n_kv)
        packed = {}
        for site, x in zip("qkv", (q, k, v), strict=True):
            # group member variant ... -> slot batch seq member d_head, where slot = (variant, group)
            x = x.expand(-1, n, -1, -1, -1).unflatten(0, (n_groups, -1)).permute(2, 0, 3, 4, 1, 5)
            x = F.pad(x.flatten(0, 1), [0] * 9 + [n_packed * n_kv - n * n_groups])
            # -> variant batch seq head d_head
            packed[site] = x.unflatten(0, (n_packed, n_kv)).permute(0, 2, 3, 1, 4, 5).flatten(3, 4)
        z = self._attended(layer, packed).unflatten(3, (n_kv, self._group)).permute(0, 3, 1, 2, 4, 5)
        z = z.flatten(0, 1)[: n * n_groups].unflatten(0, (n, n_groups))
        return z.permute(1, 4, 0, 2, 3, 5).flatten(0, 1)

    def _attended(
        self, layer: int, inputs: dict[str, Float[Tensor, "variant batch seq head d_head"]]
    ) -> Float[Tensor, "variant batch seq head d_head"]:
        """The library's attention, from its projections' outputs to the input of its output projection."""
        layout, attention = self._layout, self._layout.attention(layer)
        n, batch, seq = inputs["q"].shape[:3]
        outputs: dict[nn.Module, Tensor] = {}
        for site, x in inputs.items():
            point = self._point(site, layer)
            if point.module not in outputs:
                outputs[point.module] = x.new_empty(n * batch, seq, len(_matrix(point.module)[0]))
            point.view(outputs[point.module]).copy_(x.flatten(0, 1))
        given: dict[nn.Module, Callable] = {module: lambda *_, y=y: y for module, y in outputs.items()}
        given[self._point("z", layer).module] = lambda z: z
        args, kwargs = self._repeated(n, *self._passed[attention])
        hidden = self.embeds[0].new_zeros(()).expand(n * batch, seq, layout.d_model)
        if layout.family.mid.startswith(">"):  # it adds the residual stream, its second argument, by itself
            args = (hidden, *args[1:])
        with _computing(given):
            z = attention.forward(hidden, *args, **kwargs)
        return (z[0] if isinstance(z, tuple) else z).view(n, batch, seq, layout.n_heads, layout.d_head)

    def _repeated(self, n: int, one: Any, two: Any) -> Any:
        """Arguments for n variants of the batch, from those for one and for two: what grew is repeated."""
        if isinstance(one, dict):
            return {name: self._repeated(n, x, two[name]) for name, x in one.items()}
        if isinstance(one, (tuple, list)):
            return tuple(self._repeated(n, a, b) for a, b in zip(one, two, strict=True))
        if not isinstance(one, Tensor) or n == 1 or one.shape == two.shape:
            return one
        axis = next(i for i, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b)
        size, long = one.shape[axis], self._repeats.get(id(one), one)
        if long.shape[axis] < n * size:  # layers share masks, and fewer variants a part of the longest
            long = self._repeats[id(one)] = torch.cat([one] * n, axis)
        return long.narrow(axis, 0, n * size)

    def mlp(
        self, layer: int, x: Float[Tensor, "variant batch seq d_model"], linear: Linear | None
    ) -> Float[Tensor, "variant batch seq d_model"]:
        """What an MLP adds: its whole block is run, with an attention that adds nothing."""
        layout = self._layout
        block, attention = layout.blocks[layer], layout.attention(layer)

        def nothing(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
            adds_residual = layout.family.mid.startswith(">")
            return (args[0] if adds_residual else torch.zeros_like(hidden_states)), None

        given: dict[nn.Module, Callable] = {attention: nothing}
        if linear is not None:
            for module in set(block.modules()) - set(attention.modules()):
                if hasattr(module, "in_features") or hasattr(module, "nf"):
                    given[module] = partial(_linearly, linear, module, "mlp", layer)
        added: list[Any] = []
        hook = self._point("mlp_out", layer).module.register_forward_hook(lambda *call: added.append(call[2]))
        args, kwargs = self._passed[block][0]  # nothing but the attention reads them
        with _computing(given):
            try:
                block(x.flatten(0, 1), *args, **kwargs)
            finally:
                hook.remove()
        return (added[0][0] if isinstance(added[0], tuple) else added[0]).reshape(x.shape)

    def unembed(
        self, x: Float[Tensor, "variant batch n d_model"], linear: Linear | None
    ) -> Float[Tensor, "variant batch n vocab"]:
        """Logits of what the last block leaves."""
        for module in self._tail:
            x = module(x)
        head: Any = self._model.get_output_embeddings()
        return head(x) if linear is None else _linearly(linear, head, "unembed", len(self._layout.blocks), x)


def _linearly(linear: Linear, module: nn.Module, kind: Any, layer: int, x: Tensor) -> Tensor:
    """A projection without heads, by other arithmetic."""
    weight, bias = _matrix(module)
    y = linear(x.flatten(0, -2), weight, bias, kind=kind, layer=layer, heads=None, precise=[])
    return y.view(*x.shape[:-1], -1)


def _matrix(module: Any) -> tuple[Float[Tensor, "d_out d_in"], Float[Tensor, " d_out"] | None]:
    """Weight and bias of a projection; GPT-2's Conv1D has its weight transposed."""
    weight = module.weight
    if not weight.is_floating_point() or weight.ndim != 2:
        raise LookupError(
            f"the weights of a {type(module).__name__} are packed, so that heads have none of their own: "
            "load the model without quantisation"
        )
    return (weight.T if hasattr(module, "nf") else weight), module.bias


def _take(x: Tensor, indices: Sequence[int]) -> Tensor:
    """Some entries along the first axis; a view where they stand together."""
    first, last = int(indices[0]), int(indices[-1])
    return x[first : last + 1] if last - first + 1 == len(indices) else x[list(indices)]


@contextmanager
def _computing(forwards: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """Modules compute something else; undone on leaving."""
    before = {module: dict(vars(module)) for module in forwards}
    for module, forward in forwards.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, own in before.items():
            if "forward" in own:  # another library's, such as accelerate's
                vars(module)["forward"] = own["forward"]
            else:
                del vars(module)["forward"]


def _check_inputs(
    subject: Subject,
    clean: Mapping[str, Tensor],
    corrupted: Mapping[str, Tensor] | None,
    positions: Tensor,
    ablation: str,
) -> None:
    """Refuses what cannot be patched."""
    if ablation not in ("corrupt", "zero"):
        raise ValueError(f"ablation={ablation!r}: expected 'corrupt' or 'zero'")
    if corrupted is None and ablation == "corrupt":
        raise ValueError("corrupted prompts are missing: give them, or ablation='zero'")
    if subject.model.training:
        raise ValueError("the model is in training mode, in which dropout draws anew: call model.eval()")
    shape = clean["input_ids"].shape
    if corrupted is not None:
        other = corrupted["input_ids"].shape
        if other != shape:
            raise ValueError(
                f"clean prompts are {shape[0]} x {shape[1]} tokens, corrupted ones {other[0]} x {other[1]}: "
                "give each clean prompt a corrupted one of the same length"
            )
        masks = [
            x.get("attention_mask", torch.ones(shape, device=subject.device)) for x in (clean, corrupted)
        ]
        unequal = (masks[0] != masks[1]).any(1).nonzero()
        if len(unequal):
            row = int(unequal[0])
            raise ValueError(
                f"clean prompt {row} has {int(masks[0][row].sum())} tokens, its corrupted one "
                f"{int(masks[1][row].sum())}: patching needs the same number"
            )
    if positions.ndim not in (1, 2) or len(positions) != shape[0] or positions.is_floating_point():
        raise ValueError(
            f"positions: expected whole numbers, one row for each of {shape[0]} prompts; got "
            f"{positions.dtype} of shape {tuple(positions.shape)}"
        )
    if not ((positions >= 0) & (positions < shape[1])).all():
        raise ValueError(f"positions must be from 0 to {shape[1] - 1}; got {positions.tolist()}")
