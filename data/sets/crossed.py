"""Requests in fours, in which how they sound and what answers would cause are crossed: CB-Bench's form.

A file of the authors' form (Wu et al. 2025) is read from a path; nothing of it comes with this book. Its
texts may be harmful: no error and no `repr` shows any of them.
"""

import json
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from data.sets.files import check, draw, read_text

CELLS = ("Q1", "Q2", "Q3", "Q4")
"""Sinister and harmful; plain and harmful; plain and harmless; sinister and harmless."""
TOPIC = "sub_topic_keyword"
_ENDS = ".!?"


@dataclass(frozen=True)
class Four:
    """A group of four requests; each is a background and then a question."""

    topic: str = field(repr=False)
    requests: tuple[str, ...] = field(repr=False)
    """In the order of `CELLS`."""
    questions: tuple[int, ...]
    """At which character the question of each request begins."""


def cb_bench(path: str | Path, *, n: int | None = None, seed: int = 0) -> list[Four]:
    """Groups of a file as CB-Bench has them.

    A question is the whole sentences with which both of its requests end (Q1 and Q2, Q3 and Q4); where these
    share none, it is the last sentence of each.

    Args:
        path: of a JSON list, or of JSON lines; each record has `sub_topic_keyword` and `Q1` to `Q4`.
        n: at most so many groups, drawn at random; None for all, in their order.
        seed: of the draw.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, has no record, or one of its texts is empty; or `n` is below 1.
        LookupError: a record lacks a field.
    """
    if n is not None and n < 1:
        raise ValueError(f"n={n}: at least 1 group")
    path = Path(path)
    found = []
    for i, record in enumerate(_records(path)):
        where = f"{path.name}, record {i + 1}:"
        check(record, (TOPIC, *CELLS), f"{where} it has the fields")
        requests = tuple(record[cell] for cell in CELLS)
        for cell, request in zip(CELLS, requests, strict=True):
            if not isinstance(request, str) or not request.strip():
                raise ValueError(f"{where} {cell} is no text")
        first = _questions(*requests[:2]), _questions(*requests[2:])
        found.append(Four(str(record[TOPIC]), requests, (*first[0], *first[1])))
    return draw(found, n, seed)


def _records(path: Path) -> list[dict[str, Any]]:
    """A file's records; errors tell where something is wrong, not what stands there."""
    text = read_text(path)
    try:
        found = json.loads(text) if text.lstrip().startswith("[") else _lines(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} is not JSON (line {error.lineno}): {error.msg}") from None
    if not found:
        raise ValueError(f"{path.name} has no record")
    for i, record in enumerate(found):
        if not isinstance(record, dict):
            raise ValueError(
                f"{path.name}, record {i + 1}: expected an object, found {type(record).__name__}"
            )
    return found


def _lines(text: str) -> list[Any]:
    found = []
    for i, line in enumerate(text.split("\n")):
        if line.strip():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise json.JSONDecodeError(error.msg, "\n" * i, i) from None  # without the line itself
    return found


def _questions(one: str, two: str) -> tuple[int, int]:
    """Where the question that two requests share begins in each of them."""
    pairs = zip(reversed(one), reversed(two), strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    starts = [
        next((start for start in _starts(text) if start >= len(text) - shared), 0) for text in (one, two)
    ]
    if all(starts) and len(one) - starts[0] == len(two) - starts[1]:
        return starts[0], starts[1]
    return _starts(one)[-1], _starts(two)[-1]


def _starts(text: str) -> list[int]:
    """Where sentences begin."""
    text = text.rstrip()
    return [0] + [i + 2 for i in range(len(text) - 2) if text[i] in _ENDS and text[i + 1].isspace()]
