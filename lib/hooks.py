"""Read and change activations at named sites, in plain PyTorch hooks.

    with capture(subject, "resid_post", layers=[0, 3]) as acts:
        subject.model(**inputs)
    acts[3]  # batch seq d_model

    with edit(subject, "z", layer=2, fn=lambda z: z * keep_heads):
        subject.model.generate(**inputs)

The sites are those of `lib.sites.SITES`. Contexts nest, and act in the order in which they were opened: a
capture that is opened inside an edit sees what the edit made. What a context changed in the model is undone
when it is left, also by an exception.

A function that is never called is an error, if the model has run inside its context. While a context is open
compiled models run uncompiled, since compiled code calls no hook that is newer than itself; gradient
checkpointing is refused, since it would run the blocks a second time, after the context.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import checkpoint
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from lib.attention import tapped
from lib.sites import Layout, Point

Positions = int | slice | list[int] | Tensor


class HasLayout(Protocol):
    """What can be hooked, such as a `lib.models.Subject`: a model, and where its sites are."""

    model: PreTrainedModel
    layout: Layout


class Activations(dict[int, Any]):
    """What a `capture` has seen: layer -> activation, or with `reduce` layer -> state.

    Attributes:
        passes: layer -> one activation for each forward pass; empty with `reduce`. Several of them, as under
            `generate`, are found here only.
    """

    def __init__(self, site: str, layers: list[int]) -> None:
        """Empty, for the given layers."""
        super().__init__()
        self.site = site
        self.passes: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def __missing__(self, layer: int) -> Any:
        """Says why there is no one activation."""
        where = f"layer {layer} of {self.site!r}"
        if layer not in self.passes:
            raise LookupError(f"{where} was not captured; captured: {list(self.passes)}")
        if not self.passes[layer]:
            raise LookupError(f"no forward pass has reached {where} inside this capture")
        raise LookupError(
            f"{where} was captured in {len(self.passes[layer])} forward passes: they are in "
            f"`.passes[{layer}]`; or give `reduce` to fold them into one"
        )


@contextmanager
def capture(
    subject: HasLayout,
    site: str,
    *,
    layers: int | Iterable[int] | None = None,
    positions: Positions | None = None,
    reduce: Callable[[Any, Tensor], Any] | None = None,
    grad: bool = False,
) -> Iterator[Activations]:
    """Captures a site's activations in the forward passes that run inside the context.

    Args:
        subject: the model.
        site: one of `lib.sites.SITES`, which has the shapes.
        layers: which layers; None for all.
        positions: index into the sequence (for scores and patterns, the query) axis; None for all.
        reduce: `reduce(state, activation) -> state`, run inside the forward pass and starting from None. The
            result then holds the last state, so that memory does not grow with the number of passes.
        grad: keep activations in the autograd graph, so that gradients can be taken with respect to them.
            Otherwise they are detached.

    Yields:
        The activations by layer, filled by each forward pass.

    Raises:
        LookupError: the site is unknown, or this architecture does not have it.
        IndexError: there is no such layer.
        RuntimeError: in the forward pass, under gradient checkpointing; at the end, if the model has run but
            not the site of some layer.
    """
    chosen = subject.layout.layers(site, layers)
    acts = Activations(site, chosen)
    axis = 2 if site in ("scores", "pattern") else 1  # batch head query key, or batch seq ...
    index = None if positions is None else (slice(None),) * axis + (positions,)

    def keeper(layer: int) -> Callable[[Tensor], Tensor]:
        passes = acts.passes[layer]

        def keep(activation: Tensor) -> Tensor:
            if grad:  # what is kept must be what the model goes on with, and not a view beside it
                activation = activation.clone()
            kept = activation if grad else activation.detach()
            if index is not None:
                kept = kept[index]
            if reduce is not None:  # nothing is stored, so that memory does not grow with the passes
                acts[layer] = reduce(acts.get(layer), kept)
                return activation
            # A copy: models write into their tensors later (Falcon's mlp_out += attn_out), and so do edits.
            passes.append(kept if grad else kept.clone())
            if len(passes) == 1:
                acts[layer] = passes[0]
            else:  # "the" activation would be one of several: asking for it is an error then
                acts.pop(layer, None)
            return activation

        return keep

    with attached(subject, site, {layer: keeper(layer) for layer in chosen}):
        yield acts


@contextmanager
def edit(
    subject: HasLayout, site: str, *, layer: int | Iterable[int], fn: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Replaces a site's activation by `fn(activation)` in the forward passes that run inside the context.

    Gradients flow through `fn`, which may also write into its argument: it is a copy.

    Args:
        subject: the model.
        site: one of `lib.sites.SITES`, which has the shapes.
        layer: one layer or several.
        fn: gets the activation and returns one of the same shape and dtype.

    Raises:
        LookupError: the site is unknown, or this architecture does not have it.
        IndexError: there is no such layer.
        TypeError, ValueError: in the forward pass, if `fn` returns something else.
        RuntimeError: as for `capture`.
    """

    def changer(number: int) -> Callable[[Tensor], Tensor]:
        def change(activation: Tensor) -> Tensor:
            changed = fn(activation.clone())
            where = f"the edit of {site!r} at layer {number}"
            if not isinstance(changed, Tensor):
                raise TypeError(f"{where} returned {type(changed).__name__}; it must return the activation")
            for what in ("shape", "dtype", "device"):
                got, expected = getattr(changed, what), getattr(activation, what)
                if got != expected:
                    got, expected = (tuple(x) if what == "shape" else x for x in (got, expected))
                    raise ValueError(f"{where} returned {what} {got}; the activation has {expected}")
            return changed.contiguous()  # models call view()

        return change

    with attached(subject, site, {number: changer(number) for number in subject.layout.layers(site, layer)}):
        yield


@contextmanager
def attached(
    subject: HasLayout, site: str, functions: Mapping[int, Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Puts one function at a site of each layer, while the context is open."""
    layout, name = subject.layout, type(subject.layout.owner).__name__
    unreached, has_run = set(functions), False

    def reach(layer: int, activation: Tensor) -> Tensor:
        if _is_checkpointed():
            raise RuntimeError(
                f"{name} runs under gradient checkpointing: in the backward pass its blocks would run again, "
                "without what is open now. Switch it off: model.gradient_checkpointing_disable()"
            )
        unreached.discard(layer)
        return functions[layer](activation)

    def note_run(module: nn.Module, args: tuple, output: Any) -> None:
        nonlocal has_run
        has_run = True

    with ExitStack() as stack:
        stack.enter_context(_uncompiled())
        for part in subject.model.modules():  # also the inner ones: a caller may run one of them alone
            if isinstance(part, PreTrainedModel):
                stack.callback(part.register_forward_hook(note_run).remove)
        taps = {}
        for layer in functions:
            point = layout.point(site, layer)
            if point is None:  # scores and patterns exist inside the attention function only
                taps[layout.attention(layer)] = partial(reach, layer)
            else:
                _hook(stack, point, partial(reach, layer))
        if taps:
            stack.enter_context(tapped(layout.owner, site, taps))
        yield
    if has_run and unreached:  # not reached by an exception, which would hide its cause
        raise RuntimeError(
            f"{type(subject.model).__name__} has run, but did not compute {site!r} at layers "
            f"{sorted(unreached)} of {name}: what was to be captured or edited there was not"
        )


def _is_checkpointed() -> bool:
    """Whether torch's checkpointing runs this: for a pass of which nothing is kept, or again for backward."""
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if frame.f_code.co_filename == checkpoint.__file__:
            return True
    return False


_n_open, _stance = 0, ExitStack()


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Lets compiled code run as it was written, until the last context is left, in whatever order."""
    global _n_open
    if not _n_open:
        _stance.enter_context(torch.compiler.set_stance("force_eager"))
    _n_open += 1
    try:
        yield
    finally:
        _n_open -= 1
        if not _n_open:
            _stance.close()


def _hook(stack: ExitStack, point: Point, function: Callable[[Tensor], Tensor]) -> None:
    """Puts a function at a point of the modules, until the stack is closed."""
    batch = 0

    def apply(tensor: Tensor) -> Tensor:
        activation = point.view(tensor)
        if point.block is not None and activation.ndim == 2:  # OPT's MLP sees [batch * seq, d_model]
            activation = activation.unflatten(0, (batch, -1))
        changed = function(activation)
        # A capture gives back what it got. The model then goes on with the very tensor, to the last bit.
        return tensor if changed is activation else point.write(tensor, changed)

    def on_input(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (apply(args[0]), *args[1:]), kwargs
        # Some models pass what enters a block or a projection by its name.
        return args, kwargs | {"hidden_states": apply(kwargs["hidden_states"])}

    def on_output(module: nn.Module, args: tuple, output: Any) -> Any:
        # Attention modules return their weights too; blocks return a plain tensor since transformers 5.
        if isinstance(output, (tuple, list)):
            return (apply(output[0]), *output[1:])
        return apply(output)

    def remember_batch(module: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal batch
        batch = len(args[0] if args else kwargs["hidden_states"])

    if point.block is not None:
        handle = point.block.register_forward_pre_hook(remember_batch, with_kwargs=True)
        stack.callback(handle.remove)
    if point.side == "input":
        stack.callback(point.module.register_forward_pre_hook(on_input, with_kwargs=True).remove)
    else:
        _behind(stack, point.module, on_output)


_queues: WeakKeyDictionary[nn.Module, tuple[list[Callable], RemovableHandle]] = WeakKeyDictionary()


def _behind(stack: ExitStack, module: nn.Module, function: Callable) -> None:
    """Runs a hook right behind a module, after those put here earlier and before any that are not ours.

    transformers records hidden states by hooks that stay in a model from its first pass on, and LLaVA goes on
    with what was recorded of its tower: an edit behind them would be lost.
    """
    if module not in _queues:
        hooks: list[Callable] = []

        def run(module: nn.Module, args: tuple, output: Any) -> Any:
            for hook in hooks:
                output = hook(module, args, output)
            return output

        _queues[module] = hooks, module.register_forward_hook(run, prepend=True)
    queue, handle = _queues[module]
    queue.append(function)

    def leave() -> None:
        queue.remove(function)
        if not queue:
            handle.remove()
            del _queues[module]

    stack.callback(leave)
