"""What the chapters' executed notebooks hold for the site: claims with their records, findings, figures."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from myst_nb.sphinx_ import SphinxEnvType
from sphinx.application import Sphinx

from book.run.collect import collect, findings
from lib import claims, papers
from lib.plots import FIGURE_MIME

CHAPTERS = "notebooks/"
WHOSE = {"paper": "the papers' claims", "book": "the book's own claims"}
NO_RESULT = ("wp-untested", "!", "")


@dataclass(frozen=True)
class Row:
    """A claim, and the record of it if the run left one."""

    claim: papers.Claim
    record: claims.ClaimRecord | None = None
    page: str = ""
    """Address of the chapter, seen from the page that shows the row; "" on the chapter's own."""

    @property
    def number(self) -> str:
        return self.claim.id.rpartition(".")[2]

    @property
    def verdict(self) -> str:
        """The run's or, where that could not tell, the recorded run's."""
        return self.record.decided if self.record else "no result"

    @property
    def css(self) -> str:
        return self._badge[0]

    @property
    def sign(self) -> str:
        return self._badge[1]

    @property
    def _badge(self) -> tuple[str, str, str]:
        return claims.BADGES[self.record.decided] if self.record else NO_RESULT

    @property
    def by_recorded_run(self) -> bool:
        """Whether a recorded run decided what this one could not."""
        return self.record is not None and self.record.decided != self.record.verdict

    @property
    def on_twins(self) -> str:
        """What came out on the untrained twins; "left out", or "not run"."""
        if self.claim.no_twin:
            return "left out"
        return self.record.untrained.verdict if self.record and self.record.untrained else "not run"

    @property
    def on_real(self) -> str:
        """What came out on a real model; or "not run"."""
        return self.record.real.verdict if self.record and self.record.real else "not run"

    @property
    def address(self) -> str:
        """Of the claim's row in its chapter; of the chapter where there is no row."""
        return f"{self.page}#claim-{self.claim.id.replace('.', '-')}" if self.record else self.page

    def cell(self, label: str) -> list[tuple[str, str]]:
        """What the ledger's row shows under a label: values, each with its explanation."""
        cells = self.record.cells() if self.record else ()
        return [(value, explanation) for name, value, explanation in cells if name == label]


@dataclass(frozen=True)
class Chapter:
    """A paper, and what the run of its chapter left; of a planned one only the facts are there."""

    paper: papers.Paper
    page: str | None
    """Address, seen from the page that asks; None where no chapter is written."""
    rows: list[Row]
    run: dict[str, Any] = field(default_factory=dict)
    """How it was run; `error` (the first line of it) where it failed."""
    findings: list[dict[str, Any]] = field(default_factory=list)
    picture: dict[str, Any] | None = None
    """The figure that tells the finding, or else the first: `alt` and the PNG in base 64 as `png`."""

    @property
    def counted(self) -> Counter[str]:
        """How many of the rows have each verdict."""
        return Counter(row.verdict for row in self.rows)


def slug_of(docname: str) -> str:
    return docname.removeprefix(CHAPTERS) if docname.startswith(CHAPTERS) else ""


def chapter(app: Sphinx, docname: str, paper: papers.Paper) -> Chapter:
    """What a page can show of a paper's chapter."""
    name = CHAPTERS + paper.slug
    if name not in app.env.all_docs:
        return Chapter(paper, None, [Row(claim) for claim in paper.claims])
    page = app.builder.get_relative_uri(docname, name)
    path = Path(cast(SphinxEnvType, app.env).mystnb_config.output_folder, f"{name}.ipynb")
    found = {record.id: record for record in collect(path)}
    rows = [Row(claim, found.get(claim.id), page) for claim in paper.claims]
    return Chapter(paper, page, rows, *executed(path))


def executed(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any] | None]:
    """How an executed notebook was run, its findings, and its main picture."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    run = dict(notebook["metadata"].get("worked_papers", {}))
    pictures = []
    for output in (output for cell in notebook["cells"] for output in cell.get("outputs", [])):
        if output["output_type"] == "error":
            run.setdefault("error", f"{output['ename']}: {output['evalue']}")
        data = output.get("data", {})
        if FIGURE_MIME in data and "image/png" in data:
            pictures.append(data[FIGURE_MIME] | {"png": data["image/png"]})
    # Stable: without a main figure the first one stays first.
    pictures.sort(key=lambda picture: not picture.get("main"))
    return run, findings(path), next(iter(pictures), None)


def counts(rows: Iterable[Row], by: str) -> Counter[str]:
    """How many of the paper's claims, or of the book's, have each verdict."""
    return Counter(row.verdict for row in rows if row.claim.by == by)
