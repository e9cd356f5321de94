"""Objects that are not there: in captions (CHAIR) and in answers to yes/no questions (POPE).

Both are counted for each image, and every score is a ratio of sums over images. So tables of counts can be
added over networks, a difference of two methods is taken on the same images, and the bootstrap draws images:

    greedy, edited = (caption_counts(texts, present, words) for texts in (plain, other))
    over_images(lambda a, b: chair_i(a) - chair_i(b), edited, greedy)

CHAIR: Rohrbach et al. 2018 (1809.02156). POPE: Li et al. 2023 (2305.10355).
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.random import Generator
from numpy.typing import ArrayLike

from lib.stats import Estimate, bootstrap


class Mention(NamedTuple):
    """An object that a text names."""

    name: str
    start: int
    """Where its first letter stands."""
    end: int


ANIMALS = [
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "animal",
    "cub",
]
TWO_WORDS = "traffic light, street light, traffic signal, stop light, fire hydrant, stop sign, parking meter"
TWO_WORDS += ", suit case, sports ball, baseball bat, baseball glove, tennis racket, wine glass, hot dog"
TWO_WORDS += ", cell phone, mobile phone, teddy bear, hair drier, potted plant, laptop computer, motor bike"
TWO_WORDS += ", motor cycle, air plane, home plate, train track"
READ_AS_ONE = {phrase: phrase for phrase in TWO_WORDS.split(", ")}
READ_AS_ONE |= {f"{age} {animal}": animal for age in ("baby", "adult") for animal in ANIMALS}
READ_AS_ONE |= {f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")}
READ_AS_ONE |= {"bow tie": "tie", "toilet seat": "toilet"}
"""Two words that CHAIR takes for one -> the word that it reads; if that is no object's, they name none."""

IRREGULAR = {"child": "children", "person": "people", "mouse": "mice", "goose": "geese", "foot": "feet"}
IRREGULAR |= {"tooth": "teeth", "ox": "oxen"}


def plurals(word: str) -> set[str]:
    """How more than one of a word (its last one, if there are several) may be written."""
    start, _, last = word.rpartition(" ")
    found = {last + "s", last + "es", IRREGULAR.get(last, last + "s")}
    for end, plural in {"y": "ies", "f": "ves", "fe": "ves", "man": "men"}.items():
        if last.endswith(end):
            found.add(last.removesuffix(end) + plural)
    return {f"{start} {form}".lstrip() for form in found}


@cache
def _reader(words: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    """Finds words in a text, and says of which one each form is."""
    singular = {form: word for word in words for form in plurals(word)} | {word: word for word in words}
    longest = "|".join(
        re.escape(form).replace("\\ ", r"\s+") for form in sorted(singular, key=len, reverse=True)
    )
    # A word with a hyphen is another word: there is no person in "person-sized".
    return re.compile(rf"(?<![\w-])({longest})(?![\w-])", re.IGNORECASE), singular


def find_mentions(text: str, words: Mapping[str, str]) -> list[Mention]:
    """The objects that a text names, in order and with repetitions, by CHAIR's rules.

    Plurals count. The longest word wins: "hot dog" is no dog. A baby elephant is no person, a passenger train
    neither, train tracks are no train, and where a toilet is named, a seat is no chair (`READ_AS_ONE`).

    Args:
        text: upper and lower case are the same.
        words: word, in lower case -> the object that it names.
    """
    pattern, singular = _reader((*READ_AS_ONE, *words))
    found = [(singular[" ".join(f[1].lower().split())], f.start(), f.end()) for f in pattern.finditer(text)]
    found = [(word if word in words else READ_AS_ONE[word], start, end) for word, start, end in found]
    if any(word == "toilet" for word, *_ in found):
        found = [mention for mention in found if mention[0] != "seat"]
    return [Mention(words[word], start, end) for word, start, end in found if word in words]


# Captions

CAPTION_COUNTS = (
    "captions",
    "captions that hallucinate",
    "mentions",  # of objects, repetitions included
    "hallucinated mentions",
    "tempting mentions",  # of the hallucinated ones those that habit would add
    "objects found",  # different objects that are there and are mentioned
    "objects there",
)
"""The columns of a table of caption counts."""


def count_table(
    mentioned: ArrayLike, hallucinated: ArrayLike, tempting: ArrayLike, found: ArrayLike, present: ArrayLike
) -> Int[np.ndarray, "caption 7"]:
    """Counts of each caption, as a world hands them out, in the columns of `CAPTION_COUNTS`."""
    columns = np.stack([mentioned, hallucinated, tempting, found, present], -1).astype(int)
    return np.hstack([np.ones((len(columns), 1), int), columns[:, 1:2] > 0, columns])


def caption_counts(
    captions: Sequence[str],
    present: Sequence[Collection[str]],
    words: Mapping[str, str],
    tempting: Sequence[Collection[str]] | None = None,
) -> Int[np.ndarray, "caption 7"]:
    """What captions get right and wrong, in the columns of `CAPTION_COUNTS`.

    Args:
        captions: one an image.
        present: for each image the objects that are there.
        words: word -> the object that it names.
        tempting: for each image the objects that habit would add; none by default.

    Raises:
        ValueError: not one entry an image.
    """
    habits = [()] * len(captions) if tempting is None else tempting
    if not len(captions) == len(present) == len(habits):
        raise ValueError(
            f"{len(captions)} captions, objects of {len(present)} images and tempting ones of {len(habits)}: "
            "expected one entry an image"
        )
    rows = []
    for caption, there, habit in zip(captions, present, habits, strict=True):
        named = [mention.name for mention in find_mentions(caption, words)]
        wrong = [name for name in named if name not in there]
        tempted = sum(name in habit for name in wrong)
        rows.append((len(named), len(wrong), tempted, len({*named} & {*there}), len({*there})))
    return count_table(*np.array(rows, int).reshape(-1, 5).T)


Counts = Float[np.ndarray, "*draw 7"] | Int[np.ndarray, "*draw 7"]
"""Sums of caption counts over images, one a bootstrap draw."""


def _share(part: np.ndarray, whole: np.ndarray) -> Float[np.ndarray, "*draw"]:
    """In per cent; 0 where there is nothing."""
    return 100 * part / np.maximum(whole, 1)


def chair_s(counts: Counts) -> Float[np.ndarray, "*draw"]:
    """CHAIR_S: per cent of the captions that hallucinate an object; an empty caption does not."""
    return _share(counts[..., 1], counts[..., 0])


def chair_i(counts: Counts) -> Float[np.ndarray, "*draw"]:
    """CHAIR_I: per cent of the mentions that are hallucinated."""
    return _share(counts[..., 3], counts[..., 2])


def recall(counts: Counts) -> Float[np.ndarray, "*draw"]:
    """Per cent of the objects there that are mentioned."""
    return _share(counts[..., 5], counts[..., 6])


def f1(counts: Counts) -> Float[np.ndarray, "*draw"]:
    """F1 of the objects named, in per cent: of precision 100 - CHAIR_I, and recall."""
    precision, found = np.where(counts[..., 2] > 0, 100 - chair_i(counts), 0.0), recall(counts)
    return 2 * precision * found / np.maximum(precision + found, 1e-9)


def length(counts: Counts) -> Float[np.ndarray, "*draw"]:
    """Mentions a caption."""
    return counts[..., 2] / np.maximum(counts[..., 0], 1)


def tempting_share(counts: Counts) -> Float[np.ndarray, "*draw"]:
    """Per cent of the hallucinated mentions that habit would add."""
    return _share(counts[..., 4], counts[..., 3])


CHAIR: dict[str, Callable[[Any], Any]] = {
    "CHAIR_S (%)": chair_s,
    "CHAIR_I (%)": chair_i,
    "recall (%)": recall,
    "F1 (%)": f1,
    "objects a caption": length,
}
"""What stands in a table of captions: CHAIR never without recall and length."""


# Yes or no


def absent_objects(
    present: Bool[np.ndarray, "image object"], seen: Bool[np.ndarray, "scene object"], rng: Generator
) -> dict[str, Int[np.ndarray, " image"]]:
    """An absent object for each image, by POPE's three ways to draw it.

    `random`: any; `popular`: the one most frequent in `seen`; `adversarial`: the one that is there most often
    together with the objects of the image.

    Args:
        present: what is there.
        seen: what is there in other scenes, in which frequencies are counted.
        rng: of the random ones.

    Raises:
        ValueError: an image in which there is everything or nothing.
    """
    if (extreme := present.all(1) | ~present.any(1)).any():
        raise ValueError(f"in image {extreme.argmax()} there is every object or none: nothing to ask about")
    counted = seen.astype(int)
    score = {
        "random": rng.random(present.shape),
        "popular": np.broadcast_to(counted.sum(0), present.shape),
        "adversarial": present.astype(int) @ (counted.T @ counted),
    }
    return {split: np.where(present, -1, s).argmax(1) for split, s in score.items()}


def pope_questions(
    present: Bool[np.ndarray, "image object"],
    seen: Bool[np.ndarray, "scene object"],
    names: Sequence[str],
    rng: Generator,
    *,
    question: str = "is there a {}",
) -> dict[str, list[dict[str, Any]]]:
    """Question sets in POPE's format: of each image one present and, by split, one absent object.

    Records have `question_id`, `image` (its row), `text` and `label` ("yes" or "no").
    """
    there = np.where(present, rng.random(present.shape), -1).argmax(1)
    sets = {}
    for split, absent in absent_objects(present, seen, rng).items():
        asked = [(i, about, label) for i, both in enumerate(zip(there, absent, strict=True))
                 for about, label in zip(both, ("yes", "no"), strict=True)]  # fmt: skip
        sets[split] = [
            {"question_id": number, "image": i, "text": question.format(names[about]), "label": label}
            for number, (i, about, label) in enumerate(asked)
        ]
    return sets


def says_yes(answer: str) -> bool:
    """POPE's reading of an answer: "no" if its first sentence has a no or a not, else "yes"."""
    return not re.search(r"\b(no|not)\b|n't\b", answer.lower().split(".")[0])


def confusion(
    records: Sequence[Mapping[str, Any]], answers: Sequence[str], images: Iterable[Any] = ()
) -> Int[np.ndarray, "image 4"]:
    """Of each image, how many answers were true and false positives, false and true negatives.

    Args:
        records: with `image` and `label`.
        answers: one a record.
        images: the order of the rows; by default that in which the records name them.
    """
    row_of = {image: row for row, image in enumerate(dict.fromkeys(images or (r["image"] for r in records)))}
    table = np.zeros((len(row_of), 4), int)
    for record, answer in zip(records, answers, strict=True):
        column = 2 * (not says_yes(answer)) + (record["label"] == "no")
        table[row_of[record["image"]], column] += 1
    return table


POPE: dict[str, Callable[[Any], Any]] = {
    "accuracy (%)": lambda t: _share(t[..., 0] + t[..., 3], t.sum(-1)),
    "precision (%)": lambda t: _share(t[..., 0], t[..., 0] + t[..., 1]),
    "recall (%)": lambda t: _share(t[..., 0], t[..., 0] + t[..., 2]),
    "F1 (%)": lambda t: _share(2 * t[..., 0], 2 * t[..., 0] + t[..., 1] + t[..., 2]),
    "yes (%)": lambda t: _share(t[..., 0] + t[..., 1], t.sum(-1)),
}
"""Scores of sums of confusion tables, [..., 4]; "yes" is the positive class."""


# Intervals


def times_drawn(draws: Int[np.ndarray, "*draw image"], n: int) -> Float[np.ndarray, "draw image"]:
    """How often each of n images is in each draw."""
    draws = np.atleast_2d(draws).astype(int)
    cells = draws + n * np.arange(len(draws))[:, None]
    return np.bincount(cells.ravel(), minlength=n * len(draws)).reshape(-1, n).astype(float)


def over_images(
    statistic: Callable[..., Any], *tables: np.ndarray, n_resamples: int = 2000, seed: int = 0
) -> Estimate:
    """`statistic` of the tables' sums over images, with its bootstrap interval over images.

    Args:
        statistic: of one array [..., count] a table, the sums of some draws of images; vectorised over draws.
        tables: counts [image, count] of the same images, such as those of two methods.
        n_resamples: number of bootstrap samples.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: the tables have different numbers of images.
    """
    if len(sizes := {len(table) for table in tables}) != 1:
        raise ValueError(f"tables of {sorted(sizes)} images: expected the same images in all of them")
    n = len(tables[0])

    def of_draws(draws: Int[np.ndarray, "*draw image"], axis: int = -1) -> Float[np.ndarray, "*draw"]:
        count = times_drawn(draws, n)
        return np.squeeze(statistic(*(count @ table for table in tables)))

    return bootstrap(np.arange(n), of_draws, n_resamples=n_resamples, seed=seed)
