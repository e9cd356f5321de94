"""What a model says: generation in batches, and log-probabilities of given answers, also under edits.

    said = generate(subject, ["Describe the picture."] * len(images), images, max_new_tokens=20)
    with edit(subject, "pattern", layer=2, fn=broadcast):
        edited = generate(subject, ["Describe the picture."] * len(images), images, max_new_tokens=20)
    yes, no = answer_logprobs(subject, texts, images, answers=[["yes", "no"]] * len(texts)).T

A batch is left-padded and read in one pass (the prefill); keys and values are kept, so that each new token
costs a pass over that token alone (a decode step). An edit or a capture that is open sees all passes. In the
scores and patterns of a decode step the query axis has the new token only, and the key axis has all tokens.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from tqdm.auto import tqdm
from transformers.cache_utils import DynamicCache, DynamicLayer

from lib.models import Picture, Subject, Text

Images = UInt8[np.ndarray, "sample h w 3"] | Sequence[Picture | Sequence[Picture] | None] | None
"""8-bit pixels, or for each text an image, several, or none."""


class Generation(NamedTuple):
    """What a model has said."""

    ids: Int[Tensor, "sample new"]
    """New tokens, with the one that ends the answer, and padding after it; on the CPU."""
    texts: list[str]
    """The same as text, without special tokens."""


def inputs(
    subject: Subject, texts: Sequence[Text], images: Images = None, *, batch_size: int = 250
) -> Iterator[dict[str, Tensor]]:
    """The model's inputs, batch by batch, as `Subject.encode` makes them: left-padded, with position ids.

    Args:
        subject: a model that generates.
        texts: prompts or conversations.
        images: one entry a text.
        batch_size: number of texts in a batch.

    Raises:
        ValueError: there is nothing to encode, the model does not generate, or texts and images do not match.
    """
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"texts={texts!r}: give a list with at least one prompt")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: it is at least 1")
    if subject.tokenizer is None or not subject.model.can_generate():
        raise ValueError(f"{type(subject.model).__name__} has no tokenizer, or no words to predict")
    if images is not None and len(images) != len(texts):
        raise ValueError(f"{len(texts)} texts and {len(images)} images: give one entry a text (or None)")
    return (
        subject.encode(
            texts[i : i + batch_size], None if images is None else list(images[i : i + batch_size])
        )
        for i in range(0, len(texts), batch_size)
    )


class _Room(DynamicLayer):
    """Keys and values of a layer, with room for those to come: else each step would copy all earlier ones."""

    room: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds keys and values, [sample, head, token, d_head], and returns all."""
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if self.room is None or end > self.room.shape[3]:
            room = key_states.new_empty(2, *key_states.shape[:2], end + 32, key_states.shape[3])
            if self.keys is not None and self.values is not None and start:
                room[0, :, :, :start], room[1, :, :, :start] = self.keys, self.values
            elif not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            self.room = room
        self.room[0, :, :, start:end] = key_states
        self.room[1, :, :, start:end] = value_states
        self.keys, self.values = self.room[:, :, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps (or repeats) some rows."""
        super().batch_select_indices(indices)
        self.room = None


class _Reading:
    """A batch of prompts that has been read, and can be read on.

    Attributes:
        logits: for what follows, [sample, vocabulary].
    """

    def __init__(self, subject: Subject, batch: dict[str, Tensor]) -> None:
        self.model, self.mask = subject.model, batch["attention_mask"]
        self.last = batch["position_ids"][..., -1:] if "position_ids" in batch else None
        self.cache = DynamicCache(config=self.model.config.get_text_config())
        self.cache.layers = [_Room() if type(own) is DynamicLayer else own for own in self.cache.layers]
        read = self.model(**batch, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.logits = read.logits[:, -1]

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Keeps (or repeats) some of the batch's rows."""
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]
        if self.last is not None:
            self.last = self.last[..., rows, :]

    def on(
        self, ids: Int[Tensor, "sample new"], written: Bool[Tensor, "sample new"]
    ) -> Float[Tensor, "sample new vocabulary"]:
        """Reads further tokens, of which those not `written` are padding; their logits."""
        self.mask = torch.cat([self.mask, written.to(self.mask)], 1)
        further = {"input_ids": ids, "attention_mask": self.mask}
        if self.last is not None:
            further["position_ids"] = self.last + written.long().cumsum(1)
            self.last = further["position_ids"][..., -1:]
        read = self.model(**further, past_key_values=self.cache, use_cache=True)
        self.logits = read.logits[:, -1]
        return read.logits


@torch.no_grad()
def generate(
    subject: Subject,
    texts: Sequence[Text],
    images: Images = None,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 250,
    progress: bool = False,
    start: Sequence[str] | None = None,
) -> Generation:
    """Answers to prompts, by the most probable token at each step or drawn at random.

    A drawn answer depends on the seed and on its place among the texts, not on the size of the batches.
    Penalties, `top_p` and the like in a model's own `generation_config` are not applied.

    Args:
        subject: a model that generates.
        texts: prompts or conversations.
        images: one entry a text.
        max_new_tokens: the longest answer, in tokens.
        temperature: 0 takes the most probable token; otherwise logits are divided by it, and tokens drawn.
        seed: of the draws.
        batch_size: number of texts in a batch.
        progress: show a progress bar.
        start: for each text, how its answer begins; generation goes on from there, and returns what is new.

    Raises:
        ValueError: an argument is out of its range, or texts and images do not match.
    """
    if max_new_tokens < 1 or temperature < 0:
        raise ValueError(
            f"max_new_tokens={max_new_tokens}, temperature={temperature}: at least 1, and at least 0"
        )
    if start is not None and len(start) != len(texts):
        raise ValueError(f"{len(texts)} texts and {len(start)} starts of answers: give one a text")
    batches = inputs(subject, texts, images, batch_size=batch_size)
    ends, pad = torch.tensor(_ends(subject), dtype=torch.long, device=subject.device), _pad(subject)
    chance = torch.rand(len(texts), max_new_tokens, generator=torch.Generator().manual_seed(seed))
    said, longest = [], 0
    with tqdm(total=len(texts), unit="text", disable=not progress) as bar:
        for batch, luck in zip(batches, chance.to(subject.device).split(batch_size), strict=True):
            reading, n = _Reading(subject, batch), len(luck)
            if start is not None:
                reading.on(*_tokens(subject, start[bar.n : bar.n + n], side="left"))
            new = torch.full((n, max_new_tokens), pad, device=subject.device)
            ended = torch.zeros(n, dtype=torch.bool, device=subject.device)
            for step in range(max_new_tokens):
                if step:
                    reading.on(new[:, step - 1 : step], ~ended[:, None])
                chosen = _choose(reading.logits, temperature, luck[:, step])
                new[:, step] = chosen.where(~ended, pad)
                ended |= torch.isin(chosen, ends)
                longest = max(longest, step + 1)
                if ended.all():
                    break
            said.append(new.cpu())
            bar.update(n)
    ids = torch.cat(said)[:, :longest]
    return Generation(ids, subject.tokenizer.batch_decode(ids, skip_special_tokens=True))


@torch.no_grad()
def next_logprobs(
    subject: Subject, texts: Sequence[Text], images: Images = None, *, batch_size: int = 250
) -> Float[Tensor, "sample vocabulary"]:
    """Log-probabilities, in nats, of the token after each prompt; on the CPU.

    Raises:
        ValueError: texts and images do not match, or the model does not generate.
    """
    batches = inputs(subject, texts, images, batch_size=batch_size)
    return torch.cat([_logprobs(_Reading(subject, batch).logits).cpu() for batch in batches])


@torch.no_grad()
def answer_logprobs(
    subject: Subject,
    texts: Sequence[Text],
    images: Images = None,
    *,
    answers: Sequence[Sequence[str]],
    batch_size: int = 250,
) -> Float[Tensor, "sample answer"]:
    """Log-probabilities, in nats, of given answers: the sum over an answer's tokens; on the CPU.

    Prompts are read once. Answers of several tokens cost one more pass, over all answers of a batch, for
    which the prompts' keys and values are repeated: memory grows with the number of answers.

    Args:
        subject: a model that generates.
        texts: prompts or conversations.
        images: one entry a text.
        answers: for each text, its answers. They are tokenised by themselves: where a model's words begin
            with a space, as GPT-2's do, an answer inside a line begins with one, too.
        batch_size: number of texts in a batch.

    Returns:
        One column an answer; minus infinity where a text has fewer answers than another.

    Raises:
        ValueError: not one entry of answers a text, an empty answer, or texts and images do not match.
    """
    if isinstance(answers, str) or any(isinstance(own, str) for own in answers):
        raise ValueError("answers: give a list of answers for each text, such as [['yes', 'no'], ...]")
    if len(answers) != len(texts):
        raise ValueError(f"{len(texts)} texts and {len(answers)} entries of answers: give one a text")
    found = torch.full((len(texts), max(map(len, answers))), -torch.inf)
    first = 0
    for batch in inputs(subject, texts, images, batch_size=batch_size):
        reading = _Reading(subject, batch)
        own = answers[first : first + len(reading.logits)]
        row = torch.tensor([i for i, some in enumerate(own) for _ in some], device=subject.device)
        column = torch.tensor([j for some in own for j in range(len(some))])
        ids, written = _tokens(subject, [answer for some in own for answer in some], side="right")
        logits = reading.logits[row, None]
        if ids.shape[1] > 1:
            reading.select(row)
            logits = torch.cat([logits, reading.on(ids[:, :-1], written[:, :-1])], 1)
        each = _logprobs(logits).gather(-1, ids[..., None])[..., 0] * written
        found[first + row.cpu(), column] = each.sum(1).cpu()
        first += len(own)
    return found


def _logprobs(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1)


def _choose(
    logits: Float[Tensor, "sample vocabulary"], temperature: float, luck: Float[Tensor, " sample"]
) -> Int[Tensor, " sample"]:
    """The most probable token; or the one at which the cumulated probability exceeds a number in [0, 1)."""
    if temperature == 0:
        return logits.argmax(-1)
    cumulated = (logits.double() / temperature).softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulated, luck[:, None] * cumulated[:, -1:], right=True)[:, 0]


def _tokens(
    subject: Subject, texts: Sequence[str], *, side: Literal["left", "right"]
) -> tuple[Int[Tensor, "text token"], Bool[Tensor, "text token"]]:
    """Parts of answers as tokens, padded on one side, and which of them are no padding."""
    rows = [subject.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if not all(rows):
        empty = rows.index([])
        raise ValueError(f"the answer {texts[empty]!r} has no token")
    width = max(map(len, rows))
    lengths = torch.tensor([[len(row)] for row in rows])
    written = torch.arange(width) < lengths
    if side == "left":
        written = written.flip(1)
    ids = torch.full(written.shape, _pad(subject)).masked_scatter(written, torch.tensor([*chain(*rows)]))
    return ids.to(subject.device), written.to(subject.device)


def _pad(subject: Subject) -> int:
    return subject.tokenizer.pad_token_id or 0


def _ends(subject: Subject) -> list[int]:
    """The tokens that end an answer."""
    model, tokenizer = subject.model, subject.tokenizer
    settings: list[Any] = [model.generation_config, model.config.get_text_config(), tokenizer]
    found: Any = next((s.eos_token_id for s in settings if s.eos_token_id is not None), [])
    return found if isinstance(found, list) else [found]
