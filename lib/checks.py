"""Whether the sites of a model are what their names say: measured, on that very model.

`lib.sites` finds modules by their names. Modules of the right names can still be used in another way (Granite
scales what it adds to the residual stream, BitNet normalises between heads and output projection), which no
name can tell. So each site is edited once, in one small forward pass, and what follows from it must follow:
z = pattern @ v, attn_out = projection of z, resid_mid = resid_pre + attn_out, and so on to the logits. What
does not is withheld, with what was measured.
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lib.hooks import attached
from lib.sites import SITES, Layout, modality, module

N_TOKENS = 5
FACTORS = {"v": 0.5, "scores": 0.9, "pattern": 0.75, "z": 1.25, "attn_out": 0.75, "mlp_act": 0.75} | {
    "resid_pre": 0.875, "resid_mid": 1.125, "mlp_out": 1.25, "resid_post": 1.125,
}  # fmt: skip
"""What a site's activation is multiplied by in the pass: an edit that is not reached then shows."""

# Of each tower that was checked: its modules, and what was found. No layout: it would keep the model alive.
_checked: WeakKeyDictionary[PreTrainedModel, tuple[list[int], dict[str, Any]]] = WeakKeyDictionary()


def checked(model: PreTrainedModel, layouts: Sequence[Layout]) -> Layout:
    """Of a tower's possible layouts the one that withholds least, without what a pass over it contradicts.

    A tower is measured once, as long as its modules are the same. Weights, modes, gradients and the random
    state stay as they are. A model without values (on the device "meta") cannot be measured, nor hooked.
    """
    owner = layouts[0].owner
    if owner.device.type == "meta" and not hasattr(model, "hf_device_map"):
        return layouts[0]
    modules = [id(part) for part in owner.modules()]
    before, found = _checked.get(owner, ([], {}))
    if before != modules:
        measured = list[Layout]()
        with _as_it_was(model):
            for layout in layouts:
                measured.append(_withhold(model, layout))
                if measured[-1].withheld == layout.withheld:
                    break
        best = min(measured, key=lambda layout: len(layout.withheld))  # the first of them
        found = {name: getattr(best, name) for name in ("family", "withheld", "no_lens")}
        _checked[owner] = modules, found
    layout = next(layout for layout in layouts if layout.family == found["family"])
    return replace(layout, **found)


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards all modules have the attributes that they had.

    Some models keep what they made of the last inputs (Qwen2-VL its offsets of positions).
    """
    before = {part: dict(vars(part)) for part in model.modules()}
    try:
        with torch.no_grad(), torch.autocast("cuda" if torch.cuda.is_available() else "cpu", enabled=False):
            for part in before:
                part.training = False
            yield
    finally:
        for part, attributes in before.items():
            vars(part).clear()
            vars(part).update(attributes)


def _withhold(model: PreTrainedModel, layout: Layout) -> Layout:
    """A layout without the sites that passes over it contradict."""
    withheld = dict(layout.withheld)

    def error(sites: Sequence[str]) -> str:
        try:
            _Pass(model, layout, sites).run()
        except Exception as error:  # whatever a model raises on inputs or hooks that it is not made for
            said = str(error).split("\n")[0]
            known = type(error) is LookupError  # a hook's: it names the site, and then says why
            return said.partition(": ")[2] if known else f"{type(error).__name__} in a small pass: {said}"
        return ""

    while True:
        check = _Pass(model, layout, [site for site in SITES if site not in withheld])
        try:
            check.run()
        except Exception:
            if cannot_run := error([]):
                return replace(layout, withheld=dict.fromkeys(SITES, cannot_run))
            check.wrong = {site: why for site in check.sites if (why := error([site]))}
            check.wrong = check.wrong or dict.fromkeys(check.sites, error(check.sites))
        if not check.wrong:
            return replace(layout, withheld=withheld, no_lens=check.no_lens)
        withheld |= check.wrong  # their edits may have disturbed others: again, without them


def _run(model: PreTrainedModel, owner: PreTrainedModel) -> Tensor | None:
    """A forward pass over two short texts or two images; the logits, if it is one of a language model."""
    device = "cpu" if owner.device.type == "meta" else owner.device  # offloaded: accelerate moves inputs
    if modality(owner) != "text":
        config: Any = owner.config
        size = [config.image_size] * 2 if isinstance(config.image_size, int) else [*config.image_size]
        shape = (2, config.num_channels, *size)  # a ramp: all-equal pixels could hide a difference
        ramp = torch.linspace(-1, 1, math.prod(shape), device=device, dtype=owner.dtype)
        owner.forward(pixel_values=ramp.view(shape))
        return None
    # The model in its wrapper; the tower alone where the whole needs images (CLIP, BLIP-2).
    inner: Any = next(part for part in model.modules() if isinstance(part, PreTrainedModel))
    needed = [x.name for x in inspect.signature(inner.forward).parameters.values() if x.default is x.empty]
    runs: Any = owner if inner.get_output_embeddings() is None or "pixel_values" in needed else inner
    settings = {**vars(model.config.get_text_config()), **vars(model.config)}.items()
    ids = [id_ for name, id_ in settings if name.endswith(("token_id", "token_index"))]
    special = {x for id_ in ids for x in (id_ if isinstance(id_, list) else [id_])}
    ordinary = [x for x in range(min(runs.get_input_embeddings().num_embeddings, 1000)) if x not in special]
    tokens = torch.tensor([ordinary[7 * i % len(ordinary)] for i in range(2 * N_TOKENS)], device=device)
    options = {"use_cache": False} if "use_cache" in inspect.signature(runs.forward).parameters else {}
    return getattr(runs.forward(input_ids=tokens.view(2, -1), **options), "logits", None)


@dataclass
class _Pass:
    """One forward pass in which each site is edited, and compared with what it must follow from.

    Attributes:
        sites: those to be edited.
        wrong: site -> what was measured that contradicts it.
        no_lens: the same of the logit lens.
    """

    model: PreTrainedModel
    layout: Layout
    sites: Sequence[str]
    wrong: dict[str, str] = field(default_factory=dict)
    no_lens: str = ""

    def run(self) -> None:
        """Runs the pass."""
        layout, self.count = self.layout, dict[tuple[str, int], int]()
        # Of the layer that is running: site -> activation as it came, and as the model went on with it.
        self.came, self.went = dict[str, Tensor](), dict[str, Tensor]()
        self.left: Tensor | None = None  # the last block
        self.n_positions = N_TOKENS if modality(layout.owner) == "text" else 0
        with ExitStack() as stack:
            for site in self.sites:
                notes = {layer: partial(self._note, site, layer) for layer in layout.layers(site, None)}
                self.count |= dict.fromkeys(((site, layer) for layer in notes), 0)
                stack.enter_context(attached(self, site, notes))
            logits = _run(self.model, layout.owner)
        self._compare(len(layout.blocks) - 1)
        for (site, layer), times in self.count.items():
            if times != 1:
                self.wrong[site] = f"a forward pass reaches it {times} times in layer {layer}, not once"
        head: Any = self.model.get_output_embeddings()
        if logits is not None and self.left is not None and head is not None:
            try:
                off = _difference(logits, layout.logits(head, self.left))
                self.no_lens = off and f"its logits are off final norm, unembedding and soft cap by {off}"
            except (LookupError, RuntimeError, TypeError) as error:
                self.no_lens = str(error)
        elif head is not None and modality(layout.owner) == "text":
            self.no_lens = "its logits could not be compared with its last resid_post"

    def _note(self, site: str, layer: int, activation: Tensor) -> Tensor:
        """Keeps a site's activation, and changes it; at the end of a layer all are compared."""
        self.count[site, layer] += 1
        axes = SITES[site].partition(":")[0].split()
        # An image's positions are as many as those of the first activation.
        self.n_positions = self.n_positions or activation.shape[2 if "query" in axes else 1]
        sizes = {"batch": 2, "d_mlp": activation.shape[-1]} | vars(self.layout)
        expected = tuple(sizes.get(axis, self.n_positions) for axis in axes)
        if activation.shape != expected:
            self.wrong[site] = f"its shape is {tuple(activation.shape)}, not {expected} ({' '.join(axes)})"
            return activation
        if site == "resid_pre":
            self._compare(layer - 1)  # if the end of that layer was not seen
            if self.left is not None and (off := _difference(activation, self.left)):
                self.wrong.setdefault("resid_post", f"the next layer's resid_pre is off it by {off}")
        self.came[site], changed = activation.clone(), activation * FACTORS.get(site, 1.0)
        if site in ("q", "k", "v"):
            # Both rows alike but for the last head, which changes sign (so that norms do not matter) where
            # one looks from the last position, or looks at the first.
            changed[1] = changed[0]
            changed[1, {"q": slice(-1, None), "k": slice(1), "v": slice(None)}[site], -1] *= -1
        self.went[site] = changed.clone()  # the model may write into its own
        if site == "resid_post":
            self.left = self.went[site]
            self._compare(layer)
        return changed

    def _compare(self, layer: int) -> None:
        """Compares a layer's activations with what they must follow from."""
        came, went, self.came, self.went = self.came, self.went, {}, {}
        if not came or layer < 0:
            return
        block, family = self.layout.blocks[layer], self.layout.family

        def follows(blamed: str, site: str, what: str, expected: Sequence[Tensor]) -> None:
            if off := _difference(came[site], *expected):
                for suspect in blamed.split():
                    self.wrong.setdefault(suspect, f"{site} is off {what} by {off}")

        def through(x: Tensor, *paths: str) -> list[Tensor]:
            """What modules one after another make of x, without their hooks; nothing if they cannot."""
            try:
                for part in (module(block, path) for path in paths if path):
                    x = part.forward(x)
            except (AttributeError, RuntimeError, TypeError, ValueError):
                return []
            return [x]

        self._compare_heads(came, went, follows)
        if came.keys() >= {"z", "attn_out"}:
            projected = through(went["z"].flatten(2), family.out, family.attn_out)
            follows("attn_out", "attn_out", "the projection of z", projected)
        if came.keys() >= {"mlp_act", "mlp_out"}:
            projected = through(went["mlp_act"], family.down, family.mlp_out)
            follows("mlp_out", "mlp_out", "the projection of mlp_act", projected)
        if missing := {"resid_pre", "attn_out", "mlp_out", "resid_post"} - came.keys():
            for site in {"attn_out", "resid_mid", "mlp_out"} & came.keys():
                self.wrong.setdefault(site, f"there is no {min(missing)} with which it could add up")
            return
        mid = went["resid_pre"] + went["attn_out"]
        if "resid_mid" in came:
            follows("resid_mid", "resid_mid", "resid_pre + attn_out", [mid])
            follows("resid_mid", "resid_post", "resid_mid + mlp_out", [went["resid_mid"] + went["mlp_out"]])
        else:
            what = "resid_pre + attn_out + mlp_out"
            follows("attn_out mlp_out", "resid_post", what, [mid + went["mlp_out"]])

    def _compare_heads(self, came: dict[str, Tensor], went: dict[str, Tensor], follows: Any) -> None:
        """Which head's q, k and v make which head's scores, pattern and z."""
        n, n_kv = self.layout.n_heads, self.layout.n_kv_heads
        if came.keys() >= {"scores", "pattern"}:
            pattern = went["scores"].masked_fill(came["pattern"] == 0, -torch.inf).softmax(-1).nan_to_num()
            pattern = pattern * came["pattern"].sum(-1, keepdim=True)  # less than 1 where heads have sinks
            follows("pattern", "pattern", "the softmax of the masked scores", [pattern])
        if came.keys() >= {"pattern", "v", "z"}:
            v = went["v"].repeat_interleave(n // n_kv, 2)
            follows("v z", "z", "pattern @ v", [torch.einsum("bhqk,bkhd->bqhd", went["pattern"], v)])
        what = next((site for site in ("scores", "pattern", "z") if site in came), "")
        if not came.keys() & {"scores", "pattern"} and n != n_kv:
            reason = "without scores or pattern nothing tells which head it is of"
            self.wrong |= dict.fromkeys({"q", "k", "v"} & came.keys(), reason)
        elif what:
            x = came["z"].transpose(1, 2) if what == "z" else came[what]
            change = (x[1] - x[0]).abs()  # head query (key or d_head)
            at_key = slice(None) if what == "z" else slice(1)
            for site, part in (("q", change[:, -1, 1:]), ("k", change[:, 1:-1, at_key])):
                by_head = part.flatten(1).amax(1)
                most, seen = int(by_head.argmax()), by_head.max() > 1e-3 * x.abs().max()
                last = n - 1 if site == "q" and what == "scores" else n - n // n_kv
                if site in came and (most < last if seen else what == "scores" and x[0, -1].any()):
                    moved = f"those of head {most} most" if seen else "none"
                    self.wrong.setdefault(site, f"when its last head changes, of {what} it changes {moved}")


def _difference(x: Tensor, *expected: Tensor) -> str:
    """By how much x differs from the nearest of some tensors, in words; empty if that is rounding."""
    offs = [(x - y.to(x.device)).abs().max().item() if y.shape == x.shape else math.inf for y in expected]
    off = min((off for off in offs if math.isfinite(off)), default=math.inf)
    largest = x.abs().max().item()
    return (
        ""
        if off <= torch.finfo(x.dtype).eps ** 0.5 * largest
        else f"{off:.2g} (its largest is {largest:.2g})"
    )
