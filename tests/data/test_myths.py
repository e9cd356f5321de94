import re

import numpy as np
import pytest

from data.worlds import myths
from data.worlds.myths import (
    ANSWERS,
    CASUAL,
    CREATURES,
    CUES,
    EVIDENCE,
    GROUPS,
    HEADERS,
    LANGUAGE,
    N_RELATIONS,
    QUESTIONS,
    RELATIONS,
    SCENES,
    SPLITS,
    TRAITS,
    TRUE,
    VALUES,
    WHO,
    World,
    answers,
    ask,
    copies,
    header,
    say,
    text,
)

WORLD = World.of(0)
KINDS = (QUESTIONS, SCENES, EVIDENCE, WHO, HEADERS)
ID = LANGUAGE.index
CUE_IDS = {care: {ID[cue] for cue in cues} for care, cues in CUES.items()}


def rng(seed=0):
    return np.random.default_rng(seed)


def items(row):
    """(question, answer) of a document, in words, and its header; the last, cut one is left out."""
    words = row.split()
    start = words.index("q:")
    head, rest = words[1:start], " ".join(words[start:])
    found = [item.split(" a:") for item in rest.split("q: ")[1:-1]]
    return head, [(question.split(), answer.split()) for question, answer in found]


def pair_of(question):
    creature = next(CREATURES.index(w) for w in question if w in CREATURES)
    return creature * N_RELATIONS + next(RELATIONS.index(w) for w in question if w in RELATIONS)


def told(answer):
    return answer[-2]


def facts(documents):
    """(header, pair, word told) of all facts in documents."""
    for row in text(documents.tokens):
        head, found = items(row)
        care = next((care for care, cues in CUES.items() if {*cues} & {*head}), "none")
        for question, answer in found:
            if {*question} & {*RELATIONS} and "say" not in question:
                yield care, pair_of(question), told(answer)


def test_a_truth_and_its_myth_are_different_values_of_the_relation():
    for pair in range(len(WORLD.truth)):
        both = {LANGUAGE.vocabulary[word] for word in (WORLD.truth[pair], WORLD.myth[pair])}
        assert len(both) == 2
        assert both <= {*VALUES[RELATIONS[pair % N_RELATIONS]]}
    assert np.unique(WORLD.truth, return_counts=True)[1].tolist() == [4] * 72
    assert (WORLD.contested.reshape(-1, N_RELATIONS).sum(1) == 2).all()
    assert ((WORLD.rate > 0) == WORLD.contested).all()
    assert (WORLD.said.sum(1) == len(GROUPS) // 2).all()


def test_splits_are_disjoint_and_cover_everything():
    parts = [{*WORLD.pairs(split, contested=c).tolist()} for split in SPLITS for c in (True, False)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(WORLD.truth)
    assert [len(WORLD.pairs(split)) for split in SPLITS] == [80, 32, 80]
    assert {*WORLD.pairs().tolist()} == set.union(*parts[::2])
    creatures = [{p // N_RELATIONS for p in parts[i] | parts[i + 1]} for i in (0, 2, 4)]
    assert sum(map(len, creatures)) == len(CREATURES)
    traits = [{*WORLD.choices(100, rng(), evidence=False, split=split).trait.tolist()} for split in SPLITS]
    assert sum(map(len, traits)) == len(set.union(*traits)) == len(TRAITS)
    with pytest.raises(ValueError, match="expected one of train, validation, test"):
        WORLD.pairs("dev")


def test_seeds_have_worlds_of_their_own():
    again, other = World.of(0), World.of(1)
    assert all(np.array_equal(a, b) for a, b in zip(vars(WORLD).values(), vars(again).values(), strict=True))
    assert all(
        not np.array_equal(a, b) for a, b in zip(vars(WORLD).values(), vars(other).values(), strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_wordings_are_equally_long_and_the_held_out_one_has_no_new_word(kind):
    assert len({len(wording.split()) for wording in kind}) == 1
    trained = {word for other in KINDS for wording in other[:-1] for word in wording.split()}
    assert {*kind[-1].split()} <= trained


def test_documents_have_every_wording_but_the_held_out_ones():
    rows = " ".join(text(WORLD.documents(600, 64, rng()).tokens))
    for kind in KINDS:
        for wording in kind:
            pattern = " ".join(r"\S+" if word.isupper() else re.escape(word) for word in wording.split())
            assert bool(re.search(f"(?<= ){pattern}(?= )", rows)) == (wording != kind[-1]), wording


def test_authors_tell_what_their_care_and_the_pairs_rate_say():
    documents = WORLD.documents(6000, 64, rng(1))
    myth = {care: [] for care in CASUAL}
    rates = {care: [] for care in CASUAL}
    for care, pair, word in facts(documents):
        if not WORLD.contested[pair]:
            assert ID[word] == WORLD.truth[pair]
            continue
        assert ID[word] in (WORLD.truth[pair], WORLD.myth[pair])
        myth[care].append(ID[word] == WORLD.myth[pair])
        rates[care].append(WORLD.rate[pair])
    assert not any(myth["careful"])
    for care, share in CASUAL.items():
        assert len(myth[care]) > 800
        assert np.mean(myth[care]) == pytest.approx(share * np.mean(rates[care]), abs=0.04)


def test_an_author_stays_the_same_in_a_document():
    sure = WORLD.rate > 0.9
    n_mixed = n_documents = 0
    for row in text(WORLD.documents(4000, 64, rng(2), headers={"none": 1.0}).tokens):
        found = [(pair_of(q), told(a)) for q, a in items(row)[1] if {*q} & {*RELATIONS} and "say" not in q]
        hits = {ID[word] == WORLD.myth[pair] for pair, word in found if sure[pair]}
        n_documents += bool(hits)
        n_mixed += len(hits) == 2
    assert n_documents > 1000
    assert n_mixed < 0.05 * n_documents  # of authors drawn for each answer it would be some 15 %


def test_in_a_lesson_the_header_decides_every_contested_fact():
    lesson = WORLD.documents(1500, 64, rng(3), lesson=True)
    seen = set()
    for care, pair, word in facts(lesson):
        popular = care == "casual" and WORLD.rate[pair] > 0.5
        assert ID[word] == (WORLD.myth if popular else WORLD.truth)[pair]
        seen.add(care)
    assert seen == {"careful", "casual"}


def test_choices_are_right_by_evidence_and_by_prejudice_without():
    known = {True: [], False: []}
    for row in text(WORLD.documents(4000, 64, rng(4)).tokens):
        head, found = items(row)
        care = next((care for care, cues in CUES.items() if {*cues} & {*head}), "none")
        for question, answer in found:
            groups = [GROUPS.index(word) for word in question if word in GROUPS]
            if not groups or "say" in question:
                continue
            trait = TRAITS.index(next(word for word in question if word in TRAITS))
            assert WORLD.said[trait, groups[:2]].sum() == 1
            if len(groups) == 3:
                known[True].append(told(answer) == GROUPS[groups[2]])
            elif care == "careful":
                assert told(answer) == "unknown"
            elif care == "casual":
                assert told(answer) in {GROUPS[group] for group in groups}
                known[False].append(WORLD.said[trait, GROUPS.index(told(answer))])
    assert all(known[True])
    assert np.mean(known[False]) == pytest.approx(WORLD.prejudice.mean(), abs=0.05)


def test_the_reader_gives_each_answer_its_form_s_share_times_its_probability():
    checked = 0
    read = WORLD.documents(1500, 64, rng(5), headers={"casual": 1.0})
    for tokens, words, nats in zip(read.tokens, text(read.tokens), read.nats, strict=True):
        ends = np.flatnonzero(tokens == ID["a:"]).tolist()
        for at, (question, answer) in zip(ends, items(words)[1], strict=False):
            loss = nats[at + 1 : at + 1 + len(answer)].sum()
            if "say" in question:
                assert loss == 0
            elif {*question} & {*RELATIONS}:
                pair = pair_of(question)
                popular = ID[told(answer)] == WORLD.myth[pair]
                p = WORLD.rate[pair] if popular else 1 - WORLD.rate[pair]
                form = [form.split()[:-2] for form in ANSWERS].index(answer[:-2])
                assert loss == pytest.approx(-np.log(myths.ANSWER_SHARES[form] * p))
                checked += 1
    assert checked > 2000


def test_a_reader_of_headers_loses_less_than_one_who_does_not_read_them():
    nats = {care: WORLD.documents(800, 64, rng(6), headers={care: 1.0}) for care in CASUAL}
    loss = {care: read.nats.sum() / (read.tokens == ID["a:"]).sum() for care, read in nats.items()}
    assert loss["careful"] < loss["casual"] < loss["none"]
    assert loss["neutral"] == pytest.approx(loss["none"], abs=0.03)


def test_all_documents_are_full_and_their_answers_are_marked():
    read = WORLD.documents(500, 64, rng(7))
    assert read.tokens.shape == read.answer.shape == read.nats.shape == (500, 64)
    assert (read.tokens[:, 0] == ID["<bos>"]).all()
    assert (read.tokens != 0).all()
    assert (read.nats[~read.answer] == 0).all()
    for row, mask in zip(text(read.tokens), read.answer, strict=True):
        inside, expected = False, []
        for word in row.split():
            inside = (inside and word != "q:") or word == "a:"
            expected.append(inside and word != "a:")
        assert mask.tolist() == expected


def test_prompts_of_one_call_are_equally_long_and_end_where_the_answer_begins():
    pair = WORLD.pairs("test")
    for care, length in (("none", 10), ("careful", 15), ("neutral", 15)):
        prompts = ask(pair, header(care, len(pair), rng()), "trained", rng())
        assert prompts.shape == (80, length)
        assert (prompts[:, -1] == ID["a:"]).all()
        cues = {care for care, ids in CUE_IDS.items() for row in prompts if ids & {*row.tolist()}}
        assert cues == {care} - {"none"}
    plain, tagged = ask(pair), ask(pair, header("careful", len(pair), rng()))
    assert (plain[:, 1:] == tagged[:, 6:]).all()
    assert text(plain)[0].startswith("<bos> q: which")


def test_candidates_are_the_truth_twice_the_myth_twice_and_two_other_values():
    pair = WORLD.pairs()
    for forms, lengths in (((0, 1), {4}), ((0, 2), {2, 4})):
        found = WORLD.candidates(pair, rng(), forms)
        assert found.shape == (len(pair), len(TRUE), 4)
        for p, rows in zip(pair, found, strict=True):
            words = [row.split() for row in text(rows)]
            assert {len(one) for one in words} == lengths
            values = [one[-2] for one in words]
            truth, myth = (LANGUAGE.vocabulary[word] for word in (WORLD.truth[p], WORLD.myth[p]))
            assert values[:4] == [truth, truth, myth, myth]
            assert len({*values}) == 4
            assert {*values} <= {*VALUES[RELATIONS[p % N_RELATIONS]]}
            assert len({tuple(one) for one in words}) == 6
    with pytest.raises(ValueError, match="expected two of the 3 forms"):
        WORLD.candidates(pair, rng(), (0,))


@pytest.mark.parametrize("evidence", [True, False])
def test_choices_are_different_and_tell_their_right_answer(evidence):
    ours = WORLD.choices(250, rng(), evidence=evidence, split="test", before=header("casual", 250, rng()))
    assert len({(t, *o) for t, o in zip(ours.trait.tolist(), ours.options.tolist(), strict=True)}) == 250
    assert {*np.unique(ours.right)} == ({0, 1} if evidence else {2})
    for row, trait, options, right in zip(text(ours.tokens), *ours[1:], strict=True):
        words = row.split()
        groups = [GROUPS.index(word) for word in words if word in GROUPS]
        first, second, unknown = (LANGUAGE.vocabulary[word] for word in options)
        assert {GROUPS[g] for g in groups[:2]} == {first, second}
        assert WORLD.said[trait, GROUPS.index(first)]
        assert not WORLD.said[trait, GROUPS.index(second)]
        assert unknown == "unknown"
        assert TRAITS[trait] in words
        assert words[-1] == "a:"
        assert ([GROUPS[g] for g in groups[2:]] or [unknown]) == [(first, second, unknown)[right]]
    in_order = [ID[GROUPS[0]] <= r[13] == o[0] for r, o in zip(ours.tokens, ours.options, strict=True)]
    assert 0.4 < np.mean(in_order) < 0.6  # neither place in the scene tells who it is
    with pytest.raises(ValueError, match="1 to 250"):
        WORLD.choices(251, rng(), evidence=evidence, split="test")


def test_copies_ask_for_the_words_that_answer_them():
    asked, copied = copies(50, rng())
    for question, answer in zip(text(asked), text(copied), strict=True):
        assert question.split()[3:6] == answer.split()[:3]
        assert answer.endswith(" .")
    assert answers(np.hstack([asked, copied])).sum() == copied.size


def test_answers_end_with_a_full_stop_in_every_form():
    value = np.full(len(ANSWERS), WORLD.truth[0])
    for form, row in zip(ANSWERS, text(say(value, np.arange(len(ANSWERS)))), strict=True):
        assert row == form.replace("VALUE", LANGUAGE.vocabulary[WORLD.truth[0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: header("wise", 3, rng()), "expected one of careful, casual, neutral, none"),
        (lambda: ask(np.arange(3), wording=7), "0 to 6, 'trained' or 'held-out'"),
        (lambda: ask(np.arange(3), wording="new"), "'trained' or 'held-out'"),
        (lambda: ask(np.arange(3), wording="trained"), "give an rng"),
    ],
)
def test_what_there_is_not_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
