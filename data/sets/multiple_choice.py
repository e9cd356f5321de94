"""TruthfulQA's multiple-choice form: questions with several true and false answers, of the hub or a file.

    questions = truthful_qa()                        # Lin et al. 2022, from the hub
    questions = truthful_qa("my-questions.jsonl", n=100)

Records have the fields of the hub's set: `question`, and `mc1_targets` and `mc2_targets`, each with `choices`
and `labels` (1 for a true answer). MC1 has one true answer, the best one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data.sets.files import check, draw, fetch, read_table, read_text

TRUTHFUL_QA = ("truthfulqa/truthful_qa", "741b8276f2d1982aa3d5b832d3ee81ed3b896490")
FILE = "multiple_choice/validation-00000-of-00001.parquet"
FIELDS = ("question", "mc1_targets", "mc2_targets")


class ManyAnswers(NamedTuple):
    """A question with true and false answers."""

    question: str
    answers: tuple[str, ...]
    true: tuple[bool, ...]
    """Which answers are true."""
    best: int
    """The answer that MC1 counts as right: one of the true ones."""


def truthful_qa(
    source: str | Path = "truthful_qa", *, n: int | None = None, seed: int = 0
) -> list[ManyAnswers]:
    """Questions of TruthfulQA (Lin et al. 2022; Apache 2.0), or of a file in its form.

    Args:
        source: "truthful_qa" for the hub's set; or the path of a parquet file, a JSON list or JSON lines.
        n: at most so many, drawn at random; None for all, in their order.
        seed: of the draw.

    Raises:
        FileNotFoundError: there is no such file.
        LookupError: a record lacks a field.
        ValueError: it is not JSON, has no record, or a record's answers cannot be told apart.
        ConnectionError, PermissionError: as `data.sets.files.fetch`.
    """
    path = (
        fetch("TruthfulQA", *TRUTHFUL_QA[:1], FILE, TRUTHFUL_QA[1])
        if source == "truthful_qa"
        else Path(source)
    )
    if path.suffix == ".parquet":
        records: list[Any] = read_table(path, FIELDS).to_dict("records")
    else:
        text = read_text(path)
        try:
            lines = [line for line in text.splitlines() if line.strip()]
            records = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in lines]
        except json.JSONDecodeError as error:
            raise ValueError(f"{path.name} is neither a JSON list nor JSON lines: {error.msg}") from None
    if not records:
        raise ValueError(f"{path.name} has no record")
    return draw([_read(record, f"{path.name}, record {i}:") for i, record in enumerate(records, 1)], n, seed)


def _read(record: Any, where: str) -> ManyAnswers:
    """One record, checked."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} expected an object, found {type(record).__name__}")
    check(record, FIELDS, f"{where} it has the fields")
    answers, true = _targets(record["mc2_targets"], f"{where} mc2_targets")
    choices, labels = _targets(record["mc1_targets"], f"{where} mc1_targets")
    if sum(labels) != 1:
        raise ValueError(f"{where} mc1_targets has {sum(labels)} answers with the label 1; expected one")
    best = choices[labels.index(True)]
    if best not in answers or not true[answers.index(best)]:
        raise ValueError(f"{where} the best answer is not among the true ones of mc2_targets")
    both = {a for a, t in zip(answers, true, strict=True) if t} & {
        a for a, t in zip(answers, true, strict=True) if not t
    }
    if both or all(true):
        problem = "no false answer" if all(true) else "an answer that is both true and false"
        raise ValueError(f"{where} mc2_targets has {problem}")
    return ManyAnswers(str(record["question"]), answers, true, answers.index(best))


def _targets(cell: Any, where: str) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """Answers and which are true."""
    check(cell, ("choices", "labels"), f"{where} has the fields")
    choices, labels = (list(cell[name]) for name in ("choices", "labels"))
    if len(choices) != len(labels) or not choices:
        raise ValueError(f"{where} has {len(choices)} choices and {len(labels)} labels; expected one each")
    return tuple(map(str, choices)), tuple(label == 1 for label in labels)
