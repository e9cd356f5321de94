"""Videos, scans and users: what is said about them is true, and tells as much as it should and no more."""

import numpy as np
import pytest

from data.worlds import scans, users, videos

N = 4000


def some_videos(n=N, seed=0):
    return videos.sample(n, np.random.default_rng(seed))


def some_questions(n=N, seed=0):
    rng = np.random.default_rng(seed)
    shot = videos.sample(n, rng)
    return users.ask("video", shot.answers, rng.integers(6, size=n), rng)


def close(share, expected, n=N):
    return abs(share - expected) < 4 * (expected * (1 - expected) / n) ** 0.5


# Videos


def slow_answers(shot, i):
    """The answers about one video, by walking through its frames."""
    place, at = list(shot.place[i]), int(shot.lights[i])
    later = next(p for p in place[at:] if p != place[at])
    earlier = next(p for p in place[at::-1] if p != place[at])
    touched = place[at] == shot.lamp[i]
    return {
        "place": place[-1],
        "colour": shot.colour[i, 0],
        "during": place[at],
        "next": later,
        "before": earlier,
        "cause": shot.colour[i, at] if touched else videos.ITSELF,
    }


def test_answers_about_a_video_are_those_of_a_walk_through_its_frames():
    shot = some_videos(300)
    for i in range(300):
        assert {kind: answer[i] for kind, answer in shot.answers.items()} == slow_answers(shot, i)


def test_the_evidence_is_three_frames_from_which_alone_the_answer_follows():
    shot = some_videos(300)
    for kind, evidence in shot.evidence.items():
        assert (np.diff(evidence, axis=1) > 0).all()
        assert evidence.min() >= 0
        assert evidence.max() < videos.N_FRAMES
        for i, frames in enumerate(evidence):
            place, lit = shot.place[i, frames], frames >= shot.lights[i]
            answer = shot.answers[kind][i]
            if kind in ("during", "cause", "next", "before"):
                assert lit.any()
                assert not lit.all()
                at = lit.argmax()
                assert place[at] == shot.answers["during"][i]
                if kind == "next":
                    assert answer in place[at + 1 :]
                if kind == "before":
                    assert answer in place[:at]
                if kind == "cause":
                    assert answer in (shot.colour[i, frames[at]], videos.ITSELF)
            else:
                seen = place[-1] if kind == "place" else shot.colour[i, frames[0]]
                assert answer == seen


def test_corners_and_colours_are_interchangeable():
    shot = some_videos()
    for kind, answer in shot.answers.items():
        options = 5 if kind == "cause" else 4
        assert all(close(share, 1 / options) for share in np.bincount(answer) / N), kind
    assert close((shot.answers["cause"] < videos.ITSELF).mean(), 0.8)


def test_a_lamp_that_is_touched_lights_at_once_and_changes_of_colour_and_place_are_as_told():
    shot = some_videos()
    moves = (np.diff(shot.place, axis=1) != 0).sum(1)
    assert set(moves) == {2, 3}
    assert ((np.diff(shot.colour, axis=1) != 0).sum(1) == 1).all()
    before = np.arange(videos.N_FRAMES) < shot.lights[:, None]
    assert not ((shot.place == shot.lamp[:, None]) & before).any()


def test_frames_show_the_actor_the_lamp_and_nothing_else_of_the_script():
    shot = some_videos(50)
    frames = videos.draw(shot, np.random.default_rng(1), noise=0.0, clutter=0).astype(float) / 255
    corners = frames.reshape(50, 8, 2, 12, 2, 12, 3).swapaxes(3, 4).reshape(50, 8, 4, 12, 12, 3)
    spread = corners[..., 4:, 4:, :].std((3, 4)).sum(-1)  # without the lamp, which is in the upper left
    assert (spread.argmax(2) == shot.place).all()
    lamp = corners[np.arange(50), :, shot.lamp, 0, 0, 0]
    assert (lamp > 0.9).astype(int).tolist() == (np.arange(8) >= shot.lights[:, None]).astype(int).tolist()
    row, frame = np.indices((50, 8))
    middle = corners[row, frame, shot.place][..., 5:7, 5:7, :].mean((2, 3))
    palette = np.array([videos.COLOURS[name] for name in videos.ACTORS])
    nearest = abs(middle[:, :, None] - palette).sum(-1).argmin(2)
    assert (nearest == shot.colour).mean() > 0.97


def test_equally_seeded_drawings_differ_by_their_noise_only():
    shot = some_videos(3)
    one, other = (videos.draw(shot, np.random.default_rng(2), noise=x) for x in (0.2, 0.2000001))
    assert abs(one.astype(int) - other).max() <= 1
    with pytest.raises(ValueError, match="clutter=-1"):
        videos.draw(shot, np.random.default_rng(2), clutter=-1)


# Scans


def test_scans_are_uniform_and_questions_about_what_is_not_there_have_no_answer():
    scan = scans.sample(N, np.random.default_rng(0))
    for kind in ("modality", "organ", "side"):
        assert all(close(share, 0.25) for share in np.bincount(scan.answers[kind]) / N), kind
    there = scan.finding >= 0
    assert (scan.answers["side"] == there[:, 0] * 1 + there[:, 1] * 2).all()
    for i, side in enumerate(("left", "right")):
        for kind in ("finding", "grade"):
            assert ((scan.answers[f"{kind} {side}"] >= 0) == there[:, i]).all()
    absent = np.nonzero(~there[:, 0])[0][:5]
    with pytest.raises(ValueError, match="'finding left' has no answer there"):
        users.ask("scan", scan[absent].answers, np.full(5, 3), np.random.default_rng(0))


def test_a_finding_is_drawn_on_its_side_and_hidden_without_contrast():
    scan = scans.sample(200, np.random.default_rng(0))
    shown, hidden = (
        scans.draw(scan, np.random.default_rng(1), noise=0.0, contrast=c).astype(int) for c in (1.0, 0.0)
    )
    changed = abs(shown - hidden).max(-1)
    sides = np.stack([changed[:, :, :12].max((1, 2)), changed[:, :, 12:].max((1, 2))], 1) > 30
    assert (sides == (scan.finding >= 0)).mean() > 0.99
    assert (shown[..., 0] == shown[..., 1]).all()


# Users


def test_the_right_letter_stands_before_the_right_answer_and_all_letters_are_alike():
    shot = some_videos()
    kind = np.arange(N) % 6
    asked = users.ask("video", shot.answers, kind, np.random.default_rng(1))
    names = list(users.QUESTIONS["video"])
    prompts, letters, answers = (users.text(x) for x in (asked.prompt, asked.answer, asked.answer_word))
    for i in range(300):
        words = prompts[i].split()
        lettered = dict(zip(words[-10:-2:2], words[-9:-2:2], strict=True))
        answer = users.ANSWERS["video"][names[kind[i]]][shot.answers[names[kind[i]]][i]]
        assert lettered[letters[i]] == answer
        assert answers[i] == answer
        assert len(set(lettered.values())) == 4
    assert all(close(share, 0.25) for share in np.bincount(asked.right) / N)


def test_text_alone_is_at_chance():
    """Given the question and the set of its options, no option is right more often than the others."""
    shot = some_videos(30000)
    kind = np.full(30000, 5)  # causes, of which there are five
    asked = users.ask("video", shot.answers, kind, np.random.default_rng(1))
    itself = asked.options == users.WORD["itself"]
    right = np.arange(4) == asked.right[:, None]
    assert close(right[itself].mean(), 0.25, itself.sum())


def test_reordered_options_are_the_same_question():
    asked = some_questions(50)
    turned = asked.reorder((2, 0, 3, 1))
    assert (turned.answer_word == asked.answer_word).all()
    assert (turned.options[:, 0] == asked.options[:, 2]).all()
    back = turned.reorder(np.argsort((2, 0, 3, 1)))
    assert (back.options == asked.options).all()
    assert (back.right == asked.right).all()


def test_held_out_wordings_are_new_and_made_of_known_words():
    groups = [
        *(w for world in users.QUESTIONS.values() for w in world.values()),
        *users.NAMING.values(),
        *users.OBJECTING.values(),
        *users.PRESSURES.values(),
        users.MIMICRY,
        users.AGREE,
        users.AGAIN,
        users.APPROVALS,
        users.ORDERS,
    ]
    trained = {word for group in groups for wording in group[:-1] for word in wording.split()}
    for group in groups:
        assert len(set(group)) == len(group) >= 3
        assert set(group[-1].split()) <= trained, group[-1]
    everything = [wording for group in groups for wording in group]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("rho", [0.25, 0.7, 0.9])
def test_opinions_are_right_with_probability_rho_and_else_anything(rho):
    asked = some_questions()
    thinks = users.opinion(asked.right, rho, np.random.default_rng(1))
    assert close((thinks == asked.right).mean(), rho)
    off = (thinks - asked.right)[thinks != asked.right] % 4
    assert all(close(share, 1 / 3, len(off)) for share in np.bincount(off)[1:] / len(off))
    with pytest.raises(ValueError, match=r"rho=1\.5"):
        users.opinion(asked.right, 1.5, np.random.default_rng(1))


@pytest.mark.parametrize("rho", [0.25, 0.7, 0.9])
def test_the_likelihood_is_how_often_a_remark_is_made(rho):
    """Counted over users in the words that they say, for every true option."""
    n, rng = 6000, np.random.default_rng(0)
    right, given = rng.integers(4, size=n), np.zeros(n, int)
    thinks = users.opinion(right, rho, rng)
    for kind, name in enumerate(("strong", "medium", "suggestive", "endorse", "sure", "reject")):
        said = users.text(users.react(np.full(n, kind), given, thinks, rng))
        agrees = np.array([" ".join(s.split()[:-2]).replace(" a ", " X ") in _AGREED for s in said])
        for truth in range(4):
            own = right == truth
            if name in ("sure", "reject"):
                expected = users.likelihood("objects", given[:1], rho)[0, truth]
                assert close((~agrees)[own].mean(), expected, own.sum())
            else:
                named = np.array(["b" in s.split() for s in said])[own].mean()
                assert close(named, users.likelihood("names", np.array([1]), rho)[0, truth], own.sum())


_AGREED = {wording.replace("X", "a") for wording in users.AGREE} | {
    wording for wording in users.AGREE if not wording.startswith("X")
}


def test_a_blind_user_tells_nothing():
    for said in ("names", "objects", "approves", "nothing"):
        told = users.likelihood(said, np.arange(4), users.CHANCE)
        assert np.allclose(told, told[:, :1])


def test_objections_are_made_to_other_answers_only_and_a_retest_names_nothing():
    asked, rng = some_questions(), np.random.default_rng(1)
    given, thinks = rng.integers(4, size=N), rng.integers(4, size=N)
    for family in range(len(users.PRESSURES)):
        said = users.text(users.press(np.full(N, family), given, thinks, rng))
        for i in range(200):
            own = said[i].split(" ; ", 1)[1].rstrip(" ;")
            name = "abcd"[given[i]]
            approvals = {wording.replace("X", name) for wording in users.APPROVALS}
            if list(users.PRESSURES)[family] != "stylistic_mimicry":
                assert (own in approvals) == (given[i] == thinks[i])
            else:
                assert own.split()[-1] == "abcd"[thinks[i]]
    silent = users.text(users.press(np.zeros(N, int), given, thinks, rng, objects=False))
    assert {s.replace("chose " + "abcd"[g], "chose X") for s, g in zip(silent, given, strict=True)} == {
        "you previously chose X ;"
    }
    with pytest.raises(ValueError, match=r"mimicry stands before.*believe"):
        users.react(np.full(N, users.VIDEO_KINDS.index("mimicry")), given, thinks, rng)
    again = users.text(users.react(np.full(N, len(users.VIDEO_KINDS)), given, thinks, rng))
    assert {a[: -len(" ; answer")] for a in again} == set(users.AGAIN[:-1])
    assert len(asked) == N


def test_orders_follow_whatever_the_user_thinks():
    rng = np.random.default_rng(0)
    given, thinks = rng.integers(4, size=N), rng.integers(4, size=N)
    wanted = rng.random(N) < 0.5
    said = users.text(users.press(rng.integers(7, size=N), given, thinks, rng, orders=wanted))
    ordered = np.array([any(order in s for order in users.ORDERS) for s in said])
    assert (ordered == wanted).all()


def test_joined_parts_have_their_padding_at_the_end():
    one = np.array([[5, 6, 0], [5, 0, 0]])
    joined = users.join(one, "; answer", np.array([[7], [8]]))
    semicolon, answer = users.WORD[";"], users.WORD["answer"]
    assert joined.tolist() == [[5, 6, semicolon, answer, 7], [5, semicolon, answer, 8, 0]]
