"""Sites: where things are in each architecture.

A site is a named place in a transformer at which an activation can be read or changed. `TABLE` has one row a
family: the paths, inside one block, of the modules at whose input or output each site lies. An architecture
without a row of its own gets the first row whose modules its blocks all have (`lib.checks` then compares the
sites with one another in a small forward pass, and withholds those that do not add up).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

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
        down: the MLP's last projection; its input is `mlp_act`. Empty for a mixture of experts.
        attn_out, mlp_out: modules whose output is added to the residual stream, if not `out` and `down`.
        fused: order in a fused projection: "blocks" (all q, all k, all v) or "heads" (q, k, v of each head).
        pattern: the module that receives the pattern, in a family that computes attention by itself.
        flat: the MLP sees batch and sequence merged in one axis.
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
    flat: bool = False

    @property
    def projections(self) -> list[str]:
        """Paths of the projections to q, k and v, or of the fused one."""
        return [f"{self.attention}.{name}" for name in self.qkv.split()]

    def fits(self, block: nn.Module) -> bool:
        """Whether a block has all modules that this row names."""
        paths = [self.attention, *self.projections, self.out, self.mid.removeprefix(">")]
        paths += filter(None, [self.down, self.attn_out, self.mlp_out, self.pattern])
        return all(module(block, path) is not None for path in paths)


# A row says where sites are, not what is computed: models whose modules have the same names share one.
QKV, NORM, FFN_NORM = "q_proj k_proj v_proj", "post_attention_layernorm", "post_feedforward_layernorm"
LLAMA = Family("self_attn", QKV, "self_attn.o_proj", NORM, "mlp.down_proj")
# A norm before and after each half; a norm only after each half, so that the MLP reads the stream itself.
GEMMA = replace(LLAMA, mid="pre_feedforward_layernorm", attn_out=NORM, mlp_out=FFN_NORM)
OLMO = replace(LLAMA, mid="mlp", attn_out=NORM, mlp_out=FFN_NORM)
MIXTURE = replace(LLAMA, down="", mlp_out="mlp")  # each expert has neurons of its own: no one `mlp_act`
PHI = replace(LLAMA, qkv="qkv_proj")
GPT2 = Family("attn", "c_attn", "attn.c_proj", "ln_2", "mlp.c_proj")
NEOX = Family("attention", "query_key_value", "attention.dense", NORM, "mlp.dense_4h_to_h", fused="heads")
BLOOM = Family(  # its attention and its MLP add the residual stream by themselves
    "self_attention",
    "query_key_value",
    "self_attention.dense",
    ">self_attention",
    "mlp.dense_4h_to_h",
    fused="heads",
    pattern="self_attention.attention_dropout",
)
OPT = Family("self_attn", QKV, "self_attn.out_proj", "final_layer_norm", "fc2", flat=True)
CLIP = Family("self_attn", QKV, "self_attn.out_proj", "layer_norm2", "mlp.fc2")
VIT = Family("attention", QKV, "attention.o_proj", "layernorm_after", "mlp.fc2")
BERT = Family("attention.self", "query key value", "attention.output.dense", ">attention", "output.dense")

# Row and the `model_type`s of the configurations that it is for. An unlisted architecture gets the first row
# that fits, so a row comes after those that need more modules (a Gemma block has all that a Llama block has).
TABLE: list[tuple[Family, str]] = [
    (GEMMA, "gemma2 gemma3_text"),
    (OLMO, "olmo2"),
    (LLAMA, "llama mistral qwen2 qwen3 gemma qwen2_vl_text qwen2_5_vl_text"),
    (MIXTURE, "gpt_oss"),
    (PHI, "phi3"),
    (GPT2, "gpt2"),
    (NEOX, "gpt_neox"),
    (BLOOM, "bloom"),
    (OPT, "opt"),
    (CLIP, "clip_text_model clip_vision_model siglip_text_model siglip_vision_model idefics3_vision"),
    (VIT, "vit deit"),
    (BERT, "bert"),
]
FAMILIES = {model_type: row for row, model_types in TABLE for model_type in model_types.split()}


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

        flat = {"block": block} if family.flat else {}
        match site:
            case "embed":
                # A vision tower's adds class token and positions; a text tower's gives the tokens alone.
                vision = modality(self.owner) == "vision"
                embed: Any = self.owner.embeddings if vision else self.owner.get_input_embeddings()
                return Point(embed, "output")
            case "resid_pre":
                return Point(block, "input")
            case "resid_mid" if family.mid.startswith(">"):
                return out_of(family.mid[1:])
            case "resid_mid":  # what the norm before the MLP reads
                return into(family.mid, shared=True, **flat)
            case "resid_post":
                return Point(block, "output")
            case "attn_out":
                return out_of(family.attn_out or family.out)
            case "mlp_out":
                return out_of(family.mlp_out or family.down, **flat)
            case "mlp_act":
                return into(family.down, **flat)
            case "z":  # before the output projection mixes the heads
                return into(family.out, view=lambda x: x.unflatten(-1, (self.n_heads, self.d_head)))
            case "q" | "k" | "v":
                paths, index = family.projections, "qkv".index(site)
                if len(paths) == 1:
                    return out_of(paths[0], view=self._fused(index), partial=True)
                return out_of(paths[index], view=lambda x: x.unflatten(-1, (-1, self.d_head)))
            case "pattern" if family.pattern:
                return into(family.pattern)
        return None

    def _fused(self, index: int) -> Callable[[Tensor], Tensor]:
        """A view of q, k or v (0, 1, 2) in the output of a fused projection."""
        if self.family.fused == "heads":  # [head, (q, k, v), d_head]
            return lambda x: x.unflatten(-1, (self.n_heads, 3, self.d_head))[..., index, :]
        # [all heads of q, then of k, then of v; d_head]: with grouped queries k and v have fewer.
        heads = [self.n_heads, self.n_kv_heads, self.n_kv_heads]
        start = sum(heads[:index])
        return lambda x: x.unflatten(-1, (sum(heads), self.d_head))[..., start : start + heads[index], :]


def modality(owner: PreTrainedModel) -> Literal["text", "vision"]:
    """What a tower reads."""
    return "vision" if "image" in owner.input_modalities else "text"


def module(block: nn.Module, path: str) -> Any:
    """The module at a path below a block, or None."""
    part: Any = block  # nn.Module's attributes are tensors or modules to a type checker
    for name in path.split("."):
        part = getattr(part, name, None)
    return part


def towers(model: PreTrainedModel) -> dict[str, Layout]:
    """The towers of a model, by what they read ("text", "vision").

    Raises:
        LookupError: no stack of blocks fits any row of the table; the message has the modules' names.
    """
    layouts: dict[str, Layout] = {}
    stacks = _stacks(model)
    for owner, blocks in stacks:
        listed = FAMILIES.get(owner.config.model_type)
        rows = [listed] if listed else FAMILIES.values()
        # Every block must fit: hybrids have blocks without attention among the others.
        if family := next((row for row in rows if all(map(row.fits, blocks))), None):
            # Of several stacks that read the same, the first is the tower.
            layouts.setdefault(modality(owner), _layout(owner, blocks, family, listed is not None))
    if not layouts:
        children = "; ".join(
            f"a {type(blocks[0]).__name__} has {', '.join(name for name, _ in blocks[0].named_children())}"
            for _, blocks in stacks
        )
        unfit = f"no row of lib.sites.TABLE fits its blocks ({children})"
        reason = unfit if stacks else "it has no stack of blocks"
        raise LookupError(f"no sites found in {type(model).__name__}: {reason}")
    return layouts


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
            if len(part) == getattr(owner.config, "num_hidden_layers", None):
                stacks.append((owner, part))
    return stacks


def _layout(owner: PreTrainedModel, blocks: nn.ModuleList, family: Family, listed: bool) -> Layout:
    """Takes the dimensions from the configuration, and compares them with the modules."""
    config = owner.config
    d_model, n_heads = config.hidden_size, config.num_attention_heads
    d_head = getattr(config, "head_dim", None) or d_model // n_heads
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    if len(family.projections) == 3:  # not every configuration calls their number so; the width tells
        n_kv_heads = _width(module(blocks[0], family.projections[1]))[1] // d_head
    for block in blocks:
        q_in, _ = _width(module(block, family.projections[0]))
        z, out = _width(module(block, family.out))
        if (q_in, z, out) != (d_model, n_heads * d_head, d_model):
            raise LookupError(
                f"{type(owner).__name__}: by its configuration, attention maps {d_model} to {n_heads} heads "
                f"of {d_head} and back to {d_model}; by its modules, {q_in} to {z} and back to {out}"
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
