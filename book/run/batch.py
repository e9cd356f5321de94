"""Plan, cache, execute and report: the runner that re-executes chapters with papermill."""

import contextlib
import os
import time
from collections.abc import Generator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

import nbformat
from nbformat import NotebookNode
from upath import UPath

from book.run import execute, key
from book.run.cache import Cache, prepare, write
from book.run.cluster import Cluster
from book.run.execute import Outcome
from book.run.plan import Job, plan_runs
from book.run.redact import redact
from book.run.report import BAD, Display, Report, Result
from lib import ROOT, chapters

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
    stream: TextIO | None = None,
) -> Report:
    """Execute chapters, as far as their results are not in the cache.

    What fails does not stop the rest: look at the report's `ok` and `results`. The executed notebooks,
    `report.json` and `junit.xml` are in `_build/runs/<preset>`, what failed in its `failed`.

    Args:
        slugs: the chapters; None for all.
        preset: parameters from the `presets` of `data/papers/<slug>.yml`.
        parameters: values that go before those of the preset.
        sweep: parameter -> values; each combination is a run.
        jobs: runs at a time on this machine, which share its cores.
        scheduler: address of a Dask scheduler, such as tcp://host:8786, to run on its workers instead.
        out: folder or fsspec URL in place of `_build/runs/<preset>`.
        timeout: seconds that a run may take.
        force: run also what the cache has.
        dry_run: only tell what would be run.
        root: the repository.
        stream: where progress is shown; standard error by default.

    Raises:
        LookupError: unknown chapter, preset or parameter. Nothing was run.
        ValueError: ill-typed value, or an output folder that is not the runner's. Nothing was run.
        OSError: the scheduler does not answer, or the output cannot be written.
    """
    if jobs < 1 or timeout <= 0:
        raise ValueError(f"jobs={jobs}, timeout={timeout}: expected at least one job and a positive time")
    started = time.monotonic()
    planned = plan_runs(slugs, preset, parameters, sweep, root)
    try:
        folder = UPath(out or root / "_build" / "runs" / preset)
        folder.fs  # noqa: B018  (finds out whether there is a package for this kind of URL)
    except (ImportError, ValueError) as error:
        raise ValueError(f"output {out}: {error}") from None
    batch = _Batch(root, folder, dry_run, planned, Report(preset, started=_now(), finished=False), started)
    display = Display(len(planned), stream)
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        if path.stem not in chapters.slugs(root):
            display.line(f"passed over notebooks/{path.name}: no chapter of this name is in data/papers")
    batch.prepare()
    todo = []
    try:
        for job in planned:
            if job.problem:
                result = batch.keep(job, Outcome("failed", error=job.problem))
            elif not force and (notebook := batch.cached(job)):
                result = batch.result(job, "cached", notebook)
            elif dry_run:
                result = batch.keep(job, Outcome("planned"))
            else:
                todo.append(job)
                continue
            display.finished(result)
        with contextlib.closing(_execute(todo, batch, jobs, scheduler, timeout, display)) as outcomes:
            for job, outcome in outcomes:
                display.finished(batch.keep(job, outcome))
        batch.report.finished = True
    finally:
        batch.save()
        if not batch.report.finished:
            display.line(f"{batch.report.summary()}; the same command goes on from there")
    return batch.report


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class _Batch:
    """Where the runs of a batch come from and go to."""

    def __init__(
        self, root: Path, folder: UPath, dry_run: bool, planned: list[Job], report: Report, started: float
    ):
        self.root, self.folder, self.dry_run, self.report = root, folder, dry_run, report
        self.order = [job.name for job in planned]
        self.cache, self.started = Cache(root), started
        self.reasons: dict[str, str] = {}

    def prepare(self) -> None:
        """Make sure that the results can be written, and that no earlier report is taken for this batch's."""
        if not self.dry_run:
            names = [f"{place}{name}.ipynb" for name in self.order for place in ("", "failed/")]
            prepare(self.folder, ["report.json", "junit.xml", *names])
            self.save()

    def save(self) -> None:
        """Write the reports as they are now."""
        self.report.results.sort(key=lambda result: self.order.index(result.name))
        self.report.seconds = round(time.monotonic() - self.started, 3)
        if not self.dry_run:
            write(self.folder / "report.json", self.report.to_json().encode())
            write(self.folder / "junit.xml", self.report.to_junit())

    def cached(self, job: Job) -> NotebookNode | None:
        """The kept result of a run; if there is none, the reason why is remembered."""
        assert job.notebook is not None
        notebook, changed = self.cache.load(job.key, job.notebook)
        if notebook is None:
            self.reasons[job.name] = self._reason(job, changed)
        return notebook

    def _reason(self, job: Job, changed: list[str]) -> str:
        if not changed:
            try:
                text = (self.folder / f"{job.name}.ipynb").read_text(encoding="utf-8")
                last = nbformat.reads(text, as_version=4)
                changed = key.differing(last.metadata.worked_papers.manifest, job.manifest)
            except (OSError, ValueError, AttributeError):
                return "first run"
        return f"changed: {', '.join(changed)}" if changed else "no result kept"

    def keep(self, job: Job, outcome: Outcome) -> Result:
        """Store what came of a run, unless what decides its result was changed meanwhile."""
        reason = self.reasons.get(job.name, "")
        if outcome.status == "passed" and outcome.notebook is not None:
            try:
                if outcome.changed:
                    reason = f"not kept, changed meanwhile: {', '.join(outcome.changed)}"
                else:
                    self.cache.store(job.key, outcome.notebook)
            except OSError as error:
                reason = f"not kept: {error}"
        return self.result(job, outcome.status, outcome.notebook, outcome, reason)

    def result(
        self,
        job: Job,
        status: str,
        notebook: NotebookNode | None,
        outcome: Outcome | None = None,
        reason: str = "",
    ) -> Result:
        """Of a run; its notebook is put where readers look for it."""
        reason = "; ".join(filter(None, [job.remark, reason]))
        result = Result(job.name, job.slug, job.preset, job.parameters, job.key, status)
        result.reason = redact(reason)
        good, bad = self.folder / f"{job.name}.ipynb", self.folder / "failed" / f"{job.name}.ipynb"
        if outcome:
            result.seconds, result.peak_memory_mib = outcome.seconds, outcome.peak_memory_mib
            result.cell, result.error = redact(outcome.cell), redact(outcome.error)
        self.report.results.append(result)
        if self.dry_run:
            return result
        # An older notebook must not be taken for this run's.
        (good if status in BAD else bad).unlink(missing_ok=True)
        if notebook is not None:
            facts = notebook.metadata.worked_papers
            result.seconds, result.peak_memory_mib = facts["seconds"], facts["peak_memory_mib"]
            facts |= {"slug": job.slug, "preset": job.preset, "parameters": job.parameters}
            path = bad if status in BAD else good
            content = nbformat.writes(notebook).encode()
            if not path.exists() or path.read_bytes() != content:
                write(path, content)  # the book rebuilds what is newer
            result.notebook = path if isinstance(path, Path) else str(path)
        self.save()
        return result


def _execute(
    todo: list[Job], batch: _Batch, jobs: int, scheduler: str | None, timeout: float, display: Display
) -> Generator[tuple[Job, Outcome]]:
    """Run on threads here, or on a cluster; outcomes in the order in which they come."""
    if not todo:  # then there is no need for a cluster
        return
    name = uuid4().hex
    root = None if batch.root == ROOT else batch.root
    at: dict[str, tuple[int, int]] = {}
    with contextlib.ExitStack() as stack:
        threads = 0
        cluster: Cluster | None = None
        executor: Executor
        if scheduler:
            cluster = stack.enter_context(Cluster(scheduler, todo, root, display))
            executor = cluster.executor
        else:
            threads = max(1, (os.cpu_count() or 1) // min(jobs, len(todo)))
            executor = stack.enter_context(ThreadPoolExecutor(jobs))
        futures: dict[Future[Outcome], Job] = {}
        try:
            for job in todo:
                tell = () if cluster else (partial(_tell, at, job.name),)
                futures[executor.submit(execute.execute, job, name, root, timeout, threads, *tell)] = job
            while futures:
                for future in wait(futures, 0.2, FIRST_COMPLETED).done:
                    job = futures.pop(future)
                    at.pop(job.name, None)
                    yield job, _outcome(future)
                display.running(at)
                if cluster and (problem := cluster.problem()):
                    for future in list(futures):
                        yield futures.pop(future), Outcome("died", error=problem)
        finally:
            if futures:
                for future in futures:
                    future.cancel()
                cluster.stop(name) if cluster else execute.stop(name)


def _tell(at: dict[str, tuple[int, int]], name: str, cell: int, cells: int) -> None:
    at[name] = cell, cells


def _outcome(future: Future[Outcome]) -> Outcome:
    """Of a run; what went wrong with the thread or the cluster, in words."""
    try:
        return future.result()
    except CancelledError:
        return Outcome("died", error="the connection to the scheduler was lost, and this run with it")
    except Exception as error:
        return Outcome("died", error=f"{type(error).__name__}: {error}")
