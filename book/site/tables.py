"""What is made from data when the site is built: paper cards, gallery, scoreboard, organisms.

The facts come from `data/`, the results from the notebooks as they were executed for this very build.
"""

import json
import re
from collections import defaultdict
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective
from sphinx.util.osutil import relative_uri

from book.site import figures
from book.site.architectures import architectures
from book.site.gallery import gallery
from book.site.results import CHAPTERS, WHOSE, chapter, counts, slug_of
from book.site.scoreboard import scoreboard
from book.site.templates import template
from lib import claims, papers
from lib.organisms import FOLDER, seeds_of, shipped, split_name

FILES = ("config", "metrics")


class made_from_data(nodes.General, nodes.Element):  # noqa: N801 - docutils' convention
    """Where a table or a figure goes; it is filled in when all chapters have been executed."""


class MadeFromData(SphinxDirective):
    """`{gallery}`, `{scoreboard}`, `{scenes}`, `{architectures}`."""

    def run(self) -> list[nodes.Node]:
        return [made_from_data("", kind=self.name, slug="")]


class Organisms(MadeFromData):
    """`{organisms}`: the table of all, then for each recipe a folded card: text, learning curve, doses."""

    def run(self) -> list[nodes.Node]:
        result = super().run()
        seen: dict[str, str] = {}
        for name, seeds in shipped_organisms().items():
            card = (FOLDER / name / "card.md").read_text(encoding="utf-8").partition("\n")[2]
            lines = [f"**{line[3:]}**" if line.startswith("## ") else line for line in card.splitlines()]
            text = once("\n".join(lines), name, seen).splitlines()
            about = template("folded.html").render(seeds=seeds, **facts(name))
            section = nodes.section("", nodes.title("", name), ids=[name], names=[name], classes=["organism"])
            section += nodes.raw("", about, format="html")
            self.state.nested_parse(StringList(text, source=f"{name}/card.md"), 0, section)
            section += made_from_data("", kind="training", slug=name)
            section += nodes.raw("", "</details>", format="html")
            self.state.document.note_explicit_target(section)
            result.append(section)
        return result


def once(card: str, name: str, seen: dict[str, str]) -> str:
    """A card whose paragraphs that stand on an earlier card are replaced by a word on where.

    Args:
        card: paragraphs, the long ones of which begin with what they are about: `**World.** A grid ...`
        name: the organism's.
        seen: paragraph -> the first organism whose card has it; grows.
    """
    kept: list[str] = []
    for paragraph in re.split(r"\n{2,}", card):
        first = seen.setdefault(paragraph, name)
        if first == name or len(paragraph) < 150:
            kept.append(paragraph)
        else:
            about = re.match(r"(\*\*[^*]+\*\* )?", paragraph)
            kept.append(f"{about[0] if about else ''}As on the card of [{first}](#{first}).")
    return "\n\n".join(kept)


def facts(name: str) -> dict[str, Any]:
    """What the files of a shipped organism say of it."""
    files = {key: json.loads((FOLDER / name / f"{key}.json").read_text(encoding="utf-8")) for key in FILES}
    return files | {"name": name, "size": sum(file.stat().st_size for file in (FOLDER / name).iterdir())}


def shipped_organisms() -> dict[str, list[str]]:
    """Name of each shipped organism -> names of its copies trained from other seeds."""
    names = shipped()
    return {name: seeds_of(name)[1:] for name in names if split_name(name) == (name, 0)}


def paper_card(app: Sphinx, docname: str) -> str:
    entry = chapter(app, docname, papers.read(slug_of(docname)))
    source = f"{docname}.ipynb"
    return template("card.html").render(
        paper=entry.paper,
        run=entry.run,
        counted={by: counts(entry.rows, by) for by in WHOSE},
        whose=WHOSE,
        badges=claims.BADGES,
        colab=app.config.worked_papers_addresses["colab"] + source,
        download=relative_uri(app.builder.get_target_uri(docname), f"_sources/{source}"),
        organisms=[(name, (FOLDER / name).is_dir()) for name in entry.paper.organisms],
        verdicts_page=app.builder.get_relative_uri(docname, "book/index") + "#verdicts",
        organisms_page=app.builder.get_relative_uri(docname, "book/organisms"),
    )


def organisms(app: Sphinx, docname: str, slug: str) -> str:
    users: dict[str, list[tuple[papers.Paper, str | None]]] = defaultdict(list)
    for paper in papers.all_papers():
        for name in paper.organisms:
            written = CHAPTERS + paper.slug in app.env.all_docs
            page = app.builder.get_relative_uri(docname, CHAPTERS + paper.slug) if written else None
            users[name].append((paper, page))
    table = [
        {"seeds": seeds, "users": users.pop(name, []), **facts(name)}
        for name, seeds in shipped_organisms().items()
    ]
    return template("organisms.html").render(shipped=table, planned=sorted(users.items()))


MADE = {
    "gallery": gallery,
    "scoreboard": scoreboard,
    "organisms": organisms,
    "architectures": architectures,
    "scenes": figures.world,
    "training": figures.training,
}


def fill_in(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put a paper's card after the title of its chapter, and what is made from data where it belongs."""
    for node in list(doctree.findall(made_from_data)):
        html = MADE[node["kind"]](app, docname, node["slug"])
        node.replace_self(nodes.raw("", html, format="html"))
    if slug_of(docname) in papers.slugs():
        for title in doctree.findall(nodes.title):
            card = nodes.raw("", paper_card(app, docname), format="html")
            title.parent.insert(title.parent.index(title) + 1, card)
            break


def always_anew(app: Sphinx, env: BuildEnvironment, added: set, changed: set, removed: set) -> list[str]:
    """Pages that depend on data and on other pages' results."""
    return [name for name in env.found_docs if name.startswith(("book/", CHAPTERS))]


def setup(app: Sphinx) -> None:
    app.add_config_value("worked_papers_addresses", {}, "html")  # set in theme.py
    app.add_node(made_from_data)
    app.add_directive("organisms", Organisms)
    for name in ("gallery", "scoreboard", "scenes", "architectures"):
        app.add_directive(name, MadeFromData)
    app.connect("env-get-outdated", always_anew)
    app.connect("doctree-resolved", fill_in)
