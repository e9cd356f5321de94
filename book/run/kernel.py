"""Kernels, forked from a warm process where that works, and watched while they run."""

import contextlib
import json
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
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from jupyter_client import AsyncKernelManager
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.provisioning import LocalProvisioner
from nbclient.util import run_sync

GRACE = 5.0
"""Seconds that an interrupted cell has to end by itself before its kernel is killed."""


def kill(pid: int, number: int = getattr(signal, "SIGKILL", signal.SIGTERM)) -> None:
    """Signal a kernel and the processes it has started."""
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        if hasattr(os, "killpg"):
            os.killpg(pid, number)
        else:  # Windows: there is no other signal for a process group
            psutil.Process(pid).kill()


@dataclass
class Nest:
    """What the kernels of one batch share on a machine: a folder, an environment, and the zygote."""

    root: Path
    imports: frozenset[str]
    threads: int
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="worked-papers-")))
    live: set[int] = field(default_factory=set)
    stopped: bool = False
    _zygote: subprocess.Popen[bytes] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        """Of the kernels: reproducible hashing, no more threads than cores, nothing of the user's profile."""
        limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
        return {
            # One number for all: with OMP's and MKL's apart, torch takes the larger.
            **dict.fromkeys(limits, os.environ.get("OMP_NUM_THREADS", str(self.threads))),
            "OMP_WAIT_POLICY": "PASSIVE",  # spinning ones triple the CPU time on a busy machine
            **os.environ,
            "PYTHONHASHSEED": "0",
            "PYTHONFAULTHANDLER": "1",
            "IPYTHONDIR": str(self.folder),
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # else a look for GPUs starts CUDA, which no fork survives
        }

    def zygote(self) -> str:
        """The address of the process that forks kernels; started when it is first needed.

        Raises:
            OSError: it does not run here.
        """
        if sys.platform != "linux":  # elsewhere fork is missing, or the system's own libraries forbid it
            raise OSError("kernels are forked on Linux only")
        address = self.folder / "zygote"
        with self._lock:
            if self._zygote is None:
                script = str(Path(__file__).with_name("zygote.py"))
                self._zygote = subprocess.Popen(
                    [sys.executable, "-P", script, str(address), *sorted(self.imports)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=self.environment,
                    cwd=self.root,
                    start_new_session=True,  # a terminal's Ctrl-C is not for it
                )
            while not address.exists():
                if self._zygote.poll() is not None or self.stopped:
                    raise OSError("the zygote ended")
                time.sleep(0.02)
        return str(address)

    def stop(self) -> None:
        """End all kernels and the zygote, and remove the folder."""
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


class Forked:
    """A process forked by the zygote, with the part of `subprocess.Popen`'s face that jupyter_client uses."""

    stdin = stdout = stderr = None

    def __init__(self, address: str, request: dict[str, Any]):
        """Ask the zygote at a Unix socket for a process.

        Raises:
            OSError: there is no zygote, or it ended.
        """
        self._connection = socket.socket(socket.AF_UNIX)
        try:
            self._connection.settimeout(120)
            self._connection.connect(address)
            self._connection.sendall(json.dumps(request).encode() + b"\n")
            self.pid = int(self._connection.makefile().readline())
        except (OSError, ValueError) as error:
            self._connection.close()
            raise OSError(f"the zygote ended: {error}") from None
        self._connection.setblocking(False)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        if self.returncode is None:
            with contextlib.suppress(BlockingIOError):
                try:
                    self.returncode = int(self._connection.recv(64) or -signal.SIGKILL)
                except ConnectionError:
                    self.returncode = -signal.SIGKILL
        return self.returncode

    def wait(self) -> int | None:
        """The exit status, when it has ended."""
        while self.poll() is None:
            time.sleep(0.02)
        self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Signal the process alone."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Provisioner(LocalProvisioner):
    """Starts a kernel for jupyter_client."""

    process: Any
    pid: Any
    pgid: Any
    nest: Nest
    log_file: Path

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Set the kernel's folder and environment."""
        return await super().pre_launch(**kwargs, cwd=str(self.nest.root), env=self.nest.environment)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Fork the kernel, or else start it as an ordinary process."""
        try:
            request = {"arguments": cmd[3:], "folder": kwargs["cwd"], "log": str(self.log_file)}
            self.process = Forked(self.nest.zygote(), request)
            self.pid = self.pgid = self.process.pid
        except OSError:
            with self.log_file.open("wb") as file:
                await super().launch_kernel(cmd, **kwargs, stdout=file, stderr=file)
        self.nest.live.add(self.pid)
        if self.nest.stopped:
            kill(self.pid)
        return self.connection_info


class Kernel(AsyncKernelManager):
    """A kernel of this Python, whatever kernels are installed, on sockets that no other program can take."""

    kernel_spec = KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])

    def __init__(self, nest: Nest):
        """Prepare a kernel; papermill starts it."""
        name = f"{nest.folder}/{uuid4().hex[:8]}"
        # A Unix socket's path has at most 103 bytes on macOS, 107 on Linux.
        address = {"transport": "ipc", "ip": name} if os.name == "posix" and len(name) < 90 else {}
        super().__init__(connection_file=f"{name}.json", **address)
        self.provisioner = self.starter = Provisioner(
            kernel_id=name, kernel_spec=self.kernel_spec, parent=self
        )
        self.starter.nest, self.starter.log_file = nest, Path(f"{name}.log")
        self.peak_mib = 0.0
        """The most memory that the process was seen to hold."""

    def client(self, **kwargs: Any) -> Any:
        """The client of this kernel, kept so that it can be closed."""
        self.opened = super().client(**kwargs)
        return self.opened

    def measure(self) -> None:
        """Look at the memory that the process holds."""
        try:
            status = Path(f"/proc/{self.starter.pid}/status").read_text()
            now = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]
        except (OSError, TypeError):  # another system, or a process that is gone
            try:
                now = psutil.Process(self.starter.pid).memory_info().rss / 2**20
            except psutil.Error:
                now = 0.0
        self.peak_mib = max(self.peak_mib, now)

    def obituary(self) -> str:
        """What is known about a process that is gone; empty if it is not."""
        code = self.starter.process.poll() if self.starter.process else None
        if code is None:
            return ""
        text = f"the kernel ended by itself, with exit status {code}"
        if code < 0:
            text = f"the kernel was ended by {signal.Signals(-code).name}, holding {self.peak_mib:,.0f} MiB"
        if code == -9:
            text += "; out of memory?"
        return f"{text}\n{self.starter.log_file.read_text(errors='replace')[-4000:]}".rstrip()

    def close(self) -> None:
        """End the process, its client and its files."""
        with contextlib.suppress(Exception):
            self.opened.stop_channels()
        run_sync(self.shutdown_kernel)(now=True)
        self.starter.nest.live.discard(self.starter.pid)


@contextlib.contextmanager
def watch(kernel: Kernel, timeout: float) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Measure a kernel; interrupt what takes too long, and kill it if it goes on.

    Yields:
        An event to set when the time starts to count, and one that tells that it was up.
    """
    begun, expired, done = threading.Event(), threading.Event(), threading.Event()

    def look() -> None:
        begun.wait()
        deadline = time.monotonic() + timeout
        while not done.wait(0.25):
            kernel.measure()
            if time.monotonic() > deadline:
                kill(kernel.starter.pid, signal.SIGKILL if expired.is_set() else signal.SIGINT)
                expired.set()
                deadline += GRACE

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield begun, expired
    finally:
        done.set()
        begun.set()
        thread.join()
