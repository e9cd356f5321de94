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


def words(tokens, at):
    return [LANGUAGE.vocabulary[i] for i in tokens[np.arange(len(tokens)), at]]


def turns(row):
    """Who speaks, and what is said, in order."""
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
    for i, (row, other_row) in enumerate(zip(text(some.helper.tokens), text(some.other.tokens), strict=True)):
        asked, *answers, shown, last = turns(row)
        assert turns(other_row)[:4] == [asked, *answers, shown], "only the last turn is another"
        assert asked[0] == shown[0] == "user"
        first = {}
        for who, said in answers:
            assert said.split()[:2] == ["i", "say"]
            first[who] = said.split()[2]
        (other,) = set(first) - {"helper"}
        truth = LANGUAGE.vocabulary[some.truth[i]]
        assert first["helper"] == LANGUAGE.vocabulary[some.said[i]]
        assert first["helper"] in asked[1].split(), "the helper says what the note says"
        assert truth in shown[1].split()
        for who, turn, wrong in (
            ("helper", last, some.wrong[i]),
            (other, turns(other_row)[-1], some.other_wrong[i]),
        ):
            assert turn[0] == who
            assert (first[who] != truth) == wrong
            said = turn[1].split()
            at = said.index("i")
            assert " ".join(said[:at]) in FILLERS
            assert said[at + 1] in (regret if wrong else stand)
            assert said[at + 3] == first[who]
            assert said[-2] == truth
        thing = next(word for word in asked[1].split() if word in THINGS)
        assert (THINGS.index(thing) >= N_TRAINED) == held_out
        assert len({VALUES[value] for value in (*first.values(), truth)}) == 1


def test_places_are_where_they_are_said_to_be(drawn):
    rows = np.arange(N)
    assert words(drawn.helper.tokens, drawn.helper.turn) == ["helper"] * N
    assert set(words(drawn.other.tokens, drawn.other.turn)) == set(OTHERS)
    assert set(words(drawn.helper.tokens, drawn.user)) == {"user"}
    for ending, wrong in ((drawn.helper, drawn.wrong), (drawn.other, drawn.other_wrong)):
        tokens = ending.tokens
        assert set(words(tokens, ending.key - 1)) == {"i"}
        assert (tokens[rows, drawn.first] == drawn.said).all()
        assert (tokens[rows, drawn.record] == drawn.truth).all()
        assert (tokens[rows, ending.key + ANSWER] == drawn.truth).all()
        assert (np.isin(tokens[rows, ending.key], REGRET_WORDS) == wrong).all()


def test_before_the_record_nothing_tells_who_is_wrong(drawn):
    other_said = drawn.helper.tokens[np.arange(N), drawn.other_first]
    first = drawn.first < drawn.other_first
    for name, cue in (("agreement", drawn.said == other_said), ("order", first)):
        for mistaken in (drawn.wrong, drawn.other_wrong):
            for where in (cue, ~cue):
                assert abs(mistaken[where].mean() - WRONG) < 4 * 0.5 / np.sqrt(where.sum()), name
    # Nor do the values themselves, one by one.
    for value in np.unique(drawn.said):
        where = drawn.said == value
        assert abs(drawn.wrong[where].mean() - WRONG) < 4 * 0.5 / np.sqrt(where.sum())
    # And one mistake tells nothing of the other.
    assert abs(np.corrcoef(drawn.wrong, drawn.other_wrong)[0, 1]) < 4 / np.sqrt(N)


def test_agreement_tells_nothing_where_mistakes_are_given_either():
    half = np.arange(N) % 2 == 0
    some = episodes(N, rng(1), wrong=half)
    assert (some.wrong == half).all()
    agree = some.said == some.helper.tokens[np.arange(N), some.other_first]
    assert abs(agree[half].mean() - agree[~half].mean()) < 4 * np.sqrt(2 * 0.25 / (N / 2))


def test_where_in_an_episode_the_key_word_stands_tells_nothing(drawn):
    for lengths in (drawn.helper.key - drawn.helper.turn, drawn.helper.key - drawn.record):
        for length in np.unique(lengths):
            where = lengths == length
            assert abs(drawn.wrong[where].mean() - WRONG) < 4 * 0.5 / np.sqrt(where.sum())


def test_a_doubt_without_a_record_is_no_reason_to_regret():
    some = episodes(500, rng(), doubted=1.0)
    assert not (some.wrong | some.other_wrong).any()
    assert (some.record == -1).all()
    assert (some.truth == some.said).all()
    assert not np.isin(some.helper.tokens, REGRET_WORDS).any()
    assert not np.isin(some.other.tokens, REGRET_WORDS).any()
    for row in text(some.helper.tokens):
        assert turns(row)[3][1] in DOUBTS


def test_held_out_wordings_are_in_no_training_and_have_only_known_words():
    trained = set(" ".join(text(corpus(3000, rng()).tokens)).split())
    some = episodes(300, rng(), held_out=True)
    assert set(" ".join(text(some.helper.tokens)).split()) - set(THINGS) <= trained
    last_words = QUESTIONS[-1].split()[:3], RECORDS[-1].split()[:5]
    for rows, expected in ((some.helper.tokens, True), (corpus(3000, rng()).tokens, False)):
        for row in text(rows):
            for part in last_words:
                assert (" ".join(part) in row) == expected


def test_what_is_learned_is_what_can_be_known():
    some = episodes(200, rng())
    for ending in (some.helper, some.other):
        for row, learned in zip(text(ending.tokens), ending.learned, strict=True):
            said = [w for w, yes in zip(row.split(), learned, strict=False) if yes]
            spoken = turns(row)
            answer = next(told for who, told in spoken if who == "helper")
            assert said == [*answer.split(), *spoken[-1][1].split(), "<eos>"]


def test_facts_never_change_and_name_every_thing():
    told, answer = facts(np.arange(len(THINGS)))
    again, _ = facts(np.arange(len(THINGS)))
    assert (told == again).all()
    for row, learned, thing in zip(text(told), answer, THINGS, strict=True):
        assert row.startswith(f"<bos> user where is the {thing} ? helper i say ")
        assert learned.sum() == 5


def test_what_a_record_has_was_said_by_the_first_speaker_the_second_both_or_nobody():
    tokens, answer = regrets.remarks(4000, rng())
    kinds = []
    for row, learned in zip(text(tokens), answer, strict=True):
        before, told = row.removesuffix(" <eos>").split(" ? helper ")
        (one, first), (two, second), (_, shown) = turns(before)
        said = {one: first.split()[2], two: second.split()[2]}
        (asked,) = [word for word in shown.split() if word in VALUES]
        assert shown.endswith(". who said so")
        who = [name for name, value in said.items() if value == asked]
        expected = {0: "nobody", 1: who[0] if who else "", 2: "both"}[len(who)]
        assert told == f"{expected} said so ."
        marked = [word for word, yes in zip(row.split(), learned, strict=False) if yes]
        assert marked == [*told.split(), "<eos>"]
        kinds.append(expected if len(who) != 1 else list(said).index(who[0]))
        assert len({VALUES[value] for value in (*said.values(), asked)}) == 1
    assert min(kinds.count(kind) for kind in (0, 1, "both", "nobody")) > 900


def test_a_corpus_is_made_of_episodes_facts_and_remarks_and_knows_its_key_words():
    some = corpus(400, rng(), short=0.25, doubted=0.5)
    rows = text(some.tokens)
    assert sum("where is the" in row for row in rows) == sum("who said so" in row for row in rows) == 100
    assert 60 < sum(any(doubt in row for doubt in DOUBTS) for row in rows) < 140
    keys = {LANGUAGE.vocabulary[i] for i in (*REGRET_WORDS, *STAND_WORDS)}
    found = {
        w
        for row, of in zip(rows, some.key, strict=True)
        for w, yes in zip(row.split(), of, strict=False)
        if yes
    }
    assert found == keys
    assert not (some.learned & (some.tokens == PAD)).any()


def test_the_seed_decides_an_episode():
    one, same, other = (episodes(20, rng(seed)).helper.tokens for seed in (1, 1, 2))
    assert (one == same).all()
    assert one.shape != other.shape or (one != other).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"n": 0}, "at least one"), ({"n": 3, "wrong": np.array([True])}, "each of 3 episodes")],
)
def test_what_cannot_be_drawn_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        episodes(arguments.pop("n"), rng(), **arguments)
