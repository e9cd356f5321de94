"""The ledger: a chapter records what it measured for a claim; the claim's rule decides the verdict.

A record is shown as a row, and travels in the notebook's output under its own MIME type to the scoreboard.
"""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from jinja2 import Environment
from pydantic import TypeAdapter, ValidationError

from lib import ROOT, papers
from lib.papers import Rule
from lib.stats import Estimate

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

CLAIM_MIME = "application/vnd.worked-papers.claim+json"

Verdict = Literal["holds", "holds in direction", "does not hold", "not testable here"]

# Verdict -> CSS class, sign, colour: white text on it has a contrast of at least 4.5.
BADGES: dict[Verdict, tuple[str, str, str]] = {
    "holds": ("wp-holds", "✓", "#00705a"),
    "holds in direction": ("wp-direction", "↗", "#1f6299"),
    "does not hold": ("wp-fails", "✗", "#b04a00"),
    "not testable here": ("wp-untested", "–", "#5f6368"),
}


@dataclass(frozen=True)
class ClaimRecord:
    """A claim of a paper, what this run measured for it, and the verdict."""

    id: str
    slug: str
    text: str
    paper: str | None
    statistic: str | None
    unit: str | None
    verdict: Verdict
    reason: str
    rule: Rule | None = None
    estimate: Estimate | None = None
    control: Estimate | None = None
    control_text: str | None = None
    note: str = ""

    def facts(self) -> list[tuple[str, str, str]]:
        """Label, value and explanation of the paper's figure, this run's and the control's."""
        facts = [("Paper", self.paper or "figures not read", "")]
        if self.estimate:
            interval = f"{self.estimate.confidence:.0%} interval, n = {self.estimate.n}"
            run = f"{self.estimate} {self.unit or ''}".rstrip()
            control = f"{self.control} {self.unit or ''}".rstrip() if self.control else "not measured"
            facts.append(("This run", run, f"{self.statistic}; {interval}"))
            facts.append(("Control", control, self.control_text or ""))
        return facts

    def __str__(self) -> str:
        """The row as plain text."""
        lines = [f"{BADGES[self.verdict][1]} {self.verdict} | {self.id}: {self.text}"]
        for label, value, explanation in self.facts():
            lines.append(f"  {label:<9} {value}" + (f"  ({explanation})" if explanation else ""))
        lines.append(f"  Why       {self.reason}")
        return "\n".join(lines + ([f"  Note      {self.note}"] if self.note else []))

    def to_json(self) -> dict[str, Any]:
        """The record as it is stored in a notebook's output."""
        return _RECORD.dump_python(self, mode="json")

    def show(self) -> None:
        """Display the row in a notebook, print it elsewhere."""
        if InteractiveShell.initialized():
            display({"text/plain": str(self), "text/html": _html(self), CLAIM_MIME: self.to_json()}, raw=True)
        else:
            print(self)

    def _ipython_display_(self) -> None:
        """Show nothing: `claim` did, and as a cell's last line the record would appear a second time."""


_RECORD = TypeAdapter(ClaimRecord)


def claim(id: str, estimate: Estimate, *, control: Estimate | None = None, note: str = "") -> ClaimRecord:
    """Record what this run measured for a claim; show the verdict that the claim's rule gives.

    An estimate points the claimed way if its whole interval lies beyond the rule's `null`. This run's must
    and the control's must not; then the claim holds if the value reaches `size`, else it holds in direction.

    Args:
        id: `slug.N`, as in `data/papers/<slug>.yml`.
        estimate: of the claim's statistic, in its unit.
        control: the same statistic where the effect must be absent.
        note: what the reader should know about this number.

    Raises:
        LookupError: no such claim.
        TypeError: the estimate or control is no `Estimate`.
        ValueError: it is not finite, or the claim has no rule.
    """
    facts = _find(id)
    for role, given in (("estimate", estimate), ("control", control)):
        if given is None and role == "control":
            continue
        if not isinstance(given, Estimate):
            raise TypeError(
                f"{id}: the {role} must be an Estimate (from lib.bootstrap, lib.wilson, ...), got {given!r}"
            )
        if not all(map(math.isfinite, (given.value, given.low, given.high))) or given.low > given.high:
            raise ValueError(f"{id}: the {role} is {given}; a verdict needs finite numbers with low <= high")
    if not facts.rule:
        raise ValueError(
            f"{id} has no rule that could decide it: add `rule` to it in data/papers, or call not_testable"
        )
    verdict, reason = decide(facts.rule, estimate, control)
    return _record(facts, verdict, reason, note, estimate, control)


def not_testable(id: str, reason: str = "", note: str = "") -> ClaimRecord:
    """Record that a claim cannot be tested here; the `reason` may be left to the one in `data/papers`."""
    facts = _find(id)
    if not (reason or facts.reason):
        raise ValueError(f"{id}: say why it cannot be tested (reason=...)")
    return _record(facts, "not testable here", reason or facts.reason or "", note)


def decide(rule: Rule, estimate: Estimate, control: Estimate | None = None) -> tuple[Verdict, str]:
    """The verdict on an estimate, and the reason in words."""
    sign, beyond = (1, "above") if rule.direction == "greater" else (-1, "below")

    def points_the_claimed_way(e: Estimate) -> bool:
        return min(sign * (e.low - rule.null), sign * (e.high - rule.null)) > 0

    whole = f"the whole interval is {beyond} {rule.null:g}"
    if estimate.low == estimate.high:
        whole += " (it has no width: all resamples agree)"
    if not points_the_claimed_way(estimate):
        return "does not hold", f"the interval is not wholly {beyond} {rule.null:g}"
    if control and points_the_claimed_way(control):
        return "does not hold", f"{whole}, but so is the control's"
    if sign * (estimate.value - rule.size) < 0:
        return "holds in direction", f"{whole}, but the value falls short of {rule.size:g}"
    return "holds", whole + (f", and the value reaches {rule.size:g}" if rule.size != rule.null else "")


def collect(path: str | Path) -> list[ClaimRecord]:
    """The records in an executed notebook's outputs, in order.

    Raises:
        ValueError: the file is no notebook, a record is damaged, or a claim is recorded twice.
    """
    try:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
        records = [_RECORD.validate_python(data[CLAIM_MIME]) for data in outputs if CLAIM_MIME in data]
    except ValidationError as error:
        raise ValueError(
            f"{path}: a claim's record is damaged, execute the notebook again: {error}"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a notebook: {error!r}") from None
    ids = [record.id for record in records]
    if twice := sorted({id for id in ids if ids.count(id) > 1}):
        raise ValueError(f"{path} records {', '.join(twice)} more than once; a claim has one verdict")
    return records


def recorded_runs(slug: str, ids: Collection[str] = ()) -> "Styler":
    """A table of what was measured in larger runs of a chapter than a reader waits for.

    They are kept as `data/results/SLUG--NAME.json`, with the `parameters` that were not the default's and the
    `claims` as in the notebook's output.

    Args:
        slug: the chapter.
        ids: the claims to show; by default all that were tested.

    Raises:
        FileNotFoundError: no run is kept.
        LookupError: a run has no such claim.
    """
    import pandas as pd

    if not (paths := sorted((ROOT / "data" / "results").glob(f"{slug}--*.json"))):
        raise FileNotFoundError(f"no run of {slug} is kept in data/results")
    rows = []
    for path in paths:
        run = json.loads(path.read_text(encoding="utf-8"))
        records = {record["id"]: _RECORD.validate_python(record) for record in run["claims"]}
        if absent := sorted(set(ids) - records.keys()):
            raise LookupError(f"{path.name} has no {', '.join(absent)}; it has {', '.join(records)}")
        settings = ", ".join(f"{name} = {value}" for name, value in run["parameters"].items())
        rows += [
            {
                "recorded run": settings,
                "claim": record.text,
                "estimate": f"{record.estimate} {record.unit or ''}".strip(),
                "control": str(record.control or ""),
                "verdict": record.verdict,
            }
            for record in records.values()
            if record.estimate and (record.id in ids or not ids)
        ]
    return pd.DataFrame(rows).style.hide(axis="index").set_caption("Recorded, not computed by this run.")


def _find(id: str) -> papers.Claim:
    claims = {claim.id: claim for claim in papers.read(id.rpartition(".")[0] or id).claims}
    if id not in claims:
        close = get_close_matches(id, claims) or claims
        raise LookupError(f"no claim {id!r} in data/papers; did you mean: {', '.join(close)}?")
    return claims[id]


def _record(
    facts: papers.Claim,
    verdict: Verdict,
    reason: str,
    note: str,
    estimate: Estimate | None = None,
    control: Estimate | None = None,
) -> ClaimRecord:
    record = ClaimRecord(
        id=facts.id,
        slug=facts.id.rpartition(".")[0],
        text=facts.text,
        paper=facts.paper,
        statistic=facts.statistic,
        unit=facts.unit,
        verdict=verdict,
        reason=reason,
        rule=facts.rule if estimate else None,
        estimate=estimate,
        control=control,
        control_text=facts.control,
        note=note,
    )
    record.show()
    return record


_ROW = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    Path(__file__).with_name("claim.html").read_text(encoding="utf-8")
)


def _html(record: ClaimRecord) -> str:
    css, sign, colour = BADGES[record.verdict]
    colour = f"var(--{css}, {colour})"
    dots, side = [], ""
    if record.rule and record.estimate:
        shown = [(record.estimate, "currentColor"), (record.control, "#808080")]
        ends = [x for e, _ in shown if e for x in (e.low, e.value, e.high)] + [record.rule.null]
        left, span = min(ends), (max(ends) - min(ends)) or 1.0

        def percent(x: float) -> float:
            return round(3 + 94 * (x - left) / span, 2)

        dots = [(fill, percent(e.low), percent(e.value), percent(e.high)) for e, fill in shown if e]
        null = percent(record.rule.null)
        side = (
            f"left: {null}%; right: 0" if record.rule.direction == "greater" else f"left: 0; width: {null}%"
        )
    return _ROW.render(record=record, css=css, sign=sign, colour=colour, dots=dots, side=side)
