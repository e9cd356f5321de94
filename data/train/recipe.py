"""What a recipe is: the few lines of data from which the one trainer makes an organism."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
import yaml
from torch import Tensor
from transformers import PreTrainedModel

from lib import ROOT
from lib.models import Subject, load
from lib.stats import Estimate

Batch = dict[str, Tensor]
CARDS = ROOT / "data" / "recipes" / "cards"


def model_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The loss that a Hugging Face model computes itself when it is given `labels`."""
    return model(**batch).loss


def load_subject(folder: Path) -> Subject:
    """The model in a folder, in float32 on the CPU."""
    return load(folder, dtype="float32", device="cpu")


@dataclass(frozen=True)
class Stage:
    """A stretch of training with its own data, loss, trainable parameters and learning rate."""

    batch: Callable[[np.random.Generator, float], Batch]
    """(rng, share of the stage that is done, 0 to 1) -> the model's inputs. Step and seed alone decide the
    `rng`, so that a resumed run sees the data that an uninterrupted one would have seen."""
    steps: int
    lr: float
    """Highest learning rate: reached after `warmup` steps, then a cosine down to 0."""
    warmup: int = 60
    weight_decay: float = 0.05
    trains: str = ""
    """Regular expression: only parameters in whose names it is found are trained."""
    loss: Callable[[Any, Batch], Tensor] = model_loss
    """(model, batch) -> what is minimised."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What a measure has to reach before a chapter may be written on the organism."""

    why: str
    """A sentence: which chapter needs it, and why so much."""
    at_least: float = float("-inf")
    at_most: float = float("inf")

    def holds(self, estimate: Estimate) -> bool:
        """Whether the value, not its whole interval, is within the bar."""
        return self.at_least <= estimate.value <= self.at_most

    def __str__(self) -> str:
        """As in `>= 0.97`."""
        bounds = ((">=", self.at_least), ("<=", self.at_most))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if np.isfinite(bound))


class Card(NamedTuple):
    """What an organism has to reach, and what there is to say about it."""

    bars: Mapping[str, Bar]
    """By the name of the measure; the other measures are recorded without a bar."""
    prose: str
    """Markdown: the world, the cause of the phenomenon, what the organism can and cannot do."""


def read_card(*names: str, **values: object) -> Card:
    """Files of `data/recipes/cards` put together: an organism's own, and what its family shares.

    Each is Markdown, before it the bars as YAML between two lines of `---`.

    Args:
        names: of the files, without `.md`.
        values: what stands for `$name` in the prose.
    """
    bars: dict[str, Bar] = {}
    texts = []
    for name in names:
        written = (CARDS / f"{name}.md").read_text(encoding="utf-8")
        if written.startswith("---\n"):
            _, front, written = written.split("---\n", 2)
            bars |= {key: Bar(**bar) for key, bar in yaml.safe_load(front).items()}
        texts.append(written.strip())
    return Card(bars, Template("\n\n".join(texts)).substitute(values))


@dataclass(frozen=True)
class Recipe:
    """Everything that decides an organism's weights, but for the seed."""

    build: Callable[[], PreTrainedModel]
    """The untrained model; called with torch's generator set to the seed."""
    processors: Callable[[], list[Any]]
    """Tokenizer, image processor: whatever `save_pretrained` has to put beside the weights."""
    stages: tuple[Stage, ...]
    evaluate: Callable[[Any], Iterable[tuple[str, Estimate]]]
    """(what `load` returns) -> measures with their names, on held-out data. A test repeats the first two, so
    they are quick."""
    card: Card
    """Its bars and its description; see `read_card`."""
    seeds: int = 1
    """How many are shipped: `NAME` (seed 0), `NAME-seed1`, ..."""
    load: Callable[[Path], Any] = load_subject
    """Reads the folder; a class that is not of transformers brings its own."""
    parent: str | None = None
    """The organism from whose weights `build` starts: shipped is the difference (`lib.differences`)."""
    of_seed: "Callable[[int], Recipe] | None" = None
    """The recipe of a seed, where seeds differ in more than random numbers: in world or parent."""
