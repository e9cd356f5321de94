"""The table of architectures: what the library can do with each, as the tests have measured it."""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx

from book.site.templates import template
from lib import ROOT
from lib.sites import SITES

MEASURED = ROOT / "book" / "architectures.json"
"""Written by `tests/architectures.py`; a test compares it with the library as it is."""


def architectures(app: Sphinx, docname: str, slug: str) -> str:
    """The tables' HTML, one for each kind of model."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    kinds = {
        kind: [row | {"type": name, "towers": [*towers(row)]} for name, row in sorted(rows.items())]
        for kind, rows in measured["kinds"].items()
    }
    counted = {kind: [count(rows, how) for how in ("all", "some", "none")] for kind, rows in kinds.items()}
    return template("architectures.html").render(kinds=kinds, counted=counted, measured=measured)


def towers(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """For each tower: which sites are offered ("all", "some", "none"), and why others are not."""
    for name in ("text", "vision"):
        if name not in row:
            continue
        withheld = row[name].get("withheld", dict.fromkeys(SITES, row[name].get("refused")))
        reasons = defaultdict(list)
        for site in SITES:
            if site in withheld:
                reasons[withheld[site]].append(site)
        if row[name].get("lens"):
            reasons[row[name]["lens"]].append("logit lens")
        offered = "all" if not withheld else "none" if len(withheld) == len(SITES) else "some"
        yield {"name": name, "offered": offered, "withheld": [*withheld], "reasons": reasons}


def count(rows: list[dict[str, Any]], how: str) -> int:
    """How many architectures offer so many sites of their first tower."""
    return sum(row["towers"][0]["offered"] == how for row in rows)
