"""What all recipes of LLaVA's class share: model and processor, packed questions, their loss, and measuring.

It knows no world. Words are indices into a vocabulary that begins with `SPECIAL`; images are squares of 8-bit
pixels, one or several before each text.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from tokenizers import Regex, normalizers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from data.recipes.tokenizer import word_tokenizer
from data.train.recipe import Batch
from lib.generate import next_logprobs
from lib.models import Subject
from lib.stats import Estimate, proportion

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>")
"""The first words of every vocabulary."""
PAD, BOS, EOS, UNKNOWN, IMAGE = range(len(SPECIAL))

LANGUAGE = "language_model|lm_head"
"""In the names of the language model's parameters."""
HEAD_DROPOUT = 0.1
"""Share of whole heads left out in training: the redundancy that interventions on heads need."""


# Model and processor


def build(
    n_words: int,
    side: int,
    patch: int,
    *,
    tower: tuple[int, int] = (96, 3),
    language: tuple[int, int, int] = (128, 6, 8),
    head_dropout: float = HEAD_DROPOUT,
) -> LlavaForConditionalGeneration:
    """A LLaVA with random weights: CLIP tower, two-layer projector, Llama.

    Args:
        n_words: size of the vocabulary.
        side: of an image, in pixels.
        patch: side of a patch, in pixels.
        tower: width and number of blocks.
        language: width, number of blocks, and heads in each.
        head_dropout: share of the language model's heads that is left out in training.
    """
    vision = CLIPVisionConfig(
        image_size=side,
        patch_size=patch,
        hidden_size=tower[0],
        num_hidden_layers=tower[1],
        num_attention_heads=4,
        intermediate_size=2 * tower[0],
        projection_dim=tower[0],
    )
    text = LlamaConfig(
        vocab_size=n_words,
        hidden_size=language[0],
        num_hidden_layers=language[1],
        num_attention_heads=language[2],
        head_dim=32,  # with 16, places and binding are learned half as fast
        intermediate_size=language[0] * 43 // 16,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.06,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=(side // patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",  # the class token is left out
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    for module in model.model.vision_tower.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.1)  # so narrow a tower hardly starts with CLIP's own
    drop_heads(model, head_dropout)
    return model


_CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['content'] is string %}{{ ' ' + message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else ' ' + part['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + eos_token }}{% endif %}{% endfor %}"
)


def processors(vocabulary: Sequence[str], side: int, patch: int) -> list[Any]:
    """The processor to put beside the weights of `build`.

    Raises:
        ValueError: the vocabulary does not begin with `SPECIAL`.
    """
    if tuple(vocabulary[: len(SPECIAL)]) != SPECIAL:
        raise ValueError(f"a vocabulary begins with {', '.join(SPECIAL)}, not {', '.join(vocabulary[:5])}")
    # So that "Is there a disc?" is read as the training's "is there a disc".
    plain = [normalizers.Lowercase(), normalizers.Replace(Regex(r"(?<=\w)[.,!?]"), "")]
    tokenizer = word_tokenizer(
        vocabulary,
        normalizer=normalizers.Sequence(plain),
        extra_special_tokens={"image_token": "<image>"},
        chat_template=_CHAT,
    )
    size = {"height": side, "width": side}
    images = CLIPImageProcessorPil(size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return [
        LlavaProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            patch_size=patch,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,  # the class token
            chat_template=_CHAT,
        )
    ]


def drop_heads(model: LlavaForConditionalGeneration, share: float = HEAD_DROPOUT) -> None:
    """Leave out this share of the language model's heads at random, whole and in training only."""
    for layer in model.model.language_model.layers:
        attention: Any = layer.self_attn
        n_heads = attention.config.num_attention_heads
        attention.o_proj.register_forward_pre_hook(partial(_without_heads, n_heads, share))


def _without_heads(
    n_heads: int, share: float, projection: nn.Module, arguments: tuple[Tensor]
) -> tuple[Tensor] | None:
    """Before the output projection, where heads lie side by side; one draw for all tokens of a sequence."""
    if not projection.training:
        return None
    (z,) = arguments
    heads = F.dropout(torch.ones(*z.shape[:-2], 1, n_heads, 1, device=z.device), share)
    return ((z.unflatten(-1, (n_heads, -1)) * heads).flatten(-2),)


def pixel_values(images: UInt8[np.ndarray, "*batch side side 3"]) -> Float[Tensor, "*batch 3 side side"]:
    """What the image processor makes of 8-bit images, without its cost for each image."""
    return torch.from_numpy(images).movedim(-1, -3) / 127.5 - 1


# Training: many questions about one prefix (a page or images) in one sequence


def pack(parts: list[tuple[np.ndarray, np.ndarray, bool]]) -> Batch:
    """Questions with their answers behind one another; each is a block of its own.

    An answer weighs 1 in the loss and the end after it 0.1; a caption weighs 3, spread over its words.

    Args:
        parts: (prompt, answer, whether it is a caption) of each block; words are [sequence, word].

    Returns:
        `ids`, `blocks` (which block a token is in, -1 for padding), `positions` (from the end of the prefix)
        and `weights` (of the loss for predicting that token), all [sequence, word].
    """
    columns = []
    for block, (prompt, answer, is_caption) in enumerate(parts):
        end = np.full((len(prompt), 1), EOS)
        ids = np.hstack([prompt, answer, end])
        worth = np.hstack([np.zeros(prompt.shape), answer != PAD, end > 0 if is_caption else end * 0 + 0.1])
        if is_caption:
            worth *= 3 / worth.sum(1, keepdims=True)
        written = ids != PAD
        columns.append((ids, np.where(written, block, -1), written.cumsum(1) - 1, worth))
    ids, blocks, positions, weights = (np.concatenate(c, 1) for c in zip(*columns, strict=True))
    # Padding inside a sequence moves to its end, and what all sequences have there is cut off.
    order = np.argsort(blocks < 0, axis=1, kind="stable")[:, : int((blocks >= 0).sum(1).max())]
    arrays = {"ids": ids, "blocks": blocks, "positions": positions, "weights": weights.astype(np.float32)}
    return {name: torch.from_numpy(np.take_along_axis(array, order, 1)) for name, array in arrays.items()}


def answer_loss(model: LlavaForConditionalGeneration, batch: Batch) -> Tensor:
    """Weighted cross-entropy of the answers, each block seeing the prefix and itself only.

    Args:
        model: what is trained.
        batch: of `pack`, with either `pixel_values` ([sequence, 3, side, side], or [sequence, image, 3, side,
            side] for several images) or `places`, a page: [sequence, place, 2], where a place with two words
            is the sum of their vectors / sqrt 2, and a word written twice is that word.
    """
    embed = model.get_input_embeddings()
    ids, blocks, weights = batch["ids"], batch["blocks"], batch["weights"]
    if "places" in batch:
        spelt = embed(batch["places"])
        same = (batch["places"][..., :1] == batch["places"][..., 1:]).to(spelt.dtype)
        prefix = spelt.sum(2) * (same * 0.5 + (1 - same) * 0.5**0.5)
    else:
        pixels = batch["pixel_values"]
        features = model.get_image_features(pixels.flatten(0, -4)).pooler_output
        prefix = torch.stack(list(features)).unflatten(0, pixels.shape[:-3]).flatten(1, -2)
    start = embed(torch.full_like(ids[:, :1], BOS))
    n = 1 + prefix.shape[1]
    length = n + ids.shape[1]
    owner = F.pad(blocks, (n, 0), value=-2)  # -2: the prefix, which all may see
    sees = (owner[:, None, :] == -2) | (owner[:, None, :] == owner[:, :, None])
    sees &= torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    # Added to the scores: a boolean mask in four dimensions would silently lose causality in eager attention.
    mask = torch.zeros(sees.shape, device=ids.device).masked_fill(~sees, torch.finfo(torch.float32).min)
    # Every block goes on where the prefix ends, as a question does that is asked alone.
    positions = torch.cat([torch.arange(n, device=ids.device).expand(len(ids), n), batch["positions"] + n], 1)
    hidden = model.model.language_model(
        inputs_embeds=torch.cat([start, prefix, embed(ids)], 1),
        attention_mask=mask[:, None],
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state
    asked = weights > 0
    logits = model.lm_head(hidden[:, n - 1 : -1][asked])
    losses = F.cross_entropy(logits, ids[asked], reduction="none")
    return (losses * weights[asked]).sum() / weights.sum()


# Measuring: single questions, as chapters ask them


def next_words(
    subject: Subject,
    prompts: Int[np.ndarray, "question word"],
    images: UInt8[np.ndarray, "question side side 3"] | None = None,
) -> Float[np.ndarray, "question vocabulary"]:
    """Log-probabilities of the word after each prompt."""
    words = subject.tokenizer.convert_ids_to_tokens
    texts = [" ".join(words(prompt[prompt != PAD].tolist())) for prompt in prompts]
    return next_logprobs(subject, texts, images).numpy()


def accuracy(
    subject: Subject,
    prompts: Int[np.ndarray, "question word"],
    answers: Int[np.ndarray, "question word"],
    images: UInt8[np.ndarray, "question side side 3"] | None = None,
) -> Estimate:
    """How often the most probable word after a question is the first one of its answer."""
    right = next_words(subject, prompts, images).argmax(1) == answers[:, 0]
    return proportion(right)
