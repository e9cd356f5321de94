"""Execute a chapter with papermill: the part that runs on a Dask worker, here or on another machine."""

import copy
import logging
import socket
import threading
import time
from contextvars import Context
from datetime import UTC, datetime
from pathlib import Path

from dask.system import CPU_COUNT
from distributed import Worker, get_worker
from nbformat import NotebookNode
from papermill import PapermillExecutionError, execute_notebook

from book.run.kernel import Kernel, Nest, watch
from book.run.plan import Job, Outcome, changed, versions
from book.run.redact import ANSI, redact
from lib import ROOT

logging.getLogger("papermill").addHandler(logging.NullHandler())  # what went wrong is in the outcome
logging.getLogger("papermill").propagate = False

ATTEMPTS = 3
"""How often a kernel that does not come up is started."""
TOPIC = "worked-papers"
"""Of the events that tell which cell is running."""

_NESTS: dict[str, Nest] = {}
_LOCK = threading.Lock()


def stop(batch: str) -> None:
    """End what a batch has left on this worker."""
    if nest := _NESTS.pop(batch, None):
        nest.stop()


def execute(
    job: Job, chapter: NotebookNode, batch: str, root: Path | None, imports: frozenset[str], timeout: float
) -> Outcome:
    """Run a chapter.

    Args:
        job: the run.
        chapter: the notebook as it is in the repository.
        batch: a name that the runs of one batch share.
        root: the repository; None for the one that this process has imported `lib` from.
        imports: what the batch's chapters import.
        timeout: seconds that the run may take.
    """
    root = root or ROOT
    if differing := changed(job, root):
        error = f"{socket.gethostname()} does not have what was planned: {', '.join(differing)}. "
        error += "Edited meanwhile? Start again. Another machine? Bring its copy up to date."
        return Outcome("failed", error=error)
    with _LOCK:
        if batch not in _NESTS:
            _NESTS[batch] = Nest(root, imports, max(1, CPU_COUNT // get_worker().state.nthreads))
    nest = _NESTS[batch]
    for _ in range(ATTEMPTS):
        # In a context of its own: jupyter_core keeps its event loop in one, and Dask hands on that of the
        # caller, so that two threads would share the loop of whoever has executed a notebook before.
        outcome = Context().run(_attempt, job, chapter, nest, timeout, get_worker())
        if outcome.notebook is not None or nest.stopped:
            break
    return outcome


def _attempt(job: Job, chapter: NotebookNode, nest: Nest, timeout: float, worker: Worker) -> Outcome:
    kernel = Kernel(nest)
    running: list[NotebookNode] = []
    status, error, cell = "passed", None, None
    started = time.monotonic()
    with watch(kernel, timeout) as (begun, expired):

        def on_notebook_start(notebook: NotebookNode) -> None:
            running.append(notebook)
            begun.set()

        def on_cell_start(cell: NotebookNode, cell_index: int) -> None:
            worker.log_event(TOPIC, {"at": (job.name, cell_index, len(running[0].cells))})

        try:
            execute_notebook(
                copy.deepcopy(chapter),
                None,
                parameters=job.given or None,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                request_save_on_cell_execute=False,
                km=kernel,
                on_notebook_start=on_notebook_start,
                on_cell_start=on_cell_start,
            )
        except PapermillExecutionError as failure:
            status, cell = "failed", _describe(job, failure.source, failure.cell_index)
            error = "\n".join(failure.traceback) or f"{failure.ename}: {failure.evalue}"
        except Exception as failure:  # nbclient and jupyter_client say in many ways that a kernel is gone
            status, error = "died", kernel.obituary() or f"{type(failure).__name__}: {failure}"
            for index, candidate in enumerate(running[0].cells if running else []):
                if candidate.metadata.papermill.get("start_time"):
                    cell = _describe(job, candidate.source, index)
        kernel.measure()
        kernel.close()
    if expired.is_set() and status != "passed":
        status, error = "timeout", f"stopped after {timeout:g} s, its time limit. {error}"
    seconds = round(time.monotonic() - started, 3)
    if running:
        _finish(running[0], job, seconds, kernel.peak_mib)
    notebook = redact(running[0]) if running else None
    return Outcome(status, notebook, seconds, error and redact(ANSI.sub("", error)), redact(cell))


def _describe(job: Job, source: str, index: int) -> str:
    """A cell's place in the chapter (papermill inserts a cell for given parameters), and its first line."""
    first = next((line for line in source.splitlines() if line.strip()), "")
    return f"cell {index + (not job.given)}: {first}"


def _finish(notebook: NotebookNode, job: Job, seconds: float, peak_mib: float) -> None:
    """Say in an executed notebook how it was made; remove what papermill adds to cells without results."""
    for cell in notebook.cells:
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        if cell.cell_type != "code":
            cell.metadata.pop("papermill", None)
    notebook.metadata.papermill.input_path = f"notebooks/{job.slug}.ipynb"
    notebook.metadata.worked_papers = {
        "key": job.key,
        "seconds": seconds,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "peak_memory_mib": round(peak_mib, 1),
    }
