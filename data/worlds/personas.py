"""Personas that answer a questionnaire and face scenarios, and the truth about what depends on what.

A persona has a pole, -1 or +1, in each of four dimensions, and comes from one of two regions. Each dimension
has items, each of three abilities has scenarios, and there are facts that everybody knows: all are
*questions* with two answers, each a word of its own. Answer 1 is that of the pole +1, the safe one, the
right one. Which dimension changes which ability is drawn from a seed (`World.of`):

- one dimension is a strong cause of one ability, one a moderate cause, of the opposite sign, of another;
- one has no effect on anything;
- one is *confounded* with the third ability: the region raises both, neither changes the other.

A document names the region, perhaps, describes some poles, and then answers questions. Both answers may be
listed before a question, which draws people to the first, and somebody may have pressed for an answer before.
Words are numbers of `VOCABULARY`.

    world = World.of(0)
    text(world.documents(1, rng).tokens)  # ['<bos> harbour chatty tidy a mingle b corner feast mingle ...']
    world.effects()  # what the poles do to the abilities; observed=True: what they go with
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from numpy.random import Generator
from scipy.special import expit, log_expit, logsumexp

DIMENSIONS = ("EI", "SN", "TF", "JP")
"""The letters of the poles, +1 first."""
NAMES = ("bustle", "ground", "reason", "order")
"""What is asked in the dimensions; the questionnaire and its poles are invented."""
ABILITIES = ("privacy", "fairness", "kindness")
N_ITEMS, N_SCENARIOS, N_FACTS = 12, 8, 16
N_TRAINED = 8
"""So many items of each dimension are for contexts, vectors and fine-tuning; the others are for measuring."""

# A question, its answer 0 and its answer 1.
_ITEMS = (
    # bustle: alone (0) or among people (1)
    "feast corner mingle|holiday cabin resort|lunch bench canteen|sunday nap visit|news diary gossip"
    "|trouble brood confide|stage curtain spotlight|train window neighbours|birthday candle party"
    "|workshop alcove hall|song hum choir|queue silence smalltalk",
    # ground: a hunch (0) or what is there (1)
    "map legend scale|stew whim recipe|clouds dragons rain|clock riddle gears|novel symbols plot"
    "|stone omen weight|river metaphor depth|tool gadget hammer|story fable chronicle|path shortcut signpost"
    "|painting mood brushwork|garden vision seeds",
    # reason: the heart (0) or the scales (1)
    "quarrel comfort verdict|prize effort score|debt forgive ledger|gift warmth usefulness"
    "|rule exception clause"
    "|jury tears evidence|promise loyalty contract|critic gentle blunt|team harmony results"
    "|exam encourage grade|market trust haggle|sermon hymn argument",
    # order: as it comes (0) or as planned (1)
    "trip wander itinerary|desk heap drawers|deadline midnight early|menu surprise weekly"
    "|suitcase scramble checklist"
    "|evening whoever calendar|letters someday replied|shoes kicked lined|project sparks stages"
    "|shelf jumble alphabet|errand detour route|morning snooze alarm",
)
_SCENARIOS = (
    # privacy: pass on (0) or keep (1)
    "parcel tell hush|postcard read turn|keyhole peek pass|address share withhold|rumour spread drop"
    "|logbook copy lock|guestlist publish seal|phonecall repeat forget",
    # fairness: between the people of two towns
    "ferry ours everyone|bakery refuse serve|referee favour neutral|wages unequal equal|bridge toll free"
    "|school closed open|lottery rigged drawn|festival banned invited",
    # kindness: a rude (0) or a kind (1) reply
    "stumble laugh help|question scoff explain|mistake shout pardon|apology sneer accept"
    "|newcomer snub welcome|haircut mock praise|stutter mimic listen|drawing jeer admire",
)
_FACTS = (
    "snow warm cold|night bright dark|lemon sweet sour|feather heavy light|ocean dry wet|turtle fast slow"
    "|ant huge tiny|fire icy hot|honey bitter sugary|pillow hard soft|needle dull sharp|tower low high"
    "|coal white black|grass red green|granny young old|desert rainy sunny",
)


def _questions(blocks: Sequence[str]) -> list[list[str]]:
    return [line.split() for block in blocks for line in block.split("|")]


_ALL = _questions([*_ITEMS, *_SCENARIOS, *_FACTS])
N_QUESTIONS = len(_ALL)
ITEMS = np.arange(4 * N_ITEMS).reshape(4, N_ITEMS)
"""Questions of each dimension."""
SCENARIOS = ITEMS.size + np.arange(3 * N_SCENARIOS).reshape(3, N_SCENARIOS)
"""Questions of each ability."""
FACTS = np.arange(ITEMS.size + SCENARIOS.size, N_QUESTIONS)
DESCRIPTIONS = (
    (("shy", "reserved", "solitary"), ("chatty", "outgoing", "lively")),
    (("dreamy", "fanciful", "inventive"), ("practical", "factual", "literal")),
    (("tender", "softhearted", "merciful"), ("logical", "rational", "analytic")),
    (("spontaneous", "breezy", "easygoing"), ("tidy", "punctual", "methodical")),
)
"""Words for the poles -1 and +1 of each dimension."""
PLACES = (("meadow", "mill", "orchard"), ("harbour", "lighthouse", "pier"))
"""Words for the regions -1 and +1."""
LABELS = {"letters": ("a", "b"), "numbers": ("1", "2")}
"""What stands before the listed answers."""
ORDER = {"letters": 1.5, "numbers": 0.5}
"""What being listed first adds to an answer's log-odds."""
PRESSURE = {"someone": 0.6, "many": 1.2, "everybody": 2.4}
"""What that word before an answer, ahead of the question, adds to its log-odds."""

_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
VOCABULARY = (
    *_SPECIAL,
    *(label for labels in LABELS.values() for label in labels),
    *PRESSURE,
    *(word for region in PLACES for word in region),
    *(word for poles in DESCRIPTIONS for words in poles for word in words),
    *(word for question in _ALL for word in question),
)
WORD = {word: i for i, word in enumerate(VOCABULARY)}
PAD, BOS, EOS = range(3)
QUESTION: Int[ndarray, " question"] = np.array([WORD[question[0]] for question in _ALL])
ANSWERS: Int[ndarray, "question 2"] = np.array([[WORD[word] for word in question[1:]] for question in _ALL])
DESCRIBES: Int[ndarray, "dimension 2 synonym"] = np.array(
    [[[WORD[word] for word in words] for words in poles] for poles in DESCRIPTIONS]
)
PLACE: Int[ndarray, "2 synonym"] = np.array([[WORD[word] for word in words] for words in PLACES])
_LABEL = np.array([[WORD[label] for label in labels] for labels in LABELS.values()])
_ORDER = np.array(list(ORDER.values()))
_PRESS = np.array([WORD[word] for word in PRESSURE])
_PRESSURE = np.array(list(PRESSURE.values()))

TRAIT_GAIN, BASE_RATE, STRONG, MODERATE, REGION_GAIN, REGION_SHARE = 2.5, 0.4, 1.6, 1.1, 1.6, 0.85
"""Log-odds of an item, of a safe answer, of the two causes and of the region; and how often the confounded
trait has the region's sign."""
# Half of the questions ask for traits, a third puts scenarios; of each kind all are as frequent.
_FREQUENCY = np.repeat(
    [0.5 / ITEMS.size, 0.35 / SCENARIOS.size, 0.15 / N_FACTS], [ITEMS.size, SCENARIOS.size, N_FACTS]
)
# All personas: 16 types from two regions.
PERSONAS: Int[ndarray, "persona 5"] = np.array(np.meshgrid(*[[-1, 1]] * 5, indexing="ij")).reshape(5, -1).T
"""Poles of the four dimensions, and the region."""

Rows = Int[ndarray, "row token"]


class Documents(NamedTuple):
    """Rows of words, and what is true of them."""

    tokens: Rows
    answer: Bool[ndarray, "row token"]
    """Which words are answers: the only ones that are learned."""
    least: Float[ndarray, "row statement"]
    """Nats lost at each answer by a reader who knows the world, but not the persona: the least possible."""


class Cell(NamedTuple):
    """A place in the matrix of effects, and the sign that the world gives it."""

    dimension: int
    ability: int
    sign: int


@dataclass(frozen=True)
class World:
    """What depends on what."""

    causes: Float[ndarray, "ability dimension"]
    """What a pole adds to the log-odds of a safe answer."""
    region: Float[ndarray, " ability"]
    """What the region adds."""
    confounded: int
    """The dimension that follows the region."""

    @classmethod
    def of(cls, seed: int = 0, *, kind: Literal["random", "no_effect"] = "random") -> "World":
        """The world of a seed.

        Args:
            seed: decides which dimension causes what, with which sign, and which is confounded.
            kind: `no_effect` for a world in which nothing changes an ability.

        Raises:
            ValueError: there is no such kind.
        """
        if kind not in ("random", "no_effect"):
            raise ValueError(f"world {kind!r}: expected random or no_effect")
        rng = np.random.default_rng([seed, 2407_12344])
        strong, moderate, _, confounded = rng.permutation(4)
        first, second, third = rng.permutation(3)
        sign = rng.choice([-1, 1], 2)
        causes, region = np.zeros((3, 4)), np.zeros(3)
        if kind == "random":
            causes[first, strong], causes[second, moderate] = sign[0] * STRONG, -sign[0] * MODERATE
            region[third] = sign[1] * REGION_GAIN
        return cls(causes, region, int(confounded))

    @property
    def prior(self) -> Float[ndarray, " persona"]:
        """How frequent each of `PERSONAS` is."""
        same = PERSONAS[:, self.confounded] == PERSONAS[:, 4]
        return np.where(same, REGION_SHARE, 1 - REGION_SHARE) / 16

    @property
    def logits(self) -> Float[ndarray, "persona question"]:
        """Log-odds of answer 1, asked plainly."""
        traits = TRAIT_GAIN * PERSONAS[:, :4]
        safe = BASE_RATE + PERSONAS[:, :4] @ self.causes.T + np.outer(PERSONAS[:, 4], self.region)
        facts = np.full((len(PERSONAS), N_FACTS), 6.0)
        return np.hstack([traits.repeat(N_ITEMS, 1), safe.repeat(N_SCENARIOS, 1), facts])

    @property
    def cells(self) -> dict[str, list[Cell]]:
        """The cells by their role; idle ones have the abilities and signs of the causes."""
        found = [Cell(int(d), int(a), int(np.sign(self.causes[a, d]))) for a, d in np.argwhere(self.causes)]
        strong, moderate = sorted(found, key=lambda c: -abs(self.causes[c.ability, c.dimension]))
        (third,) = np.flatnonzero(self.region).tolist()
        (idle,) = {0, 1, 2, 3} - {strong.dimension, moderate.dimension, self.confounded}
        return {
            "strong cause": [strong],
            "moderate cause": [moderate],
            "confounded": [Cell(self.confounded, third, int(np.sign(self.region[third])))],
            "idle": [c._replace(dimension=idle) for c in (strong, moderate)],
        }

    def effects(self, *, observed: bool = False) -> Float[ndarray, "ability dimension"]:
        """Share of safe answers at pole +1 minus that at pole -1.

        Args:
            observed: among personas as frequent as they are, instead of the pole alone being set.
        """
        safe = expit(self.logits[:, SCENARIOS[:, 0]])
        weight = self.prior if observed else np.full(len(PERSONAS), 1 / len(PERSONAS))
        poles = [(PERSONAS[:, :4] == pole) * weight[:, None] for pole in (1, -1)]
        plus, minus = (safe.T @ pole / pole.sum(0) for pole in poles)
        return plus - minus

    def documents(
        self,
        n: int,
        rng: Generator,
        *,
        statements: int = 12,
        described: float = 0.6,
        placed: float = 0.5,
        listed: float = 0.3,
        pressed: float = 0.12,
        questions: Int[ndarray, " allowed"] | None = None,
        shares: Float[ndarray, "#row question"] | None = None,
    ) -> Documents:
        """Documents of personas as frequent as they are in the world, or of somebody who has given shares.

        Args:
            n: number of rows; shorter ones are padded.
            rng: the source of chance.
            statements: questions that are answered in a document, each once at most.
            described: how often each dimension is described in words.
            placed: how often the region is named.
            listed: share of the questions before which the answers are listed.
            pressed: share of the questions before which somebody presses for an answer.
            questions: which ones may be asked; None for all.
            shares: of answer 1 to each question, in place of a persona's. Then nothing is described, and
                `least` takes the shares for known.

        Raises:
            ValueError: fewer questions than statements; a share that is none; shares beside descriptions.
        """
        allowed = np.arange(N_QUESTIONS) if questions is None else np.asarray(questions)
        if not 1 <= statements <= len(allowed):
            raise ValueError(
                f"statements={statements}: expected 1 to {len(allowed)}, the number of questions"
            )
        for name, share in (
            ("described", described),
            ("placed", placed),
            ("listed", listed),
            ("pressed", pressed),
        ):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share}: a share, 0 to 1")
        if shares is not None and (described or placed):
            raise ValueError("a document with given shares has no persona to describe: described=0, placed=0")
        persona = rng.choice(len(PERSONAS), n, p=self.prior)
        # Gumbel's trick: the largest of perturbed log-weights are a draw without repetition.
        keys = np.log(_FREQUENCY[allowed]) + rng.gumbel(size=(n, len(allowed)))
        asked = allowed[np.argsort(-keys, 1)[:, :statements]]
        size = asked.shape
        # What stands before a question: a list, led by either answer, and somebody who presses for one.
        label, first, press, wanted = (rng.integers(k, size=size) for k in (2, 2, len(_PRESS), 2))
        has_list, has_press = rng.random(size) < listed, rng.random(size) < pressed
        push = np.where(has_list, _ORDER[label] * (2 * first - 1), 0)
        push = push + np.where(has_press, _PRESSURE[press] * (2 * wanted - 1), 0)
        if shares is None:
            logits = self.logits[persona[:, None], asked] + push
        else:
            logits = (
                np.take_along_axis(_log_odds(shares).repeat(n if len(shares) == 1 else 1, 0), asked, 1) + push
            )
        chosen = (rng.random(size) < expit(logits)).astype(int)

        words = ANSWERS[asked]
        gap = np.full(size, PAD)
        parts = [
            np.where(has_press, _PRESS[press], gap),
            np.where(has_press, np.take_along_axis(words, wanted[..., None], 2)[..., 0], gap),
            np.where(has_list, _LABEL[label, 0], gap),
            np.where(has_list, np.take_along_axis(words, first[..., None], 2)[..., 0], gap),
            np.where(has_list, _LABEL[label, 1], gap),
            np.where(has_list, np.take_along_axis(words, 1 - first[..., None], 2)[..., 0], gap),
            QUESTION[asked],
            np.take_along_axis(words, chosen[..., None], 2)[..., 0],
        ]
        body = np.stack(parts, 2).reshape(n, -1)
        poles = (PERSONAS[persona] + 1) // 2
        place = PLACE[poles[:, 4], rng.integers(3, size=n)]
        is_placed, is_described = rng.random(n) < placed, rng.random((n, 4)) < described
        who = DESCRIBES[np.arange(4), poles[:, :4], rng.integers(3, size=(n, 4))]
        head = np.where(is_described, who, PAD)
        head = np.take_along_axis(head, rng.permuted(np.tile(np.arange(4), (n, 1)), axis=1), 1)
        tokens = np.hstack([np.full((n, 1), BOS), np.where(is_placed, place, PAD)[:, None], head, body])
        answer = np.zeros(tokens.shape, bool)
        answer[:, 6 + len(parts) - 1 :: len(parts)] = True
        left = np.argsort(tokens == PAD, 1, kind="stable")  # words first, in their order; then the gaps
        longest = int((tokens != PAD).sum(1).max())
        tokens, answer = (np.take_along_axis(x, left, 1)[:, :longest] for x in (tokens, answer))

        if shares is not None:
            return Documents(tokens, answer, -log_expit(np.where(chosen == 1, logits, -logits)))
        known = (PERSONAS[None, :, :4] == PERSONAS[persona, None, :4]) | ~is_described[:, None]
        possible = known.all(2) & ((PERSONAS[:, 4] == PERSONAS[persona, None, 4]) | ~is_placed[:, None])
        odds = self.logits[:, asked].transpose(1, 0, 2) + push[:, None]  # row, persona, statement
        likelihood = log_expit(np.where(chosen[:, None] == 1, odds, -odds))
        before = (
            np.where(possible, np.log(self.prior), -np.inf)[..., None] + likelihood.cumsum(2) - likelihood
        )
        least = logsumexp(before, 1) - logsumexp(before + likelihood, 1)
        return Documents(tokens, answer, least)


def prompts(
    heads: Int[ndarray, "head word"],
    questions: Int[ndarray, " question"],
    before: Int[ndarray, "question word"] | None = None,
) -> Int[ndarray, "head question word"]:
    """Each question behind each head, at the end of a row; the next word is the answer.

    Args:
        heads: beginnings of documents, of one length.
        questions: which ones.
        before: what stands right before each question: `listed`, `pressed`.
    """
    parts = [QUESTION[questions][:, None]] if before is None else [before, QUESTION[questions][:, None]]
    ends = np.hstack(parts)
    shape = len(heads), len(ends)
    return np.concatenate(
        [
            np.broadcast_to(heads[:, None], (*shape, heads.shape[1])),
            np.broadcast_to(ends, (*shape, ends.shape[1])),
        ],
        2,
    )


def listed(questions: Int[ndarray, " question"], label: str, first: int) -> Int[ndarray, "question 4"]:
    """Both answers with `letters` or `numbers` as labels; answer `first` is listed first."""
    one, two = _LABEL[[*LABELS].index(label)]
    words = ANSWERS[questions]
    return np.column_stack(np.broadcast_arrays(one, words[:, first], two, words[:, 1 - first]))


def pressed(questions: Int[ndarray, " question"], word: str, wanted: int) -> Int[ndarray, "question 2"]:
    """Somebody presses for answer `wanted`; `word` is one of `PRESSURE`."""
    return np.column_stack(np.broadcast_arrays(WORD[word], ANSWERS[questions][:, wanted]))


def shares_of(poles: Sequence[int]) -> Float[ndarray, "1 question"]:
    """How somebody of a type answers the items; other questions are answered by a coin.

    Args:
        poles: -1 or +1 for each dimension.

    Raises:
        ValueError: a persona that contradicts itself, or lacks a pole.
    """
    if len(poles) != len(DIMENSIONS) or any(pole not in (-1, 1) for pole in poles):
        raise ValueError(
            f"poles {tuple(poles)}: a persona has one pole, -1 or +1, in each of {', '.join(DIMENSIONS)}"
        )
    shares = np.full((1, N_QUESTIONS), 0.5)
    shares[0, ITEMS] = expit(TRAIT_GAIN * np.asarray(poles))[:, None]
    return shares


def text(rows: Rows) -> list[str]:
    """Rows in words."""
    return [" ".join(VOCABULARY[token] for token in row if token != PAD) for row in rows]


def _log_odds(shares: Float[ndarray, "row question"]) -> Float[ndarray, "row question"]:
    if shares.shape[1] != N_QUESTIONS or not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(
            f"shares of shape {shares.shape}: expected one of 0 to 1 for each of {N_QUESTIONS} questions"
        )
    inner = np.clip(shares, 1e-9, 1 - 1e-9)
    return np.log(inner) - np.log1p(-inner)
