"""One look for every figure, and a way to show a figure together with its caption and alt text."""

import io
import re
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

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
    sns.set_theme(
        context="notebook",
        style="whitegrid",
        palette=PALETTE,
        font="DejaVu Sans",  # comes with matplotlib, so that figures look the same everywhere
        rc={
            "figure.figsize": (WIDTH, 4.0),
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.h_pad": 0.08,
            "figure.constrained_layout.w_pad": 0.08,
            "font.size": 12,
            "axes.titlesize": 13,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 12,
            "xtick.labelsize": 11,
            "ytick.labelsize": 11,
            "legend.fontsize": 11,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": "#e3e3e3",
            "axes.edgecolor": "#808080",
            "image.cmap": "viridis",
        },
    )


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


def show(fig: Figure, *, alt: str, caption: str, name: str) -> None:
    """Display a figure with its caption, and close it.

    Args:
        fig: saved as a PNG at twice the screen's resolution.
        alt: the figure's message, as a full sentence, for those who cannot see it.
        caption: what to look at, in Markdown; maths between dollars.
        name: `fig-...`, the anchor on the page.

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
    figure = {"alt": alt, "caption": caption, "name": name}
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
