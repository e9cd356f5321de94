"""What a batch tells: progress while it runs, then report.json, junit.xml and a page."""

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

SIGNS = {
    "passed": "[green]✓[/]",
    "cached": "[cyan]=[/]",
    "planned": "[yellow]→[/]",
    "failed": "[red]✗[/]",
    "timeout": "[red]⏱[/]",
    "died": "[red]†[/]",
}
BAD = ("failed", "timeout", "died")


@dataclass
class Result:
    """What came of one run."""

    name: str
    """The slug and, in a sweep, the swept values."""
    slug: str
    preset: str
    parameters: dict[str, Any]
    key: str
    status: str
    """`passed`, `cached`, `failed`, `timeout` or `died`; in a dry run `cached` or `planned`."""
    notebook: Path | str | None = None
    """The executed notebook, or as far as it came; a URL where the output is not a local folder."""
    seconds: float = 0.0
    """The run took; for a cached result, when it was made."""
    peak_memory_mib: float | None = None
    cell: str | None = None
    """The cell that failed."""
    error: str | None = None
    """Its traceback."""
    reason: str = ""
    """Why it was not served from the cache, or was not put there."""


@dataclass
class Report:
    """What came of a batch."""

    preset: str
    results: list[Result] = field(default_factory=list)
    started: str = ""
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def ok(self) -> bool:
        """Whether everything that was asked for is there."""
        return not self.interrupted and not any(result.status in BAD for result in self.results)

    def summary(self) -> str:
        """One line, such as `3 passed, 20 cached, 1 failed in 12.3 s`."""
        counts = Counter(result.status for result in self.results)
        text = ", ".join(f"{counts[status]} {status}" for status in SIGNS if counts[status]) or "nothing run"
        return f"{text}{', interrupted' if self.interrupted else ''} in {self.seconds:.1f} s"

    def to_json(self) -> str:
        """For programs."""
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=1, default=str, ensure_ascii=False)

    def to_junit(self) -> bytes:
        """For CI services: one test case for each run."""
        suite = ET.Element(
            "testsuite",
            name=f"chapters, preset {self.preset}",
            tests=str(len(self.results)),
            failures=str(sum(result.status == "failed" for result in self.results)),
            errors=str(sum(result.status in ("timeout", "died") for result in self.results)),
            time=f"{self.seconds:.3f}",
            timestamp=self.started,
        )
        for result in self.results:
            seconds = "0" if result.status == "cached" else f"{result.seconds:.3f}"
            case = ET.SubElement(suite, "testcase", classname=result.slug, name=result.name, time=seconds)
            if result.status in BAD:
                kind = "failure" if result.status == "failed" else "error"
                message = f"{result.status}: {result.cell or 'before the first cell'}"
                ET.SubElement(case, kind, message=_xml(message)).text = _xml(result.error or "")
        return ET.tostring(suite, encoding="utf-8", xml_declaration=True)

    def to_html(self) -> str:
        """For people."""
        return _PAGE.render(report=self, bad_ones=BAD)


def _xml(text: str) -> str:
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)


class Display:
    """Progress on a terminal; elsewhere a line for each run."""

    def __init__(self, console: Console, runs: int):
        """For a number of runs."""
        self.console = console
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[at]}"),
        )
        self._progress = Progress(
            *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self._all = self._progress.add_task("[bold]chapters", total=runs, at=f"0/{runs}")
        self._running: dict[str, Any] = {}
        self._done, self._runs = 0, runs

    def __enter__(self) -> "Display":
        """Start to draw."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave only the lines of finished runs."""
        self._progress.stop()

    def cell(self, run: str, cell: int, cells: int) -> None:
        """A run has come to a cell."""
        if run not in self._running:
            # rich draws the row inside `add_task`: every field that a column shows must be there already
            self._running[run] = self._progress.add_task(escape(run), total=cells, at="")
        self._progress.update(self._running[run], completed=cell, total=cells, at=f"cell {cell + 1}/{cells}")

    def finished(self, result: Result) -> None:
        """A run has ended."""
        if (task := self._running.pop(result.name, None)) is not None:
            self._progress.remove_task(task)
        self._done += 1
        self._progress.update(self._all, completed=self._done, at=f"{self._done}/{self._runs}")
        line = f"{SIGNS[result.status]} {escape(result.name)}  [dim]{result.status}[/]"
        if result.status not in ("cached", "planned"):
            line += f" [dim]{result.seconds:.1f} s, {result.peak_memory_mib or 0:,.0f} MiB[/]"
        if result.reason:
            line += f" [dim]({escape(result.reason)})[/]"
        self.console.print(line, highlight=False, soft_wrap=True)
        if result.status in BAD:
            last = (result.error or "").strip().splitlines()[-1:]
            for text in filter(None, [result.cell, *last]):
                self.console.print(f"    {escape(text)}", highlight=False, soft_wrap=True)


_PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Chapters, preset {{ report.preset }}</title>
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; --bad: light-dark(#a40000, #ff9a8d); }
body { max-width: 70rem; margin: auto; padding: 1rem; background: Canvas; color: CanvasText; }
a { color: light-dark(#0b57d0, #a8c7fa); }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; padding: .5rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid #8888; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.bad { font-weight: 700; color: var(--bad); }
pre { overflow-x: auto; padding: .6rem; border: 1px solid; font-size: .85rem; }
code { overflow-wrap: anywhere; }
</style>
</head>
<body>
<main>
<h1>Chapters, preset {{ report.preset }}</h1>
<p>{{ report.summary() }}, started {{ report.started }}.</p>
<div class="table" role="region" aria-label="Runs" tabindex="0">
<table>
<caption>Each run's time and peak memory; a cached run's are those of when it was made.</caption>
<thead>
<tr>
{% for title in ("Run", "Result", "Seconds", "MiB") %}<th scope="col">{{ title }}</th>{% endfor %}
</tr>
</thead>
<tbody>
{% for result in report.results %}
{% set bad = result.status in bad_ones %}
<tr>
<th scope="row">
{% if result.notebook %}
<a href="{{ 'failed/' if bad }}{{ result.name | urlencode }}.ipynb">{{ result.name }}</a>
{% else %}
{{ result.name }}
{% endif %}
</th>
<td>
<span{% if bad %} class="bad"{% endif %}>{{ result.status }}</span>
{% if result.cell %}<br><code>{{ result.cell }}</code>{% endif %}
{% if result.error %}
<details><summary>What went wrong</summary><pre tabindex="0">{{ result.error }}</pre></details>
{% endif %}
</td>
<td class="number">{{ "%.1f" | format(result.seconds) }}</td>
<td class="number">{{ "{:,.0f}".format(result.peak_memory_mib) if result.peak_memory_mib }}</td>
</tr>
{% endfor %}
</tbody>
</table>
</div>
</main>
</body>
</html>
""")
