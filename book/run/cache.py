"""Results, kept by the key of what decides them. A file appears whole, or not at all."""

import contextlib
import copy
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from uuid import uuid4

import fsspec
import nbformat
from fsspec.implementations.local import LocalFileSystem
from nbformat import NotebookNode

from book.run.plan import Job
from lib import chapters

MARKER = ".worked-papers"
"""A file of this name marks a folder as written by the runner or the build."""


class Cache:
    """A folder with a sub-folder for each result: `<key>/notebook.ipynb` and `<key>/manifest.json`."""

    def __init__(self, folder: Path):
        """In a folder that is made when the first result is stored."""
        self.folder = folder

    def load(self, job: Job, chapter: NotebookNode) -> NotebookNode | None:
        """The stored result of a run in the chapter's present text, or None.

        Prose does not decide a result: the Markdown may have changed since, the code has not.
        """
        try:
            text = (self.folder / job.key / "notebook.ipynb").read_text(encoding="utf-8")
            stored = nbformat.reads(text, as_version=4)
        except (OSError, ValueError, nbformat.ValidationError):
            return None
        merged = copy.deepcopy(chapter)
        merged.metadata = stored.metadata
        present = iter([cell for cell in merged.cells if cell.cell_type == "code"])
        previous = None
        for result in chapters.code_cells(stored):
            if "injected-parameters" in result.metadata.get("tags", []):
                merged.cells.insert(merged.cells.index(previous) + 1, result)
            elif (previous := next(present, None)) and previous.source == result.source:
                previous.update(outputs=result.outputs, execution_count=result.execution_count)
                timing = {
                    key: result.metadata[key] for key in ("papermill", "execution") if key in result.metadata
                }
                previous.metadata.update(timing)
            else:
                return None
        return merged

    def store(self, job: Job, notebook: NotebookNode) -> None:
        """Keep the result of a run, in place of an older one.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".new-", dir=self.folder) as new:
                entry = Path(new) / "entry"
                entry.mkdir()
                (entry / "notebook.ipynb").write_text(nbformat.writes(notebook), encoding="utf-8")
                (entry / "manifest.json").write_text(json.dumps(job.manifest, indent=1), encoding="utf-8")
                with contextlib.suppress(FileNotFoundError):
                    os.rename(self.folder / job.key, Path(new) / "old")
                os.rename(entry, self.folder / job.key)

    def manifest(self, key: str) -> dict[str, str]:
        """What decided a stored result; empty if there is none."""
        try:
            return json.loads((self.folder / key / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}


class Output:
    """The folder, here or at any URL that fsspec knows, that takes executed notebooks and reports."""

    def __init__(self, url: str | Path):
        """At a path or URL.

        Raises:
            ValueError: fsspec does not know this kind of URL, or lacks a package for it.
        """
        try:
            self.files, self.base = fsspec.url_to_fs(str(url))
        except ImportError as error:
            raise ValueError(f"output {url}: {error}") from None

    def path(self, name: str) -> Path | str:
        """Where a file is: a path, or else a URL."""
        if isinstance(self.files, LocalFileSystem):
            return Path(self.base) / name
        return self.files.unstrip_protocol(f"{self.base}/{name}")

    def prepare(self) -> None:
        """Find out now, not after an hour's work, whether the folder is ours and can be written to.

        Raises:
            OSError: it cannot be written to.
            ValueError: it holds what the runner has not written, such as the chapters themselves.
        """
        try:
            held = [PurePosixPath(path).name for path in self.files.ls(self.base, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            held = []
        if held and MARKER not in held:
            raise ValueError(
                f"{self.path('')} holds files that the runner has not written ({', '.join(sorted(held)[:3])}"
                f"{', ...' if len(held) > 3 else ''}): nothing was run or changed; choose "
                "a folder that is new, empty, or of an earlier run"
            )
        self.write(MARKER, b"Written by the runner, which replaces its own files here.\n")

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        with writing(self.path(name)):
            if isinstance(path := self.path(name), Path):
                write(path, content)
            else:  # an object store shows an object when it is complete
                self.files.makedirs(str(PurePosixPath(self.base, name).parent), exist_ok=True)
                self.files.pipe_file(f"{self.base}/{name}", content)

    def read(self, name: str) -> bytes | None:
        """A file's content, or None if there is none."""
        try:
            return self.files.cat_file(f"{self.base}/{name}")
        except OSError:
            return None

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.files.rm_file(f"{self.base}/{name}")


def write(path: Path, content: bytes) -> None:
    """Write a local file under another name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{uuid4().hex}")
    try:
        new.write_bytes(content)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(place: object) -> Iterator[None]:
    """Say in an error where writing failed, and what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"cannot write {place}: {reason}; make room, or choose --out") from None
