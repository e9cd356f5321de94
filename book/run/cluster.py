"""A Dask cluster as the place where runs are executed; `distributed` is imported here only."""

import time
from concurrent.futures import Executor
from pathlib import Path

from book.run import execute
from book.run.plan import Job
from book.run.report import Display

PATIENCE = 60.0
"""Seconds that the runs wait for a worker when there is none."""


class Cluster:
    """The workers of a scheduler that have what was planned; a context in which it is connected."""

    def __init__(self, scheduler: str, todo: list[Job], root: Path | None, display: Display):
        """Connect, and leave out the workers with another copy of the repository.

        Raises:
            OSError: the scheduler does not answer.
            RuntimeError: `distributed` is not installed.
        """
        try:
            from distributed import Client
        except ImportError:
            raise RuntimeError(
                '--scheduler needs Dask\'s distributed: python -m pip install "distributed>=2025.1"'
            ) from None
        try:
            self._client = Client(scheduler, timeout=5, set_as_default=False)
        except (OSError, ValueError) as error:
            raise OSError(
                f"no Dask scheduler at {scheduler}: {error}; is `dask scheduler` running?"
            ) from None
        self._display, self._scheduler = display, scheduler
        self._seen = set(self._workers())
        self._last_seen = self._last_look = time.monotonic()
        if not self._seen:
            display.line(f"the scheduler {scheduler} has no worker yet; waiting {PATIENCE:g} s for one")
        slugs = {job.slug: job for job in todo}  # one of a sweep's runs tells for all
        answers = self._client.run(execute.missing, list(slugs.values()), root, on_error="return")
        bad = {worker: answer for worker, answer in answers.items() if answer}
        self._good = set(answers) - set(bad) if bad else None
        for worker, answer in bad.items():
            what = ", ".join(answer) if isinstance(answer, list) else repr(answer)
            display.line(
                f"the worker {worker} does not have what was planned ({what}): bring its copy up to date"
            )
        self.executor: Executor = self._client.get_executor(
            pure=False, **({"workers": sorted(self._good)} if self._good else {})
        )

    def __enter__(self) -> "Cluster":
        """Stay connected."""
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect."""
        self._client.close(timeout=5)

    def problem(self) -> str:
        """Tell of workers that were lost; why nothing will ever come, or an empty text."""
        if time.monotonic() < self._last_look + 1:
            return ""
        self._last_look = time.monotonic()
        workers = self._workers()
        for lost in sorted(self._seen - workers):
            self._display.line(f"the worker {lost} was lost; what it ran is run again on another")
        self._seen = workers
        if workers & self._good if self._good else workers:
            self._last_seen = self._last_look
        if self._last_look < self._last_seen + PATIENCE:
            return ""
        return f"the scheduler {self._scheduler} had no worker for it for {PATIENCE:g} s"

    def stop(self, batch: str) -> None:
        """End what runs of a batch."""
        if self._client.status == "running":
            self._client.run(execute.stop, batch, on_error="ignore")

    def _workers(self) -> set[str]:
        if self._client.status != "running":
            return self._seen  # the futures tell that the scheduler is lost
        try:
            return set(self._client.scheduler_info()["workers"])
        except Exception:
            return self._seen
