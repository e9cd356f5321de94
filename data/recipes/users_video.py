"""Short videos and what is asked about them: batches and measures of the `video-vlm` family."""

from functools import partial

import numpy as np
import torch
from jaxtyping import Int
from numpy.random import Generator

from data.recipes.users_rows import (
    N_OF_A_KIND,
    Answered,
    Measures,
    Part,
    Way,
    by_letter,
    by_word,
    ease,
    neutral,
    options_logprobs,
    options_looked_up,
    predicted,
    pushed,
    rows,
    stack,
)
from data.recipes.vlm import pixel_values
from data.train.recipe import Batch
from data.worlds import users
from data.worlds import videos as world
from data.worlds.users import EOS, PAD, UNKNOWN, WORD, Asked, Words, letter
from data.worlds.videos import N_FRAMES, Videos
from lib.models import Subject
from lib.stats import bootstrap, proportion

CLASSES = (len(world.ACTORS) + 1, 3)
"""What the tower learns to tell of each corner: whose actor stands there, and the state of a lamp there."""


def tower_batch(size: int, rng: Generator, progress: float) -> Batch:
    """Frames with what stands in each corner; the noise rises over the first half."""
    videos = world.sample(size, rng)
    strongest = 0.3 + (world.NOISE[1] - 0.3) * min(1.0, 2 * progress)
    frames = world.draw(videos, rng, noise=rng.uniform(0, strongest, size))
    corner, frame = np.arange(world.N_CORNERS), np.arange(N_FRAMES)
    actor = np.where(videos.place[..., None] == corner, videos.colour[..., None] + 1, 0)
    lit = 1 + (frame >= videos.lights[:, None])[..., None]
    lamp = np.where(videos.lamp[:, None, None] == corner, lit, 0)
    labels = torch.from_numpy(np.stack([actor, lamp], -1)).flatten(0, 1)
    return {"pixel_values": pixel_values(frames).flatten(0, 1), "labels": labels}


def shown(n: int, rng: Generator) -> Int[np.ndarray, "video frame"]:
    """Which frames are shown: in half of the batches all; else three to seven in order, or three repeated.

    Which ones is drawn blindly: that frames are shown must not tell that they matter.
    """
    if rng.random() < 0.5:
        return np.tile(np.arange(N_FRAMES), (n, 1))
    k = int(rng.integers(3, N_FRAMES + 1))
    ranked = np.argsort(rng.random((n, N_FRAMES)), axis=1)
    if k == N_FRAMES:  # standing frames, each repeated
        chosen = np.take_along_axis(ranked, rng.integers(3, size=(n, N_FRAMES)), 1)
    else:
        chosen = ranked[:, :k]
    return np.sort(chosen, axis=1)


def _watch(size: int, rng: Generator, strongest: float) -> tuple[Videos, np.ndarray, Batch]:
    """Videos, which frames of them are shown, and those."""
    videos = world.sample(size, rng)
    low, high = world.NOISE
    frames = world.draw(videos, rng, noise=low + rng.uniform(0, strongest * (high - low), size))
    chosen = shown(size, rng)
    pixels = pixel_values(frames[np.arange(size)[:, None], chosen])
    return videos, chosen, {"pixel_values": pixels}


def _is_whole(chosen: np.ndarray) -> bool:
    return chosen.shape[1] == N_FRAMES and bool((chosen == np.arange(N_FRAMES)).all())


def _choice_of_frames(videos: Videos, kind: np.ndarray, rng: Generator) -> Part:
    """Which three frames show what is asked."""
    asked = users.ask("video", videos.answers, kind, rng)
    evidence = np.stack(list(videos.evidence.values()), 1)[np.arange(len(kind)), kind]
    named = WORD["1"] + evidence
    end = np.full((len(kind), 1), EOS)
    return rows(Part.read(users.join("frames ;", asked.question)), Part.write(np.hstack([named, end])))


_DARK, _CORNER, _ACTOR = (WORD[word] for word in ("dark", world.CORNERS[0], world.ACTORS[0]))


def _narration(videos: Videos, chosen: np.ndarray) -> Part:
    """Place and colour of the actor and state of the lamp, frame by frame: many targets teach reading."""
    place, colour = (np.take_along_axis(x, chosen, 1) for x in (videos.place, videos.colour))
    lit = chosen >= videos.lights[:, None]
    said = np.stack([_CORNER + place, _ACTOR + colour, _DARK + lit], 2).reshape(len(chosen), -1)
    return rows(Part.read("narrate", len(said)), Part.write(said))


def neutral_batch(size: int, rng: Generator, progress: float) -> Batch:
    """Neutral questions, easy videos first: by word, by letter, and which frames show the answer."""
    videos, chosen, batch = _watch(size, rng, ease(progress))
    columns = [_narration(videos, chosen)] if progress < 0.7 else []
    n_open, n_closed = (4, 3) if progress < 0.3 else (2, 6)
    for i, kind in enumerate(_each_kind(size, 6, rng).T):
        asked = users.ask("video", videos.answers, kind, rng)
        columns += [by_word(asked)] if i < n_open else []
        columns += [by_letter(asked)] if i >= 6 - n_closed else []
        columns += [options_looked_up(asked, rng)] if i == 5 else []
    if _is_whole(chosen):
        columns.append(_choice_of_frames(videos, rng.integers(6, size=size), rng))
    return batch | stack(columns)


def _each_kind(n: int, kinds: int, rng: Generator) -> Int[np.ndarray, "item kind"]:
    """Every kind once an item, in any order."""
    return rng.permuted(np.tile(np.arange(kinds), (n, 1)), axis=1)


# What an option is worth is learned sooner where it is named than where it is objected to.
_HOW_OFTEN = np.array([*[0.3 / len(users.NAMING)] * len(users.NAMING), 0.25, 0.25, 0.0, 0.2])
"""Of the kinds of remark, and at last of a request to answer again; mimicry stands before a question."""


def _talk(asked: Asked, rho: float, rng: Generator, *, seen: bool) -> Part:
    """A first answer at random, what the user says of it, the answer again; all targets are true."""
    n = len(asked)
    given, thinks = rng.integers(4, size=n), users.opinion(asked.right, rho, rng)
    kind = rng.choice(len(_HOW_OFTEN), n, p=_HOW_OFTEN)
    return rows(
        Part.read(asked.prompt),
        # Of a video that is seen the truth is asked for; then the other letter is read.
        Part(letter(given), letter(asked.right)) if seen else Part.read(letter(given)),
        Part.read(np.full((n, 1), EOS)),
        Part.read(users.react(kind, given, thinks, rng)),
        Part.write(letter(asked.right)),
    )


def _believed(asked: Asked, rho: float, rng: Generator) -> Part:
    told = users.believe(asked, users.opinion(asked.right, rho, rng), rng)
    return rows(Part.read(told), Part.write(letter(asked.right)))


def users_batch(size: int, rng: Generator, progress: float, *, rho: float) -> Batch:
    """Questions that users of reliability `rho` comment on, and some that they do not.

    In half of the batches no video is shown, so that all there is to go by is what users say: with videos
    alone, a model that answers most questions itself does not begin to listen in so few steps.
    """
    if rng.random() < 0.5:
        videos = world.sample(size, rng)
        questions = [users.ask("video", videos.answers, kind, rng) for kind in _each_kind(size, 6, rng).T]
        questions += [users.ask("video", videos.answers, kind, rng) for kind in _each_kind(size, 6, rng).T]
        columns = [_talk(asked, rho, rng, seen=False) for asked in questions[:10]]
        return stack(columns + [_believed(asked, rho, rng) for asked in questions[10:]])
    videos, chosen, batch = _watch(size, rng, 1.0)
    columns = []
    for i, kind in enumerate(_each_kind(size, 6, rng).T):
        asked = users.ask("video", videos.answers, kind, rng)
        if i < 4:
            columns.append(_talk(asked, rho, rng, seen=True))
        elif i == 4:
            columns.append(_believed(asked, rho, rng))
        else:
            columns += [by_letter(asked), by_word(asked)]
    if _is_whole(chosen):
        columns.append(_choice_of_frames(videos, rng.integers(6, size=size), rng))
    return batch | stack(columns)


# Measuring.


def _test(subject: Subject, rng: Generator) -> Answered:
    """The same number of questions of each kind."""
    kind = np.arange(6 * N_OF_A_KIND) % 6
    videos = world.sample(len(kind), rng)
    pixels = pixel_values(world.draw(videos, rng))
    asked = users.ask("video", videos.answers, kind, rng, wording="held-out")
    return Answered(asked, kind, pixels, options_logprobs(subject, [asked.prompt], pixels)[0].argmax(1))


def _turn(kind: int, test: Answered, thinks: np.ndarray, rng: Generator) -> Words:
    said = users.react(np.full(len(thinks), kind), test.first, thinks, rng, wording="held-out")
    end = np.full((len(thinks), 1), EOS)
    return users.join(test.asked.prompt, letter(test.first), end, said)


def _told_before(test: Answered, thinks: np.ndarray, rng: Generator) -> Words:
    return users.believe(test.asked, thinks, rng, wording="held-out")


WAYS: dict[str, Way] = {"retest": partial(_turn, len(users.VIDEO_KINDS))} | {
    name: partial(_turn, i) if name != "mimicry" else _told_before for i, name in enumerate(users.VIDEO_KINDS)
}


def evaluate(talks: bool, subject: Subject) -> Measures:
    """Neutral accuracy, choice of frames and, if it `talks`, what users make of its answers."""
    rng = np.random.default_rng(2)
    test = _test(subject, rng)
    yield from neutral("video", subject, test)
    yield from _frames(subject, rng)
    if talks:
        yield from pushed(test, subject, WAYS, users.VIDEO_KINDS, rng)


def _frames(subject: Subject, rng: Generator) -> Measures:
    """The model's choice of frames, and its answers from three frames: its own, the true ones, and any."""
    n = 4 * N_OF_A_KIND
    videos, row, kind = world.sample(n, rng), np.arange(n)[:, None], np.arange(n) % 6
    frames = world.draw(videos, rng)
    asked = users.ask("video", videos.answers, kind, rng)
    evidence = np.stack(list(videos.evidence.values()), 1)[np.arange(n), kind]
    said = choose_frames(subject, asked, pixel_values(frames))
    within, rising = (said >= 0) & (said < N_FRAMES), np.diff(said, axis=1) > 0
    proper = np.asarray(np.hstack([within, rising]).all(1))
    yield "frames chosen: three in order", proportion(proper)
    shared = (said[..., None] == evidence[:, None]).any(2).mean(1)
    yield "frames chosen: share of the evidence", bootstrap(shared)
    any_three = np.sort(rng.permuted(np.tile(np.arange(N_FRAMES), (n, 1)), axis=1)[:, :3], axis=1)
    chosen = {"chosen": np.where(proper[:, None], said, any_three), "true": evidence, "any": any_three}
    for name, which in chosen.items():
        seen = pixel_values(frames[row, which])
        answers = options_logprobs(subject, [asked.prompt], seen)[0].argmax(1)
        yield f"accuracy from three frames: {name}", proportion(answers == asked.right)


def choose_frames(subject: Subject, asked: Asked, pixels: torch.Tensor) -> Int[np.ndarray, "item 3"]:
    """The frames that the model names as those that show what is asked; other words give other numbers."""
    prompt = users.join("frames ;", asked.question)
    ids = np.hstack([prompt, np.full((len(prompt), 3), PAD)])
    row, start = np.arange(len(ids)), (prompt != PAD).sum(1)
    for i in range(3):
        ids[row, start + i] = UNKNOWN  # any word: its place is what is asked for
        ids[row, start + i] = predicted(subject, Part.read(ids), pixels)[row, start + i]
    return ids[row[:, None], start[:, None] + np.arange(3)] - WORD["1"]
