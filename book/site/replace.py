"""Folders for the site: what may be replaced, and how a site takes the place of an earlier one."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from lib import ROOT

MARKER = ".worked-papers-site"
"""A file of this name lists what a build has written in a folder: that, and nothing else, may be replaced."""


def foreign(folder: Path) -> list[str]:
    """The files in a folder, by their paths in it, that no build of the site has written."""
    inside = {path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    marker = folder / MARKER
    ours = {MARKER, *marker.read_text(encoding="utf-8").splitlines()} if marker.is_file() else set()
    return sorted({str(path.relative_to(folder)) for path in inside} - ours)


def note_written(folder: Path, before: list[str]) -> None:
    """Note in a folder that everything is the build's but what was there before."""
    (folder / MARKER).unlink(missing_ok=True)
    files = set(foreign(folder)) - set(before)
    (folder / MARKER).write_text("\n".join(sorted(files)), encoding="utf-8")


def check_replaceable(out: Path) -> None:
    """Make sure that a folder can be replaced as a whole: it is new, or holds only an earlier site.

    Raises:
        ValueError: it holds something else, or belongs to the repository.
        OSError: it cannot be written to.
    """
    if ROOT.is_relative_to(out):
        raise ValueError(f"{out} holds this repository: choose a folder for the site alone")
    if out.is_relative_to(ROOT):
        top = ROOT / out.relative_to(ROOT).parts[0]
        if top != out and top.name != "_build" and top.exists():
            raise ValueError(f"{out} is inside the repository's {top.name}: choose a folder outside of it")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: choose a folder for the site")
    if others := foreign(out):
        raise ValueError(
            f"{out} holds files that are not an earlier site's ({', '.join(others[:3])}"
            f"{', ...' if len(others) > 3 else ''}): nothing was changed; "
            "choose a folder that is new or empty"
        )
    parent = next(folder for folder in out.parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise OSError(f"{out} cannot be made: {parent} is not a folder that can be written to")


def replace(out: Path, site: Path) -> None:
    """Put a site in place of what is in `out`, which stands as it is until the new one is there whole.

    Raises:
        ValueError: `out` holds something other than an earlier site.
        RuntimeError: another build has put its site there in the same moment. That one stands.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    new, old = (out.with_name(f".{out.name}-{uuid4().hex}") for _ in range(2))
    try:
        shutil.move(site, new)
        check_replaceable(out)
        with suppress(FileNotFoundError):  # there may be none
            out.rename(old)
        try:
            new.rename(out)
        except OSError as error:
            raise RuntimeError(f"another build has just written {out}: its site stands") from error
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
