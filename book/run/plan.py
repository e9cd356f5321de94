"""What is to be run: each run's parameters, and the key of everything that decides its result."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from book.run import key
from book.run.redact import SECRET_NAME, redact
from book.run.values import convert, run_name
from lib import chapters, papers
from lib.chapters import did_you_mean


@dataclass(frozen=True)
class Job:
    """One run of one chapter."""

    slug: str
    preset: str
    name: str
    """The slug and, in a sweep, the swept values: the stem of the output's file name."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """All of the chapter's parameters, with the values of this run."""
    given: dict[str, Any] = field(default_factory=dict)
    """Those that the preset, the caller and the sweep set."""
    notebook: NotebookNode | None = field(default=None, repr=False)
    manifest: dict[str, str] = field(default_factory=dict, repr=False)
    """What decides the result: a label for each thing -> its digest."""
    remark: str = ""
    problem: str = ""
    """Why the chapter cannot be run: it, its facts or a module is damaged."""

    @cached_property
    def key(self) -> str:
        """The name of this run's result in the cache."""
        return key.digest(json.dumps(self.manifest, sort_keys=True))


def plan_runs(
    slugs: list[str] | None,
    preset: str,
    parameters: dict[str, Any] | None,
    sweep: dict[str, list[Any]] | None,
    root: Path,
) -> list[Job]:
    """The runs that a command asks for, each checked as far as it can be without running it.

    A chapter that is damaged does not stop the others: its job says what the `problem` is.

    Raises:
        LookupError: unknown chapter, preset or parameter.
        ValueError: a value has not the parameter's type.
    """
    known = chapters.slugs(root)
    if not (chosen := list(dict.fromkeys(slugs or known))):
        raise LookupError(f"there is no chapter in {root / 'notebooks'}")
    for slug in chosen:
        if slug not in known:
            raise LookupError(f"no chapter {slug!r} in {root / 'notebooks'}; {did_you_mean(slug, known)}")
    if twice := set(parameters or {}) & set(sweep or {}):
        raise ValueError(f"{', '.join(sorted(twice))}: given both a value and a sweep")
    jobs = [job for slug in chosen for job in _plan(slug, preset, parameters or {}, sweep or {}, root)]
    return list({job.name: job for job in jobs}.values())


def _plan(
    slug: str, preset: str, parameters: dict[str, Any], sweep: dict[str, list[Any]], root: Path
) -> list[Job]:
    try:
        notebook, remark = key.load(slug, root)
        known = chapters.parameters(slug, root)
        defaults = {name: convert(parameter, parameter.default) for name, parameter in known.items()}
        presets: dict[str, Any] = {"organism": {}}  # the defaults, in a chapter that is not written yet
        facts = papers.read(slug, root / "data" / "papers")
        presets |= {str(name): values for name, values in facts.presets.items()}
        fixed = _checked(presets.get(preset, {}), known, f"data/papers/{slug}.yml, preset {preset}")
        key.closure(chapters.code_cells(notebook), root)
    except (LookupError, ValueError, OSError, RecursionError) as error:
        return [Job(slug, preset, slug, problem=f"cannot be planned: {error}")]
    if preset not in presets:
        raise LookupError(f"chapter {slug} has no preset {preset!r}; {did_you_mean(preset, presets)}")
    fixed |= _checked(parameters, known, slug)
    axes = [[_checked({n: v}, known, slug) for v in values] for n, values in sweep.items()]
    jobs = []
    for point in product(*axes):
        swept = {name: value for one in point for name, value in one.items()}
        values = defaults | fixed | swept
        manifest = key.manifest(slug, values, root)
        name = run_name(slug, swept)
        jobs.append(Job(slug, preset, name, values, fixed | swept, notebook, manifest, remark))
    return jobs


def _checked(given: dict[str, Any], known: dict[str, chapters.Parameter], where: str) -> dict[str, Any]:
    for name, value in given.items():
        if SECRET_NAME.search(name) or (hidden := redact(str(value))) != str(value):
            what = "looks like a secret" if SECRET_NAME.search(name) else f"is {hidden}"
            raise ValueError(
                f"{where}: {name} {what}, and parameters are stored in the executed notebook; "
                f"set an environment variable and let the chapter read os.environ"
            )
        if name not in known:
            raise LookupError(f"{where} has no parameter {name!r}; {did_you_mean(name, known)}")
    try:
        return {name: convert(known[name], value) for name, value in given.items()}
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
