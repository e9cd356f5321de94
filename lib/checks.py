"""Whether the sites of a model are what their names say: measured, on that very model.

`lib.sites` finds modules by their names. Modules of the right names can still be used in another way (Granite
scales what it adds to the residual stream, BitNet normalises between heads and output projection), which no
name can tell. So each site is edited once, in one small forward pass, and what follows from it must follow:
z = pattern @ v, attn_out = projection of z, resid_mid = resid_pre + attn_out, and so on to the logits. What
does not is withheld, with what was measured.
"""

import inspect
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lib.hooks import edit
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
        with torch.no_grad():
            for part in before:
                part.training = False
            yield
    finally:
        for part, attributes in before.items():
            vars(part).clear()
            vars(part).update(attributes)


def _withhold(model: PreTrainedModel, layout: Layout) -> Layout:
    """A layout without the sites that passes over it contradict."""
    withheld, whole = dict(layout.withheld), modality(layout.owner) == "text" or _reads_tokens(layout.owner)

    def error(sites: Sequence[str]) -> str:
        try:
            _Pass(model, layout, sites, whole).run()
        except Exception as error:  # whatever a model raises on inputs or hooks that it is not made for
            said = str(error).split("\n")[0]
            return said if type(error) is LookupError else f"{type(error).__name__} in a small pass: {said}"
        return ""

    while True:
        check = _Pass(model, layout, [site for site in SITES if site not in withheld], whole)
        try:
            check.run()
        except Exception:
            if cannot_run := error([]):  # alone, the tower may run where the whole model wants more inputs
                if not whole:
                    return replace(layout, withheld=dict.fromkeys(SITES, cannot_run))
                whole = False
                continue
            check.wrong = {site: why for site in check.sites if (why := error([site]))}
            check.wrong = check.wrong or dict.fromkeys(check.sites, error(check.sites))
        if not check.wrong:
            return replace(layout, withheld=withheld, no_lens=check.no_lens)
        withheld |= check.wrong  # their edits may have disturbed others: again, without them


def _run(model: PreTrainedModel, owner: PreTrainedModel, whole: bool) -> Tensor | None:
    """A forward pass over two short texts or two images; the logits, if it is one of a language model."""
    whole_model: Any = next(part for part in model.modules() if isinstance(part, PreTrainedModel))
    runs: Any = whole_model if whole and model.get_output_embeddings() is not None else owner
    device = "cpu" if owner.device.type == "meta" else owner.device  # offloaded: accelerate moves inputs
    if not _reads_tokens(owner):
        config: Any = owner.config
        size = [config.image_size] * 2 if isinstance(config.image_size, int) else [*config.image_size]
        shape = (2, config.num_channels, *size)  # a ramp: all-equal pixels could hide a difference
        ramp = torch.linspace(-1, 1, math.prod(shape), device=device, dtype=owner.dtype)
        runs.forward(pixel_values=ramp.view(shape))
        return None
    settings = {**vars(model.config.get_text_config()), **vars(model.config)}.items()
    special = {id_ for name, id_ in settings if name.endswith(("token_id", "token_index"))}
    n_tokens = runs.get_input_embeddings().num_embeddings
    ordinary = [i for i in range(min(n_tokens, 1000)) if i not in special]
    ids = torch.tensor(ordinary, device=device)[torch.arange(2 * N_TOKENS) * 7 % len(ordinary)]
    options = {"use_cache": False} if "use_cache" in inspect.signature(runs.forward).parameters else {}
    return getattr(runs.forward(input_ids=ids.view(2, N_TOKENS), **options), "logits", None)


@dataclass
class _Pass:
    """One forward pass in which each site is edited, and compared with what it must follow from.

    Attributes:
        sites: those to be edited.
        whole: run the whole model; else the tower alone.
        wrong: site -> what was measured that contradicts it.
        no_lens: the same of the logit lens.
    """

    model: PreTrainedModel
    layout: Layout
    sites: Sequence[str]
    whole: bool
    wrong: dict[str, str] = field(default_factory=dict)
    no_lens: str = ""

    def run(self) -> None:
        """Runs the pass."""
        layout, self.count = self.layout, Counter[tuple[str, int]]()
        # site -> activation as it came, and as the model went on with it; of the layer that is running
        self.came, self.went = dict[str, Tensor](), dict[str, Tensor]()
        self.left: Tensor | None = None  # the last block
        self.n_positions = N_TOKENS if _reads_tokens(layout.owner) else None
        with ExitStack() as stack:
            for site in self.sites:
                for layer in layout.layers(site, None):
                    stack.enter_context(edit(self, site, layer=layer, fn=partial(self._note, site, layer)))
            logits = _run(self.model, layout.owner, self.whole)
        self._compare(len(layout.blocks) - 1)
        for site in self.sites:
            if off := [layer for layer in layout.layers(site, None) if self.count[site, layer] != 1]:
                times = self.count[site, off[0]]
                self.wrong[site] = f"a forward pass reaches it {times} times in layer {off[0]}, not once"
        head: Any = self.model.get_output_embeddings()
        if head is None or logits is None or self.left is None:
            self.no_lens = (
                ""
                if head is None or not self.whole
                else "its logits could not be compared with its last resid_post"
            )
            return
        try:
            said = layout.logits(head, self.left)
        except (LookupError, RuntimeError, TypeError) as error:
            self.no_lens = str(error)
        else:
            off = _difference(logits, said)
            self.no_lens = off and f"its logits are off final norm, unembedding and soft cap by {off}"

    def _note(self, site: str, layer: int, activation: Tensor) -> Tensor:
        """Keeps a site's activation, and changes it; at the end of a layer all are compared."""
        if site == "resid_pre":
            self._compare(layer - 1)  # if the end of that layer was not seen
            if self.left is not None and (off := _difference(activation, self.left)):
                self._contradict("resid_post", f"resid_pre of the next layer is off it by {off}")
        self.count[site, layer] += 1
        axes = SITES[site].partition(":")[0].split()
        if self.n_positions is None:  # of an image they are as many as of the first activation
            self.n_positions = activation.shape[2 if site in ("scores", "pattern") else 1]
        sizes = {"batch": 2, "d_mlp": activation.shape[-1]} | vars(self.layout)
        expected = tuple(sizes.get(axis, self.n_positions) for axis in axes)
        if activation.shape != expected:
            self._contradict(
                site, f"its shape is {tuple(activation.shape)}, not {expected} ({' '.join(axes)})"
            )
            return activation
        self.came[site], changed = activation, activation * FACTORS.get(site, 1.0)
        if site in ("q", "k", "v"):
            # Both rows alike but for the last head, which changes sign (so that norms do not matter) where
            # one looks from the last position, or looks at the first.
            changed[1] = changed[0]
            changed[1, {"q": slice(-1, None), "k": slice(1), "v": slice(None)}[site], -1] *= -1
        self.went[site] = changed.clone()  # the model may write into its own
        if site == "resid_post":
            self._compare(layer)
            self.left = changed.clone()
        return changed

    def _contradict(self, site: str, measured: str) -> None:
        self.wrong.setdefault(site, measured)

    def _compare(self, layer: int) -> None:
        """Compares a layer's activations with what they must follow from."""
        came, went, self.came, self.went = self.came, self.went, {}, {}
        if not came or layer < 0:
            return
        block, family = self.layout.blocks[layer], self.layout.family
        self._compare_heads(came, went)
        if came.keys() >= {"z", "attn_out"}:
            parts = [module(block, path) for path in (family.out, family.attn_out) if path]
            self._follows("attn_out", came, "the projection of z", _through(parts, went["z"].flatten(2)))
        if came.keys() >= {"mlp_act", "mlp_out"}:
            parts = [module(block, path) for path in (family.down, family.mlp_out) if path]
            self._follows("mlp_out", came, "the projection of mlp_act", _through(parts, went["mlp_act"]))
        if missing := {"resid_pre", "attn_out", "mlp_out", "resid_post"} - came.keys():
            for site in {"attn_out", "resid_mid", "mlp_out"} & came.keys():
                self._contradict(site, f"there is no {min(missing)} with which it could add up")
            return
        # Some families (BERT) normalise the stream after each sum.
        norms = [part for part in block.modules() if "norm" in type(part).__name__.lower()]

        def sums(x: Tensor) -> list[Tensor]:
            return [x, *(y for norm in norms if (y := _through([norm], x)) is not None)]

        mids = sums(went["resid_pre"] + went["attn_out"])
        if "resid_mid" in came:
            self._follows("resid_mid", came, "resid_pre + attn_out", *mids)
            posts = sums(went["resid_mid"] + went["mlp_out"])
            if (off := _difference(came["resid_post"], *posts)) and "resid_mid" not in self.wrong:
                self._contradict("resid_mid", f"resid_post is off resid_mid + mlp_out by {off}")
        else:
            posts = [post for mid in mids for post in sums(mid + went["mlp_out"])]
            if off := _difference(came["resid_post"], *posts):
                for site in ("attn_out", "mlp_out"):
                    self._contradict(site, f"resid_post is off resid_pre + attn_out + mlp_out by {off}")

    def _follows(self, site: str, came: dict[str, Tensor], what: str, *expected: Tensor | None) -> None:
        if off := _difference(came[site], *expected):
            self._contradict(site, f"it is off {what} by {off}")

    def _compare_heads(self, came: dict[str, Tensor], went: dict[str, Tensor]) -> None:
        """Which head's q, k and v make which head's scores, pattern and z."""
        n, n_kv = self.layout.n_heads, self.layout.n_kv_heads
        if came.keys() >= {"scores", "pattern"}:
            seen = came["pattern"] > 0
            pattern = went["scores"].masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
            pattern = pattern * came["pattern"].sum(-1, keepdim=True)  # less than 1 where heads have sinks
            self._follows("pattern", came, "the softmax of the masked scores", pattern)
        if came.keys() >= {"pattern", "v", "z"}:
            v = went["v"].repeat_interleave(n // n_kv, 2)
            if off := _difference(came["z"], torch.einsum("bhqk,bkhd->bqhd", went["pattern"], v)):
                for site in ("v", "z"):
                    self._contradict(site, f"z is off pattern @ v by {off}")
        what = next((site for site in ("scores", "pattern", "z") if site in came), None)
        if what is None:
            return
        if what == "z" and n != n_kv:
            for site in {"q", "k", "v"} & came.keys():
                self._contradict(site, "without scores or pattern nothing tells which head it is of")
            return
        x = came["z"].transpose(1, 2) if what == "z" else came[what]
        change = (x[1] - x[0]).abs()  # head query (key or d_head)
        keys = slice(None) if what == "z" else slice(1)
        for site, part in (("q", change[:, -1, 1:]), ("k", change[:, 1:-1, keys])):
            group = 1 if site == "q" and what == "scores" else n // n_kv
            by_head = part.flatten(1).amax(1)
            most, there = int(by_head.argmax()), what == "scores" and x[0, -1].abs().max() > 0
            if site in came and (most < n - group if by_head.max() > 1e-3 * x.abs().max() else there):
                moved = f"those of head {most} most" if by_head.max() > 0 else "none"
                self._contradict(site, f"when its last head changes, of {what} it changes {moved}")


def _reads_tokens(owner: PreTrainedModel) -> bool:
    """Whether a tower embeds tokens; else it reads images."""
    return modality(owner) == "text" or isinstance(owner.get_input_embeddings(), nn.Embedding)


def _through(parts: Sequence[Any], x: Tensor) -> Tensor | None:
    """What modules one after another make of x, without their hooks; None if they cannot read it."""
    try:
        for part in parts:
            x = part.forward(x)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return None
    return x


def _difference(x: Tensor, *expected: Tensor | None) -> str:
    """By how much x differs from the nearest of some tensors, in words; empty if that is rounding."""
    tolerance, largest = torch.finfo(x.dtype).eps ** 0.5, x.abs().max().item()
    offs = [
        (x - other.to(x.device)).abs().max().item() if other.shape == x.shape else math.inf
        for other in expected
        if other is not None
    ]
    off = min((off for off in offs if math.isfinite(off)), default=math.inf)
    return "" if off <= tolerance * largest else f"{off:.2g} (its largest is {largest:.2g})"
