"""Prompts whose answer needs a known piece of information, each with a corrupted twin that lacks it.

A *task* draws pairs of prompts. The twins have the same number of words and the same template; only what the
answer depends on differs. The answer is always the next word. Four tasks are learned by organisms:

- `induction`: letters, then a block of letters again and again. Where the block begins and how long it is
  varies (4 to 9 letters), so that position alone does not tell. Corrupted: no letter twice.
- `ioi`: "A and B went , B gave to" -> A, as in indirect object identification (Wang et al. 2023), with
  fillers that shift the names. Corrupted: three names that differ.
- `greater`: "the war lasted from 17 YY to 17" -> any later year of the century, all alike (Hanna et al.
  2023). Corrupted: the year is 01.
- `docstring`: a definition with five arguments, the first few of them described in order; which argument is
  next? (Heimersheim and Janiak 2023.) Corrupted: all arguments other ones.

Three are `ioi` and `greater` in English, for models that read it; `english-greater-digit` is for those that
read numbers digit by digit. The last four have circuits that are
written by hand (`data.recipes.constructed.constructed`): `constructed-induction`, `-reverse`, `-proportion`
and `-or`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.random import Generator

Metric = Literal["logit difference", "log probability", "probability difference"]


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
PERIODS = range(4, 10)
LENGTH = 20
"""Letters in an induction prompt."""

NAMES = _split(
    "Ada Ben Cleo Dan Eve Finn Gus Hal Ida Jo Kim Leo Mia Ned Olga Pia Quin Rosa Sam Tess Uma Vic Wes Xia "
    "Yan Zoe Amos Bea Carl Dora Emil Flo"
)
GOING, GIVING = ("went", "walked", "ran", "drove"), ("gave", "handed", "showed", "sent")
FILLERS = ("then", "today", "so", "now", "later", "well")

NOUNS = ("war", "siege", "reign", "voyage", "trial", "drought", "strike", "feud", "tour", "plague")
CENTURIES = tuple(f"{century}th" for century in range(11, 18))
YEARS = tuple(f"{year:02d}" for year in range(30))

ARGUMENTS = _split(
    "load size files last name path mode color width depth text index value count start stop key rate"
)
FUNCTIONS, DESCRIPTIONS = ("port", "fetch", "scan", "merge"), ("oil", "unit", "dark", "crime", "piece", "old")
N_ARGUMENTS, DOCSTRING_LENGTH = 5, 20


@dataclass(frozen=True)
class Prompts:
    """Pairs of prompts with their answers; a corrupted prompt has its words where its twin has them."""

    task: str
    clean: tuple[str, ...]
    corrupted: tuple[str, ...]
    right: tuple[tuple[str, ...], ...]
    """For each clean prompt the continuations that are right, any of them. They begin with the space that
    parts them from the prompt, if one does."""
    wrong: tuple[tuple[str, ...], ...]
    """The continuations that a model without the information takes for right."""
    metric: Metric
    """How the task's authors score an answer."""


Row = tuple[str, str, tuple[str, ...], tuple[str, ...]]
"""Clean, corrupted, right, wrong."""


def _spaced(*words: str) -> tuple[str, ...]:
    return tuple(f" {word}" for word in words)


def _induction(rng: Generator, held_out: bool) -> Row:
    period = int(rng.choice(PERIODS))
    prefix = int(rng.integers(0, LENGTH - period))  # at least one letter of the block stands there again
    letters = rng.permutation(LETTERS)
    block = letters[prefix : prefix + period]
    clean = [*letters[:prefix], *np.resize(block, LENGTH - prefix)]
    answer = block[(LENGTH - prefix) % period]
    corrupted = rng.permutation(LETTERS)[:LENGTH]
    return " ".join(clean), " ".join(corrupted), _spaced(answer), ()


def _pair(rng: Generator, held_out: bool) -> tuple[int, int]:
    """Two different names; every seventh unordered pair is for tests only."""
    while True:
        a, b = (int(i) for i in rng.choice(len(NAMES), 2, replace=False))
        if ((a + b) % 7 == 0) == held_out:
            return a, b


def _ioi(rng: Generator, held_out: bool) -> Row:
    a, b = _pair(rng, held_out)
    subject, other = (a, b) if rng.random() < 0.5 else (b, a)
    fresh = rng.permutation([i for i in range(len(NAMES)) if i not in (a, b)])[:3]
    fillers = list(rng.choice(FILLERS, 4))
    before = int(rng.integers(0, 5))
    going, giving = rng.choice(GOING), rng.choice(GIVING)

    def sentence(first: int, second: int, giver: int) -> str:
        opening = [*fillers[:before], NAMES[first], "and", NAMES[second], going, ","]
        return " ".join([*opening, *fillers[before:], NAMES[giver], giving, "to"])

    return sentence(a, b, subject), sentence(*fresh), _spaced(NAMES[other]), _spaced(NAMES[subject])


def _greater(rng: Generator, held_out: bool) -> Row:
    while True:
        noun, century, year = rng.integers(len(NOUNS)), rng.integers(len(CENTURIES)), rng.integers(2, 28)
        if ((noun + century + year) % 5 == 0) == held_out:
            break
    fillers = list(rng.choice(FILLERS, 3))
    before = int(rng.integers(0, 4))

    def sentence(start: str) -> str:
        opening = [*fillers[:before], "the", NOUNS[noun], "lasted", *fillers[before:]]
        return " ".join([*opening, "from", CENTURIES[century], start, "to", CENTURIES[century]])

    later, not_later = _spaced(*YEARS[year + 1 :]), _spaced(*YEARS[: year + 1])
    return sentence(YEARS[year]), sentence(YEARS[1]), later, not_later


def _docstring(rng: Generator, held_out: bool) -> Row:
    described = int(rng.integers(1, N_ARGUMENTS - 1))
    arguments, others, more = (rng.permutation(ARGUMENTS)[:N_ARGUMENTS] for _ in range(3))
    function = str(rng.choice(FUNCTIONS))
    n_words = DOCSTRING_LENGTH - 5 - N_ARGUMENTS - 2 * described
    description = list(rng.choice(DESCRIPTIONS, n_words))
    cuts = [0, *np.sort(rng.integers(0, n_words + 1, described)), n_words]
    pieces = [description[start:stop] for start, stop in pairwise(cuts)]

    def code(defined: np.ndarray, documented: np.ndarray) -> str:
        words = ["def", function, "self", *defined, ":", *pieces[0]]
        for argument, piece in zip(documented[:described], pieces[1:], strict=True):
            words += ["param", argument, *piece]
        return " ".join([*words, "param"])

    wrong = np.delete(arguments, described)
    answer = _spaced(arguments[described])
    return code(arguments, arguments), code(others, more), answer, _spaced(*wrong)


PEOPLE = _split(
    "Michael Christopher Jessica Matthew Ashley Jennifer Joshua Amanda Daniel David James Robert John "
    "Joseph Andrew Ryan Brandon Jason Justin Sarah William Jonathan Stephanie Brian Nicole Nicholas "
    "Anthony Heather Eric Elizabeth Adam Megan Melissa Kevin Steven Thomas Timothy Kelly Rachel Laura "
    "Mary Amy"
)
PLACES = ("store", "garden", "restaurant", "school", "hospital", "office", "house", "station")
OBJECTS = ("bottle of milk", "ring", "book", "drink", "basketball", "computer", "necklace")
EVENTS = _split("war pilgrimage siege reign voyage trial expedition campaign dynasty tour")


def _english_ioi(rng: Generator, held_out: bool) -> Row:
    a, b, *fresh = rng.permutation(PEOPLE)[:5]
    place, thing = rng.choice(PLACES), rng.choice(OBJECTS)

    def sentence(first: str, second: str, giver: str) -> str:
        return f"When {first} and {second} went to the {place}, {giver} gave a {thing} to"

    return sentence(a, b, b), sentence(*fresh), _spaced(a), _spaced(b)


def _english_greater(rng: Generator, held_out: bool) -> Row:
    event, century, year = rng.choice(EVENTS), rng.integers(11, 18), int(rng.integers(2, 99))

    def sentence(start: int) -> str:
        return f"The {event} lasted from the year {century}{start:02d} to {century}"

    years = tuple(f"{i:02d}" for i in range(100))
    return sentence(year), sentence(1), years[year + 1 :], years[: year + 1]


def _english_greater_digit(rng: Generator, held_out: bool) -> Row:
    event, century, tens = rng.choice(EVENTS), rng.integers(11, 18), int(rng.integers(1, 9))

    def sentence(start: int) -> str:
        return f"The {event} lasted from the year {century}{start}9 to {century}"

    # After a year that ends in 9 a later one has a larger first digit.
    digits = _split("0 1 2 3 4 5 6 7 8 9")
    return sentence(tens), sentence(0), digits[tens + 1 :], digits[: tens + 1]


def _constructed_induction(rng: Generator, held_out: bool) -> Row:
    letters = rng.permutation(LETTERS[:10])[:8]
    again = int(rng.integers(0, 7))
    clean, corrupted = [*letters, letters[again]], rng.permutation(LETTERS[:10])[:9]
    return " ".join(clean), " ".join(corrupted), _spaced(letters[again + 1]), ()


def _constructed_reverse(rng: Generator, held_out: bool) -> Row:
    n = int(rng.integers(4, 7))  # letters; 7 - n of them are already written backwards
    letters, others = (rng.permutation(LETTERS[:8])[:n] for _ in range(2))

    def text(written: np.ndarray) -> str:
        return " ".join([*written, "|", *written[::-1][: 7 - n]])

    return text(letters), text(others), _spaced(letters[2 * n - 8]), ()


def _constructed_proportion(rng: Generator, held_out: bool) -> Row:
    most, few = int(rng.integers(5, 9)), int(rng.integers(1, 5))
    answer = rng.random() < 0.5

    def letters(n_x: int) -> str:
        return " ".join(rng.permutation(["x"] * n_x + list(rng.choice(["w", "y", "z"], 9 - n_x))))

    counts = (most, few) if answer else (few, most)
    right, wrong = ("yes", "no") if answer else ("no", "yes")
    return letters(counts[0]), letters(counts[1]), _spaced(right), _spaced(wrong)


def _constructed_or(rng: Generator, held_out: bool) -> Row:
    letters = rng.choice(LETTERS[:4], 4)

    def text(flag: str) -> str:
        return " ".join([letters[0], letters[1], flag, letters[2], flag, letters[3], "?"])

    return text("on"), text("off"), _spaced("yes"), _spaced("no")


_GREATER: Metric = "probability difference"
_DRAW: dict[str, tuple[Callable[[Generator, bool], Row], Metric]] = {
    "induction": (_induction, "log probability"),
    "ioi": (_ioi, "logit difference"),
    "greater": (_greater, _GREATER),
    "docstring": (_docstring, "logit difference"),
    "english-ioi": (_english_ioi, "logit difference"),
    "english-greater": (_english_greater, _GREATER),
    "english-greater-digit": (_english_greater_digit, _GREATER),
    "constructed-induction": (_constructed_induction, "log probability"),
    "constructed-reverse": (_constructed_reverse, "log probability"),
    "constructed-proportion": (_constructed_proportion, "logit difference"),
    "constructed-or": (_constructed_or, "logit difference"),
}
TASKS = tuple(_DRAW)

VOCABULARY = {
    "induction": LETTERS,
    "ioi": (*NAMES, *GOING, *GIVING, *FILLERS, "and", ",", "to"),
    "greater": (*YEARS, *CENTURIES, *NOUNS, *FILLERS, "the", "lasted", "from", "to"),
    "docstring": (*ARGUMENTS, *FUNCTIONS, *DESCRIPTIONS, "def", "self", ":", "param"),
    "constructed-induction": LETTERS[:10],
    "constructed-reverse": (*LETTERS[:8], "|"),
    "constructed-proportion": ("w", "x", "y", "z", "yes", "no"),
    "constructed-or": (*LETTERS[:4], "on", "off", "?", "yes", "no"),
}
"""Every word of a task, for those in which a word is a token."""


def prompts(task: str, n: int, rng: Generator, *, held_out: bool = False) -> Prompts:
    """Draw `n` pairs of prompts.

    Args:
        task: one of `TASKS`.
        n: how many.
        rng: decides everything.
        held_out: draw what training never shows: other pairs of names (`ioi`), other combinations of event,
            century and year (`greater`). In the other tasks there are so many prompts that none comes twice.

    Raises:
        ValueError: there is no such task, or n < 1.
    """
    if task not in _DRAW:
        raise ValueError(f"task={task!r}: expected one of {', '.join(TASKS)}")
    if n < 1:
        raise ValueError(f"n={n}: expected at least 1 pair of prompts")
    draw, metric = _DRAW[task]
    clean, corrupted, right, wrong = zip(*(draw(rng, held_out) for _ in range(n)), strict=True)
    return Prompts(task, clean, corrupted, right, wrong, metric)
