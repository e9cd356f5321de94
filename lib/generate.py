"""What a model says: generation in batches, and log-probabilities of given answers, also under edits.

    captions = generate(subject, ["Describe the picture."] * len(images), images, max_new_tokens=20)
    with edit(subject, "pattern", layer=2, fn=broadcast):
        edited = generate(subject, ["Describe the picture."] * len(images), images, max_new_tokens=20)
    yes, no = answer_logprobs(subject, texts, images, answers=[["yes", "no"]] * len(texts)).T

A batch is left-padded and read in one pass (the prefill); keys and values are kept, so that each new token
costs a pass over that token alone (a decode step). An edit or a capture that is open sees all passes. In the
scores and patterns of a decode step the query axis has the new token only, and the key axis has all tokens.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from lib.encode import Images, Text, check_length, inputs, takes, unwrapped
from lib.models import Subject

PER_TOKEN = ("input_ids", "attention_mask", "position_ids", "cross_attention_mask")
"""Inputs of a prompt that a pass over further tokens depends on; the cache holds all else."""


class Generation(NamedTuple):
    """A model's answers."""

    ids: Int[Tensor, "sample new"]
    """New tokens, with the one that ends the answer, and padding after it; on the CPU."""
    texts: list[str]
    """The same as text, without special tokens."""


class _Reading:
    """A batch of prompts that has been read (the prefill), and can be read on.

    Attributes:
        logits: for what follows, [sample, vocabulary].
    """

    def __init__(self, subject: Subject, batch: dict[str, Tensor]) -> None:
        self._subject, self._model = subject, unwrapped(subject.model)
        self._forward: Any = subject.model  # through its wrappers
        self._cache = DynamicCache(config=self._model.config.get_text_config())
        self._n_read = 0
        # `position_ids` may have an axis of three (time, row and column) before that of the samples.
        self._prompt = {name: batch[name] for name in PER_TOKEN if name in batch}
        last = {"logits_to_keep": 1} if takes(self._model, "logits_to_keep") else {}
        self._run(batch["attention_mask"][:, -1:].bool(), is_first_iteration=True, **batch, **last)

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Keeps (or repeats) some of the batch's rows."""
        self._cache.batch_select_indices(rows)
        for name, x in self._prompt.items():
            self._prompt[name] = x[..., rows, :] if name == "position_ids" else x[rows]

    def read_on(
        self, ids: Int[Tensor, "sample new"], written: Bool[Tensor, "sample new"]
    ) -> Float[Tensor, "sample new vocabulary"]:
        """Reads further tokens; their logits. What is not `written` is padding, and nothing follows it."""
        if not self._cache.get_seq_length():
            raise ValueError(f"{type(self._model).__name__} keeps no keys and values: it cannot be read on")
        prompt = self._prompt
        prompt["input_ids"] = torch.cat([prompt["input_ids"], ids], 1)
        prompt["attention_mask"] = torch.cat(
            [prompt["attention_mask"], written.to(prompt["attention_mask"])], 1
        )
        if "position_ids" in prompt:
            prompt["position_ids"] = prompt["position_ids"][..., -1:] + written.long().cumsum(1)
        self._n_read += ids.shape[1]
        check_length(self._subject, int(prompt["attention_mask"].sum(1).max()))
        return self._run(written, next_sequence_length=ids.shape[1], **prompt)

    def _run(
        self, written: Bool[Tensor, "sample new"], **inputs: Any
    ) -> Float[Tensor, "sample new vocabulary"]:
        """A pass over what the model itself would read next."""
        model: Any = self._model
        prepared = model.prepare_inputs_for_generation(past_key_values=self._cache, use_cache=True, **inputs)
        logits = self._forward(**prepared).logits[:, -written.shape[1] :]
        if not (logits.amax(-1).isfinite() | ~written).all():  # NaN is the largest of its row
            raise FloatingPointError(
                f"{type(self._model).__name__} gives logits that are not finite for token {self._n_read + 1} "
                "after the prompt: half precision overflows (use dtype='float32'), or an edit makes NaN"
            )
        self.logits = logits[:, -1]
        return logits


@torch.no_grad()
def generate(
    subject: Subject,
    texts: Sequence[Text],
    images: Images = None,
    *,
    max_new_tokens: int,
    batch_size: int = 250,
) -> Generation:
    """Answers to prompts, by the most probable token at each step.

    Penalties, `top_p` and the like in a model's own `generation_config` are not applied.

    Args:
        subject: a model that generates.
        texts: prompts or conversations.
        images: one entry a text.
        max_new_tokens: the longest answer, in tokens.
        batch_size: number of texts in a batch.

    Raises:
        ValueError: an argument is out of its range, or texts and images do not match.
        FloatingPointError: logits are not finite.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: it is at least 1")
    batches = inputs(subject, texts, images, batch_size=batch_size)
    ends, pad = torch.tensor(_ends(subject), dtype=torch.long, device=subject.device), _pad(subject)
    answers, longest = [], 0
    for batch in batches:
        reading = _Reading(subject, batch)
        new = torch.full((len(reading.logits), max_new_tokens), pad, device=subject.device)
        ended = torch.zeros_like(new[:, 0], dtype=torch.bool)
        for step in range(max_new_tokens):
            if step:
                reading.read_on(new[:, step - 1 : step], ~ended[:, None])
            chosen = reading.logits.argmax(-1)
            new[:, step] = chosen.where(~ended, pad)  # rows that have ended go along as padding
            ended |= torch.isin(chosen, ends)
            longest = max(longest, step + 1)
            if ended.all():
                break
        answers.append(new.cpu())
    ids = torch.cat(answers)[:, :longest]
    return Generation(ids, subject.tokenizer.batch_decode(ids, skip_special_tokens=True))


@torch.no_grad()
def next_logprobs(
    subject: Subject, texts: Sequence[Text], images: Images = None, *, batch_size: int = 250
) -> Float[Tensor, "sample vocabulary"]:
    """Log-probabilities, in nats, of the token after each prompt; on the CPU.

    Raises:
        ValueError: texts and images do not match, or the model does not continue texts.
        FloatingPointError: logits are not finite.
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
        FloatingPointError: logits are not finite.
    """
    if isinstance(answers, str) or any(isinstance(entry, str) for entry in answers):
        raise ValueError("answers: give a list of answers for each text, such as [['yes', 'no'], ...]")
    if len(answers) != len(texts):
        raise ValueError(f"{len(texts)} texts and {len(answers)} entries of answers: give one a text")
    if not all(answers):
        raise ValueError("answers: give each text at least one answer")
    logprobs = torch.full((len(texts), max(map(len, answers))), -torch.inf)
    first = 0
    for batch in inputs(subject, texts, images, batch_size=batch_size):
        reading = _Reading(subject, batch)
        entries = answers[first : first + len(reading.logits)]
        # All answers of the batch in one list: `row` is the prompt of each, `column` its place among them.
        row = torch.tensor([i for i, entry in enumerate(entries) for _ in entry], device=subject.device)
        column = torch.tensor([j for entry in entries for j in range(len(entry))])
        ids, written = _tokens(subject, [*chain(*entries)])
        logits = reading.logits[row, None]  # for an answer's first token
        if ids.shape[1] > 1:
            reading.select(row)
            logits = torch.cat([logits, reading.read_on(ids[:, :-1], written[:, :-1])], 1)
        each = _logprobs(logits).gather(-1, ids[..., None])[..., 0] * written
        logprobs[first + row.cpu(), column] = each.sum(1).cpu()
        first += len(entries)
    return logprobs


def _logprobs(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1)


def _tokens(
    subject: Subject, answers: Sequence[str]
) -> tuple[Int[Tensor, "answer token"], Bool[Tensor, "answer token"]]:
    """Answers as tokens, padded on the right, and which of them are no padding."""
    rows = [subject.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    if [] in rows:
        raise ValueError(f"the answer {answers[rows.index([])]!r} has no token")
    lengths = torch.tensor([[len(row)] for row in rows])
    written = torch.arange(max(map(len, rows))) < lengths
    ids = torch.full(written.shape, _pad(subject)).masked_scatter(written, torch.tensor([*chain(*rows)]))
    return ids.to(subject.device), written.to(subject.device)


def _pad(subject: Subject) -> int:
    return subject.tokenizer.pad_token_id or 0


def _ends(subject: Subject) -> list[int]:
    """The tokens that end an answer."""
    model, tokenizer = unwrapped(subject.model), subject.tokenizer
    settings: list[Any] = [model.generation_config, model.config.get_text_config(), tokenizer]
    found = (getattr(part, "eos_token_id", None) for part in settings)  # not every text part has one
    ends: Any = next((ids for ids in found if ids is not None), [])
    return ends if isinstance(ends, list) else [ends]
