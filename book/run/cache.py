"""Where results go: the cache, and the output folder. A file appears whole, or not at all.

Only what the runner has written is ever replaced or removed, here and in every folder that it is given.
"""

import contextlib
import copy
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

import nbformat
from nbformat import NotebookNode
from upath import UPath

from book.run.key import digest, digest_path
from lib import chapters

MARKER = ".worked-papers"
"""A file of this name marks a folder as written by the runner."""
OWNER = "Written by the runner, which replaces its own files here.\n"
SUITE = "chapters, preset "
"""How the name of the suite in `junit.xml` begins."""


class Cache:
    """A folder with a file for each result: its own SHA-256, and below it the executed notebook."""

    def __init__(self, root: Path):
        """Of the repository in `root`; the folder is made when the first result is stored."""
        self.root, self.folder = root, root / "_build" / "cache"

    def load(self, key: str, chapter: NotebookNode) -> tuple[NotebookNode | None, list[str]]:
        """The result of a run in the chapter's present text, or what it read that has changed since.

        Prose does not decide a result: the Markdown may have changed since, the code has not. An entry that
        is damaged in any way does not have its SHA-256, and is none.
        """
        try:
            sha256, _, content = (self.folder / f"{key}.ipynb").read_bytes().partition(b"\n")
            if sha256.decode() != digest(content):
                return None, []
            stored = nbformat.reads(content.decode(), as_version=4)
            then = stored.metadata.worked_papers.reads
            differing = [label for label, was in then.items() if digest_path(self.root, label) != was]
            return (None, differing) if differing else (_with_prose_of(chapter, stored), [])
        except Exception:  # another edition's, or anything else
            return None, []

    def store(self, key: str, notebook: NotebookNode) -> None:
        """Keep the result of a run, in place of an older one.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        content = nbformat.writes(notebook).encode()
        write(self.folder / f"{key}.ipynb", digest(content).encode() + b"\n" + content)


def _with_prose_of(chapter: NotebookNode, stored: NotebookNode) -> NotebookNode:
    merged = copy.deepcopy(chapter)
    merged.metadata = stored.metadata
    present = iter(chapters.code_cells(merged))
    previous = None
    for result in chapters.code_cells(stored):
        if "injected-parameters" in result.metadata.get("tags", []):
            merged.cells.insert(merged.cells.index(previous) + 1 if previous else 0, result)
        else:
            previous = next(present)
            timing = {
                name: result.metadata[name] for name in ("papermill", "execution") if name in result.metadata
            }
            previous.update(outputs=result.outputs, execution_count=result.execution_count)
            previous.metadata.update(timing)
    return merged


def prepare(folder: Path | UPath, names: Iterable[str]) -> None:
    """Find out now, not after an hour's work, whether an output folder is ours and can be written to.

    Raises:
        OSError: it cannot be written to.
        ValueError: it, or a file in it that a run would replace, is not what the runner has written.
    """
    try:
        held = sorted(path.name for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        held = []
    marker = _content(folder / MARKER)
    foreign = held if held and marker != OWNER.encode() else []
    if not foreign:
        foreign = [name for name in names if is_foreign(folder / name)]
    if foreign:
        raise ValueError(
            f"{folder} holds files that the runner has not written ({', '.join(foreign[:3])}"
            f"{', ...' if len(foreign) > 3 else ''}): nothing was run or changed; move them, or choose "
            "a folder that is new, empty, or of an earlier run"
        )
    write(folder / MARKER, OWNER.encode())


def is_foreign(path: Path | UPath) -> bool:
    """Whether a file is there that the runner has not written: each of its files says whose it is."""
    if (content := _content(path)) is None:
        return path.exists()  # a folder, or not readable
    if path.suffix == ".xml":
        return f'name="{SUITE}'.encode() not in content
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        found = json.loads(content)
        return not (
            found["finished"] in (True, False)
            if path.name == "report.json"
            else found["metadata"]["worked_papers"]
        )
    return path.name != MARKER or content != OWNER.encode()


def write(path: Path | UPath, content: bytes) -> None:
    """Write a whole file: a local one under another name first; an object store shows what is complete.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(path, Path):
            path.write_bytes(content)
            return
        new = path.with_name(f".{uuid4().hex}")
        try:
            new.write_bytes(content)
            os.replace(new, path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"cannot write {path}: {reason}; make room, or choose --out") from None


def clean(build: Path, site_marker: str) -> list[str]:
    """Remove from the folder `_build` what runs and builds have written; the files that are left.

    A build lists its files in a file `site_marker` of its folder.
    """
    ours = [path for path in build.glob("cache/*.ipynb") if re.fullmatch("[0-9a-f]{64}", path.stem)]
    runs = [path for pattern in ("*", "failed/*") for path in build.glob(f"runs/*/{pattern}")]
    ours += [path for path in runs if path.is_file() and not is_foreign(path)]
    for marker in build.glob(f"*/{site_marker}"):
        listed = (marker.parent / name for name in marker.read_text(encoding="utf-8").splitlines())
        ours += [marker, *(path for path in listed if path.is_file())]
    for path in ours:
        path.unlink(missing_ok=True)
    for path in sorted(build.rglob("*"), reverse=True):
        with contextlib.suppress(OSError):  # it is not empty, or no folder
            path.rmdir()
    return sorted(str(path.relative_to(build)) for path in build.rglob("*") if not path.is_dir())


def _content(path: Path | UPath) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
