"""The world of scenes: what the pixels and the words say is what stands there."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from data.worlds.scene_words import (
    CERTAINTY,
    ENTITIES,
    PAD,
    WORD,
    WORDINGS,
    ask,
    captions,
    chair,
    pages,
    state,
    text,
)
from data.worlds.scenes import (
    CELL_OF_PATCH,
    CELLS,
    COLOURS,
    DIGITS,
    GLYPHS,
    HELD_OUT,
    OBJECTS,
    PARTNER,
    RATE,
    Scenes,
    crowd,
    draw,
    sample,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def by_cell(images):
    return images.reshape(-1, 4, 16, 4, 16, 3).swapaxes(2, 3).reshape(-1, 16, 16, 16, 3)


def colours_of(objects):
    return np.where(np.array(objects) >= 0, 0, -1)


# What stands where


def test_equal_seeds_give_equal_scenes_images_and_questions():
    first, second = ([sample(20, r), r] for r in (rng(), rng()))
    assert (first[0].objects == second[0].objects).all()
    assert (draw(*first) == draw(*second)).all()
    assert (ask("colour", *first).prompt == ask("colour", *second).prompt).all()
    assert (sample(20, rng(1)).objects != first[0].objects).any()


def test_no_kind_of_object_stands_twice_and_their_number_follows_the_pairs():
    scenes = sample(500, rng(), pairs=(2, 4), distractors=2)
    n = (scenes.objects >= 0).sum(1)
    assert (scenes.present.sum(1) == n).all()
    assert n.min() >= 2 + 2
    assert n.max() <= 2 * 4 + 2
    assert ((scenes.colours >= 0) == (scenes.objects >= 0)).all()


@pytest.mark.parametrize("rate", [0.0, 0.5, RATE, 1.0])
def test_both_partners_are_there_as_often_as_the_rate_says(rate):
    present = sample(3000, rng(), rate=rate).present
    both, one = (present & present[:, PARTNER]).sum() / 2, (present ^ present[:, PARTNER]).sum() / 2
    assert both / (both + one) == pytest.approx(rate, abs=0.02)


def test_distractors_come_without_their_partners():
    scenes = sample(200, rng(), pairs=(0, 0), distractors=5)
    assert (scenes.present.sum(1) == 5).all()
    assert (scenes.missing.sum(1) == 5).all()


def test_without_a_rate_a_partner_is_no_likelier_than_another_object():
    scenes = sample(5000, rng(), rate=None)
    together = (scenes.present.T.astype(int) @ scenes.present) / len(scenes)
    with_partner = together[np.arange(18), PARTNER].mean()
    with_any = together[~np.eye(18, dtype=bool)].mean()
    assert with_partner == pytest.approx(with_any, rel=0.1)
    assert scenes.present.sum() == pytest.approx(sample(5000, rng(1)).present.sum(), rel=0.03)


def test_cells_objects_and_their_places_agree():
    scenes = sample(200, rng())
    for row, kind in zip(*np.nonzero(scenes.present), strict=True):
        cell = scenes.cell_of[row, kind]
        assert scenes.objects[row, cell] == kind
        assert scenes.colours[row, cell] == scenes.colour_of[row, kind]
    assert (scenes.colour_of[~scenes.present] == -1).all()


def test_held_out_combinations_occur_only_where_they_are_asked_for():
    for scenes in (sample(1000, rng()), crowd(300, rng())):
        there = scenes.objects >= 0
        assert not HELD_OUT[scenes.objects[there], scenes.colours[there]].any()
    scenes = sample(1000, rng(), combinations="held-out")
    able = (scenes.objects >= 0) & HELD_OUT.any(1)[scenes.objects]
    assert HELD_OUT[scenes.objects[able], scenes.colours[able]].all()
    assert HELD_OUT.sum() == 12


def test_more_objects_than_the_grid_can_hold_are_refused():
    with pytest.raises(ValueError, match=r"pairs=\(1, 6\).*16 cells"):
        sample(1, rng(), pairs=(1, 6), distractors=5)


# What is seen


def test_a_clean_image_shows_objects_in_their_colours_where_they_stand_and_nothing_elsewhere():
    scenes = sample(300, rng())
    cells = by_cell(draw(scenes, rng())).astype(float) / 255
    ground = cells[:, :, :1, :1].min(1, keepdims=True).min(-1, keepdims=True)
    strength = abs(cells - ground).max(-1)
    filled = scenes.objects >= 0
    assert strength[~filled].max() == pytest.approx(0, abs=1e-6)
    assert strength[filled].max((1, 2)).min() > 0.3
    strongest = strength[filled].reshape(filled.sum(), -1).argmax(1)
    pixels = cells[filled].reshape(filled.sum(), -1, 3)[np.arange(filled.sum()), strongest]
    palette = np.array(list(COLOURS.values()))
    nearest = ((pixels[:, None] - palette) ** 2).sum(-1).argmin(1)
    assert (
        nearest == scenes.colours[filled]
    ).mean() > 0.98  # a faint digit's colour is mixed with the ground


def test_objects_can_be_told_apart_by_their_pixels_on_unseen_digit_images():
    def ink(split, seed):
        scenes = crowd(150, rng(seed))
        cells = by_cell(draw(scenes, rng(seed + 1), split=split)).astype(float)
        strength = cells.max(-1) - cells[:, :, :1, :1].min(-1)
        return strength.reshape(-1, 256) / strength.max((2, 3)).reshape(-1, 1), scenes.objects.ravel()

    model = KNeighborsClassifier(3).fit(*ink("train", 0))
    assert model.score(*ink("test", 10)) > 0.85


def test_splits_differ_in_their_digits_and_in_nothing_else():
    scenes = crowd(50, rng())
    train, test = (by_cell(draw(scenes, rng(1), split=split)) for split in ("train", "test"))
    is_digit = scenes.objects >= len(GLYPHS)
    assert (train == test).all((2, 3, 4))[~is_digit].all()
    assert not (train == test).all((2, 3, 4))[is_digit].any()
    with pytest.raises(ValueError, match="split='all'"):
        draw(scenes, rng(), split="all")


@pytest.mark.parametrize(
    ("knob", "doses"),
    [
        ("noise", (0, 0.05, 0.1, 0.2, 0.4)),
        ("cell_noise", (0, 0.2, 0.4, 0.8)),
        ("colour_noise", (0, 0.05, 0.1, 0.2)),
        ("occlusion", (0, 0.2, 0.4, 0.7, 1)),
        ("contrast", (1, 0.7, 0.4, 0.1, 0)),
    ],
)
def test_a_higher_dose_takes_every_image_farther_from_the_clean_one(knob, doses):
    scenes = sample(40, rng())
    images = [draw(scenes, rng(1), **{knob: dose}).astype(float) for dose in doses]
    distance = np.array([np.sqrt(((image - images[0]) ** 2).mean((1, 2, 3))) for image in images])
    assert (np.diff(distance, axis=0) > 0).all()


def test_doses_can_differ_by_scene_and_by_cell():
    scenes = sample(2, rng())
    clean, noise = draw(scenes, rng(1)), np.zeros((2, 16))
    assert (draw(scenes, rng(1), noise=np.array([0, 0.3])) == clean).all((1, 2, 3)).tolist() == [True, False]
    noise[1, 5] = 0.5
    changed = (by_cell(draw(scenes, rng(1), cell_noise=noise)) != by_cell(clean)).any((2, 3, 4))
    assert np.argwhere(changed).tolist() == [[1, 5]]


def test_doses_for_objects_leave_empty_cells_alone():
    scenes = sample(30, rng())
    clean = by_cell(draw(scenes, rng(1)))
    for dose in ({"cell_noise": 0.5}, {"colour_noise": 0.3}, {"occlusion": 0.5}, {"contrast": 0.5}):
        changed = (by_cell(draw(scenes, rng(1), **dose)) != clean).any((2, 3, 4))
        assert (changed == (scenes.objects >= 0)).all(), dose


def test_a_board_covers_its_share_of_the_cell():
    scenes = crowd(20, rng())
    covered = (by_cell(draw(scenes, rng(1), occlusion=0.5)) == 128).all(-1).mean((2, 3))
    assert covered == pytest.approx(0.5, abs=0.02)


def test_patches_and_cells_lie_on_the_same_grid():
    objects = np.full((16, 16), -1)
    objects[np.arange(16), np.arange(16)] = OBJECTS.index("square")
    images = draw(Scenes(objects, colours_of(objects)), rng()).astype(float)
    patches = images.reshape(16, 8, 8, 8, 8, 3).swapaxes(2, 3).reshape(16, 64, -1)
    for cell in range(16):
        assert set(np.nonzero(patches[cell].std(-1) > 1)[0]) == set(np.nonzero(cell == CELL_OF_PATCH)[0])


# What is said


def truth(kind, scenes, row, about):
    """The answer, found the slow way: by walking over the grid."""
    grid = {
        (cell // 4, cell % 4): (OBJECTS[o], list(COLOURS)[c])
        for cell, (o, c) in enumerate(zip(scenes.objects[row], scenes.colours[row], strict=True))
        if o >= 0
    }
    if kind == "caption":
        return " ".join(" ".join(grid[place]) for place in sorted(grid))
    if kind == "count":
        return str(len(grid) if about == 6 else sum(c == list(COLOURS)[about] for _, c in grid.values()))
    place = next((place for place, (name, _) in grid.items() if name == OBJECTS[about]), None)
    if kind == "exists":
        return "yes" if place else "no"
    if place is None:
        return "nothing"
    if kind in ("right", "left"):
        beyond = range(place[1] + 1, 4) if kind == "right" else range(place[1] - 1, -1, -1)
        return next((grid[place[0], x][0] for x in beyond if (place[0], x) in grid), "nothing")
    return {"colour": grid[place][1], "where": "abcd"[place[1]] + str(place[0] + 1), "which": OBJECTS[about]}[
        kind
    ]


@pytest.mark.parametrize("kind", WORDINGS)
def test_answers_agree_with_the_scene(kind):
    scenes = sample(200, rng(), pairs=(1, 4))
    questions = ask(kind, scenes, rng(1))
    for row in range(len(scenes)):
        assert text(questions.answer[row]) == truth(kind, scenes, row, questions.about[row])


def test_what_is_not_there_is_nothing():
    empty = sample(50, rng(), pairs=(0, 0))
    for kind in ("colour", "where", "right", "left"):
        questions = ask(kind, empty, rng())
        assert {text(answer) for answer in questions.answer} == {"nothing"}
    assert {text(answer) for answer in ask("exists", empty, rng()).answer} == {"no"}
    assert text(captions(empty)[0]) == "nothing"


def test_half_of_the_questions_whether_something_is_there_are_about_something_absent():
    questions = ask("exists", sample(4000, rng()), rng(1))
    assert (questions.answer == WORD["yes"]).mean() == pytest.approx(0.5, abs=0.03)


def test_one_can_ask_about_chosen_objects():
    scenes = sample(100, rng(), rate=0)
    questions = ask("exists", scenes, rng(), about=scenes.missing.argmax(1))
    assert {text(answer) for answer in questions.answer} == {"no"}


def test_questions_end_with_what_they_are_about_and_held_out_wordings_are_new_but_of_known_words():
    scenes = sample(300, rng())
    seen = {word for wordings in WORDINGS.values() for wording in wordings[:-1] for word in wording.split()}
    for kind, wordings in WORDINGS.items():
        prompts = {
            wording: ask(kind, scenes, rng(), wording=wording).prompt for wording in ("train", "held-out")
        }
        skeletons = {
            wording: {text(row).replace(text(row[row != PAD][-1:]), "X") for row in rows}
            for wording, rows in prompts.items()
            if kind not in ("caption", "count", "which")
        }
        assert skeletons.get("train", set(wordings[:-1])) == set(wordings[:-1])
        assert skeletons.get("held-out", {wordings[-1]}) == {wordings[-1]}
        assert set(wordings[-1].split()) <= seen


@pytest.mark.parametrize("kind", ["which", "right", "left"])
def test_the_answer_is_one_of_four_different_options(kind):
    scenes = sample(300, rng())
    questions = ask(kind, scenes, rng(1), options=True)
    for prompt, answer in zip(questions.prompt, questions.answer, strict=True):
        choose, *four, colon = (text([word]) for word in prompt[:6])
        assert (choose, colon, len(set(four))) == ("choose", ":", 4)
        assert text(answer) in [*four, "nothing"]
    if kind == "which":
        options = questions.prompt[:, 1:5] - WORD[OBJECTS[0]]
        assert (np.take_along_axis(scenes.present, options, 1).sum(1) == 1).all()


def test_a_question_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"kind='size'.*exists, colour"):
        ask("size", sample(1, rng()), rng())
    with pytest.raises(ValueError, match="which, right and left have options"):
        ask("colour", sample(1, rng()), rng(), options=True)


def test_true_captions_have_no_hallucination_and_full_recall():
    scenes = sample(200, rng())
    counts = chair([text(caption) for caption in captions(scenes)], scenes)
    assert (counts.mentioned == counts.present).all()
    assert (counts.found == counts.present).all()
    assert (counts.hallucinated == 0).all()


def test_captions_are_scored_by_what_is_there():
    objects = np.full((1, 16), -1)
    objects[0, [2, 7]] = OBJECTS.index("disc"), OBJECTS.index("nine")
    scenes = Scenes(objects, colours_of(objects))
    counts = chair(["disc red cross blue disc red star moon unicorn"], scenes)
    assert [int(value[0]) for value in counts] == [5, 3, 1, 1, 2]


def test_pages_spell_the_cells_and_blur_some_objects():
    scenes = sample(100, rng())
    lines = pages(scenes, rng()).reshape(100, 8, 8, 2)
    fused = pages(scenes, rng(), form="fused").reshape(100, 8, 8, 2)
    for cell, (name, colour) in enumerate(zip(scenes.objects[0], scenes.colours[0], strict=True)):
        y, x = 2 * (cell // 4), 2 * (cell % 4)
        words = f"{list(COLOURS)[colour]} {OBJECTS[name]}" if name >= 0 else ". ."
        assert text(lines[0, y, x : x + 2, 0]) == text(lines[0, y + 1, x : x + 2, 0]) == words
        assert {text(place) for place in fused[0, y : y + 2, x : x + 2].reshape(4, 2)} == {words}
    assert (lines[..., 0] == lines[..., 1]).all()
    blurred = pages(scenes, rng(), form="fused", unreadable=0.3)[:, :, 1] == WORD["blur"]
    assert blurred.sum() / 4 / scenes.present.sum() == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize("form", ["told", "same", "entity"])
def test_facts_are_true_as_often_as_they_claim(form):
    generator, n = rng(), 20000
    about, colours = generator.integers(18, size=n), generator.integers(6, size=n)
    facts = state(about, colours, generator, form=form)
    for level, share in enumerate(CERTAINTY.values()):
        these = facts.certainty == level
        stated = facts.posterior[these].argmax(1)
        assert (stated == colours[these]).mean() == pytest.approx(share, abs=0.025)
        assert facts.posterior[these].max(1) == pytest.approx(share)
    assert facts.posterior.sum(1) == pytest.approx(1)
    said = [text(prompt) for prompt in facts.prompt[:50]]
    assert all(sentence.startswith(f"the {OBJECTS[o]} is") for sentence, o in zip(said, about, strict=False))


def test_an_entity_stands_for_one_main_colour_and_one_certainty():
    generator = rng()
    facts = state(
        np.zeros(5000, int), generator.integers(6, size=5000), generator, form="entity", certainty=[2] * 5000
    )
    entity = facts.prompt[:, 4] - WORD[ENTITIES[0]]
    meaning = {(int(e), int(p.argmax())) for e, p in zip(entity, facts.posterior, strict=True)}
    assert len(meaning) == len({e for e, _ in meaning}) == 12
    assert len(ENTITIES) == len(set(ENTITIES)) == 48


def test_no_word_has_two_meanings():
    names = [*OBJECTS, *COLOURS, *CELLS, *ENTITIES, *CERTAINTY]
    assert len(names) == len(set(names))
    assert set(DIGITS.values()) == set(range(10))
