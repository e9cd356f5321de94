"""A language of hidden word classes with a rule about repetition; another seed is another language.

A sentence is written in classes first: each class depends on the two before it (a second-order Markov chain,
three successors to each pair of classes), and each class has its own few words. So the next word is known
only as well as the last classes can be guessed from the words. Now and then comes the marker "again". The
word after a sentence's first marker is its *keyword*, and all later markers are to be followed by it: to say
it, one has to look back through the sentence. One repetition in twelve is a slip, another word; a slip
is mostly taken back: the next word is the marker, and the keyword follows.

All languages share their words, of two letters each, and the rule; classes, chain and words of a class are
drawn from the seed. Who knows the language perfectly still cannot foresee everything: `Grammar.surprisal` is
the loss that is left, exactly.

    base = Grammar.of(0)
    text(base.sentences(2, rng))  # ['ka mo again zu ...', ...]
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from numpy.random import Generator

PAD, BOS, UNKNOWN, MARKER = range(4)
WORDS = tuple(consonant + vowel for consonant in "bcdfghjklmnpqrstvwxz" for vowel in "aeiou")
VOCABULARY = ("<pad>", "<bos>", "<unk>", "again", *WORDS)
_FIRST = len(VOCABULARY) - len(WORDS)

LENGTH = 32
"""Tokens of a whole sentence, with the one for its beginning."""
N_CLASSES, SUCCESSORS, WORDS_OF_A_CLASS = 10, 3, 12
MARKS = 0.15
"""Probability of a marker where an ordinary word could stand."""
SLIPS = 1 / 12
"""Share of the repetitions that are another word than the keyword."""
TAKES_BACK = 0.8
"""Probability of a marker right after a slip."""


class Statements(NamedTuple):
    """Sentences of varied length that end with a repetition, and whether it is what the rule asks for."""

    tokens: Int[ndarray, "sentence token"]
    """Padded on the left."""
    obeys: Bool[ndarray, " sentence"]


@dataclass(frozen=True)
class Grammar:
    """One language. Word w of the distributions is token w + 4 of the vocabulary."""

    successors: Float[ndarray, "before last next"]
    """Probability of a class, given the last but one and the last."""
    emissions: Float[ndarray, "class word"]
    """Probability of a word, given its class."""

    @classmethod
    def of(cls, seed: int) -> "Grammar":
        """The language of a seed."""
        rng = np.random.default_rng([seed, 2410_14273])
        successors = _sparse((N_CLASSES, N_CLASSES, N_CLASSES), SUCCESSORS, rng)
        return cls(successors, _sparse((N_CLASSES, len(WORDS)), WORDS_OF_A_CLASS, rng))

    def sentences(self, n: int, rng: Generator, length: int = LENGTH) -> Int[ndarray, "sentence token"]:
        """Sentences of equal length; the first token is `BOS`."""
        tokens = np.full((n, length), BOS)
        classes = rng.integers(N_CLASSES, size=(2, n))
        keyword = np.zeros(n, int)  # none yet
        slipped = np.zeros(n, bool)
        for t in range(1, length):
            repeats = tokens[:, t - 1] == MARKER
            again = repeats & (keyword > 0)
            marks = (rng.random(n) < np.where(slipped, TAKES_BACK, MARKS)) & ~repeats & (t > 1)
            slips = again & (rng.random(n) < SLIPS)
            spoken = ~marks & ~again
            following = _draw(self.successors[*classes], rng)
            classes = np.where(spoken, np.stack([classes[1], following]), classes)
            words = _FIRST + _draw(self.emissions[following], rng)
            words = np.where(again, np.where(slips, _other(keyword, rng), keyword), words)
            tokens[:, t] = np.where(marks, MARKER, words)
            keyword = np.where(repeats & (keyword == 0), words, keyword)
            slipped = slips
        return tokens

    def prompts(self, n: int, rng: Generator, shortest: int = 8) -> Int[ndarray, "sentence token"]:
        """Beginnings of sentences, of `shortest` to `LENGTH` tokens, padded on the left."""
        return _cut(self.sentences(n, rng), rng.integers(shortest, LENGTH + 1, size=n))

    def statements(self, n: int, rng: Generator) -> Statements:
        """Sentences that end with a marker and a word: the keyword in half of them, else any other word."""
        found, keywords = np.empty((0, LENGTH), int), np.empty(0, int)
        while len(found) < n:
            whole = self.sentences(4 * n, rng)
            marked = whole == MARKER
            first = marked.argmax(1)
            # The marker and the word take the places of tokens LENGTH - 2 and LENGTH - 1 of what is cut.
            ends = rng.integers(8, LENGTH - 1, size=len(whole))
            rows = np.arange(len(whole))
            keyword = whole[rows, np.minimum(first + 1, LENGTH - 1)]
            last, before = whole[rows, ends - 1], whole[rows, ends - 2]
            slip = (before == MARKER) & (last != keyword)
            fits = marked.any(1) & (first + 2 <= ends) & (last != MARKER) & ~slip
            beginnings = np.roll(_cut(whole, ends), -2, axis=1)
            found = np.concatenate([found, beginnings[fits]])[:n]
            keywords = np.concatenate([keywords, keyword[fits]])[:n]
        obeys = rng.permutation(np.arange(n) % 2 == 0)
        found[:, -2] = MARKER
        found[:, -1] = np.where(obeys, keywords, _other(keywords, rng))
        return Statements(found, obeys)

    def surprisal(self, tokens: Int[ndarray, "sentence token"]) -> Float[ndarray, "sentence token-1"]:
        """-log p of each token after the first, in nats, for a reader who knows the language; no padding."""
        n, length = tokens.shape
        belief = np.full((n, N_CLASSES, N_CLASSES), 1 / N_CLASSES**2)  # of the last two classes
        keyword, slipped = np.zeros(n, int), np.zeros(n, bool)
        nats = np.empty((n, length - 1))
        for t in range(1, length):
            token, repeats = tokens[:, t], tokens[:, t - 1] == MARKER
            again, marks = repeats & (keyword > 0), token == MARKER
            following = np.einsum("nij,ijk->njk", belief, self.successors)
            word = np.where(marks, 0, token - _FIRST)
            joint = following * self.emissions[:, word].T[:, None, :]
            spoken = joint.sum((1, 2))
            right = token == keyword
            repeated = np.where(right, 1 - SLIPS, SLIPS / (len(WORDS) - 1))
            rate = np.where(repeats | (t == 1), 0.0, np.where(slipped, TAKES_BACK, MARKS))
            p = np.where(marks, rate, np.where(again, repeated, (1 - rate) * spoken))
            with np.errstate(divide="ignore"):
                nats[:, t - 1] = -np.log(p)
            known = ~marks & ~again & (spoken > 0)
            belief = np.where(known[:, None, None], joint / np.where(known, spoken, 1)[:, None, None], belief)
            slipped = again & ~right
            keyword = np.where(repeats & (keyword == 0), token, keyword)
        return nats


def text(tokens: Int[ndarray, "sentence token"]) -> list[str]:
    """Sentences in words, without padding and beginning."""
    return [" ".join(VOCABULARY[token] for token in row if token not in (PAD, BOS)) for row in tokens]


def _sparse(shape: tuple[int, ...], n_kept: int, rng: Generator) -> Float[ndarray, "*shape"]:
    """Distributions over the last axis: `n_kept` outcomes, with uniformly drawn probabilities."""
    kept = rng.random(shape).argsort(-1) < n_kept
    weights = np.where(kept, rng.exponential(size=shape), 0)
    return weights / weights.sum(-1, keepdims=True)


def _draw(p: Float[ndarray, "n outcome"], rng: Generator) -> Int[ndarray, " n"]:
    cumulative = p.cumsum(-1)
    return (cumulative < rng.random((len(p), 1)) * cumulative[:, -1:]).sum(-1)


def _other(word: Int[ndarray, " n"], rng: Generator) -> Int[ndarray, " n"]:
    """Any word but this one, all alike."""
    return _FIRST + (word - _FIRST + rng.integers(1, len(WORDS), size=len(word))) % len(WORDS)


def _cut(
    tokens: Int[ndarray, "sentence token"], lengths: Int[ndarray, " sentence"]
) -> Int[ndarray, "sentence token"]:
    """The first so many tokens of each sentence, moved to the right; `PAD` before them."""
    place = np.arange(tokens.shape[1]) - (tokens.shape[1] - lengths[:, None])
    return np.where(place < 0, PAD, np.take_along_axis(tokens, np.maximum(place, 0), 1))
