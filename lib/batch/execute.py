"""Execute a chapter in a kernel: the part that runs on a Dask worker, here or on another machine."""

import contextlib
import copy
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from dask.system import CPU_COUNT
from distributed import get_worker
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.provisioning import LocalProvisioner
from nbclient.util import run_sync
from nbformat import NotebookNode
from papermill import PapermillExecutionError, execute_notebook

from lib import ROOT
from lib.batch.plan import Job, Outcome, changed, versions
from lib.batch.redact import ANSI, redact

logging.getLogger("papermill").addHandler(logging.NullHandler())  # what went wrong is in the outcome
logging.getLogger("papermill").propagate = False

GRACE = 5.0
"""Seconds that an interrupted cell has to end by itself before its kernel is killed."""
ATTEMPTS = 3
"""How often a kernel that does not come up is started."""
TOPIC = "worked-papers"
"""Of the events that tell which cell is running."""


class Forked:
    """A kernel forked by the zygote, with the part of `subprocess.Popen`'s face that jupyter_client uses."""

    stdin = stdout = stderr = None

    def __init__(self, address: str, request: dict[str, Any]):
        """Ask the zygote at a Unix socket for a kernel.

        Raises:
            OSError: there is no zygote, or it ended.
        """
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(120)
        self._connection.connect(address)
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        self._lines = self._connection.makefile()
        try:
            self.pid = int(self._lines.readline())
        except ValueError:
            self._connection.close()
            raise ConnectionError("the zygote ended") from None
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        if self.returncode is None:
            self._connection.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                try:
                    self.returncode = int(self._connection.recv(64) or -signal.SIGKILL)
                except ConnectionError:
                    self.returncode = -signal.SIGKILL
        return self.returncode

    def wait(self) -> int | None:
        """The exit status of a kernel that has ended."""
        while self.poll() is None:
            time.sleep(0.02)
        self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Signal the process alone."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask the process to end."""
        self.send_signal(signal.SIGTERM)


class Provisioner(LocalProvisioner):
    """Forks kernels from the zygote, and starts them as ordinary processes where that does not work."""

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Set the kernel's folder and environment."""
        batch = self.parent.batch
        return await super().pre_launch(**kwargs, cwd=str(batch.root), env=batch.environment)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        """Start the kernel."""
        batch, log = self.parent.batch, self.parent.log_file
        try:
            request = {"arguments": cmd[3:], "folder": kwargs["cwd"], "log": str(log)}
            self.process = Forked(batch.zygote(), request)
            self.pid = self.pgid = self.process.pid
        except OSError:
            with log.open("wb") as file:
                await super().launch_kernel(cmd, **kwargs, stdout=file, stderr=file)
        batch.live.add(self.pid)
        if batch.stopped:
            kill(self.pid)
        return self.connection_info


class Kernel(AsyncKernelManager):
    """A kernel of this Python, whatever kernels are installed, on sockets that no other program can take."""

    kernel_spec = KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])

    def __init__(self, batch: "Batch"):
        """Prepare a kernel of a batch."""
        name = f"{batch.folder}/{uuid4().hex[:8]}"
        # A Unix socket's path has at most 107 bytes (104 on macOS).
        address = {"transport": "ipc", "ip": name} if os.name == "posix" and len(name) < 90 else {}
        super().__init__(connection_file=f"{name}.json", **address)
        self.batch = batch
        self.began: float | None = None
        self._peak = 0.0
        self.log_file = Path(f"{name}.log")
        self.provisioner = Provisioner(kernel_id=name, kernel_spec=self.kernel_spec, parent=self)

    def client(self, **kwargs: Any) -> Any:
        """The client of this kernel, kept so that it can be closed."""
        self.opened = super().client(**kwargs)
        return self.opened

    @property
    def pid(self) -> int | None:
        """The process's id, once it runs."""
        return getattr(self.provisioner, "pid", None)

    def peak_mib(self) -> float:
        """The most memory that the process was seen to hold, in MiB."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
            now = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]
        except (OSError, TypeError):  # another system, or a process that is gone
            try:
                now = psutil.Process(self.pid).memory_info().rss / 2**20
            except psutil.Error:
                now = 0.0
        self._peak = max(self._peak, now)
        return self._peak

    def close(self) -> None:
        """End the process, its client and its files."""
        with contextlib.suppress(Exception):
            self.opened.stop_channels()
        run_sync(self.shutdown_kernel)(now=True)
        self.batch.live.discard(self.pid or 0)


@dataclass
class Batch:
    """What the runs of one batch share on a worker: a folder, the kernels' environment, the zygote."""

    root: Path
    imports: frozenset[str]
    threads: int
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="worked-papers-")))
    stopped: bool = False
    live: set[int] = field(default_factory=set)
    _zygote: subprocess.Popen[bytes] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        """Of the kernels: reproducible hashing, no more threads than cores, nothing of the user's profile."""
        limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
        fixed = {
            "PYTHONHASHSEED": "0",
            "PYTHONFAULTHANDLER": "1",
            "IPYTHONDIR": str(self.folder),
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking for a GPU must not initialise CUDA before the fork
        }
        return dict.fromkeys(limits, str(self.threads)) | os.environ | fixed

    def zygote(self) -> str:
        """The address of the process that forks kernels; started when it is first needed.

        Raises:
            OSError: it does not run here.
        """
        if sys.platform != "linux":  # elsewhere fork is missing or unsafe under the system's own libraries
            raise OSError("kernels are forked on Linux only")
        address = self.folder / "zygote"
        with self._lock:
            if self._zygote is None:
                script = Path(__file__).with_name("zygote.py")
                self._zygote = subprocess.Popen(
                    [sys.executable, "-P", str(script), str(address), *sorted(self.imports)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=self.environment,
                    cwd=self.root,
                    start_new_session=True,
                )
            while not address.exists():
                if self._zygote.poll() is not None or self.stopped:
                    raise OSError("the zygote ended")
                time.sleep(0.02)
        return str(address)

    def stop(self) -> None:
        """Kill all kernels, and the zygote."""
        self.stopped = True
        for pid in list(self.live):
            kill(pid)
        if self._zygote and self._zygote.stdin:
            self._zygote.stdin.close()
            try:
                self._zygote.wait(GRACE)
            except subprocess.TimeoutExpired:
                self._zygote.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


_BATCHES: dict[str, Batch] = {}
_LOCK = threading.Lock()


def stop(batch: str) -> None:
    """End what a batch has left on this worker."""
    if found := _BATCHES.pop(batch, None):
        found.stop()


def kill(pid: int, number: int = getattr(signal, "SIGKILL", signal.SIGTERM)) -> None:
    """Signal a kernel and the processes it has started."""
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        if hasattr(os, "killpg"):
            os.killpg(pid, number)
        else:
            psutil.Process(pid).kill()


def execute(
    job: Job, notebook: NotebookNode, batch: str, root: Path | None, imports: frozenset[str], timeout: float
) -> Outcome:
    """Run a chapter.

    Args:
        job: the run.
        notebook: the chapter.
        batch: a name that the runs of one batch share.
        root: the repository; None for the one that this process has imported `lib` from.
        imports: what all of the batch's chapters import.
        timeout: seconds that the run may take.
    """
    root = root or ROOT
    if differing := changed(job, root):
        return Outcome(
            "failed",
            error=f"{socket.gethostname()} does not have what was planned: {', '.join(differing)}. "
            "Edited meanwhile? Start again. Another machine? Bring its copy up to date.",
        )
    with _LOCK:
        if batch not in _BATCHES:
            cores = max(1, CPU_COUNT // get_worker().state.nthreads)
            _BATCHES[batch] = Batch(root, imports, cores)
    for _ in range(ATTEMPTS):
        outcome = _attempt(job, copy.deepcopy(notebook), _BATCHES[batch], timeout)
        if outcome.notebook is not None or outcome.status == "timeout":
            break
    return outcome


def _attempt(job: Job, notebook: NotebookNode, batch: Batch, timeout: float) -> Outcome:
    kernel, worker = Kernel(batch), get_worker()
    running: list[NotebookNode] = []
    status, error, cell = "passed", None, None
    started = time.monotonic()

    def on_notebook_start(notebook: NotebookNode) -> None:
        running.append(notebook)
        kernel.began = time.monotonic()

    def on_cell_start(cell: NotebookNode, cell_index: int) -> None:
        worker.log_event(TOPIC, {"at": (job.name, cell_index, len(running[0].cells))})

    with _watch(kernel, timeout) as expired:
        try:
            execute_notebook(
                notebook,
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
            status, cell = "failed", _describe(failure.source, failure.cell_index, bool(job.given))
            error = ANSI.sub("", "\n".join(failure.traceback)) or f"{failure.ename}: {failure.evalue}"
        except (
            Exception
        ) as failure:  # nbclient and jupyter_client know many ways to say that a kernel is gone
            status, error = "died", _obituary(kernel, failure)
            for i, candidate in enumerate(running[0].cells if running else []):
                if candidate.metadata.papermill.get("start_time"):
                    cell = _describe(candidate.source, i, bool(job.given))
        peak = kernel.peak_mib()
        kernel.close()
    if expired.is_set():
        status, error = "timeout", f"stopped after {timeout:g} s, its time limit. {error or ''}".rstrip()
    seconds = round(time.monotonic() - started, 3)
    executed = running[0] if running else None
    if executed is not None:
        for one in executed.cells:  # papermill adds to each cell
            if not one.metadata.get("tags", True):
                del one.metadata["tags"]
            if one.cell_type != "code":
                one.metadata.pop("papermill", None)
        papermill = executed.metadata.papermill
        papermill.input_path, papermill.output_path = f"notebooks/{job.slug}.ipynb", None
        executed.metadata.worked_papers = {
            "key": job.key,
            "seconds": seconds,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "peak_memory_mib": round(peak, 1),
        }
    return Outcome(status, redact(executed), seconds, redact(error), redact(cell))


def _describe(source: str, index: int, injected: bool) -> str:
    """A cell's place in the chapter, where papermill has not added one, and its first line."""
    lines = [line for line in source.splitlines() if line.strip()] or [""]
    return f"cell {index + (0 if injected else 1)}: {lines[0]}"


def _obituary(kernel: Kernel, failure: Exception) -> str:
    """What is known about a kernel that is gone."""
    code = kernel.provisioner.process.poll() if kernel.provisioner and kernel.provisioner.process else None
    text = f"{type(failure).__name__}: {failure}"
    if code is not None and code < 0:
        text = f"the kernel was ended by {signal.Signals(-code).name}, holding {kernel.peak_mib():,.0f} MiB"
        text += "; out of memory?" if code == -9 else ""
    elif code is not None:
        text = f"the kernel ended by itself, with exit status {code}"
    log = kernel.log_file.read_text(errors="replace")[-4000:] if kernel.log_file.exists() else ""
    return f"{text}\n{ANSI.sub('', log)}".rstrip()


@contextlib.contextmanager
def _watch(kernel: Kernel, timeout: float) -> Iterator[threading.Event]:
    """Interrupt what takes too long, and kill it if it goes on; the event tells whether that was so."""
    done, expired = threading.Event(), threading.Event()

    def watch() -> None:
        limit = timeout
        while not done.wait(0.25):
            kernel.peak_mib()
            if kernel.pid and kernel.began and time.monotonic() > kernel.began + limit:
                kill(kernel.pid, signal.SIGKILL if expired.is_set() else signal.SIGINT)
                expired.set()
                limit += GRACE

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield expired
    finally:
        done.set()
        thread.join()
