"""The anatomy of a chapter: what `book/authoring.md` asks of a notebook, checked."""

import ast
from collections.abc import Iterator
from pathlib import Path

from nbformat import NotebookNode

from book.run.redact import SECRET_NAME
from book.run.values import convert
from lib import ROOT, chapters
from lib.chapters import SETUP_CELL, code_cells, did_you_mean, parse

TAGS = {"setup", "parameters", "method", "core", "full-width", "margin", "scroll-output"}
TAGS |= {"remove-stdout", "remove-stderr"}
TAGS |= {f"{action}-{part}" for action in ("hide", "remove") for part in ("cell", "input", "output")}
TITLES = ("set_title", "suptitle")
SAYING = {"show": ("alt",), "finding": ("holds", "smaller", "fails", "undecided")} | dict.fromkeys(TITLES, ())
"""Calls -> their arguments that say what came out."""
REQUIRED = ("model", "seed", "device", "dtype")


def check(slug: str, root: Path = ROOT) -> list[str]:
    """What is wrong with a chapter's anatomy, one sentence each; an empty list if nothing is."""
    notebook = chapters.read(slug, root)
    code = code_cells(notebook)
    problems = []
    first = notebook.cells[0] if notebook.cells else None
    if not (first and first.cell_type == "markdown" and first.source.startswith("# ")):
        problems.append("the first cell is not Markdown with the title (# ...)")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        problems.append("metadata.kernelspec.name is not 'python3'")
    tags = {"setup", "remove-cell"}
    if not code or code[0].source != SETUP_CELL or set(code[0].metadata.get("tags", [])) != tags:
        problems.append(
            "the first code cell is not lib.chapters.SETUP_CELL with the tags setup and remove-cell"
        )
    problems += [f"no cell is tagged {tag!r}" for tag in ("method", "core") if not code_cells(notebook, tag)]
    for i, cell in enumerate(notebook.cells, 1):
        problems += [f"cell {i}: {problem}" for problem in _cell(cell)]
    try:
        return problems + _parameters(slug, root)
    except ValueError as error:
        return [*problems, str(error)]


def _cell(cell: NotebookNode) -> list[str]:
    tags = set(cell.metadata.get("tags", []))
    problems = [f"unknown tag {tag!r}; {did_you_mean(tag, TAGS)}" for tag in sorted(tags - TAGS)]
    if cell.cell_type == "code" and (cell.outputs or cell.execution_count is not None):
        problems.append("outputs are not stripped")
    try:
        body = parse(cell.source).body if cell.cell_type == "code" and "parameters" not in tags else []
    except SyntaxError as error:
        return [*problems, f"neither Python nor IPython: {error}"]
    for node in body if "method" in tags else []:
        if not _is_definition(node):
            line = (ast.get_source_segment(cell.source, node) or "").splitlines()[0]
            problems.append(f"a method cell holds definitions and CONSTANTS only, not: {line}")
    return problems + [problem for node in body for problem in _typed(node)]


def _typed(tree: ast.AST) -> Iterator[str]:
    """What a run cannot have said: alt texts, titles and findings without a number or name from it."""
    for node in ast.walk(tree):
        called = (
            getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
        )
        if not isinstance(node, ast.Call) or called not in SAYING:
            continue
        said = [keyword.value for keyword in node.keywords if keyword.arg in SAYING[called]]
        for value in said + (node.args[:1] if called in TITLES else []):
            parts = list(ast.walk(value))
            texts = [part.value for part in parts if isinstance(part, ast.Constant)]
            is_made = any(isinstance(part, ast.FormattedValue | ast.Name | ast.Call) for part in parts)
            if not is_made and not (called == "finding" and any("{" in str(text) for text in texts)):
                yield f"{called}: {' '.join(map(str, texts))!r} is typed; take what came out from the run"


def _is_definition(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign | ast.AnnAssign):  # a constant or a type alias
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return all(isinstance(t, ast.Name) and t.id.lstrip("_")[:1].isupper() for t in targets)
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)


def _parameters(slug: str, root: Path) -> list[str]:
    from papermill import inspect_notebook

    found = chapters.parameters(slug, root)
    cell = parse(code_cells(chapters.read(slug, root), "parameters")[0].source)
    typed = {node.target.id for node in cell.body if isinstance(node, ast.AnnAssign)}  # type: ignore[union-attr]
    seen_by_papermill = inspect_notebook(str(root / "notebooks" / f"{slug}.ipynb"))
    problems = [f"parameter {name} is missing" for name in REQUIRED if name not in found]
    if not any(name.startswith("n_") and p.type == "int" for name, p in found.items()):
        problems.append("no size among the parameters (an int such as n_examples)")
    for name, parameter in found.items():
        convert(parameter, parameter.default)
        if name not in typed:
            line = f"{name}: {parameter.type} = {parameter.default!r}"
            problems.append(f"parameter {name} has no type: write {line}")
        if not parameter.help:
            problems.append(f"parameter {name} has no comment that explains it")
        if SECRET_NAME.search(name):
            problems.append(
                f"parameter {name} looks like a secret, and parameters are published: read os.environ"
            )
        if name not in seen_by_papermill:
            problems.append(f"papermill does not see parameter {name}: one line, one '=', no '|' in its type")
    return problems
