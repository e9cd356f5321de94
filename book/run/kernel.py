"""An ordinary IPython kernel that notes what it opens and does not publish without end; runs as a script."""

import contextlib
import json
import os
import signal
import sys
import threading
from typing import Any

from ipykernel.kernelapp import IPKernelApp
from jupyter_client.session import Session

FOLDER = os.environ.get("WORKED_PAPERS_RUN", "")
LIMIT = 32 * 2**20
"""Bytes that a run may publish; the largest chapter publishes 2 MiB."""
OVERHEAD = 500
"""Bytes that an output takes in a notebook beside its content."""
PUBLISHED = ("stream", "display_data", "update_display_data", "execute_result", "error", "execute_reply")


class BoundedSession(Session):
    """Counts what is published. Beyond the limit the rest is cut off, and then the kernel ends itself."""

    published = 0

    def serialize(self, msg: dict[str, Any], ident: list[bytes] | bytes | None = None) -> list[bytes]:
        """A message as it is sent."""
        if msg["header"]["msg_type"] not in PUBLISHED:
            return super().serialize(msg, ident)
        left = LIMIT - self.published
        # Measured before it is serialised, which takes several times its memory.
        self.published += OVERHEAD + _size(msg["content"])
        if self.published > LIMIT:
            if left > 0:
                with open(f"{FOLDER}/excess", "w") as file:
                    file.write(f"{LIMIT // 2**20} MiB")
                # In a moment, when what was published until now has arrived.
                threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
            msg = {**msg, "content": _cut(msg["content"], max(left, 1000))}
        return super().serialize(msg, ident)


def _size(content: Any) -> int:
    if isinstance(content, dict | list | tuple):
        return sum(map(_size, content.values() if isinstance(content, dict) else content))
    return len(content) if isinstance(content, str | bytes) else 8


def _cut(content: Any, left: int) -> Any:
    if isinstance(content, dict):
        return {name: _cut(value, left) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_cut(value, left) for value in content[:100]]
    return content[:left] if isinstance(content, str | bytes) else content


class BoundedKernelApp(IPKernelApp):
    """IPython's kernel with such a session."""

    def _session_default(self) -> Session:
        return BoundedSession(parent=self)


def note_reads(root: str, log: int) -> None:
    """Write a line of JSON for each file below `root` that this process opens, and each folder it lists."""
    seen = set()
    others = (f"{root}/_build/", f"{root}/.git/", f"{root}/book/run/", os.path.join(sys.prefix, ""))

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.listdir", "os.scandir"):
            return
        with contextlib.suppress(Exception):  # whatever is wrong with a path is for its opener to tell
            path = os.path.realpath(os.fsdecode(arguments[0] or "."))
            action = "list"
            if event == "open":
                action = "write" if arguments[2] & (os.O_WRONLY | os.O_RDWR) else "read"
            elif path in map(os.path.realpath, sys.path):
                return  # a search for packages; what is found there is opened next
            elif sys._getframe(1).f_code.co_filename.startswith("<frozen importlib"):
                return
            line = json.dumps([action, path]).encode() + b"\n"
            if f"{path}/".startswith(f"{root}/") and not f"{path}/".startswith(others) and line not in seen:
                seen.add(line)
                os.write(log, line)

    sys.addaudithook(note)


if __name__ == "__main__":
    sys.path.insert(0, "")  # the repository's packages first, whatever PYTHONPATH says
    note_reads(
        os.path.realpath("."), os.open(f"{FOLDER}/reads", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    )
    BoundedKernelApp.launch_instance()
