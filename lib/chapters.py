"""Chapters: find and read the notebooks of `notebooks/`, their parameters and their method."""

import ast
import io
import linecache
import re
import sys
import tokenize
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
from nbformat import NotebookNode
from pydantic import TypeAdapter, ValidationError

from lib import ROOT

SETUP_CELL = """\
REPOSITORY = ""  # the book's build fills this in from _config.yml, for Colab

import importlib.util
import os
import subprocess
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads spin otherwise, and stall other programs
if "google.colab" in sys.modules and importlib.util.find_spec("lib") is None:
    if not REPOSITORY:
        raise RuntimeError("open the chapter with the Colab button of its page: this copy has no repository")
    if not os.path.isdir("/content/worked-papers"):
        subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, "/content/worked-papers"], check=True)
    os.chdir("/content/worked-papers")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-r", "requirements.txt"], check=True)
    sys.path.insert(0, os.getcwd())"""
"""The first code cell of every chapter, with the tags `setup` and `remove-cell`."""

_TYPES = {t.__name__: t for t in (bool, int, float, str, list, dict)}
_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


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


def slugs(root: Path = ROOT) -> list[str]:
    """Names of the written chapters, in alphabetical order: notebooks with facts in `data/papers`.

    Anything else in `notebooks/` (an editor's copy, a system's hidden file) is no chapter.
    """
    described = {path.stem for path in (root / "data" / "papers").glob("*.yml")}
    written = {path.stem for path in (root / "notebooks").glob("*.ipynb") if path.is_file()}
    return sorted(slug for slug in written & described if _SLUG.fullmatch(slug))


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
    except (nbformat.ValidationError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a notebook: {str(error).partition(chr(10))[0]}") from None
    return notebook


def code_cells(notebook: NotebookNode, tag: str | None = None) -> list[NotebookNode]:
    """The code cells, or those with a tag, in order."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return code if tag is None else [cell for cell in code if tag in cell.metadata.get("tags", [])]


def parse(source: str) -> ast.Module:
    """The syntax tree of a cell; IPython's own syntax (`%magic`, `x = !command`) as the calls that it makes.

    Raises:
        SyntaxError: it is neither Python nor IPython.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are the chapter's to show, when it runs
        try:
            return ast.parse(source)
        except SyntaxError:
            from IPython.core.inputtransformer2 import TransformerManager

            return ast.parse(TransformerManager().transform_cell(source))


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
        kind = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else type(default).__name__
        found[target.id] = Parameter(
            target.id, kind, default, comments.get(node.end_lineno or node.lineno, "")
        )
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
        value = values[name]
        try:
            TypeAdapter(eval(parameter.type, {"__builtins__": {}}, _TYPES)).validate_python(
                value, strict=True
            )
        except ValidationError:
            problems.append(f"{name}={value!r}: expected {parameter.type}, as in {parameter.default!r}")
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
