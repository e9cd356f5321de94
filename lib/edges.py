"""Edge patching: which connections between a decoder's heads, MLPs, embeddings and logits carry a behaviour.

    patcher = Patcher(subject, clean, corrupted, positions=answer)
    logits = patcher.logits(edges)                  # edges: variant receiver sender
    circuit = acdc(patcher, metric, tau=0.02)
    scores = patcher.attribution(metric)            # edge attribution patching

The residual stream is a sum, so what a receiver reads is a sum over senders. With R'_r what receiver r reads
in the corrupted run, c_s what sender s adds there and a_s what it adds in the patched run, the edges E give r

    x_r = R'_r + sum over (s, r) in E of (a_s - c_s)            (Conmy et al. 2023, section 3)

One masked product of matrices makes this sum for all receivers of a layer and all variants of E. The model's
own modules do the rest: norms, rotary positions, masks, attention, MLPs. What is computed is what can differ
from a circuit that was run before, in nodes that reach the logits; and only at the answers' positions if no
attention reads a node elsewhere.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby, product, takewhile
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

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
    """

    senders: tuple[Node, ...]
    receivers: tuple[Node, ...]
    exists: Bool[Tensor, "receiver sender"]

    @staticmethod
    def of(subject: Subject) -> "Graph":
        """The graph of a decoder.

        Raises:
            LookupError: what its heads add to the residual stream cannot be told apart.
        """
        layout, name = subject.layout, type(subject.model).__name__
        reason = ""
        if subject.tower_name != "text" or not subject.model.can_generate():
            reason = "it is no decoder"
        elif layout.family.attn_out:
            reason = "it normalises the sum of its heads' outputs, so that they do not add up"
        for site in ("resid_pre", "q", "k", "v", "z", "attn_out", "mlp_out", "resid_post"):
            reason = reason or (f"{site}: {layout.withheld[site]}" if site in layout.withheld else "")
        if reason:
            raise LookupError(f"no graph of edges of {name}: {reason}")
        parallel = "resid_mid" in layout.withheld
        senders, receivers = [Node("embed", -1)], []
        for layer in range(subject.n_layers):
            senders += [Node("head", layer, head) for head in range(subject.n_heads)]
            senders.append(Node("mlp", layer))
            receivers += [Node("q", layer, head) for head in range(subject.n_heads)]
            receivers += [Node("k", layer, head) for head in range(subject.n_kv_heads)]
            receivers += [Node("v", layer, head) for head in range(subject.n_kv_heads)]
            receivers.append(Node("mlp", layer))
        receivers.append(Node("logits", subject.n_layers))

        def feeds(sender: Node, receiver: Node) -> bool:
            own_layer = sender.kind == "head" and receiver.kind == "mlp" and not parallel
            return sender.layer < receiver.layer or (own_layer and sender.layer == receiver.layer)

        exists = torch.tensor([[feeds(sender, receiver) for sender in senders] for receiver in receivers])
        return Graph(tuple(senders), tuple(receivers), exists)

    @property
    def n_edges(self) -> int:
        """How many edges there are."""
        return int(self.exists.sum())

    def order(self, generator: torch.Generator | None = None) -> list[Edge]:
        """All edges in ACDC's order: receivers from the logits down, and for each its senders, latest first.

        In a layer the MLP comes before the v, then the k, then the q inputs (Conmy et al. 2023, their code).

        Args:
            generator: draws the order of a layer's heads, which is arbitrary; None for the highest first.
        """

        def ranks(nodes: Sequence[Node]) -> list[int]:
            rank = {kind: i for i, kind in enumerate(["embed", "q", "k", "v", "head", "mlp", "logits"])}
            draw = torch.rand(len(nodes), generator=generator).tolist()
            keys = [
                (node.layer, rank[node.kind], draw[i] if generator else node.head)
                for i, node in enumerate(nodes)
            ]
            return sorted(range(len(nodes)), key=keys.__getitem__, reverse=True)

        return [(r, s) for r in ranks(self.receivers) for s in ranks(self.senders) if self.exists[r, s]]


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


def _take(x: Tensor, indices: Sequence[int]) -> Tensor:
    """Some entries along the first axis; a view where they stand together."""
    first, last = int(indices[0]), int(indices[-1])
    return x[first : last + 1] if last - first + 1 == len(indices) else x[list(indices)]


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
        self._zero = ablation == "zero"
        self._positions = positions.to(subject.device).view(len(positions), -1)
        self._several = positions.ndim == 2
        self._model = _Model(subject, clean, clean if corrupted is None else corrupted)
        self._group = subject.n_heads // subject.n_kv_heads
        # Layer -> kind -> numbers of its receivers; of its senders.
        self._rows: list[dict[str, list[int]]] = [{} for _ in range(subject.n_layers)]
        self._sends: list[dict[str, list[int]]] = [{} for _ in range(subject.n_layers)]
        for i, node in enumerate(self.graph.receivers[:-1]):
            self._rows[node.layer].setdefault(node.kind, []).append(i)
        for i, node in enumerate(self.graph.senders[1:], 1):
            self._sends[node.layer].setdefault(node.kind, []).append(i)
        self.n_passes = 0.0
        self._references: dict[Heads, tuple[_Reference, _Reference]] = {}
        self._linear: Linear | None = None
        shape = (*positions.shape, -1)
        self.clean_logits, self.corrupted_logits = (
            self._at_answers(x).reshape(shape) for x in self._model.logits
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
            self._references.clear()

    def logits(
        self,
        edges: Bool[Tensor, "variant receiver sender"] | Float[Tensor, "variant receiver sender"],
        *,
        precise: Heads = frozenset(),
    ) -> Float[Tensor, "variant batch *n vocab"]:
        """Logits at the answer positions, for several sets of edges at once.

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
            return self._run(edges, self._nothing(self._model.embeds[0], precise)).logits

    def attribution(
        self, metric: Metric, *, steps: int = 1, precise: Heads = frozenset()
    ) -> Float[Tensor, "receiver sender"]:
        """Edge attribution patching: first-order estimates of `edge_effects`, for all edges together.

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
        clean, corrupted = self._model.embeds
        start = torch.zeros_like(clean) if self._zero else corrupted
        estimates = torch.zeros(self.graph.exists.shape, dtype=torch.float64)
        gradients: list[Tensor] = []
        for step in range(1, steps + 1):
            with torch.enable_grad():
                state = self._nothing(start + step / steps * (clean - start), precise)
                run = self._run(self.graph.exists[None], state, watch=True)
                found = torch.autograd.grad(metric(run.logits).sum(), [x for *_, x in run.reads])
            gradients = [a + b for a, b in zip(gradients, found, strict=True)] if gradients else list(found)
        # The last run was the clean one.
        for (rows, wide, _), gradient in zip(run.reads, gradients, strict=True):
            sent = run.sent_by_all(0)[wide].detach()
            estimates[rows] = -torch.einsum("rbtd,sbtd->rs", gradient[:, 0], sent).to(estimates) / steps
        return estimates.where(self.graph.exists, torch.nan)

    def _at_answers(self, x: Float[Tensor, "*axes batch seq d"]) -> Float[Tensor, "*axes batch n d"]:
        return x[..., torch.arange(x.shape[-3], device=x.device)[:, None], self._positions, :]

    def _most(self, edges: Bool[Tensor, "receiver sender"]) -> int:
        """How many sets of edges, with no more than the given ones, memory allows at once."""
        embed = self._model.embeds[0]
        limit = 2**27 if embed.device.type == "cpu" else 2**30
        return max(1, limit // (embed.numel() * (int(edges.any(0).sum()) + self._group)))

    def _queries(self, kind: str, head: int) -> list[int]:
        """The query heads that a head's q or o belongs to, or a key-value head's k or v."""
        return [head] if kind in "qo" else list(range(head * self._group, (head + 1) * self._group))

    def _nothing(self, embed: Float[Tensor, "batch seq d_model"], precise: Heads) -> "_State":
        """The state in which only the embedding has been computed."""
        precise = frozenset() if self._linear is None else precise
        if precise not in self._references:
            self._references = {precise: self._reference(precise)}
        return self._state(embed, precise, self._references[precise])

    def _state(
        self, embed: Tensor, precise: Heads, references: tuple["_Reference", "_Reference"]
    ) -> "_State":
        n_receivers, n_senders = self.graph.exists.shape
        sent = []
        for x, reference in zip((self._at_answers(embed), embed), references, strict=True):
            sent.append(x.new_zeros(n_senders, *x.shape))
            sent[-1][0] = x - reference.sent[0]
        has_sent = np.zeros(n_senders, int)
        has_sent[0] = 2
        edges = np.zeros((n_receivers, n_senders), np.float32)
        projected = {
            (layer, kind): embed.new_zeros(len(weight), *embed.shape[:2], weight.shape[1])
            for layer, own in enumerate(self._model.weights)
            for kind, (weight, _) in own.items()
            if kind != "o"
        }
        return _State(
            precise, references, edges, (sent[0], sent[1]), has_sent, projected, np.zeros(n_receivers, int)
        )

    @torch.no_grad()
    def _reference(self, precise: Heads) -> tuple["_Reference", "_Reference"]:
        """What senders add in the corrupted run and what receivers read there; at answers, and everywhere."""
        layout, corrupted = self._model.layout, self._model.embeds[1]
        biases, total = [], corrupted.new_zeros(1, 1, layout.d_model)
        for bias in self._model.out_biases:
            biases.append(total)
            total = total if bias is None else total + bias
            biases.append(biases[-1] if "resid_mid" in layout.withheld else total)
        biases.append(total)
        nothing = corrupted.new_zeros(len(self.graph.senders), 1, 1, 1)
        shapes = (self._at_answers(corrupted).shape, corrupted.shape)
        empty = tuple(_Reference(nothing, [x.expand(shape) for x in biases]) for shape in shapes)
        if self._zero:
            return empty[0], empty[1]
        run = self._run(self.graph.exists[None], self._state(corrupted, precise, (empty[0], empty[1])))
        first = [rows[kind][0] for rows in self._rows for kind in ("q", "mlp")] + [-1]
        exists = self.graph.exists[first].to(corrupted)
        both = [
            _Reference(sent, [*torch.einsum("rs,sbtd->rbtd", exists, sent) + torch.stack(biases)])
            for sent in run.sent_by_all(0)
        ]
        return both[0], both[1]

    def _needs(self, some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where receivers must be read, and senders known: 0 nowhere, 1 at the answers, 2 everywhere."""
        read, sent = (np.zeros(n, int) for n in some.shape)
        read[-1] = 1
        for rows, sends in zip(reversed(self._rows), reversed(self._sends), strict=True):
            for kind in ("mlp", "head"):
                own = sends[kind]
                sent[own] = (read[:, None] * some[:, own]).max(0)
                if kind == "mlp":
                    read[rows["mlp"]] = sent[own]
            read[rows["q"]] = sent[own]
            read[rows["k"]] = read[rows["v"]] = 2 * (sent[own].reshape(-1, self._group).max(1) > 0)
        return read, sent

    def _run(self, edges: Tensor, state: "_State", *, watch: bool = False) -> "_Run":
        """The patched run for some sets of edges: what differs from a state is computed.

        Args:
            edges: variant receiver sender.
            state: a circuit that was run before; the embedding is known at least.
            watch: keep what receivers read, each for itself, in the autograd graph.
        """
        exists, embed = self.graph.exists, self._model.embeds[0]
        host = edges.detach().cpu().float().numpy() * exists.numpy()
        # A weight of zero has a gradient, too.
        some = exists.numpy() if edges.requires_grad else (host != 0).any(0)
        need_read, need_sent = self._needs(some)
        weights = edges.to(embed) * exists.to(embed)
        run = _Run(state, host, some, weights, need_read, need_sent, watch)
        differs = (host != state.edges).any((0, 2))
        for layer, (rows, sends) in enumerate(zip(self._rows, self._sends, strict=True)):
            affected = differs | (some & run.changed).any(1) | (state.has_read < need_read)
            missing = need_sent > state.has_sent
            for kind in "qkv":
                run.computed[rows[kind]] = (affected & (need_read > 0))[rows[kind]]
            again = {
                h
                for kind in "qkv"
                for i, r in enumerate(rows[kind])
                if run.computed[r]
                for h in self._queries(kind, i)
            }
            heads = [h for h, s in enumerate(sends["head"]) if need_sent[s] and (h in again or missing[s])]
            if heads:
                self._attention(run, layer, heads)
            (r,), (s,) = rows["mlp"], sends["mlp"]
            affected = differs | (some & run.changed).any(1)
            mlp = bool(need_sent[s] and (missing[s] or affected[r]))
            if mlp:
                wide = int(need_sent[s]) - 1
                x = run.read([r], wide, 2 * layer + 1)[0].expand(len(edges), -1, -1, -1)
                self._send(run, [s], self._model.mlp(layer, x, self._linear)[None], wide)
            self.n_passes += len(edges) * (bool(heads) + mlp) / (2 * len(self._rows))
        x = run.read([len(exists) - 1], 0, -1)[0].expand(len(edges), -1, -1, -1)
        logits = self._model.unembed(x, self._linear)
        run.logits = logits if self._several else logits[:, :, 0]
        return run

    def _attention(self, run: "_Run", layer: int, heads: list[int]) -> None:
        """Computes some heads of a layer, from those of their inputs that are to be computed."""
        sends, norm = self._sends[layer]["head"], self._model.norms[layer]
        for kind, wide in product("qkv", (0, 1)):
            rows = self._rows[layer][kind]
            own = [i for i, r in enumerate(rows) if run.computed[r] and run.need_read[r] == wide + 1]
            if own:
                x = run.read([rows[i] for i in own], wide, 2 * layer, norm)
                y = self._project(x, kind, layer, own, run.state.precise)
                run.projected.setdefault((layer, kind), []).append((own, y if wide else self._spread(y)))
        z = self._model.attend(layer, run, heads)
        for wide in (0, 1):
            own = [h for h in heads if run.need_sent[sends[h]] == wide + 1]
            if own:
                x = _take(z, [heads.index(h) for h in own])
                y = self._project(x if wide else self._at_answers(x), "o", layer, own, run.state.precise)
                self._send(run, [sends[h] for h in own], y, wide)

    def _project(
        self,
        x: Float[Tensor, "head variant batch seq d_in"],
        kind: str,
        layer: int,
        heads: list[int],
        precise: Heads,
    ) -> Float[Tensor, "head variant batch seq d_out"]:
        """Some heads' projection."""
        weight, bias = self._model.weights[layer][kind]
        wanted = {head for own, head in precise if own == layer}
        full = [i for i, head in enumerate(heads) if wanted & set(self._queries(kind, head))]
        linear: Any = self._linear or full_precision
        y = linear(x.flatten(1, 3), weight, bias, kind=kind, layer=layer, heads=heads, precise=full)
        return y.unflatten(1, x.shape[1:4])

    def _spread(self, y: Float[Tensor, "*axes batch n d"]) -> Float[Tensor, "*axes batch seq d"]:
        """Puts values at the answer positions among zeros, which nothing will read."""
        full = y.new_zeros(*y.shape[:-2], self._model.embeds[0].shape[1], y.shape[-1])
        full[..., torch.arange(y.shape[-3], device=y.device)[:, None], self._positions, :] = y
        return full

    def _send(self, run: "_Run", senders: list[int], y: Tensor, wide: int) -> None:
        """Notes what senders add, less what they add in the corrupted run."""
        for i in (0, 1)[: wide + 1]:
            out = self._at_answers(y) if wide > i else y
            run.sent[i].append(senders, out - _take(run.state.references[i].sent, senders)[:, None])
        run.changed[senders] = True


@dataclass(frozen=True)
class _Reference:
    """The corrupted run: what senders add; what each half of each layer, and the logits, read."""

    sent: Float[Tensor, "sender batch seq d_model"]
    reads: list[Float[Tensor, "batch seq d_model"]]


@dataclass
class _State:
    """A circuit that was run: what of it is known, at the answers or everywhere.

    Attributes:
        precise: the heads in full precision.
        references: the corrupted run, at the answers and everywhere.
        edges: the circuit.
        sent: a_s - c_s, at the answers and everywhere: sender batch seq d_model.
        has_sent: where each sender's is known: 0 nowhere, 1 at the answers, 2 everywhere.
        projected: (layer, "q", "k" or "v") -> head batch seq d_head.
        has_read: likewise for the receivers.
    """

    precise: Heads
    references: tuple[_Reference, _Reference]
    edges: np.ndarray
    sent: tuple[Tensor, Tensor]
    has_sent: np.ndarray
    projected: dict[tuple[int, str], Tensor]
    has_read: np.ndarray


class _Sent:
    """What the senders that differ from a state add: sender variant batch seq d_model."""

    def __init__(self, room: int) -> None:
        self.senders: list[int] = []
        self.room = room
        self.parts: list[Tensor] = []

    def append(self, senders: list[int], values: Tensor) -> None:
        """Adds some senders."""
        n = len(self.senders)
        self.senders += senders
        if values.requires_grad:
            self.parts.append(values)
            return
        if not self.parts:
            self.parts = [values.new_empty(self.room, *values.shape[1:])]
        self.parts[0][n : n + len(senders)] = values

    def stacked(self) -> Tensor:
        """All of them."""
        if len(self.parts) > 1:
            self.parts = [torch.cat(self.parts)]
        return self.parts[0][: len(self.senders)]


class _Run:
    """A patched run of several sets of edges, as far as it differs from a state."""

    logits: Tensor

    def __init__(
        self,
        state: _State,
        edges: np.ndarray,
        some: np.ndarray,
        weights: Tensor,
        need_read: np.ndarray,
        need_sent: np.ndarray,
        watch: bool,
    ) -> None:
        self.state, self.edges, self.some, self.weights = state, edges, some, weights
        self.need_read, self.need_sent, self.watch = need_read, need_sent, watch
        self.changed = np.zeros(len(need_sent), bool)  # senders
        self.computed = np.zeros(len(need_read), bool)  # q, k and v inputs
        # At the answers; everywhere.
        self.sent = (_Sent(int((need_sent > 0).sum())), _Sent(int((need_sent > 1).sum())))
        self.projected: dict[tuple[int, str], list[tuple[list[int], Tensor]]] = {}
        self.reads: list[tuple[list[int], int, Tensor]] = []

    def read(
        self, rows: list[int], wide: int, half: int, norm: Callable[[Tensor], Tensor] | None = None
    ) -> Float[Tensor, "row variant batch seq d_model"]:
        """What receivers read; one variant stands for all if they agree. Equal rows are computed once."""
        first: dict[Any, int] = {}
        apart = self.watch or self.weights.requires_grad  # each row has gradients of its own
        place = [first.setdefault(r if apart else self.edges[:, r].tobytes(), r) for r in rows]
        own = list(first.values())
        edges, weights = self.edges[:, own], self.weights[:, own]
        if (edges == edges[:1]).all() and not weights.requires_grad:
            weights = weights[:1]
        used = self.some[own].any(0)
        kept, new = np.flatnonzero(used & ~self.changed), self.sent[wide]
        base = self.state.references[wide].reads[half]
        if len(kept):
            near = slice(kept[0], kept[-1] + 1)
            w = weights[..., near]
            if self.changed[near].any():
                w = w * torch.from_numpy(~self.changed[near]).to(w)
            base = base + torch.einsum("vrs,sbtd->rvbtd", w, self.state.sent[wide][near])
        if (used & self.changed).any():
            w, s = weights[..., new.senders], new.stacked()
            x = torch.einsum("vrs,svbtd->rvbtd" if len(w) > 1 else "xrs,svbtd->rvbtd", w, s)
            x = x + base if x.requires_grad or base.requires_grad else x.add_(base)
        else:
            x = base
        if x.ndim == 3:
            x = x.expand(len(own), 1, -1, -1, -1)
        if self.watch:
            x = x if x.requires_grad else x.requires_grad_()
            self.reads.append((rows, wide, x))
        x = x if norm is None else norm(x)
        if len(own) == len(rows):
            return x
        return x.expand(len(rows), -1, -1, -1, -1) if len(own) == 1 else x[[own.index(r) for r in place]]

    def known(
        self, layer: int, site: str, heads: list[int]
    ) -> Float[Tensor, "head variant batch seq d_head"]:
        """Projected q, k or v of some heads: as computed here, or as the state has them."""
        n, parts = len(self.edges), self.projected.get((layer, site), [])
        if len(parts) == 1 and parts[0][0] == heads:
            return parts[0][1].expand(-1, n, -1, -1, -1)
        rows: list[Tensor] = [self.state.projected[layer, site][h].expand(n, -1, -1, -1) for h in heads]
        for own, y in parts:
            for h, values in zip(own, y, strict=True):
                rows[heads.index(h)] = values.expand(n, -1, -1, -1)
        return torch.stack(rows)

    def sent_by_all(self, variant: int) -> tuple[Tensor, Tensor]:
        """a_s - c_s of every sender in one of the sets, at the answers and everywhere."""
        both = []
        for old, new in zip(self.state.sent, self.sent, strict=True):
            old = old.clone()
            if new.senders:
                old[new.senders] = new.stacked()[:, variant]
            both.append(old)
        return both[0], both[1]

    def keep(self, variant: int) -> None:
        """Makes one of the sets the state."""
        state = self.state
        state.edges = self.edges[variant]
        for old, new in zip(state.sent, self.sent, strict=True):
            if new.senders:
                old[new.senders] = new.stacked()[:, variant]
        state.has_sent = np.where(self.changed, self.need_sent, state.has_sent) * (self.need_sent > 0)
        state.has_sent[0] = 2
        state.has_read = np.where(self.computed, self.need_read, state.has_read) * (self.need_read > 0)
        for where, parts in self.projected.items():
            for heads, y in parts:
                state.projected[where][heads] = y[:, min(variant, y.shape[1] - 1)]


class _Seen:
    """What one run of the library's model showed: arguments, norms before attention, modules after blocks."""

    embed: Tensor
    logits: Tensor

    def __init__(self) -> None:
        self.blocks: list[tuple[tuple, dict]] = []
        self.attention: list[tuple[tuple, dict]] = []
        self.norms: list[nn.Module | None] = []
        self.tail: list[nn.Module] = []


class _Model:
    """A decoder in parts, which are its own modules.

    Attributes:
        layout: where its sites are.
        embeds: the residual stream that enters the first block: clean, corrupted.
        logits: by the library, at all positions: clean, corrupted.
        norms: what stands before each layer's attention.
        weights: layer -> "q", "k", "v" or "o" -> weight (head d_out d_in) and bias.
        out_biases: of the attention's output projections.
    """

    def __init__(
        self, subject: Subject, clean: Mapping[str, Tensor], corrupted: Mapping[str, Tensor]
    ) -> None:
        self.layout, self._net = subject.layout, subject.model
        # Qwen's positions are (kind, batch, seq).
        axes = {name: int(name == "position_ids" and x.ndim == 3) for name, x in clean.items()}
        both = {name: torch.cat([x, corrupted[name]], axes[name]) for name, x in clean.items()}
        with torch.no_grad():
            one, two = self._watched(clean), self._watched(both)
        n = len(clean["input_ids"])
        self.embeds, self.logits = (one.embed, two.embed[n:]), (one.logits, two.logits[n:])
        self.norms, self._tail, self._blocks = one.norms, one.tail, one.blocks
        self._attention = [_growing(a, b) for a, b in zip(one.attention, two.attention, strict=True)]
        self._repeats: dict[int, dict[int, Tensor]] = {}
        self.weights: list[dict[str, tuple[Tensor, Tensor | None]]] = []
        self.out_biases: list[Tensor | None] = []
        for layer in range(len(self.layout.blocks)):
            own: dict[str, tuple[Tensor, Tensor | None]] = {}
            for site in "qkv":
                point = self._point(site, layer)
                weight, bias = _matrix(point.module)
                own[site] = (
                    point.view(weight.mT).permute(1, 2, 0),
                    None if bias is None else point.view(bias[None])[0],
                )
            weight, bias = _matrix(self._point("z", layer).module)
            own["o"] = weight.unflatten(1, (self.layout.n_heads, -1)).transpose(0, 1), None
            self.weights.append(own)
            self.out_biases.append(bias)
        self._alike = all(self._heads_are_alike(layer) for layer in range(len(self.layout.blocks)))

    @torch.no_grad()
    def _heads_are_alike(self, layer: int) -> bool:
        """Whether attention does the same in all heads (no ALiBi, no sinks), so that they can swap places."""
        draw = torch.Generator().manual_seed(0)
        batch, seq, _ = self.embeds[0].shape
        inputs = {}
        for site, n in zip("qkv", (self.layout.n_heads, *[self.layout.n_kv_heads] * 2), strict=True):
            x = torch.randn(1, batch, seq, n, self.layout.d_head, generator=draw)
            inputs[site] = x.to(self.embeds[0])
        group = self.layout.n_heads // self.layout.n_kv_heads
        rolled = {site: x.roll(group if site == "q" else 1, 3) for site, x in inputs.items()}
        z, z_rolled = self._attended(layer, inputs), self._attended(layer, rolled)
        return torch.allclose(z.roll(group, 3), z_rolled, rtol=1e-3, atol=1e-3, equal_nan=True)

    def _point(self, site: str, layer: int) -> Any:
        return self.layout.point(site, layer)

    def _watched(self, inputs: Mapping[str, Tensor]) -> _Seen:
        layout, seen = self.layout, _Seen()
        outputs: list[tuple[nn.Module, Any]] = []

        def on_block(module: nn.Module, args: tuple, kwargs: dict) -> None:
            hidden, rest = _arguments(args, kwargs)
            if not seen.blocks:
                seen.embed = hidden
            seen.blocks.append(rest)

        def on_attention(module: nn.Module, args: tuple, kwargs: dict) -> None:
            hidden, rest = _arguments(args, kwargs)
            seen.attention.append(rest)
            seen.norms.append(next((child for child, output in outputs if output is hidden), None))
            outputs.clear()

        def on_child(module: nn.Module, args: tuple, output: Any) -> None:
            outputs.append((module, output))

        def on_tail(module: nn.Module, args: tuple, output: Any) -> None:
            if len(seen.blocks) == len(layout.blocks):
                seen.tail.append(module)

        with ExitStack() as stack:
            for layer, block in enumerate(layout.blocks):
                hooks = [block.register_forward_pre_hook(on_block, with_kwargs=True)]
                hooks.append(
                    layout.attention(layer).register_forward_pre_hook(on_attention, with_kwargs=True)
                )
                hooks += [child.register_forward_hook(on_child) for child in block.children()]
                for hook in hooks:
                    stack.callback(hook.remove)
            for child in layout.owner.children():
                stack.callback(child.register_forward_hook(on_tail).remove)
            seen.logits = self._net(**inputs, use_cache=False).logits
        return seen

    def attend(
        self, layer: int, run: _Run, heads: list[int]
    ) -> Float[Tensor, "head variant batch seq d_head"]:
        """Some heads' outputs z."""
        layout, n = self.layout, len(run.edges)
        size = layout.n_heads // layout.n_kv_heads
        groups = sorted({head // size for head in heads}) if self._alike else list(range(layout.n_kv_heads))
        n_full = -(-n * len(groups) // layout.n_kv_heads)
        slots = {}
        for site in "qkv":
            own = [g * size + i for g in groups for i in range(size)] if site == "q" else groups
            x = run.known(layer, site, own).unflatten(
                0, (len(groups), -1)
            )  # group own variant batch seq d_head
            x = x.permute(2, 0, 3, 4, 1, 5).flatten(0, 1)  # slot batch seq own d_head
            if n_full * layout.n_kv_heads > len(x):
                x = torch.cat([x, x.new_zeros(n_full * layout.n_kv_heads - len(x), *x.shape[1:])])
            x = x.unflatten(0, (n_full, layout.n_kv_heads)).permute(0, 2, 3, 1, 4, 5)
            slots[site] = x.flatten(3, 4)  # variant batch seq head d_head
        z = self._attended(layer, slots).unflatten(3, (layout.n_kv_heads, size))
        z = z.permute(0, 3, 1, 2, 4, 5).flatten(0, 1)[: n * len(groups)].unflatten(0, (n, len(groups)))
        z = z.permute(1, 4, 0, 2, 3, 5).flatten(0, 1)  # head variant batch seq d_head
        return _take(z, [groups.index(head // size) * size + head % size for head in heads])

    def _attended(
        self, layer: int, inputs: dict[str, Float[Tensor, "variant batch seq head d_head"]]
    ) -> Float[Tensor, "variant batch seq head d_head"]:
        """The library's attention, from its projections' outputs to the input of its output projection."""
        layout = self.layout
        n, batch, seq = inputs["q"].shape[:3]
        outputs: dict[nn.Module, Tensor] = {}
        for site, x in inputs.items():
            point = self._point(site, layer)
            if not point.partial:
                outputs[point.module] = x.flatten(3).flatten(0, 1)
                continue
            if point.module not in outputs:
                outputs[point.module] = x.new_empty(n * batch, seq, len(_matrix(point.module)[0]))
            point.view(outputs[point.module]).copy_(x.flatten(0, 1))
        given: dict[nn.Module, Callable] = {module: lambda *_, y=y: y for module, y in outputs.items()}
        given[self._point("z", layer).module] = lambda z: z
        args, kwargs = self._arguments(layer, n)
        hidden = self.embeds[0].new_zeros(()).expand(n * batch, seq, layout.d_model)
        if layout.family.mid.startswith(">"):  # it adds the residual stream, its second argument, by itself
            args = (hidden, *args[1:])
        with _computing(given):
            z = layout.attention(layer).forward(hidden, *args, **kwargs)
        return (z[0] if isinstance(z, tuple) else z).view(n, batch, seq, layout.n_heads, layout.d_head)

    def _arguments(self, layer: int, n: int) -> tuple[tuple, dict]:
        """What the model passes to a layer's attention, for n variants of the batch."""
        if n not in self._repeats:
            self._repeats = {n: {}}  # one at a time: masks are large
        seen = self._repeats[n]
        return _repeated(self._attention[layer], n, seen)

    def mlp(self, layer: int, x: Float[Tensor, "variant batch seq d_model"], linear: Linear | None) -> Tensor:
        """What an MLP adds: its whole block is run, with an attention that adds nothing."""
        layout = self.layout
        block, attention, adds_residual = (
            layout.blocks[layer],
            layout.attention(layer),
            layout.family.mid.startswith(">"),
        )

        def nothing(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
            return (args[0] if adds_residual else torch.zeros_like(hidden_states)), None

        given: dict[nn.Module, Callable] = {attention: nothing}
        if linear is not None:
            inside = set(attention.modules())
            for module in block.modules():
                if module not in inside and (hasattr(module, "in_features") or hasattr(module, "nf")):
                    given[module] = partial(_linearly, linear, module, "mlp", layer)
        added: list[Any] = []
        point = self._point("mlp_out", layer)
        args, kwargs = self._blocks[layer]
        with ExitStack() as stack:
            stack.enter_context(_computing(given))
            hook = point.module.register_forward_hook(lambda module, args, output: added.append(output))
            stack.callback(hook.remove)
            block(x.flatten(0, 1), *args, **kwargs)
        return (added[0][0] if isinstance(added[0], tuple) else added[0]).reshape(x.shape)

    def unembed(
        self, x: Float[Tensor, "variant batch n d_model"], linear: Linear | None
    ) -> Float[Tensor, "variant batch n vocab"]:
        """Logits of what the last block leaves."""
        for module in self._tail:
            x = module(x)
        head: Any = self._net.get_output_embeddings()
        return head(x) if linear is None else _linearly(linear, head, "unembed", len(self.layout.blocks), x)


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


def _arguments(args: tuple, kwargs: dict) -> tuple[Tensor, tuple[tuple, dict]]:
    """The hidden states, and the other arguments."""
    if args:
        return args[0], (args[1:], kwargs)
    return kwargs["hidden_states"], ((), {key: x for key, x in kwargs.items() if key != "hidden_states"})


def _growing(one: Any, two: Any) -> Any:
    """Arguments with each tensor paired with the axis that grows with the batch, or None."""
    if isinstance(one, Tensor):
        axes = [i for i, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b]
        return _Growing(one, axes[0] if axes else None)
    if isinstance(one, (tuple, list)):
        return tuple(_growing(a, b) for a, b in zip(one, two, strict=True))
    return {name: _growing(x, two[name]) for name, x in one.items()} if isinstance(one, dict) else one


@dataclass(frozen=True)
class _Growing:
    tensor: Tensor
    axis: int | None


def _repeated(value: Any, n: int, seen: dict[int, Tensor]) -> Any:
    """The arguments of a batch, for n variants of it; layers that share one share the repeated one, too."""
    if isinstance(value, _Growing):
        if value.axis is None or n == 1:
            return value.tensor
        key = id(value.tensor)
        if key not in seen:
            seen[key] = torch.cat([value.tensor] * n, value.axis)
        return seen[key]
    if isinstance(value, tuple):
        return tuple(_repeated(x, n, seen) for x in value)
    if isinstance(value, dict):
        return {name: _repeated(x, n, seen) for name, x in value.items()}
    return value


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
    on_step: Callable[[int], object] | None = None,
) -> Circuit:
    """Automatic circuit discovery (Conmy et al. 2023, algorithm 1), exact as if edges were tested one by one.

    Each edge in turn is cut; it stays cut if the metric rises by less than tau. A node whose output nothing
    reads any more loses the edges into it without a test.

    Args:
        patcher: model and prompts.
        metric: what is to stay small, such as the divergence from `patcher.clean_logits`.
        tau: the threshold, in the metric's units.
        order: all edges, in the order in which they are tested; None for `Graph.order()`.
        precise: (sender, receiver) -> heads in full precision while that edge is tested; the metric of the
            circuit is measured again whenever they change. None for the receiver's head.
        speculate: test a receiver's edges together, each as if the guesses about the earlier ones were right,
            and go back to the first that was wrong. The result is the same.
        on_step: called with the number of edges just decided.

    Raises:
        ValueError: tau is not positive, or the order does not name each edge once.
    """
    graph = patcher.graph
    if not tau > 0:
        raise ValueError(f"tau={tau}: the threshold must be positive, in units of the metric")
    order = graph.order() if order is None else list(order)
    if sorted(order) != sorted(map(tuple, graph.exists.nonzero().tolist())):
        raise ValueError(f"the order must name each of the {graph.n_edges} edges once")
    if precise is None:

        def precise(sender: Node, receiver: Node) -> Heads:
            queries = patcher._queries(receiver.kind, receiver.head) if receiver.kind in "qkv" else []
            return frozenset((receiver.layer, head) for head in queries)

    search, before = _Search(patcher, metric, tau, speculate), patcher.n_passes

    def together(edge: Edge) -> tuple:
        """Edges may be tested in one run if they end in one half of one layer, at the same precision."""
        receiver = graph.receivers[edge[0]]
        return receiver.layer, receiver.kind in "qkv", precise(graph.senders[edge[1]], receiver)

    for (*_, heads), run in groupby(order, together):
        edges = list(run)
        while edges:
            n = search.decide(edges, heads)
            edges = edges[n:]
            if on_step is not None:
                on_step(n)
    return Circuit(
        search.edges, search.effects, search.current, search.n_evaluated, patcher.n_passes - before
    )


class _Search:
    """ACDC on its way: the circuit as it is, its metric, and guesses at what comes."""

    def __init__(self, patcher: Patcher, metric: Metric, tau: float, speculate: bool) -> None:
        self.patcher, self.metric, self.tau, self.speculate = patcher, metric, tau, speculate
        self.edges = patcher.graph.exists.clone()
        self.effects = torch.full(self.edges.shape, torch.nan, dtype=torch.float64)
        self.current = float("nan")
        self.n_evaluated = 0
        self.state: _State | None = None
        self.asked: Heads | None = None
        self.wrong = 0.2  # how often a guess is
        self.guesses: dict[Edge, bool] = {}
        self.before: dict[tuple[str, int], bool] = {}
        graph = patcher.graph
        self.outputs = {(node.layer, node.head): s for s, node in enumerate(graph.senders)}

    def is_read(self, receiver: Node) -> bool:
        """Whether anything reads what a receiver's node sends."""
        if receiver.kind == "logits":
            return True
        own = self.patcher._queries(receiver.kind, receiver.head) if receiver.kind in "qkv" else [-1]
        return bool(self.edges[:, [self.outputs[receiver.layer, head] for head in own]].any())

    def decide(self, edges: list[Edge], heads: Heads) -> int:
        """Decides about the first of some edges; returns about how many."""
        receivers = self.patcher.graph.receivers
        if not self.is_read(receivers[edges[0][0]]):
            n = next((i for i, (r, _) in enumerate(edges) if r != edges[0][0]), len(edges))
            for r, s in edges[:n]:
                self.edges[r, s] = False
            return n
        if self.state is None or (heads != self.asked and self.patcher._linear is not None):
            self.state, self.asked = self.patcher._nothing(self.patcher._model.embeds[0], heads), heads
            run = self.patcher._run(self.edges[None], self.state)
            self.current = self.metric(run.logits).tolist()[0]
            run.keep(0)
            self.n_evaluated += 1

        # Tests after a wrong guess are wasted; a run costs about as much as two tests whatever their number.
        width = max(2, min(64, round(2 / max(self.wrong, 1e-3) ** 0.5)))
        width = min(width, self.patcher._most(self.edges)) if self.speculate else 1
        tried = list(takewhile(lambda edge: self.is_read(receivers[edge[0]]), edges[:width]))
        guesses = [self.guess(edge) for edge in tried]
        path, sets = self.edges, self.edges.repeat(len(tried), 1, 1)
        for i, (r, s) in enumerate(tried):
            sets[i] = path
            sets[i, r, s] = False
            path = sets[i] if guesses[i] else path
        run = self.patcher._run(sets, self.state)
        values = self.metric(run.logits).tolist()
        self.n_evaluated += len(tried)

        last, n, along = -1, len(tried), self.current  # the metric along the guessed path
        for i, (edge, value, guess) in enumerate(zip(tried, values, guesses, strict=True)):
            cut = value - along < self.tau
            self.guesses[edge] = cut
            if i < n:
                self.effects[edge] = value - along
                self.before[receivers[edge[0]].kind, edge[1]] = cut
                if cut:
                    last = i
                if cut != guess:
                    n = i + 1
            along = value if guess else along
        if last >= 0:
            self.edges, self.current = sets[last], values[last]
            run.keep(last)
        wrong = guesses[n - 1] != self.guesses[tried[n - 1]]
        self.wrong = 0.8 * self.wrong + 0.2 * wrong / n
        return n

    def guess(self, edge: Edge) -> bool:
        """Whether an edge will be cut: as in a run that went wrong before it; as the sender's last one."""
        kind = self.patcher.graph.receivers[edge[0]].kind
        return self.guesses.get(edge, self.before.get((kind, edge[1]), True))


@torch.no_grad()
def edge_effects(
    patcher: Patcher, metric: Metric, *, precise: Heads = frozenset()
) -> Float[Tensor, "receiver sender"]:
    """By how much the metric rises when each edge alone is cut; NaN where there is no edge."""
    exists = patcher.graph.exists
    state = patcher._nothing(patcher._model.embeds[0], precise)
    run = patcher._run(exists[None], state)
    whole = metric(run.logits)[0]
    run.keep(0)
    effects = torch.full(exists.shape, torch.nan, dtype=torch.float64)
    for r, row in enumerate(exists):
        for senders in row.nonzero()[:, 0].split(patcher._most(exists)):
            sets = exists.repeat(len(senders), 1, 1)
            sets[torch.arange(len(senders)), r, senders] = False
            values = metric(patcher._run(sets, state).logits)
            effects[r, senders] = (values - whole).to(effects)
    return effects
