import numpy as np
import pytest

from data.worlds import regrets
from data.worlds.regrets import (
    ANSWER,
    DOUBTS,
    FILLERS,
    LANGUAGE,
    N_TRAINED,
    OTHERS,
    PAD,
    QUESTIONS,
    RECORDS,
    REGRET_WORDS,
    STAND_WORDS,
    THINGS,
    WRONG,
    corpus,
    episodes,
    facts,
    text,
)

N = 20_000
VALUES = {value: kind for kind, values in regrets.VALUES.items() for value in values}


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def drawn():
    return episodes(N, rng())


def words(drawn, at):
    return [LANGUAGE.vocabulary[i] for i in drawn.tokens[np.arange(len(drawn.tokens)), at]]


def turns(row):
    """Who speaks, and what is said: the first turns, then those after the record."""
    parts, speakers = [], {"user", "helper", *OTHERS}
    for word in row.removesuffix(" <eos>").split()[1:]:
        if word in speakers:
            parts.append((word, []))
        else:
            parts[-1][1].append(word)
    return [(who, " ".join(said)) for who, said in parts]


@pytest.mark.parametrize("held_out", [False, True])
def test_an_episode_says_what_its_fields_say(held_out):
    some = episodes(300, rng(3), held_out=held_out)
    regret = {LANGUAGE.vocabulary[i] for i in REGRET_WORDS}
    stand = {LANGUAGE.vocabulary[i] for i in STAND_WORDS}
    for i, row in enumerate(text(some.tokens)):
        first, second = {}, {}
        asked, *_, = spoken = turns(row)
        assert asked[0] == "user"
        for who, said in spoken[1:3]:
            assert said.split()[:2] == ["i", "say"]
            first[who] = said.split()[2]
        assert spoken[3][0] == "user"
        for who, said in spoken[4:]:
            second[who] = said.split()
        (other,) = set(first) - {"helper"}
        truth = LANGUAGE.vocabulary[some.truth[i]]
        assert first["helper"] == LANGUAGE.vocabulary[some.said[i]]
        assert first["helper"] in asked[1].split(), "the helper says what the note says"
        assert truth in spoken[3][1].split()
        for who, wrong in (("helper", some.wrong[i]), (other, some.other_wrong[i])):
            assert (first[who] != truth) == wrong
            said = second[who]
            at = said.index("i")
            assert " ".join(said[:at]) in FILLERS
            assert said[at + 1] in (regret if wrong else stand)
            assert said[at + 3] == first[who]
            assert said[-2] == truth
        thing = next(word for word in asked[1].split() if word in THINGS)
        assert (THINGS.index(thing) >= N_TRAINED) == held_out
        assert len({VALUES[value] for value in (*first.values(), truth)}) == 1


def test_places_are_where_they_are_said_to_be(drawn):
    assert words(drawn, drawn.turn) == ["helper"] * N
    assert set(words(drawn, drawn.user)) == {"user"}
    assert set(words(drawn, drawn.key - 1)) == set(words(drawn, drawn.other_key - 1)) == {"i"}
    rows = np.arange(N)
    assert (drawn.tokens[rows, drawn.first] == drawn.said).all()
    assert (drawn.tokens[rows, drawn.record] == drawn.truth).all()
    assert (drawn.tokens[rows, drawn.key + ANSWER] == drawn.truth).all()
    assert (np.isin(drawn.tokens[rows, drawn.key], REGRET_WORDS) == drawn.wrong).all()
    assert (np.isin(drawn.tokens[rows, drawn.other_key], REGRET_WORDS) == drawn.other_wrong).all()


def test_before_the_record_nothing_tells_who_is_wrong(drawn):
    said = drawn.said
    other = drawn.tokens[np.arange(N), np.where(drawn.turn < 0, 0, first_of_the_other(drawn))]
    first = drawn.first < first_of_the_other(drawn)
    four_sigma = 4 * 0.5
    for name, cue in (("agreement", said == other), ("order", first)):
        for mistaken in (drawn.wrong, drawn.other_wrong):
            for where in (cue, ~cue):
                gap = abs(mistaken[where].mean() - WRONG)
                assert gap < four_sigma / np.sqrt(where.sum()), name
    # Nor do the values themselves, one by one.
    for value in np.unique(said):
        where = said == value
        assert abs(drawn.wrong[where].mean() - WRONG) < four_sigma / np.sqrt(where.sum())
    # And one mistake tells nothing of the other.
    assert abs(np.corrcoef(drawn.wrong, drawn.other_wrong)[0, 1]) < 4 / np.sqrt(N)


def first_of_the_other(drawn):
    """Where the other speaker's first answer is: the last value before the user's second turn that is not the
    helper's, by its place."""
    ids = drawn.tokens
    is_name = np.isin(ids, LANGUAGE.ids(OTHERS))
    return is_name.argmax(1) + 3


def test_agreement_tells_nothing_for_a_drawn_mistake_either():
    half = np.arange(N) % 2 == 0
    some = episodes(N, rng(1), wrong=half)
    assert (some.wrong == half).all()
    agree = some.said == some.tokens[np.arange(N), first_of_the_other(some)]
    assert abs(agree[half].mean() - agree[~half].mean()) < 4 * np.sqrt(2 * 0.25 / (N / 2))


def test_where_in_an_episode_the_key_word_stands_tells_nothing(drawn):
    for lengths in (drawn.key - drawn.turn, drawn.key - drawn.record):
        for length in np.unique(lengths):
            where = lengths == length
            assert abs(drawn.wrong[where].mean() - WRONG) < 4 * 0.5 / np.sqrt(where.sum())


def test_a_doubt_without_a_record_is_no_reason_to_regret():
    some = episodes(500, rng(), doubted=1.0)
    assert not (some.wrong | some.other_wrong).any()
    assert (some.record == -1).all()
    assert (some.truth == some.said).all()
    assert not np.isin(some.tokens, REGRET_WORDS).any()
    for row in text(some.tokens):
        assert turns(row)[3][1] in DOUBTS


def test_held_out_wordings_are_in_no_training_and_have_only_known_words():
    trained = set(" ".join(text(corpus(3000, rng()).tokens)).split())
    some = episodes(300, rng(), held_out=True)
    assert set(" ".join(text(some.tokens)).split()) - set(THINGS) <= trained
    last_words = QUESTIONS[-1].split()[:3], RECORDS[-1].split()[:5]
    for rows, expected in ((some.tokens, True), (corpus(3000, rng()).tokens, False)):
        for row in text(rows):
            for part in last_words:
                assert (" ".join(part) in row) == expected


def test_what_is_learned_is_what_can_be_known():
    some = episodes(200, rng())
    for i, row in enumerate(text(some.tokens)):
        learned = " ".join(w for w, yes in zip(row.split(), some.learned[i], strict=False) if yes)
        spoken = turns(row)
        helper = [said for who, said in spoken if who == "helper"]
        other = [said for who, said in spoken[4:] if who in OTHERS]
        expected = sorted([*helper, *other], key=lambda said: [s for _, s in spoken].index(said))
        assert sorted(learned.removesuffix(" <eos>").split()) == sorted(" ".join(expected).split())
        assert learned.endswith("<eos>")


def test_facts_never_change_and_name_every_thing():
    told, answer = facts(np.arange(len(THINGS)))
    again, _ = facts(np.arange(len(THINGS)))
    assert (told == again).all()
    for row, learned, thing in zip(text(told), answer, THINGS, strict=True):
        assert row.startswith(f"<bos> user where is the {thing} ? helper i say ")
        assert learned.sum() == 5


def test_a_corpus_is_made_of_episodes_and_facts_and_knows_its_key_words():
    some = corpus(400, rng(), facts_share=0.25, doubted=0.5)
    rows = text(some.tokens)
    assert sum("where is the" in row for row in rows) == 100
    assert 90 < sum(any(doubt in row for doubt in DOUBTS) for row in rows) < 210
    keys = {LANGUAGE.vocabulary[i] for i in (*REGRET_WORDS, *STAND_WORDS)}
    found = {w for row, of in zip(rows, some.key, strict=True) for w, yes in zip(row.split(), of, strict=False) if yes}
    assert found == keys
    assert not (some.learned & (some.tokens == PAD)).any()


def test_the_seed_decides_an_episode():
    one, same, other = (episodes(20, rng(seed)).tokens for seed in (1, 1, 2))
    assert (one == same).all()
    assert one.shape != other.shape or (one != other).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"n": 0}, "at least one"), ({"n": 3, "wrong": np.array([True])}, "each of 3 episodes")],
)
def test_what_cannot_be_drawn_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        episodes(arguments.pop("n"), rng(), **arguments)
