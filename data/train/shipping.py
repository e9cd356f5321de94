"""An organism's folder: weights, processors and checksums in the ordinary format, measures, and a card."""

import json
import platform
import shutil
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.table import Table
from transformers import PreTrainedModel

from data.train.difference import split
from data.train.recipe import Recipe
from data.train.trainer import State
from lib import organisms
from lib.differences import sha256
from lib.stats import Estimate

FIRST_LOSSES = 20
"""So many are kept one by one: a test trains as far and compares."""
_CURVE_POINTS = 50


def ship(
    recipe: Recipe, name: str, model: PreTrainedModel, state: State, place: Path, device: str
) -> dict[str, Estimate]:
    """Write the folder `place` whole or not at all; the measures are of the weights as they are stored."""
    fresh = place.with_name(f".{place.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    _save(recipe, model, fresh)
    measures = measure(recipe, fresh)
    metrics = {
        "name": name,
        "parent": recipe.parent,
        "measures": {key: asdict(estimate) for key, estimate in measures.items()},
        "parameters": model.num_parameters(),
        "steps": len(state.losses),
        "minutes": round(state.seconds / 60, 1),
        "machine": f"{platform.machine()}, {device}, {torch.get_num_threads()} CPU thread(s)",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "loss": {"first": state.losses[:FIRST_LOSSES], "curve": _curve(state.losses)},
    }
    write_card(recipe, metrics, fresh)
    shutil.rmtree(place, ignore_errors=True)
    fresh.rename(place)
    return measures


def write_card(recipe: Recipe, metrics: dict[str, Any], place: Path) -> None:
    """Write `metrics.json` and `card.md` from what was measured, and from the recipe's bars and prose."""
    bars = {key: {"bar": str(bar), "why": bar.why} for key, bar in recipe.card.bars.items()}
    metrics = metrics | {"bars": bars}
    measures = {key: Estimate(**values) for key, values in metrics["measures"].items()}
    (place / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    (place / "card.md").write_text(_card(recipe, metrics, measures), encoding="utf-8")


def measure(recipe: Recipe, place: Path) -> dict[str, Estimate]:
    """The recipe's measures of the weights in a folder.

    Raises:
        KeyError: the recipe has a bar for something that it does not measure.
    """
    measures = dict(recipe.evaluate(recipe.load(place)))
    if unknown := recipe.card.bars.keys() - measures.keys():
        raise KeyError(f"bars without a measure: {', '.join(sorted(unknown))}")
    return measures


def table(name: str, recipe: Recipe, measures: dict[str, Estimate]) -> Table:
    """The measures beside their bars, for the terminal."""
    rows = Table("measure", "value", "bar", "", title=name)
    for key, value, bar, verdict in _rows(recipe, measures):
        rows.add_row(key, value, bar, f"[{'red' if verdict == 'missed' else 'green'}]{verdict}")
    return rows


def _rows(recipe: Recipe, measures: dict[str, Estimate]) -> list[tuple[str, str, str, str]]:
    rows = []
    for key, estimate in measures.items():
        bar = recipe.card.bars.get(key)
        verdict = "" if bar is None else "held" if bar.holds(estimate) else "missed"
        rows.append((key, str(estimate), str(bar or ""), verdict))
    return rows


def _save(recipe: Recipe, model: PreTrainedModel, folder: Path) -> None:
    shipped: Any = deepcopy(model)  # knows which weights are tied
    # Half the size; the bars are measured on these. But a difference is taken before anything is rounded.
    stored = torch.float32 if recipe.parent else torch.float16
    shipped.to("cpu", stored).save_pretrained(folder)
    if recipe.parent:
        split(folder, organisms.FOLDER / recipe.parent)
    shipped.config.dtype = torch.float32  # what it computes in; float16 is only how it is stored
    shipped.config.save_pretrained(folder)
    for processor in recipe.processors():
        processor.save_pretrained(folder)
    digests = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    (folder / "sha256.json").write_text(json.dumps(digests, indent=1) + "\n")


def _curve(losses: list[float]) -> list[list[float]]:
    """[last step, mean loss] of consecutive stretches."""
    stretches = np.array_split(np.asarray(losses), min(_CURVE_POINTS, len(losses)))
    ends = np.cumsum([len(stretch) for stretch in stretches])
    return [[int(end), round(float(stretch.mean()), 4)] for end, stretch in zip(ends, stretches, strict=True)]


def _card(recipe: Recipe, metrics: dict[str, Any], measures: dict[str, Estimate]) -> str:
    bars, prose = recipe.card
    lines = [f"# {metrics['name']}", "", prose, "", "## Measured on the shipped weights", ""]
    lines += ["| measure | value, 95 % interval | bar | |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in _rows(recipe, measures)]
    lines += ["", "A bar is what a chapter needs; measures without one are recorded only.", ""]
    for why in dict.fromkeys(bar.why for bar in bars.values()):  # several bars may share a reason
        keys = [f"{key} {bar}" for key, bar in bars.items() if bar.why == why]
        lines.append(f"- {'; '.join(keys)}: {why}")
    versions = ", ".join(f"{library} {version}" for library, version in metrics["versions"].items())
    lines += [
        "",
        "## Training",
        "",
        f"{metrics['parameters']:,} parameters, {metrics['steps']:,} steps, {metrics['minutes']} minutes"
        f" ({metrics['machine']}; {versions}).",
        f"Made by `python -m data train {metrics['name']}`; measured again by adding `--check`.",
    ]
    if recipe.parent:
        whole = f'load("{metrics["name"]}").model.save_pretrained(folder)'
        lines += [
            "",
            f"Stored as the difference from `{recipe.parent}` (`lib.differences`), which `load` adds up"
            f" again. For an ordinary folder: `{whole}`, and the same with `.processor`.",
        ]
    return "\n".join(lines) + "\n"
