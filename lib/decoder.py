"""A decoder in parts: what its attention and its MLPs compute, apart from the residual stream between them.

`lib.edges` sums up what each head and each MLP reads; what they make of it is computed here, by the model's
own modules, for any family of `lib.sites`. Nothing in the model is changed: parts that must do something else
do so in a copy of the module around them, which shares its weights.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from lib.hooks import capture
from lib.models import Subject

Linear = Callable[..., Float[Tensor, "*head row d_out"]]
"""Arithmetic of a projection: takes the place of `x @ weight.mT + bias`, with `full_precision` as a pattern.

It must treat each row of `x` by itself: which rows come together depends on what is cached. It is called as
`linear(x, weight, bias, kind=..., layer=..., heads=..., precise=...)` with

- x (*head row d_in): for "q", "k", "v" and "o" its first axis runs over some heads (for "k" and "v",
  key-value heads); for "mlp" and "unembed" there is no such axis;
- weight (*all_heads d_out d_in) and bias (*all_heads d_out), or None where there is none ("o" has none: the
  model's is added in full precision): views of the model's own at every call;
- kind: "q", "k", "v", "o", "unembed", or "mlp" for each projection of an MLP; layer: its block;
- heads: which heads the first axis of `x` holds; None where it has no such axis;
- precise: positions in that axis of the heads that must be computed in full precision.
"""


def full_precision(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, heads: list[int] | None, **_: Any
) -> Tensor:
    """The ordinary projection, in the model's own precision."""
    if heads is not None:
        weight, bias = take(weight, heads), None if bias is None else take(bias, heads)
    y = x @ weight.mT
    return y if bias is None else y + bias[..., None, :]


class Decoder:
    """A decoder in parts, which are its own modules.

    Attributes:
        embeds: the residual stream that enters the first block: clean, corrupted.
        logits: by the library, at all positions: clean, corrupted.
        norms: what stands before each layer's attention.
        weights: layer -> "q", "k", "v" or "o" -> weight (head d_out d_in) and bias.
        biases: what the attentions' output biases add up to before each half of a layer, and at the end.
        linear: arithmetic of the projections; None for the model's own.
    """

    def __init__(
        self, subject: Subject, clean: Mapping[str, Tensor], corrupted: Mapping[str, Tensor]
    ) -> None:
        """Watches the library's model on the clean prompts, and on both kinds together.

        Raises:
            LookupError: a head's output depends on another head's, or weights are quantised.
        """
        layout = self._layout = subject.layout
        self._subject, self._given = subject, dict[nn.Module, Tensor]()
        self.linear: Linear | None = None
        self._adds_residual = layout.family.mid == f">{layout.family.attention}"
        # Qwen's positions are (kind, batch, seq).
        axes = {name: int(name == "position_ids" and x.ndim == 3) for name, x in clean.items()}
        both = {name: torch.cat([x, corrupted[name]], axes[name]) for name, x in clean.items()}
        (one, clean_logits), (two, logits) = self._watched(clean), self._watched(both)
        n, entry, last = len(clean_logits), layout.blocks[0], layout.blocks[-1]
        self.logits, self.embeds = (clean_logits, logits[n:]), (one[entry][0], two[entry][0][n:])
        self._tail = list(one)[list(one).index(last) + 1 :]
        self._passed = {module: (one[module][1], two[module][1]) for module in one}
        self.norms: list[nn.Module] = []
        self.weights: list[dict[str, tuple[Tensor, Tensor | None]]] = []
        self._attentions, self._mlps = list[nn.Module](), list[nn.Module]()
        biases = [self.embeds[0].new_zeros(layout.d_model)]
        for layer, block in enumerate(layout.blocks):
            attention = layout.attention(layer)
            points: dict[str, Any] = {site: layout.point(site, layer) for site in "qkvz"}
            norm = (x for x in block.children() if x in one and one[x][2] is one[attention][0])
            self.norms += [next(norm, nn.Identity()), nn.Identity()]
            matrices = {site: _matrix(point.module) for site, point in points.items()}
            self.weights.append({})
            for site in "qkv":
                (weight, bias), view = matrices[site], points[site].view
                shifts = None if bias is None else view(bias[None])[0]
                self.weights[-1][site] = view(weight.mT).permute(1, 2, 0), shifts
            weight, bias = matrices["z"]
            self.weights[-1]["o"] = weight.unflatten(1, (layout.n_heads, -1)).transpose(0, 1), None
            after = biases[-1] if bias is None else biases[-1] + bias
            biases += [biases[-1] if "resid_mid" in layout.withheld else after, after]
            # Attention from its projections' outputs to the heads', and blocks whose attention adds nothing.
            given: dict[nn.Module, Callable] = {points["z"].module: lambda z: z}
            given |= {points[site].module: partial(self._output, points[site].module) for site in "qkv"}
            self._attentions.append(_twin(attention, given))
            others = [x for x in block.modules() if hasattr(x, "in_features") or hasattr(x, "nf")]
            parts = {x: partial(self._projected, x, "mlp", layer) for x in others}
            self._mlps.append(_twin(block, {**parts, attention: self._nothing}))
        self.norms.append(nn.Identity())
        self.biases = torch.stack(biases)
        self._alike = all(self._heads_are_alike(layer) for layer in range(len(layout.blocks)))

    @torch.no_grad()
    def _watched(self, inputs: Mapping[str, Tensor]) -> tuple[dict[nn.Module, tuple], Tensor]:
        """A pass of the library's model: its modules' calls, in the order in which they end, and logits.

        A call is what a module got (hidden states; other arguments) and returned.
        """
        blocks, seen = self._layout.blocks, dict[nn.Module, tuple]()

        def note(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            hidden, *others = args or (kwargs.get("hidden_states"),)
            kwargs = {name: x for name, x in kwargs.items() if name != "hidden_states"}
            seen[module] = hidden, (tuple(others), kwargs), output

        with ExitStack() as stack:
            parts = {child for block in blocks for child in block.children()}
            parts |= {self._layout.attention(layer) for layer in range(len(blocks))}  # deeper in GPT-Neo
            for module in (*self._layout.owner.children(), *blocks, *parts):
                stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
            return seen, self._subject.model(**inputs, use_cache=False).logits

    @torch.no_grad()
    def _heads_are_alike(self, layer: int) -> bool:
        """Whether attention does the same in all heads (no ALiBi, no sinks), so that they can swap places.

        Raises:
            LookupError: a head's output depends on another head's query, key or value.
        """
        layout, (batch, seq, _) = self._layout, self.embeds[0].shape
        draw, size = torch.Generator().manual_seed(0), layout.n_heads // layout.n_kv_heads
        shapes = [(n, 1, batch, seq, layout.d_head) for n in (layout.n_heads, *[layout.n_kv_heads] * 2)]
        q, k, v = (torch.randn(shape, generator=draw).to(self.embeds[0]) for shape in shapes)
        close = partial(torch.allclose, rtol=1e-3, atol=1e-3, equal_nan=True)
        z = self.attend(layer, q, k, v)
        for i, (what, n) in enumerate((("query", 1), ("key", size), ("value", size))):
            given = [torch.cat([-10 * x[:1], x[1:]]) if i == j else x for j, x in enumerate((q, k, v))]
            if not close(self.attend(layer, *given)[n:], z[n:]):
                raise LookupError(
                    f"no graph of edges of {type(self._subject.model).__name__}: its heads cannot be told "
                    f"apart, since a head's {what} changes what other heads put out"
                )
        return close(self.attend(layer, q.roll(size, 0), k.roll(1, 0), v.roll(1, 0)), z.roll(size, 0))

    def groups(self, heads: np.ndarray) -> np.ndarray:
        """The key-value heads that are computed with some heads: all, unless heads can swap places."""
        n = self._layout.n_kv_heads
        return np.unique(heads // (self._layout.n_heads // n)) if self._alike else np.arange(n)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Outputs z of all heads of some groups, as its inputs: head (group) variant batch seq d_head.

        The library's attention always computes all heads. So the groups of several variants are packed into
        the heads of fewer, which is why heads must be alike.
        """
        layout, (_, _, batch, seq, d_head), attention = self._layout, q.shape, self._layout.attention(layer)
        n, n_groups, n_kv = max(x.shape[1] for x in (q, k, v)), len(k), layout.n_kv_heads
        n_packed = -(-n * n_groups // n_kv)
        self._given.clear()
        for site, x in zip("qkv", (q, k, v), strict=True):
            # group member variant ... -> slot batch seq member d_head, where slot = (variant, group)
            x = x.expand(-1, n, -1, -1, -1).unflatten(0, (n_groups, -1)).permute(2, 0, 3, 4, 1, 5)
            x = F.pad(x.flatten(0, 1), [0] * 9 + [n_packed * n_kv - n * n_groups])
            point: Any = layout.point(site, layer)
            width = len(_matrix(point.module)[0])  # of q, k and v together where they are fused
            output = self._given.setdefault(point.module, x.new_empty(n_packed * batch, seq, width))
            view = point.view(output).unflatten(2, (n_kv, -1)).unflatten(0, (n_packed, batch))
            view.copy_(x.unflatten(0, (n_packed, n_kv)).permute(0, 2, 3, 1, 4, 5))
        args, kwargs = tree_map(partial(_repeated, n_packed), *self._passed[attention])
        hidden = self.embeds[0].new_zeros(()).expand(n_packed * batch, seq, layout.d_model)
        if self._adds_residual:  # it adds the residual stream, its second argument, by itself
            args = (hidden, *args[1:])
        z = self._attentions[layer].forward(hidden, *args, **kwargs)
        z = (z[0] if isinstance(z, tuple) else z).view(n_packed, batch, seq, n_kv, -1, d_head)
        z = z.permute(0, 3, 1, 2, 4, 5).flatten(0, 1)[: n * n_groups].unflatten(0, (n, n_groups))
        return z.permute(1, 4, 0, 2, 3, 5).flatten(0, 1)

    def _output(self, module: nn.Module, *_: Any) -> Tensor:
        return self._given[module]

    def _nothing(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return args[0] if self._adds_residual else torch.zeros_like(hidden_states), None

    def mlp(self, layer: int, x: Float[Tensor, "variant batch seq d_model"]) -> Tensor:
        """What an MLP adds."""
        args, kwargs = self._passed[self._layout.blocks[layer]][0]  # only the attention reads them
        with capture(self._subject, "mlp_out", layers=layer, grad=True) as added:
            self._mlps[layer](x.flatten(0, 1), *args, **kwargs)
        return added[layer].view(x.shape)

    def unembed(self, x: Float[Tensor, "variant batch n d_model"]) -> Tensor:
        """Logits of what the last block leaves."""
        for module in self._tail:
            x = module(x)
        return self._projected(self._subject.model.get_output_embeddings(), "unembed", len(self._mlps), x)

    def _projected(self, module: nn.Module, kind: str, layer: int, x: Tensor) -> Tensor:
        """A projection without heads."""
        if self.linear is None:
            return module.forward(x)  # its hooks are called by the twin
        rows, (weight, bias) = x.flatten(0, -2), _matrix(module)
        y = self.linear(rows, weight, bias, kind=kind, layer=layer, heads=None, precise=[])
        return y.view(*x.shape[:-1], -1)


def _repeated(n: int, one: Any, two: Any) -> Any:
    """An argument for n variants of the batch, from those for one and for two: what grew is repeated."""
    if not isinstance(one, Tensor) or one.shape == two.shape or n == 1:
        return one
    axis = [a != b for a, b in zip(one.shape, two.shape, strict=True)].index(True)
    return torch.cat([one] * n, axis)


def _twin(module: nn.Module, forwards: Mapping[nn.Module, Callable]) -> nn.Module:
    """A module with the same weights, of which some parts compute something else."""
    twin = copy(module)
    vars(twin).pop("forward", None)  # another library's, such as accelerate's: it would call the original
    twin._modules = {name: child and _twin(child, forwards) for name, child in module._modules.items()}
    if module in forwards:
        vars(twin)["forward"] = forwards[module]
    return twin


def _matrix(module: Any) -> tuple[Float[Tensor, "d_out d_in"], Float[Tensor, " d_out"] | None]:
    """Weight and bias of a projection; GPT-2's Conv1D has its weight transposed."""
    weight = module.weight
    if not weight.is_floating_point() or weight.ndim != 2:
        name = type(module).__name__
        raise LookupError(f"the weights of a {name} are packed: load the model without quantisation")
    return (weight.T if hasattr(module, "nf") else weight), module.bias


def take(x: Tensor, indices: Sequence[int] | np.ndarray) -> Tensor:
    """Some entries along the first axis; a view where they stand together."""
    first, last = int(indices[0]), int(indices[-1])
    return x[first : last + 1] if last - first + 1 == len(indices) else x[list(indices)]
