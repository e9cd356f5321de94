"""Model organisms: small models of ordinary classes, trained here from recipes (`python -m data train NAME`).

A family of organisms is a module of this package with a dictionary `RECIPES`; one trainer makes them all.
"""

from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from rich.console import Console

from data.train.recipe import Bar, Recipe, Stage
from data.train.shipping import FIRST_LOSSES, measure, ship, table
from data.train.trainer import fit
from lib import ROOT, organisms
from lib.stats import Estimate

__all__ = ["FIRST_LOSSES", "Bar", "Recipe", "Stage", "check", "find", "fit", "names", "train"]

CHECKPOINTS = ROOT / "_build" / "organisms"

FAMILIES = {
    "scenes": ("scenes-vlm", "scenes-vlm-joint"),
    "concept": ("concept-vlm", "bottleneck-vlm", "cot-vlm"),
    "digits": ("digits-vit", "canvas-vit"),
    "diffusion": ("digits-ddpm", "digits-ddpm-narrow"),
    "circuits": ("induction-gpt", "ioi-gpt", "greater-gpt", "docstring-gpt"),
    "tree": ("tree-a", "tree-b", "tree-wide"),
    "conflict": (
        "conflict-vlm-clear-look",
        "conflict-vlm-clear-read",
        "conflict-vlm-murky-look",
        "conflict-vlm-murky-read",
    ),
}
"""Module of this package -> the recipes in it."""


def names(base: str | None = None) -> list[str]:
    """Every organism, or those that differ from `base` in the seed only: `NAME`, `NAME-seed1`, ..."""
    bases = [base] if base else [base for bases in FAMILIES.values() for base in bases]
    return [organisms.join_name(base, seed) for base in bases for seed in range(find(base)[0].seeds)]


def find(name: str) -> tuple[Recipe, int]:
    """The recipe and the seed that a name stands for.

    Raises:
        LookupError: there is no such organism.
    """
    base, seed = organisms.split_name(name)
    for family, bases in FAMILIES.items():
        if base in bases:
            recipe = import_module(f"data.recipes.{family}").RECIPES[base]
            if seed < recipe.seeds:
                return recipe, seed
    known = names()
    raise LookupError(
        f"no organism {name!r}; there are: {', '.join(get_close_matches(name, known) or known)}"
    )


def train(name: str, *, device: str = "cpu", resume: bool = True, folder: Path | None = None) -> Path:
    """Train an organism, measure it, and put it into its folder, whole or not at all.

    Args:
        name: one of `names()`.
        device: as in torch.
        resume: go on from the last checkpoint, if there is one; else start anew.
        folder: in it the organism's own folder is made or replaced; `data/models` by default.

    Returns:
        The organism's own folder.
    """
    recipe, seed = find(name)
    place = (folder or organisms.FOLDER) / name
    console = Console()
    checkpoint = CHECKPOINTS / f"{name}.pt"
    if not resume:
        checkpoint.unlink(missing_ok=True)
    model, state = fit(recipe, seed, device=device, checkpoint=checkpoint, console=console)
    measures = ship(recipe, name, model, state, place, device)
    checkpoint.unlink(missing_ok=True)
    console.print(table(name, recipe, measures))
    return place


def check(name: str) -> dict[str, Estimate]:
    """Measure the shipped weights again, and print the measures beside their bars.

    Raises:
        FileNotFoundError: the organism has not been trained.
        RuntimeError: a bar is missed.
    """
    recipe, _ = find(name)
    if not (organisms.FOLDER / name).is_dir():
        raise FileNotFoundError(
            f"{organisms.FOLDER / name} is not there; make it with: python -m data train {name}"
        )
    measures = measure(recipe, organisms.FOLDER / name)
    Console().print(table(name, recipe, measures))
    if missed := [key for key, bar in recipe.bars.items() if not bar.holds(measures[key])]:
        raise RuntimeError(f"{name} misses {len(missed)} of its {len(recipe.bars)} bars: {', '.join(missed)}")
    return measures
