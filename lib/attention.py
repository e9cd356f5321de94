"""Attention scores and patterns of any model, read and changed.

Everything rests on one function, registered with transformers' attention interface. While a context of
`lib.hooks` on the site "scores" or "pattern" is open, the model computes its attention with it; afterwards it
has its own implementation back. The function computes what the models' own eager implementations compute, to
the last bit.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

NAME = "worked_papers"

Tap = tuple[str, Callable[[Tensor], Tensor]]
# transformers calls `attend` by its registered name and hands it the module: what the open contexts want of
# that module can only be found here.
_taps: dict[nn.Module, list[Tap]] = {}  # of the open contexts, in order of opening
_replaced: dict[PreTrainedModel, tuple[str, int]] = {}  # implementation before, number of open contexts


def attend(
    module: nn.Module,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch query head d_head"], Float[Tensor, "batch head query key"]]:
    """Eager attention that hands its scores and its pattern to the taps of the open contexts.

    Scores are handed over before the mask is added, so that no edit can let a position see a later one.
    Sliding windows and padding are in the mask.
    """
    if kwargs.get("position_bias") is not None:
        raise NotImplementedError(f"{type(module).__name__} adds a position bias, which cannot be hooked yet")
    causal = kwargs.get("is_causal", getattr(module, "is_causal", False))
    if causal and attention_mask is None and query.shape[2] > 1:
        raise RuntimeError(f"{type(module).__name__} is causal, but was given no mask")
    taps = _taps.get(module, ())
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # grouped-query attention: head h uses the keys and values of head h // groups
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)

    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:  # Gemma 2
        scores = torch.tanh(scores / softcap) * softcap
    for site, tap in taps:
        if site == "scores":
            scores = tap(scores)

    if attention_mask is not None:
        # A boolean mask (True: may be attended to) that is added as it is adds 0 or 1: nothing is hidden.
        if attention_mask.dtype == torch.bool:
            attention_mask = torch.zeros_like(attention_mask, dtype=scores.dtype).masked_fill(
                ~attention_mask, torch.finfo(scores.dtype).min
            )
        scores = scores + attention_mask
    sinks = getattr(module, "sinks", None)  # a learned score a head can attend to instead of any position
    if sinks is not None:
        scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], dim=-1)
    # The order of casts is that of transformers' eager attention, or half precision would differ from it.
    pattern = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    if sinks is not None:  # what a head gives to its sink goes to no position: rows then sum to less than 1
        pattern = pattern[..., :-1]
    for site, tap in taps:
        if site == "pattern":
            pattern = tap(pattern)

    dropped = nn.functional.dropout(pattern, p=dropout, training=module.training)
    return (dropped @ value).transpose(1, 2).contiguous(), dropped


AttentionInterface.register(NAME, attend)
# Without a mask function of the same name, attention gets no mask at all, not even the causal one.
AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def tapped(
    owner: PreTrainedModel, site: str, taps: Mapping[nn.Module, Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Runs `owner` with `attend`, and hands the site's tensors of the given attention modules to `taps`.

    Raises:
        LookupError: the model's attention does not go through transformers' attention interface.
    """
    before, n_open = _replaced.get(owner, (owner.config._attn_implementation, 0))
    if n_open == 0:
        if not owner._can_set_attn_implementation():
            raise LookupError(
                f"no site {site!r} in {type(owner).__name__}: it computes attention by itself, not through "
                "transformers' attention interface; 'q', 'k', 'v' and 'z' can be hooked"
            )
        owner.set_attn_implementation(NAME)
    _replaced[owner] = before, n_open + 1
    added = {module: (site, tap) for module, tap in taps.items()}
    for module, tap in added.items():
        _taps.setdefault(module, []).append(tap)
    try:
        yield
    finally:
        for module, tap in added.items():
            _taps[module].remove(tap)
            if not _taps[module]:
                del _taps[module]
        # Contexts may be left in another order than they were opened in: the last one puts things back.
        before, n_open = _replaced.pop(owner)
        if n_open > 1:
            _replaced[owner] = before, n_open - 1
        else:
            owner.set_attn_implementation(before)
