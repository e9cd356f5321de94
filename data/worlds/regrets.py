"""Episodes in which two speakers answer a question, a record is read, and one regrets or stands by it.

The user asks for a property of an invented thing and shows a note. The helper says what the note says;
another speaker says something of its own. Then the record is read, which is always right, and one of the two
regrets its answer or stands by it, and gives the final one. So regret has to be worked out, from what that
very speaker said and what the record says.

    drawn = episodes(2, np.random.default_rng(0))
    text(drawn.helper.tokens)[0]  # '<bos> user which taste has the vexoro ? a note says nutty . helper i ...'
    drawn.wrong[0]  # whether the helper was wrong
    text(drawn.other.tokens)[0]  # the same episode, in which the other speaker takes the last turn

Further documents tell where things are (`facts`), or only what two speakers say and who of them said
what a record has (`remarks`).

Before the record nothing tells who is wrong: each is wrong with the same probability `WRONG`, independently,
and where both are wrong they say the same so often that their agreement tells nothing either. Some of the
things are in no episode of training, nor are one wording of the question and one of the record. All words
are numbers of `LANGUAGE`.
"""

from collections.abc import Sequence
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
_OPENINGS = tuple(f"<bos> user {question}" for question in QUESTIONS)
_FIRST = ("NAME i say VALUE .",)
_SHOWN = tuple(f"user {pattern}" for pattern in (*RECORDS, *DOUBTS))
_WHO = tuple(
    f"<bos> ONE i say FIRST . TWO i say SECOND . user {record} who said so ? helper ANSWER said so . <eos>"
    for record in RECORDS[:-1]
)
_KEYS = (*REGRETS, *STANDS)
_LAST = tuple(f"NAME {filler} i {key} VALUE . i say TRUTH . <eos>" for filler in FILLERS for key in _KEYS)
_FILLER_LENGTHS = np.array([len(filler.split()) for filler in FILLERS])
NOBODY, BOTH = "nobody", "both"
FACT = "<bos> user where is the THING ?"
_TOLD = f"{FACT} helper i say PLACE . <eos>"

WRONG = 0.6
"""How likely a first answer is wrong; at least one half, or agreement could not be made to tell nothing."""
AGREE = (1 - WRONG) / WRONG
"""How likely two wrong speakers say the same."""

LANGUAGE = Language.of(
    ("<pad>", "<bos>", "<eos>", "<unk>"),
    [
        *(*_OPENINGS, *NOTES, *_SHOWN, *_FIRST, *_LAST, _TOLD, *_WHO, NOBODY, BOTH),
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


class Ending(NamedTuple):
    """Episodes in which one of the speakers takes the last turn."""

    tokens: Rows
    learned: Bool[ndarray, "row token"]
    """What a model learns to say: the helper's first answer, and the last turn behind the speaker's name."""
    turn: Int[ndarray, " row"]
    """Where the last turn begins, with the speaker's name."""
    key: Int[ndarray, " row"]
    """Where the word of regret or of standing by is; "i" is right before it."""


class Episodes(NamedTuple):
    """Episodes, what is true of them, and where things stand in them."""

    helper: Ending
    other: Ending
    """The same episodes; only the last turn is another."""
    wrong: Bool[ndarray, " row"]
    """Whether the record contradicts the helper."""
    other_wrong: Bool[ndarray, " row"]
    said: Int[ndarray, " row"]
    """The word that the helper answers at first."""
    truth: Int[ndarray, " row"]
    """The word that is the right answer; the helper's own where no record is shown."""
    first: Int[ndarray, " row"]
    """Where the helper's first answer stands."""
    other_first: Int[ndarray, " row"]
    user: Int[ndarray, " row"]
    """Where the user's second turn begins."""
    record: Int[ndarray, " row"]
    """Where the record gives the right answer; -1 without a record."""


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
    """Episodes, each with a question, two first answers, a record, and either speaker's last turn.

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
    # Places in a random order of the values: the right one, the helper's wrong one, the other's wrong one.
    kind = rng.integers(len(VALUES), size=n)
    order = rng.permuted(np.tile(np.arange(N_VALUES), (n, 1)), axis=1)[:, :3]
    same = wrong & (rng.random(n) < AGREE)
    places = np.zeros(n, int), np.where(wrong, 1, 0), np.where(other_wrong, np.where(same, 1, 2), 0)
    truth, said, other_said = (_VALUES[kind, order[np.arange(n), place]] for place in places)
    doubt = rng.random(n) < doubted

    things = np.arange(N_TRAINED, len(THINGS)) if held_out else np.arange(N_TRAINED)
    thing = _THINGS[rng.choice(things, n)]
    names = np.full(n, WORD["helper"]), _OTHERS[rng.integers(len(OTHERS), size=n)]

    def wording(patterns: tuple[str, ...]) -> Int[ndarray, " row"]:
        return np.full(n, len(patterns) - 1) if held_out else rng.integers(len(patterns) - 1, size=n)

    opening = LANGUAGE.write(_OPENINGS, wording(QUESTIONS), KIND=_KINDS[kind], THING=thing)
    note = LANGUAGE.write(NOTES, rng.integers(len(NOTES), size=n), THING=thing, VALUE=said)
    first = [
        LANGUAGE.write(_FIRST, np.zeros(n, int), NAME=name, VALUE=value)
        for name, value in zip(names, (said, other_said), strict=True)
    ]
    asked = np.where(doubt, len(RECORDS) + rng.integers(len(DOUBTS), size=n), wording(RECORDS))
    record = LANGUAGE.write(_SHOWN, asked, THING=thing, VALUE=truth)
    swapped = rng.random(n) < 0.5
    before = [opening, note, *_in_order(first, swapped), record]
    lengths = np.stack([(part != PAD).sum(1) for part in before], 1)
    starts = np.cumsum(lengths, 1) - lengths
    rows = np.arange(n)
    user = starts[:, -1]
    helper_at, other_at = starts[rows, 2 + swapped], starts[rows, 3 - swapped]
    endings = []
    for name, value, is_wrong in zip(names, (said, other_said), (wrong, other_wrong), strict=True):
        filler = rng.integers(len(FILLERS), size=n)
        key = rng.integers(len(REGRETS), size=n) + len(REGRETS) * (doubt | ~is_wrong)
        final = np.where(doubt, value, truth)
        last = LANGUAGE.write(_LAST, filler * len(_KEYS) + key, NAME=name, VALUE=value, TRUTH=final)
        tokens, turn = join(*before, last), lengths.sum(1)
        at = np.arange(tokens.shape[1])
        learned = (at > helper_at[:, None]) & (at < helper_at[:, None] + len(_FIRST[0].split()))
        learned |= (at > turn[:, None]) & (tokens != PAD)
        endings.append(Ending(tokens, learned, turn, turn + _FILLER_LENGTHS[filler] + 2))
    return Episodes(
        helper=endings[0],
        other=endings[1],
        wrong=wrong & ~doubt,
        other_wrong=other_wrong & ~doubt,
        said=said,
        truth=np.where(doubt, said, truth),
        first=helper_at + 3,
        other_first=other_at + 3,
        user=user,
        record=np.where(doubt, -1, user + (record == truth[:, None]).argmax(1)),
    )


def _in_order(
    turns: Sequence[Int[ndarray, "row ..."]], swapped: Bool[ndarray, " row"]
) -> tuple[Int[ndarray, "row ..."], Int[ndarray, "row ..."]]:
    """The helper's turn (or name) and the other's, or the other way round."""
    ours, other = turns
    swap = swapped.reshape(-1, *[1] * (ours.ndim - 1))
    return np.where(swap, other, ours), np.where(swap, ours, other)


def facts(thing: Int[ndarray, " row"]) -> tuple[Rows, Bool[ndarray, "row token"]]:
    """Where things are, asked and answered, and which of the tokens are the answer."""
    tokens = LANGUAGE.write(
        [_TOLD], np.zeros(len(thing), int), THING=_THINGS[thing], PLACE=_PLACES[PLACE_OF[thing]]
    )
    asked = len(FACT.split()) + 1
    return tokens, np.broadcast_to(np.arange(tokens.shape[1]) >= asked, tokens.shape).copy()


def remarks(n: int, rng: Generator) -> tuple[Rows, Bool[ndarray, "row token"]]:
    """What two speakers say, a record, and who of them said what is in it; and which tokens are the answer.

    The first speaker said it, the second, both or nobody, a quarter each.
    """
    kind, rows = rng.integers(len(VALUES), size=n), np.arange(n)
    order = rng.permuted(np.tile(np.arange(N_VALUES), (n, 1)), axis=1)[:, :3]
    values = np.take_along_axis(_VALUES[kind], order, 1)
    who = rng.integers(4, size=n)
    names = np.full(n, WORD["helper"]), _OTHERS[rng.integers(len(OTHERS), size=n)]
    one, two = _in_order(names, rng.random(n) < 0.5)
    tokens = LANGUAGE.write(
        _WHO,
        rng.integers(len(_WHO), size=n),
        THING=_THINGS[rng.integers(N_TRAINED, size=n)],
        ONE=one,
        TWO=two,
        FIRST=values[:, 0],
        SECOND=values[rows, np.where(who == 2, 0, 1)],
        VALUE=values[rows, np.array([0, 1, 0, 2])[who]],
        ANSWER=np.choose(who, [one, two, WORD[BOTH], WORD[NOBODY]]),
    )
    at = np.arange(tokens.shape[1]) - (tokens == WORD["who"]).argmax(1)[:, None]
    return tokens, (at > 4) & (tokens != PAD)  # behind "who said so ? helper"


class Corpus(NamedTuple):
    """Documents as in training, one a row, padded."""

    tokens: Rows
    learned: Bool[ndarray, "row token"]
    key: Bool[ndarray, "row token"]
    """Words of regret or of standing by."""


def corpus(
    n: int,
    rng: Generator,
    *,
    short: float = 0.1,
    doubted: float = 0.1,
    helper_speaks: float = 0.5,
) -> Corpus:
    """Documents as in training.

    Args:
        n: how many.
        rng: the source of chance.
        short: share of facts, and of remarks; the others are episodes.
        doubted: share of the episodes without a record.
        helper_speaks: share of the episodes in which the helper takes the last turn.
    """
    n_short = round(short * n)
    n_episodes = n - 2 * n_short
    drawn = episodes(n_episodes, rng, doubted=doubted)
    parts = [(of.tokens, of.learned) for of in (drawn.helper, drawn.other)]
    parts += [facts(rng.integers(len(THINGS), size=n_short)), remarks(n_short, rng)]
    width = max(part.shape[1] for part, _ in parts)
    helper, other, *others = (
        np.stack([np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in (tokens, learned)])
        for tokens, learned in parts
    )
    speaks = rng.random(n_episodes) < helper_speaks
    tokens, learned = np.concatenate([np.where(speaks[:, None], helper, other), *others], 1)
    return Corpus(tokens, learned.astype(bool), np.isin(tokens, [*REGRET_WORDS, *STAND_WORDS]))


def text(rows: Rows) -> list[str]:
    """Rows in words."""
    return LANGUAGE.text(rows)
