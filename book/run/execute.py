"""Execute a run in a process of its own: the part that is called on a thread here, or on a Dask worker."""

import contextlib
import json
import os
import pickle
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from book.run import child, key
from book.run.plan import Job
from book.run.redact import ANSI, redact
from lib import ROOT

ATTEMPTS = 3
"""How often a kernel that does not come up is started."""
GRACE = 5.0
"""Seconds that an interrupted cell has to end by itself before everything of the run is killed."""

_STOPPED: set[str] = set()


@dataclass(frozen=True)
class Outcome:
    """What came of executing a job."""

    status: str
    """`passed`, `failed`, `timeout` or `died`."""
    notebook: NotebookNode | None = None
    seconds: float = 0.0
    error: str | None = None
    cell: str | None = None
    """The cell that failed."""
    peak_memory_mib: float | None = None
    changed: list[str] = field(default_factory=list)
    """What decides the result and was changed while it ran."""


def stop(batch: str) -> None:
    """End what runs of a batch in this process."""
    _STOPPED.add(batch)


def missing(jobs: list[Job], root: Path | None) -> list[str]:
    """What decides the results of some runs, and is not here as it was planned."""
    return sorted({label for job in jobs for label in _changed(job, root or ROOT)})


def execute(
    job: Job,
    batch: str,
    root: Path | None = None,
    timeout: float = 900.0,
    threads: int = 0,
    tell: Callable[[int, int], None] = lambda cell, cells: None,
) -> Outcome:
    """Run a chapter.

    Args:
        job: the run.
        batch: a name that the runs of one batch share.
        root: the repository; None for the one that this process has imported `lib` from.
        timeout: seconds that the run may take.
        threads: how many numerical libraries may use; 0 leaves that to the environment.
        tell: called with the number of the cell that has begun, and of all cells.
    """
    root = root or ROOT
    started = time.time()
    if differing := _changed(job, root):
        error = f"{socket.gethostname()} does not have what was planned: {', '.join(differing)}. "
        error += "Edited meanwhile? Start again. Another machine? Bring its copy up to date."
        return Outcome("failed", error=error)
    for _ in range(ATTEMPTS):
        # a short path, because a Unix socket will be in it
        with tempfile.TemporaryDirectory(prefix="worked-papers-", ignore_cleanup_errors=True) as folder:
            result = _attempt(job, Path(folder), batch, root, timeout, threads, tell)
            lines = _lines(Path(folder, "reads"))
        if result["notebook"] or result["status"] == "timeout" or batch in _STOPPED:
            break
    seconds = round(time.time() - started, 3)
    notebook = nbformat.from_dict(result["notebook"]) if result["notebook"] else None
    changed: list[str] = []
    cell = None
    if notebook is not None:
        if result["cell"] is not None:
            cell = _describe(notebook, result["cell"])
        observed, changed = key.reads(lines, job.manifest, root, started)
        _finish(notebook, job, seconds, result["peak_memory_mib"], observed)
        changed += _changed(job, root)
        notebook = redact(notebook)
    error = result["error"] and redact(ANSI.sub("", result["error"]))
    return Outcome(
        result["status"], notebook, seconds, error, redact(cell), result["peak_memory_mib"], changed
    )


def _changed(job: Job, root: Path) -> list[str]:
    try:
        return key.differing(job.manifest, key.manifest(job.slug, job.parameters, root))
    except (LookupError, ValueError, OSError) as error:
        return [str(error)]


def _attempt(
    job: Job,
    folder: Path,
    batch: str,
    root: Path,
    timeout: float,
    threads: int,
    tell: Callable[[int, int], None],
) -> dict[str, Any]:
    begun = time.time()
    request = {"notebook": job.notebook, "parameters": job.given, "deadline": begun + timeout, "grace": GRACE}
    (folder / "request").write_bytes(pickle.dumps(request))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", child.__file__, str(folder)],
            stdin=subprocess.PIPE,  # ends when this process does
            stdout=log,
            stderr=log,
            cwd=root,
            env=_environment(folder, threads),
            start_new_session=True,  # a terminal's Ctrl-C is for the runner, which ends its runs
        )
    while time.time() < begun + timeout + 2 * GRACE and batch not in _STOPPED:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
            break
        with contextlib.suppress(OSError, ValueError):  # not there, or half written
            cell, cells = map(int, (folder / "progress").read_text().split())
            tell(cell, cells)
    late = time.time() >= begun + timeout
    child.end(folder)  # also what a cell has left behind
    status = process.wait()
    process.stdin.close()  # type: ignore[union-attr]
    result = {"status": "died", "notebook": None, "cell": None, "peak_memory_mib": None}
    result["error"] = f"the run ended with exit status {status}"
    with contextlib.suppress(OSError):
        result |= json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if result["status"] == "died":
        said = (folder / "log").read_text(errors="replace")[-4000:]
        result["error"] = f"{result['error']}\n{said}".rstrip()
    if late and result["status"] != "passed":
        error = f"stopped after {timeout:g} s, its time limit. {result['error']}"
        result |= {"status": "timeout", "error": error}
    return result


def _environment(folder: Path, threads: int) -> dict[str, str]:
    """Of a run: reproducible hashing, no more threads than cores, nothing of the user's IPython profile."""
    limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    # One number for all: with OMP's and MKL's apart, torch takes the larger.
    shared = dict.fromkeys(limits, os.environ.get("OMP_NUM_THREADS", str(threads))) if threads else {}
    fixed = {
        "PYTHONHASHSEED": "0",
        "PYTHONFAULTHANDLER": "1",
        "IPYTHONDIR": str(folder),
        child.MARK: str(folder),
    }
    return {**shared, **os.environ, **fixed}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _describe(notebook: NotebookNode, index: int) -> str:
    """A cell's place in the chapter, in which papermill has inserted one, and its first line."""
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells[: index + 1]]
    first = notebook.cells[index].source.strip().partition("\n")[0]
    return f"cell {sum('injected-parameters' not in one for one in tags)}: {first}"


def _finish(
    notebook: NotebookNode, job: Job, seconds: float, peak: float | None, reads: dict[str, str]
) -> None:
    """Say in an executed notebook how it was made; remove what papermill adds to cells without results."""
    for cell in notebook.cells:
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        if cell.cell_type != "code":
            cell.metadata.pop("papermill", None)
    notebook.metadata.papermill.input_path = f"notebooks/{job.slug}.ipynb"
    packages = {label.split()[1]: was for label, was in job.manifest.items() if label.startswith("package ")}
    notebook.metadata.worked_papers = {
        "key": job.key,
        "slug": job.slug,
        "preset": job.preset,
        "parameters": job.parameters,
        "seconds": seconds,
        "peak_memory_mib": peak,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": {"python": job.manifest["python"], **packages},
        "manifest": job.manifest,
        "reads": reads,
    }


def _machine() -> str:
    """The machine in words, such as `Linux x86_64, 2 cores, NVIDIA T4`."""
    words = [f"{platform.system()} {platform.machine()}", f"{os.cpu_count()} cores"]
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        words += subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return ", ".join(words)
