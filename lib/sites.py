"""Sites: where things are in each architecture.

A site is a named place in a transformer at which an activation can be read or changed. `TABLE` has one row a
family: the paths, inside one block, of the modules at whose input or output each site lies. Names of modules
do not tell what is computed: of the rows whose modules all blocks have, `lib.checks` takes the one whose
sites agree with one another in a small forward pass of that very model, and withholds those that do not.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

SITES = {
    "embed": "batch seq d_model: embedded tokens (text) or patches with positions (vision); layer 0 only",
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
    """One row of the table: paths of modules, relative to a block (`qkv`: to the attention module).

    Attributes:
        attention: the module that calls the attention function.
        qkv: the projections to q, k and v; or one fused projection.
        out: attention's output projection; its input is `z`.
        mid: the module that reads `resid_mid` ("ln_2"), or, after a ">", that returns it (">attention").
            Empty where there is none, since attention and MLP run in parallel.
        down: the MLP's last projection; its input is `mlp_act`. Empty for a mixture of experts.
        attn_out, mlp_out: modules whose output is added to the residual stream, if not `out` and `down`.
        fused: order in a fused projection: "blocks" (all q, all k, all v) or "heads" (q, k, v of each group).
        pattern: the module that receives the pattern, in a family that computes attention by itself.
    """

    attention: str
    qkv: str
    out: str
    mid: str
    down: str
    attn_out: str = ""
    mlp_out: str = ""
    fused: Literal["blocks", "heads"] = "blocks"
    pattern: str = ""

    @property
    def projections(self) -> list[str]:
        """Paths of the projections to q, k and v, or of the fused one."""
        return [f"{self.attention}.{name}" for name in self.qkv.split()]

    def fits(self, block: nn.Module) -> bool:
        """Whether a block has all modules that this row names."""
        paths = [self.attention, *self.projections, self.out, self.mid.removeprefix(">"), self.down]
        paths += [self.attn_out, self.mlp_out, self.pattern]
        return all(module(block, path) is not None for path in paths if path)


# A row says where sites are, not what is computed: models whose modules have the same names share one.
QKV, NORM, FFN_NORM = "q_proj k_proj v_proj", "post_attention_layernorm", "post_feedforward_layernorm"
FFN_PRENORM, ATTENTION_NORM = "pre_feedforward_layernorm", "post_self_attn_layernorm"
LLAMA = Family("self_attn", QKV, "self_attn.o_proj", NORM, "mlp.down_proj")
GPT2 = Family("attn", "c_attn", "attn.c_proj", "ln_2", "mlp.c_proj")
DENSE = ("query_key_value", "self_attention.dense", ">self_attention", "mlp.dense_4h_to_h")
BLOOM = Family("self_attention", *DENSE, fused="heads", pattern="self_attention.attention_dropout")
NEOX = Family("attention", DENSE[0], "attention.dense", NORM, DENSE[3], fused="heads")

# Row and the `model_type`s of the configurations that it is for. Other rows that fit are tried in this order,
# so one comes after those that need more modules (a Gemma block has all that a Llama block has).
TABLE: list[tuple[Family, str]] = [
    # A norm before and after each half; a norm only after each half, so that the MLP reads the stream itself.
    (replace(LLAMA, mid=FFN_PRENORM, attn_out=NORM, mlp_out=FFN_NORM), "gemma2 gemma3_text"),
    (replace(LLAMA, mid="mlp", attn_out=NORM, mlp_out=FFN_NORM), "olmo2"),
    (replace(LLAMA, attn_out=ATTENTION_NORM, mlp_out="post_mlp_layernorm"), "glm4"),
    (LLAMA, "llama mistral qwen2 qwen3 gemma qwen2_vl_text qwen2_5_vl_text"),
    (replace(LLAMA, down="mlp.c_proj"), "starcoder2"),
    (replace(LLAMA, down="mlp.fc2"), "nanochat"),
    (replace(LLAMA, mid="feedforward_layernorm"), "apertus"),
    (replace(LLAMA, mid=FFN_PRENORM), "vaultgemma"),
    # Each expert has neurons of its own: no one `mlp_act`.
    (replace(LLAMA, down="", mlp_out="mlp"), "gpt_oss"),
    (replace(LLAMA, mid=""), "cohere cohere2"),
    (replace(LLAMA, qkv="qkv_proj"), "phi3"),
    (Family("self_attn", QKV, "self_attn.dense", "", "mlp.fc2"), "phi"),
    (GPT2, "gpt2 gpt_bigcode"),
    (replace(GPT2, fused="heads"), ""),  # GPT-BigCode without multi-query attention
    (Family("attn", QKV, "attn.out_proj", "", "mlp.fc_out"), "gptj"),
    (Family("attn.attention", QKV, "attn.attention.out_proj", "ln_2", "mlp.c_proj"), "gpt_neo"),
    (NEOX, "gpt_neox"),
    (replace(NEOX, attention="self_attn", out="self_attn.dense"), "persimmon"),
    (BLOOM, "bloom"),  # its attention and its MLP add the residual stream by themselves
    (replace(BLOOM, mid=NORM), "falcon"),
    (Family("self_attn", QKV, "self_attn.out_proj", "final_layer_norm", "fc2"), "opt xglm biogpt"),
    (
        Family("self_attn", QKV, "self_attn.out_proj", "layer_norm2", "mlp.fc2"),
        "clip_text_model clip_vision_model siglip_text_model siglip_vision_model idefics3_vision",
    ),
    (Family("attention", QKV, "attention.o_proj", "layernorm_after", "mlp.fc2"), "vit deit"),
    (
        Family("attention.self", "query key value", "attention.output.dense", ">attention", "output.dense"),
        "bert roberta xlm-roberta",
    ),
]
FAMILIES = {model_type: row for row, model_types in TABLE for model_type in model_types.split()}


# What architectures call the norm after their last block.
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "layer_norm")


@dataclass(frozen=True)
class Point:
    """One site of one layer: what goes into, or comes out of, a module.

    Attributes:
        module: the module to hook.
        side: which of its tensors.
        view: gives the site's part of that tensor, as a view.
        partial: the view is only a part of the tensor (fused projections).
        shared: the residual stream reads the same tensor again, so that an edit must write into it.
        block: the block whose input tells the batch size, where batch and sequence may be one axis (OPT).
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
        # A shared tensor is changed in place: the skip connection around the MLP reads it too, and a new one
        # would reach the MLP only. Of a partial one the rest (k and v beside q) must stay as it is.
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
        no_lens: why the logit lens is not offered; empty if it is, or if there are no logits.
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
    no_lens: str = ""

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
        n_layers = 1 if site == "embed" else len(self.blocks)  # there is one embedding, before all blocks
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

        match site:
            case "embed":
                # A vision tower's adds class token and positions; a text tower's gives the tokens alone.
                owner: Any = self.owner
                text = modality(owner) == "text"
                return Point(owner.get_input_embeddings() if text else owner.embeddings, "output")
            case "resid_pre":
                return Point(block, "input")
            case "resid_mid" if family.mid.startswith(">"):
                return out_of(family.mid[1:])
            case "resid_mid":  # what the norm before the MLP reads
                return into(family.mid, shared=True, block=block)
            case "resid_post":
                return Point(block, "output")
            case "attn_out":
                return out_of(family.attn_out or family.out)
            case "mlp_out":
                return out_of(family.mlp_out or family.down, block=block)
            case "mlp_act":
                return into(family.down, block=block)
            case "z":  # before the output projection mixes the heads
                return into(family.out, view=lambda x: x.unflatten(-1, (self.n_heads, self.d_head)))
            case "q" | "k" | "v":
                paths, index = family.projections, "qkv".index(site)
                if len(paths) == 1:
                    return out_of(paths[0], view=self._fused(index), partial=True)
                # A wider q projection holds a gate beside each head's query (Qwen3-Next).
                n, d_head = (self.n_kv_heads if index else self.n_heads), self.d_head
                return out_of(
                    paths[index], view=lambda x: x.unflatten(-1, (n, -1))[..., :d_head], partial=site == "q"
                )
            case "pattern" if family.pattern:
                return into(family.pattern)
        return None

    def logits(self, head: nn.Module, resid: Tensor) -> Tensor:
        """What a model with this text tower and unembedding `head` says if `resid` leaves the last block.

        Raises:
            LookupError: there is no final norm of a known name.
        """
        norms = [getattr(self.owner, name) for name in _FINAL_NORMS if hasattr(self.owner, name)]
        if not norms:
            modules = ", ".join(name for name, _ in self.owner.named_children())
            raise LookupError(
                f"no final norm ({', '.join(_FINAL_NORMS)}) in {type(self.owner).__name__}: {modules}"
            )
        weight: Any = getattr(head, "weight", resid)
        final: Any = resid.to(weight.dtype if weight.is_meta else weight)  # offloaded: accelerate moves it
        for part in (norms[0], getattr(self.owner, "project_out", None), head):  # an OPT can lack either
            final = final if part is None else part(final)
        cap = getattr(self.owner.config, "final_logit_softcapping", None)
        return final if cap is None else cap * torch.tanh(final / cap)

    def _fused(self, index: int) -> Callable[[Tensor], Tensor]:
        """A view of q, k or v (0, 1, 2) in the output of a fused projection."""
        if self.family.fused == "heads":  # [key-value head, (its query heads, k, v), d_head]
            group, n_kv, d_head = self.n_heads // self.n_kv_heads, self.n_kv_heads, self.d_head
            chosen = slice(group) if index == 0 else slice(group + index - 1, group + index)
            return lambda x: x.unflatten(-1, (n_kv, group + 2, d_head))[..., chosen, :].flatten(-3, -2)
        # [all heads of q, then of k, then of v; d_head]: with grouped queries k and v have fewer.
        heads = [self.n_heads, self.n_kv_heads, self.n_kv_heads]
        start = sum(heads[:index])
        return lambda x: x.unflatten(-1, (sum(heads), self.d_head))[..., start : start + heads[index], :]


def modality(owner: PreTrainedModel) -> str:
    """What a tower reads: "text", if it embeds tokens; "vision"; else what transformers calls it."""
    kinds = owner.input_modalities
    if _embedding(owner) is not None or kinds == "text":
        return "text"
    return "vision" if "image" in kinds else str(kinds)


def module(block: nn.Module, path: str) -> Any:
    """The module at a path below a block, or None."""
    part: Any = block  # nn.Module's attributes are tensors or modules to a type checker
    for name in path.split("."):
        part = getattr(part, name, None)
    return part


def towers(model: PreTrainedModel) -> dict[str, list[Layout] | str]:
    """The towers of a model, by what they read: "text", then "vision".

    The text tower is the stack between the model's token embedding and its unembedding. A tower's value has
    one layout for each row of the table that fits its blocks, or says why there is none.

    Raises:
        LookupError: the model is an encoder-decoder, or has no tower for texts or images.
    """
    name, config = type(model).__name__, model.config
    parts = [config, *(getattr(config, part, None) for part in getattr(config, "sub_configs", ()))]
    if any(getattr(part, "is_encoder_decoder", False) for part in parts):
        raise LookupError(
            f"{name} is an encoder-decoder, which is not supported: give a decoder (GPT-2, Llama), a "
            "vision-language model whose language model is a decoder (LLaVA, Qwen2-VL), or an encoder (BERT, "
            "ViT, CLIP)"
        )
    stacks, tokens = _stacks(model), _embedding(model)
    behind = [stack for stack in stacks if tokens is not None and _embedding(stack[0]) is tokens]
    generates = model.get_output_embeddings() is not None or model.can_generate()
    texts = behind or [stack for stack in stacks if not generates and modality(stack[0]) == "text"]
    found: dict[str, list[Layout] | str] = {}
    if texts or generates:
        found["text"] = _layouts(texts, "between its token embedding and its unembedding")
    images = [stack for stack in stacks if stack not in texts and modality(stack[0]) == "vision"]
    if images:
        found["vision"] = _layouts(images, "for images")
    if not found:
        raise LookupError(f"no sites found in {name}: it has no stack of blocks that reads texts or images")
    return found


def _layouts(stacks: list[tuple[PreTrainedModel, nn.ModuleList]], where: str) -> list[Layout] | str:
    """One layout for each row that fits a tower's blocks; or why there is none."""
    layouts, unfit = list[Layout](), list[str]()
    if len(owners := {owner: type(owner).__name__ for owner, _ in stacks}) > 1:
        return f"it has several stacks of blocks {where} ({', '.join(owners.values())}): none is the tower"
    for owner, blocks in stacks:
        listed = FAMILIES.get(owner.config.model_type)
        # Every block must fit: hybrids have blocks without attention among the others.
        rows = [row for row, _ in TABLE if all(map(row.fits, blocks))]
        for row in sorted(rows, key=lambda row: row is not listed):
            try:
                layouts.append(_layout(owner, blocks, row, row is listed))
            except LookupError as error:
                unfit.append(str(error))
        if not rows:
            children = {
                type(block).__name__: [name for name, _ in block.named_children()] for block in blocks
            }
            has = "; ".join(f"a {block} has {', '.join(names)}" for block, names in children.items())
            unfit.append(f"no row of lib.sites.TABLE fits its blocks ({has})")
    return layouts or "; ".join(unfit) or f"it has no stack of blocks {where}"


def _embedding(model: PreTrainedModel) -> nn.Module | None:
    """The embedding of a model's tokens, if it reads tokens."""
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return embedding if isinstance(embedding, nn.Embedding) else None


def _stacks(model: PreTrainedModel) -> list[tuple[PreTrainedModel, nn.ModuleList]]:
    """The stacks of blocks in a model, each with the innermost transformers model around it."""
    owners: dict[str, PreTrainedModel] = {}
    stacks = []
    for path, part in model.named_modules():
        if isinstance(part, PreTrainedModel):
            owners[path] = part
        elif isinstance(part, nn.ModuleList) and len(part):
            # Lists of experts or of norms are ModuleLists too: a stack has as many blocks as its model says.
            around = [other for other in owners if not other or path.startswith(f"{other}.")]
            owner = owners[max(around, key=len)]
            # A lone decoder (BART's) calls its encoder's number the first of these.
            sizes = ("num_hidden_layers", "decoder_layers")
            if len(part) in (getattr(owner.config, name, None) for name in sizes):
                stacks.append((owner, part))
    return stacks


def _layout(owner: PreTrainedModel, blocks: nn.ModuleList, family: Family, listed: bool) -> Layout:
    """Takes the dimensions from the configuration, and compares them with the modules."""
    config, name = owner.config, type(owner).__name__
    d_model, n_heads = (getattr(config, size, None) for size in ("hidden_size", "num_attention_heads"))
    if not (isinstance(d_model, int) and isinstance(n_heads, int)):
        raise LookupError(f"{name}: its configuration has no one hidden_size and num_attention_heads")
    d_head = getattr(config, "head_dim", None) or d_model // n_heads
    # Not every configuration calls the number of key-value heads so; the width tells.
    widths = [_width(module(blocks[0], path))[1] // d_head for path in family.projections]
    n_kv_heads = widths[1] if len(widths) == 3 else (widths[0] - n_heads) // 2
    for block in blocks:
        q_in, _ = _width(module(block, family.projections[0]))
        z, out = _width(module(block, family.out))
        if (q_in, z, out) != (d_model, n_heads * d_head, d_model) or n_kv_heads < 1 or n_heads % n_kv_heads:
            raise LookupError(
                f"{name}: by its configuration, attention maps {d_model} to {n_heads} heads of {d_head} and "
                f"back to {d_model}; by its modules, {q_in} to {z} ({n_kv_heads} of keys) and back to {out}"
            )
    withheld = {}
    if getattr(blocks[0], "use_parallel_residual", False):
        withheld["resid_mid"] = (
            "attention and MLP run in parallel (resid_pre + attn_out + mlp_out = resid_post)"
        )
    if not family.mid:
        withheld["resid_mid"] = "no module reads the residual stream between attention and MLP"
    if not family.down:
        mlps = [module(block, family.mlp_out) for block in blocks]
        mixture = next((mlp for mlp in mlps if hasattr(mlp, "experts")), None)
        known = f"no row of lib.sites.TABLE names the last projection of its {type(mlps[0]).__name__}"
        own = f"its {type(mixture).__name__} has experts, each with neurons of its own"
        withheld["mlp_act"] = own if mixture is not None else known
    if family.fused == "heads" and 1 < n_kv_heads < n_heads:
        withheld["q"] = "in its fused projection, queries of a group stand apart from the next group's"
    if family.pattern:
        withheld["scores"] = "it computes attention by itself, not through transformers' attention interface"
    return Layout(owner, blocks, family, listed, n_heads, n_kv_heads, d_model, d_head, withheld)


def _width(projection: Any) -> tuple[int, int]:
    """Input and output width; not from the weight, whose shape is packed when quantised."""
    for names in (("in_features", "out_features"), ("nx", "nf")):  # GPT-2's Conv1D has the latter
        if hasattr(projection, names[0]):
            return getattr(projection, names[0]), getattr(projection, names[1])
    raise LookupError(f"its {type(projection).__name__} is no linear layer whose widths are known")
