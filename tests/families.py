"""Tiny random checkpoints of the real classes, one a family, for the tests of models, sites and hooks.

Weights are large, so that attention is far from uniform and soft caps bite.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from data.recipes.scenes import RECIPES
from data.recipes.tokenizer import word_tokenizer
from lib.hooks import capture
from lib.models import Subject, images_only, load

WORDS = ["the", "a", "cat", "dog", "sees", "red", "blue", "star", "left", "of", "where", "is", "what", "user"]
WORDS += ["assistant", ":", ".", "?"]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
IMAGE_TOKENS = [
    "<image>",
    "<video>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    "<img>",
    "</img>",
    *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)),
]
VOCABULARY = [*SPECIAL, *WORDS, *IMAGE_TOKENS]
N_WORDS = 96  # room for what a processor adds
N_BYTES = 420  # special tokens, bytes and some merges
IMAGE_ID, VIDEO_ID = VOCABULARY.index("<image>"), VOCABULARY.index("<video>")
CHAT = (
    "<s>{% for message in messages %}{{ message.role }} : "
    "{% if message.content is string %}{{ message.content }} {% else %}{% for part in message.content %}"
    "{{ '<img> <image> </img>' if part.type == 'image' else part.text }} {% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)


def tokenizer(*, chat: bool = False, encoder: bool = False, **options: Any) -> hf.PreTrainedTokenizerFast:
    """One word a token."""
    return word_tokenizer(
        VOCABULARY,
        bos="<s>",
        eos="</s>",
        ends=encoder,
        model_max_length=64,
        chat_template=CHAT if chat else None,
        additional_special_tokens=IMAGE_TOKENS,
        extra_special_tokens={
            "image_token": "<image>",
            "video_token": "<video>",
            "context_image_token": "<image>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "boi_token": "<img>",
            "eoi_token": "</img>",
            "image_boundary_token": "<fake_token_around_image>",
        },
        **{"padding_side": "right"} | options,
    )


def byte_tokenizer(**options: Any) -> hf.PreTrainedTokenizerFast:
    """Byte-level BPE with merges, as GPT-2's: special tokens have the ids that they have in `tokenizer`."""
    like, special = tokenizer(), [*SPECIAL, *(f"<unused{i}>" for i in range(len(WORDS))), *IMAGE_TOKENS]
    table = Tokenizer(BPE())
    table.pre_tokenizer, table.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=N_BYTES,
        special_tokens=special,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    table.train_from_iterator(TEXTS, trainer)
    table.post_processor = like.backend_tokenizer.post_processor
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=table, **like.special_tokens_map | like.init_kwargs | options
    )


SIZE = {
    "vocab_size": N_WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA_SIZE = SIZE | {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 256}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
QWEN_VL = {
    "text_config": LLAMA_SIZE | {"rope_parameters": MROPE},
    "image_token_id": IMAGE_ID,
    "video_token_id": VIDEO_ID,
    "vision_start_token_id": VOCABULARY.index("<img>"),
    "vision_end_token_id": VOCABULARY.index("</img>"),
}


@dataclass(frozen=True)
class Tiny:
    """How a tiny checkpoint is made: class, configuration, and tokenizer or processor."""

    architecture: str
    config: Callable[[], hf.PreTrainedConfig]
    processor: Callable[[], Any]


def _square(**options: Any) -> dict[str, Any]:
    return {"size": {"height": 16, "width": 16}, **options}


def _clip_images() -> Any:
    return hf.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def _siglip_images() -> Any:
    return hf.SiglipImageProcessor(**_square(image_seq_length=16))


def _qwen_vl_processor() -> Any:
    images = hf.Qwen2VLImageProcessor(patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024)
    return images_only(hf.Qwen2VLProcessor)(images, tokenizer(chat=True))


def _llava(config: type, **options: Any) -> Callable[[], hf.PreTrainedConfig]:
    return lambda: config(
        text_config=hf.LlamaConfig(**LLAMA_SIZE),
        vision_config=hf.CLIPVisionConfig(**VISION),
        image_token_index=IMAGE_ID,
        **options,
    )


LLAVA_PROCESSOR = {
    "patch_size": 4,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
GRID = [[32, 16], [16, 32]]
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 4, "sliding_window": 4}

LANGUAGE = {
    "gpt2": Tiny("GPT2LMHeadModel", lambda: hf.GPT2Config(**SIZE, n_positions=64), tokenizer),
    "llama": Tiny("LlamaForCausalLM", lambda: hf.LlamaConfig(**LLAMA_SIZE), lambda: tokenizer(chat=True)),
    "mistral": Tiny(
        "MistralForCausalLM", lambda: hf.MistralConfig(**LLAMA_SIZE, sliding_window=4), tokenizer
    ),
    "qwen2": Tiny(
        "Qwen2ForCausalLM",
        lambda: hf.Qwen2Config(**LLAMA_SIZE, use_sliding_window=True, sliding_window=4, max_window_layers=1),
        tokenizer,
    ),
    "qwen3": Tiny("Qwen3ForCausalLM", lambda: hf.Qwen3Config(**LLAMA_SIZE, head_dim=16), tokenizer),
    "gemma2": Tiny(
        "Gemma2ForCausalLM",
        lambda: hf.Gemma2Config(**LLAMA_SIZE, **GEMMA, attn_logit_softcapping=2.0),
        tokenizer,
    ),
    "gemma3": Tiny(
        "Gemma3ForCausalLM",
        lambda: hf.Gemma3TextConfig(
            **LLAMA_SIZE, **GEMMA, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
        ),
        tokenizer,
    ),
    "phi3": Tiny("Phi3ForCausalLM", lambda: hf.Phi3Config(**LLAMA_SIZE, sliding_window=4), tokenizer),
    "olmo2": Tiny("Olmo2ForCausalLM", lambda: hf.Olmo2Config(**LLAMA_SIZE), tokenizer),
    "gpt_neox": Tiny("GPTNeoXForCausalLM", lambda: hf.GPTNeoXConfig(**SIZE, intermediate_size=48), tokenizer),
    "opt": Tiny(
        "OPTForCausalLM",
        lambda: hf.OPTConfig(**SIZE, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=32),
        tokenizer,
    ),
    "bloom": Tiny("BloomForCausalLM", lambda: hf.BloomConfig(**SIZE), tokenizer),
}
VISION_LANGUAGE = {
    "llava": Tiny(
        "LlavaForConditionalGeneration",
        _llava(hf.LlavaConfig, image_seq_length=16),
        lambda: hf.LlavaProcessor(_clip_images(), tokenizer(), **LLAVA_PROCESSOR),
    ),
    "llava_next": Tiny(
        "LlavaNextForConditionalGeneration",
        _llava(hf.LlavaNextConfig, image_seq_length=16, image_grid_pinpoints=GRID),
        lambda: hf.LlavaNextProcessor(
            hf.LlavaNextImageProcessor(
                size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=GRID
            ),
            tokenizer(),
            **LLAVA_PROCESSOR,
        ),
    ),
    "llava_onevision": Tiny(
        "LlavaOnevisionForConditionalGeneration",
        lambda: hf.LlavaOnevisionConfig(
            text_config=hf.Qwen2Config(**LLAMA_SIZE),
            vision_config=hf.SiglipVisionConfig(**VISION),
            image_token_index=IMAGE_ID,
            video_token_index=VIDEO_ID,
            image_grid_pinpoints=GRID,
        ),
        lambda: images_only(hf.LlavaOnevisionProcessor)(
            hf.LlavaOnevisionImageProcessor(**_square(image_grid_pinpoints=GRID)),
            tokenizer(chat=True),
            num_image_tokens=16,
            vision_feature_select_strategy="full",
        ),
    ),
    "qwen2_vl": Tiny(
        "Qwen2VLForConditionalGeneration",
        lambda: hf.Qwen2VLConfig(
            **QWEN_VL,
            vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4},
        ),
        _qwen_vl_processor,
    ),
    "qwen2_5_vl": Tiny(
        "Qwen2_5_VLForConditionalGeneration",
        lambda: hf.Qwen2_5_VLConfig(
            **QWEN_VL,
            vision_config={
                "depth": 2,
                "hidden_size": 32,
                "num_heads": 4,
                "intermediate_size": 48,
                "patch_size": 4,
                "out_hidden_size": 32,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            },
        ),
        _qwen_vl_processor,
    ),
    "paligemma": Tiny(
        "PaliGemmaForConditionalGeneration",
        lambda: hf.PaliGemmaConfig(
            text_config=hf.GemmaConfig(**LLAMA_SIZE, head_dim=16),
            vision_config=hf.SiglipVisionConfig(**VISION),
            image_token_index=IMAGE_ID,
            projection_dim=32,
            hidden_size=32,
        ),
        lambda: hf.PaliGemmaProcessor(_siglip_images(), tokenizer()),
    ),
    "idefics3": Tiny(
        "Idefics3ForConditionalGeneration",
        lambda: hf.Idefics3Config(
            text_config=hf.LlamaConfig(**LLAMA_SIZE),
            vision_config=VISION,
            image_token_id=IMAGE_ID,
            scale_factor=2,
            pad_token_id=0,
        ),
        lambda: hf.Idefics3Processor(
            hf.Idefics3ImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}),
            tokenizer(),
            image_seq_len=4,
        ),
    ),
    "internvl": Tiny(
        "InternVLForConditionalGeneration",
        lambda: hf.InternVLConfig(
            text_config=hf.Qwen2Config(**LLAMA_SIZE),
            vision_config=hf.InternVLVisionConfig(**VISION | {"image_size": [16, 16], "patch_size": [4, 4]}),
            image_token_id=IMAGE_ID,
            image_seq_length=4,
            downsample_ratio=0.5,
        ),
        lambda: images_only(hf.InternVLProcessor)(
            hf.GotOcr2ImageProcessor(**_square()), tokenizer(), image_seq_length=4
        ),
    ),
}
ENCODERS = {
    "vit": Tiny(
        "ViTForImageClassification",
        lambda: hf.ViTConfig(**VISION, num_labels=5),
        lambda: hf.ViTImageProcessor(**_square()),
    ),
    "deit": Tiny(
        "DeiTForImageClassification",
        lambda: hf.DeiTConfig(**VISION, num_labels=5),
        lambda: hf.DeiTImageProcessor(**_square(crop_size={"height": 16, "width": 16})),
    ),
    "clip": Tiny(
        "CLIPModel",
        lambda: hf.CLIPConfig(text_config=LLAMA_SIZE, vision_config=VISION, projection_dim=16),
        lambda: hf.CLIPProcessor(_clip_images(), tokenizer(encoder=True)),
    ),
    "siglip": Tiny(
        "SiglipModel",
        lambda: hf.SiglipConfig(text_config=LLAMA_SIZE | {"projection_size": 32}, vision_config=VISION),
        lambda: hf.SiglipProcessor(
            _siglip_images(), tokenizer(encoder=True, model_input_names=["input_ids"])
        ),
    ),
    "bert": Tiny(
        "BertForMaskedLM",
        lambda: hf.BertConfig(**SIZE, intermediate_size=48),
        lambda: tokenizer(encoder=True),
    ),
}
ALL = LANGUAGE | VISION_LANGUAGE | ENCODERS


@cache
def checkpoint(family: str) -> Path:
    """A folder with the family's tiny random checkpoint, in the ordinary format."""
    tiny = ALL[family]
    torch.manual_seed(0)
    model = getattr(hf, tiny.architecture)(tiny.config())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases are born 0 and gains 1: a mistake with them would go unseen
                parameter += 0.2 * torch.randn_like(parameter)
            else:
                parameter.normal_(std=0.2)
    folder = Path(mkdtemp(prefix=f"{family}-"))
    model.save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    return folder


@cache
def subject(family: str, **options: Any) -> Subject:
    """The family's checkpoint, through `load`; `clip-vision` is CLIP's other tower. Shared by tests."""
    family, _, tower = family.partition("-")
    loaded = load(checkpoint(family), **options)
    return loaded.tower(tower) if tower else loaded


def organism() -> Subject:
    """The class of scenes-vlm with random weights."""
    torch.manual_seed(0)
    recipe = RECIPES["scenes-vlm"]
    return Subject(recipe.build().eval(), recipe.processors()[0])


def wide_llava(n_side: int, width: int, n_layers: int, n_heads: int) -> hf.LlavaForConditionalGeneration:
    """For benchmarks: random weights in LLaVA's proportions, for images of `n_side` x `n_side` patches.

    Token 4 stands for the image, as in the organisms' vocabulary.
    """
    torch.manual_seed(0)
    text = hf.LlamaConfig(
        vocab_size=200,
        hidden_size=width,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        intermediate_size=43 * width // 16,
        initializer_range=0.06,
    )
    vision = hf.CLIPVisionConfig(**VISION | {"image_size": 8 * n_side, "patch_size": 8})
    config = hf.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=4, image_seq_length=n_side**2
    )
    return hf.LlavaForConditionalGeneration(config).eval()


def picture(seed: int = 0) -> Image.Image:
    """A noisy image of 16 by 16 pixels."""
    pixels = torch.randint(
        0, 256, (16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return Image.fromarray(pixels.numpy())


PROMPTS = ["the cat sees a red star .", "a dog"]
QUESTIONS = ["where is the red star ?", "a cat", "what is left of the blue dog ."]


def inputs(subject: Subject, prompts: list[str] = PROMPTS) -> dict[str, torch.Tensor]:
    """A batch with a picture a prompt; the shorter ones are padded where the model reads text."""
    pictures = [picture(i) for i in range(len(prompts))]
    if subject.tokenizer is None:
        return subject.encode(images=pictures)
    return subject.encode(prompts, images=None if subject.processor is subject.tokenizer else pictures)


TOWERS = [*ALL, "clip-vision", "siglip-vision", "llava-vision"]
"""Every family, as its text tower if it has one; and some vision towers."""

BIDIRECTIONAL = {
    "bert": "an encoder",
    "vit": "an encoder",
    "deit": "an encoder",
    "siglip": "an encoder",
    "clip-vision": "an encoder",
    "siglip-vision": "an encoder",
    "llava-vision": "an encoder",
    "paligemma": "attends in both directions within the prompt",
}


def skip_unless_causal(family: str) -> None:
    """Skips a test about earlier positions for a family in which they see the later ones."""
    if family in BIDIRECTIONAL:
        pytest.skip(f"{family}: {BIDIRECTIONAL[family]}, so earlier positions may change")


def offered(subject: Subject, sites: Iterable[str]) -> list[str]:
    """Those of some sites that the model has."""
    return [site for site in sites if site not in subject.layout.withheld]


def captured(subject: Subject, batch: dict[str, torch.Tensor], sites: Iterable[str]) -> dict[str, Any]:
    """Site -> layer -> activation, of one forward pass."""
    with ExitStack() as stack, torch.no_grad():
        activations = {site: stack.enter_context(capture(subject, site)) for site in sites}
        subject.model(**batch)
    return activations


def last_residual(subject: Subject, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the tower makes of a batch: the last residual stream, on which everything acts."""
    return captured(subject, batch, ["resid_post"])["resid_post"][subject.n_layers - 1]


@contextmanager
def eager(subject: Subject) -> Iterator[None]:
    """Runs the model with transformers' eager attention."""
    before = subject.layout.owner.config._attn_implementation
    subject.layout.owner.set_attn_implementation("eager")
    yield
    subject.layout.owner.set_attn_implementation(before)


TEXTS = ["the cat sees a red star", "where is the dog", "is a blue star left of the cat ?", "dog", "a a a ."]
TEXTS += [f"the {a} sees the {b}" for a in ("cat", "dog", "star", "red") for b in ("dog", "blue", "star")]
"""Texts of several lengths in the words of the tiny tokenizer."""


def double(family: str) -> Subject:
    """A tiny checkpoint of its own in float64, with random gains and biases."""
    shared = subject(family)
    return Subject(deepcopy(shared.model).double(), shared.processor)
