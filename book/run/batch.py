"""Plan, cache, execute and report: the runner that re-executes chapters with papermill on Dask."""

import contextlib
import logging
import time
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import nbformat
from nbformat import NotebookNode
from rich.console import Console

from book.run.cache import Cache, Output
from book.run.plan import Job, Outcome, changed, plan_runs
from book.run.redact import redact
from book.run.report import BAD, Display, Report, Result
from lib import ROOT, chapters

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Report", "Result", "run"]


def run(
    slugs: list[str] | None = None,
    *,
    preset: str = "organism",
    parameters: dict[str, Any] | None = None,
    sweep: dict[str, list[Any]] | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    out: str | Path | None = None,
    timeout: float = 900.0,
    force: bool = False,
    dry_run: bool = False,
    root: Path = ROOT,
    console: Console | None = None,
) -> Report:
    """Execute chapters, as far as their results are not in the cache.

    What fails does not stop the rest: look at the report's `ok` and `results`. The executed notebooks,
    `report.json`, `junit.xml` and `report.html` are in `_build/runs/<preset>`, what failed in its `failed`.

    Args:
        slugs: the chapters; None for all.
        preset: parameters from the `presets` of `data/papers/<slug>.yml`.
        parameters: values that go before those of the preset.
        sweep: parameter -> values; each combination is a run.
        jobs: kernels at a time on this machine, which share its cores.
        scheduler: address of a Dask scheduler, such as tcp://host:8786, to run on its workers instead.
        out: folder or fsspec URL in place of `_build/runs/<preset>`.
        timeout: seconds that a run may take.
        force: run also what the cache has.
        dry_run: only tell what would be run.
        root: the repository.
        console: where progress is shown; standard error by default.

    Raises:
        LookupError: unknown chapter, preset or parameter. Nothing was run.
        ValueError: ill-typed value, or a chapter whose parameters cannot be read. Nothing was run.
        OSError: the scheduler does not answer, or the output cannot be written.
    """
    if jobs < 1 or timeout <= 0:
        raise ValueError(f"jobs={jobs}, timeout={timeout}: expected at least one job and a positive time")
    console = console or Console(stderr=True)
    planned = plan_runs(slugs, preset, parameters, sweep, root)
    batch = _Batch(root, Output(out or root / "_build" / "runs" / preset), dry_run)
    report = Report(preset, started=datetime.now(UTC).isoformat(timespec="seconds"))
    started = time.monotonic()
    if not dry_run:
        batch.output.prepare()
    results: dict[str, Result] = {}
    try:
        with Display(console, len(planned)) as display:
            todo = []
            for job in planned:
                if not force and (notebook := batch.cached(job)):
                    results[job.name] = batch.result(job, "cached", notebook)
                    display.finished(results[job.name])
                else:
                    todo.append(job)
            reasons = {job.name: "forced" if force else batch.reason(job) for job in todo}
            if dry_run:
                outcomes = ((job, Outcome("planned")) for job in todo)
            else:
                outcomes = _execute(todo, batch, jobs, scheduler, timeout, display)
            with contextlib.closing(outcomes):
                for job, outcome in outcomes:
                    results[job.name] = batch.keep(job, outcome)
                    results[job.name].reason = results[job.name].reason or reasons[job.name]
                    display.finished(results[job.name])
    except BaseException:
        report.interrupted = True
        raise
    finally:
        report.results = [results[job.name] for job in planned if job.name in results]
        report.seconds = round(time.monotonic() - started, 3)
        if report.interrupted:
            console.print(f"{report.summary()}; the same command goes on from there", highlight=False)
        if not dry_run:
            batch.output.write("report.json", report.to_json().encode())
            batch.output.write("junit.xml", report.to_junit())
            batch.output.write("report.html", report.to_html().encode())
    return report


class _Batch:
    """Where the runs of a batch come from and go to."""

    def __init__(self, root: Path, output: Output, dry_run: bool):
        self.root, self.output, self.dry_run = root, output, dry_run
        self.cache = Cache(root / "_build" / "cache")

    def cached(self, job: Job) -> NotebookNode | None:
        return self.cache.load(job, chapters.read(job.slug, self.root))

    def reason(self, job: Job) -> str:
        """Why a run is not in the cache: what differs from the last one."""
        try:
            last = nbformat.reads(self.output.read(f"{job.name}.ipynb") or b"", as_version=4)
            then = self.cache.manifest(last.metadata.worked_papers.key)
        except (ValueError, AttributeError):
            return "first run"
        now = job.manifest
        differing = sorted(label for label in now | then if now.get(label) != then.get(label))
        return f"changed: {', '.join(differing)}" if then and differing else "no result kept"

    def keep(self, job: Job, outcome: Outcome) -> Result:
        """Store what came of a run, unless what decides its result was changed meanwhile."""
        notebook = redact(outcome.notebook)
        result = self.result(job, outcome.status, notebook)
        result.seconds = outcome.seconds
        result.cell, result.error = redact(outcome.cell), redact(outcome.error)
        if outcome.status == "passed":
            if differing := changed(job, self.root):
                result.reason = f"not kept, changed meanwhile: {', '.join(differing)}"
            else:
                self.cache.store(job, notebook)
        return result

    def result(self, job: Job, status: str, notebook: NotebookNode | None) -> Result:
        """Of a run; its notebook is put where readers look for it."""
        result = Result(job.name, job.slug, job.preset, job.parameters, job.key, status)
        good, bad = f"{job.name}.ipynb", f"failed/{job.name}.ipynb"
        if not self.dry_run:  # an older notebook must not be taken for this run's
            self.output.remove(good if status in BAD else bad)
        if notebook is not None:
            facts = notebook.metadata.worked_papers
            result.seconds, result.peak_memory_mib = facts["seconds"], facts["peak_memory_mib"]
            facts |= {"slug": job.slug, "preset": job.preset, "parameters": job.parameters}
            name = bad if status in BAD else good
            content = nbformat.writes(notebook).encode()
            if not self.dry_run and self.output.read(name) != content:  # the book rebuilds what is newer
                self.output.write(name, content)
            result.notebook = self.output.path(name)
        return result


def _execute(
    todo: list[Job], batch: _Batch, jobs: int, scheduler: str | None, timeout: float, display: Display
) -> Generator[tuple[Job, Outcome]]:
    """Run on Dask; outcomes in the order in which they come."""
    if not todo:  # then there is no need for a cluster
        return
    from distributed import as_completed

    from book.run import execute

    name = uuid4().hex
    root = None if batch.root == ROOT else batch.root
    imports = frozenset().union(*(job.imports for job in todo))
    with _cluster(scheduler, min(jobs, len(todo))) as client:
        client.subscribe_topic(execute.TOPIC, lambda event: display.cell(*event[1]["at"]))
        futures = {}
        for job in todo:
            text = chapters.read(job.slug, batch.root)
            task = client.submit(
                execute.execute, job, text, name, root, imports, timeout, key=f"{job.name}-{name}", pure=False
            )
            futures[task] = job
        try:
            for task in as_completed(futures):
                job = futures.pop(task)
                error = task.exception()  # of Dask's own: a lost worker, a lost scheduler
                yield (
                    job,
                    Outcome("died", error=f"{type(error).__name__}: {error}") if error else task.result(),
                )
        finally:
            client.cancel(list(futures), force=True)
            client.run(execute.stop, name)


@contextlib.contextmanager
def _cluster(scheduler: str | None, jobs: int) -> Iterator["Client"]:
    """A client of the scheduler, or of one in this process whose threads each look after one kernel.

    Raises:
        OSError: the scheduler does not answer.
    """
    from distributed import Client, LocalCluster

    with contextlib.ExitStack() as stack:
        if scheduler is None:
            scheduler = stack.enter_context(
                LocalCluster(
                    n_workers=1,
                    threads_per_worker=jobs,
                    processes=False,  # the kernels are processes
                    dashboard_address="127.0.0.1:0",  # None means port 8787, which may be taken
                    silence_logs=logging.CRITICAL,
                )
            )
        try:
            client = stack.enter_context(Client(scheduler, timeout=5))
        except (OSError, ValueError) as error:
            raise OSError(
                f"no Dask scheduler at {scheduler}: {error}; is `dask scheduler` running?"
            ) from None
        if not client.scheduler_info()["workers"]:
            logging.getLogger("distributed").warning("the scheduler has no workers yet; waiting for them")
        yield client
