"""Sentences written by the thousand: patterns of words whose upper-case words are slots.

language = Language.of(("<pad>", "<eos>"), ["what is the NAME", "brimlet vexstone"])
ids = language.write(["what is the NAME"], 0, NAME=language.ids(["brimlet", "vexstone"]))
language.text(ids)  # ['what is the brimlet', 'what is the vexstone']
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from jaxtyping import Int
from numpy import ndarray

PAD = 0
Words = Int[ndarray, "item word"]
Index = int | Int[ndarray, " item"]


@dataclass(frozen=True)
class Language:
    """A vocabulary, of which the first word is padding."""

    vocabulary: tuple[str, ...]

    @classmethod
    def of(cls, special: Sequence[str], sentences: Iterable[str]) -> "Language":
        """The special words, then all words of the sentences but slots, each once."""
        words = [word for sentence in sentences for word in sentence.split() if not _is_slot(word)]
        return cls(tuple(dict.fromkeys([*special, *words])))

    @cached_property
    def index(self) -> dict[str, int]:
        """The number of each word."""
        return {word: i for i, word in enumerate(self.vocabulary)}

    def ids(self, words: Sequence[str]) -> Int[ndarray, " word"]:
        """The numbers of words."""
        return np.array([self.index[word] for word in words])

    def write(self, patterns: Sequence[str], which: Index = 0, **slots: Index) -> Words:
        """One sentence an item.

        Args:
            patterns: the sentences to choose from.
            which: the chosen one, for all items or for each.
            slots: the words that stand for the slots, for all items or for each; `PAD` leaves a slot out.

        Raises:
            LookupError: a pattern has a word that the language lacks, or a slot for which there is nothing.
        """
        names = tuple(slots)
        which, *values = np.broadcast_arrays(np.asarray(which), *slots.values())
        ids = _table(self, tuple(patterns), names)[which.reshape(-1)]
        for number, value in enumerate(values):
            ids = np.where(ids == -1 - number, value.reshape(-1, 1), ids)
        return join(ids)

    def text(self, ids: Words) -> list[str]:
        """Each row as words, without padding."""
        return [" ".join(self.vocabulary[i] for i in row if i != PAD) for row in ids]


def join(*parts: Words) -> Words:
    """Parts behind one another, padding at the end; a part of one row is the same for all."""
    n = max(len(part) for part in parts)
    ids = np.hstack([np.broadcast_to(part, (n, part.shape[1])) for part in parts])
    ids = np.take_along_axis(ids, np.argsort(ids == PAD, axis=1, kind="stable"), 1)
    return ids[:, : int((ids != PAD).sum(1).max(initial=0))]


def _is_slot(word: str) -> bool:
    return word.isupper()


@cache
def _table(language: Language, patterns: tuple[str, ...], slots: tuple[str, ...]) -> Words:
    """Patterns as rows of word numbers; slot i is -1 - i."""
    known = language.index | {name: -1 - i for i, name in enumerate(slots)}
    for pattern in patterns:
        if lost := [word for word in pattern.split() if word not in known]:
            raise LookupError(f"{pattern!r}: there is no word, and nothing for the slot, {lost[0]!r}")
    longest = max(len(pattern.split()) for pattern in patterns)
    rows = [[known[word] for word in pattern.split()] for pattern in patterns]
    return np.array([row + [PAD] * (longest - len(row)) for row in rows])
