"""Figures made when the site is built: what the worlds look like, and how the organisms were trained."""

import json
import re
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sphinx.application import Sphinx

from book.site.files import place
from book.site.templates import template
from data.worlds import scene_words, scenes
from lib import plots
from lib.organisms import FOLDER

DOSED = re.compile(r"(?P<knob>\w+) (?P<dose>[\d.]+): (?P<measure>.+)")
"""A measure at one dose of a knob, as recipes name it: `noise 0.2: colour`."""


def embed(app: Sphinx, docname: str, fig: Figure, *, name: str, alt: str, caption: str) -> str:
    """Save a figure among the site's images, as Sphinx' own extensions do; the HTML that shows it."""
    path, picture = place(app, docname, f"{app.builder.imagedir}/{name}.png")
    fig.savefig(path, dpi=2 * 96, facecolor="white")
    width, height = (fig.get_size_inches() * 96).round().astype(int)
    shown = {"name": name, "picture": picture, "alt": alt, "caption": caption}
    return template("figure.html").render(width=width, height=height, **shown)


def gallery(rows: Mapping[str, Sequence[tuple[np.ndarray, str]]], height: float) -> Figure:
    """Rows of pictures with a label under each; a row's key is written before it, `height` is in inches."""
    plots.style()
    fig = Figure(figsize=(plots.WIDTH, height * len(rows)))
    axes = fig.subplots(len(rows), len(next(iter(rows.values()))))
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for ax, (picture, label) in zip(line, pictures, strict=True):
            ax.imshow(picture)
            ax.set_xlabel(label, fontsize=10, labelpad=2)
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(name.replace("_", "\n"), rotation=0, ha="right", va="center", fontsize=11)
    return fig


def world(app: Sphinx, docname: str, slug: str) -> str:
    """Scenes as they are, and at three doses of every knob."""
    rng = np.random.default_rng(8)
    some = scenes.sample(4, rng, pairs=(1, 2))
    plain = scenes.draw(some, rng, split="test")
    captions = [scene_words.text(words) for words in scene_words.captions(some)]
    # "cup red ball blue": a comma after each pair.
    labels = [textwrap.fill(re.sub(r"(\S+ \S+) ", r"\1, ", caption), 34) for caption in captions]
    pictures = list(zip(plain, labels, strict=True))
    knobs = {
        knob: [(_dosed(knob, dose), "none" if dose is None else f"{dose:g}") for dose in (None, *doses)]
        for knob, doses in scenes.DOSES.items()
    }
    return embed(
        app,
        docname,
        gallery({"": pictures[:2], " ": pictures[2:]}, plots.WIDTH / 2),
        name="scenes",
        alt="Four scenes of coloured glyphs and handwritten digits on dark ground, and what stands in them.",
        caption="Scenes of the test split with their true captions: object and colour, in reading order.",
    ) + embed(
        app,
        docname,
        gallery(knobs, 1.25),
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
    steps, losses = zip(*metrics["loss"]["curve"], strict=True)
    doses = dose_response(metrics["measures"])
    measures = sorted({measure for by_measure in doses.values() for measure in by_measure})
    colour = dict(zip(measures, plots.PALETTE, strict=False))
    plots.style()
    columns = 2 if doses else 1
    rows = -(-(1 + len(doses)) // columns)
    fig = Figure(figsize=(plots.WIDTH, 2.3 * rows + 0.3))
    first, *others = fig.subplots(rows, columns, squeeze=False).flat
    first.plot(steps, losses, color=plots.BLUE)
    first.set(yscale="log", xlabel="step", ylabel="training loss")
    for ax, (knob, by_measure) in zip(others, doses.items(), strict=False):
        for measure, points in by_measure.items():
            x, y, low, high = np.array(points).T
            plots.band(ax, x, y, low, high, color=colour[measure], label=measure, marker="o", markersize=4)
        ax.set(xlabel=knob.replace("_", " "), ylim=(0, 1.02))
    for ax in others[len(doses) :]:
        ax.axis("off")
    alt = f"The training loss of {name} falls from {losses[0]:.2g} to {losses[-1]:.2g} over its stages."
    caption = "Mean training loss of consecutive stretches; where it jumps, a new stage begins."
    if doses:
        fig.legend(*others[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(measures))
        alt += " Accuracy and caption quality follow, against the dose of each knob."
        caption += " Then dose and response: shares on test scenes with 95 % intervals, one knob at a time; "
        caption += "the point nearest to the undisturbed world is the measure without that knob."
    return embed(app, docname, fig, name=f"{name}-training", alt=alt, caption=caption)


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
