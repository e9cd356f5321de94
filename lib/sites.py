"""Sites: where things are in each architecture.

A site is a named place in a transformer at which an activation can be read or changed. `FAMILIES` has one row
a family: the paths, inside one block, of the modules at whose input or output each site lies. An architecture
without a row of its own gets the first row whose modules its blocks all have (`lib.models` then compares the
sites with one another in a small forward pass, and withholds those that do not add up).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

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
        down: the MLP's last projection; its input is `mlp_act`. Empty for a mixture of experts.
        mid: the module that reads `resid_mid` ("ln_2"), or after a ">" the one that returns it (">attention").
        attn_out, mlp_out: modules whose output is added to the residual stream, if not `out` and `down`.
        fused: order in a fused projection: "blocks" (all q, all k, all v) or "heads" (q, k, v of each head).
        pattern: the module that receives the pattern, in a family that computes attention by itself.
        flat: the MLP sees batch and sequence merged in one axis.
    """

    attention: str
    qkv: tuple[str, ...]
    out: str
    down: str
    mid: str
    attn_out: str = ""
    mlp_out: str = ""
    fused: Literal["blocks", "heads"] = "blocks"
    pattern: str = ""
    flat: bool = False

    def fits(self, block: nn.Module) -> bool:
        """Whether a block has all modules that this row names."""
        paths = [self.attention, *self.qkv, self.out, self.mid.removeprefix(">")]
        paths += filter(None, [self.down, self.attn_out, self.mlp_out, self.pattern])
        return all(module(block, path) is not None for path in paths)


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
MIXTURE = replace(LLAMA, down="", mlp_out="mlp")
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
    "gpt_oss": MIXTURE,
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


@dataclass(frozen=True)
class Layout:
    """The dimensions and sites of one tower of a model.

    Attributes:
        owner: the innermost transformers model around the blocks; its configuration is the tower's.
        blocks: the tower's blocks, in order.
        family: the row of the table.
        listed: whether the architecture has a row of its own.
        n_heads, n_kv_heads, d_model, d_head: as `lib.models.Subject` has them.
        withheld: site -> why it is not offered.
    """

    owner: PreTrainedModel
    blocks: nn.ModuleList
    family: Family
    listed: bool
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    withheld: dict[str, str]

    def layers(self, site: str, layers: int | Iterable[int] | None) -> list[int]:
        """The layers asked for, checked; None is all of them.

        Raises:
            LookupError: the site is unknown, or this architecture does not have it.
            IndexError: there is no such layer.
        """
        name = type(self.owner).__name__
        if site not in SITES:
            raise LookupError(f"no site {site!r}; the sites are {', '.join(SITES)}")
        if site in self.withheld:
            offered = ", ".join(other for other in SITES if other not in self.withheld)
            raise LookupError(f"no site {site!r} in {name}: {self.withheld[site]}; it has {offered}")
        n_layers = 1 if site == "embed" else len(self.blocks)
        chosen = range(n_layers) if layers is None else [layers] if isinstance(layers, int) else layers
        for layer in (chosen := [int(layer) for layer in chosen]):
            if not 0 <= layer < n_layers:
                have = f"layers 0 to {n_layers - 1}" if n_layers > 1 else "layer 0 only"
                raise IndexError(f"no layer {layer} of site {site!r}: {name} has {have}")
        return chosen

    def attention(self, layer: int) -> nn.Module:
        """The module that calls the attention function."""
        return module(self.blocks[layer], self.family.attention)

    def point(self, site: str, layer: int) -> Point | None:
        """Where a site lies; None if it is inside the attention function (`lib.attention`)."""
        block, family = self.blocks[layer], self.family

        def into(path: str, **options: Any) -> Point:
            return Point(module(block, path), "input", **options)

        def out_of(path: str, **options: Any) -> Point:
            return Point(module(block, path), "output", **options)

        flat = {"block": block} if family.flat else {}
        match site:
            case "embed":
                vision = modality(self.owner) == "vision"
                return Point(self.owner.embeddings if vision else self.owner.get_input_embeddings(), "output")
            case "resid_pre":
                return Point(block, "input")
            case "resid_mid" if family.mid.startswith(">"):
                return out_of(family.mid[1:])
            case "resid_mid":
                return into(family.mid, shared=True, **flat)
            case "resid_post":
                return Point(block, "output")
            case "attn_out":
                return out_of(family.attn_out or family.out)
            case "mlp_out":
                return out_of(family.mlp_out or family.down, **flat)
            case "mlp_act":
                return into(family.down, **flat)
            case "z":
                return into(family.out, view=lambda x: x.unflatten(-1, (self.n_heads, self.d_head)))
            case "q" | "k" | "v" if len(family.qkv) == 1:
                return out_of(family.qkv[0], view=self._fused("qkv".index(site)), partial=True)
            case "q" | "k" | "v":
                return out_of(
                    family.qkv["qkv".index(site)], view=lambda x: x.unflatten(-1, (-1, self.d_head))
                )
            case "pattern" if family.pattern:
                return into(family.pattern)
        return None

    def _fused(self, index: int) -> Callable[[Tensor], Tensor]:
        """A view of q, k or v (0, 1, 2) in the output of a fused projection."""
        if self.family.fused == "heads":
            return lambda x: x.unflatten(-1, (self.n_heads, 3, self.d_head))[..., index, :]
        heads = [self.n_heads, self.n_kv_heads, self.n_kv_heads]
        start = sum(heads[:index])
        return lambda x: x.unflatten(-1, (sum(heads), self.d_head))[..., start : start + heads[index], :]


def modality(owner: PreTrainedModel) -> Literal["text", "vision"]:
    """What a tower reads."""
    return "vision" if "image" in owner.input_modalities else "text"


def module(block: nn.Module, path: str) -> Any:
    """The module at a path below a block, or None."""
    found: Any = block
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def towers(model: PreTrainedModel) -> dict[str, Layout]:
    """The towers of a model, by what they read ("text", "vision").

    Raises:
        LookupError: no stack of blocks fits any row of the table; the message has the modules' names.
    """
    found: dict[str, Layout] = {}
    stacks = _stacks(model)
    for owner, blocks in stacks:
        own = FAMILIES.get(owner.config.model_type)
        for family in [own] if own else FAMILIES.values():
            if all(family.fits(block) for block in blocks):
                found.setdefault(modality(owner), _layout(owner, blocks, family, own is not None))
                break
    if not found:
        seen = "; ".join(
            f"a {type(blocks[0]).__name__} has {', '.join(name for name, _ in blocks[0].named_children())}"
            for _, blocks in stacks
        )
        raise LookupError(
            f"no sites found in {type(model).__name__}: "
            + (
                f"no row of lib.sites.FAMILIES fits its blocks ({seen})"
                if seen
                else "it has no stack of blocks"
            )
        )
    return found


def _stacks(model: PreTrainedModel) -> list[tuple[PreTrainedModel, nn.ModuleList]]:
    """The stacks of blocks in a model, each with the innermost transformers model around it."""
    owners: dict[str, PreTrainedModel] = {}
    stacks = []
    for path, part in model.named_modules():
        if isinstance(part, PreTrainedModel):
            owners[path] = part
        elif isinstance(part, nn.ModuleList) and len(part):
            around = [other for other in owners if not other or path.startswith(f"{other}.")]
            owner = owners[max(around, key=len)]
            if len(part) == getattr(owner.config, "num_hidden_layers", None):
                stacks.append((owner, part))
    return stacks


def _layout(owner: PreTrainedModel, blocks: nn.ModuleList, family: Family, listed: bool) -> Layout:
    """Takes the dimensions from the configuration, compares them with the modules, and withholds what is not there."""
    config = owner.config
    d_model, n_heads = config.hidden_size, config.num_attention_heads
    d_head = getattr(config, "head_dim", None) or d_model // n_heads
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    if len(family.qkv) == 3:
        n_kv_heads = _width(module(blocks[0], family.qkv[1]))[1] // d_head
    for block in blocks:
        q_in, _ = _width(module(block, family.qkv[0]))
        z, out = _width(module(block, family.out))
        if (q_in, z, out) != (d_model, n_heads * d_head, d_model):
            raise LookupError(
                f"{type(owner).__name__}: by its configuration, attention maps {d_model} to {n_heads} heads of {d_head} and "
                f"back to {d_model}; by its modules ({family.qkv[0]}, {family.out}) {q_in} to {z} to {out}"
            )
    withheld = {}
    if getattr(blocks[0], "use_parallel_residual", False):
        withheld["resid_mid"] = (
            "attention and MLP run in parallel (resid_pre + attn_out + mlp_out = resid_post)"
        )
    if not family.down:
        withheld["mlp_act"] = "its MLP is a mixture of experts"
    if family.pattern:
        withheld["scores"] = "it computes attention by itself, not through transformers' attention interface"
    return Layout(owner, blocks, family, listed, n_heads, n_kv_heads, d_model, d_head, withheld)


def _width(projection: Any) -> tuple[int, int]:
    """Input and output width; not from the weight, whose shape is packed when quantised."""
    if hasattr(projection, "in_features"):
        return projection.in_features, projection.out_features
    return projection.nx, projection.nf  # GPT-2's Conv1D


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
            tolerance = 20 * torch.finfo(post.dtype).eps * total.abs().max()
            if (total - parts).abs().max() > tolerance:
                wrong |= suspects
    return wrong
