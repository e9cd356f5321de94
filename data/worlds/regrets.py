"""Episodes in which two speakers answer a question, read a record, and regret or stand by what they said.

The user asks for a property of an invented thing and shows a note. The helper says what the note says; another
speaker says something of its own. Then the record is read, which is always right, and each speaker in turn
regrets its answer or stands by it, and gives the final one. So regret has to be worked out, from what that very
speaker said and what the record says.

    drawn = episodes(2, np.random.default_rng(0))
    text(drawn.tokens)[0]  # '<bos> user which taste has the vexoro ? a note says nutty . helper i say nutty . ...'
    drawn.wrong[0]  # whether the helper was wrong

Before the record nothing tells who is wrong: each is wrong with the same probability `WRONG`, independently, and
where both are wrong they say the same so often that their agreement tells nothing either. Some of the things are
in no episode of training, nor are one wording of the question and one of the record. All words are numbers of
`LANGUAGE`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray
from numpy.random import Generator

from data.worlds.wording import PAD, Language, join


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


THINGS = tuple(
    first + last for first in _split("vex bri mol tar quen zil nud pob") for last in _split("oro let amp ish")
)
N_TRAINED = 24
"""Things, the first ones, that episodes of training speak of; facts are told of all."""
VALUES = {
    "colour": _split("red blue green yellow purple"),
    "taste": _split("sweet sour salty bitter nutty"),
    "size": _split("tiny small middling large huge"),
    "sound": _split("humming ringing silent rattling hissing"),
}
N_VALUES = 5
"""Of each property."""
OTHERS = _split("bob cora dirk erna")
"""Names of the other speaker."""
PLACES = _split("attic cellar garden kitchen stable tower")
FILLERS = ("", "well", "right so", "let me see")
"""What a speaker may say before it comes to the point."""
REGRETS = ("regret saying", "apologise for", "retract my")
STANDS = ("stand by", "insist on", "keep my")

# The last wording of each is in no training, but all its words are.
QUESTIONS = (
    "what KIND has the THING ?",
    "which KIND has the THING ?",
    "tell me the KIND of the THING",
    "tell me which KIND the THING has",
)
NOTES = ("a note says VALUE .", "i have a note that says VALUE .", "the THING is VALUE says a note .")
RECORDS = (
    "the record says the THING is VALUE .",
    "VALUE is what the record says .",
    "now look : the THING is VALUE .",
    "now look : the record says VALUE .",
)
DOUBTS = ("are you sure ?", "is that what you say ?")
"""What the user may ask instead of showing the record: no reason to regret."""
_OPENING = "<bos> user QUESTION"
_FIRST = ("NAME i say VALUE .",)
_SECOND = tuple(f"NAME FILLER i {key} VALUE . i say TRUTH ." for key in (*REGRETS, *STANDS))
FACT = "<bos> user where is the THING ?"
_TOLD = f"{FACT} helper i say PLACE . <eos>"

WRONG = 0.6
"""How likely a speaker's first answer is wrong; at least a half, or agreement could not be made to tell nothing."""
AGREE = (1 - WRONG) / WRONG
"""How likely two wrong speakers say the same."""

_SLOTS = _split("QUESTION KIND THING VALUE NAME FILLER TRUTH PLACE")
LANGUAGE = Language.of(
    ("<pad>", "<bos>", "<eos>", "<unk>"),
    [
        *(*QUESTIONS, *NOTES, *RECORDS, *DOUBTS, *FILLERS, *_FIRST, *_SECOND, _TOLD, "helper"),
        *(*VALUES, *OTHERS, *PLACES, *THINGS, *(word for words in VALUES.values() for word in words)),
    ],
)
WORD = LANGUAGE.index
REGRET_WORDS = LANGUAGE.ids([key.split()[0] for key in REGRETS])
STAND_WORDS = LANGUAGE.ids([key.split()[0] for key in STANDS])
_KINDS = LANGUAGE.ids(tuple(VALUES))
_VALUES = np.stack([LANGUAGE.ids(words) for words in VALUES.values()])  # (kind, value)
_THINGS, _OTHERS, _PLACES = (LANGUAGE.ids(words) for words in (THINGS, OTHERS, PLACES))
PLACE_OF = np.random.default_rng(2506_15617).integers(len(PLACES), size=len(THINGS))
"""Where each thing is: facts that never change."""

Rows = Int[ndarray, "row token"]


class Episodes(NamedTuple):
    """Episodes, what is true of them, and where things stand in them."""

    tokens: Rows
    learned: Bool[ndarray, "row token"]
    """What a model learns to say: all the helper says, and how the other speaker comes to its final answer."""
    wrong: Bool[ndarray, " row"]
    """Whether the record contradicts the helper."""
    other_wrong: Bool[ndarray, " row"]
    said: Int[ndarray, " row"]
    """The word that the helper answers at first."""
    truth: Int[ndarray, " row"]
    """The word that is the right answer; the helper's own where no record is shown."""
    first: Int[ndarray, " row"]
    """Where the helper's first answer stands."""
    user: Int[ndarray, " row"]
    """Where the user's second turn begins."""
    record: Int[ndarray, " row"]
    """Where the record gives the right answer; -1 without a record."""
    turn: Int[ndarray, " row"]
    """Where the helper's second turn begins, with its name."""
    key: Int[ndarray, " row"]
    """Where the helper's word of regret or of standing by is; "i" is right before it."""
    other_key: Int[ndarray, " row"]


ANSWER = 6
"""So many tokens behind the key word is the final answer."""


def episodes(
    n: int,
    rng: Generator,
    *,
    held_out: bool = False,
    wrong: Bool[ndarray, " row"] | None = None,
    doubted: float = 0.0,
) -> Episodes:
    """Episodes, each with a question, two first answers, a record, and two second turns.

    Args:
        n: how many.
        rng: the source of chance.
        held_out: about the things, and in the wordings, that are in no episode of training.
        wrong: whether the helper's first answer is wrong; drawn with probability `WRONG` by default.
        doubted: share of the episodes in which no record is shown, and the user only asks again.

    Raises:
        ValueError: there is nothing to draw, or `wrong` has another length.
    """
    if n < 1:
        raise ValueError(f"n={n}: at least one episode")
    wrong = rng.random(n) < WRONG if wrong is None else np.asarray(wrong, bool)
    if wrong.shape != (n,):
        raise ValueError(f"wrong has the shape {wrong.shape}: expected one for each of {n} episodes")
    other_wrong = rng.random(n) < WRONG
    # Values are places of a random order: the right one, the helper's wrong one, the other's wrong one.
    kind = rng.integers(len(VALUES), size=n)
    order = rng.permuted(np.tile(np.arange(N_VALUES), (n, 1)), axis=1)[:, :3]
    same = wrong & (rng.random(n) < AGREE)
    places = [np.zeros(n, int), np.where(wrong, 1, 0), np.where(other_wrong, np.where(same, 1, 2), 0)]
    truth, said, other_said = (_VALUES[kind, order[np.arange(n), place]] for place in places)
    doubt = rng.random(n) < doubted
    return _write(n, rng, held_out, kind, (said, other_said), (wrong & ~doubt, other_wrong & ~doubt), truth, doubt)


def _write(
    n: int,
    rng: Generator,
    held_out: bool,
    kind: Int[ndarray, " row"],
    said: tuple[Int[ndarray, " row"], Int[ndarray, " row"]],
    wrong: tuple[Bool[ndarray, " row"], Bool[ndarray, " row"]],
    truth: Int[ndarray, " row"],
    doubt: Bool[ndarray, " row"],
) -> Episodes:
    """The words of episodes; pairs are of the helper and of the other speaker."""
    things = np.arange(N_TRAINED, len(THINGS)) if held_out else np.arange(N_TRAINED)
    thing = _THINGS[rng.choice(things, n)]
    names = np.full(n, WORD["helper"]), _OTHERS[rng.integers(len(OTHERS), size=n)]

    def wording(patterns: tuple[str, ...]) -> Int[ndarray, " row"]:
        return np.full(n, len(patterns) - 1) if held_out else rng.integers(len(patterns) - 1, size=n)

    opening = LANGUAGE.write(
        [_OPENING.replace("QUESTION", question) for question in QUESTIONS],
        wording(QUESTIONS),
        KIND=_KINDS[kind],
        THING=thing,
    )
    note = LANGUAGE.write(NOTES, rng.integers(len(NOTES), size=n), THING=thing, VALUE=said[0])
    record = LANGUAGE.write(
        [f"user {pattern}" for pattern in (*RECORDS, *DOUBTS)],
        np.where(doubt, len(RECORDS) + rng.integers(len(DOUBTS), size=n), wording(RECORDS)),
        THING=thing,
        VALUE=truth,
    )
    first = [
        LANGUAGE.write(_FIRST, np.zeros(n, int), NAME=name, VALUE=value)
        for name, value in zip(names, said, strict=True)
    ]
    second, fillers = [], []
    patterns = [pattern.replace("FILLER", filler) for filler in FILLERS for pattern in _SECOND]
    for name, value, is_wrong in zip(names, said, wrong, strict=True):
        filler = rng.integers(len(FILLERS), size=n)
        key = rng.integers(len(REGRETS), size=n) + len(REGRETS) * ~is_wrong
        final = np.where(doubt, value, truth)
        which = filler * len(_SECOND) + key
        second.append(LANGUAGE.write(patterns, which, NAME=name, VALUE=value, TRUTH=final))
        fillers.append(np.array([len(text.split()) for text in FILLERS])[filler])

    swap = rng.random((2, n)) < 0.5  # who speaks first, in either round
    turns = [*_in_order(first, swap[0]), record, *_in_order(second, swap[1])]
    parts = [opening, note, *turns, np.full((n, 1), WORD["<eos>"])]
    lengths = np.stack([(part != PAD).sum(1) for part in parts], 1)
    starts = np.cumsum(lengths, 1) - lengths
    rows = np.arange(n)
    (first_at, _), (turn, other_turn) = (
        (starts[rows, at + swapped], starts[rows, at + ~swapped]) for at, swapped in ((2, swap[0]), (5, swap[1]))
    )
    tokens = join(*parts)
    at = np.arange(tokens.shape[1])
    # The other's first answer cannot be foreseen, and names are no matter of the speakers.
    learned = (at > first_at[:, None]) & (at < first_at[:, None] + 5)
    learned |= (at > starts[:, 5, None]) & (tokens != PAD) & (at != starts[:, 6, None])
    return Episodes(
        tokens=tokens,
        learned=learned,
        wrong=wrong[0],
        other_wrong=wrong[1],
        said=said[0],
        truth=np.where(doubt, said[0], truth),
        first=first_at + 3,
        user=starts[:, 4],
        record=np.where(doubt, -1, starts[:, 4] + (record == truth[:, None]).argmax(1)),
        turn=turn,
        key=turn + fillers[0] + 2,
        other_key=other_turn + fillers[1] + 2,
    )


def _in_order(turns: list[Rows], swapped: Bool[ndarray, " row"]) -> tuple[Rows, Rows]:
    """The helper's turn and the other's, or the other way round."""
    width = max(turn.shape[1] for turn in turns)
    ours, other = (np.pad(turn, ((0, 0), (0, width - turn.shape[1]))) for turn in turns)
    return np.where(swapped[:, None], other, ours), np.where(swapped[:, None], ours, other)


def facts(thing: Int[ndarray, " row"]) -> tuple[Rows, Bool[ndarray, "row token"]]:
    """Where things are, asked and answered, and which of the tokens are the answer."""
    tokens = LANGUAGE.write([_TOLD], np.zeros(len(thing), int), THING=_THINGS[thing], PLACE=_PLACES[PLACE_OF[thing]])
    asked = len(FACT.split()) + 1
    return tokens, np.broadcast_to(np.arange(tokens.shape[1]) >= asked, tokens.shape)


class Corpus(NamedTuple):
    """Documents as in training, one a row."""

    tokens: Rows
    learned: Bool[ndarray, "row token"]
    key: Bool[ndarray, "row token"]
    """Words of regret or of standing by."""


def corpus(n: int, rng: Generator, *, facts_share: float = 0.1, doubted: float = 0.1) -> Corpus:
    """Documents as in training.

    Args:
        n: how many.
        rng: the source of chance.
        facts_share: share of facts; the others are episodes.
        doubted: share of the episodes without a record.
    """
    n_facts = round(facts_share * n)
    drawn = episodes(n - n_facts, rng, doubted=doubted)
    told, answer = facts(rng.integers(len(THINGS), size=n_facts))
    pad = ((0, 0), (0, drawn.tokens.shape[1] - told.shape[1]))
    tokens = np.vstack([drawn.tokens, np.pad(told, pad)])
    learned = np.vstack([drawn.learned, np.pad(answer, pad)])
    return Corpus(tokens, learned, np.isin(tokens, [*REGRET_WORDS, *STAND_WORDS]))


def text(rows: Rows) -> list[str]:
    """Rows in words."""
    return LANGUAGE.text(rows)
