"""Names, folders and seeds of the model organisms: the one home of `data/models` and of `NAME-seedN`."""

import re
from pathlib import Path

from lib import ROOT

FOLDER = ROOT / "data" / "models"
"""In it each organism has a folder of its own, in the ordinary format of Hugging Face checkpoints."""


def shipped() -> list[str]:
    """The names of the organisms that are there, in alphabetical order."""
    return sorted(path.name for path in FOLDER.glob("[!.]*") if path.is_dir())


def folder(name: str) -> Path | None:
    """The folder of a shipped organism; None for any other name."""
    return FOLDER / name if name in shipped() else None


def split_name(name: str) -> tuple[str, int]:
    """The recipe's name and the seed that a name stands for: `NAME` is seed 0, `NAME-seed2` is seed 2."""
    parts = re.fullmatch(r"(.+)-seed([1-9]\d*)", name)
    return (parts[1], int(parts[2])) if parts else (name, 0)


def join_name(base: str, seed: int) -> str:
    """The name of a recipe's organism of a given seed."""
    return f"{base}-seed{seed}" if seed else base


def seeds_of(name: str, n: int | None = None) -> list[str]:
    """The names of an organism and of its other shipped seeds, at most `n`; any other model is alone.

    They were trained by the same recipe, and differ in the random numbers only.

    Raises:
        ValueError: `n` is below 1.
    """
    if n is not None and n < 1:
        raise ValueError(f"{n} networks of {name}: expected at least 1")
    seeds = sorted(seed for base, seed in map(split_name, shipped()) if base == name and seed)
    return [name, *(join_name(name, seed) for seed in seeds)][:n]
