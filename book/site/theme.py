"""The book's look: its theme, its addresses, and what is done to every page on the way out."""

import gzip
import json
import re
from base64 import b64encode
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bs4 import BeautifulSoup
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.config import Config
from sphinx.errors import ConfigError
from sphinx.search.en import SearchEnglish

from book.site import fonts, replace

THEME = Path(__file__).parents[1] / "_theme"
STATIC = THEME / "static"
# Marks of Pygments and Sphinx that have no colour here: names, operators, punctuation, spaces.
PLAIN = re.compile(
    r'<span class="(?:n|nn|nb|nv|ne|bp|o|p|w|x|pre|default_value)">([^<]*)</span>|<span></span>'
)


def addresses(repository: str) -> dict[str, str]:
    """The site's and Colab's addresses, from the repository's: `https://github.com/OWNER/NAME`."""
    match = re.fullmatch(r"https://github\.com/([^/]+)/([^/]+)/?", repository)
    if not match:
        raise ConfigError(
            f"_config.yml: repository.url is {repository!r}; expected https://github.com/OWNER/NAME"
        )
    owner, name = match.groups()
    return {
        "repository": repository,
        "site": f"https://{owner}.github.io/{name}/",
        "colab": f"https://colab.research.google.com/github/{owner}/{name}/blob/gh-pages/_sources/",
    }


def set_addresses(app: Sphinx, config: Config) -> None:
    # Jupyter Book hands its keys over as options of its own theme.
    found = addresses(config.html_theme_options.get("repository_url", ""))
    config.html_theme_options = {}
    config.worked_papers_addresses = found
    config.html_baseurl = config.ogp_site_url = found["site"]


DEFINITION = re.compile(r"^\s*(?:def|class) .*", re.MULTILINE)
BLOCKS = ["p", "div", "li", "td", "th", "dt", "dd", "pre", "figcaption"]


def search_sections(html: str) -> list[list[str]]:
    """Anchor, heading and text of each section of a page's body; of a chapter's code, what it defines."""
    page = BeautifulSoup(html, "html.parser")
    # Not what other runs of a claim measured, and of long tables the names of the rows only: that is much
    # text in which nobody searches, and every visitor of the search loads all of it.
    long = ".wp-claim .wp-other-run, .architectures td, .board td + td, .card td + td"
    left_out = f"script, style, annotation, button, svg, summary, .headerlink, {long}"
    for element in page.select(left_out):
        element.decompose()
    for code in page.select(".cell_input pre"):
        code.string = " ".join(DEFINITION.findall(code.get_text()))
    for block in page.find_all(BLOCKS):
        block.append(" ")
    found = []
    for section in [*reversed(page.find_all("section")), page]:  # the inner ones are taken out first
        headings = [heading.extract() for heading in section.find_all(["h1", "h2", "h3"])]
        parts = [" ".join(part.get_text() for part in headings), section.extract().get_text()]
        found.append([str(section.get("id", "")), *(" ".join(part.split()) for part in parts)])
    return [section for section in reversed(found) if any(section[1:])]


def mend(body: str) -> str:
    """Let tables scroll inside themselves, and repair markup that assistive software cannot read."""
    body = re.sub(r"<table\b.*?</table>", r'<div class="scroll">\g<0></div>', body, flags=re.DOTALL)
    # Markdown leaves the heads of tables empty, pandas that of the row labels, with a space in it.
    body = re.sub(r"<th\b[^>]*>(?:\s|&nbsp;|<p>\s*</p>)*</th>", "<td></td>", body)
    body = body.replace('role="doc-biblioentry"', 'role="listitem"')

    while (thinner := PLAIN.sub(r"\1", body)) != body:  # they were four in five of a chapter's elements
        body = thinner

    def flatten(signature: re.Match) -> str:
        """A list inside <dt> that has no terms."""
        return re.sub(r"<(/?)d[ld]>", r"<\1div>", signature[0]).replace("<div>", '<div class="params">', 1)

    return re.sub(r'<dt class="sig\b.*?</dt>', flatten, body, flags=re.DOTALL)


class Book:
    """What the pages leave for the files that are written last."""

    def __init__(self) -> None:
        self.search: list[list[Any]] = []  # address, title, sections of each page
        self.maths: set[int] = set()  # characters of formulas
        self.foreign: list[str] = []  # files that were in the site's folder, not a build's

    def start(self, app: Sphinx) -> None:
        if isinstance(app.builder, StandaloneHTMLBuilder):
            # Sphinx's own search fetches pages for its excerpts, which browsers forbid for files.
            app.builder.search = False
        self.foreign = replace.foreign(Path(app.outdir))

    def finish_page(
        self, app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
    ) -> None:
        """Mend the page, hand addresses to the templates, note text for the search, maths for the font."""
        context["addresses"] = app.config.worked_papers_addresses
        if page == "404":
            context |= {"look": look(), "icon_file": quote((STATIC / "icon.svg").read_text(encoding="utf-8"))}
        if doctree is None:
            return
        context["body"] = body = mend(context["body"])
        title = re.sub(r"<[^>]*>", "", context["title"])
        self.search.append([app.builder.get_target_uri(page), title, search_sections(body)])
        self.maths.update(fonts.characters_of_maths(body))

    def write_files(self, app: Sphinx, error: Exception | None) -> None:
        """Write fonts, the search's files, and the page that leads from the site's root to the book."""
        if error or app.builder.name != "html":
            return
        static = Path(app.outdir, "_static")
        fonts.write(static / "fonts", self.maths)
        index = json.dumps(self.search, ensure_ascii=False, separators=(",", ":")).encode()
        packed = b64encode(gzip.compress(index, mtime=0)).decode()  # with a time, no two builds would agree
        (static / "search-index.js").write_text(f'window.bookIndex="{packed}"', encoding="utf-8")
        (static / "stemmer.js").write_text(SearchEnglish.js_stemmer_code, encoding="utf-8")
        start = app.builder.get_target_uri(app.config.root_doc)
        context = {"start": start, "title": app.config.html_title, "site": app.config.html_baseurl}
        text = app.builder.templates.render("redirect.html", context)
        Path(app.outdir, "index.html").write_text(text, encoding="utf-8")
        Path(app.outdir, ".nojekyll").touch()  # GitHub Pages would leave out _static and _sources otherwise

    def note_written(self, app: Sphinx, error: Exception | None) -> None:
        """Note which files are the site's, so that a later build may replace them and nothing else."""
        replace.note_written(Path(app.outdir), self.foreign)


def look() -> str:
    """The style sheet without its fonts' files, for a page that cannot know where they are."""
    css = (STATIC / "book.css").read_text(encoding="utf-8")
    return re.sub(r"@font-face \{.*?\}\n|/\*.*?\*/\n?", "", css, flags=re.DOTALL)


def extra_pages(app: Sphinx) -> list[tuple[str, dict[str, Any], str]]:
    return [
        ("search", {"title": "Search"}, "search.html"),
        ("404", {"title": "Page not found"}, "404.html"),
    ]


def setup(app: Sphinx) -> None:
    book = Book()
    app.add_config_value("comments_config", {}, "html")  # Jupyter Book sets it, also without its extension
    app.add_html_theme("worked_papers", str(THEME))
    app.connect("config-inited", set_addresses, priority=100)
    app.connect("builder-inited", book.start)
    app.connect("html-collect-pages", extra_pages)
    app.connect("html-page-context", book.finish_page, priority=900)
    app.connect("build-finished", book.write_files, priority=900)
    app.connect("build-finished", book.note_written, priority=999)
