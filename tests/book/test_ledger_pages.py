"""What pages show of the ledger: a small site of one chapter whose results are made up."""

import base64
import csv
import io
import json
import re

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from PIL import Image
from sphinx.application import Sphinx

from book.site import gallery, results, theme
from lib import ROOT, claims, papers
from lib.plots import FIGURE_MIME
from lib.stats import Estimate

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
SLUG = "lambda-vit"
PAPER = papers.read(SLUG)
MAIN_ALT = "The main figure shows what was found here."
VERDICTS = list(claims.BADGES)


def display(**data):
    data = {mime.replace("_", "/"): content for mime, content in data.items()}
    return nbformat.v4.new_output("display_data", data=data)


def record(i, verdict, **more):
    found = claims.ClaimRecord(
        PAPER.claims[i], verdict, "so it came out", Estimate(i, i - 0.5, i + 0.5, 9), **more
    )
    output = display(text_plain=str(found), text_html=claims._html(found))
    output.data[claims.CLAIM_MIME] = found.to_json()
    return output


def finding(i, verdict):
    text = f"Finding number **{i}**, where $k = {i}$."
    output = display(text_plain=text, text_markdown=text)
    output.data[claims.FINDING_MIME] = {"text": text, "verdict": verdict, "claims": [PAPER.claims[i].id]}
    return output


def figure(name, **more):
    Image.new("RGB", (1200, 600), "navy").save(png := io.BytesIO(), format="png")
    output = display(text_plain=name, image_png=base64.b64encode(png.getvalue()).decode())
    output.data[FIGURE_MIME] = {
        "alt": f"The figure {name} shows nothing.",
        "caption": "Look.",
        "name": name,
    } | more
    return output


def notebook():
    recorded = claims.RecordedRun("large", "n = 9", Estimate(2, 1, 3, 9), "holds")
    real = claims.RecordedRun("real", "", Estimate(3, 2, 4, 9), "does not hold", model="a model, Q4_1")
    twin = claims.RecordedRun("untrained", "", None, "not testable here", reason="Task not done.")
    holds = claims.RecordedRun("untrained", "", Estimate(2, 1, 3, 9), "holds")
    seeds = tuple(
        claims.RecordedRun("seeds", f"seed = {n}", None, verdict)
        for n, verdict in enumerate(("undecided", "holds"))
    )
    code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    return nbformat.v4.new_notebook(
        metadata={"language_info": {"name": "python", "pygments_lexer": "ipython3"}},
        cells=[
            text("# Small\n\nThe question."),
            code("n: int = 1  # size", metadata={"tags": ["parameters"]}),
            text("## The phenomenon"),
            code(
                "def helper():\n    return 1", outputs=[figure("fig-first", csv="layer,accuracy (%)\n0,91\n")]
            ),
            code("def equation():\n    return 2", metadata={"tags": ["core"]}),
            text("## Claims"),
            code("claim(0)", outputs=[record(0, "holds"), finding(0, "holds")]),
            code(
                "claim(1)",
                outputs=[
                    record(1, "undecided", recorded=(recorded,), seeds=seeds, real=real),
                    finding(1, "undecided"),
                ],
            ),
            code("claim(2)", outputs=[record(2, "does not hold"), finding(2, "does not hold")]),
            code(
                "claim(3)",
                outputs=[record(3, "holds, smaller", untrained=holds), finding(3, "holds, smaller")],
            ),
            code("claim(5)", outputs=[record(5, "does not hold", untrained=twin)]),
            code("show()", outputs=[figure("fig-main", alt=MAIN_ALT, main=True)]),
        ],
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    for folder in ("notebooks", "book"):
        (source / folder).mkdir()
    pages = {
        "index": f"```{{gallery}}\n```\n```{{toctree}}\nscoreboard\norganisms\n../notebooks/{SLUG}\n```\n",
        "scoreboard": "```{scoreboard}\n```\n",
        "organisms": "",
    }
    for name, made in pages.items():
        (source / "book" / f"{name}.md").write_text(f"# Page\n\n{made}")
    nbformat.write(notebook(), source / "notebooks" / f"{SLUG}.ipynb")
    other_extensions = ("bibtex_", "sitemap_", "ogp_")
    config = {
        key: value
        for key, value in CONFIG["sphinx"]["config"].items()
        if not key.startswith(other_extensions)
    }
    app = Sphinx(
        source,
        None,
        out,
        source / "doctrees",
        "html",
        confoverrides=config
        | {
            "extensions": ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "book.site"],
            "html_theme_options": {"repository_url": CONFIG["repository"]["url"]},
            "myst_enable_extensions": CONFIG["parse"]["myst_enable_extensions"],
            "root_doc": "book/index",
            "exclude_patterns": ["book/api"],
            "nb_execution_mode": "off",
            "suppress_warnings": ["config.cache"],
        },
        status=None,
        warning=(warnings := io.StringIO()),
    )
    app.build()
    assert warnings.getvalue() == ""
    return out


def read(site, name):
    return BeautifulSoup((site / name).read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def page(site):
    return read(site, f"notebooks/{SLUG}.html")


def test_the_head_of_a_chapter_is_title_card_findings_figure(page):
    head = page.select("article h1, .paper, .finding, figure, article section section > h2")
    names = [element.get("id") or (element.get("class") or [element.name])[0] for element in head]
    assert names[: names.index("h2")] == ["h1", "paper", "finding", "finding", "finding", "fig-main"]
    assert page.select_one("figure").find_next("p", string="The question.")
    assert page.select_one("#fig-main figcaption").get_text().strip().startswith("Figure 1")
    described = page.select_one('meta[name="description"]')["content"]
    assert described == " ".join(PAPER.asks.split())
    assert page.select_one("#fig-main img")["alt"] == MAIN_ALT


def test_findings_are_those_that_were_made_first_with_a_link_to_their_rows(page):
    top, place = page.select(".findings .finding"), page.select("#claims .finding")
    assert ["number 0" in top[0].text, "number 1" in top[1].text, "number 2" in top[2].text] == [True] * 3
    assert [finding.strong.get_text() for finding in place] == ["3"]  # a fourth stays where it was made
    for finding in top + place:
        assert finding.math
        assert page.select_one(finding.a["href"])["class"] == ["wp-claim"]
    assert [finding.a["class"][:2] for finding in top] == [
        ["badge", "wp-holds"],
        ["badge", "wp-undecided"],
        ["badge", "wp-fails"],
    ]


def test_where_the_main_figure_was_made_a_link_leads_to_it(page):
    (moved,) = page.select(".moved")
    assert moved.a["href"] == "#fig-main"
    assert len(page.select("figure")) == 2


def test_code_is_folded_but_the_core(page):
    folded = {pre.get_text().split("\n")[0] for pre in page.select("details pre")}
    every = {pre.get_text().split("\n")[0] for pre in page.select(".cell_input pre")}
    assert every - folded == {"def equation():"}
    prompts = [prompt.get_text() for prompt in page.select("summary .collapsed")]
    assert prompts[:3] == ["Show the code: the parameters", "Show the code: helper", "Show the code"]


def test_a_figures_numbers_lie_beside_it(site, page):
    (link,) = page.select("a.numbers")
    assert link.find_parent("figure")["id"] == "fig-first"
    file = (site / "notebooks" / link["href"]).resolve()
    assert file.name == f"{SLUG}-first.csv"
    assert file.read_text() == "layer,accuracy (%)\n0,91\n"


def test_the_card_counts_what_the_recorded_run_decided(page):
    counted = [badge.get_text() for badge in page.select(".paper .badge")]
    held = [int(badge.rpartition(" ")[2]) for badge in counted if badge.startswith("✓ holds:")]
    assert sum(held) == 2  # of the paper's claims and of the book's
    assert not any("undecided" in badge for badge in counted)


def test_the_scoreboard_has_a_row_for_each_claim_grouped_by_paper(site):
    board = read(site, "book/scoreboard.html")
    rows = board.select("#scoreboard-table tbody tr:not(.group)")
    assert len(rows) == sum(len(paper.claims) for paper in papers.all_papers())
    assert len(board.select("tr.group")) == len(papers.slugs())
    first, second = board.tbody.select("tr:not(.group)")[:2]
    assert PAPER.claims[0].text in first.th.get_text()
    assert first.select_one(".badge")["href"] == f"../notebooks/{SLUG}.html#claim-{SLUG}-1"
    cells = {cell["data-label"]: cell.get_text(" ", strip=True) for cell in second.select("td")}
    assert cells["This run"].startswith("1.00 [0.50, 1.50]")
    assert cells["Recorded"].startswith("2.0 [1.0, 3.0]")
    assert cells["Seeds"] == "1 of 2 agree"
    assert cells["Real"] == "3.0 [2.0, 4.0] points: does not hold a model, Q4_1"
    assert cells["Untrained"] == "left out"  # as the facts declare
    assert (second["data-real"], second["data-untrained"]) == ("does not hold", "left out")
    assert [rows[i]["data-untrained"] for i in (3, 5)] == ["holds", "not testable here"]
    by_seed, twins = board.select("details.seeds")
    assert "1 of 1 claims" in " ".join(by_seed.summary.get_text().split())
    assert "1 of 2 claims hold on untrained twins" in twins.summary.get_text()
    assert "1 cannot be tested there" in twins.summary.get_text()
    assert [item.a.get_text() for item in twins.select("li") if item.a] == [f"{SLUG}.4"]
    (changed,) = by_seed.select("li")
    assert changed.a["href"] == f"../notebooks/{SLUG}.html#claim-{SLUG}-2"
    assert "seed = 0: undecided; seed = 1: holds" in changed.get_text()
    assert cells["Verdict"] == "✓ holds by a recorded run; this run: undecided"
    assert [rows[i]["data-verdict"] for i in range(5)] == ["holds", "holds", *VERDICTS[3:0:-2], "no result"]
    assert {row["data-verdict"] for row in board.select("tr.planned")} == {"planned"}


def test_the_scoreboards_files_hold_every_claim(site):
    board = read(site, "book/scoreboard.html")
    files = [(site / "book" / link["href"]).resolve() for link in board.select(".downloads a")]
    assert [file.suffix for file in files] == [".csv", ".json"]
    rows = list(csv.DictReader(io.StringIO(files[0].read_text())))
    stored = {one["claim"]["id"]: one for one in json.loads(files[1].read_text())}
    assert [row["id"] for row in rows] == list(stored)
    row = next(row for row in rows if row["id"] == f"{SLUG}.2")
    assert (row["verdict"], row["decided"], row["seeds that agree"], row["seeds"]) == (
        "undecided",
        "holds",
        "1",
        "2",
    )
    assert [float(row[f"estimate{part}"]) for part in ("", ", low", ", high")] == [1, 0.5, 1.5]
    assert (row["real, verdict"], float(row["real, low"])) == ("does not hold", 2)
    (held,) = (row for row in rows if row["id"] == f"{SLUG}.4")
    assert (held["untrained, verdict"], float(held["untrained, value"])) == ("holds", 2)
    assert row["text"] == PAPER.claims[1].text
    assert stored[f"{SLUG}.2"]["recorded"][0]["settings"] == "n = 9"


def test_the_gallery_shows_every_paper_and_the_picture_of_the_written_one(site):
    front = read(site, "book/index.html")
    questions = {question.get_text() for question in front.select(".gallery .asks")}
    assert questions == {" ".join(paper.asks.split()) for paper in papers.all_papers()}
    (shown,) = front.select(".gallery figure")
    assert shown.img["alt"] == MAIN_ALT
    with Image.open((site / "book" / shown.img["src"]).resolve()) as picture:
        assert picture.size == (480, 240) == (int(shown.img["width"]), int(shown.img["height"]))
    assert shown.select_one(".found strong").get_text() == "0"
    assert shown.select_one(".found math")
    strip = shown.select_one(".strip")
    assert len(strip.select("span")) == len(PAPER.claims)
    spoken = re.findall(r"(\d+) holds\b(?!, smaller)", strip["aria-label"])
    assert sum(map(int, spoken)) == 2
    assert not front.select(".planned a")


def test_the_papers_claims_and_the_books_are_counted_apart():
    held = claims.ClaimRecord(PAPER.claims[0], "holds", "")
    rows = [
        results.Row(PAPER.claims[0], held),
        results.Row(PAPER.claims[1].model_copy(update={"by": "book"}), held),
    ]
    rows.append(results.Row(PAPER.claims[2].model_copy(update={"by": "book"})))
    assert results.counts(rows, "paper") == {"holds": 1}
    assert results.counts(rows, "book") == {"holds": 1, "no result": 1}
    assert gallery.spoken(results.Chapter(PAPER, "", rows)) == (
        "Claims by the paper: 1 holds; by the book: 1 holds, 1 no result"
    )


def test_a_chapter_without_findings_or_main_figure_shows_its_first_one(tmp_path):
    plain = notebook()
    plain.cells = plain.cells[:4]
    nbformat.write(plain, tmp_path / "small.ipynb")
    run, findings, picture = results.executed(tmp_path / "small.ipynb")
    assert (run, findings, picture["name"]) == ({}, [], "fig-first")
    assert gallery.thumbnail(None, "", results.Chapter(PAPER, "", [], picture=None)) is None


def test_a_finding_in_the_gallery_is_markdown_with_maths_and_no_html():
    html = gallery.inline("A *small* <b>one</b> where $k < 2$.")
    assert html.startswith("A <em>small</em> &lt;b&gt;one&lt;/b&gt; where <math")


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("css", [css for css, _, _ in claims.BADGES.values()])
def test_white_on_a_verdicts_colour_can_be_read_in_light_and_dark(css):
    style = (theme.STATIC / "book.css").read_text()
    colours = re.search(rf"--{css}: light-dark\((#\w+), (#\w+)\)", style).groups()
    assert all(1.05 / (luminance(colour) + 0.05) >= 4.5 for colour in colours)
    if css != "wp-untested":  # the badges' own colour
        assert f".badge.{css} {{ background: var(--{css}); }}" in style
        assert f".strip .{css} {{ background: var(--{css}); }}" in style


@pytest.mark.parametrize("slug", [p.slug for p in papers.all_papers() if "untrained" in p.presets])
def test_a_chapter_is_recorded_on_untrained_twins_and_what_holds_there_is_explained(slug):
    facts = papers.read(slug).claims
    on_twins = {claim.id: claims._recorded(claims.ClaimRecord(claim, "undecided", "")) for claim in facts}
    tried = {id for id, found in on_twins.items() if found.untrained}
    assert tried == {claim.id for claim in facts if claim.testable and not claim.no_twin}
    hold = {id for id in tried if on_twins[id].untrained.verdict.startswith("holds")}
    assert hold == {claim.id for claim in facts if claim.twin_holds}
