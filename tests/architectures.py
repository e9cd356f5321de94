"""What the library can do with each architecture of transformers, measured on tiny random checkpoints.

    python tests/architectures.py               # the table of all, to book/architectures.json
    python tests/architectures.py llama opt     # only the rows of some are made anew

Configurations are made small by the names of their fields, for whatever model type. What is offered is then
tried in float64 on other inputs than the library's own check uses, by the plain captures that a reader makes.
"""

import dataclasses
import gc
import json
import re
import sys
import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Any

import families
import torch
import transformers as hf
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lib.edges import Patcher
from lib.generate import generate
from lib.hooks import capture, edit
from lib.models import Subject
from lib.probes import logit_lens
from lib.sites import FAMILIES, SITES, module

TABLE = Path(__file__).parents[1] / "book" / "architectures.json"
KINDS = {
    "language models": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "vision-language models": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "encoders": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    | modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    | modeling_auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
}

LAYERS = 2
NAMES = {
    96: "vocab_size vocab_size_per_layer_input padded_vocab_size",
    64: "max_position_embeddings n_positions n_ctx max_seq_len",
    48: """intermediate_size ffn_dim n_inner ffn_hidden_size d_ff mlp_dim encoder_ffn_dim decoder_ffn_dim
        moe_intermediate_size intermediate_size_mlp shared_expert_intermediate_size
        shared_intermediate_size""",
    32: """hidden_size d_model n_embd dim embed_dim word_embed_proj_dim projection_dim out_hidden_size
        vision_hidden_size output_dim embedding_size projection_size""",
    16: "image_size",
    8: """head_dim qk_nope_head_dim v_head_dim attention_head_dim global_head_dim q_lora_rank kv_lora_rank
        hidden_size_per_layer_input laurel_rank""",
    4: """num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads
        decoder_attention_heads num_experts num_local_experts n_routed_experts moe_num_experts
        qk_rope_head_dim rotary_dim patch_size sliding_window""",
    3: "num_channels in_channels",
    LAYERS: """num_hidden_layers n_layer num_layers n_layers depth encoder_layers decoder_layers
        num_encoder_layers num_decoder_layers num_key_value_heads num_kv_heads num_query_groups
        num_experts_per_tok moe_topk experts_per_token moe_k top_k_experts eos_token_id""",
    1: """n_group topk_group n_shared_experts num_shared_experts moe_num_shared_experts first_k_dense_replace
        bos_token_id""",
    0: "num_kv_shared_layers num_nextn_predict_layers pad_token_id",
    families.IMAGE_ID: "image_token_id image_token_index",
    families.VIDEO_ID: "video_token_id",
}
"""What configurations call their sizes, and how large they are here."""

SMALL = {name: size for size, names in NAMES.items() for name in names.split()}
PROMPTS = ["the cat sees a red star .", "a dog"]


def config(kind: type, depth: int = 0) -> Any:
    """A small configuration of a class, with small parts."""
    names = {field.name for field in dataclasses.fields(kind)} | set(kind.attribute_map)
    options = {name: value for name, value in SMALL.items() if name in names}
    for alias, name in kind.attribute_map.items():
        options.pop(alias, None) if name in options else None
    if "layer_types" in names:
        options["layer_types"] = ["full_attention"] * LAYERS
    if "attention_types" in names:  # GPT-Neo
        options["attention_types"] = [[["global", "local"], LAYERS // 2]]
    if "mlp_layer_types" in names:
        options["mlp_layer_types"] = ["dense"] * LAYERS
    for name, part in kind.sub_configs.items():
        try:
            made = config(part) if part.__name__ != "AutoConfig" else _part(kind, name)
        except Exception:
            continue
        if made is not None:
            options[name] = made
    try:
        made = kind(**options)
    except Exception:
        options.pop("layer_types", None), options.pop("mlp_layer_types", None)
        made = kind(**options)
    rope = getattr(made, "rope_parameters", None) or {}
    if rope and re.search(
        "vl|glm|omni|ocr", kind.model_type
    ):  # how many of the rotary frequencies are of time, row and column
        n = int(8 * rope.get("partial_rotary_factor", 1)) // 2
        rope["mrope_section"] = [n - 2 * (n // 3), n // 3, n // 3]
    return made


def _part(kind: type, name: str) -> Any:
    """A part that may be of any class: of the class that it has by default."""
    default = getattr(kind(), name, None)
    return None if default is None else config(type(default))


def build(model_type: str, architecture: str) -> Any:
    """A tiny random model, with weights large enough for attention to be far from uniform."""
    made = config(CONFIG_MAPPING[model_type])
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in getattr(hf, architecture)(deepcopy(made)).parameters())
    if size > 1e7:
        raise MemoryError(f"{size} parameters are not tiny")
    torch.manual_seed(0)
    model = getattr(hf, architecture)(made)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
            elif parameter.is_floating_point():
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def row(model_type: str, architecture: str) -> dict[str, Any]:
    """What was found of one architecture: for each tower its sites, then generation and edges."""
    found: dict[str, Any] = {"class": architecture, "listed": listed(model_type)}
    processor: Any = families.tokenizer()
    if model_type in families.VISION_LANGUAGE:  # a checkpoint with its own processor
        own = families.subject(model_type)
        model, processor = own.model, own.processor
    else:
        model = build(model_type, architecture)
    for tower in ("text", "vision"):
        try:
            subject = Subject(model, processor, tower=tower)
        except LookupError as error:
            if not re.search(": it has (text|vision)", str(error)):
                found[tower] = {"refused": shortened(error)}
            continue
        found[tower] = sites(subject)
        if tower == "text" and model.can_generate():
            found |= {"generate": attempt(generates, subject), "edges": attempt(patches, subject)}
    return found


def shortened(error: LookupError) -> str:
    """Why a tower is refused, without the model's name."""
    return re.sub(r"^no (text|vision) tower in \w+: |; Subject\(model, tower=.*", "", str(error))


def listed(model_type: str) -> bool:
    """Whether a model type, or its text part, has a row of its own."""
    parts = {model_type, f"{model_type}_text", f"{model_type}_text_model"}
    return model_type in families.ALL or not parts.isdisjoint(FAMILIES)


def sites(subject: Subject) -> dict[str, Any]:
    """What a tower offers; `wrong` says what of it is not what its name says."""
    layout = subject.layout
    about = {"withheld": dict(layout.withheld), "lens": layout.no_lens}
    if about["withheld"].keys() >= set(SITES):
        return about
    return about | {"wrong": attempt(wrong, subject)}


def wrong(subject: Subject) -> str:
    """Which identities the offered sites break, in a pass over inputs of our own."""
    layout, text = subject.layout, subject.tower_name == "text"
    offered = [site for site in SITES if site not in layout.withheld]
    with ExitStack() as stack, torch.no_grad():
        acts: Any = {site: stack.enter_context(capture(subject, site)) for site in offered}
        if text:
            ids = torch.randint(families.VOCABULARY.index("the"), 21, (3, 7))
            language = subject.model.get_output_embeddings() is not None
            runs = subject.model if language else layout.owner
            options = {"use_cache": False} if "use_cache" in signature(runs.forward).parameters else {}
            logits = runs(input_ids=ids, **options)
        else:
            side = layout.owner.config.image_size
            shape = (3, 3, side, side) if isinstance(side, int) else (3, 3, *side)
            layout.owner(pixel_values=torch.rand(shape, dtype=torch.float32))
    faults, has = [], set(offered).issuperset
    sizes = {"batch": 3} | vars(layout) | ({"seq": 7, "query": 7, "key": 7} if text else {})

    def check(what: str, got: torch.Tensor, expected: torch.Tensor) -> None:
        if got.shape != expected.shape or (got - expected).abs().max() > 1e-4 * expected.abs().max():
            faults.append(f"{what} in layer {layer}")

    for layer in range(subject.n_layers):
        at = {site: acts[site][layer] for site in offered if site != "embed"}
        block, family = layout.blocks[layer], layout.family
        for site, x in at.items():
            expected = [sizes.get(axis) for axis in SITES[site].partition(":")[0].split()]
            if len(expected) != x.ndim or any(
                n not in (None, m) for n, m in zip(expected, x.shape, strict=False)
            ):
                faults.append(f"shape of {site} in layer {layer}")
        if has({"pattern", "v", "z"}):
            heads = [
                x[:, :, h // (subject.n_heads // subject.n_kv_heads)]
                for x in [at["v"]]
                for h in range(subject.n_heads)
            ]
            z = torch.stack([at["pattern"][:, h] @ v for h, v in enumerate(heads)], 2)
            check("z", at["z"], z)
        if has({"z", "attn_out"}) and not family.attn_out:
            check("projection of z", at["attn_out"], module(block, family.out)(at["z"].flatten(2)))
        if has({"mlp_act", "mlp_out"}) and not family.mlp_out:
            check("projection of mlp_act", at["mlp_out"], module(block, family.down)(at["mlp_act"]))
        if has({"resid_mid", "attn_out"}):
            check("resid_mid", at["resid_mid"], at["resid_pre"] + at["attn_out"])
        if has({"resid_mid", "mlp_out"}):
            check("resid_post", at["resid_post"], at["resid_mid"] + at["mlp_out"])
        elif has({"attn_out", "mlp_out"}):
            check("resid_post", at["resid_post"], at["resid_pre"] + at["attn_out"] + at["mlp_out"])
        if has({"resid_post"}) and layer:
            check("resid_pre", at["resid_pre"], acts["resid_post"][layer - 1])
    if text and language and not layout.no_lens and has({"resid_post"}):
        check("lens", logit_lens(subject, at["resid_post"]), logits.logits)
    return "; ".join(faults)


def generates(subject: Subject) -> str:
    """How answers in a batch differ from those of the library's model to each prompt alone."""
    pictures = None if subject.processor is subject.tokenizer else [families.picture(i) for i in range(2)]
    got = generate(subject, PROMPTS, pictures, max_new_tokens=4).ids
    settings = {name: getattr(subject.model.generation_config, f"{name}_token_id") for name in ("bos", "eos")}
    plain = hf.GenerationConfig(**{f"{name}_token_id": i for name, i in settings.items()}, pad_token_id=0)
    subject.model.generation_config = plain  # `generate` would fill what another leaves open from its own
    for i, answer in enumerate(got):
        inputs = subject.encode(PROMPTS[i : i + 1], pictures and pictures[i : i + 1])
        own = subject.model.generate(**inputs, max_new_tokens=4)
        own = own[0, inputs["input_ids"].shape[1] :]
        if not torch.equal(answer[: len(own)], own):
            return f"differs: {answer.tolist()} for {own.tolist()}"
    return ""


@torch.no_grad()
def patches(subject: Subject) -> str:
    """How cutting all edges out of a head differs from zeroing what it puts out."""
    batch = families.inputs(subject, PROMPTS[:1])
    last = torch.tensor([batch["input_ids"].shape[1] - 1])
    patcher = Patcher(subject, batch, positions=last, ablation="zero")
    edges = patcher.graph.exists.clone()
    edges[:, [str(node) for node in patcher.graph.senders].index("a0.h1")] = False

    def zeroed(z: torch.Tensor) -> torch.Tensor:
        z[:, :, 1] = 0
        return z

    with edit(subject, "z", layer=0, fn=zeroed):
        expected = subject.model(**batch, use_cache=False).logits[:, -1]
    off = (patcher.logits(edges[None])[0] - expected).abs().max() / expected.abs().max()
    return "" if off < 1e-4 else f"off by {off:.2g}"


def attempt(what: Any, subject: Subject) -> str:
    """What is said, or the error that is raised."""
    try:
        return what(subject)
    except Exception as error:
        reads_more = {"image", "video"}.intersection(subject.model.input_modalities)
        bare = subject.processor is subject.tokenizer and reads_more
        if bare and type(error) is not LookupError:
            return f"not tried, since its inputs come from a processor of its own ({reason(error)})"
        return reason(error)


def reason(error: BaseException) -> str:
    said = str(error).split("\n")[0]
    return (
        said
        if type(error) in (LookupError, NotImplementedError, ValueError)
        else f"{type(error).__name__}: {said}"
    )


def measured(names: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Kind -> model type -> row, of the architectures that can be made small; of all, or of some names."""
    table: dict[str, dict[str, Any]] = {}
    for kind, classes in KINDS.items():
        table[kind] = {}
        for model_type, given in classes.items():
            architecture = given if isinstance(given, str) else given[0]
            if names and model_type not in names:
                continue
            try:
                table[kind][model_type] = row(model_type, architecture)
            except Exception as error:
                print(f"{model_type}: {reason(error)}", file=sys.stderr)
            gc.collect()
    return table


def outcome(row: dict[str, Any]) -> dict[str, Any]:
    """What of a row must not change: which sites are withheld, and what works; not the measured numbers."""
    towers = {name: row[name] for name in ("text", "vision") if name in row}
    return {
        **{name: "refused" in tower or sorted(tower["withheld"]) for name, tower in towers.items()},
        "wrong": {name: tower.get("wrong", "") for name, tower in towers.items()},
        **{what: row[what] == "" for what in ("generate", "edges") if what in row},
    }


def write(names: Iterable[str] = ()) -> None:
    """Writes the table that the site shows, or anew the rows of some names."""
    table = {"transformers": hf.__version__, "torch": torch.__version__, "kinds": measured(names)}
    if names:
        old = json.loads(TABLE.read_text(encoding="utf-8"))["kinds"]
        table["kinds"] = {kind: old[kind] | rows for kind, rows in table["kinds"].items()}
    TABLE.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    write(sys.argv[1:])
