"""What is to be run: each run's parameters, and the key of everything that decides its result."""

import ast
import hashlib
import json
import platform
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nbformat import NotebookNode

from book.run.redact import redact
from lib import chapters, papers
from lib.chapters import did_you_mean
from lib.organisms import split_name

FLOORS = ("lib", "data")
"""The packages that a chapter may import from the repository."""
_PARSING = threading.Lock()  # Python 3.11 miscounts when two threads parse (cpython #106905)


@dataclass(frozen=True)
class Job:
    """One run of one chapter."""

    slug: str
    preset: str
    parameters: dict[str, Any]
    """All of the chapter's parameters, with the values of this run."""
    given: dict[str, Any]
    """Those that the preset, the caller and the sweep set."""
    name: str
    """The slug and, in a sweep, the swept values: the stem of the output's file name."""
    manifest: dict[str, str] = field(repr=False)
    """What decides the result: a label for each thing -> its digest."""
    imports: frozenset[str] = field(repr=False)
    """Names that the chapter imports from other packages, as in `torch.nn.Linear`."""

    @cached_property
    def key(self) -> str:
        """The name of this run's result in the cache."""
        return _digest(json.dumps(self.manifest, sort_keys=True))


@dataclass(frozen=True)
class Outcome:
    """What came of executing a job."""

    status: str
    """`passed`, `failed`, `timeout` or `died`."""
    notebook: NotebookNode | None = None
    seconds: float = 0.0
    error: str | None = None
    cell: str | None = None
    """The cell that failed."""


def plan_runs(
    slugs: list[str] | None,
    preset: str,
    parameters: dict[str, Any] | None,
    sweep: dict[str, list[Any]] | None,
    root: Path,
) -> list[Job]:
    """The runs that a command asks for, each checked as far as it can be without running it.

    Raises:
        LookupError: unknown chapter, preset or parameter.
        ValueError: a value has not the parameter's type, or a chapter's parameters cannot be read.
    """
    if not (chosen := list(dict.fromkeys(slugs or chapters.slugs(root)))):
        raise LookupError(f"there is no chapter in {root / 'notebooks'}")
    if twice := set(parameters or {}) & set(sweep or {}):
        raise ValueError(f"{', '.join(sorted(twice))}: given both a value and a sweep")
    source = Source(root)
    jobs: dict[str, Job] = {}
    for slug in chosen:
        known = chapters.parameters(slug, root)
        facts = papers.read(slug, root / "data" / "papers")
        presets: dict[str, Any] = {"organism": {}}  # the defaults, in a chapter that is not written yet
        presets |= {str(name): values for name, values in facts.presets.items()}
        if preset not in presets:
            raise LookupError(f"chapter {slug} has no preset {preset!r}; {did_you_mean(preset, presets)}")
        fixed = _checked(presets[preset], known, f"data/papers/{slug}.yml, preset {preset}")
        fixed |= _checked(parameters or {}, known, slug)
        axes = [[_checked({n: v}, known, slug) for v in values] for n, values in (sweep or {}).items()]
        for point in product(*axes):
            swept = {name: value for one in point for name, value in one.items()}
            given = fixed | swept
            values = {name: p.default for name, p in known.items()} | given
            name = "--".join([slug, *(f"{n}={quote(str(v), safe=' ,[]')}" for n, v in swept.items())])
            manifest = source.manifest(slug, values)
            jobs[name] = Job(slug, preset, values, given, name, manifest, frozenset(source.imports(slug)))
    return list(jobs.values())


def _checked(given: dict[str, Any], known: dict[str, chapters.Parameter], where: str) -> dict[str, Any]:
    for name, value in given.items():
        if chapters.SECRET_NAME.search(name) or (hidden := redact(str(value))) != str(value):
            what = "looks like a secret" if chapters.SECRET_NAME.search(name) else f"is {hidden}"
            raise ValueError(
                f"{where}: {name} {what}, and parameters are stored in the executed notebook; "
                f"set an environment variable and let the chapter read os.environ"
            )
        if name not in known:
            raise LookupError(f"{where} has no parameter {name!r}; {did_you_mean(name, known)}")
    try:
        return {name: known[name].convert(value) for name, value in given.items()}
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for package in ("torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def changed(job: Job, root: Path) -> list[str]:
    """What decides the run's result and is not as it was when the run was planned."""
    with _PARSING:
        now = Source(root).manifest(job.slug, job.parameters)
    return sorted(label for label in now | job.manifest if now.get(label) != job.manifest.get(label))


def _digest(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


class Source:
    """A repository's code and data: what a chapter rests on, found without importing anything."""

    def __init__(self, root: Path):
        """Of the repository in folder `root`."""
        self.root = root
        self._trees: dict[str, ast.Module] = {}

    def manifest(self, slug: str, parameters: dict[str, Any]) -> dict[str, str]:
        """A digest of each thing that decides the result of a run."""
        cells = chapters.code_cells(chapters.read(slug, self.root))
        tagged = [(sorted(cell.metadata.get("tags", [])), cell.source) for cell in cells]
        manifest = {"code": _digest(json.dumps(tagged)), **versions()}
        manifest |= {f"parameter {name}": json.dumps(value) for name, value in parameters.items()}
        for label in self._closure(slug)[0]:
            manifest[label] = _digest(ast.dump(self._trees[label]))
        facts = f"data/papers/{slug}.yml"
        manifest[facts] = _digest((self.root / facts).read_bytes())
        for path in (self.root / "data" / "results").glob(f"{slug}--*.json"):
            manifest[f"data/results/{path.name}"] = _digest(path.read_bytes())
        named = _strings(list(parameters.values()))
        for folder in (self.root / "data" / "models").glob("*/"):
            if split_name(folder.name)[0] in named | self._constants(slug):  # NAME, NAME-seed1, ...
                manifest[f"data/models/{folder.name}"] = _digest_folder(folder, content=True)
        for name in named:
            if name and (self.root / name).is_dir():  # a checkpoint of any size
                manifest[name] = _digest_folder(self.root / name, content=False)
        return manifest

    def imports(self, slug: str) -> set[str]:
        """What a chapter, and the modules of `lib` it rests on, import from elsewhere."""
        foreign = self._closure(slug)[1]
        return {name for name in foreign if name.partition(".")[0] not in sys.stdlib_module_names}

    @cache  # noqa: B019  (lives as long as one plan)
    def _closure(self, slug: str) -> tuple[list[str], set[str]]:
        """The files of `lib` and the other chapters' methods that a chapter rests on; foreign names."""
        self._trees[slug] = self._notebook(slug)
        todo, ours, foreign = [slug], {slug}, set()
        while todo:
            for name in _names(self._trees[label := todo.pop()], label):
                found = list(self._resolve(name))
                if not found and name.partition(".")[0] not in FLOORS:
                    foreign.add(name)
                todo += [label for label in found if label not in ours]
                ours.update(found)
        return sorted(ours - {slug}), foreign

    def _notebook(self, slug: str, tag: str | None = None) -> ast.Module:
        cells = chapters.code_cells(chapters.read(slug, self.root), tag)
        return ast.Module([node for cell in cells for node in chapters.parse(cell.source).body], [])

    def _constants(self, slug: str) -> set[str]:
        nodes = ast.walk(self._trees[slug])
        return {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}

    def _resolve(self, name: str) -> Iterator[str]:
        """The files that importing a dotted name executes; none if it is not ours. Their trees are kept."""
        if name.startswith("method "):
            slugs = [name.removeprefix("method ")] if name != "method " else chapters.slugs(self.root)
            for slug in slugs:
                self._trees[label := f"method of {slug}"] = self._notebook(slug, "method")
                yield label
            return
        path, _, rest = name.partition(".")
        if path not in FLOORS:
            return
        yield self._module(f"{path}/__init__.py")
        for part in rest.split("."):
            path += f"/{part}"
            if not (file := self._file(path)):
                break
            yield self._module(file)

    def _file(self, path: str) -> str | None:
        return next((f for f in (f"{path}.py", f"{path}/__init__.py") if (self.root / f).is_file()), None)

    def _module(self, label: str) -> str:
        if label not in self._trees:
            text = (self.root / label).read_text(encoding="utf-8")
            self._trees[label] = _Trim().visit(ast.parse(text, label))
        return label


class _Trim(ast.NodeTransformer):
    """Leaves out what only a type checker reads."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return node.orelse
        return self.generic_visit(node)


def _names(tree: ast.Module, label: str) -> Iterator[str]:
    """The dotted names that a tree imports; `method <slug>` for a chapter's method (no slug: any)."""
    package = label.removesuffix("/__init__.py").removesuffix(".py").split("/")
    if not label.endswith("/__init__.py"):
        package = package[:-1]
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                above = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                yield from (f"{base}.{alias.name}" for alias in node.names)
            case ast.Attribute() if (name := ast.unparse(node)).startswith(("lib.", "data.")):
                yield name
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), args=[argument, *_]):
                constant = str(argument.value) if isinstance(argument, ast.Constant) else ""
                if called == "method":
                    yield f"method {constant}"
                elif called == "import_module" and constant:
                    yield constant


def _strings(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        value = list(value.values())
    return set().union(*map(_strings, value)) if isinstance(value, list) else set()


@cache
def _digest_file(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_folder(folder: Path, content: bool) -> str:
    """Of the files' names, and of their content or else their sizes and times."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    digests = [_digest_file(*stat) if content else str(stat[1:]) for stat in stats]
    return _digest(json.dumps([[str(path.relative_to(folder)) for path in files], digests]))
