"""Sites: where things are in each architecture.

A site is a named place in a transformer at which an activation can be read or changed. `FAMILIES` has one row
a family: the paths, inside one block, of the modules at whose input or output each site lies. An architecture
without a row of its own gets the first row whose modules its blocks all have (`lib.models` then compares the
sites with one another in a small forward pass, and withholds those that do not add up).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

SITES = {
    "embed": "batch seq d_model: embedded tokens (text), or embedded patches with positions (vision); layer 0",
    "resid_pre": "batch seq d_model: the residual stream that enters a block",
    "resid_mid": "batch seq d_model: the residual stream between attention and MLP",
    "resid_post": "batch seq d_model: the residual stream that leaves a block",
    "attn_out": "batch seq d_model: what attention adds to the residual stream, before dropout",
    "mlp_out": "batch seq d_model: what the MLP adds to the residual stream, before dropout",
    "mlp_act": "batch seq d_mlp: the MLP's neurons (activated, gated), the input of its last projection",
    "q": "batch seq n_heads d_head: queries as projected, before norms and rotary positions",
    "k": "batch seq n_kv_heads d_head: keys as projected, before norms and rotary positions",
    "v": "batch seq n_kv_heads d_head: values as projected",
    "z": "batch seq n_heads d_head: the heads' outputs, before the output projection",
    "scores": "batch n_heads query key: scaled and soft-capped scores, before the mask is added",
    "pattern": "batch n_heads query key: attention probabilities, before dropout",
}
"""Every site and the shape of its activation."""


@dataclass(frozen=True)
class Family:
    """One row of the table. All paths are relative to a block.

    Attributes:
        attention: the module that calls the attention function.
        qkv: the projections to q, k and v; or one fused projection.
        out: attention's output projection; its input is `z`.
        down: the MLP's last projection; its input is `mlp_act`.
        mid: the module that reads `resid_mid` ("ln_2"), or after a ">" the one that returns it
            (">self_attention"); None in a parallel block.
        attn_out, mlp_out: modules whose output is added to the residual stream, if not `out` and `down`.
        fused: order in a fused projection: "blocks" (all q, all k, all v) or "heads" (q, k, v of each head).
        pattern: the module that receives the pattern, in a family that computes attention by itself.
        flat: the MLP sees batch and sequence merged in one axis.
    """

    attention: str
    qkv: tuple[str, ...]
    out: str
    down: str
    mid: str | None
    attn_out: str = ""
    mlp_out: str = ""
    fused: Literal["blocks", "heads"] = "blocks"
    pattern: str = ""
    flat: bool = False

    def paths(self) -> list[str]:
        """The modules that a block must have for this row to fit."""
        mid = [self.mid.removeprefix(">")] if self.mid else []
        named = [self.attn_out, self.mlp_out, self.pattern]
        return [self.attention, *self.qkv, self.out, self.down, *mid, *filter(None, named)]


def _projections(prefix: str, names: str = "q_proj k_proj v_proj") -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in names.split())


LLAMA = Family(
    attention="self_attn",
    qkv=_projections("self_attn"),
    out="self_attn.o_proj",
    down="mlp.down_proj",
    mid="post_attention_layernorm",
)
GEMMA = replace(  # a norm before and after each half
    LLAMA,
    mid="pre_feedforward_layernorm",
    attn_out="post_attention_layernorm",
    mlp_out="post_feedforward_layernorm",
)
OLMO = replace(GEMMA, mid="mlp")  # norms only after each half, so that the MLP reads the stream itself
PHI = replace(LLAMA, qkv=("self_attn.qkv_proj",))
GPT2 = Family(attention="attn", qkv=("attn.c_attn",), out="attn.c_proj", down="mlp.c_proj", mid="ln_2")
NEOX = Family(
    attention="attention",
    qkv=("attention.query_key_value",),
    out="attention.dense",
    down="mlp.dense_4h_to_h",
    mid="post_attention_layernorm",
    fused="heads",
)
BLOOM = Family(
    attention="self_attention",
    qkv=("self_attention.query_key_value",),
    out="self_attention.dense",
    down="mlp.dense_4h_to_h",
    mid=">self_attention",  # adds the residual stream by itself
    fused="heads",
    pattern="self_attention.attention_dropout",
)
OPT = Family(
    attention="self_attn",
    qkv=_projections("self_attn"),
    out="self_attn.out_proj",
    down="fc2",
    mid="final_layer_norm",
    flat=True,
)
CLIP = replace(OPT, down="mlp.fc2", mid="layer_norm2", flat=False)
VIT = Family(
    attention="attention",
    qkv=_projections("attention"),
    out="attention.o_proj",
    down="mlp.fc2",
    mid="layernorm_after",
)
BERT = Family(
    attention="attention.self",
    qkv=_projections("attention.self", "query key value"),
    out="attention.output.dense",
    down="output.dense",
    mid=">attention",
)

# `model_type` of the configuration of the blocks' owner -> row. Order matters for unlisted families: a row comes
# after those that need more modules (a Gemma block has all that a Llama block has).
FAMILIES: dict[str, Family] = {
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "olmo2": OLMO,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma": LLAMA,
    "qwen2_vl_text": LLAMA,
    "qwen2_5_vl_text": LLAMA,
    "phi3": PHI,
    "gpt2": GPT2,
    "gpt_neox": NEOX,
    "bloom": BLOOM,
    "opt": OPT,
    "clip_text_model": CLIP,
    "clip_vision_model": CLIP,
    "siglip_text_model": CLIP,
    "siglip_vision_model": CLIP,
    "idefics3_vision": CLIP,
    "vit": VIT,
    "deit": VIT,
    "bert": BERT,
}


@dataclass(frozen=True)
class Point:
    """One site of one layer: what goes into, or comes out of, a module.

    Attributes:
        module: the module to hook.
        side: which of its tensors.
        view: gives the site's part of that tensor, as a view.
        partial: the view is only a part of the tensor (fused projections).
        shared: the residual stream reads the same tensor again, so that an edit must write into it.
        block: for `flat` families, the block whose input tells the batch size.
    """

    module: nn.Module
    side: Literal["input", "output"]
    view: Callable[[Tensor], Tensor] = lambda tensor: tensor
    partial: bool = False
    shared: bool = False
    block: nn.Module | None = None

    def write(self, tensor: Tensor, activation: Tensor) -> Tensor:
        """The tensor with the site's part replaced."""
        if not (self.partial or self.shared):
            return activation.reshape(tensor.shape)
        if not self.shared:
            tensor = tensor.clone()
        view = self.view(tensor)
        view.copy_(activation.reshape(view.shape))
        return tensor


def _module(block: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        block = getattr(block, name, None)  # type: ignore[assignment]
        if block is None:
            return None
    return block


def _width(projection: nn.Module) -> tuple[int, int]:
    """Input and output width; not from the weight, whose shape is packed when quantised."""
    if hasattr(projection, "in_features"):
        return projection.in_features, projection.out_features  # type: ignore[return-value]
    return projection.nx, projection.nf  # type: ignore[return-value]  # GPT-2's Conv1D


@dataclass(frozen=True)
class Layout:
    """The sites of one tower of a model.

    Attributes:
        owner: the innermost transformers model around the blocks; its configuration is the tower's.
        blocks: the tower's blocks, in order.
        family: the row of the table.
        listed: whether the family has a row of its own.
        withheld: site -> why it is not offered.
    """

    owner: PreTrainedModel
    blocks: nn.ModuleList
    family: Family
    listed: bool
    withheld: dict[str, str] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def n_heads(self) -> int:
        """Number of query heads."""
        return self.owner.config.num_attention_heads

    @property
    def n_kv_heads(self) -> int:
        """Number of key and value heads."""
        return getattr(self.owner.config, "num_key_value_heads", None) or self.n_heads

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.owner.config.hidden_size

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return getattr(self.owner.config, "head_dim", None) or self.d_model // self.n_heads

    def layers(self, site: str, layers: int | range | list[int] | None) -> list[int]:
        """The layers asked for, checked; None is all of them.

        Raises:
            LookupError: the site is unknown, or this architecture does not have it.
            IndexError: there is no such layer.
        """
        if site not in SITES:
            raise LookupError(f"no site {site!r}; the sites are {', '.join(SITES)}")
        if site in self.withheld:
            raise LookupError(f"no site {site!r} in {type(self.owner).__name__}: {self.withheld[site]}")
        n = 1 if site == "embed" else self.n_layers
        if layers is None:
            return list(range(n))
        chosen = [int(layer) for layer in ([layers] if isinstance(layers, int) else layers)]
        for layer in chosen:
            if not 0 <= layer < n:
                raise IndexError(
                    f"layer {layer} of site {site!r}: {type(self.owner).__name__} has layers 0 to {n - 1}"
                    if n > 1
                    else f"layer {layer} of site {site!r}: only layer 0 exists"
                )
        return chosen

    def point(self, site: str, layer: int) -> Point | None:
        """Where a site lies; None if it is inside the attention function (`lib.attention`)."""
        block, family = self.blocks[layer], self.family

        def at(path: str, side: Literal["input", "output"], **options: object) -> Point:
            module = _module(block, path)
            assert module is not None  # checked by `resolve`
            return Point(module, side, **options)  # type: ignore[arg-type]

        flat = {"block": block} if family.flat else {}
        match site:
            case "embed":
                embed = getattr(self.owner, "embeddings", None)
                if embed is None or modality(self.owner) == "text":
                    embed = self.owner.get_input_embeddings()
                return Point(embed, "output")
            case "resid_pre":
                return Point(block, "input")
            case "resid_post":
                return Point(block, "output")
            case "resid_mid":
                assert family.mid is not None
                if family.mid.startswith(">"):
                    return at(family.mid[1:], "output")
                return at(family.mid, "input", shared=True, **flat)
            case "attn_out":
                return at(family.attn_out or family.out, "output")
            case "mlp_out":
                return at(family.mlp_out or family.down, "output", **flat)
            case "mlp_act":
                return at(family.down, "input", **flat)
            case "z":
                return at(family.out, "input", view=lambda x: x.unflatten(-1, (self.n_heads, self.d_head)))
            case "q" | "k" | "v":
                if len(family.qkv) == 1:
                    return at(family.qkv[0], "output", view=self._fused("qkv".index(site)), partial=True)
                return at(
                    family.qkv["qkv".index(site)], "output", view=lambda x: x.unflatten(-1, (-1, self.d_head))
                )
            case "pattern" if family.pattern:
                return at(family.pattern, "input")
        return None

    def _fused(self, index: int) -> Callable[[Tensor], Tensor]:
        """A view of q, k or v (0, 1, 2) in the output of a fused projection."""
        if self.family.fused == "heads":
            return lambda x: x.unflatten(-1, (self.n_heads, 3, self.d_head))[..., index, :]
        heads = [self.n_heads, self.n_kv_heads, self.n_kv_heads]
        start = sum(heads[:index])
        return lambda x: x.unflatten(-1, (sum(heads), self.d_head))[..., start : start + heads[index], :]

    def attention(self, layer: int) -> nn.Module:
        """The module that calls the attention function."""
        module = _module(self.blocks[layer], self.family.attention)
        assert module is not None  # checked by `resolve`
        return module


def modality(owner: PreTrainedModel) -> str:
    """What a tower reads: "text" or "vision"."""
    return "vision" if "image" in owner.input_modalities else "text"


def _children(block: nn.Module) -> str:
    return ", ".join(name for name, _ in block.named_children())


def _fits(family: Family, blocks: nn.ModuleList) -> bool:
    return all(_module(block, path) is not None for block in blocks for path in family.paths())


def _stacks(model: PreTrainedModel) -> list[tuple[PreTrainedModel, nn.ModuleList]]:
    """The stacks of transformer blocks in a model, each with the innermost transformers model around it."""
    owners = {"": model}
    stacks = []
    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            owners[path] = module
        if isinstance(module, nn.ModuleList) and len(module):
            owner = owners[max((p for p in owners if f"{path}.".startswith(f"{p}." if p else "")), key=len)]
            if len(module) == getattr(owner.config, "num_hidden_layers", None):
                stacks.append((owner, module))
    return stacks


def towers(model: PreTrainedModel) -> dict[str, Layout]:
    """The towers of a model, by what they read ("text", "vision").

    Raises:
        LookupError: no stack of blocks fits any row of the table; the message has the modules' names.
    """
    found: dict[str, Layout] = {}
    stacks = _stacks(model)
    for owner, blocks in stacks:
        row = FAMILIES.get(owner.config.model_type)
        family = row or next((row for row in FAMILIES.values() if _fits(row, blocks)), None)
        if family is not None and _fits(family, blocks):
            found.setdefault(modality(owner), _checked(Layout(owner, blocks, family, row is not None)))
    if not found:
        seen = "; ".join(f"{type(blocks[0]).__name__} has {_children(blocks[0])}" for _, blocks in stacks)
        raise LookupError(
            f"the sites of {type(model).__name__} could not be found: "
            + (
                f"no row of lib.sites.FAMILIES fits its blocks ({seen})"
                if seen
                else "it has no stack of blocks"
            )
        )
    return found


def _checked(layout: Layout) -> Layout:
    """Compares widths with the configuration, and withholds the sites that the architecture does not have."""
    owner, family, withheld = layout.owner, layout.family, dict(layout.withheld)
    name = type(owner).__name__
    for block in layout.blocks:
        heads = layout.n_heads * layout.d_head
        for path, got, expected in [
            (family.out, _width(_module(block, family.out)), (heads, layout.d_model)),  # type: ignore[arg-type]
            (family.down, _width(_module(block, family.down))[1], layout.d_model),  # type: ignore[arg-type]
            (family.qkv[0], _width(_module(block, family.qkv[0]))[0], layout.d_model),  # type: ignore[arg-type]
        ]:
            if got != expected:
                raise LookupError(f"{name}: {path} is {got} wide, its configuration says {expected}")
    if getattr(layout.blocks[0], "use_parallel_residual", False):
        withheld["resid_mid"] = (
            "attention and MLP run in parallel; resid_pre + attn_out + mlp_out is resid_post"
        )
    if family.pattern:
        withheld["scores"] = f"{name} computes attention by itself; use 'pattern', 'q', 'k' or 'v'"
    return replace(layout, withheld=withheld)


def discrepancies(sites: dict[str, Float[Tensor, "batch seq d_model"]]) -> dict[str, float]:
    """How far one layer's sites are from adding up, relative to what was added.

    Args:
        sites: resid_pre, attn_out, mlp_out, resid_post and, unless the block is parallel, resid_mid.

    Returns:
        site -> size of the error: 0 if what comes before it, plus what was added, is that site.
    """

    def error(total: Tensor, parts: list[Tensor]) -> float:
        added = torch.stack(parts[1:]).sum(0)
        return float((total - parts[0] - added).norm() / added.norm().clamp_min(1e-30))

    pre, post = sites["resid_pre"], sites["resid_post"]
    if "resid_mid" not in sites:
        return {"resid_post": error(post, [pre, sites["attn_out"], sites["mlp_out"]])}
    mid = sites["resid_mid"]
    return {
        "resid_mid": error(mid, [pre, sites["attn_out"]]),
        "resid_post": error(post, [mid, sites["mlp_out"]]),
    }
