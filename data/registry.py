"""The organisms by name: what the recipes in `data.recipes` make, one trainer for all of them.

A family is a module there with a dictionary `RECIPES`; it is found, and stands in no table.
"""

import json
import pkgutil
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path

from rich.console import Console

from data import recipes
from data.train.recipe import Recipe
from data.train.shipping import measure, ship, table, write_card
from data.train.trainer import fit
from lib import ROOT, organisms
from lib.stats import Estimate

CHECKPOINTS = ROOT / "_build" / "organisms"


@cache
def families() -> dict[str, dict[str, Recipe]]:
    """Module of `data.recipes` -> its recipes, by the name of the organism that they make.

    Raises:
        ValueError: two modules have a recipe of the same name.
    """
    found: dict[str, dict[str, Recipe]] = {}
    seen: set[str] = set()
    for module in sorted(pkgutil.iter_modules(recipes.__path__), key=lambda module: module.name):
        own = getattr(import_module(f"{recipes.__name__}.{module.name}"), "RECIPES", {})
        if twice := seen & own.keys():
            raise ValueError(
                f"data/recipes/{module.name}.py: another family has a recipe {min(twice)!r}, too"
            )
        seen |= own.keys()
        if own:
            found[module.name] = own
    return found


def names(base: str | None = None) -> list[str]:
    """Every organism, or those that differ from `base` in the seed only: `NAME`, `NAME-seed1`, ..."""
    known = {name: recipe for family in families().values() for name, recipe in family.items()}
    chosen = {base: known[base]} if base else known
    return [
        organisms.join_name(name, seed) for name, recipe in chosen.items() for seed in range(recipe.seeds)
    ]


def find(name: str) -> tuple[Recipe, int]:
    """The recipe and the seed that a name stands for.

    Raises:
        LookupError: there is no such organism; the message has the names that come near.
    """
    base, seed = organisms.split_name(name)
    for family in families().values():
        if base in family and seed < family[base].seeds:
            recipe = family[base]
            return (recipe.of_seed(seed) if recipe.of_seed else recipe), seed
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
    bars = recipe.card.bars
    if missed := [key for key, bar in bars.items() if not bar.holds(measures[key])]:
        raise RuntimeError(f"{name} misses {len(missed)} of its {len(bars)} bars: {', '.join(missed)}")
    return measures


def rewrite_cards() -> list[str]:
    """Write card and bars of every shipped organism anew, from its stored measures and its recipe.

    For a change of the cards' prose or of the bars: nothing is trained or measured.

    Returns:
        The organisms whose card or bars have changed.
    """
    changed = []
    for name in (name for name in names() if (organisms.FOLDER / name).is_dir()):
        place, (recipe, _) = organisms.FOLDER / name, find(name)
        files = [place / "card.md", place / "metrics.json"]
        before = [file.read_text(encoding="utf-8") for file in files]
        write_card(recipe, json.loads(before[1]), place)
        if before != [file.read_text(encoding="utf-8") for file in files]:
            changed.append(name)
    return changed
