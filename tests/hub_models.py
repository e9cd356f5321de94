"""Tiny stand-ins of the hub's models that chapters name: real class, real image grid, real kind of tokenizer.

A stand-in keeps what decides whether code written for the real model runs: the class, the number of blocks,
the size of images and patches (and so the number of image tokens), the special tokens, the form of the chat
template, and a tokenizer that cuts words into pieces with the space before them inside. Only widths are small
and weights random, so that it does nothing well; which is a case that chapters must report as such.
"""

import json
import linecache
import sys
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from data.worlds.scenes import CELLS, COLOURS, OBJECTS
from data.worlds.shapes import PAINTS, SHAPES
from lib import chapters, papers
from lib.claims import ClaimRecord
from lib.models import images_only

SENTENCES = [
    *(f"{what} the {colour} {thing} is in {cell}" for what, thing, cell in zip(
        ["what colour is", "where is", "is there", "do you see", "name the cell of", "how many"] * 3,
        OBJECTS, (*CELLS, *CELLS), strict=False,
    ) for colour in (*COLOURS, *PAINTS) if thing != "hourglass" and colour != "magenta"),
    *(f"The {shape} is {paint}. What color is the {shape}?" for shape in SHAPES for paint in PAINTS),
    "Please describe this image in detail. Is there a person in the image? Yes, there is. No, it is not.",
    "A dog and a cat lie on a couch beside a dining table; two people hold a tennis racket and a frisbee.",
    "Answer with the option's letter from the given choices directly. Answer with one word. Context:",
    "Options: (A) the first (B) the second (C) the third (D) the fourth (E) the fifth. USER: ASSISTANT:",
]  # fmt: skip
"""What the tokenizers learn their merges from: words that chapters use, with the space before them.

Two are left out: to the real tokenizers, too, some words are several pieces."""

VICUNA = (
    "{% for message in messages %}{{ message.role | upper }}: "
    "{% for part in message.content if part.type == 'image' %}<image>\n{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""It writes no token for the beginning of the text: the tokenizer does."""
QWEN = (
    "<|im_start|>system\nAnswer well.<|im_end|>\n{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INTERLEAVE = (
    "{% for message in messages %}<|im_start|>{{ message.role }} "
    "{% for part in message.content if part.type == 'image' %}<image>\n{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}<|im_end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOL = (
    "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}:"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>"
    "{% else %} {{ part.text }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def learned(
    cut: Any, special: list[str], alphabet: list[str], texts: list[str] = SENTENCES, size: int = 900
) -> dict[str, Any]:
    """Vocabulary and merges of a BPE tokenizer, with a piece for most words of the texts."""
    table = Tokenizer(BPE())
    table.pre_tokenizer = cut
    table.train_from_iterator(
        texts,
        BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    model = json.loads(table.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


@cache
def sentencepiece(*special: str) -> hf.LlamaTokenizer:
    """Of Llama's kind: a space is part of the word behind it, letters it never met become bytes."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    pieces = learned(pre_tokenizers.Metaspace(), ["<unk>", "<s>", "</s>", *bytes_], [])
    tokenizer = hf.LlamaTokenizer(**pieces, pad_token="<pad>", model_max_length=4096)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


@cache
def byte_level(*special: str, eos: str = "<|im_end|>") -> hf.Qwen2Tokenizer:
    """Of Qwen's and GPT-2's kind: pieces are made of bytes, the space before a word among them; no BOS."""
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = learned(cut, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], cut.alphabet())
    tokenizer = hf.Qwen2Tokenizer(**pieces, eos_token=eos, model_max_length=8192)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *special]})
    return tokenizer


def _text(n_layers: int, tokenizer: Any, n_kv_heads: int = 2, **options: Any) -> dict[str, Any]:
    """A decoder of real depth and little width."""
    return {
        "vocab_size": 64 * (len(tokenizer) // 64 + 2),  # real ones have more rows than tokens, too
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 2,
        "num_key_value_heads": n_kv_heads,
        "max_position_embeddings": 8192,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **options,
    }


TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
Made = tuple[hf.PreTrainedModel, Any]
"""A model and its processor."""


def _clip(n_layers: int, config: Any, model: Any, processor: Any, **images: Any) -> Made:
    """LLaVA-1.5 and 1.6: CLIP at 336 pixels, 24 x 24 patches, Vicuna."""
    tokenizer = sentencepiece("<image>", "<pad>")
    crop = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    return model(
        config(
            text_config=hf.LlamaConfig(**_text(n_layers, tokenizer)),
            vision_config=hf.CLIPVisionConfig(**TOWER, image_size=336, patch_size=14, projection_dim=16),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=576,
            **{key: value for key, value in images.items() if key == "image_grid_pinpoints"},
        )
    ), processor(
        (hf.LlavaNextImageProcessor if images else hf.CLIPImageProcessor)(**crop, **images),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA,
    )


def llava(n_layers: int) -> Made:
    """LLaVA-1.5."""
    return _clip(n_layers, hf.LlavaConfig, hf.LlavaForConditionalGeneration, hf.LlavaProcessor)


def llava_next(n_layers: int) -> Made:
    """LLaVA-1.6: the image once small and once in tiles."""
    tiles = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    kinds = hf.LlavaNextConfig, hf.LlavaNextForConditionalGeneration, hf.LlavaNextProcessor
    return _clip(n_layers, *kinds, image_grid_pinpoints=tiles)


def llava_interleave(n_layers: int) -> Made:
    """LLaVA's class over SigLIP at 384 pixels (27 x 27 patches, no class token) and Qwen."""
    tokenizer = byte_level("<image>")
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            text_config=hf.Qwen2Config(**_text(n_layers, tokenizer)),
            vision_config=hf.SiglipVisionConfig(
                **TOWER, image_size=384, patch_size=14, vision_use_head=False
            ),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=729,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
    ), hf.LlavaProcessor(
        hf.SiglipImageProcessor(size={"height": 384, "width": 384}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=INTERLEAVE,
    )


def llava_onevision(n_layers: int) -> Made:
    """LLaVA-OneVision: SigLIP at 384 pixels; several images are read whole, one alone also in tiles."""
    tokenizer = byte_level("<image>", "<video>")
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    tiles = [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)]
    return hf.LlavaOnevisionForConditionalGeneration(
        hf.LlavaOnevisionConfig(
            text_config=hf.Qwen2Config(**_text(n_layers, tokenizer)),
            vision_config=hf.SiglipVisionConfig(
                **TOWER, image_size=384, patch_size=14, vision_use_head=False
            ),
            image_token_index=image,
            video_token_index=video,
            image_grid_pinpoints=tiles,
        )
    ), images_only(hf.LlavaOnevisionProcessor)(
        hf.LlavaOnevisionImageProcessor(size={"height": 384, "width": 384}, image_grid_pinpoints=tiles),
        tokenizer,
        num_image_tokens=729,
        vision_feature_select_strategy="full",
        chat_template=INTERLEAVE,
    )


def qwen_vl(n_layers: int, version: str) -> Made:
    """Qwen2-VL and Qwen2.5-VL: a token for every 28 x 28 pixels, positions in three dimensions."""
    config, model = (getattr(hf, f"{version}{kind}") for kind in ("Config", "ForConditionalGeneration"))
    marks = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
    tokenizer = byte_level(*marks)
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(marks))
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    tower: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2}
    if version == "Qwen2VL":
        tower |= {"embed_dim": 16, "hidden_size": 32}
    else:
        tower |= {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24, "window_size": 112}
        tower |= {"fullatt_block_indexes": [1]}
    return model(
        config(
            text_config=_text(n_layers, tokenizer, rope_parameters=rope),
            vision_config=tower,
            image_token_id=image,
            video_token_id=video,
            vision_start_token_id=start,
            vision_end_token_id=end,
        )
    ), images_only(getattr(hf, f"{version}Processor"))(
        hf.Qwen2VLImageProcessor(min_pixels=56**2, max_pixels=28**2 * 1280),
        tokenizer,
        chat_template=QWEN,
    )


def smol_vlm(n_layers: int) -> Made:
    """SmolVLM: SigLIP at 512 pixels, 4 x 4 patches a token, the image in 16 tiles and once small."""
    tiles = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    marks = "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"
    tokenizer = byte_level(*marks, *tiles, eos="<end_of_utterance>")
    return hf.Idefics3ForConditionalGeneration(
        hf.Idefics3Config(
            text_config=hf.LlamaConfig(**_text(n_layers, tokenizer, n_kv_heads=1)),
            vision_config=TOWER | {"image_size": 512, "patch_size": 16},
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            scale_factor=4,
            pad_token_id=tokenizer.pad_token_id,
        )
    ), hf.Idefics3Processor(
        hf.Idefics3ImageProcessor(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}),
        tokenizer,
        image_seq_len=64,
        chat_template=SMOL,
    )


MODELS: dict[str, tuple[Callable[[int], Made], int]] = {
    "llava-hf/llava-1.5-7b-hf": (llava, 32),
    "llava-hf/llava-1.5-13b-hf": (llava, 40),
    "llava-hf/llava-v1.6-vicuna-7b-hf": (llava_next, 32),
    "llava-hf/llava-interleave-qwen-0.5b-hf": (llava_interleave, 24),
    "Qwen/Qwen2-VL-2B-Instruct": (partial(qwen_vl, version="Qwen2VL"), 28),
    "Qwen/Qwen2-VL-7B-Instruct": (partial(qwen_vl, version="Qwen2VL"), 28),
    "Qwen/Qwen2.5-VL-3B-Instruct": (partial(qwen_vl, version="Qwen2_5_VL"), 36),
    "Qwen/Qwen2.5-VL-7B-Instruct": (partial(qwen_vl, version="Qwen2_5_VL"), 28),
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": (llava_onevision, 24),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": (llava_onevision, 28),
    "HuggingFaceTB/SmolVLM-256M-Instruct": (smol_vlm, 30),
}
"""Hub id -> what makes its stand-in, and the number of blocks of the real one."""


@cache
def folder(name: str, depth: int = 100) -> str:
    """A folder with the stand-in of a hub model in the ordinary format, of at most so many blocks."""
    torch.manual_seed(0)
    make, n_layers = MODELS[name]
    model, processor = make(min(n_layers, depth))
    with torch.no_grad():
        for parameter in model.parameters():  # attention far from uniform, and logits that differ
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    path = Path(mkdtemp(prefix=name.replace("/", "--") + "-"))
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


# Tiny data sets in the schema of the real ones

COCO_NAMES = ("person", "dog", "cat", "couch", "dining table", "tennis racket", "frisbee", "chair")


def _photograph(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize((320, 240)).save(path)


@cache
def coco_folder(kinds: tuple[str, ...] = COCO_NAMES, n: int = 40) -> str:
    """Photographs (noise) with COCO's annotations and POPE's questions, as their authors store them."""
    folder, rng = Path(mkdtemp(prefix="coco-")), np.random.default_rng(0)
    names = {10 * (k + 1): name for k, name in enumerate(kinds)}
    images, boxes, captions, there = [], [], [], []
    for i in range(n):
        file = f"COCO_val2014_{i:012d}.jpg"
        _photograph(folder / "val2014" / file, rng)
        images.append({"id": i, "file_name": file})
        there.append(rng.choice(len(names), 3, replace=False))
        boxes += [{"image_id": i, "category_id": 10 * (int(k) + 1)} for k in there[-1]]
        captions.append({"image_id": i, "caption": "Something ."})
    (folder / "annotations").mkdir()
    categories = [{"id": number, "name": name} for number, name in names.items()]
    instances = {"images": images, "annotations": boxes, "categories": categories}
    for kind, content in (("instances", instances), ("captions", {"annotations": captions})):
        (folder / "annotations" / f"{kind}_val2014.json").write_text(json.dumps(content))
    for split in ("random", "popular", "adversarial"):
        lines = []
        for i in range(n):
            absent = int(rng.choice(np.setdiff1d(np.arange(len(names)), there[i])))
            for k, label in ((int(there[i][0]), "yes"), (absent, "no")):
                text = f"Is there a {kinds[k]} in the image?"
                lines.append(
                    {
                        "question_id": len(lines) + 1,
                        "image": images[i]["file_name"],
                        "text": text,
                        "label": label,
                    }
                )
        (folder / f"coco_pope_{split}.json").write_text("\n".join(map(json.dumps, lines)))
    return str(folder)


@cache
def science_folder(n: int = 40) -> str:
    """Questions of ScienceQA with images of several shapes (noise), as its authors store them."""
    folder, rng = Path(mkdtemp(prefix="scienceqa-")), np.random.default_rng(0)
    problems, ids = {}, {"val": [], "test": []}
    for i in range(n):
        split, options = ("val", "test")[i % 2], ["dog", "cat", "couch", "person", "frisbee"][: 2 + i % 4]
        _photograph(folder / "images" / split / str(i) / "image.png", rng)
        problems[str(i)] = {
            "question": f"Which of these is in place {i}?",
            "choices": options,
            "answer": int(rng.integers(len(options))),
            "hint": "" if i % 3 else "Look at the image.",
            "image": "image.png",
            "category": "Classification",
        }
        ids[split].append(str(i))
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps(ids))
    return str(folder)


@cache
def clips_folder(n: int = 48, n_frames: int = 8) -> str:
    """Clips (noise) and questions in NExT-QA's form, as `data.sets.clips` reads them."""
    folder, rng = Path(mkdtemp(prefix="clips-")), np.random.default_rng(0)
    lines = ["video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"]
    for i in range(n):
        for j in range(n_frames):
            file = folder / "frames" / str(i) / f"{j + 1}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).resize((56, 56)).save(file)
        kind = ("CW", "TN", "DL")[i % 3]
        options = "a dog,a cat,a couch,a chair,a person"
        lines.append(f"{i},{n_frames},56,56,what is in place {i},{rng.integers(5)},0,{kind},{options}")
    (folder / "val.csv").write_text("\n".join(lines))
    return str(folder)


# A chapter's cells, run in this process


class Ran(NamedTuple):
    """What a run of a chapter's cells left."""

    records: dict[str, ClaimRecord]
    """Claim id -> its row."""
    names: dict[str, Any]
    """The notebook's variables."""

    def check_task_not_done(self, slug: str, numbers: Iterable[int], measured: str = "") -> None:
        """Checks that none of these claims is judged, since the model does not do the task."""
        for n in numbers:
            row = self.records[f"{slug}.{n}"]
            assert row.verdict == "not testable here", row
            assert row.reason.startswith(f"Task not done on this model: {measured}"), row


def cases(listed: Iterable[str], first: str, depth: int, colab: str) -> list[Any]:
    """Model, preset, depth: a shallow run in CI; weekly the listed models and the preset for Colab, whole."""
    weekly = [(name, "gpu", 99) for name in listed] + [(colab, "colab", 99)]
    return [(first, "gpu", depth), *(pytest.param(*case, marks=pytest.mark.weekly) for case in weekly)]


def run_chapter(slug: str, preset: str, monkeypatch: Any, **parameters: Any) -> Ran:
    """Executes all cells of a chapter with a preset's parameters, and those given."""
    records: dict[str, ClaimRecord] = {}
    monkeypatch.setattr(ClaimRecord, "show", lambda record: records.update({record.id: record}))
    given = papers.read(slug).presets[preset] | parameters
    module = ModuleType(f"chapter_{slug.replace('-', '_')}")
    sys.modules[module.__name__] = module  # dataclasses look a class's module up here
    names = module.__dict__
    for number, cell in enumerate(chapters.read(slug).cells):
        if cell.cell_type == "code" and "setup" not in cell.metadata.get("tags", []):
            where = f"{slug}, cell {number}"
            linecache.cache[where] = (len(cell.source), None, cell.source.splitlines(keepends=True), where)
            exec(compile(cell.source, where, "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                names.update(given)
    plt.close("all")
    return Ran(records, names)
