"""Tiny stand-ins of the hub's networks other than vision-language models, as `hub_models` has those.

Class, heads, image grid and kind of tokenizer are the real ones; depth and the width of a head are not.
"""

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import hub_models
import numpy as np
import pandas as pd
import torch
import transformers as hf
from PIL import Image
from tokenizers import Regex, pre_tokenizers

from data.worlds import circuits

END = "<|endoftext|>"
YEAR = Regex(r"(?<=\d\d)(?=\d\d)")

# As the real DeiT's file has it; transformers has renamed the class since.
DEIT_IMAGES = {
    "feature_extractor_type": "DeiTFeatureExtractor",
    "do_resize": True,
    "size": 256,
    "do_center_crop": True,
    "crop_size": 224,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
}
VIT_IMAGES = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def _vit(kind: str, n_heads: int, images: dict[str, Any], width: int = 4) -> Callable[[Path], None]:
    def save(folder: Path, blocks: int = 9) -> None:  # of 12: what a chapter tries grows with their number
        config = getattr(hf, f"{kind}Config")(
            hidden_size=width * n_heads,
            intermediate_size=16 * n_heads,
            num_hidden_layers=blocks,
            num_attention_heads=n_heads,
            num_labels=1000,
            initializer_range=0.2,
        )
        getattr(hf, f"{kind}ForImageClassification")(config).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(images))

    return save


def _decoder(kind: str, **size: Any) -> Callable[[Path], None]:
    """A language model with a byte-level BPE tokenizer with merges; Llama's with SentencePiece's kind."""

    def save(folder: Path) -> None:
        if kind == "Llama":
            tokenizer = hub_models.sentencepiece()
        else:  # a class of its own for each family, around the same file
            cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
            names = {"GPT2": "GPT2Tokenizer", "GPTNeoX": "GPTNeoXTokenizer", "Qwen2": "Qwen2Tokenizer"}
            tokenizer = getattr(hf, names[kind])(**_merges(cut), eos_token=END, bos_token=END, unk_token=END)
        tokens = {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
        config = getattr(hf, f"{kind}Config")(
            vocab_size=64 * (len(tokenizer) // 64 + 2), initializer_range=0.2, **tokens, **size
        )
        model = {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
        getattr(hf, model)(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return save


@cache
def _prompts() -> list[str]:
    """What chapters show to language models: the tokenizers know these words, as the real ones do."""
    drawn = [
        circuits.prompts(task, 300, np.random.default_rng(0)) for task in ("english-ioi", "english-greater")
    ]
    answers = [f" {a}" for a in (*circuits.PEOPLE, *(f"{i:02d}" for i in range(100)))]
    return [text for prompts in drawn for text in prompts.clean] + 20 * answers + hub_models.SENTENCES


def _merges(cut: Any) -> dict[str, Any]:
    # GPT-2 and its heirs cut off digits, too; the years of the real vocabulary are pairs of digits.
    pairs = pre_tokenizers.Sequence([pre_tokenizers.Split(YEAR, "isolated"), cut])
    texts = _prompts() + [f"{i:02d}" for i in range(100)] * 50
    return hub_models.learned(pairs, [END], cut.alphabet(), texts, size=1500)


def _clip(folder: Path) -> None:
    """CLIP's pieces are bytes, too, with a mark at the end of a word."""
    letters = list(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {p: i for i, p in enumerate([*letters, *(f"{x}</w>" for x in letters), *CLIP_MARKS])}
    size = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1, "pad_token_id": 1}
    text = size | ids | {"vocab_size": len(vocabulary)}
    config = hf.CLIPConfig(text_config=text, vision_config=size | {"patch_size": 32}, projection_dim=16)
    hf.CLIPModel(config).save_pretrained(folder)
    tokenizer = hf.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    hf.CLIPProcessor(hf.CLIPImageProcessor(), tokenizer).save_pretrained(folder)


def _bert(folder: Path) -> None:
    """WordPiece on small letters."""
    letters = [chr(i) for i in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters)]
    size = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    hf.BertForMaskedLM(hf.BertConfig(vocab_size=len(pieces), **size)).save_pretrained(folder)
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    hf.BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=512).save_pretrained(folder)


def _unet(folder: Path) -> None:
    """The real blocks, with few channels."""
    from diffusers import UNet2DModel

    UNet2DModel(
        sample_size=32,
        block_out_channels=(4, 4, 4, 4),
        norm_num_groups=2,
        attention_head_dim=None,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
        norm_eps=1e-6,
        layers_per_block=1,
    ).save_pretrained(folder)


CLIP_MARKS = "<|startoftext|>", "<|endoftext|>"
LLAMA = {
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 2048,
}
NETS: dict[str, Callable[..., None]] = {
    "facebook/deit-tiny-patch16-224": _vit("ViT", 3, DEIT_IMAGES),
    "facebook/deit-small-patch16-224": _vit("ViT", 6, DEIT_IMAGES),
    "facebook/deit-base-patch16-224": _vit("ViT", 12, DEIT_IMAGES),
    "another/deit": _vit("DeiT", 3, DEIT_IMAGES),  # the same architecture in transformers' class for it
    "openai-community/gpt2": _decoder("GPT2", n_embd=16, n_layer=2, n_head=4),
    "distilbert/distilgpt2": _decoder("GPT2", n_embd=16, n_layer=2, n_head=4),
    "EleutherAI/pythia-160m": _decoder("GPTNeoX", hidden_size=32, **LLAMA),
    "EleutherAI/pythia-160m-seed1": _decoder("GPTNeoX", hidden_size=32, **LLAMA),
    "EleutherAI/pythia-160m-seed2": _decoder("GPTNeoX", hidden_size=32, **LLAMA),
    "Qwen/Qwen2.5-0.5B": _decoder("Qwen2", hidden_size=48, num_key_value_heads=2, **LLAMA),
    "Qwen/Qwen2.5-0.5B-Instruct": _decoder("Qwen2", hidden_size=48, num_key_value_heads=2, **LLAMA),
    "Qwen/Qwen2.5-Coder-0.5B": _decoder("Qwen2", hidden_size=48, num_key_value_heads=2, **LLAMA),
    "meta-llama/Llama-2-7b-hf": _decoder("Llama", hidden_size=64, **LLAMA),
    "google/ddpm-cifar10-32": _unet,
    "openai/clip-vit-base-patch32": _clip,
    "bert-base-uncased": _bert,
    "google/vit-base-patch16-224": _vit("ViT", 12, VIT_IMAGES, width=11),
}
"""Hub id -> what saves its stand-in."""


@cache
def folder(name: str, **options: int) -> str:
    """A folder with the stand-in of a hub model, in the ordinary format; of a ViT with so many `blocks`."""
    torch.manual_seed(sum(map(ord, name)))
    path = Path(mkdtemp(prefix=name.replace("/", "--") + "-"))
    NETS[name](path, **options)
    return str(path)


@cache
def images(n_classes: int = 10, n: int = 60, column: str = "image") -> str:
    """Photographs in the schema of imagenette (or CIFAR-10, `img`); their brightness tells the class."""
    path, rng = Path(mkdtemp(prefix="images-")), np.random.default_rng(0)
    for split in ("train", "test"):
        labels = np.arange(n) % n_classes
        cells = []
        for label in labels:
            pixels = 200 * label // n_classes + rng.integers(0, 20, size=(160, 213, 3))
            file = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(file, format="JPEG")
            cells.append({"bytes": file.getvalue(), "path": None})
        pd.DataFrame({column: cells, "label": labels}).to_parquet(path / f"{split}-00000-of-00001.parquet")
    return str(path)
