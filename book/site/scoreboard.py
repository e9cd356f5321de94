"""The scoreboard: every claim with what was found, as a table that can be filtered, as CSV and as JSON."""

import csv
import io
import json
from typing import Any

from sphinx.application import Sphinx

from book.site.files import place
from book.site.results import WHOSE, Chapter, Row, chapter, counts
from book.site.templates import template
from lib import claims, papers


def scoreboard(app: Sphinx, docname: str, slug: str) -> str:
    """The table's HTML; writes the two files that are offered beside it."""
    board = [chapter(app, docname, paper) for paper in by_area()]
    board.sort(key=lambda entry: entry.page is None)  # written ones first
    records = [record(entry, row) for entry in board for row in entry.rows]
    text = json.dumps(records, ensure_ascii=False, indent=1)
    files = {}
    for kind, content in (("CSV", as_csv(records)), ("JSON", text)):
        path, files[kind] = place(app, docname, f"_static/scoreboard.{kind.lower()}")
        path.write_text(content, encoding="utf-8")
    rows = [row for entry in board if entry.page for row in entry.rows]
    return template("scoreboard.html").render(
        board=board,
        areas=papers.AREAS,
        badges=claims.BADGES,
        whose=WHOSE,
        counted={by: counts(rows, by) for by in WHOSE},
        seeds=seeds(rows),
        twins=twins(rows),
        real=[row for row in rows if row.on_real != "not run" and row.claim.testable],
        files=files,
    )


def by_area() -> list[papers.Paper]:
    """All papers, in the order of the areas."""
    return sorted(papers.all_papers(), key=lambda paper: papers.AREAS.index(paper.area))


def seeds(rows: list[Row]) -> dict[str, Any]:
    """Over recorded seeds: how many rows were `tried`, which `changed`, how many of these changed `sides`."""
    verdicts = [(row, {run.verdict for run in row.record.seeds}) for row in rows if row.record]
    tried = [(row, found) for row, found in verdicts if found - {"not testable here"}]
    sides = sum(
        "does not hold" in found and len({*found} & {"holds", "holds, smaller"}) > 0 for _, found in tried
    )
    return {"tried": len(tried), "changed": [row for row, found in tried if len(found) > 1], "sides": sides}


def twins(rows: list[Row]) -> dict[str, list[Row]]:
    """Of the claims that were put to untrained twins: all, those that hold there, and the untestable."""
    tried = [row for row in rows if row.on_twins not in ("left out", "not run")]
    return {
        "tried": tried,
        "hold": [row for row in tried if row.on_twins.startswith("holds")],
        "untestable": [row for row in tried if row.on_twins == "not testable here"],
        "left_out": [row for row in rows if row.claim.testable and row.on_twins == "left out"],
    }


def record(entry: Chapter, row: Row) -> dict[str, Any]:
    """A claim and what was found, as it stands in the files."""
    found: dict[str, Any] = {"verdict": "no result" if entry.page else "planned"}
    if row.record:
        found = row.record.to_json() | {"decided": row.verdict}
    return {
        "chapter": entry.paper.slug,
        "area": entry.paper.area,
        **found,
        "claim": row.claim.model_dump(mode="json"),
    }


def as_csv(records: list[dict[str, Any]]) -> str:
    """One line a claim: an estimate takes three columns, the seeds two.

    Of recorded runs, only those on a real model and on untrained twins have columns, of a verdict and an
    estimate each.
    """
    facts = ("id", "by", "text", "paper", "statistic", "unit")
    estimates = {
        f"{role}{part}": (role, key)
        for role in ("estimate", "null", "contrast")
        for part, key in (("", "value"), (", low", "low"), (", high", "high"))
    }
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    runs = {
        f"{name}, {key}": (name, key)
        for name in claims.COLUMNS
        for key in ("verdict", "value", "low", "high")
    }
    header = ["chapter", "area", *facts, "verdict", "decided", "n", *estimates, "seeds that agree", "seeds"]
    header += runs
    writer.writerow(header)
    for one in records:
        seeds = [run["verdict"] for run in one.get("seeds", [])]
        writer.writerow(
            [one["chapter"], one["area"]]
            + [one["claim"][key] for key in facts]
            + [one["verdict"], one.get("decided"), (one.get("estimate") or {}).get("n")]
            + [(one.get(role) or {}).get(key) for role, key in estimates.values()]
            + ([seeds.count(one["verdict"]), len(seeds)] if seeds else [None, None])
            + [_of_run(one.get(name) or {}, key) for name, key in runs.values()]
        )
    return out.getvalue()


def _of_run(run: dict[str, Any], key: str) -> Any:
    return run.get("verdict") if key == "verdict" else (run.get("estimate") or {}).get(key)
