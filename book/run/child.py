"""The process of one run: papermill and a kernel of its own. `python child.py FOLDER`, see `execute.py`.

It imports nothing of the repository, whose `lib` may be another than the runner's. Standard input is held
open by the parent: when it ends, the parent is gone, and everything that belongs to the run goes too.
"""

import contextlib
import json
import logging
import os
import pickle
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
import psutil

MARK = "WORKED_PAPERS_RUN"
"""An environment variable: all processes of a run inherit it, whatever groups and sessions they make."""


def end(folder: str | Path) -> None:
    """Kill every process that belongs to the run in `folder`, but not this one."""
    for _ in range(20):  # one may start another while we look
        alive = False
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get(MARK) == str(folder):
                    alive |= process.status() != psutil.STATUS_ZOMBIE
                    process.kill()
        if not alive:
            return
        time.sleep(0.02)


def _end_with_parent(folder: Path) -> None:
    os.read(0, 1)  # `sys.stdin` would hold a lock that the end of this process waits for
    end(folder)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def execute(folder: Path) -> dict[str, Any]:
    """Run the notebook that `request` asks for; what came of it."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec
    from nbclient.util import run_sync
    from papermill.execute import PapermillExecutionError, execute_notebook, remove_error_markers

    logging.getLogger("papermill").propagate = False  # what went wrong is in the result
    request = pickle.loads((folder / "request").read_bytes())
    script = str(Path(__file__).with_name("kernel.py"))

    class Kernel(AsyncKernelManager):
        """A kernel of this Python, whatever kernels are installed."""

        kernel_spec = KernelSpec(argv=[sys.executable, "-P", script, "-f", "{connection_file}"])

    # Sockets that no other program can take (papermill #511). A Unix socket's path has at most 103 bytes.
    local = os.name == "posix" and len(str(folder)) < 90
    address = {"transport": "ipc", "ip": f"{folder}/k"} if local else {}
    kernel = Kernel(connection_file=f"{folder}/k.json", **address)
    running: list[nbformat.NotebookNode] = []
    at = [0]

    def on_cell_start(cell: nbformat.NotebookNode, cell_index: int) -> None:
        at[0] = cell_index
        (folder / "progress").write_text(f"{cell_index + 1} {len(running[0].cells)}")

    def signal_kernel(number: int) -> None:
        with contextlib.suppress(Exception):  # there is none yet, or no more
            os.killpg(kernel.provisioner.pid, number)  # type: ignore[union-attr]

    # First interrupted, so that a traceback tells where it was; the parent waits a little longer still.
    for deadline, number in ((request["deadline"], 2), (request["deadline"] + request["grace"], 9)):
        timer = threading.Timer(max(0.0, deadline - time.time()), signal_kernel, (number,))
        timer.daemon = True
        timer.start()
    status, error, cell, clean = "passed", None, None, True
    try:
        execute_notebook(
            request["notebook"],
            None,
            parameters=request["parameters"] or None,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            km=kernel,
            on_notebook_start=lambda notebook: running.append(notebook),
            on_cell_start=on_cell_start,
        )
    except PapermillExecutionError as failure:
        status, cell = "failed", failure.cell_index
        error = "\n".join(failure.traceback) or f"{failure.ename}: {failure.evalue}"
    except Exception as failure:  # nbclient and jupyter_client say in many ways that a kernel is gone
        status, clean, cell = "died", False, at[0] if running else None
        error = f"{type(failure).__name__}: {failure}"
    if clean:
        clean = run_sync(kernel.is_alive)()
    code = kernel.provisioner.process.poll() if kernel.provisioner else None  # type: ignore[attr-defined]
    with contextlib.suppress(Exception):
        run_sync(kernel.shutdown_kernel)(now=not clean)
    peak = _peak_mib()
    if status == "died" and code is not None:
        error = f"the kernel ended by itself, with exit status {code}"
        if code < 0:
            error = f"the kernel was ended by {signal.Signals(-code).name}, holding {peak or 0:,.0f} MiB"
        error += "; out of memory?" if code == -9 else ""
    notebook = running[0] if running else None
    if notebook is not None:
        remove_error_markers(notebook)  # cells that papermill adds; the report says it
    if (folder / "excess").exists() and notebook is not None:
        limit = (folder / "excess").read_text()
        status, error = "failed", f"stopped: more than {limit} of output; the rest was cut off"
        cell = at[0]  # also where the last cell came to its end before its kernel did
        note = nbformat.v4.new_output("stream", name="stderr", text=f"\n[{error}]\n")
        notebook.cells[at[0]].outputs.append(note)
    if status == "passed" and notebook is not None:
        status, cell, error = _incomplete(notebook)
    return {"status": status, "error": error, "cell": cell, "notebook": notebook, "peak_memory_mib": peak}


def _incomplete(notebook: nbformat.NotebookNode) -> tuple[str, int | None, str | None]:
    """`passed` means that every cell ran to its end: papermill forgives `sys.exit(0)` and what follows it."""
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if output.output_type == "error":
                return "failed", index, "\n".join(output.traceback) or f"{output.ename}: {output.evalue}"
        if cell.source.strip() and cell.execution_count is None:
            return "failed", index, "this cell was not run"
    return "passed", None, None


def _peak_mib() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def main() -> None:
    """Execute, and leave the result in the folder."""
    folder = Path(sys.argv[1])
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    result = execute(folder)
    (folder / "result.new").write_text(json.dumps(result), encoding="utf-8")
    os.replace(folder / "result.new", folder / "result.json")


if __name__ == "__main__":
    main()
