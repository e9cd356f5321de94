"""Runs on a cluster: a Dask scheduler and two workers, each a process of its own."""

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small_book import build, chapter

from book.run import batch, cluster
from lib import ROOT

pytest.importorskip("distributed")


class Processes:
    """A scheduler and its workers."""

    def __init__(self, folder):
        self.folder, self.all = folder, []
        self.scheduler = self.start(
            "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", "scheduler"
        )
        while not (folder / "scheduler").exists():
            time.sleep(0.1)
        import json

        self.address = json.loads((folder / "scheduler").read_text())["address"]

    def start(self, *command, root=ROOT):
        environment = os.environ | {"PYTHONPATH": str(root)}
        options = {"cwd": self.folder, "env": environment, "stderr": subprocess.DEVNULL}
        self.all.append(
            subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_" + command[0], *command[1:]], **options
            )
        )
        return self.all[-1]

    def worker(self, root=ROOT):
        return self.start(
            "worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard", root=root
        )


@pytest.fixture
def processes(tmp_path):
    (tmp_path / "dask").mkdir()
    started = Processes(tmp_path / "dask")
    yield started
    for process in started.all:
        process.kill()
        process.wait()


@pytest.fixture
def root(tmp_path):
    """Chapters that say on which process they run, and wait until they may end."""
    source = "import os, pathlib, time\npathlib.Path(f'_build/{seed}.started').write_text(str(os.getpid()))\n"
    source += "while not pathlib.Path('_build/go').exists(): time.sleep(0.1)"
    root = build(tmp_path / "book", a=chapter(source))
    (root / "_build").mkdir()
    return root


def started(root, n):
    deadline = time.monotonic() + 60
    while len(list((root / "_build").glob("*.started"))) < n and time.monotonic() < deadline:
        time.sleep(0.1)


def in_background(root, address, **options):
    """The thread of a batch, and a dictionary with what it displays and, in the end, reports."""
    found = {"stream": io.StringIO()}

    def work():
        found["report"] = batch.run(root=root, scheduler=address, stream=found["stream"], **options)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, found


def test_a_worker_that_is_killed_loses_nothing(processes, root):
    workers = [processes.worker(), processes.worker()]
    thread, found = in_background(root, processes.address, sweep={"seed": ["0", "1", "2"]})
    started(root, 2)
    workers[0].send_signal(signal.SIGKILL)
    time.sleep(2)
    (root / "_build/go").touch()
    thread.join(120)
    assert [result.status for result in found["report"].results] == ["passed"] * 3, found["report"]
    assert "was lost; what it ran is run again on another" in found["stream"].getvalue()
    again = batch.run(root=root, sweep={"seed": ["0", "1", "2"]}, stream=io.StringIO())
    assert [result.status for result in again.results] == ["cached"] * 3


def test_a_scheduler_that_stops_is_told_and_what_was_finished_is_kept(processes, root):
    processes.worker()
    write = (root / "_build/go").touch
    thread, found = in_background(root, processes.address, sweep={"seed": ["0", "1"]})
    started(root, 1)
    write()
    started(root, 2)
    (root / "_build/go").unlink(missing_ok=True)
    processes.scheduler.kill()
    thread.join(120)
    results = found["report"].results
    assert not found["report"].ok
    assert {result.status for result in results} <= {"passed", "died"}, results
    lost = [result for result in results if result.status == "died"]
    assert lost
    assert all("the connection to the scheduler was lost" in result.error for result in lost)
    write()
    again = batch.run(root=root, sweep={"seed": ["0", "1"]}, stream=io.StringIO())
    kept = {result.name for result in results} - {result.name for result in lost}
    assert {result.name for result in again.results if result.status == "cached"} == kept


def test_a_worker_with_another_copy_of_the_repository_is_left_out(processes, tmp_path):
    """Two copies of the book's own code with one small chapter; one of them is out of date."""
    copies = []
    for name in ("new", "old"):
        copy = build(tmp_path / name, a=chapter("from lib.stats import wilson\nprint(wilson(1, 2).value)"))
        shutil.rmtree(copy / "lib")
        for floor in ("lib", "book/run", "book/site"):
            shutil.copytree(ROOT / floor, copy / floor, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / "book/__init__.py").touch()
        copies.append(copy)
    (copies[1] / "lib/stats.py").write_text((ROOT / "lib/stats.py").read_text() + "\nNEW = 1\n")
    for copy in copies:
        processes.worker(root=copy)
    code = "import sys; from book.run import batch\n"
    code += "report = batch.run(scheduler=sys.argv[1], sweep={'seed': ['0', '1', '2']})\n"
    code += "print([result.status for result in report.results])"
    environment = os.environ | {"PYTHONPATH": str(copies[0])}
    time.sleep(3)
    command = [sys.executable, "-c", code, processes.address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == str(["passed"] * 3), done.stderr
    assert "does not have what was planned (lib/stats.py)" in done.stderr


def test_a_cluster_without_workers_is_told(processes, root, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 2.0)
    stream = io.StringIO()
    report = batch.run(root=root, scheduler=processes.address, stream=stream)
    assert report.results[0].status == "died"
    assert "had no worker for it for 2 s" in report.results[0].error
    assert "has no worker yet" in stream.getvalue()


def test_no_scheduler_and_no_dask_are_told(root, monkeypatch):
    with pytest.raises(OSError, match=r"no Dask scheduler at tcp://127\.0\.0\.1:9"):
        batch.run(root=root, scheduler="tcp://127.0.0.1:9", stream=io.StringIO())
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RuntimeError, match='python -m pip install "distributed'):
        batch.run(root=root, scheduler="tcp://127.0.0.1:9", stream=io.StringIO())
    assert not Path(root / "_build/runs/organism/a.ipynb").exists()
