"""The book's look: its theme, its addresses, and what is done to every page on the way out."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError

from book.site import fonts

THEME = Path(__file__).parents[2] / "_theme"
# Marks of Pygments and Sphinx that have no colour here: names, operators, punctuation, spaces.
PLAIN = re.compile(
    r'<span class="(?:n|nn|nb|nv|ne|bp|o|p|w|x|pre|default_value)">([^<]*)</span>|<span></span>'
)
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


def addresses(repository: str) -> dict[str, str]:
    """The site's and Colab's addresses, from the repository's: `https://github.com/OWNER/NAME`."""
    parts = urlsplit(repository)
    names = parts.path.strip("/").split("/")
    if parts.scheme != "https" or parts.netloc != "github.com" or len(names) != 2:
        raise ConfigError(
            f"_config.yml: repository.url is {repository!r}; expected https://github.com/OWNER/NAME"
        )
    owner, name = names
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


class SearchText(HTMLParser):
    """Splits a page into sections: [anchor, heading, text]. Of a chapter's code it keeps what is defined."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: list[list[str]] = [["", "", ""]]
        self._open: list[tuple[str, bool]] = []  # tag, whether its text is left out
        self._heading = False
        self._cell = False
        self._code: str | None = None

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in VOID:
            return
        values = dict(attributes)
        classes = {*(values.get("class") or "").split()}
        if tag == "section" and values.get("id"):
            self.sections.append([values["id"] or "", "", ""])
        self._cell = self._cell or "cell_input" in classes
        if tag == "pre" and self._cell:
            self._code = ""
        hidden = tag in {"script", "style", "annotation", "button", "svg"}
        hidden = hidden or "headerlink" in classes
        self._open.append((tag, hidden or bool(self._open and self._open[-1][1])))
        self._heading = self._heading or tag in {"h1", "h2", "h3"}

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass
        if tag == "pre" and self._code is not None:
            self.sections[-1][2] += " ".join(DEFINITION.findall(self._code))
            self._cell, self._code = False, None
        if tag in {"h1", "h2", "h3"}:
            self._heading = False
        elif tag in {"p", "div", "li", "td", "th", "dt", "dd", "pre", "figcaption"}:
            self.sections[-1][2] += " "

    def handle_data(self, data: str) -> None:
        if self._code is not None:
            self._code += data
        elif not (self._open and self._open[-1][1]):
            self.sections[-1][1 if self._heading else 2] += data


def search_sections(html: str) -> list[list[str]]:
    """Anchor, heading and text of each section of a page's body."""
    parser = SearchText()
    parser.feed(html)
    tidy = [
        [anchor, " ".join(head.split()), " ".join(text.split())] for anchor, head, text in parser.sections
    ]
    return [section for section in tidy if section[1] or section[2]]


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


def finish_page(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Mend the page, hand addresses to the templates, note text for the search, maths for the font."""
    context["addresses"] = app.config.worked_papers_addresses
    context["site_path"] = urlsplit(app.config.html_baseurl).path
    if doctree is None:
        return
    context["body"] = body = mend(context["body"])
    title = re.sub(r"<[^>]*>", "", context["title"])
    app.worked_papers_search.append([app.builder.get_target_uri(page), title, search_sections(body)])
    app.worked_papers_maths.update(fonts.characters_of_maths(body))


def start(app: Sphinx) -> None:
    app.worked_papers_search, app.worked_papers_maths = [], set()
    app.builder.search = False  # Sphinx's own needs the network for its excerpts; ours is `search.js`


def extra_pages(app: Sphinx) -> list[tuple[str, dict[str, Any], str]]:
    return [
        ("search", {"title": "Search"}, "search.html"),
        ("404", {"title": "Page not found"}, "404.html"),
    ]


def write_files(app: Sphinx, error: Exception | None) -> None:
    """Write fonts, the search index, and the page that leads from the site's root to the book."""
    if error or app.builder.name != "html":
        return
    static = Path(app.outdir, "_static")
    fonts.write(static / "fonts", app.worked_papers_maths)
    index = json.dumps(app.worked_papers_search, ensure_ascii=False, separators=(",", ":"))
    (static / "search-index.js").write_text(f"window.bookIndex={index}", encoding="utf-8")
    start = app.builder.get_target_uri(app.config.root_doc)
    context = {"start": start, "title": app.config.html_title, "site": app.config.html_baseurl}
    text = app.builder.templates.render("redirect.html", context)
    Path(app.outdir, "index.html").write_text(text, encoding="utf-8")
    Path(app.outdir, ".nojekyll").touch()  # GitHub Pages would leave out _static and _sources otherwise


def setup(app: Sphinx) -> None:
    app.add_config_value("comments_config", {}, "html")  # Jupyter Book sets it, also without its extension
    app.add_html_theme("worked_papers", str(THEME))
    app.connect("config-inited", set_addresses, priority=100)
    app.connect("builder-inited", start)
    app.connect("html-collect-pages", extra_pages)
    app.connect("html-page-context", finish_page, priority=900)
    app.connect("build-finished", write_files, priority=900)
