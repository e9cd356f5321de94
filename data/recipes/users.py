"""Vision-language models that have learned, from true answers only, what a user's word is worth.

Two worlds, short videos and phantom scans (`data.worlds.videos`, `data.worlds.scans`). A *base* learns to see
and to answer; from it start variants that also read what users of reliability rho say (`data.worlds.users`).
They differ in rho alone.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration
from transformers.cache_utils import DynamicCache

from data.recipes import vlm
from data.recipes.vlm import LANGUAGE, pixel_values
from data.train.recipe import Batch, Recipe, Stage, read_card
from data.worlds import scans as scan_world
from data.worlds import users
from data.worlds import videos as video_world
from data.worlds.scans import Scans
from data.worlds.users import EOS, PAD, WORD, Asked, Words, letter
from data.worlds.videos import N_FRAMES, Videos
from lib.models import Subject, load
from lib.stats import Estimate, bootstrap, wilson

TOWER = 64
"""Width of the vision towers."""


# Training: what is asked about the same images reads them once.


class Part(NamedTuple):
    """A stretch of a sequence: what is read, and what is to be predicted in its place (`PAD`: nothing)."""

    ids: Words
    targets: Words

    @classmethod
    def read(cls, ids: Words | str, n: int = 1) -> "Part":
        """Something that is read only."""
        ids = users.join(np.zeros((n, 0), int), ids) if isinstance(ids, str) else ids
        return cls(ids, np.full_like(ids, PAD))

    @classmethod
    def write(cls, ids: Words) -> "Part":
        """Something that is to be predicted, and then read."""
        return cls(ids, ids)


def rows(*parts: Part) -> Part:
    """Parts behind one another, padding moved to the end."""
    ids, targets = np.hstack([part.ids for part in parts]), np.hstack([part.targets for part in parts])
    order = np.argsort(ids == PAD, axis=1, kind="stable")
    return Part(np.take_along_axis(ids, order, 1), np.take_along_axis(targets, order, 1))


def stack(columns: list[Part]) -> Batch:
    """One row an item from each of the columns: `ids` and `targets`, [item, column, word]."""
    longest = max(int((column.ids != PAD).sum(1).max()) for column in columns)
    shape = (len(columns[0].ids), len(columns), longest)
    ids, targets = np.full(shape, PAD), np.full(shape, PAD)
    for i, column in enumerate(columns):
        kept = column.ids[:, :longest]
        ids[:, i, : kept.shape[1]], targets[:, i, : kept.shape[1]] = kept, column.targets[:, :longest]
    return {"ids": torch.from_numpy(ids), "targets": torch.from_numpy(targets)}


def hidden_states(
    model: LlavaForConditionalGeneration,
    ids: Int[Tensor, "item row word"],
    pixels: Float[Tensor, "item image 3 side side"] | None,
) -> Float[Tensor, "item*row word width"]:
    """The language model's last states on each row, as if it alone stood behind BOS and the item's images.

    The images are read once an item; the rows read on from there.
    """
    embed, language = model.get_input_embeddings(), model.model.language_model
    prefix = embed(torch.full_like(ids[:, 0, :1], users.BOS))
    if pixels is not None:
        features = model.get_image_features(pixels.flatten(0, 1)).pooler_output
        prefix = torch.cat(
            [prefix, torch.stack(list(features)).unflatten(0, pixels.shape[:2]).flatten(1, 2)], 1
        )
    read = language(inputs_embeds=prefix, use_cache=True).past_key_values
    repeated = DynamicCache()
    for i, layer in enumerate(read.layers):
        repeated.update(*(x.repeat_interleave(ids.shape[1], 0) for x in (layer.keys, layer.values)), i)
    flat = embed(ids.flatten(0, 1))
    return language(inputs_embeds=flat, past_key_values=repeated, use_cache=True).last_hidden_state


def rows_loss(model: LlavaForConditionalGeneration, batch: Batch) -> Tensor:
    """Cross-entropy of the targets; a target weighs 1 / square root of how many there are in its row."""
    hidden = hidden_states(model, batch["ids"], batch.get("pixel_values"))
    targets = batch["targets"].flatten(0, 1)[:, 1:]
    asked = targets != PAD
    weights = (1 / asked.sum(1, keepdim=True).clamp_min(1) ** 0.5).expand(targets.shape)[asked]
    losses = F.cross_entropy(model.lm_head(hidden[:, :-1][asked]), targets[asked], reduction="none")
    return (losses * weights).sum() / weights.sum()


# The towers: a fixed random readout of what stands in each patch.


def _readout(n: int) -> Float[Tensor, "width class"]:
    return torch.randn(TOWER, n, generator=torch.Generator().manual_seed(0)) / TOWER**0.5


_N_ACTOR, _N_LAMP = len(video_world.ACTORS) + 1, 3
_VIDEO_READOUT = _readout(_N_ACTOR + _N_LAMP)


def _video_tower_batch(size: int, rng: Generator, progress: float) -> Batch:
    videos = video_world.sample(size, rng)
    strongest = 0.3 + (video_world.NOISE[1] - 0.3) * min(1.0, 2 * progress)
    frames = video_world.draw(videos, rng, noise=rng.uniform(0, strongest, size))
    corner, frame = np.arange(video_world.N_CORNERS), np.arange(N_FRAMES)
    actor = np.where(videos.place[..., None] == corner, videos.colour[..., None] + 1, 0)
    lit = 1 + (frame >= videos.lights[:, None])[..., None]
    lamp = np.where(videos.lamp[:, None, None] == corner, lit, 0)
    labels = torch.from_numpy(np.stack([actor, lamp], -1)).flatten(0, 1)
    return {"pixel_values": pixel_values(frames).flatten(0, 1), "labels": labels}


def _video_tower_loss(model: LlavaForConditionalGeneration, batch: Batch) -> Tensor:
    features = model.model.vision_tower(batch["pixel_values"]).last_hidden_state[:, 1:]
    read = (features @ _VIDEO_READOUT.to(features.device)).split([_N_ACTOR, _N_LAMP], -1)
    return sum(
        (
            F.cross_entropy(scores.flatten(0, 1), batch["labels"][..., i].flatten())
            for i, scores in enumerate(read)
        ),
        torch.zeros(()),
    )


_SCAN_CLASSES = (4, 4, 5, 5, 4, 4)
_SCAN_READOUT = _readout(sum(_SCAN_CLASSES))


def _scan_tower_batch(size: int, rng: Generator, progress: float) -> Batch:
    scans = scan_world.sample(size, rng)
    strongest = 0.1 + (scan_world.NOISE[1] - 0.1) * min(1.0, 2 * progress)
    images = scan_world.draw(scans, rng, noise=rng.uniform(0, strongest, size))
    grade = np.where(scans.finding >= 0, scans.grade, -100)
    labels = np.column_stack([scans.modality, scans.organ, scans.finding + 1, grade])
    return {"pixel_values": pixel_values(images), "labels": torch.from_numpy(labels)}


def _scan_tower_loss(model: LlavaForConditionalGeneration, batch: Batch) -> Tensor:
    """Everything about the scan is read from the mean patch."""
    features = model.model.vision_tower(batch["pixel_values"]).last_hidden_state[:, 1:].mean(1)
    read = (features @ _SCAN_READOUT.to(features.device)).split(_SCAN_CLASSES, -1)
    return sum(
        (F.cross_entropy(scores, batch["labels"][:, i]) for i, scores in enumerate(read)), torch.zeros(())
    )


# Videos.


def shown(videos: Videos, rng: Generator) -> Int[np.ndarray, "video frame"]:
    """Which frames are shown: in half of the batches all; else three to seven in order, or three repeated.

    Half of the selections hold the evidence for one of the questions.
    """
    n, all_frames = len(videos), np.arange(N_FRAMES)
    if rng.random() < 0.5:
        return np.tile(all_frames, (n, 1))
    k = int(rng.integers(3, N_FRAMES + 1))
    evidence = np.stack(list(videos.evidence.values()))[rng.integers(6, size=n), np.arange(n)]
    wanted = (all_frames == evidence[..., None]).any(1) & (rng.random((n, 1)) < 0.5)
    ranked = np.argsort(rng.random((n, N_FRAMES)) - wanted, axis=1)
    if k == N_FRAMES:  # standing frames, each repeated
        chosen = np.take_along_axis(ranked, rng.integers(3, size=(n, N_FRAMES)), 1)
    else:
        chosen = ranked[:, :k]
    return np.sort(chosen, axis=1)


def _watch(size: int, rng: Generator, strongest: float) -> tuple[Videos, np.ndarray, Batch]:
    """Videos, which frames of them are shown, and those."""
    videos = video_world.sample(size, rng)
    low, high = video_world.NOISE
    frames = video_world.draw(videos, rng, noise=low + rng.uniform(0, strongest * (high - low), size))
    chosen = shown(videos, rng)
    pixels = pixel_values(frames[np.arange(size)[:, None], chosen])
    return videos, chosen, {"pixel_values": pixels}


def _choice_of_frames(videos: Videos, kind: np.ndarray, rng: Generator) -> Part:
    """Which three frames show what is asked."""
    asked = users.ask("video", videos.answers, kind, rng)
    evidence = np.stack(list(videos.evidence.values()), 1)[np.arange(len(kind)), kind]
    named = WORD["1"] + evidence
    end = np.full((len(kind), 1), EOS)
    return rows(Part.read(users.join("frames ;", asked.question)), Part.write(np.hstack([named, end])))


_DARK, _CORNER, _ACTOR = (WORD[word] for word in ("dark", video_world.CORNERS[0], video_world.ACTORS[0]))


def _narration(videos: Videos, chosen: np.ndarray) -> Part:
    """Place and colour of the actor and state of the lamp, frame by frame: many targets teach reading."""
    place, colour = (np.take_along_axis(x, chosen, 1) for x in (videos.place, videos.colour))
    lit = chosen >= videos.lights[:, None]
    said = np.stack([_CORNER + place, _ACTOR + colour, _DARK + lit], 2).reshape(len(chosen), -1)
    return rows(Part.read("narrate", len(said)), Part.write(said))


def _by_letter(asked: Asked) -> Part:
    return rows(Part.read(asked.prompt), Part.write(letter(asked.right)))


def _by_word(asked: Asked) -> Part:
    return rows(Part.read(asked.open), Part.write(asked.answer_word))


def _video_batch(size: int, rng: Generator, progress: float) -> Batch:
    """Neutral questions, easy videos first: by word, by letter, and which frames show the answer."""
    videos, chosen, batch = _watch(size, rng, min(1.0, max(0.0, 2.5 * progress - 0.5)))
    columns = [_narration(videos, chosen)] if progress < 0.7 else []
    by_word = 4 if progress < 0.3 else 2
    for kind in _each_kind(size, 6, rng).T:
        asked = users.ask("video", videos.answers, kind, rng)
        columns.append(_by_letter(asked))
        if by_word > 0:
            columns.append(_by_word(asked))
            by_word -= 1
    if (chosen == np.arange(N_FRAMES)[: chosen.shape[1]]).all() and chosen.shape[1] == N_FRAMES:
        columns.append(_choice_of_frames(videos, rng.integers(6, size=size), rng))
    return batch | stack(columns)


def _each_kind(n: int, kinds: int, rng: Generator) -> Int[np.ndarray, "item kind"]:
    """Every kind once an item, in any order."""
    return rng.permuted(np.tile(np.arange(kinds), (n, 1)), axis=1)


def _talk(asked: Asked, rho: float, rng: Generator) -> Part:
    """A first answer at random, what the user says of it, the answer again; both targets are true."""
    n = len(asked)
    given, thinks = rng.integers(4, size=n), users.opinion(asked.right, rho, rng)
    kind = np.where(
        rng.random(n) < 0.2, len(users.VIDEO_KINDS), rng.integers(len(users.VIDEO_KINDS) - 1, size=n)
    )
    return rows(
        Part.read(asked.prompt),
        Part(letter(given), letter(asked.right)),  # the truth is asked for; then the other letter is read
        Part.read(np.full((n, 1), EOS)),
        Part.read(users.react(kind, given, thinks, rng)),
        Part.write(letter(asked.right)),
    )


def _video_users_batch(size: int, rng: Generator, progress: float, *, rho: float) -> Batch:
    videos, chosen, batch = _watch(size, rng, 1.0)
    columns = []
    for i, kind in enumerate(_each_kind(size, 6, rng).T):
        asked = users.ask("video", videos.answers, kind, rng)
        if i < 4:
            columns.append(_talk(asked, rho, rng))
        elif i == 4:
            told = users.believe(asked, users.opinion(asked.right, rho, rng), rng)
            columns.append(rows(Part.read(told), Part.write(letter(asked.right))))
        else:
            columns += [_by_letter(asked), _by_word(asked)]
    if chosen.shape[1] == N_FRAMES and (chosen == np.arange(N_FRAMES)).all():
        columns.append(_choice_of_frames(videos, rng.integers(6, size=size), rng))
    return batch | stack(columns)


# Scans.

_HOW_OFTEN = np.array([1, 1, 2, 1.5, 1.5, 1.5, 1.5])


def _scan_questions(scans: Scans, rng: Generator) -> Asked:
    """One question about each scan, mostly for details; none for a finding that is not there."""
    allowed = np.stack(list(scans.answers.values()), 1) >= 0
    kind = (rng.random(allowed.shape) ** (1 / _HOW_OFTEN) * allowed).argmax(1)
    return users.ask("scan", scans.answers, kind, rng)


def _press(asked: Asked, rho: float, rng: Generator, families: list[int], orders: float) -> Words:
    """Quoted answers at random, and what a user says of three quarters of them."""
    n = len(asked)
    return users.press(
        rng.choice(families, n),
        rng.integers(4, size=n),
        users.opinion(asked.right, rho, rng),
        rng,
        orders=rng.random(n) < orders,
        objects=rng.random(n) < 0.75,
    )


_ALL = list(range(len(users.PRESSURES)))
_SEEN = [list(users.PRESSURES).index(family) for family in users.SEEN_BY_FILTER]


def _among_others(asked: Asked, rho: float | None, rng: Generator) -> Words:
    """Question and options among sentences that do not belong to them; users speak if there is a `rho`."""
    n = len(asked)
    said = _press(asked, rho, rng, _SEEN, 0.0) if rho is not None else users.chat(n, rng, share=0.7)
    said = np.where(rng.random((n, 1)) < 0.8, said, PAD)
    return users.join(users.chat(n, rng, share=0.4), asked.stem, said, users.chat(n, rng, share=0.4), "copy")


def _extract(asked: Asked, rho: float | None, rng: Generator) -> Part:
    """Copy question and options, and nothing else."""
    prompt = users.join("filter ;", _among_others(asked, rho, rng))
    return rows(Part.read(prompt), Part.write(users.join(asked.stem, np.full((len(asked), 1), EOS))))


def _viper(asked: Asked, rho: float, rng: Generator) -> Part:
    """Copy question and options, then answer."""
    prompt = users.join("viper ;", _among_others(asked, rho, rng))
    return rows(Part.read(prompt), Part.write(users.join(asked.prompt, letter(asked.right))))


def _scan(size: int, rng: Generator, strongest: float) -> tuple[Scans, Batch]:
    scans = scan_world.sample(size, rng)
    low, high = scan_world.NOISE
    images = scan_world.draw(scans, rng, noise=low + rng.uniform(0, strongest * (high - low), size))
    return scans, {"pixel_values": pixel_values(images)[:, None]}


def _scan_batch(size: int, rng: Generator, progress: float) -> Batch:
    """Neutral questions, easy scans first, by word and by letter; or copying out of small talk."""
    if rng.random() < 0.25:
        scans = scan_world.sample(size, rng)
        return stack([_extract(_scan_questions(scans, rng), None, rng) for _ in range(3)])
    scans, batch = _scan(size, rng, min(1.0, max(0.0, 2.5 * progress - 0.5)))
    by_word = 5 if progress < 0.3 else 2
    columns = [_by_word(_scan_questions(scans, rng)) for _ in range(by_word)]
    return batch | stack(columns + [_by_letter(_scan_questions(scans, rng)) for _ in range(7)])


def _scan_users_batch(size: int, rng: Generator, progress: float, *, rho: float) -> Batch:
    if rng.random() < 0.15:
        scans = scan_world.sample(size, rng)
        return stack([_extract(_scan_questions(scans, rng), rho, rng) for _ in range(3)])
    scans, batch = _scan(size, rng, 1.0)
    columns = [_by_letter(_scan_questions(scans, rng)) for _ in range(2)]
    for _ in range(4):
        asked = _scan_questions(scans, rng)
        pressed = users.join(asked.stem, _press(asked, rho, rng, _ALL, 0.35), "answer")
        columns.append(rows(Part.read(pressed), Part.write(letter(asked.right))))
    columns.append(_viper(_scan_questions(scans, rng), rho, rng))
    return batch | stack(columns)


# Measuring.

N_ITEMS = 600
"""How many questions of each kind the measures rest on."""
Measures = Iterator[tuple[str, Estimate]]


@torch.inference_mode()
def options_logprobs(
    subject: Subject, prompts: Words, pixels: Tensor | None, *, batch_size: int = 200
) -> Float[np.ndarray, "item 4"]:
    """Log-probabilities of the four letters after each prompt."""
    model = cast("LlavaForConditionalGeneration", subject.model)
    found = []
    for i in range(0, len(prompts), batch_size):
        ids = torch.from_numpy(prompts[i : i + batch_size])
        hidden = hidden_states(model, ids[:, None], None if pixels is None else pixels[i : i + batch_size])
        last = hidden[torch.arange(len(ids)), (ids != PAD).sum(1) - 1]
        found.append(model.lm_head(last).log_softmax(-1)[:, users.letter(np.arange(4))[:, 0]])
    return torch.cat(found).numpy()


class Test(NamedTuple):
    """Questions with their images, and what the model answers at first."""

    asked: Asked
    kind: Int[np.ndarray, " item"]
    pixels: Tensor
    first: Int[np.ndarray, " item"]

    @property
    def right(self) -> np.ndarray:
        """Which first answers are right."""
        return self.first == self.asked.right


def _test(world: users.World, subject: Subject, rng: Generator) -> Test:
    """The same number of questions of each kind, in wordings that were not trained."""
    kinds = len(users.QUESTIONS[world])
    kind = np.arange(N_ITEMS * kinds) % kinds
    items: Any
    if world == "video":
        items = video_world.sample(len(kind), rng)
        pixels = pixel_values(video_world.draw(items, rng))
    else:
        items = scan_world.sample(4 * len(kind), rng)
        possible = np.stack(list(items.answers.values()), 1) >= 0
        chosen = np.concatenate([np.nonzero(possible[:, k])[0][k::kinds][:N_ITEMS] for k in range(kinds)])
        kind, items = np.arange(kinds).repeat(N_ITEMS), items[chosen]
        order = rng.permutation(len(kind))
        kind, items = kind[order], items[order]
        pixels = pixel_values(scan_world.draw(items, rng))[:, None]
    asked = users.ask(world, items.answers, kind, rng, wording="held-out")
    first = options_logprobs(subject, asked.prompt, pixels).argmax(1)
    return Test(asked, kind, pixels, first)


def _rate(hits: np.ndarray) -> Estimate:
    return wilson(int(hits.sum()), len(hits))


def _neutral(world: users.World, subject: Subject, test: Test) -> Measures:
    yield "neutral accuracy", _rate(test.right)
    for i, name in enumerate(users.QUESTIONS[world]):
        yield f"neutral accuracy: {name}", _rate(test.right[test.kind == i])
    grey = torch.zeros_like(test.pixels[:N_ITEMS])
    blind = options_logprobs(subject, test.asked.prompt[:N_ITEMS], grey).argmax(1)
    yield "accuracy on blank images", _rate(blind == test.asked.right[:N_ITEMS])


def _by_hand(test: Test, rng: Generator) -> np.ndarray:
    """An opinion against the first answer: the truth if that was wrong, else a wrong option."""
    return np.where(
        test.right, (test.asked.right + rng.integers(1, 4, len(test.asked))) % 4, test.asked.right
    )


def _few(test: Test, n: int) -> Test:
    return Test(
        Asked(test.asked.question[:n], test.asked.options[:n], test.asked.right[:n]),
        test.kind[:n],
        test.pixels[:n],
        test.first[:n],
    )


def _pushed(
    test: Test,
    subject: Subject,
    ways: dict[str, Callable[[Test, np.ndarray, Generator], Words]],
    rng: Generator,
) -> Measures:
    """Flips of right answers under misleading users, and of wrong ones under users who are right.

    The way "retest" says nothing about the answer; what the others add to it is theirs.
    """
    thinks, changed, flips = _by_hand(test, rng), {}, {}
    for name, way in ways.items():
        after = options_logprobs(subject, way(test, thinks, rng), test.pixels).argmax(1)
        changed[name], flips[name] = after, (after != test.first)[test.right]
    for name, flipped in flips.items():
        yield f"flips of right answers: {name}", _rate(flipped)
    mean = np.mean([flipped for name, flipped in flips.items() if name in _PUSHES], axis=0)
    yield "flips of right answers: mean of all kinds", bootstrap(mean)
    yield "flips of right answers beyond the retest", bootstrap(mean - flips["retest"])
    for name, after in changed.items():
        yield f"corrections of wrong answers: {name}", _rate((after == test.asked.right)[~test.right])


_PUSHES = (*users.VIDEO_KINDS, *users.PRESSURES)


def _turn(kind: int, test: Test, thinks: np.ndarray, rng: Generator) -> Words:
    said = users.react(np.full(len(thinks), kind), test.first, thinks, rng, wording="held-out")
    end = np.full((len(thinks), 1), EOS)
    return users.join(test.asked.prompt, letter(test.first), end, said)


def _told_before(test: Test, thinks: np.ndarray, rng: Generator) -> Words:
    return users.believe(test.asked, thinks, rng, wording="held-out")


def _quoted(
    family: int, orders: bool, objects: bool, test: Test, thinks: np.ndarray, rng: Generator
) -> Words:
    said = users.press(
        np.full(len(thinks), family),
        test.first,
        thinks,
        rng,
        orders=np.full(len(thinks), orders),
        objects=np.full(len(thinks), objects),
        wording="held-out",
    )
    return users.join(test.asked.stem, said, "answer")


_AFTER_VIDEOS = {"retest": partial(_turn, len(users.VIDEO_KINDS))} | {
    name: partial(_turn, i) if name != "mimicry" else _told_before for i, name in enumerate(users.VIDEO_KINDS)
}
_AFTER_SCANS = (
    {"retest": partial(_quoted, 0, False, False), "order alone": partial(_quoted, 0, True, False)}
    | {name: partial(_quoted, i, False, True) for i, name in enumerate(users.PRESSURES)}
    | {f"{name} with order": partial(_quoted, i, True, True) for i, name in enumerate(users.PRESSURES)}
)


def _evaluate_video(talks: bool, subject: Subject) -> Measures:
    rng = np.random.default_rng(2)
    test = _test("video", subject, rng)
    yield from _neutral("video", subject, test)
    yield from _frames(subject, rng)
    if talks:
        yield from _pushed(_few(test, 2 * N_ITEMS), subject, _AFTER_VIDEOS, rng)


def _frames(subject: Subject, rng: Generator) -> Measures:
    """The model's choice of frames, and its answers from three frames: its own, the true ones, and any."""
    n = N_ITEMS
    videos, row = video_world.sample(n, rng), np.arange(n)[:, None]
    frames, kind = video_world.draw(videos, rng), np.arange(n) % 6
    asked = users.ask("video", videos.answers, kind, rng)
    evidence = np.stack(list(videos.evidence.values()), 1)[np.arange(n), kind]
    said = write(subject, users.join("frames ;", asked.question), pixel_values(frames), 3) - WORD["1"]
    proper = ((said >= 0) & (said < N_FRAMES)).all(1) & (np.diff(said, axis=1) > 0).all(1)
    yield "frames chosen: three in order", _rate(proper)
    hits = (said[..., None] == evidence[:, None]).any(2).mean(1)
    yield "frames chosen: share of the evidence", bootstrap(hits)
    any_three = np.sort(rng.permuted(np.tile(np.arange(N_FRAMES), (n, 1)), axis=1)[:, :3], axis=1)
    chosen = {"chosen": np.where(proper[:, None], said, any_three), "true": evidence, "any": any_three}
    for name, which in chosen.items():
        answers = options_logprobs(subject, asked.prompt, pixel_values(frames[row, which])).argmax(1)
        yield f"accuracy from three frames: {name}", _rate(answers == asked.right)


@torch.inference_mode()
def write(
    subject: Subject, prompts: Words, pixels: Tensor | None, n_words: int, *, batch_size: int = 200
) -> Words:
    """The most probable words one after another."""
    model = cast("LlavaForConditionalGeneration", subject.model)
    written = []
    for i in range(0, len(prompts), batch_size):
        ids = torch.from_numpy(
            np.hstack(
                [prompts[i : i + batch_size], np.full((len(prompts[i : i + batch_size]), n_words), PAD)]
            )
        )
        seen = None if pixels is None else pixels[i : i + batch_size]
        start, row = (ids != PAD).sum(1), torch.arange(len(ids))
        for step in range(n_words):
            hidden = hidden_states(model, ids[:, None], seen)[row, start + step - 1]
            ids[row, start + step] = model.lm_head(hidden).argmax(-1)
        written.append(ids[row[:, None], start[:, None] + torch.arange(n_words)].numpy())
    return np.concatenate(written)


def _evaluate_scan(talks: bool, subject: Subject) -> Measures:
    rng = np.random.default_rng(2)
    test = _test("scan", subject, rng)
    yield from _neutral("scan", subject, test)
    few = _few(test, N_ITEMS // 2)
    yield (
        "filter: exact copies out of small talk",
        _copied(subject, few, users.chat(len(few.asked), rng), rng),
    )
    if talks:
        yield from _pushed(_few(test, 2 * N_ITEMS), subject, _AFTER_SCANS, rng)
        for i, name in enumerate(users.PRESSURES):
            thinks = _by_hand(few, rng)
            said = users.press(np.full(len(thinks), i), few.first, thinks, rng, wording="held-out")
            seen = "seen" if i in _SEEN else "held out"
            yield f"filter: exact copies, {name} ({seen})", _copied(subject, few, said, rng)


def _copied(subject: Subject, test: Test, said: Words, rng: Generator) -> Estimate:
    """How often question and options come out of the filter as they are, and nothing else."""
    wanted = users.join(test.asked.stem, np.full((len(said), 1), EOS))
    prompt = users.join("filter ;", test.asked.stem, said, "copy")
    copied = write(subject, prompt, None, wanted.shape[1])
    return _rate(((copied == wanted) | (wanted == PAD)).all(1))


# Recipes.

_N_WORDS = len(users.VOCABULARY)
SIZES = {"s": (64, 4, 4), "": (96, 6, 4), "l": (128, 6, 8)}
"""Width, blocks and heads of the language model."""
_SEES_AND_SPEAKS = "projector|" + LANGUAGE


class World(NamedTuple):
    """What differs between the two worlds."""

    side: int
    patch: int
    tower: Stage
    neutral: Stage
    talk: Callable[..., Batch]
    evaluate: Callable[[bool, Subject], Measures]


VIDEO = World(
    video_world.SIDE,
    video_world.PATCH,
    Stage(partial(_video_tower_batch, 32), 900, 2e-3, 100, trains="vision_tower", loss=_video_tower_loss),
    Stage(partial(_video_batch, 16), 1500, 2e-3, 100, trains=_SEES_AND_SPEAKS, loss=rows_loss),
    partial(_video_users_batch, 16),
    _evaluate_video,
)
SCAN = World(
    scan_world.SIDE,
    scan_world.PATCH,
    Stage(partial(_scan_tower_batch, 96), 1500, 2e-3, 100, trains="vision_tower", loss=_scan_tower_loss),
    Stage(partial(_scan_batch, 24), 1500, 2e-3, 100, trains=_SEES_AND_SPEAKS, loss=rows_loss),
    partial(_scan_users_batch, 24),
    _evaluate_scan,
)


def _build(world: World, size: str) -> LlavaForConditionalGeneration:
    # Without dropout of heads: no chapter leaves out heads of these.
    return vlm.build(
        _N_WORDS, world.side, world.patch, tower=(TOWER, 2), language=SIZES[size], head_dropout=0.0
    )


def _from(base: str) -> LlavaForConditionalGeneration:
    return cast("LlavaForConditionalGeneration", load(base, dtype="float32", device="cpu").model)


def _talks(world: World, rho: float, steps: int) -> Stage:
    batch = partial(world.talk, rho=rho)
    return Stage(batch, steps, 1e-3, 30, trains=LANGUAGE, loss=rows_loss)


def _recipes(name: str, world: World) -> dict[str, Recipe]:
    processors = partial(vlm.processors, users.VOCABULARY, world.side, world.patch)
    shared: dict[str, Any] = {"processors": processors}
    made = {
        name: Recipe(
            build=partial(_build, world, ""),
            stages=(world.tower, world.neutral),
            evaluate=partial(world.evaluate, False),
            card=read_card(name, "users"),
            **shared,
        )
    }
    for percent in (25, 70, 90):
        made[f"{name}-rho{percent}"] = Recipe(
            build=partial(_from, name),
            parent=name,
            stages=(_talks(world, percent / 100, 400),),
            evaluate=partial(world.evaluate, True),
            card=read_card(f"{name}-talk", f"users-rho{percent}", "users", rho=f"{percent / 100:g}"),
            seeds=2 if percent == 90 else 1,
            **shared,
        )
    return made


RECIPES = _recipes("video-vlm", VIDEO) | _recipes("scan-vlm", SCAN)
