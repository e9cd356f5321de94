"""Whether the sites of an architecture without a row of its own are what their names say.

`lib.sites` finds the modules of such a model by the nearest row of its table. Modules of the right names can
still be used in another way (Granite scales what it adds to the residual stream), which no path can tell: a
small forward pass does.
"""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from lib.hooks import HasLayout, capture
from lib.sites import Layout, modality

RESIDUAL = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


@torch.no_grad()
def withhold_contradictions(subject: HasLayout) -> Layout:
    """The subject's layout without the sites that a forward pass over a small input contradicts.

    A model that cannot be run on such an input keeps `resid_pre` and `resid_post` only.
    """
    layout, owner = subject.layout, subject.layout.owner
    names = [site for site in RESIDUAL if site not in layout.withheld]
    training = owner.training
    owner.eval()  # dropout between two sites would look like a contradiction
    try:
        with ExitStack() as stack:
            activations = {site: stack.enter_context(capture(subject, site)) for site in names}
            owner(**_small_input(owner))
        wrong = contradicted(activations)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):  # it wants other inputs
        wrong = {*names} - {"resid_pre", "resid_post"}
    owner.train(training)
    reason = "it has no row in lib.sites.TABLE, and by the nearest one its residual stream does not add up"
    return replace(layout, withheld=layout.withheld | dict.fromkeys(wrong, reason))


def _small_input(owner: PreTrainedModel) -> dict[str, Tensor]:
    """Four tokens, or one image that is a ramp (all-equal pixels could hide a difference)."""
    if modality(owner) == "text":
        return {"input_ids": torch.tensor([[1, 2, 3, 4]], device=owner.device)}
    config = owner.config
    shape = (1, config.num_channels, config.image_size, config.image_size)
    ramp = torch.linspace(-1, 1, math.prod(shape), device=owner.device, dtype=owner.dtype)
    return {"pixel_values": ramp.view(shape)}


def contradicted(sites: Mapping[str, Mapping[int, Float[Tensor, "batch seq d_model"]]]) -> set[str]:
    """Sites whose activations do not add up to the residual stream.

    Args:
        sites: site -> layer -> activation, of resid_pre, attn_out, mlp_out, resid_post and, unless the blocks
            are parallel, resid_mid.
    """
    wrong: set[str] = set()
    for layer, post in sites["resid_post"].items():
        pre, attn, mlp = (sites[site][layer] for site in ("resid_pre", "attn_out", "mlp_out"))
        if "resid_mid" not in sites:
            checks = [({"attn_out", "mlp_out"}, post, pre + attn + mlp)]
        else:
            mid = sites["resid_mid"][layer]
            checks = [
                ({"resid_mid", "attn_out"}, mid, pre + attn),
                ({"resid_mid", "mlp_out"}, post, mid + mlp),
            ]
        for suspects, total, parts in checks:
            # The model rounds each sum once; 20 units in the last place leave room for another order.
            tolerance = 20 * torch.finfo(post.dtype).eps * total.abs().max()
            if (total - parts).abs().max() > tolerance:
                wrong |= suspects
    return wrong
