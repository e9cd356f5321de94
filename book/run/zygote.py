"""A process that has imported what chapters import, and forks a kernel on request.

Importing torch and transformers costs seconds, forking a process that has done so costs milliseconds. It runs
as `python zygote.py SOCKET NAME...`: imports the names, then listens on a Unix socket. Each connection is one
kernel: a line of JSON comes in (arguments, folder, log file), the kernel's process id goes out, and when the
kernel ends, its exit status. A connection that closes takes its kernel along, as does the end of standard
input, which the parent holds. Nothing of `lib` is imported here: a kernel always reads the current files.
"""

import contextlib
import gc
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import threading
from importlib import import_module

IDLE = 600.0
"""Seconds without a kernel after which the process ends by itself."""


def warm(names: list[str]) -> None:
    """Import dotted names, such as `torch.nn.Linear`; what cannot be imported is the chapter's to report."""
    for name in ("ipykernel.ipkernel", "ipykernel.kernelapp", "matplotlib_inline.backend_inline", *names):
        with contextlib.suppress(Exception):
            first, *parts = name.split(".")
            found, path = import_module(first), first
            for part in parts:
                path += f".{part}"
                found = getattr(found, part, None) or import_module(path)
    gc.collect()
    gc.freeze()  # so that the collector of a child does not touch, and thereby copy, the shared pages


def become_kernel(arguments: list[str], folder: str, log: str) -> None:
    """Turn the forked process into an ordinary IPython kernel; returns when it is shut down."""
    os.setsid()
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    sys.path.insert(0, "")
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance([*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])


def serve(listener: socket.socket) -> bool:
    """Fork a kernel for each connection, until standard input ends (True) or `IDLE` seconds without any."""
    wakeup, on_signal = socket.socketpair()
    for end in (wakeup, on_signal):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(on_signal.fileno())
    kernels: dict[int, socket.socket] = {}
    selector = selectors.DefaultSelector()
    for source in (sys.stdin.fileno(), listener, wakeup):
        selector.register(source, selectors.EVENT_READ)
    try:
        while ready := selector.select(None if kernels else IDLE):
            for chosen, _ in ready:
                if chosen.fileobj is listener:
                    connection = listener.accept()[0]
                    connection.settimeout(5)
                    try:
                        request = json.loads(connection.makefile().readline())
                    except (OSError, ValueError):  # gone before it said what it wants
                        connection.close()
                        continue
                    if pid := os.fork():
                        kernels[pid] = connection
                        selector.register(connection, selectors.EVENT_READ)
                        tell(connection, pid)
                    else:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        selector.close()
                        for inherited in (listener, wakeup, on_signal, connection, *kernels.values()):
                            inherited.close()
                        kernels.clear()
                        become_kernel(**request)
                        sys.exit()
                elif chosen.fileobj is wakeup:
                    wakeup.recv(4096)
                elif chosen.fileobj == sys.stdin.fileno():
                    return True
                else:  # a closed connection: its kernel is no longer wanted
                    selector.unregister(chosen.fileobj)
                    for pid in [pid for pid, owner in kernels.items() if owner is chosen.fileobj]:
                        kill(pid)
            while kernels and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                connection = kernels.pop(ended[0])
                with contextlib.suppress(KeyError):
                    selector.unregister(connection)
                tell(connection, os.waitstatus_to_exitcode(ended[1]))
                connection.close()
        return False
    finally:
        for pid in kernels:
            kill(pid)
        for pid in kernels:  # a kernel that is not quite gone could still write into the folder
            os.waitpid(pid, 0)


def tell(connection: socket.socket, number: int) -> None:
    """Send one line; the other side may be gone."""
    with contextlib.suppress(OSError):
        connection.sendall(b"%d\n" % number)


def kill(pid: int) -> None:
    """End a kernel and what it has started; it may just not have become a process group of its own yet."""
    for end in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            end(pid, signal.SIGKILL)


if __name__ == "__main__":
    warm(sys.argv[2:])
    if threading.active_count() > 1:  # a fork would copy the locks of threads that it does not copy
        sys.exit(f"not forking from a process with threads: {threading.enumerate()}")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"{sys.argv[1]}.new")
        unix.listen(64)
        os.rename(f"{sys.argv[1]}.new", sys.argv[1])  # who finds the address finds somebody listening
        if serve(unix):  # the parent is done, or gone without having cleaned up
            shutil.rmtree(os.path.dirname(sys.argv[1]), ignore_errors=True)
