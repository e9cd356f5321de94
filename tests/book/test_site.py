"""The website as a reader's browser gets it: built from the chapters at `smoke`, the network blocked.

`SITE=folder` looks at a site that is built already.
"""

import json
import os
import re
from pathlib import Path
from urllib.parse import quote, unquote, urldefrag, urlsplit

import browser as program
import pytest
import yaml

from book.site import api, build, live
from lib import ROOT, chapters, papers

pytestmark = [
    pytest.mark.site,
    pytest.mark.skipif(program.SKIPPED, reason="BROWSER=skip"),
]
browsing = pytest.importorskip("browsing")
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())


@pytest.fixture(scope="session")
def site(request, tmp_path_factory):
    """Folder of the site; its name is the path at which it is published."""
    name = CONFIG["repository"]["url"].rpartition("/")[2]
    folder = tmp_path_factory.mktemp("published") / name
    if "SITE" in os.environ:
        folder.symlink_to(Path(os.environ["SITE"]).resolve())
        return folder
    build.publish(request.getfixturevalue("smoke_run"), folder)
    return folder


@pytest.fixture(scope="session")
def pages(site):
    return sorted(str(path.relative_to(site)) for path in site.rglob("*.html") if path.name != "404.html")


@pytest.fixture(scope="session")
def base(site):
    with browsing.served(site) as address:
        yield address


@pytest.fixture(scope="session")
def visits(chromium, base, pages):
    """Every page but the site's root, which leads on at once."""
    shown = [name for name in pages if name != "index.html"]
    modules = [name for name in shown if name.startswith("book/api/")]  # of one template: axe reads a few
    return browsing.tour(chromium, base, shown, judged=set(shown) - set(modules[3:]))


def problems(visits, what):
    """Page -> what is wrong with it, where anything is."""
    return {name: found for name, visit in visits.items() if (found := what(visit))}


def test_the_pages_that_must_exist_are_there_and_no_others(pages):
    expected = [f"{name}.html" for name in build.pages(TOC)] + ["index.html", "search.html"]
    assert pages == sorted(expected)
    assert len(expected) == len(chapters.slugs()) + len(api.modules()) + 9


def test_the_root_of_the_site_leads_to_the_book(chromium, base):
    page = chromium.new_page()
    page.goto(base)
    page.wait_for_url(base + "book/index.html")
    page.close()


def test_no_page_asks_another_server_for_anything(visits):
    assert problems(visits, lambda visit: visit.foreign) == {}


def test_no_page_writes_an_error_to_the_console(visits):
    assert problems(visits, lambda visit: visit.console) == {}


def test_everything_a_page_loads_is_there(visits):
    assert problems(visits, lambda visit: visit.missing) == {}


def test_a_page_without_its_figures_is_below_a_megabyte(visits):
    assert problems(visits, lambda visit: visit.bytes if visit.bytes >= 1_000_000 else 0) == {}
    assert all(visit.bytes > 10_000 for visit in visits.values())  # it was measured


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
)
def test_axe_finds_nothing(visits, width, scheme):
    assert problems(visits, lambda visit: visit.violations.get((width, scheme))) == {}


def test_no_page_scrolls_sideways_on_a_phone(visits):
    assert problems(visits, lambda visit: visit.overflow if visit.overflow > 0 else 0) == {}


def test_no_code_scrolls_sideways_on_a_screen(visits):
    assert problems(visits, lambda visit: visit.seen["code"]) == {}


def test_the_pages_of_the_library_and_the_organisms_can_be_scrolled_through(visits):
    """An organism's card is folded, so are a chapter's claims; each module has a page of its own."""
    heights = {name: visit.seen["height"] for name, visit in visits.items() if name.startswith("book/")}
    assert {name: height for name, height in heights.items() if height > 16_000} == {}


def test_no_maths_is_left_as_source(visits):
    source = re.compile(r"\\[a-zA-Z]+\b|\\[(\[]|\$[^$\s][^$\n]*\$|\{(math|eq|cite)[:}]")
    assert problems(visits, lambda visit: source.findall(visit.seen["prose"])) == {}


def test_every_figure_says_its_message_in_a_sentence_and_has_a_caption(visits):
    def wrong(visit):
        return [
            figure
            for figure in visit.seen["figures"]
            if len(figure["alt"].split()) < 5
            or not figure["alt"].endswith(".")
            or len(figure["caption"].split()) < 5
            or not figure["drawn"]
        ]

    assert problems(visits, wrong) == {}
    for slug in chapters.slugs():
        assert visits[f"notebooks/{slug}.html"].seen["figures"]


def test_every_chapter_counts_its_figures_from_one(site):
    for slug in chapters.slugs():
        page = (site / "notebooks" / f"{slug}.html").read_text(encoding="utf-8")
        numbers = [int(n) for n in re.findall(r'caption-number">Figure (\d+)', page)]
        assert numbers == list(range(1, len(numbers) + 1))


def test_every_page_describes_itself_to_search_engines_and_cards(visits, site):
    published = f"https://{urlsplit(CONFIG['repository']['url']).path.split('/')[1]}.github.io/{site.name}/"
    for name, visit in visits.items():
        meta = visit.seen["meta"]
        assert len(meta["description"].split()) >= 5, name
        if name != "search.html":
            assert meta["canonical"] == meta["og:url"] == published + name
            assert meta["og:title"]
            card = meta["og:image"].removeprefix(published)
            assert (site / card).is_file(), card
    sitemap = (site / "sitemap.xml").read_text()
    assert set(re.findall(r"<loc>(.*?)</loc>", sitemap)) == {
        published + name for name in visits if name != "search.html"
    }


def test_links_within_the_site_lead_somewhere(visits, site, base):
    dead = []
    for name, visit in visits.items():
        for link in visit.seen["links"]:
            address, fragment = urldefrag(link)
            if not address.startswith(base):
                assert address.startswith(("https://", "mailto:")), f"{name}: {link}"
                continue
            target = unquote(urlsplit(address.removeprefix(base)).path)
            there = visits.get(target)
            if not (site / target).is_file() or (fragment and there and fragment not in there.seen["ids"]):
                dead.append(f"{name} -> {link}")
    assert dead == []


@pytest.mark.parametrize("slug", chapters.slugs())
def test_the_buttons_of_a_chapter_lead_to_its_executed_notebook(visits, site, base, slug):
    links = visits[f"notebooks/{slug}.html"].seen["links"]
    file = f"_sources/notebooks/{slug}.ipynb"
    assert base + file in links
    owner_and_name = urlsplit(CONFIG["repository"]["url"]).path
    colab = f"https://colab.research.google.com/github{owner_and_name}/blob/gh-pages/{file}"
    assert colab in links
    notebook = json.loads((site / file).read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert f'REPOSITORY = "{CONFIG["repository"]["url"]}"' in "".join(code[0]["source"])
    assert any(cell["outputs"] for cell in code)


@pytest.fixture
def board(chromium, base):
    page = chromium.new_page()
    page.goto(base + "book/scoreboard.html")
    yield page
    page.close()


CLAIMS = [(paper, claim) for paper in papers.all_papers() for claim in paper.claims]
VISIBLE = "#scoreboard-table tr:not(.group):visible"


def test_the_scoreboard_has_all_claims_and_filters_them(board):
    visible = board.locator(VISIBLE).filter(has=board.locator("td"))
    written = [claim for paper, claim in CLAIMS if paper.status == "written"]
    assert board.locator("#scoreboard-table tbody tr:not(.group)").count() == len(CLAIMS)
    assert visible.count() == 0
    board.locator("tr.group .fold:visible").first.click()
    assert 0 < visible.count() < len(written)
    board.click("button[name=open]")
    assert visible.count() == len(written)
    board.select_option("select[name=verdict]", "planned")
    assert visible.count() == len(CLAIMS) - len(written)
    board.select_option("select[name=area]", "safety")
    assert visible.count() == sum(p.area == "safety" and p.status == "planned" for p, _ in CLAIMS)
    board.click("form.filter button[type=reset]")
    browsing.expect(visible).to_have_count(0)
    board.select_option("select[name=by]", "paper")
    assert visible.count() == sum(claim.by == "paper" for _, claim in CLAIMS)
    board.fill("input[name=words]", "no such words anywhere")
    assert visible.count() == 0
    assert board.locator("tr.group:visible").count() == 0
    assert board.locator("form.filter [role=status]").inner_text() == f"0 of {len(CLAIMS)} claims"


@pytest.mark.parametrize("word", ["fingerprint", "pruning", "underflow"])
def test_the_scoreboard_finds_claims_by_their_words(board, word):
    board.fill("input[name=words]", word)
    found = board.locator(VISIBLE).filter(has=board.locator("td"))
    texts = [text.lower() for text in found.locator("th").all_inner_texts()]
    says = [claim.text for _, claim in CLAIMS if word in claim.text.lower()]
    assert says
    assert all(any(" ".join(text.lower().split()) in shown for shown in texts) for text in says)


def test_the_front_page_is_light_and_shows_every_paper(visits, site):
    front = visits["book/index.html"]
    pictures = sum(path.stat().st_size for path in (site / "_images").glob("thumbnail-*"))
    assert front.bytes + pictures < 1_000_000
    assert len(front.seen["figures"]) == len(chapters.slugs())
    assert all(" ".join(paper.asks.split()) in front.seen["prose"] for paper in papers.all_papers())


def test_every_figures_numbers_can_be_opened_from_a_folder(chromium, site):
    page = chromium.new_page()
    for file in sorted((site / "notebooks").glob("*.html")):
        page.goto(file.as_uri())
        links = page.locator("a.numbers").evaluate_all("links => links.map((link) => link.href)")
        for link in links:
            rows = Path(unquote(urlsplit(link).path)).read_text(encoding="utf-8").splitlines()
            assert len(rows) >= 2, link
    page.close()


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_search_finds_a_word_and_its_results_can_be_opened(chromium, site, base, scheme):
    start = base if scheme == "http" else f"{site.as_uri()}/"
    context = chromium.new_context()
    foreign: list[str] = []
    browsing.offline(context, start, foreign)
    page = context.new_page()
    page.goto(start + "book/running.html")
    page.locator("header input[name=q]").fill("scheduler dask")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    assert page.locator("#search-results mark").count() > 0
    page.locator("#search-results a").first.click()
    assert "Dask" in page.locator("main").inner_text()
    page.goto(start + "search.html?q=zzzqqq")
    assert "Nothing found" in page.locator("#search-status").inner_text()
    assert foreign == []
    context.close()


@pytest.fixture
def search(chromium, base):
    """Addresses of the search's hits for some words, best first."""
    page = chromium.new_page()

    def hits(words):
        page.goto(f"{base}search.html?q={quote(words)}")
        browsing.expect(page.locator("#search-status")).not_to_be_empty()
        links = page.locator("#search-results a").evaluate_all("links => links.map((link) => link.href)")
        return [link.removeprefix(base) for link in links]

    yield hits
    page.close()


def test_search_finds_whole_words(search):
    assert "book/bibliography.html" not in {urldefrag(hit)[0] for hit in search("ROC")}  # p-roc-eedings
    assert urldefrag(search("INT8")[0])[0] == "notebooks/pahq.html"  # not UInt8


@pytest.mark.parametrize(
    "spellings",
    [
        ("quantization", "quantisation", "quantise", "Quantized"),
        ("generalization", "generalisation"),
        ("colour", "color", "coloured"),
        ("behaviour", "behavior"),
        ("modelling", "modeling"),
    ],
)
def test_search_finds_a_word_in_every_form_and_spelling(search, spellings):
    found = [search(word) for word in spellings]
    assert found[0]
    assert all(hits == found[0] for hits in found)


def test_search_for_quantization_finds_the_paper_that_quantises(search):
    assert urldefrag(search("quantization")[0])[0] == "notebooks/pahq.html"


@pytest.mark.parametrize(
    ("word", "page"), [("REEF", "reef"), ("D-LEAF", "d-leaf"), ("scene-flow", "scene-flow"), ("PAHQ", "pahq")]
)
def test_search_finds_names_with_digits_and_hyphens(search, word, page):
    hits = search(word)
    assert urldefrag(hits[0])[0] == f"notebooks/{page}.html"
    assert search(word.lower()) == hits
    assert urldefrag(search(word.replace("-", ""))[0])[0] == f"notebooks/{page}.html"


def test_search_takes_the_beginning_of_a_word_where_no_word_is_found(search):
    assert search("hallucinati")
    assert search("zzzqqq") == []


def test_a_link_to_an_organism_opens_its_card(chromium, base):
    page = chromium.new_page()
    page.goto(base + "book/organisms.html")
    name = page.locator("section.organism").last.get_attribute("id")
    card = page.locator(f"#{name} > details")
    assert card.get_attribute("open") is None
    page.locator("table").get_by_role("link", name=name, exact=True).click()
    browsing.expect(card).to_have_attribute("open", "")
    page.goto("about:blank")
    page.goto(f"{base}book/organisms.html#{name}")
    browsing.expect(card).to_have_attribute("open", "")
    page.close()


@pytest.mark.parametrize("path", ["/", "/worked-papers/", "/some/where/else/"])
@pytest.mark.parametrize("address", ["nothing", "no/such/deep/page.html", "notebooks/no.html"])
def test_an_unknown_address_shows_a_page_that_leads_back(chromium, site, path, address):
    with browsing.served(site, path) as base:
        context = chromium.new_context()
        browsing.offline(context, base.removesuffix(path), foreign := [])
        page = context.new_page()
        asked = []
        page.on("response", lambda r: asked.append(r.url) if r.request.method == "GET" else None)
        assert page.goto(base + address, wait_until="networkidle").status == 404
        assert asked == [base + address]
        assert page.evaluate("getComputedStyle(document.body).margin") == "0px"  # it has its looks with it
        assert page.locator("svg, img").count() == 0
        assert browsing.Axe().run(page).response["violations"] == []
        page.get_by_role("searchbox").fill("entropy")
        page.keyboard.press("Enter")
        page.wait_for_url(base + "search.html?q=entropy")
        page.goto(base + address, wait_until="networkidle")
        page.get_by_role("link", name="Start of the book").click()
        assert page.url == base + "book/index.html"
        assert foreign == []
        context.close()


def test_without_scripts_an_unknown_address_leads_to_the_published_book(chromium, base):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(base + "no/such/page")
    assert page.get_by_role("heading", name="Page not found").is_visible()
    link = page.get_by_role("link", name="Start of the book")
    assert re.fullmatch(r"https://[\w-]+\.github\.io/[\w-]+/", page.locator("base").get_attribute("href"))
    assert link.get_attribute("href") == "book/index.html"
    context.close()


def test_the_readers_choice_of_light_or_dark_stays(chromium, base):
    context = chromium.new_context(color_scheme="light")
    page = context.new_page()
    page.goto(base + "book/index.html")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.get_by_role("button", name="Dark").click()
    dark = page.evaluate(paper)
    assert dark != light
    page.goto(base + "book/running.html")
    assert page.evaluate(paper) == dark
    context.close()


def test_the_site_is_readable_without_scripts(chromium, base):
    context = chromium.new_context(java_script_enabled=False, viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(base + "book/index.html")
    assert page.locator("nav.contents").is_visible()
    assert page.locator("button:visible").count() == 0
    context.close()


WIDGETS = list(live.widgets())
STATE = ".live[data-state={}]"
# Whatever a widget has is used as a reader would: sliders by the keyboard, choices, buttons.
USE = """async () => {
    const section = document.querySelector(".live");
    const ready = async () => {
        await new Promise((done) => setTimeout(done, 200)); // typing counts from the first pause
        while (section.dataset.state === "busy") await new Promise((done) => setTimeout(done, 20));
        const said = section.querySelector("[role=status]").textContent;
        return section.dataset.state === "ready" && !said ? [] : [`${section.dataset.state}: ${said}`];
    };
    const problems = [];
    const fire = (control, kind) => control.dispatchEvent(new Event(kind, { bubbles: true }));
    for (const select of section.querySelectorAll("select")) {
        select.selectedIndex = select.options.length - 1;
        fire(select, "change");
        problems.push(...await ready());
    }
    for (const input of section.querySelectorAll("input[type=range]")) {
        input.value = input.max;
        fire(input, "input");
        problems.push(...await ready());
    }
    for (const button of [...section.querySelectorAll(".live-stage button")].slice(0, 12)) {
        button.click();
        problems.push(...await ready());
    }
    return problems;
}"""


@pytest.fixture
def widget(chromium, base):
    """Opens a chapter at a width and runs its widget by the keyboard; the page, and what it did."""
    contexts = []

    def open_page(slug, width=1280, run=True):
        context = chromium.new_context(viewport={"width": width, "height": 844}, reduced_motion="reduce")
        contexts.append(context)
        done = browsing.Visit(slug)
        browsing.offline(context, base, done.foreign)
        page = context.new_page()
        browsing.watch(page, done)
        page.goto(f"{base}notebooks/{slug}.html", wait_until="networkidle")
        if run:
            page.locator(".live > button").focus()
            page.keyboard.press("Enter")
            page.wait_for_selector(f"{STATE.format('ready')}, {STATE.format('failed')}", timeout=60_000)
        return page, done

    yield open_page
    for context in contexts:
        context.close()


def test_every_chapter_that_has_a_widget_shows_where_and_no_other(visits, site):
    for slug in chapters.slugs():
        text = (site / "notebooks" / f"{slug}.html").read_text(encoding="utf-8")
        assert ('class="live"' in text) == (slug in WIDGETS) == ("live.js" in text)


@pytest.mark.parametrize("slug", WIDGETS)
def test_a_widget_loads_nothing_before_it_is_asked(widget, slug):
    page, _ = widget(slug, run=False)
    loaded = page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert {Path(urlsplit(name).path).name for name in loaded if "/live/" in name} == {"live.css", "live.js"}
    size = sum(file.bytes for file in live.files(slug)) / 1e6
    shown = f"Run it here ({size:.{2 if size < 1 else 1}f} MB)" if size else "Run it here"
    assert page.locator(".live > button").inner_text() == shown


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("slug", WIDGETS)
def test_a_widget_runs_and_can_be_used(widget, slug, width):
    page, done = widget(slug, width)
    assert page.locator(STATE.format("ready")).count() == 1, page.locator(".live").inner_text()
    assert page.locator(".live-stage").is_visible()
    assert page.evaluate(USE) == []
    assert page.evaluate(browsing.OVERFLOW) <= 0
    for scheme in browsing.SCHEMES:
        page.emulate_media(color_scheme=scheme)
        assert browsing.Axe().run(page).response["violations"] == []
    page.get_by_role("button", name="Close").click()
    assert page.locator(".live-stage").count() == 0
    browsing.expect(page.locator(".live > button")).to_be_focused()
    assert (done.foreign, done.console, done.missing) == ([], [], [])


def test_a_widget_can_be_run_again(widget):
    page, done = widget("pahq")
    for _ in range(2):
        page.get_by_role("button", name="Close").click()
        page.locator(".live > button").click()
        page.wait_for_selector(STATE.format("ready"))
        assert page.locator(".live-bars").count() == 2
    assert done.console == []


def test_a_page_that_is_left_ends_its_worker(widget):
    page, _ = widget("pahq")
    (worker,) = page.workers
    with worker.expect_event("close"):
        page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    browsing.expect(page.locator(STATE.format("idle"))).to_have_count(1)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"status": 404}, "the weights of canvas-vit are not there (status 404)"),
        ({"status": 200, "body": "short"}, "the weights of canvas-vit came incomplete"),
        (None, "could not be fetched"),
    ],
)
def test_where_a_model_cannot_be_loaded_the_page_says_why(widget, answer, said):
    page, _ = widget("lambda-vit", run=False)
    page.route("**/*.safetensors", lambda route: route.fulfill(**answer) if answer else route.abort())
    page.locator(".live > button").click()
    page.wait_for_selector(STATE.format("failed"))
    assert said in page.locator(".live [role=status]").inner_text()
    assert page.locator(".live > button").is_visible()
    assert page.locator("article figure img").first.is_visible()  # the static figure stays


def test_opened_from_a_folder_a_widget_says_how_to_serve_it(chromium, site):
    page = chromium.new_page()
    page.goto((site / "notebooks" / "simignore.html").as_uri())
    assert "python3 -m http.server" in page.locator(".live [role=status]").inner_text()
    assert page.locator(".live button").count() == 0
    page.close()


def test_without_modules_in_workers_a_widget_says_so(widget):
    page, _ = widget("lambda-vit", run=False)
    page.evaluate("() => { window.Worker = class { constructor() { throw new TypeError('no modules'); } }; }")
    page.locator(".live > button").click()
    page.wait_for_selector(STATE.format("failed"))
    assert "does not run here" in page.locator(".live [role=status]").inner_text()
