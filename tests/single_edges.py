"""Edges cut one at a time, which searches are compared with."""

from collections.abc import Callable

import torch
from torch import Tensor

from lib.edges import Patcher


@torch.no_grad()
def effects(patcher: Patcher, metric: Callable[[Tensor], Tensor]) -> Tensor:
    """By how much the metric rises when each edge alone is cut; NaN where there is no edge."""
    exists = patcher.graph.exists
    found = torch.full(exists.shape, torch.nan, dtype=torch.float64)
    whole = metric(patcher.logits(exists[None]))[0]
    for r, row in enumerate(exists):
        for senders in row.nonzero()[:, 0].split(16):
            sets = exists.repeat(len(senders), 1, 1)
            sets[torch.arange(len(senders)), r, senders] = False
            found[r, senders] = (metric(patcher.logits(sets)) - whole).double()
    return found
