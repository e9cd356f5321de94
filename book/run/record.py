"""Keep what runs have measured: the only writer of `data/results`, which `lib.claims` reads."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import nbformat

from book.run.batch import run
from book.run.cache import write
from book.run.collect import collect
from book.run.report import Result
from lib import ROOT, chapters

NAME = re.compile(r"\w[\w.=,+-]{0,79}")


def record(
    slugs: list[str],
    name: str,
    *,
    preset: str = "organism",
    parameters: dict[str, Any] | None = None,
    seeds: list[Any] | None = None,
    jobs: int = 1,
    root: Path = ROOT,
) -> list[Path]:
    """Execute chapters, or take them from the cache, and write a `data/results/SLUG--NAME.json` of each.

    Args:
        slugs: the chapters; none for all.
        name: what sets this run apart from the chapter's others.
        preset: parameters from the facts.
        parameters: values that go before those of the preset.
        seeds: values of `seed`, to keep a run of each, side by side, in place of a single run.
        jobs: runs at a time.
        root: the repository.

    Returns:
        The paths of the files.

    Raises:
        LookupError, ValueError: unknown chapter or parameter, or a name that is not fit for a file.
        RuntimeError: a run failed, or recorded no claim. The other chapters' files were written.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"--name {name!r}: expected letters, digits and any of _ . = , + -, at most 80")
    paths = {
        slug: root / "data" / "results" / f"{slug}--{name}.json" for slug in slugs or chapters.slugs(root)
    }
    for path in paths.values():
        if path.exists() and not _is_record(path):
            raise ValueError(f"{path} is no recorded run, and is left as it is: choose another --name")
    commit = _commit(root)  # of the code that is run, not of a tree in which the first file is new
    sweep = {"seed": seeds} if seeds else None
    report = run(slugs, preset=preset, parameters=parameters, sweep=sweep, jobs=jobs, root=root)
    results: dict[str, list[Result]] = {}
    for result in report.results:
        results.setdefault(result.slug, []).append(result)
    written, problems = [], []
    for slug, of_chapter in results.items():
        try:
            kept = _kept(of_chapter, bool(seeds), root) | {"commit": commit}
        except RuntimeError as error:
            problems.append(str(error))
            continue
        write(paths[slug], (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode())
        written.append(paths[slug])
    if problems:
        raise RuntimeError("; ".join(problems))
    return written


def _kept(results: list[Result], by_seed: bool, root: Path) -> dict[str, Any]:
    """What is kept of a chapter's run, or of its runs with several seeds."""
    runs = []
    for result in results:
        if result.status not in ("passed", "cached"):
            raise RuntimeError(f"{result.name} {result.status}, nothing is recorded: {result.error}")
        if not (claims := collect(Path(str(result.notebook)))):
            raise RuntimeError(f"{result.name} has recorded no claim: nothing to keep")
        stored = [claim.to_json() for claim in claims]
        if by_seed:  # the rest is the claim's, or the notebook's
            stored = [
                {key: one[key] for key in ("estimate", "null")} | {"id": one["claim"]["id"]} for one in stored
            ]
        defaults = {name: p.default for name, p in chapters.parameters(result.slug, root).items()}
        changed = {name: value for name, value in result.parameters.items() if value != defaults[name]}
        if by_seed:
            changed["seed"] = result.parameters["seed"]
        runs.append({"parameters": changed, "seconds": result.seconds, "claims": stored})
    facts = nbformat.read(results[0].notebook, as_version=4).metadata.worked_papers
    return {
        "slug": results[0].slug,
        "preset": results[0].preset,
        "versions": facts.versions,
        "machine": facts.machine,
        "date": facts.finished[:10],
        **({"runs": runs} if by_seed else runs[0]),
    }


def _is_record(path: Path) -> bool:
    try:
        keys = set(json.loads(path.read_text(encoding="utf-8")))
        return "slug" in keys and not keys.isdisjoint({"claims", "runs"})
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
