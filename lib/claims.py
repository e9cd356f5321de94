"""The ledger: a chapter records what it measured for a claim; the claim's rule decides the verdict.

A record is shown as a row, and travels in the notebook's output under its own MIME type to the scoreboard.
A sentence that says what came out is a `finding`: the verdict chooses it, and its numbers are the record's.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from jinja2 import Environment, FileSystemLoader
from pydantic import TypeAdapter

from lib import ROOT, papers
from lib.papers import Rule
from lib.stats import Estimate

CLAIM_MIME = "application/vnd.worked-papers.claim+json"
FINDING_MIME = "application/vnd.worked-papers.finding+json"
RESULTS = ROOT / "data" / "results"
"""Recorded runs: larger ones than a reader waits for, and sweeps over seeds. `python -m book record` writes
them."""
COLUMNS = ("real", "untrained")
"""Names of the recorded runs that have a column of their own, and no say in a verdict."""
SHOWN = ("python", "torch", "transformers", "smollm2")
"""The versions that a row shows of a recorded run; the file has all."""

Verdict = Literal["holds", "holds, smaller", "undecided", "does not hold", "not testable here"]

# Verdict -> CSS class, sign, colour: white text on it has a contrast of at least 4.5.
BADGES: dict[Verdict, tuple[str, str, str]] = {
    "holds": ("wp-holds", "✓", "#00705a"),
    "holds, smaller": ("wp-smaller", "↗", "#1f6299"),
    "undecided": ("wp-undecided", "?", "#7a5b00"),
    "does not hold": ("wp-fails", "✗", "#b04a00"),
    "not testable here": ("wp-untested", "–", "#5f6368"),
}


@dataclass(frozen=True)
class RecordedRun:
    """What a run that is kept in `data/results` measured for a claim."""

    name: str
    settings: str
    """The parameters that were not the default's."""
    estimate: Estimate | None
    verdict: Verdict
    date: str = ""
    commit: str = ""
    versions: str = ""
    model: str = ""
    """Where the run chose another one; of a packaged model with the number format of its weights."""
    reason: str = ""
    """Why the claim could not be tested there, or why it holds on untrained networks."""


@dataclass(frozen=True)
class ClaimRecord:
    """A claim, what this run measured for it, and the verdict."""

    claim: papers.Claim
    verdict: Verdict
    reason: str
    estimate: Estimate | None = None
    null: Estimate | None = None
    """The same statistic in a run in which the effect must be absent."""
    contrast: Estimate | None = None
    """The same statistic of something else, which could not point the claimed way."""
    note: str = ""
    recorded: tuple[RecordedRun, ...] = ()
    """Of larger runs."""
    seeds: tuple[RecordedRun, ...] = ()
    """Of recorded runs at the chapter's own size that differ in their seed only."""
    real: RecordedRun | None = None
    """Of the recorded run named `real`: on a real model."""
    untrained: RecordedRun | None = None
    """Of the recorded run named `untrained`: on networks that learned nothing."""

    @property
    def id(self) -> str:
        """The claim's id, as in `eah.3`."""
        return self.claim.id

    @property
    def slug(self) -> str:
        """The chapter's name."""
        return self.claim.id.rpartition(".")[0]

    @property
    def decided(self) -> Verdict:
        """The verdict of this run or, where it could not tell, of the recorded run that can."""
        decisive = [run.verdict for run in self.recorded if run.verdict != "undecided"]
        return decisive[-1] if self.verdict == "undecided" and decisive else self.verdict

    @property
    def agree(self) -> int:
        """How many of the recorded seeds have this run's verdict."""
        return sum(run.verdict == self.verdict for run in self.seeds)

    def quantity(self, estimate: Estimate) -> str:
        """An estimate in the claim's unit."""
        return f"{estimate} {self.claim.unit or ''}".rstrip()

    def cells(self) -> Iterator[tuple[str, str, str]]:
        """Label, value and explanation: of the paper's figure, this run's, the null's, recorded ones."""
        claim = self.claim
        yield ("Paper" if claim.by == "paper" else "The book asks", claim.paper or "figures not read", "")
        if e := self.estimate:
            interval = "" if e.exact else f"; {e.confidence:.0%} interval, n = {e.n}"
            yield "This run", self.quantity(e), f"{claim.statistic}{interval}{_seeds_shown(claim.rule, e)}"
            if self.null:
                yield "Null", self.quantity(self.null), claim.null or ""
            if self.contrast:
                yield "Contrast", self.quantity(self.contrast), claim.contrast or ""
        recorded = [("Recorded", run) for run in self.recorded]
        for label, run in (*recorded, ("Real model", self.real), ("Untrained", self.untrained)):
            if run:
                value = self.quantity(run.estimate) if run.estimate else "not measured"
                made = ", ".join(filter(None, [run.date, run.commit[:7], run.versions]))
                about = [run.reason, f"{run.settings} ({made})" if made else run.settings]
                yield label, f"{value}: {run.verdict}", " ".join(filter(None, about))
        if claim.no_twin:
            yield "Untrained", "left out", claim.no_twin
        if self.seeds:
            told = [f"{run.settings}: {run.verdict}" for run in self.seeds]
            if self.agree == len(self.seeds):
                told = [run.settings for run in self.seeds]
            yield "Seeds", f"{self.agree} of {len(self.seeds)} agree", "; ".join(told)

    def __str__(self) -> str:
        """The row as plain text."""
        lines = [f"{BADGES[self.verdict][1]} {self.verdict} | {self.id}: {self.claim.text}"]
        for label, value, explanation in self.cells():
            lines.append(f"  {label:<13} {value}" + (f"  ({explanation})" if explanation else ""))
        lines.append(f"  Why           {self.reason}")
        return "\n".join(lines + ([f"  Note          {self.note}"] if self.note else []))

    def to_json(self) -> dict[str, Any]:
        """The record as it is stored in a notebook's output."""
        return RECORD.dump_python(self, mode="json")

    def show(self) -> None:
        """Display the row in a notebook, print it elsewhere."""
        if InteractiveShell.initialized():
            display({"text/plain": str(self), "text/html": _html(self), CLAIM_MIME: self.to_json()}, raw=True)
        else:
            print(self)

    def _ipython_display_(self) -> None:
        """Show nothing: `claim` did, and as a cell's last line the record would appear a second time."""


RECORD = TypeAdapter(ClaimRecord)
"""How a record is read from, and written to, a notebook's output."""
_ESTIMATE = TypeAdapter(Estimate | None)


def _seeds_shown(rule: Rule | None, e: Estimate) -> str:
    """A handful of values, one by one: an interval over three seeds says less than they do."""
    if not e.values or rule is None:
        return ""
    sign = 1 if rule.direction == "greater" else -1
    n = sum(sign * (x - rule.null) > 0 for x in e.values)
    return f"; {n} of {len(e.values)} on the claimed side: {', '.join(f'{x:.3g}' for x in e.values)}"


def claim(
    id: str,
    estimate: Estimate,
    *,
    null: Estimate | None = None,
    contrast: Estimate | None = None,
    note: str = "",
    untestable: str = "",
) -> ClaimRecord:
    """Record what this run measured for a claim; show the verdict that the claim's rule gives (`decide`).

    Args:
        id: `slug.N`, as in `data/papers/<slug>.yml`.
        estimate: of the claim's statistic, in its unit; its interval is over the unit the claim speaks of.
        null: the same statistic where the effect must be absent, of a run that could show it all the same.
        contrast: the same statistic of something else; shown, and without a say in the verdict.
        note: what the reader should know about this number.
        untestable: why the numbers of this run cannot decide the claim, such as `task_not_done`; the row is
            then `not_testable` for that reason, and says what was measured.

    Raises:
        LookupError: no such claim.
        TypeError: an argument is no `Estimate`.
        ValueError: it is not finite, the claim has no rule, or `null` and `contrast` are not those that
            `data/papers` announces.
    """
    facts = _find(id)
    if untestable:
        # an interval without width would be copies of one network
        shown = estimate if estimate.low < estimate.high else f"{estimate.value:.4g}"
        measured = f" It measured {shown} {facts.unit or ''}".rstrip() + "."
        return not_testable(id, untestable + (measured if math.isfinite(estimate.value) else ""), note)
    for role, given in (("estimate", estimate), ("null", null), ("contrast", contrast)):
        announced = role == "estimate" or getattr(facts, role) is not None
        if announced != (given is not None) and role != "estimate":
            raise ValueError(
                f"{id}: data/papers {'states' if announced else 'states no'} {role}, and the chapter "
                f"{'gives none' if announced else 'gives one'}"
            )
        if given is None and role != "estimate":
            continue
        if not isinstance(given, Estimate):
            raise TypeError(
                f"{id}: the {role} must be an Estimate (of lib.stats: bootstrap, wilson, ...), got {given!r}"
            )
        if not all(map(math.isfinite, (given.value, given.low, given.high))) or given.low > given.high:
            raise ValueError(f"{id}: the {role} is {given}; a verdict needs finite numbers with low <= high")
    if not facts.rule:
        raise ValueError(
            f"{id} has no rule that could decide it: add `rule` to it in data/papers, or call not_testable"
        )
    verdict, reason = decide(facts.rule, estimate, null)
    return _recorded(ClaimRecord(facts, verdict, reason, estimate, null, contrast, note))


def not_testable(id: str, reason: str = "", note: str = "") -> ClaimRecord:
    """Record that a claim cannot be tested here; the `reason` may be left to the one in `data/papers`."""
    facts = _find(id)
    if not (reason or facts.reason):
        raise ValueError(f"{id}: say why it cannot be tested (reason=...)")
    return _recorded(ClaimRecord(facts, "not testable here", reason or facts.reason or "", note=note))


def task_not_done(accuracy: Estimate, chance: float, what: str = "an accuracy of") -> str:
    """Why nothing can be said about how a model does a task: its accuracy may be chance. Else an empty text.

    Args:
        accuracy: with its interval over the task's examples, or over networks.
        chance: what guessing gives, in the same unit.
        what: what the accuracy is, in words that stand before its number.
    """
    if accuracy.low > chance:
        return ""
    return f"Task not done on this model: {what} {accuracy}, where guessing gives {chance:.3g}."


def decide(rule: Rule, estimate: Estimate, null: Estimate | None = None) -> tuple[Verdict, str]:
    """The verdict on an estimate, and the reason in words. Not knowing is not refuting.

    An interval that contains the rule's null decides nothing, unless it excludes the claimed size: then an
    effect as large as claimed is ruled out. A null run shows the same effect if its whole interval is on the
    claimed side, and it reaches the estimate's interval or the claimed size.
    """
    sign, claimed, other = (1, "above", "below") if rule.direction == "greater" else (-1, "below", "above")
    low, high = sorted((sign * (estimate.low - rule.null), sign * (estimate.high - rule.null)))
    size = sign * (rule.size - rule.null)
    if low == high and not estimate.exact:
        return "undecided", (
            "the interval has no width because all resamples agree, which says nothing about the next "
            "example: more of them, or an exact interval, would decide"
        )
    if high < 0 or (estimate.exact and high <= 0):
        return "does not hold", f"the whole interval is {other} {rule.null:g}"
    if low <= 0:
        if size > 0 and high < size:
            return "does not hold", (
                f"the interval contains {rule.null:g} and excludes {rule.size:g}: an effect as large as "
                "claimed is ruled out"
            )
        return "undecided", (
            f"the interval contains {rule.null:g}: this run cannot tell. More "
            f"{'seeds' if estimate.values else 'examples'}, or a recorded run of a larger size, would decide"
        )
    whole = f"the whole interval is {claimed} {rule.null:g}"
    if null:
        near, far = sorted((sign * (null.low - rule.null), sign * (null.high - rule.null)))
        if near > 0 and (far >= low or sign * (null.value - rule.size) >= 0):
            return "does not hold", f"{whole}, but so is the null run's"
        whole += " and beyond the null run's, which is there too" if near > 0 else ""
    if sign * (estimate.value - rule.size) < 0:
        return "holds, smaller", f"{whole}, but the value falls short of {rule.size:g}"
    return "holds", whole + (f", and the value reaches {rule.size:g}" if size else "")


def finding(
    record: ClaimRecord,
    *others: ClaimRecord,
    holds: str,
    undecided: str,
    fails: str,
    smaller: str | None = None,
    untested: str | None = None,
) -> None:
    """State what this run found, in the sentence that belongs to the claim's verdict.

    A sentence takes its numbers from the records, as `str.format` does: `{0.estimate.value:.0f}` is the first
    record's, `{1.null}` the second's. The page shows findings, at most three of them, at its top.

    Args:
        record: the claim whose verdict chooses the sentence.
        others: records whose numbers the sentences mention.
        holds, undecided, fails, smaller, untested: the sentences; `smaller` is `holds` by default, `untested`
            the record's own reason.

    Raises:
        ValueError: a sentence mentions a number that its record does not have.
    """
    sentences: dict[Verdict, str | None] = {
        "holds": holds,
        "holds, smaller": smaller or holds,
        "undecided": undecided,
        "does not hold": fails,
        "not testable here": untested,
    }
    template = sentences[record.verdict]
    try:
        text = record.reason if template is None else template.format(record, *others)
    except (AttributeError, IndexError) as error:
        raise ValueError(f"{record.id}: the finding {template!r} cannot be filled in: {error}") from None
    content = {"text": text, "verdict": record.verdict, "claims": [record.id, *(r.id for r in others)]}
    if InteractiveShell.initialized():
        display({"text/markdown": text, "text/plain": text, FINDING_MIME: content}, raw=True)
    else:
        print(text)


def _find(id: str) -> papers.Claim:
    claims = {claim.id: claim for claim in papers.read(id.rpartition(".")[0] or id).claims}
    if id not in claims:
        close = get_close_matches(id, claims) or claims
        raise LookupError(f"no claim {id!r} in data/papers; did you mean: {', '.join(close)}?")
    return claims[id]


def _recorded(record: ClaimRecord) -> ClaimRecord:
    """Shows a record together with what larger runs, kept in `data/results`, measured for its claim."""
    runs: dict[str, list[RecordedRun]] = {kind: [] for kind in ("recorded", "seeds", *COLUMNS)}
    for path in sorted(RESULTS.glob(f"{record.slug}--*.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        versions = kept.get("versions", {})
        for run in kept.get("runs", [kept]):
            by_id = {stored.get("id") or stored["claim"]["id"]: stored for stored in run["claims"]}
            if not (stored := by_id.get(record.id)):
                continue
            estimate = _ESTIMATE.validate_python(stored.get("estimate"))
            null = _ESTIMATE.validate_python(stored.get("null"))
            verdict: Verdict = "not testable here"
            if record.claim.rule and estimate:  # decided by the rule as it is now
                verdict = decide(record.claim.rule, estimate, null if record.claim.null else None)[0]
            name, model = path.stem.partition("--")[2], run["parameters"].get("model", "")
            kind = name if name in COLUMNS else "seeds" if "runs" in kept else "recorded"
            on_twins = (
                record.claim.twin_holds if kind == "untrained" and verdict.startswith("holds") else None
            )
            runs[kind].append(
                RecordedRun(
                    name=name,
                    settings=", ".join(f"{name} = {value}" for name, value in run["parameters"].items()),
                    estimate=estimate,
                    verdict=verdict,
                    date=kept.get("date", ""),
                    commit=kept.get("commit") or "",
                    versions=", ".join(f"{name} {v}" for name, v in versions.items() if name in SHOWN),
                    model=", ".join(filter(None, [model, versions.get(model, "").partition(" of ")[0]])),
                    reason=(on_twins if estimate else stored.get("reason")) or "",
                )
            )
    if record.claim.no_twin or not record.claim.testable:
        runs["untrained"].clear()
    found = {kind: next(iter(of), None) if kind in COLUMNS else tuple(of) for kind, of in runs.items()}
    shown = ClaimRecord(**vars(record) | found)
    shown.show()
    return shown


@cache
def _row() -> Any:
    folder = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(
        "claim.html"
    )


def _html(record: ClaimRecord) -> str:
    """The row; below its numbers a strip on which the claimed side is shaded."""
    dots, side, rule = [], "", record.claim.rule
    if rule and record.estimate:
        shown = [(record.estimate, "currentColor"), (record.null or record.contrast, "#808080")]
        ends = [x for e, _ in shown if e for x in (e.low, e.value, e.high)] + [rule.null]
        left, span = min(ends), (max(ends) - min(ends)) or 1.0

        def percent(x: float) -> float:
            return round(3 + 94 * (x - left) / span, 2)

        dots = [(fill, percent(e.low), percent(e.value), percent(e.high)) for e, fill in shown if e]
        null = percent(rule.null)
        side = f"left: {null}%; right: 0" if rule.direction == "greater" else f"left: 0; width: {null}%"
    return _row().render(record=record, badges=BADGES, dots=dots, side=side)
