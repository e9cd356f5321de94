"""Edge patching: which connections between a decoder's heads, MLPs, embeddings and logits carry a behaviour.

    patcher = Patcher(subject, clean, corrupted, positions=answer)
    logits = patcher.logits(edges)                  # edges: variant receiver sender
    circuit = acdc(patcher, metric, tau=0.02)
    scores = patcher.attribution(metric)            # edge attribution patching

The residual stream is a sum, so what a receiver reads is a sum over senders. With R'_r what receiver r reads
in the corrupted run, c_s what sender s adds there and a_s what it adds in the patched run, the edges E give r

    x_r = R'_r + sum over (s, r) in E of (a_s - c_s)            (Conmy et al. 2023, section 3)

One masked einsum over senders makes this sum for all receivers of a kind and all variants of E. The model's
own modules do the rest (`lib.decoder`): norms, rotary positions, masks, attention, MLPs.

The page in its order: the graph; the patcher; ACDC as its paper has it; then what makes both fast. A set of
edges is run as the difference from a circuit that was run before, in nodes that reach the logits, and only at
the answers' positions if no attention looks elsewhere; and ACDC's next questions are answered in one batch.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from lib.decoder import Decoder, Linear, full_precision, take
from lib.models import Subject

Heads = frozenset[tuple[int, int]]
"""Attention heads, as pairs (layer, query head)."""

Edge = tuple[int, int]
"""An edge, as the numbers of its receiver and of its sender in `Graph.receivers` and `Graph.senders`."""

Metric = Callable[[Float[Tensor, "variant batch *n vocab"]], Float[Tensor, " variant"]]
"""What a circuit is judged by: smaller is better."""


Kind = Literal["embed", "head", "mlp", "q", "k", "v", "logits"]


@dataclass(frozen=True)
class Node:
    """What sends into the residual stream, or reads it.

    Attributes:
        kind: a sender is "embed", "head" or "mlp"; a receiver is "mlp", "logits" or the "q", "k" or "v" input
            of a head.
        layer: its block; -1 for the embedding, the number of blocks for the logits.
        head: which head; for "k" and "v", which key-value head. -1 where there is none.
    """

    kind: Kind
    layer: int
    head: int = -1

    def __str__(self) -> str:
        """As figures name it: "embed", "a1.h2", "a1.h2.q", "m0", "logits"."""
        whole = {"embed": "embed", "logits": "logits", "mlp": f"m{self.layer}"}
        head = f"a{self.layer}.h{self.head}"
        return whole.get(self.kind, head if self.kind == "head" else f"{head}.{self.kind}")


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
        layout, n_heads, n_kv = subject.layout, subject.n_heads, subject.n_kv_heads
        name = f"no graph of edges of {type(subject.model).__name__}: "
        if subject.tower_name != "text" or not subject.model.can_generate():
            raise LookupError(name + "it is no decoder")
        if layout.family.attn_out:
            raise LookupError(
                name + "it normalises the sum of its heads' outputs, so that they do not add up"
            )
        for site in ("resid_pre", "q", "k", "v", "z", "attn_out", "mlp_out", "resid_post"):
            layout.layers(site, None)  # refuses what this model does not have
        parallel = "resid_mid" in layout.withheld
        senders, receivers, outputs = [Node("embed", -1)], [], []
        # A half of a layer takes one tick: what has been sent by then is what a receiver can read.
        sent_at, read_at = [0], []
        for layer in range(subject.n_layers):
            first = len(senders)
            senders += [Node("head", layer, head) for head in range(n_heads)] + [Node("mlp", layer)]
            sent_at += [2 * layer + 1] * n_heads + [2 * layer + 2]
            kinds: tuple[tuple[Kind, int], ...] = (("q", n_heads), ("k", n_kv), ("v", n_kv))
            for kind, n in kinds:
                receivers += [Node(kind, layer, head) for head in range(n)]
                outputs += [slice(first + h * n_heads // n, first + (h + 1) * n_heads // n) for h in range(n)]
            receivers.append(Node("mlp", layer))
            outputs.append(slice(first + n_heads, first + n_heads + 1))
            read_at += [2 * layer] * (n_heads + 2 * n_kv) + [2 * layer + (not parallel)]
        receivers.append(Node("logits", subject.n_layers))
        read_at.append(2 * subject.n_layers)
        exists = torch.tensor(read_at)[:, None] >= torch.tensor(sent_at)
        return Graph(tuple(senders), tuple(receivers), exists, (*outputs, slice(0)))

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
            heads = [float(node.head) for node in nodes]
            heads = torch.rand(len(nodes), generator=generator).tolist() if generator else heads
            keys = [(node.layer, kinds.index(node.kind), heads[i]) for i, node in enumerate(nodes)]
            return sorted(range(len(nodes)), key=keys.__getitem__, reverse=True)

        receivers = latest_first(self.receivers)
        return [(r, s) for r in receivers for s in latest_first(self.senders) if self.exists[r, s]]


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
        with _in_parts(subject):
            self._decoder = Decoder(subject, clean, clean if corrupted is None else corrupted)
        self._zero, self._shape, self.n_passes = ablation == "zero", (*positions.shape, -1), 0.0
        batch = torch.arange(len(positions), device=subject.device)[:, None]
        self._answers = batch, positions.to(subject.device).view(len(positions), -1)  # batch n
        # kind -> numbers of its receivers, and of its senders: layer head
        n, self._group = subject.n_heads, subject.n_heads // subject.n_kv_heads
        rows = np.arange(len(self.graph.receivers) - 1).reshape(subject.n_layers, -1)
        parts = np.split(rows, [n, n + n // self._group, n + 2 * n // self._group], 1)
        self._rows = dict(zip(("q", "k", "v", "mlp"), parts, strict=True))
        sends = np.arange(1, len(self.graph.senders)).reshape(subject.n_layers, -1)
        self._sends = {"head": sends[:, :-1], "mlp": sends[:, -1:]}
        self._corrupted: dict[Heads, _Known] = {}
        self.clean_logits, self.corrupted_logits = (
            self._at_answers(x).reshape(self._shape) for x in self._decoder.logits
        )
        with torch.no_grad(), _in_parts(subject):  # in the model's own arithmetic
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
            self._decoder.linear = linear
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
            expected = f"(variants, {shape[0]} receivers, {shape[1]} senders)"
            raise ValueError(f"edges have shape {tuple(edges.shape)}: expected {expected}")
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
            ValueError: there is no step, or the metric's gradient is not finite.
        """
        if steps < 1:
            raise ValueError(f"steps={steps}: the gradient needs at least one run")
        clean, corrupted = self._decoder.embeds
        origin = torch.zeros_like(clean) if self._zero else corrupted
        estimates = torch.zeros(self.graph.exists.shape, dtype=torch.float64)
        for step in range(steps, 0, -1):
            with torch.enable_grad():
                start = self._start(origin + step / steps * (clean - origin), precise)
                run = self._run(self.graph.exists[None], start, watch=True)
                gradients = torch.autograd.grad(metric(run.logits).sum(), [x for *_, x in run.reads])
            if step == steps:  # the clean run comes first, which alone gives a_s
                sent = run.kept(0).sent
            for (rows, everywhere, _), gradient in zip(run.reads, gradients, strict=True):
                delta = sent if everywhere else self._at_answers(sent)
                estimates[rows] -= (gradient.flatten(1) @ delta.flatten(1).mT).to(estimates) / steps
        if not estimates[self.graph.exists].isfinite().all():
            raise ValueError("the metric's gradient is not finite: no edge can be judged by it")
        return estimates.where(self.graph.exists, torch.nan)

    def _at_answers(self, x: Float[Tensor, "*axes batch seq d"]) -> Float[Tensor, "*axes batch n d"]:
        return x[..., *self._answers, :]

    def _start(self, embed: Float[Tensor, "batch seq d_model"], precise: Heads) -> "_Known":
        """What is known before anything has been computed: the corrupted run, and the embedding."""
        precise = precise if self._decoder.linear else frozenset()
        if precise not in self._corrupted:
            self._corrupted = {precise: self._run_corrupted(precise)}
        return self._corrupted[precise].at(embed)

    @torch.no_grad()
    def _run_corrupted(self, precise: Heads) -> "_Known":
        """What senders add in the corrupted run and receivers read there; under zero ablation, biases."""
        embed, biases = self._decoder.embeds[1], self._decoder.biases[:, None, None]  # half 1 1 d_model
        nothing = embed.new_zeros(()).expand(len(self.graph.senders), *embed.shape)
        known = _Known(precise, nothing, biases.expand(-1, *embed.shape))
        if self._zero:
            return known
        # With nothing to stand in for absent edges, the run with all of them sends c_s.
        c = self._run(self.graph.exists[None], known.at(embed)).kept(0).sent[:, 0]  # sender batch seq d_model
        rows = [self._rows[kind][i, 0] for i in range(len(biases) // 2) for kind in ("q", "mlp")] + [-1]
        exists = self.graph.exists[rows].to(embed)
        return _Known(precise, c, torch.einsum("rs,sbtd->rbtd", exists, c) + biases)

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
        logits = self._decoder.unembed(x).expand(len(edges), -1, -1, -1)
        run.logits = logits.reshape(len(edges), *self._shape)
        return run

    def _run_heads(self, run: "_Run", layer: int) -> None:
        """Computes those heads of a layer that reach the logits and read something new."""
        rows, sends = {kind: x[layer] for kind, x in self._rows.items()}, self._sends["head"][layer]
        new = run.is_new(rows["k"]) | run.is_new(rows["v"])
        new = new.repeat(self._group) | run.is_new(rows["q"])
        heads = np.flatnonzero(new & run.needed[0, sends])
        if not len(heads):
            return
        # Heads of a group share keys and values, so that they are computed together.
        groups = self._decoder.groups(heads)
        queries = (groups[:, None] * self._group + np.arange(self._group)).ravel()
        inputs = []
        for kind, chosen in (("q", queries), ("k", groups), ("v", groups)):
            x = run.read(rows[kind][chosen], True, 2 * layer)
            inputs.append(self._project(x, kind, layer, chosen, run))
        z = take(self._decoder.attend(layer, *inputs), np.searchsorted(queries, heads))
        everywhere = bool(run.needed[1, sends[heads]].any())
        y = self._project(z if everywhere else self._at_answers(z), "o", layer, heads, run)
        run.send(sends[heads], y, everywhere)
        self.n_passes += y.shape[1] / (2 * len(self._decoder.weights))

    def _run_mlp(self, run: "_Run", layer: int) -> None:
        """Computes the MLP of a layer, under the same conditions."""
        rows, sends = self._rows["mlp"][layer], self._sends["mlp"][layer]
        if run.needed[0, sends] and run.is_new(rows).any():
            everywhere = bool(run.needed[1, sends])
            x = run.read(rows, everywhere, 2 * layer + 1)[0]  # variant batch seq d_model
            run.send(sends, self._decoder.mlp(layer, x)[None], everywhere)
            self.n_passes += len(x) / (2 * len(self._decoder.weights))

    def _project(self, x: Tensor, kind: str, layer: int, heads: np.ndarray, run: "_Run") -> Tensor:
        """Some heads' projection: head variant batch seq d_in -> head variant batch seq d_out."""
        weight, bias = self._decoder.weights[layer][kind]
        size, precise = self._group if kind in "kv" else 1, run.start.precise
        full = [i for i, h in enumerate(heads) if any((layer, h * size + j) in precise for j in range(size))]
        linear = self._decoder.linear or full_precision
        y = linear(x.flatten(1, 3), weight, bias, kind=kind, layer=layer, heads=heads.tolist(), precise=full)
        return y.unflatten(1, x.shape[1:4])

    def _needed(self, some: Bool[np.ndarray, "receiver sender"]) -> Bool[np.ndarray, "2 sender"]:
        """Which senders reach the logits; and which of them must be known away from the answers, too."""
        read, sent = (np.zeros((2, n), bool) for n in some.shape)
        read[0, -1] = True
        for layer in reversed(range(len(self._decoder.weights))):
            for sender, receiver in (("mlp", "mlp"), ("head", "q")):
                own = self._sends[sender][layer]
                sent[:, own] = (read[:, :, None] & some[:, own]).any(1)
                read[:, self._rows[receiver][layer]] = sent[:, own]
            # Keys and values are read at all positions, wherever the queries are.
            for receiver in "kv":
                read[:, self._rows[receiver][layer]] = sent[0, own].reshape(-1, self._group).any(1)
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
            circuit is measured again whenever they change. None for no head.
        speculate: measure in one batch the sets of edges that will be asked for if the guesses at the
            answers are right. The result is the same: only what was asked for is used.

    Raises:
        ValueError: tau is not positive, the order does not name each edge once, or the metric is not finite.
    """
    graph, n_passes = patcher.graph, patcher.n_passes
    if not tau > 0:
        raise ValueError(f"tau={tau}: the threshold must be positive, in units of the metric")
    order = graph.order() if order is None else list(order)
    if sorted(order) != sorted(map(tuple, graph.exists.nonzero().tolist())):
        raise ValueError(f"the order must name each of the {graph.n_edges} edges once")
    no_heads: Heads = frozenset()
    heads = [precise(graph.senders[s], graph.receivers[r]) if precise else no_heads for r, s in order]
    measured = _Measured(
        patcher, metric, tau, list(zip(order, heads, strict=True)), AHEAD if speculate else 1
    )

    circuit, precision = graph.exists.clone(), None
    effects = torch.full(circuit.shape, torch.nan, dtype=torch.float64)
    for step, (r, s) in enumerate(order):
        without = circuit.clone()
        without[r, s] = False
        if not graph.is_read(r, circuit):
            circuit = without
            continue
        if heads[step] != precision:
            precision, current = heads[step], measured.whole(circuit, heads[step])
        value = measured.without(circuit, without, step, current)
        if not math.isfinite(value - current):
            raise ValueError(
                f"the metric is {current} for {int(circuit.sum())} edges, and {value} without one of them: "
                "no edge can be judged by what is not finite"
            )
        effects[r, s] = value - current
        if value - current < tau:
            circuit, current = without, value
    return Circuit(circuit, effects, current, measured.n_evaluated, patcher.n_passes - n_passes)


AHEAD = 6
"""How many tests ACDC makes in one run; fewer repeat its fixed costs, more are wasted by wrong guesses."""

Test = tuple[Edge, Heads]
"""An edge, and the heads that are precise while it is tested."""


class _Measured:
    """The metric of circuits, measured before ACDC asks for it.

    A run costs about as much as two tests, whatever their number. So it takes the edge that is asked for and
    those that come next, each cut from the circuit as it will be if the guesses before it are right. If one
    is wrong, the sets behind it are never asked for.
    """

    def __init__(self, patcher: Patcher, metric: Metric, tau: float, tests: list[Test], ahead: int) -> None:
        self.patcher, self.metric, self.tau, self.tests, self.ahead = patcher, metric, tau, tests, ahead
        self.n_evaluated = 0
        self.was_cut: dict[tuple[str, int], bool] = {}  # (kind of receiver, sender) -> the last answer

    def whole(self, circuit: Tensor, heads: Heads) -> float:
        """The metric of a circuit, and a new start for all later runs."""
        self.values: dict[bytes, float] = {}
        self.start = self.patcher._start(self.patcher._decoder.embeds[0], heads)
        return self._measure(circuit[None])[0]

    def without(self, circuit: Tensor, without: Tensor, step: int, current: float) -> float:
        """The metric without a step's edge; `current` is that of the circuit."""
        if without.numpy().tobytes() not in self.values:
            self._look_ahead(circuit, step, current)
        return self.values[without.numpy().tobytes()]

    def _look_ahead(self, circuit: Tensor, step: int, current: float) -> None:
        # Runs start from the smallest set of the last batch that still has all of the circuit's edges.
        above = (circuit <= self.sets).flatten(1).all(1).nonzero()
        if len(above):
            self.start = self.run.kept(int(above[-1]))
        # Edges into one receiver change the same nodes; others would make the run longer for all.
        (r, _), heads = self.tests[step]
        together = takewhile(lambda test: (test[0][0], test[1]) == (r, heads), self.tests[step:])
        senders = [s for (_, s), _ in islice(together, self.ahead)]
        kind, path, sets = self.patcher.graph.receivers[r].kind, circuit, []
        guesses = [self.was_cut.get((kind, s), True) for s in senders]
        for s, guess in zip(senders, guesses, strict=True):
            sets.append(path.clone())
            sets[-1][r, s] = False
            path = sets[-1] if guess else path
        values = self._measure(torch.stack(sets))
        self.values = {edges.numpy().tobytes(): value for edges, value in zip(sets, values, strict=True)}
        for s, guess, value in zip(senders, guesses, values, strict=True):
            self.was_cut[kind, s] = value - current < self.tau
            current = value if guess else current

    def _measure(self, sets: Bool[Tensor, "variant receiver sender"]) -> list[float]:
        self.sets, self.run = sets, self.patcher._run(sets, self.start)
        self.n_evaluated += len(sets)
        return self.metric(self.run.logits).tolist()


@dataclass(frozen=True)
class _Known:
    """A circuit that was run, from which runs of its parts start.

    Attributes:
        precise: the heads in full precision.
        corrupted: what senders add in the corrupted run: sender batch seq d_model.
        reads: what each half of a layer, and the logits, read there: half batch seq d_model.
        edges: the circuit: receiver sender.
        sent: a_s - c_s, where the circuit needs it: sender 1 batch seq d_model.
    """

    precise: Heads
    corrupted: Tensor
    reads: Tensor
    edges: np.ndarray | float = np.nan
    sent: Any = None

    def at(self, embed: Tensor) -> "_Known":
        """The embedding alone is known; no edge equals NaN, so that all nodes are computed."""
        sent = F.pad((embed - self.corrupted[0])[None, None], [0] * 9 + [len(self.corrupted) - 1])
        return replace(self, edges=np.nan, sent=sent)


class _Run:
    """A patched run of several sets of edges, as far as it differs from where it starts."""

    logits: Tensor

    def __init__(self, patcher: Patcher, edges: Tensor, start: _Known, watch: bool) -> None:
        self.patcher, self.start, self.watch, exists = patcher, start, watch, patcher.graph.exists
        self.edges = edges.detach().cpu().float().numpy() * exists.numpy()
        self.weights = edges.to(start.reads) * exists.to(start.reads)
        # A weight of zero has a gradient, too.
        self.some = exists.numpy() if edges.requires_grad else (self.edges != 0).any(0)
        self.needed = patcher._needed(self.some)
        self.differs: np.ndarray = np.any(self.edges != start.edges, (0, 2))  # receivers
        self.changed = np.zeros(exists.shape[1], bool)  # senders
        # a_s - c_s, sender variant batch seq d_model; with one variant where all agree, or answers only
        self.sent: list[tuple[np.ndarray, Tensor, bool]] = []
        self.reads: list[tuple[np.ndarray | list[int], bool, Tensor]] = []

    def is_new(self, rows: np.ndarray) -> Bool[np.ndarray, " row"]:
        """Whether receivers read anything else than at the start."""
        return self.differs[rows] | np.any(self.some[rows] & self.changed, 1)

    def read(self, rows: np.ndarray | list[int], everywhere: bool, half: int) -> Tensor:
        """What receivers read, x_r above, through their norm: row variant batch seq d_model."""
        # Rows of equal edges are computed once, unless they have gradients; so are equal variants.
        apart, first = self.weights.requires_grad, dict[Any, int]()
        place = [first.setdefault(r if apart else self.edges[:, r].tobytes(), r) for r in rows]
        own = list(first.values())
        same = not self.weights.requires_grad and (self.edges[:, own] == self.edges[:1, own]).all()
        w = self.weights[: 1 if same else None, own]
        used: np.ndarray = np.any(self.some[own], 0)
        at_answers = (lambda x: x) if everywhere else self.patcher._at_answers
        x = at_answers(self.start.reads[half]).expand(len(own), 1, -1, -1, -1)
        if len(kept := np.flatnonzero(used & ~self.changed)):
            near = slice(kept[0], kept[-1] + 1)  # a view is cheaper than a choice of senders
            weights = w * torch.from_numpy(~self.changed).to(w)
            delta = at_answers(self.start.sent[near])
            x = x + torch.einsum("vrs,svbtd->rvbtd", weights[..., near], delta)
        for senders, sent, whole in self.sent:
            if used[senders].any():
                delta = at_answers(sent) if whole else sent
                x = x + torch.einsum("vrs,svbtd->rvbtd", w[..., senders], delta)
        if self.watch:  # from here on each receiver has a gradient of its own
            x = x[[own.index(r) for r in place]]
            x = x if x.requires_grad else x.requires_grad_()
            self.reads.append((rows, everywhere, x))
            return self.patcher._decoder.norms[half](x)
        x = self.patcher._decoder.norms[half](x)
        if len(own) == 1:
            return x.expand(len(rows), -1, -1, -1, -1)
        return x if len(own) == len(rows) else x[[own.index(r) for r in place]]

    def send(self, senders: np.ndarray, y: Tensor, everywhere: bool) -> None:
        """Notes what senders add (sender variant batch seq d_model), less what they add when corrupted."""
        c = take(self.start.corrupted, senders)[:, None]
        self.sent.append((senders, y - (c if everywhere else self.patcher._at_answers(c)), everywhere))
        self.changed[senders] = True

    def kept(self, variant: int) -> _Known:
        """One of the sets as a start; what the run itself started from is used up."""
        for senders, values, everywhere in self.sent:
            values = values[:, variant % values.shape[1]].detach()
            where = (senders, 0) if everywhere else (senders[:, None, None], 0, *self.patcher._answers)
            self.start.sent[where] = values
        return replace(self.start, edges=self.edges[variant])


@contextmanager
def _in_parts(subject: Subject) -> Iterator[None]:
    """Refuses models whose modules cannot be called one by one."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, StopIteration, TypeError) as error:
        raise LookupError(
            f"no graph of edges of {type(subject.model).__name__}: it could not be run in parts on these "
            f"prompts ({type(error).__name__}: {str(error)[:200]})"
        ) from error


def _check_inputs(
    subject: Subject, clean: Mapping, corrupted: Mapping | None, positions: Tensor, ablation: str
) -> None:
    """Refuses what cannot be patched."""
    if ablation not in ("corrupt", "zero"):
        raise ValueError(f"ablation={ablation!r}: expected 'corrupt' or 'zero'")
    if corrupted is None and ablation == "corrupt":
        raise ValueError("corrupted prompts are missing: give them, or ablation='zero'")
    if subject.model.training:
        raise ValueError("the model is in training mode, in which dropout draws anew: call model.eval()")
    shape, other = (x["input_ids"].shape for x in (clean, corrupted or clean))
    if other != shape:
        raise ValueError(
            f"clean prompts are {shape[0]} x {shape[1]} tokens, corrupted ones {other[0]} x {other[1]}: "
            "give each clean prompt a corrupted one of the same length"
        )
    ones = torch.ones(shape, device=subject.device)
    masks = [x.get("attention_mask", ones) for x in (clean, corrupted or clean)]
    for row in (masks[0] != masks[1]).any(1).nonzero()[:, 0].tolist():
        raise ValueError(
            f"clean prompt {row} has {int(masks[0][row].sum())} tokens, its corrupted one "
            f"{int(masks[1][row].sum())}: patching needs the same number"
        )
    bad = positions.ndim not in (1, 2) or len(positions) != shape[0] or positions.is_floating_point()
    if bad or not ((positions >= 0) & (positions < shape[1])).all():
        raise ValueError(
            f"positions: expected whole numbers from 0 to {shape[1] - 1}, one row for each of {shape[0]} "
            f"prompts; got {positions.tolist()}"
        )
