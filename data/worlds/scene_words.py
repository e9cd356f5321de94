"""Scenes in words: questions with their true answers, captions, pages to read, and facts of graded certainty.

What can be seen (`data.worlds.scenes`) can be asked about (`ask`), described (`captions`) and read (`pages`,
in 64 places as an image has 64 patches). Facts in text (`state`) are true as often as their certainty says.
`chair` compares captions with their scenes. Words are indices into `VOCABULARY`.

    prompt, answer, _ = ask("colour", scenes, rng)
    text(prompt[0]), text(answer[0])  # 'what colour is the star', 'blue'
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from numpy.random import Generator

from data.worlds.scenes import CELL_OF_PATCH, CELLS, COLOURS, N_CELLS, N_PATCHES, OBJECTS, Scenes, pick

CERTAINTY = {"surely": 0.95, "probably": 0.8, "perhaps": 0.6, "maybe": 0.42}
"""How often a statement with this word is true; otherwise the colour is one of the other five."""
ENTITIES = tuple(a + b + c for a in "bdfgkl" for b in "aiou" for c in "px")
"""48 invented things, two for each certainty and main colour: that is known of them, not told."""
WORDINGS = {  # The last one of a kind is held out of training. All end with what the question is about.
    "exists": ("is there a X", "do you see any X", "do you see a X"),
    "colour": ("what colour is the X", "name the colour of the X", "what is the colour of the X"),
    "where": ("where is the X", "name the cell of the X", "what is the cell of the X"),
    "count": ("how many X", "count all X", "count the X"),
    "right": ("what is right of the X", "name the object right of the X", "what do you see right of the X"),
    "left": ("what is left of the X", "name the object left of the X", "what do you see left of the X"),
    "which": ("which is there", "which do you see", "which object is there"),
    "caption": ("describe the picture", "name all objects", "describe all objects"),
}
Form = Literal["told", "same", "entity"]
SENTENCES: dict[Form, str] = {
    "told": "the X is H C ;",
    "same": "the X is like the Y ; the Y is H C ;",
    "entity": "the X is like E ;",
}
"""Forms: the colour itself, that of another object, or a thing of which one has to know the colour."""
PAD, BOS, EOS, UNKNOWN, IMAGE = range(5)
_WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "<image>", ".", "blur", "yes", "no", "nothing"]
_WORDS += [*OBJECTS, *COLOURS, *CELLS, *map(str, range(N_CELLS + 1))]
_WORDS += ["choose", ":", ";", "like", *CERTAINTY, *ENTITIES]
_WORDS += [word for wordings in WORDINGS.values() for word in " ".join(wordings).split() if word != "X"]
VOCABULARY = tuple(dict.fromkeys(_WORDS))
WORD = {word: index for index, word in enumerate(VOCABULARY)}
_OBJECT, _COLOUR, _CELL, _NUMBER = (WORD[first] for first in ("disc", "red", "a1", "0"))

Kind = Literal["exists", "colour", "where", "count", "right", "left", "which", "caption"]


class Questions(NamedTuple):
    """Questions of one kind and their true answers in words of `VOCABULARY`, padded at the end with `PAD`."""

    prompt: Int[ndarray, "question word"]
    answer: Int[ndarray, "question word"]
    about: Int[ndarray, " question"]
    """The object asked about; in a count the colour, or 6 for all objects."""


_TEMPLATES: dict[str, ndarray] = {}
for _kind, _wordings in WORDINGS.items():
    _split = [[WORD.get(word, -1) for word in wording.split()] for wording in _wordings]
    _TEMPLATES[_kind] = np.array([words + [PAD] * (max(map(len, _split)) - len(words)) for words in _split])


def ask(
    kind: Kind,
    scenes: Scenes,
    rng: Generator,
    *,
    about: Int[ndarray, " scene"] | None = None,
    wording: Literal["train", "held-out"] = "train",
    options: bool = False,
) -> Questions:
    """Ask one question about each scene.

    Args:
        kind: `exists` (yes or no), `colour`, `where` (a cell), `count` (of a colour, or all objects),
            `right`, `left` (the nearest object in the row), `which` (one of four objects is there),
            `caption`. What is not there has no colour and no cell: the answer is then "nothing".
        scenes: what is asked about.
        rng: the source of chance.
        about: see `Questions.about`. By default a present object, for `exists` in half of the cases an
            absent one, and for `right` and `left` mostly one that has a neighbour.
        wording: one of the wordings for training, or the one that is held out.
        options: four objects to choose from stand before the question (`which` always has them).

    Raises:
        ValueError: there is no such kind of question, or it cannot have options.
    """
    if kind not in WORDINGS or (options and kind not in ("which", "right", "left")):
        kinds = ", ".join(WORDINGS)
        raise ValueError(f"{kind=}, {options=}: the kinds are {kinds}; which, right and left have options")
    row, near = np.arange(len(scenes)), scenes.beside(-1 if kind == "left" else 1)
    about = _about(kind, scenes, near, rng) if about is None else np.asarray(about)
    if kind == "caption":
        answer = captions(scenes)
    elif kind == "exists":
        answer = np.where(scenes.present[row, about], WORD["yes"], WORD["no"])
    elif kind == "count":
        counted = np.where(about[:, None] == 6, scenes.colours >= 0, scenes.colours == about[:, None])
        answer = _NUMBER + counted.sum(1)
    else:
        values = {"colour": scenes.colour_of, "where": scenes.cell_of, "right": near, "left": near}
        value = about if kind == "which" else values[kind][row, about]
        word = {"colour": _COLOUR, "where": _CELL}.get(kind, _OBJECT) + value
        answer = np.where(scenes.present[row, about] & (value >= 0), word, WORD["nothing"])

    templates = _TEMPLATES[kind]
    drawn = (
        np.full(len(row), -1) if wording == "held-out" else rng.integers(len(templates) - 1, size=len(row))
    )
    subject = np.where(about == 6, WORD["objects"], _COLOUR + about) if kind == "count" else _OBJECT + about
    prompt = np.where(templates[drawn] < 0, subject[:, None], templates[drawn])
    if options or kind == "which":
        wrong = ~scenes.present if kind == "which" else np.ones((len(row), len(OBJECTS)), bool)
        score = rng.random(wrong.shape) + wrong
        score[row, about] = -1
        right = np.nonzero(answer != WORD["nothing"])[0]
        score[right, answer[right] - _OBJECT] = 3
        four = _OBJECT + rng.permuted(np.argsort(-score, axis=1)[:, :4], axis=1)
        frame = np.ones((len(row), 1), int)
        prompt = np.hstack([frame * WORD["choose"], four, frame * WORD[":"], prompt])
    return Questions(prompt, answer.reshape(len(row), -1), about)


def _about(kind: Kind, scenes: Scenes, near: ndarray, rng: Generator) -> Int[ndarray, " scene"]:
    n, present = len(scenes), scenes.present
    if kind == "exists":
        return pick(present ^ (rng.random((n, 1)) < 0.5), rng)
    if kind == "count":
        chance, colour = rng.random(n), rng.integers(len(COLOURS), size=n)
        shown = scenes.colour_of[np.arange(n), pick(present, rng)]
        return np.select([chance < 0.3, (chance < 0.75) & (shown >= 0)], [6, shown], colour)
    if kind in ("right", "left"):
        neighboured = present & (near >= 0)
        use = neighboured.any(1, keepdims=True) & (rng.random((n, 1)) < 0.75)
        return pick(np.where(use, neighboured, present), rng)
    return pick(present, rng)


def captions(scenes: Scenes) -> Int[ndarray, "scene word"]:
    """All objects in reading order with their colours: `star blue two red`; "nothing" if there is none."""
    order = np.argsort(scenes.objects < 0, axis=1, kind="stable")
    pair = np.stack([_OBJECT + scenes.objects, _COLOUR + scenes.colours], -1)
    pair = np.where(scenes.objects[..., None] >= 0, pair, PAD)
    words = np.take_along_axis(pair, order[..., None], 1).reshape(len(scenes), -1)
    words[words[:, 0] == PAD, 0] = WORD["nothing"]
    return words[:, : int((words != PAD).sum(1).max())]


class Facts(NamedTuple):
    """Statements about the colour of objects, and how far they can be trusted."""

    prompt: Int[ndarray, "fact word"]
    certainty: Int[ndarray, " fact"]
    """Index into `CERTAINTY`."""
    posterior: Float[ndarray, "fact colour"]
    """P(colour | text), all colours being as likely beforehand."""


def state(
    about: Int[ndarray, " fact"],
    colours: Int[ndarray, " fact"],
    rng: Generator,
    *,
    form: Form = "told",
    certainty: Int[ndarray, " fact"] | None = None,
) -> Facts:
    """State which colours objects have, as truly as the certainty says.

    Args:
        about: the objects.
        colours: their true colours.
        rng: the source of chance.
        form: one of `SENTENCES`.
        certainty: indices into `CERTAINTY`; by default any.
    """
    n = len(about)
    certainty = rng.integers(len(CERTAINTY), size=n) if certainty is None else np.asarray(certainty)
    p = np.array(list(CERTAINTY.values()))[certainty]
    stated = (colours + rng.integers(1, len(COLOURS), size=n) * (rng.random(n) >= p)) % len(COLOURS)
    other = (about + rng.integers(1, len(OBJECTS), size=n)) % len(OBJECTS)
    prompt = spell(form, about, other, stated, certainty, rng)
    posterior = np.tile((1 - p[:, None]) / 5, (1, len(COLOURS)))
    posterior[np.arange(n), stated] = p
    return Facts(prompt, certainty, posterior)


def spell(
    form: Form,
    about: Int[ndarray, " fact"],
    other: Int[ndarray, " fact"],
    colours: Int[ndarray, " fact"],
    certainty: Int[ndarray, " fact"],
    rng: Generator,
) -> Int[ndarray, "fact word"]:
    """Sentences that state the colours of objects; certainty -1 leaves the adverb out, as a `PAD`.

    Args:
        form: one of `SENTENCES`.
        about: the objects (X).
        other: the objects that they are compared with (Y).
        colours: what is stated (C); of an entity (E) the colour that it mostly has.
        certainty: index into `CERTAINTY` (H).
        rng: decides which of two entities is named.
    """
    entity = (certainty * len(COLOURS) + colours) * 2 + rng.integers(2, size=len(about))
    slots = {"X": _OBJECT + about, "Y": _OBJECT + other, "C": _COLOUR + colours}
    slots |= {"H": np.where(certainty < 0, PAD, WORD["surely"] + certainty), "E": WORD[ENTITIES[0]] + entity}
    filled = [slots[w] if w in slots else np.full(len(about), WORD[w]) for w in SENTENCES[form].split()]
    return np.stack(filled, 1)


def pages(
    scenes: Scenes, rng: Generator, *, form: Literal["words", "fused"] = "words", unreadable: float = 0.0
) -> Int[ndarray, "scene 64 2"]:
    """Write scenes as pages of 64 places, as many as an image has patches; "." is an empty place.

    Args:
        scenes: what to write.
        rng: the source of chance.
        form: `words`: one word a place, so that a cell reads "red star" in both of its lines (on the last
            axis the word stands twice). `fused`: each place of a cell has both words, colour and object.
        unreadable: share of the objects whose word is "blur".
    """
    blur = rng.random(scenes.objects.shape) < unreadable
    objects = np.where(blur, WORD["blur"], _OBJECT + scenes.objects)
    both = np.stack([_COLOUR + scenes.colours, objects], -1)
    both = np.where(scenes.objects[..., None] >= 0, both, WORD["."])[:, CELL_OF_PATCH]
    if form == "fused":
        return both
    return np.where(np.arange(N_PATCHES)[:, None] % 2, both[..., 1:], both[..., :1]).repeat(2, -1)


class Chair(NamedTuple):
    """What captions got right and wrong, counted for each scene (CHAIR: Rohrbach et al. 2018, 1809.02156).

    CHAIR_i is `hallucinated.sum() / mentioned.sum()`, CHAIR_s `(hallucinated > 0).mean()`, recall
    `found.sum() / present.sum()`.
    """

    mentioned: Int[ndarray, " scene"]
    """Mentions of objects, repetitions included."""
    hallucinated: Int[ndarray, " scene"]
    """Mentions of objects that are not there."""
    partners: Int[ndarray, " scene"]
    """Of these, mentions of the missing partner of an object that is there."""
    found: Int[ndarray, " scene"]
    """Different objects that are there and are mentioned."""
    present: Int[ndarray, " scene"]
    """Objects that are there."""


def chair(texts: list[str], scenes: Scenes) -> Chair:
    """Compare captions with their scenes; words that name no object are passed over."""
    words = [text.split() for text in texts]
    counts = np.array([[caption.count(name) for name in OBJECTS] for caption in words])
    there, partners = scenes.present, (counts * scenes.missing).sum(1)
    found = ((counts > 0) & there).sum(1)
    return Chair(counts.sum(1), (counts * ~there).sum(1), partners, found, there.sum(1))


def text(words: Int[ndarray, " word"]) -> str:
    """The words of one row, without padding."""
    return " ".join(VOCABULARY[word] for word in words if word != PAD)
