"""The key of a run: everything that decides its result, found without importing anything.

Two sources are put together. What the notebook's code says (modules, packages, organisms, files and folders
that it or a parameter names) is known before a run. What it opens by names that are put together while it
runs is noted by its kernel; a kept result is good only while those files are as they were. Neither alone is
enough: a name in the code may be built from parts, and a library's own C or Rust code opens files unseen.
"""

import ast
import hashlib
import json
import os
import platform
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from nbformat import NotebookNode

from lib import chapters
from lib.organisms import split_name
from lib.packaged import MODELS

FLOORS = ("lib", "data")
"""The packages that a chapter may import from the repository."""
LEFTOVERS = ("injected-parameters", "papermill-error-cell-tag")
"""Tags of the cells that papermill writes into its outputs."""
LISTED = ("notebooks/", "data/models/", "data/papers/", "data/results/")
"""Folders that the library itself searches by name: a file more in them is no other result."""
LARGE = 64 * 2**20
"""Bytes from which a file's size and time stand for its content."""
_PARSING = threading.Lock()  # Python 3.11 miscounts when two threads parse (cpython #106905)


class Code(NamedTuple):
    """What a piece of code says."""

    digest: str
    names: frozenset[str]
    """Dotted names that it imports; `method <slug>` for a chapter's method (no slug: any)."""
    strings: frozenset[str]


def load(slug: str, root: Path) -> tuple[NotebookNode, str]:
    """A chapter without what an earlier run has left in its file, and a word about that."""
    notebook = chapters.read(slug, root)
    kept = [cell for cell in notebook.cells if not set(cell.metadata.get("tags", [])) & set(LEFTOVERS)]
    left = len(notebook.cells) - len(kept)
    notebook.cells = kept
    for trace in ("papermill", "widgets", "worked_papers"):
        notebook.metadata.pop(trace, None)
    return notebook, f"left out {left} cell{'s' * (left > 1)} of an earlier run's output" if left else ""


def manifest(slug: str, parameters: dict[str, Any], root: Path) -> dict[str, str]:
    """A digest of each thing that decides the result of a run, as far as the code and parameters tell.

    Raises:
        LookupError: no such chapter.
        ValueError: the chapter, or a module that it imports, cannot be read.
    """
    cells = chapters.code_cells(load(slug, root)[0])
    tagged = [(sorted(cell.metadata.get("tags", [])), cell.source) for cell in cells]
    found = {"code": digest(json.dumps(tagged)), "python": platform.python_version()}
    found |= {f"parameter {name}": repr(value) for name, value in parameters.items()}
    with _PARSING:
        code = closure(cells, root)
    imported = set().union(*(piece.names for piece in code.values()))
    for package in sorted({name.partition(".")[0] for name in imported}):
        if package not in {*FLOORS, *sys.stdlib_module_names} and " " not in package:
            found[f"package {package}"] = package_version(package)
    found |= {label: piece.digest for label, piece in code.items() if label != "code"}
    given = _strings(list(parameters.values()))
    found |= {f"package {name}": MODELS[name].source for name in given & MODELS.keys()}
    # Shell lines and the like name files too. Folders that code names are parts of longer paths.
    said = code["code"].strings
    words = said | {word for text in said for word in re.split(r"[\s'\"`<>|;=()]+", text)}
    words |= {text for piece in code.values() for text in piece.strings}
    paths = [text for text in given if _existing(text, root)]
    paths += [f"data/papers/{slug}.yml", *_glob(root, f"data/results/{slug}--*.json")]
    paths += [word for word in words if re.search(r"[./]", word) and _is_file_within(word, root)]
    for folder in _glob(root, "data/models/*/"):
        if split_name(Path(folder).name)[0] in given | said:  # NAME, NAME-seed1, ...
            paths.append(folder)
    return found | {label: digest_path(root, label) for label in paths}


def reads(
    lines: Iterable[str], known: dict[str, str], root: Path, started: float
) -> tuple[dict[str, str], list[str]]:
    """What a kernel has opened and no manifest knew, with digests; and which of it changed since then.

    Args:
        lines: JSON of `[action, path]`, where the action is read, write or list.
        known: the run's manifest.
        root: the repository.
        started: when the run began, in seconds since the epoch.
    """
    found: set[str] = set()
    written: set[str] = set()
    for line in lines:
        action, path = json.loads(line)
        label = os.path.relpath(path, root)
        if action == "list":
            if not f"{label}/".startswith((*LISTED, *(f"{one}/" for one in known))):
                found.add(f"{label}/")
            continue
        if match := re.fullmatch(r"(.*?)/?__pycache__/(\w+)\.[^/]+\.pyc", label):
            label = f"{match[1]}/{match[2]}.py".lstrip("/")
        if match := re.fullmatch(r"(data/models/[^/]+)/.*", label):
            label = match[1]  # of a checkpoint the weights are read unseen
        if match := re.fullmatch(r"notebooks/(.*)\.ipynb", label):
            label = label if f"method of {match[1]}" not in known else "code"
        (written if action == "write" else found).add(label)
    found -= known.keys()
    changed = [
        label
        for label in found - written
        if (path := root / label).is_file() and path.stat().st_mtime > started
    ]
    return {label: digest_path(root, label) for label in sorted(found)}, sorted(changed)


def differing(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """The labels under which two manifests are not the same."""
    return sorted(label for label in then | now if then.get(label) != now.get(label))


def digest(content: str | bytes) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def digest_path(root: Path, label: str) -> str:
    """Of a file's content, of a folder's files, or of the names in a folder (`folder/`)."""
    path = root / Path(label).expanduser()
    try:
        if label.endswith("/"):
            return digest(json.dumps(sorted(name for name in os.listdir(path) if name[0] not in "._")))
        if path.is_dir():
            files = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
            some = sorted(islice(files, 10_000))  # what has more is no checkpoint and no chapter's data
            content = path.is_relative_to(root)  # elsewhere there may be terabytes, or devices
            return digest(
                json.dumps(
                    [(os.path.relpath(file, path), _digest_file(*_stat(file), content)) for file in some]
                )
            )
        return _digest_file(*_stat(path), True) if path.is_file() else "absent"
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _stat(path: Path) -> tuple[Path, int, int]:
    stat = path.stat()
    return path, stat.st_size, stat.st_mtime_ns


@cache
def _digest_file(path: Path, size: int, modified: int, content: bool) -> str:
    if size > LARGE or not content:
        return f"{size} bytes of {modified}"
    return digest(path.read_bytes())


@cache
def package_version(package: str) -> str:
    """The version of the distribution that an import name belongs to."""
    try:
        return version(package)
    except PackageNotFoundError:  # PIL is pillow
        return ", ".join(f"{name} {version(name)}" for name in sorted(set(_distributions().get(package, []))))


_distributions = cache(packages_distributions)


def closure(cells: list[NotebookNode], root: Path) -> dict[str, Code]:
    """The chapter's own `code`, the repository's files and the other chapters' methods that it rests on."""
    found = {"code": _cells(tuple(c.source for c in cells if "setup" not in c.metadata.get("tags", [])))}
    todo, seen = set(found["code"].names), set[str]()
    while names := todo - seen:
        seen |= todo
        for name in names:
            new = {label: code for label, code in _resolve(name, root) if label not in found}
            found |= new
            todo = todo.union(*(code.names for code in new.values()))
    return found


def _resolve(name: str, root: Path) -> Iterator[tuple[str, Code]]:
    """The files that importing a dotted name executes; none if it is not ours."""
    path, _, rest = name.partition(".")
    if path.startswith("method "):
        known = chapters.slugs(root)
        for slug in [path.removeprefix("method ")] if path != "method " else known:
            if slug in known:  # any other `method(...)` is somebody else's
                cells = chapters.code_cells(load(slug, root)[0], "method")
                yield f"method of {slug}", _cells(tuple(cell.source for cell in cells), f"method of {slug}")
    if path not in FLOORS:
        return
    for part in ["", *rest.split(".")]:
        path += f"/{part}" if part else ""
        file = next((f for f in (f"{path}.py", f"{path}/__init__.py") if (root / f).is_file()), None)
        if file:
            yield file, _module(file, *_stat(root / file))


@cache
def _module(label: str, path: Path, size: int, modified: int) -> Code:
    try:
        return _read(ast.parse(path.read_text(encoding="utf-8"), label), label)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{label} is not valid Python: {error}") from None


@cache
def _cells(sources: tuple[str, ...], label: str = "") -> Code:
    body: list[ast.stmt] = []
    for number, source in enumerate(sources, 1):
        try:
            body += chapters.parse(source).body
        except (SyntaxError, ValueError, RecursionError) as error:
            first = source.strip().partition("\n")[0]
            raise ValueError(f"code cell {number} is not valid Python ({error}): {first}") from None
    return _read(ast.Module(body, []), label)


def _read(tree: ast.Module, label: str) -> Code:
    tree = _Trim().visit(tree) if label else tree  # of a chapter's own code every letter counts
    nodes = list(ast.walk(tree))
    constants = (node.value for node in nodes if isinstance(node, ast.Constant))
    strings = frozenset(value for value in constants if isinstance(value, str))
    return Code(digest(ast.dump(tree)) if label else "", frozenset(_names(nodes, label)), strings)


class _Trim(ast.NodeTransformer):
    """Leaves out what no program reads: docstrings, and what is for the type checker."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return node.orelse
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)


def _names(nodes: list[ast.AST], label: str) -> Iterator[str]:
    package = label.removesuffix("/__init__.py").removesuffix(".py").split("/")
    if not label.endswith("/__init__.py"):
        package = package[:-1]
    for node in nodes:
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                above = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                yield from (f"{base}.{alias.name}" for alias in node.names)
            case ast.Attribute() if _root(node) in FLOORS:
                yield ast.unparse(node)
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), args=[argument, *_]):
                constant = str(argument.value) if isinstance(argument, ast.Constant) else ""
                if called == "method":
                    yield f"method {constant}"
                elif called in ("import_module", "__import__") and constant:
                    yield constant


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _strings(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return set().union(*map(_strings, value)) if isinstance(value, list) else set()


def _existing(text: str, root: Path) -> Path | None:
    """The file or folder that a parameter's value names, if it does; a chapter runs in the root folder.

    Most texts are no paths: too long, with characters that no name has. `/` and the like, in which the whole
    repository lies, are none that a chapter reads.
    """
    if not text.strip() or len(text) > 1000 or not text.isprintable():
        return None
    try:
        path = root / Path(text).expanduser()
        return path if path.exists() and not root.is_relative_to(path.resolve()) else None
    except (OSError, RuntimeError, ValueError):
        return None


def _is_file_within(word: str, root: Path) -> bool:
    if word.startswith("_build/") or not (path := _existing(word, root)):  # what is built decides nothing
        return False
    return not Path(word).is_absolute() and path.is_file() and path.resolve().is_relative_to(root.resolve())


def _glob(root: Path, pattern: str) -> list[str]:
    return [str(path.relative_to(root)) for path in root.glob(pattern)]
