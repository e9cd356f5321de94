"""Keep what a run has measured: the only writer of `data/results`, which `lib.claims` reads."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import nbformat

from book.run.batch import run
from book.run.cache import write
from book.run.collect import collect
from lib import ROOT, chapters


def record(
    slug: str,
    name: str,
    *,
    preset: str = "organism",
    parameters: dict[str, Any] | None = None,
    root: Path = ROOT,
) -> Path:
    """Execute a chapter, or take it from the cache, and write `data/results/SLUG--NAME.json`.

    Args:
        slug: the chapter.
        name: what sets this run apart from the chapter's others.
        preset: parameters from the facts.
        parameters: values that go before those of the preset.
        root: the repository.

    Returns:
        The path of the file.

    Raises:
        LookupError, ValueError: unknown chapter or parameter, or a name that is not fit for a file.
        RuntimeError: the run failed, or recorded no claim. Nothing was written.
    """
    if not re.fullmatch(r"\w[\w.=,+-]{0,79}", name):
        raise ValueError(f"--name {name!r}: expected letters, digits and any of _ . = , + -, at most 80")
    result = run([slug], preset=preset, parameters=parameters, root=root).results[0]
    if result.status not in ("passed", "cached"):
        raise RuntimeError(f"{slug} {result.status}, nothing is recorded: {result.error}")
    if not (claims := collect(Path(str(result.notebook)))):
        raise RuntimeError(f"{slug} has recorded no claim: nothing to keep")
    facts = nbformat.read(result.notebook, as_version=4).metadata.worked_papers
    defaults = {name: parameter.default for name, parameter in chapters.parameters(slug, root).items()}
    kept = {
        "slug": slug,
        "parameters": {n: value for n, value in result.parameters.items() if value != defaults[n]},
        "preset": preset,
        "versions": facts.versions,
        "commit": _commit(root),
        "machine": facts.machine,
        "seconds": facts.seconds,
        "date": facts.finished[:10],
        "claims": [claim.to_json() for claim in claims],
    }
    path = root / "data" / "results" / f"{slug}--{name}.json"
    if path.exists() and not _is_record(path):
        raise ValueError(f"{path} is no recorded run, and is left as it is: choose another --name")
    write(path, (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def _is_record(path: Path) -> bool:
    try:
        return {"slug", "claims"} <= set(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return False


def _commit(root: Path) -> str | None:
    """The commit of the repository, with a word if files differ from it; None where there is no git."""
    try:
        command = [
            "git",
            "-C",
            str(root),
            "describe",
            "--always",
            "--dirty=, with changes",
            "--abbrev=40",
            "--exclude=*",
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
