"""A figure reaches the notebook with its alt text, caption and anchor."""

import base64
import io
from itertools import combinations

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

from lib import plots
from lib.stats import Estimate

GOOD = {
    "alt": "The line rises from left to right.",
    "caption": "A line, $y = x^2$.",
    "name": "fig-rising-line",
}


@pytest.fixture
def fig():
    with mpl.rc_context():
        plots.style()
        figure, ax = plt.subplots()
        ax.plot([1, 2], [1, 4])
        yield figure
    plt.close(figure)


def test_an_executed_notebook_carries_picture_alt_text_caption_and_name():
    source = f"""
import matplotlib.pyplot as plt
from lib import ROOT, plots
plots.style()
fig, ax = plt.subplots()
ax.plot([1, 2], [1, 4])
ax.set(title="It rises", xlabel="$x$", ylabel="$y$")
plots.show(fig, **{GOOD!r})"""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(book, timeout=120).execute()
    picture, caption = book.cells[0].outputs  # no third: the figure is closed, and no font is missed
    assert picture.data[plots.FIGURE_MIME] == GOOD
    assert picture.data["text/plain"] == GOOD["alt"]
    size = Image.open(io.BytesIO(base64.b64decode(picture.data["image/png"]))).size
    shown = picture.metadata["image/png"]
    assert size == (2 * shown["width"], 2 * shown["height"])
    assert caption.data["text/markdown"] == "*A line, $y = x^2$.*"
    assert caption.metadata["worked_papers"] == {"role": "caption"}
    nbformat.validate(book)


def test_text_is_at_least_11_points_at_6_4_inches(fig):
    fig.axes[0].set(title="Title", xlabel="x", ylabel="y")
    fig.axes[0].legend(["y"], title="legend")
    fig.draw_without_rendering()
    sizes = [t.get_fontsize() for t in fig.findobj(mpl.text.Text) if t.get_text()]
    assert fig.get_figwidth() == plots.WIDTH == 6.4
    assert len(sizes) > 5
    assert min(sizes) >= 11


# Colours in linear RGB as dichromats see them (Machado, Oliveira & Fernandes 2009, severity 1).
SEEN = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour, seen):
    """CIELAB coordinates of a colour; a distance of 2 is just noticeable between large patches."""
    rgb = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(TO_XYZ @ np.clip(np.array(seen) @ linear, 0, 1) / TO_XYZ.sum(1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SEEN)
def test_the_first_four_colours_and_the_controls_grey_stay_apart_for_every_reader(sight):
    colours = [lab(colour, SEEN[sight]) for colour in (*plots.PALETTE[:4], plots.CONTROL)]
    assert min(np.linalg.norm(a - b) for a, b in combinations(colours, 2)) > 15


def test_the_band_has_the_lines_colour_and_no_entry_of_its_own_in_the_legend(fig):
    ax = fig.axes[0]
    plots.band(ax, [0, 1], [1, 2], [0.5, 1.5], [1.5, 2.5], color=plots.RED, label="mean", linestyle="--")
    line, area = ax.lines[-1], ax.collections[-1]
    assert line.get_color() == plots.RED
    assert mpl.colors.to_hex(area.get_facecolor()[0]) == plots.RED.lower()
    assert ax.get_legend_handles_labels()[1] == ["mean"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alt": "a plot."}, "alt='a plot.': state the figure's message"),
        ({"alt": "The line rises from left to right"}, "with a full stop"),
        ({"caption": " "}, "fig-rising-line: the caption is empty"),
        ({"name": "rising line"}, "expected the form fig-some-words"),
        ({"name": 'fig-x" onload="'}, "expected the form fig-some-words"),
    ],
)
def test_a_figure_without_message_caption_or_anchor_is_refused(fig, change, message):
    with pytest.raises(ValueError, match=message):
        plots.show(fig, **{**GOOD, **change})


def test_a_figure_offers_its_numbers_as_csv_with_both_ends_of_each_interval(fig, monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", lambda data, **options: shown.append(data))
    rows = [
        {"layer": 0, "accuracy (%)": Estimate(90, 80, 95, 9)},
        {"layer": 1, "accuracy (%)": Estimate(5, 1, 9, 9)},
    ]
    plots.show(fig, **GOOD, data=rows, main=True)
    facts = shown[0][plots.FIGURE_MIME]
    assert facts["main"] is True
    lines = facts["csv"].splitlines()
    assert lines[0] == 'layer,accuracy (%),"accuracy (%), low","accuracy (%), high"'
    assert lines[1:] == ["0,90.0,80.0,95.0", "1,5.0,1.0,9.0"]


def test_dots_show_the_interval_and_each_of_a_few_seeds(fig):
    ax = fig.axes[0]
    ax.clear()
    plots.dots(ax, [0, 1], [Estimate(2, 1, 4, 3, values=(1.0, 2.0, 3.0)), Estimate(5, 5, 6, 50)], color="k")
    drawn = [tuple(np.column_stack(line.get_data()).tolist()) for line in ax.lines]
    assert ([0.0, 1.0], [0.0, 2.0], [0.0, 3.0]) in [tuple(map(list, points)) for points in drawn]
    ends = np.array([segment for bars in ax.collections for segment in bars.get_segments()])
    assert ends[:, :, 1].tolist() == [[1, 4], [5, 6]]


def test_a_table_writes_estimates_with_their_intervals(monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", shown.append)
    plots.table([{"head": 1, "share": Estimate(0.5, 0.4, 0.6, 9)}], "What heads do", unit="share")
    html = shown[0].to_html()
    assert "0.5 [0.4, 0.6]" in html.replace("0.50", "0.5").replace("0.40", "0.4").replace("0.60", "0.6")
    assert "What heads do (share)" in html
