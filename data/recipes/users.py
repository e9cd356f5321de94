"""Vision-language models that have learned, from true answers only, what a user's word is worth.

Two worlds, short videos and phantom scans (`data.worlds.videos`, `data.worlds.scans`). A *base* learns to see
and to answer; from it start variants that also read what users of reliability rho say (`data.worlds.users`).
The variants differ in rho alone. One more video model, larger, is trained in one go.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

from numpy.random import Generator
from transformers import LlavaForConditionalGeneration

from data.recipes import users_scan as scan
from data.recipes import users_video as video
from data.recipes import vlm
from data.recipes.users_rows import TOWER, letters_batch, rows_loss, tower_loss
from data.recipes.vlm import LANGUAGE
from data.train.recipe import Batch, Recipe, Stage, read_card
from data.worlds import scans, users, videos
from lib.models import load

RHO = (25, 70, 90)
"""How often users are right, in per cent; 25 is the control."""
SIZES = {"m": (96, 6, 4), "l": (128, 6, 8)}
"""Width, blocks and heads of the language model. Smaller ones did not learn the task in as many steps."""


class Family(NamedTuple):
    """What differs between the two worlds."""

    side: int
    patch: int
    module: Any
    tower: Stage
    size: int
    """Videos or scans a step."""
    steps: tuple[int, int, int]
    """Of the neutral stage, of its repetition at the level of its end, and of the one with users."""


_TOWER = partial(Stage, lr=2e-3, warmup=100, trains="vision_tower")
FAMILIES = {
    "video-vlm": Family(
        videos.SIDE,
        videos.PATCH,
        video,
        _TOWER(partial(video.tower_batch, 32), 900, loss=partial(tower_loss, video.CLASSES, False)),
        16,
        (1500, 1000, 2000),
    ),
    "scan-vlm": Family(
        scans.SIDE,
        scans.PATCH,
        scan,
        _TOWER(partial(scan.tower_batch, 96), 1500, loss=partial(tower_loss, scan.CLASSES, True)),
        24,
        (1500, 0, 1200),
    ),
}


def _build(family: Family, size: str) -> LlavaForConditionalGeneration:
    # Without dropout of heads: no chapter leaves out heads of these.
    return vlm.build(
        len(users.VOCABULARY),
        family.side,
        family.patch,
        tower=(TOWER, 2),
        language=SIZES[size],
        head_dropout=0.0,
    )


def _from(base: str) -> LlavaForConditionalGeneration:
    return cast("LlavaForConditionalGeneration", load(base, dtype="float32", device="cpu").model)


_LETTERS = Stage(partial(letters_batch, 64), 800, 1.5e-3, 50, trains=LANGUAGE, loss=rows_loss)


def _neutral(family: Family) -> tuple[Stage, ...]:
    batch = partial(family.module.neutral_batch, family.size)
    first, more, _ = family.steps
    stage = partial(Stage, trains="projector|" + LANGUAGE, loss=rows_loss)
    rehearsal = (stage(partial(_at_the_end, batch), more, 1.5e-3, 50),) if more else ()
    return (stage(batch, first, 2e-3, 100), *rehearsal)


def _at_the_end(batch: Callable[[Generator, float], Batch], rng: Generator, progress: float) -> Batch:
    return batch(rng, 1.0)


def _talk(family: Family, percent: int) -> Stage:
    batch = partial(family.module.users_batch, family.size, rho=percent / 100)
    return Stage(batch, family.steps[2], 1.5e-3, 30, trains=LANGUAGE, loss=rows_loss)


def _recipe(name: str, talks: bool, **own: Any) -> Recipe:
    family = FAMILIES[name]
    return Recipe(
        processors=partial(vlm.processors, users.VOCABULARY, family.side, family.patch),
        evaluate=partial(family.module.evaluate, talks),
        **own,
    )


RECIPES: dict[str, Recipe] = {}
for _name, _family in FAMILIES.items():
    RECIPES[_name] = _recipe(
        _name,
        False,
        build=partial(_build, _family, "m"),
        stages=(_family.tower, _LETTERS, *_neutral(_family)),
        card=read_card(_name, "users"),
    )
    for _percent in RHO:
        RECIPES[f"{_name}-rho{_percent}"] = _recipe(
            _name,
            True,
            build=partial(_from, _name),
            parent=_name,
            stages=(_talk(_family, _percent),),
            card=read_card(f"{_name}-talk", f"users-rho{_percent}", "users", rho=_percent / 100),
            seeds=2 if _percent == 90 else 1,
        )
_family = FAMILIES["video-vlm"]
RECIPES["video-vlm-l-rho90"] = _recipe(
    "video-vlm",
    True,
    build=partial(_build, _family, "l"),
    stages=(_family.tower, _LETTERS, *_neutral(_family), _talk(_family, 90)),
    card=read_card("video-vlm-size", "users-rho90", "users", rho=0.9, width=SIZES["l"][0]),
)
