"""Questions answered wrongly under fabricated evidence, and the true evidence: the regret data set's form.

    records = contradictions("regret_dataset.json", n=100)  # in the form of Cui et al. 2025

Of the authors' file nothing comes with this book. Its evidence is fabricated misinformation: no error and no
`repr` shows any of it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from data.sets.files import check, draw, read_text

FIELDS = {
    "question": "question",
    "fabricated": "fake_evidence",
    "wrong": "gpt-4o-mini-initial_answer_with_fake_evidence",
    "evidence": "strong_hint_true",
    "right": "gpt-4o-mini-reflection_answer_strong",
}
"""What is read of a record, and the field that it is read from."""


@dataclass(frozen=True)
class Contradiction:
    """A question, two answers, and the evidence that contradicts the first of them."""

    question: str
    fabricated: str = field(repr=False)
    """The fabricated evidence, under which the wrong answer was given."""
    wrong: str = field(repr=False)
    evidence: str = field(repr=False)
    """The true evidence."""
    right: str = field(repr=False)
    """The answer that was given after the true evidence."""


def contradictions(path: str | Path, *, n: int | None = None, seed: int = 0) -> list[Contradiction]:
    """Records of a file as the regret data set has them.

    Args:
        path: of JSON lines; each record has the fields of `FIELDS`, and may have others.
        n: at most so many, drawn at random; None for all, in their order.
        seed: of the draw.

    Raises:
        FileNotFoundError: there is no such file.
        LookupError: a record lacks a field.
        ValueError: a line is no JSON object, a text is empty, the file has no record, or `n` is below 1.
    """
    if n is not None and n < 1:
        raise ValueError(f"n={n}: at least 1 record")
    path = Path(path).expanduser()
    found = []
    for i, line in enumerate(read_text(path, "the authors' repository, with their code").split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path.name}, line {i}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON: {error.msg}") from None  # without the line itself
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected an object, found {type(record).__name__}")
        check(record, FIELDS.values(), f"{where} has the fields")
        texts = {name: record[source] for name, source in FIELDS.items()}
        if empty := [
            FIELDS[name] for name, text in texts.items() if not (isinstance(text, str) and text.strip())
        ]:
            raise ValueError(f"{where}: {empty[0]} is no text")
        found.append(Contradiction(**{name: text.strip() for name, text in texts.items()}))
    if not found:
        raise ValueError(f"{path.name} has no record")
    return draw(found, n, seed)
