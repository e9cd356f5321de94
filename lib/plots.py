"""One look for every figure, and a way to show a figure together with its caption and alt text."""

import base64
import io
import re
from html import escape
from string import Template
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython.display import display
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL.Image import fromarray

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
    _display(fig, alt, caption, name)


def hover_words(
    image: UInt8[np.ndarray, "h w 3"],
    words: list[str],
    maps: Float[np.ndarray, "word layer head row column"],
    *,
    alt: str,
    caption: str,
    name: str,
) -> None:
    """Display a text whose words show, on the image, where each layer and head looked.

    Pointing at a word, tapping it or going through the words with the arrow keys shows a panel for each
    layer, averaged over heads; two lists choose a layer and a head, or all of them. Each panel is scaled to
    its own largest value, which is printed below it. It is one piece of HTML that needs nothing from
    elsewhere; where it cannot be shown, a static picture has the mean over layers and heads, for 16 words.
    Of more than `MOST_VALUES` values, the heads are averaged; if that is not enough, squares of two by two
    values are added up, and then only the first words are shown.

    Args:
        image: the picture, in 8-bit pixels.
        words: the words, or tokens, in order.
        maps: how much each word's layers and heads look at each part of the image, from 0.
        alt: the message, as a full sentence.
        caption: what to look at, in Markdown.
        name: `fig-...`, the anchor on the page.

    Raises:
        ValueError: words, maps and image do not fit together, maps are negative or not finite; or as `show`.
    """
    maps, image = np.asarray(maps, dtype=np.float32), np.asarray(image)
    if maps.ndim != 5 or not maps.size or len(maps) != len(words):
        raise ValueError(
            f"{name}: {len(words)} words, and maps of the shape {maps.shape}; "
            "expected [word, layer, head, row, column]"
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"{name}: the image is {image.dtype} {image.shape}; expected uint8 [h, w, 3]")
    if not np.isfinite(maps).all() or maps.min() < 0:
        raise ValueError(f"{name}: maps have values that are negative, infinite or NaN; expected 0 and more")
    every = mean = maps.mean(2, keepdims=True)
    if maps.shape[2] > 1 and maps.size + mean.size <= MOST_VALUES:
        every = np.concatenate([mean, maps], 2)
    while every.size > MOST_VALUES and every.shape[3] % 2 == every.shape[4] % 2 == 0:
        every = sum(every[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
    n_shown = max(1, MOST_VALUES // every[0].size)
    hint = f" (the first {n_shown} of {len(words)})" if n_shown < len(words) else ""
    words, every = words[:n_shown], every[:n_shown]
    peaks = every.max((3, 4))
    levels = np.rint(every / np.where(peaks > 0, peaks, 1)[..., None, None] * 255).astype(np.uint8)
    file = io.BytesIO()
    small = max(image.shape) <= 128
    fromarray(image).save(file, format="PNG" if small else "JPEG", **({} if small else {"quality": 85}))
    n_layers, n_heads = every.shape[1:3]
    options = {
        "layer": ["each layer", *(f"layer {i}" for i in range(n_layers))],
        "head": ["mean over heads", *(f"head {i}" for i in range(n_heads - 1))],
    }
    if n_heads > 1:
        options["head"].append("each head")
    html = _HOVER.substitute(
        name=name,
        hint=hint,
        alt=escape(" ".join(alt.split())),
        words="".join(
            f'<label><input type="radio" name="{name}-word"{checked}><span>{escape(word)}</span></label>'
            for word, checked in zip(words, [" checked", *[""] * len(words)], strict=False)
        ),
        **{kind: "".join(f"<option>{text}</option>" for text in texts) for kind, texts in options.items()},
        shape=" ".join(map(str, every.shape)),
        maps=base64.b64encode(levels.tobytes()).decode(),
        peaks=" ".join(f"{peak:.2g}" for peak in peaks.ravel()),
        kind="png" if small else "jpeg",
        picture=base64.b64encode(file.getvalue()).decode(),
        ratio=f"{image.shape[1]} / {image.shape[0]}",
    )
    _display(_static(image, words[:16], mean.mean((1, 2))), alt, caption, name, html)


MOST_VALUES = 300_000
"""Bytes that the maps of one `hover_words` may have: a page stays light, and so does the notebook."""

# No colours of its own but the panels': what stands around it may be light or dark.
_HOVER = Template("""
<div class="wp-hover" role="group" aria-label="$alt" data-hover="$name" data-lm-suppress-shortcuts="true"
 hidden style="--ratio: $ratio; --picture: url(data:image/$kind;base64,$picture)"
 data-shape="$shape" data-peaks="$peaks" data-maps="$maps">
<style>
.wp-hover { font-size: .95rem; line-height: 1.5; }
.wp-words { display: flex; flex-wrap: wrap; gap: .15rem .1rem; margin: .2rem 0 .7rem; font-size: 1.1em; }
.wp-words label { position: relative; }
.wp-words input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; }
.wp-words span { display: block; min-width: 1.7em; padding: .2em .4em; border-radius: .3em; }
.wp-words :is(input, span) { cursor: pointer; text-align: center; }
.wp-words :checked + span {
  background: color-mix(in srgb, currentColor 16%, transparent); box-shadow: inset 0 -2px; }
.wp-words :focus-visible + span { outline: 2px solid; outline-offset: 1px; }
.wp-lists { display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; margin-bottom: .8rem; }
.wp-lists select { min-height: 2rem; margin-left: .3em; font: inherit; }
.wp-panels { --least: min(14rem, 30%); display: grid; gap: .7rem;
  grid-template-columns: repeat(auto-fill, minmax(var(--least), 1fr)); }
.wp-panels.wp-many { --least: min(6rem, 22%); font-size: .85em; }
.wp-panels.wp-one { grid-template-columns: minmax(0, 20rem); }
.wp-panels canvas { display: block; width: 100%; aspect-ratio: var(--ratio); border-radius: .3em;
  background: var(--picture) 0 / 100% 100%; image-rendering: pixelated; }
.wp-panels span { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 .5em; }
</style>
<div id="$name-hint">Point at a word, tap it, or go through the words with the arrow keys$hint:</div>
<div class="wp-words" role="radiogroup" aria-labelledby="$name-hint">$words</div>
<div class="wp-lists">
<label>Layer <select>$layer</select></label> <label>Head <select>$head</select></label>
</div>
<div class="wp-panels"></div>
<script>
for (const box of document.querySelectorAll('[data-hover="$name"]:not([data-ready])')) {
  box.dataset.ready = "";
  box.hidden = false;
  const [words, layers, heads, rows, columns] = box.dataset.shape.split(" ").map(Number);
  const levels = Uint8Array.from(atob(box.dataset.maps), (c) => c.charCodeAt(0));
  const peaks = box.dataset.peaks.split(" ");
  const radios = [...box.querySelectorAll("input")];
  const [layer, head] = box.querySelectorAll("select");
  const panels = box.querySelector(".wp-panels");
  const panel = (map, text) => {
    const canvas = document.createElement("canvas");
    const size = rows * columns, own = levels.subarray(map * size, (map + 1) * size);
    canvas.width = columns;
    canvas.height = rows;
    const pixels = new ImageData(columns, rows);
    own.forEach((level, i) => {
      const v = level / 255;  // from dark, so that the rest steps back, to a clear amber
      pixels.data.set([255 * v, 190 * v, 40 * v, 255 * (0.62 - 0.2 * v)], 4 * i);
    });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    const best = own.indexOf(255), row = 1 + Math.floor(best / columns), column = 1 + best % columns;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", text + (best < 0 ? ": nothing" :
      ": most in row " + row + " of " + rows + ", column " + column + " of " + columns));
    const label = document.createElement("span"), peak = document.createElement("span");
    peak.textContent = "max " + peaks[map];
    label.append(text, peak);
    const whole = document.createElement("div");
    whole.append(canvas, label);
    return whole;
  };
  const draw = () => {
    const word = radios.findIndex((radio) => radio.checked);
    const each = (n) => [...Array(n).keys()];
    const shownLayers = layer.selectedIndex ? [layer.selectedIndex - 1] : each(layers);
    const shownHeads = head.selectedIndex < heads ? [head.selectedIndex] : each(heads).slice(1);
    const shown = shownLayers.flatMap((l) => shownHeads.map((h) => panel((word * layers + l) * heads + h,
      [shownLayers.length > 1 || shownHeads.length === 1 ? "layer " + l : "", h ? "head " + (h - 1) : ""]
        .filter(Boolean).join(", "))));
    panels.replaceChildren(...shown);
    panels.className = "wp-panels" + (shown.length > 12 ? " wp-many" : shown.length === 1 ? " wp-one" : "");
  };
  box.addEventListener("mouseover", (event) => {
    const radio = event.target.closest("label")?.querySelector("input");
    if (radio && !radio.checked) { radio.checked = true; draw(); }
  });
  box.addEventListener("change", draw);
  draw();
}
</script>
</div>""")


def _static(
    image: UInt8[np.ndarray, "h w 3"], words: list[str], maps: Float[np.ndarray, "word row column"]
) -> Figure:
    """A panel for each word: the image, dark where its map is low."""
    columns = min(4, len(words))
    rows = -(-len(words) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(WIDTH, 0.2 + 1.75 * rows), squeeze=False)
    small = fromarray(image)
    small.thumbnail((96, 96))
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, word, own in zip(axes.flat, words, maps, strict=False):
        level = (own / (own.max() or 1))[..., None]
        ax.imshow(small, extent=(0, 1, 0, 1), interpolation="nearest")
        shade = np.concatenate([level * np.array([1, 0.75, 0.16]), 0.62 - 0.2 * level], -1)
        ax.imshow(shade, extent=(0, 1, 0, 1), interpolation="nearest")
        ax.set_box_aspect(image.shape[0] / image.shape[1])
        ax.set_title(word.replace("$", r"\$"), fontsize=11, fontweight="normal", loc="center", pad=3)
    return fig


def _display(fig: Figure, alt: str, caption: str, name: str, html: str | None = None) -> None:
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
    data = {"image/png": png.getvalue(), "text/plain": alt, FIGURE_MIME: figure}
    if html is not None:
        data["text/html"] = html
    width, height = (fig.get_size_inches() * 96).round().astype(int).tolist()
    display(
        data,
        metadata={"image/png": {"width": width, "height": height}},
        raw=True,
    )
    # The site draws the caption within the figure and drops this second output; Jupyter and Colab show it.
    display(
        {"text/markdown": f"*{caption}*", "text/plain": caption},
        metadata={"worked_papers": {"role": "caption"}},
        raw=True,
    )
