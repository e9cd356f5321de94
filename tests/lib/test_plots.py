"""A figure reaches the notebook with its alt text, caption and anchor."""

import base64
import io
import re
import subprocess
import sys
from itertools import combinations

import browser as program
import matplotlib as mpl
import matplotlib.pyplot as plt
import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

from lib import ROOT, plots

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


# Words that show where a model looked

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
WORDS = ["a", "red", "disc", ",", "a", "blue", "moon", "and", "a", "green", "cross", "."]
MAPS = RNG.dirichlet(np.full(64, 0.1), (12, 6, 8)).reshape(12, 6, 8, 8, 8)


@pytest.fixture
def shown(monkeypatch):
    """Displays an element; what it puts out."""

    def show(image=IMAGE, words=WORDS, maps=MAPS, **change):
        outputs = []
        monkeypatch.setattr(plots, "display", lambda data, **options: outputs.append(data))
        plots.hover_words(image, words, maps, **{**GOOD, **change})
        return outputs[0]

    return show


def values(html):
    """The maps of a page, [word, layer, mean and heads, row, column]."""
    shape = [int(n) for n in re.search(r'data-shape="(.*?)"', html)[1].split()]
    levels = np.frombuffer(base64.b64decode(re.search(r'data-maps="(.*?)"', html)[1]), np.uint8)
    peaks = np.array(re.search(r'data-peaks="(.*?)"', html)[1].split(), float)
    return levels.reshape(shape) / 255 * peaks.reshape(*shape[:3], 1, 1)


def test_the_words_carry_their_maps_and_the_means_over_heads(shown):
    found = values(shown()["text/html"])
    expected = np.concatenate([MAPS.mean(2, keepdims=True), MAPS], 2)
    peaks = expected.max((3, 4), keepdims=True)
    assert np.abs(found - expected).max() <= (peaks * (0.5 / 255 + 0.05)).max()  # 8 bits, 2 digits


def test_an_element_is_small_and_comes_with_a_picture_and_its_facts(shown):
    data = shown()
    assert len(data["text/html"]) <= 100_000
    assert Image.open(io.BytesIO(data["image/png"])).size[0] == 2 * 96 * plots.WIDTH // 1
    assert data[plots.FIGURE_MIME] == GOOD
    assert data["text/plain"] == GOOD["alt"]
    assert not re.search(r"(src|href)=|@import|url\((?!data:)", data["text/html"])


def test_of_too_many_values_heads_then_squares_are_put_together_and_then_words_left_out(shown):
    maps = RNG.random((2, 20, 32, 24, 24), dtype=np.float32)
    found = values(shown(words=["a", "b"], maps=maps)["text/html"])
    assert np.abs(found[:, :, 0] - maps.mean(2)).max() < 0.05
    maps = RNG.random((40, 20, 2, 24, 24), dtype=np.float32)
    found = values(shown(words=["a"] * 40, maps=maps)["text/html"])
    expected = maps.mean(2).reshape(40, 20, 12, 2, 12, 2).sum((3, 5))
    assert found.shape == (40, 20, 1, 12, 12)
    assert np.abs(found[:, :, 0] - expected).max() < 0.2
    html = shown(words=[f"word{i}" for i in range(60)], maps=np.ones((60, 20, 1, 27, 27)))["text/html"]
    assert values(html).shape == (20, 20, 1, 27, 27)
    assert "(the first 20 of 60):" in html
    assert "word19" in html
    assert "word20" not in html


def test_words_are_text_and_never_markup(shown):
    html = shown(words=["<script>x()</script>", "$x$", '"'], maps=MAPS[:3])["text/html"]
    assert "<span>&lt;script&gt;x()&lt;/script&gt;</span>" in html
    assert "<span>$x$</span>" in html


def test_a_map_of_zeros_is_dark(shown):
    assert (values(shown(words=["a"], maps=np.zeros((1, 1, 1, 2, 2)))["text/html"]) == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": ["a"]}, r"fig-rising-line: 1 words, and maps of the shape \(12, 6, 8, 8, 8\); expected"),
        ({"maps": MAPS[0], "words": WORDS[:6]}, r"6 words, and maps of the shape \(6, 8, 8, 8\)"),
        ({"words": [], "maps": MAPS[:0]}, "0 words"),
        ({"maps": -MAPS}, "negative, infinite or NaN"),
        ({"maps": MAPS * np.nan}, "negative, infinite or NaN"),
        ({"image": IMAGE / 255}, r"the image is float64 \(64, 64, 3\); expected uint8"),
        ({"image": IMAGE[..., 0]}, "expected uint8"),
        ({"alt": "Words."}, "state the figure's message"),
        ({"name": 'x"'}, "expected the form fig-some-words"),
    ],
)
def test_words_maps_and_image_that_do_not_fit_are_refused(shown, change, message):
    with pytest.raises(ValueError, match=message):
        shown(**change)


CONF = """
import sys
sys.path.append({path!r})
extensions = ["myst_nb", "worked_papers.outputs"]
html_theme = "basic"
html_static_path = [{static!r}]
html_css_files = ["book.css"]
nb_execution_mode = "off"
html_title = "Words"
html_permalinks = False
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with two elements, built by the book's extension: its address."""
    browsing = pytest.importorskip("browsing")
    folder = tmp_path_factory.mktemp("words")
    outputs = []
    with pytest.MonkeyPatch.context() as patch, mpl.rc_context():
        patch.setattr(plots, "display", lambda data, **options: outputs.append((data, options)))
        plots.style()
        plots.hover_words(IMAGE, WORDS, MAPS, **GOOD)
        plots.hover_words(IMAGE[::-1], WORDS[:3], MAPS[3:6], **GOOD | {"name": "fig-other"})
    cell = nbformat.v4.new_code_cell("show()")
    for data, options in outputs:
        data = {k: base64.b64encode(v).decode() if k == "image/png" else v for k, v in data.items()}
        cell.outputs.append(nbformat.v4.new_output("display_data", data, metadata=options["metadata"]))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Words"), cell])
    book.metadata.language_info = {"name": "python", "pygments_lexer": "python"}
    nbformat.write(book, folder / "index.ipynb")
    extension, static = str(ROOT / "book/_ext"), str(ROOT / "book/_theme/static")
    (folder / "conf.py").write_text(CONF.format(path=extension, static=static))
    command = [sys.executable, "-m", "sphinx", "-q", "-W", str(folder), str(folder / "site")]
    subprocess.run(command, check=True, timeout=120)
    with browsing.served(folder / "site") as address:
        yield address + "index.html"


@pytest.mark.site
@pytest.mark.xdist_group("chapters")  # shares their browser
@pytest.mark.skipif(program.SKIPPED, reason="BROWSER=skip")
class TestInABrowser:
    @pytest.fixture
    def opened(self, chromium, page):
        """Opens the page; errors in the console fail the test."""
        errors, contexts = [], []

        def start(**options):
            contexts.append(chromium.new_context(**options))
            opened = contexts[-1].new_page()
            opened.on("pageerror", lambda error: errors.append(str(error)))
            opened.goto(page)
            return opened

        yield start
        for context in contexts:
            context.close()
        assert errors == []

    @staticmethod
    def canvas(page, name="fig-rising-line", panel=0):
        """Alpha and red of a panel's map, by row and column."""
        script = """(c) => [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data]"""
        pixels = page.locator(f"#{name} canvas").nth(panel).evaluate(script)
        return np.array(pixels).reshape(8, 8, 4)

    @staticmethod
    def brightest(pixels):
        return np.unravel_index(pixels[..., 0].argmax(), (8, 8))

    @staticmethod
    def most(maps):
        return np.unravel_index(maps.argmax(), (8, 8))

    def test_pointing_tapping_and_arrow_keys_choose_the_word(self, opened):
        page = opened()
        words = page.locator("#fig-rising-line label:has(input)")
        assert words.all_inner_texts() == WORDS
        mean = MAPS.mean(2)
        assert self.brightest(self.canvas(page)) == self.most(mean[0, 0])
        words.nth(5).hover()
        assert self.brightest(self.canvas(page, panel=2)) == self.most(mean[5, 2])
        page.keyboard.press("Tab")
        words.nth(5).locator("input").focus()
        page.keyboard.press("ArrowRight")
        assert self.brightest(self.canvas(page)) == self.most(mean[6, 0])
        touch = opened(has_touch=True)
        touch.locator("#fig-rising-line label:has(input)").nth(3).tap()
        assert self.brightest(self.canvas(touch)) == self.most(mean[3, 0])

    def test_lists_choose_layer_and_head(self, opened):
        page = opened()
        layer, head = (page.locator("#fig-rising-line select").nth(i) for i in (0, 1))
        panels = page.locator("#fig-rising-line canvas")
        assert panels.count() == 6
        layer.select_option("layer 4")
        head.select_option("head 7")
        assert panels.count() == 1
        assert self.brightest(self.canvas(page)) == self.most(MAPS[0, 4, 7])
        row, column = self.most(MAPS[0, 4, 7])
        label = f"layer 4, head 7: most in row {row + 1} of 8, column {column + 1} of 8"
        assert panels.get_attribute("aria-label") == label
        head.select_option("each head")
        assert panels.count() == 8
        assert self.brightest(self.canvas(page, panel=5)) == self.most(MAPS[0, 4, 5])
        layer.select_option("each layer")
        assert panels.count() == 48
        assert self.brightest(self.canvas(page, panel=8 * 2 + 3)) == self.most(MAPS[0, 2, 3])

    def test_two_elements_do_not_disturb_each_other(self, opened):
        page = opened()
        page.locator("#fig-other label:has(input)").nth(2).hover()
        assert self.brightest(self.canvas(page, "fig-other")) == self.most(MAPS[5, 0].mean(0))
        assert self.brightest(self.canvas(page)) == self.most(MAPS[0, 0].mean(0))
        ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map((e) => e.id)")
        assert len(ids) == len(set(ids))

    def test_without_scripts_there_is_the_picture_with_its_alt_text(self, opened):
        page = opened(java_script_enabled=False)
        picture = page.locator("#fig-rising-line img")
        assert picture.get_attribute("alt") == GOOD["alt"]
        assert picture.is_visible()
        assert not page.locator("#fig-rising-line .wp-hover").is_visible()
        assert opened().locator("#fig-rising-line img").count() == 0

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [1280, 375])
    def test_axe_finds_nothing_and_nothing_sticks_out(self, opened, width, scheme):
        import browsing

        page = opened(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.locator("#fig-other input").first.focus()
        rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa"]}
        found = browsing.Axe().run(page, options=rules).response["violations"]
        assert [(v["id"], [n["html"][:150] for n in v["nodes"]]) for v in found] == []
        assert page.evaluate(browsing.OVERFLOW) <= 0
        outline = "e => getComputedStyle(e.nextElementSibling).outlineStyle"
        page.keyboard.press("ArrowRight")
        assert page.locator("#fig-other input:checked").evaluate(outline) == "solid"
