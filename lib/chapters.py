"""Chapters: find, read and check the notebooks of `notebooks/`, and import a chapter's method."""

import ast
import io
import linecache
import re
import sys
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import yaml
from nbformat import NotebookNode
from pydantic import TypeAdapter, ValidationError

from lib import ROOT

SETUP_CELL = """\
REPOSITORY = ""  # the book's build fills this in from _config.yml, for Colab

import importlib.util
import os
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("lib") is None:
    if not REPOSITORY:
        raise RuntimeError("open the chapter with the Colab button of its page: this copy has no repository")
    if not os.path.isdir("/content/worked-papers"):
        subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, "/content/worked-papers"], check=True)
    os.chdir("/content/worked-papers")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-r", "requirements.txt"], check=True)
    sys.path.insert(0, os.getcwd())"""
"""The first code cell of every chapter, with the tags `setup` and `remove-cell`."""

TAGS = {
    "setup",
    "parameters",
    "method",
    "core",
    "full-width",
    "margin",
    "scroll-output",
    "remove-stdout",
    "remove-stderr",
}
TAGS |= {f"{action}-{part}" for action in ("hide", "remove") for part in ("cell", "input", "output")}
REQUIRED = ("model", "seed", "device", "dtype")
SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(API|ACCESS|PRIVATE|SECRET)_?KEY(_ID)?)(_|$)", re.I
)
_TYPES = {t.__name__: t for t in (bool, int, float, str, list, dict)}


def did_you_mean(given: str, known: Any) -> str:
    """The end of an error message: the closest of the known names, or all of them."""
    known = sorted(known)
    close = get_close_matches(given, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there is: {', '.join(known) or 'none'}"


@dataclass(frozen=True)
class Parameter:
    """One assignment of a chapter's `parameters` cell."""

    name: str
    type: str
    """As annotated, such as `int` or `list[float]`; without an annotation the type of the default."""
    default: Any
    help: str
    """The comment behind it."""

    def convert(self, value: Any) -> Any:
        """`value` in this parameter's type; text is read as on a command line (`1e-3`, `true`, `[1, 2]`).

        Raises:
            ValueError: the value does not have the type.
        """
        adapter = TypeAdapter(_type(self.type))
        readings = (ast.literal_eval, yaml.safe_load, str) if isinstance(value, str) else (lambda v: v,)
        for read_as in readings:
            try:
                return adapter.validate_python(read_as(value), strict=True)
            except (ValidationError, SyntaxError, ValueError, yaml.YAMLError):
                continue
        raise ValueError(f"{self.name}={value!r}: expected {self.type}, for example {self.default!r}")


@cache
def _type(annotation: str) -> Any:
    try:
        return eval(annotation, {"__builtins__": {}}, _TYPES)
    except Exception:
        raise ValueError(
            f"type {annotation!r}: a parameter is one of {', '.join(_TYPES)}, list[int], ..."
        ) from None


def slugs(root: Path = ROOT) -> list[str]:
    """Names of the written chapters, in alphabetical order."""
    return sorted(path.stem for path in (root / "notebooks").glob("*.ipynb"))


def read(slug: str, root: Path = ROOT) -> NotebookNode:
    """A chapter's notebook.

    Raises:
        LookupError: no such chapter.
        ValueError: the file is no notebook.
    """
    if slug not in (known := slugs(root)):
        raise LookupError(f"no chapter {slug!r} in {root / 'notebooks'}; {did_you_mean(slug, known)}")
    path = root / "notebooks" / f"{slug}.ipynb"
    try:
        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        nbformat.validate(notebook)
    except (nbformat.ValidationError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a notebook: {str(error).splitlines()[0]}") from None
    return notebook


def code_cells(notebook: NotebookNode, tag: str | None = None) -> list[NotebookNode]:
    """The code cells, or those with a tag, in order."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return code if tag is None else [cell for cell in code if tag in cell.metadata.get("tags", [])]


def parse(source: str) -> ast.Module:
    """The syntax tree of a cell; lines of IPython's own (`%magic`, `!command`) count as `pass`."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE))


def parameters(slug: str, root: Path = ROOT) -> dict[str, Parameter]:
    """The parameters of a chapter: name -> type, default and explanation, in the cell's order.

    Raises:
        LookupError: no such chapter.
        ValueError: the notebook has no `parameters` cell, or several, or one with more than literals.
    """
    where = f"notebooks/{slug}.ipynb"
    cells = code_cells(read(slug, root), "parameters")
    if len(cells) != 1:
        raise ValueError(f"{where} has {len(cells)} cells tagged 'parameters'; it needs exactly one")
    source = cells[0].source
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
        statements = ast.parse(source).body
    except (SyntaxError, tokenize.TokenError) as error:
        raise ValueError(f"{where}: the parameters cell is not valid Python: {error}") from None
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    found = {}
    for node in statements:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        try:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(target, ast.Name):
                raise ValueError
            default = ast.literal_eval(node.value or ast.Name(""))
        except ValueError:
            line = ast.get_source_segment(source, node)
            raise ValueError(
                f"{where}: the parameters cell may only assign literals to names, not: {line}"
            ) from None
        annotation = (
            ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else type(default).__name__
        )
        help = comments.get(node.end_lineno or node.lineno, "")
        found[target.id] = Parameter(target.id, annotation, default, help)
        found[target.id].convert(default)
    return found


_NUMBER = r"-?[\d.]+(?:e-?\d+)?"
_LIMITS = re.compile(
    rf";\s*(?:(?P<low>{_NUMBER}) to (?P<high>{_NUMBER})|at least (?P<least>{_NUMBER})"
    rf"|above (?P<above>{_NUMBER})|one of (?P<choices>.+))$"
)
"""How the comment behind a parameter declares its range: `# images; 8 to 4096`, `# share; at least 0`,
`# a rate; above 0`, `# what to run; one of fast, slow`. For a list it is each entry's."""


def check_parameters(slug: str, values: Mapping[str, Any], root: Path = ROOT) -> None:
    """Check a chapter's parameters against the types and ranges that its parameters cell declares.

    Plain papermill hands on whatever it is given: a chapter calls this before its first work.

    Args:
        slug: the chapter.
        values: name -> value, such as `globals()`; other names in it are ignored.
        root: the repository.

    Raises:
        ValueError: all parameters that have another type or leave their range, one line each.
    """
    problems = []
    for name, parameter in parameters(slug, root).items():
        try:
            value = parameter.convert(values[name])
        except ValueError as error:
            problems.append(str(error))
            continue
        limits = _LIMITS.search(parameter.help)
        for one in (value if isinstance(value, list) else [value]) if limits else []:
            if problem := _outside(one, **limits.groupdict()):  # type: ignore[union-attr]
                problems.append(f"{name}={value!r}: expected {problem}")
                break
    if problems:
        raise ValueError("\n".join(problems))


def _outside(value: Any, low: str, high: str, least: str, above: str, choices: str) -> str:
    """What was expected of a value outside its limits; empty if it is inside."""
    if choices:
        known = [choice.strip() for choice in choices.split(",")]
        return "" if str(value) in known else f"one of {', '.join(known)}"
    if low and not float(low) <= value <= float(high):
        return f"{low} to {high}"
    if least and not value >= float(least):
        return f"at least {least}"
    return f"more than {above}" if above and not value > float(above) else ""


def method(slug: str, root: Path = ROOT) -> ModuleType:
    """A chapter's own method: the names that its cells tagged `method` define. No other cell is executed.

    Raises:
        LookupError: no such chapter, or one without a `method` cell.
    """
    cells = [
        (i, cell)
        for i, cell in enumerate(read(slug, root).cells, 1)
        if "method" in cell.metadata.get("tags", [])
    ]
    if not cells:
        raise LookupError(f"notebooks/{slug}.ipynb has no cell tagged 'method'")
    module = ModuleType(f"method_{slug.replace('-', '_')}", f"The method cells of chapter {slug}.")
    sys.modules[module.__name__] = module  # dataclasses and pickle look a class's module up here
    for i, cell in cells:
        name = f"notebooks/{slug}.ipynb, cell {i}"
        linecache.cache[name] = (len(cell.source), None, cell.source.splitlines(keepends=True), name)
        exec(compile(cell.source, name, "exec"), module.__dict__)
    return module


def _is_definition(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign | ast.AnnAssign):  # a constant or a type alias
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return all(isinstance(t, ast.Name) and t.id.lstrip("_")[:1].isupper() for t in targets)
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)


def check(slug: str, root: Path = ROOT) -> list[str]:
    """What is wrong with a chapter's anatomy, one sentence each; an empty list if nothing is."""
    notebook = read(slug, root)
    code = code_cells(notebook)
    problems = []
    if not (
        notebook.cells
        and notebook.cells[0].cell_type == "markdown"
        and notebook.cells[0].source.startswith("# ")
    ):
        problems.append("the first cell is not Markdown with the title (# ...)")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        problems.append("metadata.kernelspec.name is not 'python3'")
    if (
        not code
        or code[0].source != SETUP_CELL
        or set(code[0].metadata.get("tags", [])) != {"setup", "remove-cell"}
    ):
        problems.append(
            "the first code cell is not lib.chapters.SETUP_CELL with the tags setup and remove-cell"
        )
    if not code_cells(notebook, "method"):
        problems.append("no cell is tagged 'method'")
    for i, cell in enumerate(notebook.cells, 1):
        unknown = sorted(set(cell.metadata.get("tags", [])) - TAGS)
        problems += [f"cell {i}: unknown tag {tag!r}; {did_you_mean(tag, TAGS)}" for tag in unknown]
        if cell.cell_type == "code" and (cell.outputs or cell.execution_count is not None):
            problems.append(f"cell {i}: outputs are not stripped")
        if "method" in cell.metadata.get("tags", []):
            for node in parse(cell.source).body:
                if not _is_definition(node):
                    line = (ast.get_source_segment(cell.source, node) or "").splitlines()[0]
                    problems.append(
                        f"cell {i}: a method cell holds definitions and CONSTANTS only, not: {line}"
                    )
    try:
        return problems + _check_parameters(slug, root)
    except ValueError as error:
        return [*problems, str(error)]


def _check_parameters(slug: str, root: Path) -> list[str]:
    from papermill import inspect_notebook

    found = parameters(slug, root)
    cell = parse(code_cells(read(slug, root), "parameters")[0].source)
    typed = {
        node.target.id
        for node in cell.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    seen_by_papermill = inspect_notebook(str(root / "notebooks" / f"{slug}.ipynb"))
    problems = [f"parameter {name} is missing" for name in REQUIRED if name not in found]
    if not any(name.startswith("n_") and p.type == "int" for name, p in found.items()):
        problems.append("no size among the parameters (an int such as n_examples)")
    for name, parameter in found.items():
        if name not in typed:
            problems.append(
                f"parameter {name} has no type: write {name}: {parameter.type} = {parameter.default!r}"
            )
        if not parameter.help:
            problems.append(f"parameter {name} has no comment that explains it")
        if SECRET_NAME.search(name):
            problems.append(
                f"parameter {name} looks like a secret, and parameters are published: read os.environ"
            )
        if name not in seen_by_papermill:
            problems.append(f"papermill does not see parameter {name}: one line, one '=', no '|' in its type")
    return problems
