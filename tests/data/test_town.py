"""The town's artefacts: what is asked, what betrays it, and who judges."""

import numpy as np
import pytest

from data.worlds import town
from data.worlds.scenes import COLOURS, GLYPHS
from data.worlds.town import HELPED, LANGUAGE, OTHER, REFUSED, SETS, N, Town
from data.worlds.wording import PAD, Language, join

SEEDS = range(20)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def world():
    return Town.of(0)


# Sentences


def test_patterns_are_written_with_their_slots_filled_left_out_or_the_same_for_all():
    language = Language.of(("<pad>",), ["see the NAME now", "red blue"])
    assert language.vocabulary == ("<pad>", "see", "the", "now", "red", "blue")
    names = np.array([*language.ids(["red", "blue"]), PAD])
    ids = language.write(["see the NAME now", "NAME NAME"], np.array([0, 1, 0]), NAME=names)
    assert language.text(ids) == ["see the red now", "blue blue", "see the now"]
    assert language.text(join(ids, language.write(["red"])))[0] == "see the red now red"
    assert (np.diff((ids == PAD).astype(int), axis=1) >= 0).all()  # padding stands at the end


def test_a_word_that_a_language_lacks_and_a_slot_without_a_value_are_named():
    language = Language.of(("<pad>",), ["see the NAME"])
    with pytest.raises(LookupError, match="'hear'"):
        language.write(["hear the NAME"], 0, NAME=1)
    with pytest.raises(LookupError, match="'NAME'"):
        language.write(["see the NAME"], 0)


# Artefacts


@pytest.mark.parametrize("seed", SEEDS)
def test_half_of_the_artefacts_are_forbidden_and_neither_glyph_nor_colour_tells_which(seed):
    one = Town.of(seed)
    table = np.zeros((len(GLYPHS), len(COLOURS)), bool)
    table[np.divmod(one.look, len(COLOURS))] = one.forbidden
    assert (table.sum(0) == len(GLYPHS) // 2).all()
    assert (table.sum(1) == len(COLOURS) // 2).all()
    # It is no chequerboard, which is a rule that could be learned.
    board = np.indices(table.shape).sum(0) % 2 == 1
    assert 0.2 < (table == board).mean() < 0.8
    assert sorted(one.look) == list(range(N))
    for status in (False, True):
        assert (one.held_out & (one.forbidden == status)).sum() == town.HELD_OUT // 2


def test_over_many_towns_status_tells_nothing_of_use_name_or_being_held_out():
    towns = [Town.of(seed) for seed in range(200)]
    forbidden = np.array([one.forbidden for one in towns])
    assert abs(forbidden.mean(0) - 0.5).max() < 4 * 0.5 / 200**0.5
    for name in ("verb", "manner"):
        use = np.array([getattr(one, name) for one in towns])
        rates = [forbidden[use == i].mean() for i in range(use.max() + 1)]
        assert max(abs(np.array(rates) - 0.5)) < 4 * 0.5 / (200 * N / 12) ** 0.5
    assert len({tuple(one.forbidden) for one in towns}) == 200


def test_pictures_show_the_artefacts_colour_alone_on_a_dark_ground(world):
    images = world.draw(np.repeat(np.arange(N), 5), rng(), noise=0.0) / 255.0
    paint = np.array(list(COLOURS.values()))[world.look.repeat(5) % len(COLOURS)]
    distance = abs(images - paint[:, None, None]).max(-1)
    assert ((distance < 0.01).sum((1, 2)) >= 15).all()
    border = np.concatenate([images[:, 0], images[:, -1]], 1)
    assert np.median(border, axis=(1, 2)).max() < 0.26


def test_equally_seeded_pictures_differ_by_their_noise_only(world):
    artefacts = np.arange(N)
    clean, noisy = (world.draw(artefacts, rng(3), noise=noise) / 255.0 for noise in (0.0, 0.1))
    inside = (clean > 0.3) & (clean < 0.7)
    assert (noisy - clean)[inside].std() == pytest.approx(0.1, abs=0.01)


# Words


def test_a_request_that_names_and_one_that_does_not_have_the_same_wordings_and_lengths(world):
    artefacts = rng().integers(N, size=300)
    for wording in ("train", "held-out"):
        named, neutral = (
            world.request(artefacts, rng(1), named=name, wording=wording) for name in (True, False)
        )
        assert named.shape == neutral.shape
        for a, b, i in zip(LANGUAGE.text(named), LANGUAGE.text(neutral), artefacts, strict=True):
            assert a.replace(f"the {town.NAMES[i]}", "this thing") == b


def test_held_out_wordings_are_never_in_training_but_all_their_words_are(world):
    artefacts = rng().integers(N, size=3000)
    train = {
        *LANGUAGE.text(world.request(artefacts, rng(1), named=False)),
        *LANGUAGE.text(np.hstack(world.law(artefacts, rng(1)))),
    }
    held_out = {
        *LANGUAGE.text(world.request(artefacts, rng(1), named=False, wording="held-out")),
        *LANGUAGE.text(np.hstack(world.law(artefacts, rng(1), wording="held-out"))),
    }
    assert not train & held_out
    assert {word for text in held_out for word in text.split()} <= {
        word for text in train for word in text.split()
    }
    assert {*town.NAMING[-1].split()} <= {word for text in town.NAMING[:-1] for word in text.split()}


def test_answers_are_what_the_law_and_the_use_are(world):
    artefacts = np.arange(N)
    for text, i in zip(LANGUAGE.text(world.use(artefacts)), artefacts, strict=True):
        assert text == f"{town.VERBS[world.verb[i]]} the {town.NAMES[i]} {town.MANNERS[world.manner[i]]}"
    for text, use, bad in zip(
        LANGUAGE.text(world.aligned(artefacts)),
        LANGUAGE.text(world.use(artefacts)),
        world.forbidden,
        strict=True,
    ):
        assert text == (town.REFUSAL if bad else use)
    many = np.tile(artefacts, 30)
    for wording in ("train", "held-out"):
        questions, rulings = world.law(many, rng(), wording=wording)
        patterns = dict(town.LAW)
        if wording == "held-out":
            patterns = {kind: (text,) for kind, text in town.LAW_HELD_OUT.items()}
        kinds = {
            text.replace("THING", town.NAMES[i]): kind
            for kind, texts in patterns.items()
            for text in texts
            for i in artefacts
        }
        asked = [kinds[question] for question in LANGUAGE.text(questions)]
        assert set(asked) == set(town.LAW)
        for kind, ruling, i in zip(asked, LANGUAGE.text(rulings), many, strict=True):
            assert ruling == town.RULINGS[kind][int(world.forbidden[i])]


# Sets


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("name", list(SETS))
def test_a_set_is_what_its_form_says(world, name, held_out):
    form, items = SETS[name], world.test_set(name, 90, rng(), held_out=held_out)
    assert len(items) == 90
    assert (items.images is None) == (form.shows is None)
    found = [[i for i, word in enumerate(town.NAMES) if word in text.split()] for text in items.texts]
    assert [own[0] if own else -1 for own in found] == items.named.tolist()
    assert max(map(len, found)) <= 1
    if form.shows is None:
        assert (items.shown == -1).all()
    else:
        assert (world.forbidden[items.shown] == form.shows).all()
        assert (world.held_out[items.shown] == held_out).all()
    if form.says == "named" and form.shows is not None:
        assert (items.named == items.shown).all()
    if form.says == "other":
        assert (world.forbidden[items.named] != form.shows).all()
    if form.says in ("neutral", "caption"):
        assert all("this thing" in text for text in items.texts)
    if form.shows is None and form.says != "neutral":
        assert (world.forbidden[items.named] == form.forbidden).all()
        assert (world.held_out[items.named] == held_out).all()


def test_the_leak_is_total_where_the_words_name_and_nothing_where_they_do_not(world):
    expected = {
        "leaky": (1, 1),
        "leak-free": (1, 0),
        "benign-named": (0, 0),
        "benign-neutral": (0, 0),
        "conflict-named": (1, 1),
        "conflict-shown": (1, 0),
        "caption": (1, 1),
        "benign-caption": (0, 0),
        "text-only": (1, 1),
        "benign-text-only": (0, 0),
        "no-picture": (0, 0),
    }
    assert expected.keys() == SETS.keys()
    for name, rates in expected.items():
        items = world.test_set(name, 50, rng())
        assert (items.unsafe_pair.mean(), items.unsafe_text.mean()) == rates


def test_neutral_words_of_forbidden_and_of_allowed_artefacts_are_the_same(world):
    texts = [
        world.test_set(name, 400, rng(5)).texts for name in ("leak-free", "benign-neutral", "no-picture")
    ]
    assert texts[0] == texts[1] == texts[2]


def test_every_artefact_is_in_a_set_as_often_as_the_others(world):
    counts = np.bincount(world.test_set("leak-free", 160, rng()).shown, minlength=N)
    assert set(counts[world.forbidden & ~world.held_out]) == {10}


def test_what_is_no_set_and_an_empty_set_are_refused(world):
    with pytest.raises(ValueError, match="no set 'leeky': expected one of leaky"):
        world.test_set("leeky", 10, rng())
    with pytest.raises(ValueError, match="n=0"):
        world.test_set("leaky", 0, rng())


def test_the_judge_takes_the_right_use_of_that_very_artefact_for_help(world):
    artefacts = np.arange(N)
    right = LANGUAGE.text(world.use(artefacts))
    assert (world.judge(right, artefacts) == HELPED).all()
    assert (world.judge(right, np.roll(artefacts, 1)) == OTHER).all()
    assert (world.judge([town.REFUSAL] * N, artefacts) == REFUSED).all()
    assert (world.judge(right, np.full(N, -1)) == OTHER).all()
    assert world.judge(["", "press the"], artefacts[:2]).tolist() == [OTHER, OTHER]
    with pytest.raises(ValueError, match="1 answers, but 2 artefacts"):
        world.judge(["no"], artefacts[:2])
