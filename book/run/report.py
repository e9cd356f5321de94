"""What a batch tells: a line for each run, progress on a terminal, then report.json and junit.xml."""

import json
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from book.run.cache import SUITE

STATUSES = ("passed", "cached", "planned", "failed", "timeout", "died")
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
    finished: bool = True
    """False from the start to the end, so that a killed batch leaves no report that says that all is well."""

    @property
    def ok(self) -> bool:
        """Whether everything that was asked for is there."""
        return self.finished and not any(result.status in BAD for result in self.results)

    def summary(self) -> str:
        """One line, such as `3 passed, 20 cached, 1 failed in 12.3 s`."""
        counts = Counter(result.status for result in self.results)
        text = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
        stopped = "" if self.finished else ", interrupted"
        return f"{text or 'nothing run'}{stopped} in {self.seconds:.1f} s"

    def to_json(self) -> str:
        """For programs."""
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=1, default=str)

    def to_junit(self) -> bytes:
        """For CI services: one test case for each run, and an error if the batch did not finish."""
        cases = []
        for result in self.results:
            seconds = "0" if result.status == "cached" else f"{result.seconds:.3f}"
            cases.append(ET.Element("testcase", classname=result.slug, name=result.name, time=seconds))
            if result.status in BAD:
                kind = "failure" if result.status == "failed" else "error"
                message = f"{result.status}: {result.cell or 'before the first cell'}"
                ET.SubElement(cases[-1], kind, message=_xml(message)).text = _xml(result.error or "")
        if not self.finished:
            cases.append(ET.Element("testcase", classname="batch", name="finished"))
            ET.SubElement(cases[-1], "error", message="the batch is running, or was killed")
        suite = ET.Element(
            "testsuite",
            name=f"{SUITE}{self.preset}",
            tests=str(len(cases)),
            failures=str(sum(case.find("failure") is not None for case in cases)),
            errors=str(sum(case.find("error") is not None for case in cases)),
            time=f"{self.seconds:.3f}",
            timestamp=self.started,
        )
        suite.extend(cases)
        return ET.tostring(suite, encoding="utf-8", xml_declaration=True)


def _xml(text: str) -> str:
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)


class Display:
    """A line for each run that has ended; on a terminal, below them, one that shows what is running.

    What goes wrong while it writes is told once and decides nothing: the runs matter, not the display.
    """

    def __init__(self, runs: int, stream: TextIO | None = None):
        """For a number of runs; on standard error by default."""
        self.stream = stream or sys.stderr
        self.runs, self.done = runs, 0
        self._failed = False

    def line(self, text: str) -> None:
        """Print a line as it is; what the terminal cannot show, escaped."""
        self._write(f"{text}\n")

    def running(self, at: Mapping[str, tuple[int, int]]) -> None:
        """Show how far the runs are: name -> cell and number of cells."""
        try:
            if self.stream.isatty():
                runs = ", ".join(f"{name} cell {cell}/{cells}" for name, (cell, cells) in sorted(at.items()))
                text = f"{self.done}/{self.runs} done; {runs}"
                self._write(text[: shutil.get_terminal_size().columns - 1])
        except Exception as error:
            self._fail(error)

    def finished(self, result: Result) -> None:
        """A run has ended."""
        self.done += 1
        line = f"{result.status:<8}{result.name}"
        if result.status not in ("cached", "planned"):
            memory = f", {result.peak_memory_mib:,.0f} MiB" if result.peak_memory_mib else ""
            line += f"  {result.seconds:.1f} s{memory}"
        self.line(line + (f"  ({result.reason})" if result.reason else ""))
        if result.status in BAD:
            last = (result.error or "").strip().splitlines()[-1:]
            for text in filter(None, [result.cell, *last]):
                self.line(f"    {text}")

    def _write(self, text: str) -> None:
        try:
            encoding = self.stream.encoding or "utf-8"
            text = text.encode(encoding, "backslashreplace").decode(encoding)
            self.stream.write(f"\r\x1b[K{text}" if self.stream.isatty() else text)
            self.stream.flush()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            self._write(f"the display of progress failed ({error!r}); the runs go on\n")
