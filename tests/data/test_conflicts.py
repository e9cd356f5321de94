"""The world of two witnesses: sentences are as true as they should be, and test items are what they claim."""

import numpy as np
import pytest

from data.worlds import conflicts as world
from data.worlds.scene_words import ENTITIES, PAD, WORD
from data.worlds.scenes import COLOURS, OBJECTS

ITEMS = world.conflicts(160, np.random.default_rng(0))


def test_sentences_are_true_as_often_as_their_tier_says_and_err_evenly() -> None:
    rng, n = np.random.default_rng(0), 40_000
    true = rng.integers(6, size=n)
    for tier, p in enumerate(world.RELIABILITY):
        stated = world.testimony(true, np.full(n, tier), rng)
        shift = np.bincount((stated - true) % 6, minlength=6) / n
        expected = np.array([p] + [(1 - p) / 5] * 5)
        assert (abs(shift - expected) < 5 * np.sqrt(expected * (1 - expected) / n)).all()


def test_sentences_say_what_they_should_in_each_form() -> None:
    rng = np.random.default_rng(1)
    about, stated, tier = np.array([5, 5]), np.array([2, 2]), np.array([0, 3])
    told = world.sentences(about, stated, tier, rng, form="told")
    assert world.words.text(told[0]) == "the star is blue ;"
    assert world.words.text(told[1]) == "the star is perhaps blue ;"
    shown = np.ones((2, len(OBJECTS)), bool)
    shown[:, 7] = False
    same = world.sentences(about, stated, tier, rng, form="same", shown=shown)
    assert world.words.text(same[1]) == "the star is like the bar ; the bar is perhaps blue ;"
    entity = world.sentences(about, stated, np.array([3, 1]), rng, form="entity")
    named = entity[:, 4] - WORD[ENTITIES[0]]
    assert (named // 12 + 1).tolist() == [3, 1]
    assert (named // 2 % 6).tolist() == [2, 2]
    with pytest.raises(ValueError, match="form='entity' and tier 0"):
        world.sentences(about, stated, tier, rng, form="entity")


def test_scenes_have_as_many_different_objects_as_asked_for() -> None:
    count = np.arange(17).repeat(5)
    scenes = world.gather(count, np.random.default_rng(2))
    np.testing.assert_array_equal((scenes.objects >= 0).sum(1), count)
    np.testing.assert_array_equal(scenes.present.sum(1), count)
    np.testing.assert_array_equal(scenes.objects >= 0, scenes.colours >= 0)


def test_image_and_sentence_name_different_colours_which_no_other_object_has() -> None:
    row = np.arange(160)
    assert (ITEMS.seen != ITEMS.told).all()
    np.testing.assert_array_equal(ITEMS.scenes.colour_of[row, ITEMS.about], ITEMS.seen)
    others = ITEMS.scenes.colour_of.copy()
    others[row, ITEMS.about] = -1
    assert not ((others == ITEMS.seen[:, None]) | (others == ITEMS.told[:, None])).any()
    counts = np.array([look.distractors for look in world.VISUAL_TIERS])[ITEMS.visual_tier] + 1
    np.testing.assert_array_equal(ITEMS.scenes.present.sum(1), counts)


def test_texts_name_the_object_and_the_told_colour_and_the_unrelated_ones_only_another_object() -> None:
    colours, objects = list(COLOURS), set(OBJECTS)
    for item, (text, unrelated) in enumerate(zip(ITEMS.texts, ITEMS.unrelated_texts, strict=True)):
        image, words = ITEMS.image[item], text.split()
        name = OBJECTS[ITEMS.about[image]]
        assert words[1] == name == words[-1]
        assert ITEMS.questions[image] == text.split("; ")[-1]
        if ITEMS.form[item] != "entity":
            assert colours[ITEMS.told[image]] in words
        changed = [(a, b) for a, b in zip(words, unrelated.split(), strict=True) if a != b]
        assert [a for a, _ in changed] == [name]
        assert OBJECTS.index(changed[0][1]) not in np.nonzero(ITEMS.scenes.present[image])[0]
        compared = {w for w in words if w in objects} - {name}
        assert not compared & {OBJECTS[k] for k in np.nonzero(ITEMS.scenes.present[image])[0]}


def test_every_image_gets_sentences_of_different_tiers_and_all_tiers_come_equally_often() -> None:
    tiers = ITEMS.text_tier.reshape(160, 3)
    assert all(len(set(row)) == 3 for row in tiers.tolist())
    np.testing.assert_array_equal(np.bincount(ITEMS.visual_tier), [20] * 8)
    assert {form for form, tier in zip(ITEMS.form, ITEMS.text_tier, strict=True) if tier == 0} == {
        "told",
        "same",
    }
    assert (ITEMS.sentence[np.array(ITEMS.form) == "entity"][:, 6:] == PAD).all()


def test_the_same_seed_gives_the_same_items_and_impossible_numbers_are_named() -> None:
    again = world.conflicts(160, np.random.default_rng(0))
    np.testing.assert_array_equal(again.images, ITEMS.images)
    assert again.texts == ITEMS.texts
    with pytest.raises(ValueError, match="n_texts=6: an image gets 1 to 5 sentences"):
        world.conflicts(8, np.random.default_rng(0), n_texts=6)
