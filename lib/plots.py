"""One look for every figure, and a way to show a figure together with its caption and alt text."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from lib.stats import Estimate

FIGURE_MIME = "application/vnd.worked-papers.figure+json"

# Wong (Nature Methods 2011): told apart under the common forms of colour blindness.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY = "#CC79A7", "#56B4E9"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
CONTROL = "#666666"
"""Grey, for what must show no effect. (Much lighter, it would look like GREEN to deuteranopes.)"""

WIDTH = 6.4
"""Inches; a page at phone width shows such a figure at about 60 %, and 11 pt stays readable."""


def style() -> None:
    """Set the book's look. A chapter calls it once, before its first figure."""
    sns.set_theme(context="notebook", style="whitegrid", palette=PALETTE)
    plt.style.use(Path(__file__).with_name("book.mplstyle"))
    plt.rcParams["figure.figsize"] = (WIDTH, 4.0)


def band(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    color: str,
    label: str,
    **line: Any,
) -> None:
    """A line y(x) with its interval low..high, shape (n,) each, as a band in the same colour."""
    ax.plot(x, y, color=color, label=label, **line)
    ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)


def dots(ax: Axes, positions: Sequence[float], estimates: Sequence[Estimate], **style: Any) -> None:
    """An estimate at each position: its interval as a bar, its value as a dot, its few seeds as small dots.

    Args:
        ax: where to draw.
        positions: shape (n,), along x.
        estimates: as many.
        style: `color`, `label`, ... of the dots.
    """
    values = np.array([e.value for e in estimates])
    reach = np.abs(np.array([[e.low, e.high] for e in estimates]).T - values)
    drawn = ax.errorbar(positions, values, reach, fmt="o", capsize=3, **style)
    for position, estimate in zip(positions, estimates, strict=True):
        if estimate.values:
            x = np.full(len(estimate.values), position)
            ax.plot(x, estimate.values, "o", ms=3, alpha=0.5, color=drawn[0].get_color())


def table(rows: pd.DataFrame | Sequence[Mapping[str, Any]], caption: str, *, unit: str = "") -> None:
    """Display a table with its caption; estimates are written with their intervals.

    Args:
        rows: one mapping of column -> cell a row, or a data frame (its index is not shown).
        caption: what the table says, as a sentence.
        unit: stands behind the caption, in brackets.
    """
    shown = pd.DataFrame(rows).map(lambda cell: str(cell) if isinstance(cell, Estimate) else cell)
    text = f"{caption} ({unit})" if unit else caption
    display(shown.style.hide(axis="index").set_caption(text).format(precision=3))


def show(
    fig: Figure,
    *,
    alt: str,
    caption: str,
    name: str,
    data: pd.DataFrame | Sequence[Mapping[str, Any]] | None = None,
    main: bool = False,
) -> None:
    """Display a figure with its caption, and close it.

    Args:
        fig: saved as a PNG at twice the screen's resolution.
        alt: the figure's message, as a full sentence, for those who cannot see it; its numbers are the run's.
        caption: what to look at, in Markdown; maths between dollars.
        name: `fig-...`, the anchor on the page.
        data: the numbers in the figure, offered beside it as CSV; units stand in the column's names, as in
            "accuracy (%)". An estimate becomes three columns.
        main: whether this is the figure that tells the chapter's finding; the page shows it at its top.

    Raises:
        ValueError: alt is no sentence, caption is empty, or name is not of the form `fig-...`.
    """
    if len(alt.split()) < 5 or not alt.rstrip().endswith("."):
        raise ValueError(
            f"alt={alt!r}: state the figure's message in a sentence (5 words or more, with a full stop)"
        )
    if not caption.strip():
        raise ValueError(f"{name}: the caption is empty; say what to look at")
    if not re.fullmatch(r"fig-[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"name={name!r}: expected the form fig-some-words")
    png = io.BytesIO()
    fig.savefig(png, format="png", dpi=2 * 96, facecolor="white")
    plt.close(fig)
    alt, caption = " ".join(alt.split()), " ".join(caption.split())
    figure: dict[str, Any] = {"alt": alt, "caption": caption, "name": name}
    if main:
        figure["main"] = True
    if data is not None:
        figure["csv"] = pd.DataFrame(_in_columns(data)).to_csv(index=False)
    width, height = (fig.get_size_inches() * 96).round().astype(int).tolist()
    display(
        {"image/png": png.getvalue(), "text/plain": alt, FIGURE_MIME: figure},
        metadata={"image/png": {"width": width, "height": height}},
        raw=True,
    )
    # The site draws the caption within the figure and drops this second output; Jupyter and Colab show it.
    display(
        {"text/markdown": f"*{caption}*", "text/plain": caption},
        metadata={"worked_papers": {"role": "caption"}},
        raw=True,
    )


def _in_columns(data: pd.DataFrame | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows in which an estimate has become its value and the two ends of its interval."""
    rows: Any = data.to_dict("records") if isinstance(data, pd.DataFrame) else data
    wide: list[dict[str, Any]] = []
    for row in rows:
        wide.append({})
        for name, cell in row.items():
            if isinstance(cell, Estimate):
                wide[-1] |= {name: cell.value, f"{name}, low": cell.low, f"{name}, high": cell.high}
            else:
                wide[-1][name] = cell
    return wide
