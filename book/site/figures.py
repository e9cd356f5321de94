"""Figures made when the site is built: what the worlds look like, and how the organisms were trained."""

import html
import json
import re
import textwrap
from collections import defaultdict
from pathlib import Path
from posixpath import join
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sphinx.application import Sphinx

from data.worlds import scene_words, scenes
from lib import plots
from lib.organisms import FOLDER

DOSED = re.compile(r"(?P<knob>\w+) (?P<dose>[\d.]+): (?P<measure>.+)")
"""A measure at one dose of a knob, as recipes name it: `noise 0.2: colour`."""


def embed(app: Sphinx, fig: Figure, *, name: str, alt: str, caption: str) -> str:
    """Save a figure among the site's images, as Sphinx' own extensions do; the HTML that shows it."""
    folder = Path(app.outdir, app.builder.imagedir)
    folder.mkdir(parents=True, exist_ok=True)
    fig.savefig(folder / f"{name}.png", dpi=2 * 96, facecolor="white")
    width, height = (fig.get_size_inches() * 96).round().astype(int)
    picture = join(app.builder.imgpath, f"{name}.png")
    return (
        f'<figure class="align-default" id="{name}"><img src="{picture}" alt="{html.escape(alt)}" '
        f'width="{width}" height="{height}"><figcaption><p>{caption}</p></figcaption></figure>'
    )


def world(app: Sphinx, docname: str, slug: str) -> str:
    """Scenes as they are, and at three doses of every knob."""
    rng = np.random.default_rng(8)
    some = scenes.sample(4, rng, pairs=(1, 2))
    plain = scenes.draw(some, rng, split="test")
    said = [scene_words.text(words) for words in scene_words.captions(some)]
    plots.style()
    fig = Figure(figsize=(plots.WIDTH, plots.WIDTH))
    for ax, image, words in zip(fig.subplots(2, 2).flat, plain, said, strict=True):
        ax.imshow(image)
        pairs = words.split()
        named = [" ".join(pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)]
        ax.set_xlabel(textwrap.fill(", ".join(named), 34), fontsize=10)
    first = embed(
        app,
        bare(fig),
        name="scenes",
        alt="Four scenes of coloured glyphs and handwritten digits on dark ground, and what stands in them.",
        caption="Scenes of the test split with their true captions: object and colour, in reading order.",
    )
    fig = Figure(figsize=(plots.WIDTH, 1.25 * len(scenes.DOSES)))
    axes = fig.subplots(len(scenes.DOSES), 4)
    for row, (knob, doses) in zip(axes, scenes.DOSES.items(), strict=True):
        for ax, dose in zip(row, (None, *doses), strict=True):
            ax.imshow(_dosed(knob, dose))
            ax.set_xlabel("none" if dose is None else f"{dose:g}", fontsize=10, labelpad=2)
        row[0].set_ylabel(knob.replace("_", "\n"), rotation=0, ha="right", va="center", fontsize=11)
    return first + embed(
        app,
        bare(fig),
        name="scenes-knobs",
        alt="One scene under more and more noise, occlusion, distractors, and with less and less contrast.",
        caption="The knobs: one scene, drawn with the same random numbers, at doses that grow to the right.",
    )


def _dosed(knob: str, dose: float | None) -> np.ndarray:
    knobs = {} if dose is None else {knob: dose}
    distractors = int(knobs.pop("distractors", 0))
    chosen = scenes.sample(1, np.random.default_rng(11), pairs=(2, 2), distractors=distractors)
    return scenes.draw(chosen, np.random.default_rng(3), split="test", **knobs)[0]


def training(app: Sphinx, docname: str, name: str) -> str:
    """An organism's learning curve and, where its recipe measured it, its response to each knob."""
    metrics = json.loads((FOLDER / name / "metrics.json").read_text(encoding="utf-8"))
    plots.style()
    fig = Figure(figsize=(plots.WIDTH, 2.6))
    ax = fig.subplots()
    steps, losses = zip(*metrics["loss"]["curve"], strict=True)
    ax.plot(steps, losses, color=plots.BLUE)
    ax.set(yscale="log", xlabel="step", ylabel="training loss", title=f"How {name} learned")
    shown = embed(
        app,
        fig,
        name=f"{name}-loss",
        alt=f"The training loss of {name} falls from {losses[0]:.2g} to {losses[-1]:.2g} over its stages.",
        caption="Mean training loss of consecutive stretches; where it jumps, a new stage begins.",
    )
    doses = dose_response(metrics["measures"])
    if not doses:
        return shown
    measures = sorted({measure for by_measure in doses.values() for measure in by_measure})
    colour = dict(zip(measures, plots.PALETTE, strict=False))
    rows = -(-len(doses) // 2)
    fig = Figure(figsize=(plots.WIDTH, 2.3 * rows))
    axes = fig.subplots(rows, 2, sharey=True, squeeze=False)
    for ax, (knob, by_measure) in zip(axes.flat, doses.items(), strict=False):
        for measure, points in by_measure.items():
            x, y, low, high = np.array(points).T
            plots.band(ax, x, y, low, high, color=colour[measure], label=measure, marker="o", markersize=4)
        ax.set(xlabel=knob.replace("_", " "), ylim=(0, 1.02))
    for ax in axes.flat[len(doses) :]:
        ax.axis("off")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(measures))
    return shown + embed(
        app,
        fig,
        name=f"{name}-doses",
        alt=f"Accuracy and caption quality of {name} against the dose of each knob, with intervals.",
        caption="Dose and response: shares on test scenes with 95 % intervals, one knob at a time. The point "
        "nearest to the undisturbed world is the measure without that knob.",
    )


def dose_response(measures: dict[str, Any]) -> dict[str, dict[str, list[tuple[float, ...]]]]:
    """Knob -> measure -> (dose, value, low, high) by dose, led by the measure without the knob."""
    found: dict[str, dict[str, list[tuple[float, ...]]]] = defaultdict(lambda: defaultdict(list))
    for key, estimate in measures.items():
        if match := DOSED.fullmatch(key):
            point = (float(match["dose"]), estimate["value"], estimate["low"], estimate["high"])
            found[match["knob"]][match["measure"]].append(point)
    for knob, by_measure in found.items():
        for measure, points in by_measure.items():
            plain = measures.get(measure, measures.get(f"captions: {measure}"))
            if plain is not None:
                untouched = 1.0 if knob == "contrast" else 0.0
                points.append((untouched, plain["value"], plain["low"], plain["high"]))
            points.sort()
    return {knob: dict(by_measure) for knob, by_measure in found.items()}


def bare(fig: Figure) -> Figure:
    """Pictures need no ticks and no frame."""
    for ax in fig.axes:
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(False)
    return fig
