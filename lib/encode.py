"""Prompts and pictures as a model's inputs, and what each of their positions holds.

    inputs = subject.encode(["What is left of the red star?"], images=[image])
    subject.model(**inputs)
    subject.spans(inputs).image     # batch seq: where the image's features are

    for batch in inputs(subject, prompts, images, batch_size=50):
        subject.model(**batch)

Models that continue a text get left-padded batches with the position ids that go with them; encoders and
models without a head for words, whose positions count from the left, get right-padded ones.
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from PIL.Image import Image, fromarray
from torch import Tensor, nn
from transformers import PreTrainedModel

from lib.sites import Layout

Text = str | list[dict[str, Any]]
"""A prompt, or a conversation in the form that chat templates take."""

Picture = Image | UInt8[np.ndarray, "h w 3"]
"""An image in RGB, or its 8-bit pixels; in grey for a model of one channel."""

Images = UInt8[np.ndarray, "sample h w 3"] | Sequence[Picture | Sequence[Picture] | None] | None
"""8-bit pixels, or for each text an image, several, or none."""


class Reads(Protocol):
    """What encoding must know of a model, such as a `lib.models.Subject`.

    Attributes:
        model: the transformers model.
        layout: where its sites are.
        processor: tokenizer, image processor or both (transformers has no common class for them).
        tokenizer: the processor's tokenizer.
        image_token_ids: ids of the tokens that stand for image (or video) features.
        n_channels: of the images that it reads: 3, or 1 for grey.
    """

    model: PreTrainedModel
    layout: Layout
    processor: Any
    tokenizer: Any
    image_token_ids: list[int]
    n_channels: int


@dataclass(frozen=True)
class Spans:
    """What each position of a batch holds. Every position is in exactly one of the three."""

    image: Bool[Tensor, "batch seq"]
    text: Bool[Tensor, "batch seq"]
    padding: Bool[Tensor, "batch seq"]


def unwrapped(model: PreTrainedModel) -> PreTrainedModel:
    """The transformers model inside wrappers such as PEFT's or torch.compile's, which hide its signature."""
    return next((part for part in model.modules() if isinstance(part, PreTrainedModel)), model)


def takes(model: PreTrainedModel, name: str) -> bool:
    """Whether the model's forward has an argument of that name."""
    return name in inspect.signature(type(unwrapped(model)).forward).parameters


def continues(model: PreTrainedModel) -> bool:
    """Whether the model goes on with the text that it reads: it predicts words, and is no encoder."""
    inner: Any = unwrapped(model)
    # BERT's kind can be a decoder, with cross-attention; GPT-NeoX has the setting too, and does not use it.
    may_encode = hasattr(inner.config, "add_cross_attention")
    return inner.can_generate() and not (may_encode and getattr(inner.config, "is_decoder", True) is False)


def padded(model: PreTrainedModel) -> bool:
    """Whether prompts can be padded to one length: the model takes positions, or has none (ALiBi).

    Others count them from the first column, as BART's decoder does: padding would shift a prompt.
    """
    kind = unwrapped(model).config.model_type
    # GIT puts its picture before the padding, whatever the positions.
    return kind in ("bloom", "mpt") or (kind != "git" and takes(model, "position_ids"))


def encode(
    subject: Reads,
    texts: Text | Sequence[Text] | None = None,
    images: Picture | Images = None,
    *,
    chat: bool | None = None,
) -> dict[str, Tensor]:
    """Inputs for `model(**inputs)` and, if it generates, `model.generate(**inputs)`.

    Tokens are those of the processor's (or tokenizer's) own call, or of its `apply_chat_template`. Of what it
    makes the model gets only what its forward has arguments for.

    Args:
        subject: the model; the inputs get its device, and pixels its dtype.
        texts: prompts or conversations; None for a model that sees images only.
        images: for a vision-language model one entry a text: an image, several, or None. Else a list of
            images.
        chat: put the texts through the chat template as a user's message; None for: if there is one.

    Raises:
        ValueError: there is nothing that could encode this, texts and images do not go together, a text has
            no token or too many, a token is none of the model's, or it needs prompts of one length.
    """
    model, processor = unwrapped(subject.model), subject.processor
    name = type(model).__name__
    if processor is None:
        raise ValueError(f"{name} has no tokenizer or processor: give one to Subject, or build its inputs")
    if texts is None and images is None:
        raise ValueError("encode() needs texts, images or both")
    if texts is not None and subject.tokenizer is None:
        raise ValueError(f"{name} reads images only: encode(images=...)")
    no_place = texts is not None and continues(model) and not subject.image_token_ids
    if images is not None and (processor is subject.tokenizer or no_place):
        raise ValueError(f"{name} has no image tokens: it reads texts only, but images were given")

    one_text: Any = isinstance(texts, str) or (texts and isinstance(texts[0], dict))
    one_image = isinstance(images, Image) or (isinstance(images, np.ndarray) and images.ndim == 3)
    prompts: Any = [texts] if one_text else texts
    pictures: Any = [images] if images is not None and (one_text or one_image) else images
    if prompts is not None and continues(model):
        encoded = _encode_prompts(subject, prompts, _pictures(subject, len(prompts), pictures), chat)
    else:
        arguments: dict[str, Any] = {}
        if pictures is not None:
            arguments["images"] = [_picture(image, i, subject.n_channels) for i, image in enumerate(pictures)]
        if prompts is not None:
            siglip = model.config.model_type == "siglip"  # was trained on texts padded to one length
            padding = "max_length" if siglip else True
            arguments |= {"text": list(prompts), "padding": padding, "padding_side": "right"}
        encoded = processor(**arguments, return_tensors="pt")
    _check_tokens(subject, encoded)
    return {
        name: x.to(model.device, model.dtype if x.is_floating_point() else None)
        for name, x in encoded.items()
        if takes(model, name)
    }


def _check_tokens(subject: Reads, encoded: Mapping[str, Tensor]) -> None:
    """Checks that each text has a token, and the model an embedding for it and its position."""
    ids, mask = encoded.get("input_ids"), encoded.get("attention_mask")
    if mask is not None:
        if not (n_tokens := mask.flatten(1).sum(1)).all():
            raise ValueError(f"text {int(n_tokens.argmin())} has no token: give every text a word at least")
        check_length(subject, int(n_tokens.max()))
    model = unwrapped(subject.model)
    if ids is None or not continues(model):
        return
    n_embeddings = getattr(model.get_input_embeddings(), "num_embeddings", torch.inf)
    highest = ids.masked_fill(torch.isin(ids, ids.new_tensor(subject.image_token_ids)), 0).max()
    if highest >= n_embeddings:
        raise ValueError(
            f"the tokenizer writes the token {int(highest)}, but {type(model).__name__} has {n_embeddings} "
            "embeddings: give it the tokenizer that it was trained with"
        )


def check_length(subject: Reads, n_tokens: int) -> None:
    """Checks that a text fits into the model's table of positions, if it has one.

    Raises:
        ValueError: it does not. Models would read beyond the table, which on a GPU ends the process.
    """
    model = subject.layout.owner
    limit = getattr(model.config, "max_position_embeddings", 0)
    for name, table in model.named_modules():
        # Some tables have two rows more, which their positions skip; RoBERTa's positions skip padding's row.
        is_table = isinstance(table, nn.Embedding) and re.search("pos|wpe", name.rpartition(".")[2])
        if is_table and 0 <= table.num_embeddings - limit <= 2:
            limit -= 0 if table.padding_idx is None else table.padding_idx + 1
            if n_tokens > limit:
                raise ValueError(f"a text has {n_tokens} tokens, but the model {limit} positions: shorten it")


def inputs(
    subject: Reads, texts: Sequence[Text], images: Images = None, *, batch_size: int = 250
) -> Iterator[dict[str, Tensor]]:
    """The model's inputs, batch by batch, as `encode` makes them: left-padded, with position ids.

    Args:
        subject: a model that generates.
        texts: prompts or conversations.
        images: one entry a text.
        batch_size: number of texts in a batch; 1 for a model whose prompts cannot be padded.

    Raises:
        ValueError: there is nothing to encode, the model does not continue texts, or texts and images do not
            match.
    """
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"texts={texts!r}: give a list with at least one prompt")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: it is at least 1")
    if subject.tokenizer is None or not continues(subject.model):
        name = type(unwrapped(subject.model)).__name__
        raise ValueError(f"{name} cannot continue a prompt: no tokenizer, no words to predict, or an encoder")
    if images is not None and len(images) != len(texts):
        raise ValueError(f"{len(texts)} texts and {len(images)} images: give one entry a text (or None)")
    batch_size = batch_size if padded(subject.model) else 1
    # Errors above are raised by the call itself; the batches are made one at a time, as they are asked for.
    rows = (slice(i, i + batch_size) for i in range(0, len(texts), batch_size))
    return (encode(subject, texts[i], None if images is None else list(images[i])) for i in rows)


def spans(subject: Reads, inputs: Mapping[str, Tensor]) -> Spans:
    """Which positions of encoded inputs are image tokens, text and padding.

    Padding is what the attention mask hides; image tokens are those that the model replaces by image
    features, by its configuration. Tokens that merely frame an image are text.

    Raises:
        ValueError: the inputs have no `input_ids`.
    """
    if "input_ids" not in inputs:
        raise ValueError(f"spans() needs 'input_ids'; the inputs have {', '.join(inputs)}")
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    padding = torch.zeros_like(ids, dtype=torch.bool) if mask is None else mask == 0
    image = torch.isin(ids, ids.new_tensor(subject.image_token_ids)) & ~padding
    return Spans(image, ~image & ~padding, padding)


def _encode_prompts(
    subject: Reads, texts: Sequence[Text], pictures: list[list[Image]], chat: bool | None
) -> dict[str, Tensor]:
    """Left-padded inputs of a model that generates; `pictures` has those of each text."""
    model, processor = unwrapped(subject.model), subject.processor
    if getattr(getattr(subject.model, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError(f"{type(subject.model).__name__} puts virtual tokens before a prompt: not supported")
    templated: Any = processor if getattr(processor, "chat_template", None) else subject.tokenizer
    if chat and not templated.chat_template:
        raise ValueError(f"chat=True, but {type(model).__name__}'s tokenizer has no chat template")
    if chat is False or not templated.chat_template:
        templated = None
    prompts = [
        _prompt(subject, text, len(shown), templated) for text, shown in zip(texts, pictures, strict=True)
    ]
    arguments: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    # As transformers' apply_chat_template has it: a tokenizer's template has written all special tokens, a
    # processor's may leave them to the tokenizer.
    bos = subject.tokenizer.bos_token
    if templated is subject.tokenizer or (templated and bos and prompts[0].startswith(bos)):
        arguments["add_special_tokens"] = False
    counts = {len(shown) for shown in pictures}
    fits = {"paligemma": 0 not in counts, "mllama": len(counts) == 1}.get(model.config.model_type, True)
    if not fits or (hasattr(processor, "num_query_tokens") and counts != {1}):  # else silently wrong
        name = type(model).__name__
        raise ValueError(f"{name} cannot read texts with {sorted(counts)} images: give each one")
    if any(pictures):
        arguments["images"] = pictures
    encoded = dict(processor(text=prompts, **arguments))
    encoded.pop("labels", None)  # PaliGemma's, for training
    # Tokenizers hand out kinds of tokens to models without embeddings for them, such as GPT-2.
    if processor is subject.tokenizer and not hasattr(model.config, "type_vocab_size"):
        encoded.pop("token_type_ids", None)
    if not (padded(model) or encoded["attention_mask"].all()):
        raise ValueError(
            f"{type(model).__name__} takes no position ids: encode prompts of one length, or one at a time"
        )
    if takes(model, "position_ids"):
        encoded["position_ids"] = _positions(model, encoded)
    return encoded


def _positions(
    model: PreTrainedModel, encoded: Mapping[str, Tensor]
) -> Int[Tensor, "batch seq"] | Int[Tensor, "3 batch seq"]:
    """Positions that count from the first token that is not padding.

    Without them transformers counts from the first column: a prompt's answer would then depend on the lengths
    of the others in its batch.
    """
    inner: Any = model.base_model
    if not hasattr(inner, "get_rope_index"):
        return (encoded["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    # Qwen's: time, row and column of each image token, so [3, batch, seq].
    named = inspect.signature(inner.get_rope_index).parameters
    return inner.get_rope_index(**{name: x for name, x in encoded.items() if name in named})[0]


def _pictures(subject: Reads, n_texts: int, images: Any) -> list[list[Image]]:
    """The images of each text, as lists."""
    if images is None:
        return [[] for _ in range(n_texts)]
    if len(images) != n_texts:
        raise ValueError(f"{n_texts} texts and {len(images)} entries of images: give one a text (or None)")
    entries = [[] if x is None else list(x) if isinstance(x, Sequence) else [x] for x in images]
    return [[_picture(image, i, subject.n_channels) for image in shown] for i, shown in enumerate(entries)]


def _prompt(subject: Reads, text: Text, n_images: int, templated: Any) -> str:
    """One text as the processor takes it: with its chat turns and image markers."""
    # The processors of Q-Formers, as BLIP-2's, put the image tokens first by themselves.
    places_them = hasattr(subject.processor, "num_query_tokens")
    marker = "" if places_them else getattr(subject.processor, "image_token", "")
    n_markers = _markers(text, marker)
    if n_markers != n_images and (n_markers or not isinstance(text, str)):
        raise ValueError(
            f"the prompt {text!r:.80} has {n_markers} image tokens ({marker}), and {n_images} images are "
            "given: give one image a token"
            + (", or leave the tokens out, and they are put first" if isinstance(text, str) else "")
        )
    if isinstance(text, str) and not n_markers:
        text = marker * n_images + text
    if templated is None:
        if not isinstance(text, str):
            raise ValueError("a conversation was given, but there is no chat template to write it with")
        return text
    if isinstance(text, str):
        content: Any = text
        # A processor's template writes the markers itself: its content is texts with images between them.
        if templated is not subject.tokenizer:
            parts = [{"type": "text", "text": part} for part in (text.split(marker) if marker else [text])]
            content = [part for words in parts for part in (words, {"type": "image"})][:-1]
            content = [part for part in content if part.get("text") != ""]
        text = [{"role": "user", "content": content}]
    return templated.apply_chat_template(text, add_generation_prompt=True, tokenize=False)


def _markers(text: Text, marker: str) -> int:
    """How many images a prompt or a conversation has places for."""
    if isinstance(text, str):
        return text.count(marker) if marker else 0
    total = 0
    for turn in text:
        content = turn["content"]
        for part in [content] if isinstance(content, str) else content:
            if isinstance(part, str) or part["type"] == "text":
                total += _markers(part if isinstance(part, str) else part["text"], marker)
            else:
                total += part["type"] == "image"
    return total


def _picture(image: object, number: int, channels: int) -> Image:
    """An image as a picture of the model's number of channels.

    Raises:
        ValueError: it is none, for certain.
    """
    mode = "L" if channels == 1 else "RGB"
    shape = "[height, width]" if channels == 1 else "[height, width, 3], the colours last"
    if isinstance(image, Image):
        if image.mode != mode:
            wanted = f"not {mode!r}: give image.convert({mode!r})"
            raise ValueError(f"image {number} has mode {image.mode!r}, {wanted}")
        return image
    if not isinstance(image, np.ndarray):
        kind = type(image).__name__
        raise ValueError(f"image {number} is of type {kind}: give a PIL image or an array of 8-bit pixels")
    if image.dtype != np.uint8:
        bad = image.dtype.kind == "f" and not np.isfinite(image).all()
        values = "has pixels that are NaN or infinite" if bad else f"has the dtype {image.dtype}"
        raise ValueError(f"image {number} {values}: give 8-bit pixels from 0 to 255 (dtype uint8)")
    if image.shape[2:] != ((3,) if mode == "RGB" else ()) or image.ndim < 2 or not image.size:
        raise ValueError(f"image {number} has the shape {image.shape}: give {shape}")
    return fromarray(image)
