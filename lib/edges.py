"""Edge patching: which connections between a decoder's heads, MLPs, embeddings and logits carry a behaviour.

    patcher = Patcher(subject, clean, corrupted, positions=answer)
    logits = patcher.logits(edges)                  # edges: variant receiver sender
    circuit = acdc(patcher, metric, tau=0.02)
    scores = patcher.attribution(metric)            # edge attribution patching

The residual stream is a sum, so what a receiver reads is a sum over senders. With R'_r what receiver r reads
in the corrupted run, c_s what sender s adds there and a_s what it adds in the patched run, the edges E give r

    x_r = R'_r + sum over (s, r) in E of (a_s - c_s)            (Conmy et al. 2023, section 3)

One masked product of matrices makes this sum for all receivers of a layer and all variants of E. The library's
own modules do the rest: norms, rotary positions, masks, attention and MLPs are those of the model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.models import Subject

Heads = frozenset[tuple[int, int]]
"""Attention heads, as pairs (layer, query head)."""

Edge = tuple[int, int]
"""An edge, as the numbers of its receiver and of its sender in `Graph.receivers` and `Graph.senders`."""

Metric = Callable[[Float[Tensor, "variant batch *n vocab"]], Float[Tensor, "variant"]]
"""What a circuit is judged by: smaller is better."""


@dataclass(frozen=True)
class Node:
    """What sends into the residual stream, or reads it.

    Attributes:
        kind: a sender is "embed", "head" or "mlp"; a receiver is the "q", "k" or "v" input of a head, "mlp" or
            "logits".
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

        In a layer the MLP comes before the v, then the k, then the q inputs (Conmy et al. 2023, released code).

        Args:
            generator: draws the order of the heads of a layer, which is arbitrary; None for the highest first.
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
    if heads is not None and len(heads) < len(weight):
        weight, bias = weight[heads], None if bias is None else bias[heads]
    y = x @ weight.mT
    return y if bias is None else y + bias[..., None, :]


class Patcher:
    """Runs a decoder on clean prompts in which only some edges carry what the patched run computes.

    Attributes:
        graph: the decoder's nodes and edges.
        clean_logits: the model's own logits at the answer positions, by the library.
        corrupted_logits: the same for the corrupted prompts; under zero ablation, with all edges absent.
    """

    def __init__(
        self,
        subject: Subject,
        clean: Mapping[str, Tensor],
        corrupted: Mapping[str, Tensor] | None = None,
        *,
        positions: Int[Tensor, "batch *n"],
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
        self._subject, self._layout = subject, subject.layout
        self._linear: Linear = linear or full_precision
        self._custom = linear is not None
        if ablation not in ("corrupt", "zero"):
            raise ValueError(f"ablation={ablation!r}: expected 'corrupt' or 'zero'")
        if corrupted is None and ablation == "corrupt":
            raise ValueError("corrupted prompts are missing: give them, or ablation='zero'")
        corrupted = clean if corrupted is None else corrupted
        if subject.model.training:
            raise ValueError(
                "the model is in training mode, where dropout draws anew: call model.eval() first"
            )
        shape = clean["input_ids"].shape
        if corrupted["input_ids"].shape != shape:
            raise ValueError(
                f"clean prompts are {shape[0]} x {shape[1]} tokens, corrupted ones "
                f"{' x '.join(map(str, corrupted['input_ids'].shape))}: each clean prompt needs a corrupted "
                "one of the same length"
            )
        masks = [
            x.get("attention_mask", torch.ones(shape, device=subject.device)) for x in (clean, corrupted)
        ]
        if not torch.equal(masks[0].bool(), masks[1].bool()):
            row = int((masks[0].bool() != masks[1].bool()).any(1).nonzero()[0])
            raise ValueError(
                f"prompt {row} has {int(masks[0][row].sum())} tokens, its corrupted partner "
                f"{int(masks[1][row].sum())}: patching needs the same number"
            )
        positions = positions.to(subject.device)
        if positions.ndim not in (1, 2) or len(positions) != shape[0] or positions.is_floating_point():
            raise ValueError(
                f"positions have shape {tuple(positions.shape)}: expected whole numbers, one row for each of "
                f"the {shape[0]} prompts"
            )
        if not ((positions >= 0) & (positions < shape[1])).all():
            raise ValueError(f"positions run from 0 to {shape[1] - 1}; got {positions.tolist()}")
        self._several = positions.ndim == 2
        self._positions = positions.view(shape[0], -1)
        self._observe(clean, corrupted)
        self._split()
        self._zero = ablation == "zero"
        self._caches: dict[Heads, Any] = {}
        self._check()
        if self._zero:
            self.corrupted_logits = self.logits(torch.zeros_like(self.graph.exists)[None])[0]

    def logits(
        self,
        edges: Bool[Tensor, "variant receiver sender"] | Float[Tensor, "variant receiver sender"],
        *,
        precise: Heads = frozenset(),
    ) -> Float[Tensor, "variant batch *n vocab"]:
        """Logits at the answer positions, for several sets of edges at once.

        Args:
            edges: what is present. Weights between 0 and 1 mix the two values that an edge can carry; gradients
                reach them if they require any.
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
            present = edges.to(self._embed) * self.graph.exists.to(self._embed)
            return self._run(present, self._embed, precise)[0]

    def attribution(
        self, metric: Metric, *, steps: int = 1, precise: Heads = frozenset()
    ) -> Float[Tensor, "receiver sender"]:
        """Edge attribution patching: first-order estimates of `edge_effects`, for all edges together.

        The estimate for an edge from s to r is the sum over prompts, positions and dimensions of
        (c_s - a_s) dF/dx_r (Syed et al. 2023), where the gradient is that of the clean run, or its mean over
        `steps` runs whose embeddings lead from the corrupted ones (left out) to the clean ones (Hanna et al.
        2024, EAP-IG). It has a sign; rankings take its absolute value. A metric that is least in the clean run,
        such as a divergence from it, has no gradient there: take several steps, or another metric.

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
        every = self.graph.exists.to(self._embed)[None]
        start = torch.zeros_like(self._embed) if self._zero else self._corrupted_embed
        total: Any = 0
        for step in range(1, steps + 1):
            reads: list[Tensor] = []
            with torch.enable_grad():
                embed = start + step / steps * (self._embed - start)
                logits, sent = self._run(every, embed, precise, reads=reads)
                gradients = torch.autograd.grad(metric(logits).sum(), reads)
            total = total + torch.cat(gradients)[:, 0] / steps
        estimates = -torch.einsum("rbtd,sbtd->rs", total, sent.detach()[:, 0]).cpu()
        return estimates.where(self.graph.exists, torch.nan)

    @torch.no_grad()
    def _observe(self, clean: Mapping[str, Tensor], corrupted: Mapping[str, Tensor]) -> None:
        """What the library passes to its modules, and which norm stands where."""
        first = self._watched(clean)
        both = self._watched(
            {
                # Qwen's positions are (kind, batch, seq).
                name: torch.cat([x, corrupted[name]], int(name == "position_ids" and x.ndim == 3))
                for name, x in clean.items()
            }
        )
        n = len(self._positions)
        self._norms, self._tail = first.norms, first.tail
        self._blocks = first.blocks
        self._attention = [
            _doubled(one, two) for one, two in zip(first.attention, both.attention, strict=True)
        ]
        self._embed = first.embed
        self._corrupted_embed = both.embed[n:]
        self.clean_logits = self._answers(first.logits)
        self.corrupted_logits = self._answers(both.logits[n:])

    def _answers(self, x: Float[Tensor, "batch seq d"]) -> Float[Tensor, "batch *n d"]:
        """What stands at the answer positions."""
        found = x[torch.arange(len(x), device=x.device)[:, None], self._positions]
        return found if self._several else found[:, 0]

    def _watched(self, inputs: Mapping[str, Tensor]) -> "_Seen":
        """Runs the model and notes the arguments of its blocks and attention modules."""
        blocks, layout = list(self._layout.blocks), self._layout
        seen = _Seen()
        outputs: dict[int, nn.Module] = {}
        handles = []

        def on_block(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if not seen.blocks:
                seen.embed = args[0] if args else kwargs["hidden_states"]
            seen.blocks.append((args[1:], _without_hidden(kwargs)))

        def on_attention(module: nn.Module, args: tuple, kwargs: dict) -> None:
            seen.attention.append((args[1:], _without_hidden(kwargs)))
            hidden = args[0] if args else kwargs["hidden_states"]
            seen.norms.append(outputs.get(id(hidden)))
            outputs.clear()

        def on_child(module: nn.Module, args: tuple, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[id(output)] = module
                seen.kept.append(output)  # or its id could be another tensor's

        def on_tail(module: nn.Module, args: tuple, output: Any) -> None:
            if len(seen.blocks) == len(blocks):
                seen.tail.append(module)

        for layer, block in enumerate(blocks):
            handles.append(block.register_forward_pre_hook(on_block, with_kwargs=True))
            handles.append(layout.attention(layer).register_forward_pre_hook(on_attention, with_kwargs=True))
            handles += [child.register_forward_hook(on_child) for child in block.children()]
        handles += [
            child.register_forward_hook(on_tail)
            for child in layout.owner.children()
            if child is not blocks and not isinstance(child, nn.ModuleList)
        ]
        try:
            seen.logits = self._subject.model(**inputs, use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()
        seen.kept.clear()
        return seen

    def _split(self) -> None:
        """Views of the attention's weights, head by head."""
        layout = self._layout
        self._weights: list[dict[str, tuple[Tensor, Tensor | None]]] = []
        self._bias: list[Tensor | None] = []
        for layer in range(len(layout.blocks)):
            own = {}
            for site in "qkv":
                point = layout.point(site, layer)
                weight, bias = _matrix(point.module)
                # [d_in, heads, d_head] -> [heads, d_head, d_in]
                own[site] = (
                    point.view(weight.mT).permute(1, 2, 0),
                    None if bias is None else point.view(bias[None])[0],
                )
            point = layout.point("z", layer)
            weight, bias = _matrix(point.module)
            own["o"] = (weight.unflatten(1, (layout.n_heads, layout.d_head)).transpose(0, 1), None)
            self._weights.append(own)
            self._bias.append(bias)

    @torch.no_grad()
    def _check(self) -> None:
        """Compares the graph with all its edges with the model."""
        linear, custom = self._linear, self._custom
        self._linear, self._custom = full_precision, False
        every = self.logits(self.graph.exists[None])[0]
        self._linear, self._custom = linear, custom
        self._caches.clear()
        off = float((every - self.clean_logits).abs().max() / self.clean_logits.abs().max())
        half = self._embed.dtype in (torch.bfloat16, torch.float16)
        if not off < (0.1 if half else 1e-3):
            raise LookupError(
                f"no graph of edges of {type(self._subject.model).__name__}: with all edges present its logits "
                f"are off by {off:.2g} of the largest, so that something adds to or scales the residual stream "
                "beside embedding, heads and MLPs"
            )

    def _reference(self, precise: Heads) -> "_Reference":
        """What senders add in the corrupted run, and what every receiver reads there."""
        if precise not in self._caches:
            self._caches = {precise: self._corrupted_run(precise)}
        return self._caches[precise]

    def _corrupted_run(self, precise: Heads) -> "_Reference":
        layout, embed = self._layout, self._embed
        n_layers = len(layout.blocks)
        bias = torch.zeros_like(embed[:1, :1, :1].expand(1, 1, 1, embed.shape[-1]).squeeze(0))
        reads: list[Tensor] = []
        for layer in range(n_layers):
            reads.append(bias)
            own = self._bias[layer]
            bias = bias if own is None else bias + own
            reads.append(reads[-1] if "resid_mid" in layout.withheld else bias)
        reads.append(bias)
        zero = _Reference(torch.zeros_like(embed[:0]), reads)
        if self._zero:
            return zero
        every = self.graph.exists.to(embed)[None]
        with torch.no_grad():
            _, sent = self._run(every, self._corrupted_embed, precise, zero)
        sent = sent[:, 0]
        reads = []
        for i, old in enumerate(zero.reads):
            layer, half = divmod(i, 2)
            name = (
                Node("logits", n_layers)
                if layer == n_layers
                else Node("mlp" if half else "q", layer, -1 if half else 0)
            )
            row = self.graph.exists[self.graph.receivers.index(name)]
            reads.append(old + sent[row.to(sent.device)].sum(0))
        return _Reference(sent, reads)

    def _run(
        self,
        edges: Float[Tensor, "variant receiver sender"],
        embed: Float[Tensor, "batch seq d_model"],
        precise: Heads,
        reference: "_Reference | None" = None,
        reads: list[Tensor] | None = None,
    ) -> tuple[Float[Tensor, "variant batch *n vocab"], Float[Tensor, "sender variant batch seq d_model"]]:
        """The patched run: logits, and each sender's a_s - c_s."""
        layout, graph = self._layout, self.graph
        reference = self._reference(precise) if reference is None else reference
        n = len(edges)

        def read(row: int, n_rows: int, base: Tensor) -> Tensor:
            x = _sum(edges[:, row : row + n_rows], sent, base)
            if reads is not None:
                reads.append(x if x.requires_grad else x.requires_grad_())
            return x

        minus = reference.sent if len(reference.sent) else [0] * len(graph.senders)
        sent = [(embed - minus[0]).expand(n, *embed.shape)]
        row = 0
        for layer in range(len(layout.blocks)):
            projected = {}
            for site in "qkv":
                weight, bias = self._weights[layer][site]
                x = read(row, len(weight), reference.reads[2 * layer])
                row += len(weight)
                norm = self._norms[layer]
                x = x if norm is None else norm(x)
                y = self._linear(
                    x.flatten(1, 3),
                    weight,
                    bias,
                    kind=site,
                    layer=layer,
                    heads=list(range(len(weight))),
                    precise=self._own(precise, layer, site, range(len(weight))),
                )
                projected[site] = y.unflatten(1, (n, *embed.shape[:2]))
            z = self._attend(layer, projected)  # variant*batch seq head d_head
            y = self._linear(
                z.flatten(0, 1).transpose(0, 1),
                self._weights[layer]["o"][0],
                None,
                kind="o",
                layer=layer,
                heads=list(range(layout.n_heads)),
                precise=self._own(precise, layer, "o", range(layout.n_heads)),
            ).unflatten(1, (n, *embed.shape[:2]))
            before = len(sent)
            sent += [y[h] - minus[before + h] for h in range(layout.n_heads)]
            x = read(row, 1, reference.reads[2 * layer + 1])[0]
            row += 1
            sent.append(self._mlp(layer, x) - minus[len(sent)])
        x = read(row, 1, reference.reads[-1])[0]
        x = torch.stack([self._answers(one) for one in x])
        for module in self._tail:
            x = module(x)
        weight, bias = _matrix(self._subject.model.get_output_embeddings())
        y = self._linear(
            x.flatten(0, -2), weight, bias, kind="unembed", layer=len(layout.blocks), heads=None, precise=[]
        )
        return y.view(*x.shape[:-1], -1), torch.stack(sent)

    def _own(self, precise: Heads, layer: int, site: str, heads: Sequence[int]) -> list[int]:
        """Where in an axis of heads the precise ones are; a key-value head is precise with any of its queries."""
        group = 1 if site in ("q", "o") else self._layout.n_heads // self._layout.n_kv_heads
        wanted = {head // group for own, head in precise if own == layer}
        return [i for i, head in enumerate(heads) if head in wanted]

    def _attend(self, layer: int, projected: dict[str, Tensor]) -> Float[Tensor, "row seq head d_head"]:
        """The heads' outputs z, by the library's attention with its projections' outputs given."""
        layout = self._layout
        attention, out = layout.attention(layer), layout.point("z", layer).module
        buffers: dict[nn.Module, Tensor] = {}
        n, batch, seq = projected["q"].shape[1:4]
        for site, y in projected.items():
            point = layout.point(site, layer)
            if point.module not in buffers:
                width = _matrix(point.module)[0].shape[0]
                buffers[point.module] = y.new_empty(n * batch, seq, width)
            point.view(buffers[point.module]).copy_(y.flatten(1, 2).permute(1, 2, 0, 3))
        args, kwargs = _repeated(self._attention[layer], n)
        hidden = self._embed.new_zeros(()).expand(n * batch, seq, layout.d_model)
        if layout.family.mid.startswith(">"):  # it adds the residual stream, its second argument, by itself
            args = (hidden, *args[1:])
        given: dict[nn.Module, Callable] = {m: lambda *_, y=y: y for m, y in buffers.items()}
        with _replaced(given | {out: lambda z: z}):
            z = attention.forward(hidden, *args, **kwargs)
        z = z[0] if isinstance(z, tuple) else z
        return z.view(n * batch, seq, layout.n_heads, layout.d_head)

    def _mlp(self, layer: int, x: Float[Tensor, "variant batch seq d_model"]) -> Tensor:
        """What an MLP adds for a given input, by its whole block with an attention that adds nothing."""
        layout = self._layout
        block, attention = layout.blocks[layer], layout.attention(layer)
        added: list[Tensor] = []

        def nothing(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
            if layout.family.mid.startswith(">"):
                return args[0], None
            return torch.zeros_like(hidden_states), None

        given: dict[nn.Module, Callable] = {attention: nothing}
        if self._custom:
            inside = set(attention.modules())
            for module in block.modules():
                if module not in inside and (hasattr(module, "in_features") or hasattr(module, "nf")):
                    given[module] = lambda x, m=module: self._projected(x, m, layer)
        point = layout.point("mlp_out", layer)
        handle = point.module.register_forward_hook(lambda module, args, output: added.append(output))
        args, kwargs = self._blocks[layer]
        try:
            with _replaced(given):
                block(x.flatten(0, 1), *args, **kwargs)
        finally:
            handle.remove()
        y = added[0][0] if isinstance(added[0], tuple) else added[0]
        return y.reshape(x.shape)

    def _projected(self, x: Tensor, module: nn.Module, layer: int) -> Tensor:
        weight, bias = _matrix(module)
        y = self._linear(x.flatten(0, -2), weight, bias, kind="mlp", layer=layer, heads=None, precise=[])
        return y.view(*x.shape[:-1], -1)


@dataclass
class _Reference:
    """The corrupted run: what senders add; what receivers read, for each half of each layer and the logits."""

    sent: Float[Tensor, "sender batch seq d_model"]
    reads: list[Float[Tensor, "batch seq d_model"]]


class _Seen:
    """What one run of the model showed."""

    def __init__(self) -> None:
        self.blocks: list[tuple[tuple, dict]] = []
        self.attention: list[tuple[tuple, dict]] = []
        self.norms: list[nn.Module | None] = []
        self.tail: list[nn.Module] = []
        self.kept: list[Tensor] = []
        self.embed: Tensor
        self.logits: Tensor


def _sum(
    edges: Float[Tensor, "variant row sender"], sent: list[Float[Tensor, "variant batch seq d"]], base: Tensor
) -> Float[Tensor, "row variant batch seq d"]:
    """What receivers read: base + sum over senders of edge times difference."""
    return base + torch.einsum("vrs,svbtd->rvbtd", edges[..., : len(sent)], torch.stack(sent))


def _matrix(module: Any) -> tuple[Float[Tensor, "d_out d_in"], Float[Tensor, "d_out"] | None]:
    """Weight and bias of a projection; GPT-2's Conv1D has its weight transposed."""
    weight = module.weight
    if not weight.is_floating_point() or weight.ndim != 2:
        raise LookupError(
            f"the weights of {type(module).__name__} are packed, so that heads have none of their own: load the "
            "model without quantisation"
        )
    return (weight.T if hasattr(module, "nf") else weight), module.bias


def _without_hidden(kwargs: dict) -> dict:
    return {name: value for name, value in kwargs.items() if name != "hidden_states"}


def _doubled(one: Any, two: Any) -> Any:
    """Pairs each tensor with the axis along which it grows with the batch, or None."""
    if isinstance(one, Tensor):
        grown = [i for i, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b]
        return _Grown(one, grown[0] if grown else None)
    if isinstance(one, (tuple, list)):
        return tuple(_doubled(a, b) for a, b in zip(one, two, strict=True))
    if isinstance(one, dict):
        return {name: _doubled(value, two[name]) for name, value in one.items()}
    return one


def _repeated(value: Any, n: int) -> Any:
    """The arguments of a batch for n variants of it."""
    if isinstance(value, _Grown):
        if value.axis is None or n == 1:
            return value.tensor
        times = [1] * value.tensor.ndim
        times[value.axis] = n
        return value.tensor.repeat(times)
    if isinstance(value, tuple):
        return tuple(_repeated(each, n) for each in value)
    if isinstance(value, dict):
        return {name: _repeated(each, n) for name, each in value.items()}
    return value


@dataclass(frozen=True)
class _Grown:
    tensor: Tensor
    axis: int | None


@contextmanager
def _replaced(forwards: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """Replaces what modules compute; undone on leaving."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = forward


@dataclass(frozen=True)
class Circuit:
    """What ACDC keeps.

    Attributes:
        edges: the kept edges.
        effects: by how much the metric rose when each edge was cut from the circuit as it was then; NaN where
            there is no edge, or where its receiver had been cut off before.
        metric: of the circuit.
        n_evaluated: how many sets of edges were evaluated.
        n_passes: the same in forward passes of the batch: each set counts with the blocks that it ran.
    """

    edges: Bool[Tensor, "receiver sender"]
    effects: Float[Tensor, "receiver sender"]
    metric: float
    n_evaluated: int
    n_passes: float


def receiving_head(patcher: Patcher) -> Callable[[Node, Node], Heads]:
    """The head whose input an edge is, as what must be precise while the edge is tested."""
    group = patcher._layout.n_heads // patcher._layout.n_kv_heads

    def precise(sender: Node, receiver: Node) -> Heads:
        if receiver.kind == "q":
            return frozenset({(receiver.layer, receiver.head)})
        if receiver.kind in "kv":
            return frozenset((receiver.layer, receiver.head * group + i) for i in range(group))
        return frozenset()

    return precise


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
    """Automatic circuit discovery (Conmy et al. 2023, algorithm 1), exactly as if one edge were tested at a time.

    Each edge in turn is cut; it stays cut if the metric rises by less than tau. A node whose output nothing
    reads any more loses the edges into it without a test.

    Args:
        patcher: model and prompts.
        metric: what is to stay small, such as the divergence from `patcher.clean_logits`.
        tau: the threshold, in the metric's units.
        order: all edges, in the order in which they are tested; None for `Graph.order()`.
        precise: (sender, receiver) -> heads in full precision while that edge is tested; the metric of the circuit
            is measured again whenever they change. None for the receiver's head.
        speculate: test the edges of a receiver together, as if all the earlier ones were cut, and go back to the
            first that is not. The result is the same.
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
    precise = precise or receiving_head(patcher)
    edges = graph.exists.clone()
    effects = torch.full(edges.shape, torch.nan)
    outputs = {(node.layer, node.head, node.kind): i for i, node in enumerate(graph.senders)}
    group = patcher._layout.n_heads // patcher._layout.n_kv_heads
    n_evaluated, current = 0, float("nan")

    def is_read(receiver: Node) -> bool:
        if receiver.kind == "logits":
            return True
        if receiver.kind == "mlp":
            return bool(edges[:, outputs[receiver.layer, -1, "mlp"]].any())
        heads = (
            [receiver.head]
            if receiver.kind == "q"
            else range(receiver.head * group, (receiver.head + 1) * group)
        )
        return any(bool(edges[:, outputs[receiver.layer, head, "head"]].any()) for head in heads)

    def measure(sets: Tensor, heads: Heads) -> list[float]:
        nonlocal n_evaluated
        n_evaluated += len(sets)
        return metric(patcher.logits(sets, precise=heads)).tolist()

    def key(edge: Edge) -> tuple[int, Heads]:
        return edge[0], precise(graph.senders[edge[1]], graph.receivers[edge[0]])

    measured: Heads | None = None
    for (r, heads), run in groupby(order, key):
        senders = [s for _, s in run]
        if not is_read(graph.receivers[r]):
            edges[r, senders] = False
        else:
            if measured != heads:
                current, measured = measure(edges[None], heads)[0], heads
            while senders:
                width = min(len(senders), 16) if speculate else 1
                sets = edges.repeat(width, 1, 1)
                for i, s in enumerate(senders[:width]):
                    sets[i:, r, s] = False
                for i, value in enumerate(measure(sets, heads)):
                    s = senders[i]
                    effects[r, s] = value - current
                    if value - current >= tau:
                        break
                    edges, current = sets[i], value
                senders = senders[i + 1 :]
                if on_step is not None:
                    on_step(i + 1)
    return Circuit(edges, effects, current, n_evaluated, float(n_evaluated))


@torch.no_grad()
def edge_effects(
    patcher: Patcher, metric: Metric, *, precise: Heads = frozenset()
) -> Float[Tensor, "receiver sender"]:
    """By how much the metric rises when each edge alone is cut; NaN where there is no edge."""
    exists = patcher.graph.exists
    whole = metric(patcher.logits(exists[None], precise=precise))[0]
    effects = torch.full(exists.shape, torch.nan)
    for r, row in enumerate(exists):
        senders = row.nonzero()[:, 0]
        sets = exists.repeat(len(senders), 1, 1)
        sets[torch.arange(len(senders)), r, senders] = False
        effects[r, senders] = (metric(patcher.logits(sets, precise=precise)) - whole).float().cpu()
    return effects
