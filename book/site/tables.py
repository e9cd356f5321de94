"""What is made from data when the site is built: paper cards, tables of claims, scoreboard, organisms.

The facts come from `data/`, the results from the notebooks as they were executed for this very build.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.osutil import relative_uri

from book.site import figures
from book.site.templates import template
from lib import claims, papers
from lib.organisms import FOLDER, seeds_of, shipped, split_name

CHAPTERS = "notebooks/"
NO_RESULT = ("wp-untested", "?", "")


class made_from_data(nodes.General, nodes.Element):  # noqa: N801 - docutils' convention
    """Where a table or a figure goes; it is filled in when all chapters have been executed."""


class MadeFromData(SphinxDirective):
    """`{scoreboard}`, `{organisms}`, `{scenes}`; `{claims-table}` with a slug (default: this chapter's)."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        slug = self.arguments[0] if self.arguments else slug_of(self.env.docname)
        if self.name == "claims-table" and slug not in papers.slugs():
            raise self.error(f"claims-table: {slug!r} is no paper of data/papers")
        return [made_from_data("", kind=self.name, slug=slug)]


class Organisms(MadeFromData):
    """`{organisms}`: the table of all, then card, learning curve and doses of each one that is shipped."""

    def run(self) -> list[nodes.Node]:
        result = super().run()
        for name in shipped_organisms():
            card = (FOLDER / name / "card.md").read_text(encoding="utf-8").partition("\n")[2]
            lines = [f"**{line[3:]}**" if line.startswith("## ") else line for line in card.splitlines()]
            section = nodes.section("", nodes.title("", name), ids=[name], names=[name])
            self.state.nested_parse(StringList(lines, source=f"{name}/card.md"), 0, section)
            section += made_from_data("", kind="training", slug=name)
            result.append(section)
        return result


def shipped_organisms() -> dict[str, list[str]]:
    """Name of each shipped organism -> names of its copies trained from other seeds."""
    names = shipped()
    return {name: seeds_of(name)[1:] for name in names if split_name(name) == (name, 0)}


def slug_of(docname: str) -> str:
    return docname.removeprefix(CHAPTERS) if docname.startswith(CHAPTERS) else ""


def executed(app: Sphinx, slug: str) -> tuple[list[claims.ClaimRecord], dict[str, Any]]:
    """What a chapter's executed notebook recorded: its claims, and how it was run.

    Run facts have `error` (the first line of it) and `cell` where the run failed.
    """
    path = Path(app.env.mystnb_config.output_folder, CHAPTERS, f"{slug}.ipynb")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    run = dict(notebook["metadata"].get("worked_papers", {}))
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error" and "error" not in run:
                run["error"] = f"{output['ename']}: {output['evalue']}"
    return claims.collect(path), run


def results(app: Sphinx, paper: papers.Paper) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Each claim of a paper with its record (None if there is none), badge and link; and the run's facts."""
    docname = CHAPTERS + paper.slug
    written = docname in app.env.all_docs
    records, run = executed(app, paper.slug) if written else ([], {})
    found = {record.id: record for record in records}
    rows = []
    for claim in paper.claims:
        record = found.get(claim.id)
        css, sign, _ = claims.BADGES[record.verdict] if record else NO_RESULT
        rows.append(
            {
                "claim": claim,
                "number": claim.id.rpartition(".")[2],
                "record": record,
                "verdict": record.verdict if record else "no result",
                "css": css,
                "sign": sign,
                "anchor": f"#claim-{claim.id.replace('.', '-')}",
            }
        )
    return rows, run


def uri(app: Sphinx, origin: str, target: str) -> str:
    """Relative address of a file of the site, seen from a page."""
    return relative_uri(app.builder.get_target_uri(origin), target)


def paper_card(app: Sphinx, docname: str) -> str:
    slug = slug_of(docname)
    rows, run = results(app, paper := papers.read(slug))
    source = f"{docname}.ipynb"
    return template("card.html").render(
        paper=paper,
        run=run,
        verdicts=Counter(row["verdict"] for row in rows),
        badges=claims.BADGES,
        colab=app.config.worked_papers_addresses["colab"] + source,
        download=uri(app, docname, f"_sources/{source}"),
        organisms=[(name, (FOLDER / name).is_dir()) for name in paper.organisms],
        organisms_page=uri(app, docname, app.builder.get_target_uri("book/organisms")),
    )


def claims_table(app: Sphinx, docname: str, slug: str) -> str:
    paper = papers.read(slug)
    return template("claims.html").render(paper=paper, rows=results(app, paper)[0])


def scoreboard(app: Sphinx, docname: str, slug: str) -> str:
    board = []
    for area in papers.AREAS:
        for paper in papers.all_papers():
            if paper.area != area:
                continue
            rows, run = results(app, paper)
            chapter = CHAPTERS + paper.slug
            page = None
            if chapter in app.env.all_docs:
                page = app.builder.get_relative_uri(docname, chapter)
            board.append({"paper": paper, "rows": rows, "run": run, "page": page})
    board.sort(key=lambda entry: entry["page"] is None)  # written ones first
    verdicts = Counter(row["verdict"] for entry in board if entry["page"] for row in entry["rows"])
    return template("scoreboard.html").render(
        board=board, areas=papers.AREAS, badges=claims.BADGES, verdicts=verdicts
    )


def organisms(app: Sphinx, docname: str, slug: str) -> str:
    users: dict[str, list[papers.Paper]] = {}
    for paper in papers.all_papers():
        for name in paper.organisms:
            users.setdefault(name, []).append(paper)

    def link(paper: papers.Paper) -> tuple[papers.Paper, str | None]:
        chapter = CHAPTERS + paper.slug
        return paper, app.builder.get_relative_uri(docname, chapter) if chapter in app.env.all_docs else None

    shipped = [
        {
            "name": name,
            "seeds": seeds,
            "config": json.loads((FOLDER / name / "config.json").read_text(encoding="utf-8")),
            "metrics": json.loads((FOLDER / name / "metrics.json").read_text(encoding="utf-8")),
            "size": sum(file.stat().st_size for file in (FOLDER / name).iterdir()),
            "users": [link(paper) for paper in users.pop(name, [])],
        }
        for name, seeds in shipped_organisms().items()
    ]
    return template("organisms.html").render(shipped=shipped, planned=sorted(users.items()))


MADE = {
    "claims-table": claims_table,
    "scoreboard": scoreboard,
    "organisms": organisms,
    "scenes": figures.world,
    "training": figures.training,
}


def fill_in(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put a paper's card after the title of its chapter, and the tables where they belong."""
    for node in list(doctree.findall(made_from_data)):
        html = MADE[node["kind"]](app, docname, node["slug"])
        node.replace_self(nodes.raw("", html, format="html"))
    if slug_of(docname) in papers.slugs():
        for title in doctree.findall(nodes.title):
            card = nodes.raw("", paper_card(app, docname), format="html")
            title.parent.insert(title.parent.index(title) + 1, card)
            break


def always_anew(app: Sphinx, env: Any, added: set, changed: set, removed: set) -> list[str]:
    """Pages that depend on data and on other pages' results."""
    return [name for name in env.found_docs if name.startswith(("book/", CHAPTERS))]


def setup(app: Sphinx) -> None:
    app.add_config_value("worked_papers_addresses", {}, "html")  # set in theme.py
    app.add_node(made_from_data)
    app.add_directive("organisms", Organisms)
    for name in ("claims-table", "scoreboard", "scenes"):
        app.add_directive(name, MadeFromData)
    app.connect("env-get-outdated", always_anew)
    app.connect("doctree-resolved", fill_in)
