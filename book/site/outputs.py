"""What a chapter's cells put out for the site: findings, figures with their numbers; which code is folded."""

import re
from html import escape
from typing import Any

from docutils import nodes
from myst_nb.core import render
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform

from book.site.files import place
from book.site.results import slug_of
from book.site.templates import template
from lib import papers
from lib.claims import BADGES, CLAIM_MIME, FINDING_MIME
from lib.plots import FIGURE_MIME

AT_THE_TOP = 3
"""So many findings a page shows in its head; any others stay where they were made."""

DEFINED = re.compile(r"^(?:def|class) (\w+)", re.MULTILINE)


class BookOutput:
    """Renders what `lib.plots.show`, `lib.claims.claim` and `lib.claims.finding` display."""

    mime_priority_overrides = (("*", FIGURE_MIME, 1), ("*", FINDING_MIME, 1))

    @staticmethod
    def handle_mime(
        renderer: render.NbElementRenderer, data: render.MimeData, inline: bool
    ) -> list[nodes.Element] | None:
        if data.output_metadata.get("worked_papers", {}).get("role") == "caption":
            return []  # printed for Jupyter; here it is part of the figure
        if data.mime_type == CLAIM_MIME:
            return []  # for the scoreboard; the page shows the row's HTML
        if data.mime_type not in (FIGURE_MIME, FINDING_MIME):
            return None
        facts = data.content
        kind, text = (
            (nodes.caption, "caption") if data.mime_type == FIGURE_MIME else (nodes.paragraph, "text")
        )
        words = kind(facts[text], "")
        with renderer.renderer.current_node_context(words):
            renderer.renderer.nested_render_text(facts[text], data.line or 0, inline=True)
        if data.mime_type == FINDING_MIME:
            css, sign, _ = BADGES[facts["verdict"]]
            row = f"claim-{facts['claims'][0].replace('.', '-')}"
            badge = nodes.reference("", f"{sign} {facts['verdict']}", refid=row, classes=["badge", css])
            words.insert(0, [badge, nodes.Text(" ")])
            words["classes"].append("finding")
            return [words]
        shown = {key: facts.get(key) for key in ("alt", "csv", "main")}
        return [nodes.figure("", words, names=[facts["name"]], **shown)]


class FillFigures(SphinxTransform):
    """Move an output's picture into the figure that describes it, and make the figure a target of links."""

    default_priority = 200

    def apply(self, **kwargs: object) -> None:
        for figure in list(self.document.findall(nodes.figure)):
            container = figure.parent
            if container.get("mime_type") != FIGURE_MIME:
                continue
            alt = figure.attributes.pop("alt")
            for picture in container.parent.findall(nodes.image):
                picture.parent.remove(picture)
                picture["alt"] = alt
                figure.insert(0, picture)
                break
            container.parent.children = [container]
            self.document.note_explicit_target(figure)


class LiftFindings(SphinxTransform):
    """Move a chapter's findings, and the figure that tells them, to the head of its page."""

    default_priority = 210  # when the figures are filled

    def apply(self, **kwargs: object) -> None:
        title = next(self.document.findall(nodes.title), None)
        if not slug_of(self.env.docname) or title is None:
            return
        head: list[nodes.Node] = []
        # At reading, not at writing: figures are numbered and links resolved as they stand on the page.
        made = [box for box in self.document.findall(nodes.container) if box.get("mime_type") == FINDING_MIME]
        if made:
            findings = nodes.container("", nodes.rubric("", "What this run found"), classes=["findings"])
            for box in made[:AT_THE_TOP]:
                findings += box.children
                remove(box.parent)
            head.append(findings)
        for figure in self.document.findall(nodes.figure):
            if figure.get("main"):
                link = nodes.reference("", "The figure at the top of this page", refid=figure["ids"][0])
                note = nodes.paragraph("", "", link, nodes.Text(" belongs here."), classes=["moved"])
                figure.parent.replace(figure, note)
                head.append(figure)
                break
        place = title.parent.index(title) + 1
        title.parent.insert(place, head)


def remove(node: nodes.Element) -> None:
    """Take a node out of its document, and what then holds nothing."""
    parent = node.parent
    parent.remove(node)
    if not parent.children and isinstance(parent, nodes.container):
        remove(parent)


class FoldCode(SphinxTransform):
    """Fold a chapter's code, except the cells tagged `core` and those that say themselves what to hide."""

    default_priority = 220

    def apply(self, **kwargs: object) -> None:
        if not slug_of(self.env.docname):
            return
        for cell in self.document.findall(nodes.container):
            if cell.get("nb_element") != "cell_code":
                continue
            tags = cell["cell_metadata"].get("tags", [])
            if "core" in tags or cell.children[0].get("nb_element") != "cell_code_source":
                continue
            cell.setdefault("hide_mode", "input")
            defined = DEFINED.findall(cell.children[0].astext())
            about = "the parameters" if "parameters" in tags else ", ".join(defined[:3])
            cell["prompt_show"] = f"Show the code: {about}".removesuffix(": ")
            cell["prompt_hide"] = "Hide the code"


def offer_numbers(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Write the numbers of each figure to a file, and link to it in the caption."""
    slug = slug_of(docname)
    for figure in doctree.findall(nodes.figure):
        if numbers := figure.get("csv"):
            name = figure["names"][0].removeprefix("fig-")
            name = name if name.startswith(slug) else f"{slug}-{name}"
            path, address = place(app, docname, f"_static/figures/{name}.csv")
            path.write_text(numbers, encoding="utf-8")
            link = template("numbers.html").render(address=address)
            next(iter(figure.findall(nodes.caption))).append(nodes.raw("", link, format="html"))


def number_by_page(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Let every page begin with Figure 1; Sphinx has just counted through the whole book."""
    for kinds in env.toc_fignumbers.values():
        for figures in kinds.values():
            figures.update({name: (i,) for i, name in enumerate(figures, 1)})
    return []


def describe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document) -> None:
    """Let search engines and shared links show the paper's question, not what a page begins with."""
    if slug := slug_of(page):
        asks = " ".join(papers.read(slug).asks.split())
        context["metatags"] += f'<meta name="description" content="{escape(asks)}">'
        context["meta"] = (context["meta"] or {}) | {"og:description": asks}


def setup(app: Sphinx) -> None:
    # MyST-NB looks for such renderers among the entry points of installed packages; this one is the book's.
    installed = render.load_mime_renders()
    render.load_mime_renders = lambda: [BookOutput, *installed]
    for transform in (FillFigures, LiftFindings, FoldCode):
        app.add_transform(transform)
    app.connect("env-get-updated", number_by_page, priority=900)
    app.connect("doctree-resolved", offer_numbers)
    app.connect("html-page-context", describe, priority=400)  # before the extension that describes others
