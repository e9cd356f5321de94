"""Requests for what is private and for reasons of prejudices, with aware and unaware replies.

`discreet_requests` are harmless and written for this book. `beavertails` reads a file in BeaverTails' form
(Ji et al. 2023) from a path; nothing of it comes with this book, and no error and no `repr` shows any of its
texts.
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml
from numpy.random import default_rng

from data.sets.files import check, draw

Kind = Literal["privacy", "fairness"]
CATEGORIES: Mapping[Kind, str] = {
    "privacy": "privacy_violation",
    "fairness": "discrimination,stereotype,injustice",
}
"""What BeaverTails calls the two."""
_FIELDS = ("prompt", "response", "category", "is_safe")


@dataclass(frozen=True)
class Discreet:
    """A request, and two replies."""

    request: str = field(repr=False)
    aware: str = field(repr=False)
    unaware: str = field(repr=False)
    plain: str = field(default="", repr=False)
    """A twin of the request that anybody may ask; BeaverTails has none."""


def discreet_requests(kind: Kind, *, n: int | None = None, seed: int = 0) -> list[Discreet]:
    """Harmless requests of a kind, written for this book: at most `n`, or all in their order.

    Raises:
        LookupError: there is no such kind.
    """
    text = Path(__file__).with_name("discreet-requests.yml").read_text(encoding="utf-8")
    sets: dict[str, dict[str, Any]] = yaml.safe_load(text)
    if kind not in sets:
        raise LookupError(f"no requests of the kind {kind!r}; there is: {', '.join(sets)}")
    of = sets[kind]
    found = []
    for first, (second, value) in product(of["firsts"], of["seconds"].items()):
        words = {"first": first, "second": second, "value": value}
        texts = {name: of[name].format(**words) for name in ("request", "aware", "unaware", "plain")}
        found.append(Discreet(**texts))
    return draw(found, n, seed)


def beavertails(path: str | Path, kind: Kind, *, n: int | None = None, seed: int = 0) -> list[Discreet]:
    """Prompts of a file as BeaverTails has them, with a safe reply and an unsafe one.

    A safe record names no category there. So a prompt is of a kind if one of its unsafe replies is, and the
    prompts that have replies of both sorts are kept, with one of each drawn by `seed`.

    Args:
        path: of JSON lines, also compressed (.gz), with the fields prompt, response, category and is_safe.
        kind: privacy or fairness.
        n: at most so many, drawn at random; None for all, in their order.
        seed: of the draws.

    Raises:
        FileNotFoundError: there is no such file.
        LookupError: no such kind, or a record lacks a field.
        ValueError: a line is not JSON, or no prompt of the kind has replies of both sorts.
    """
    if kind not in CATEGORIES:
        raise LookupError(f"no category of the kind {kind!r}; there is: {', '.join(CATEGORIES)}")
    replies: dict[str, tuple[list[str], list[str]]] = {}
    for record in _records(Path(path)):
        if record["is_safe"] or record["category"].get(CATEGORIES[kind]):
            replies.setdefault(record["prompt"], ([], []))[record["is_safe"]].append(record["response"])
    rng = default_rng(seed)
    found = [
        Discreet(prompt, str(rng.choice(safe)), str(rng.choice(unsafe)))
        for prompt, (unsafe, safe) in replies.items()
        if safe and unsafe
    ]
    if not found:
        raise ValueError(f"{path}: no prompt of {CATEGORIES[kind]} has a safe and an unsafe reply")
    return draw(found, n, seed)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """A file's records; errors tell where something is wrong, not what stands there."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; BeaverTails' train file, JSON lines, is expected there")
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        for i, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path.name}, line {i} is not JSON: {error.msg}") from None
            if not isinstance(record, dict):
                raise ValueError(f"{path.name}, line {i}: expected an object, found {type(record).__name__}")
            check(record, _FIELDS, f"{path.name}, line {i}: it has the fields")
            yield record
