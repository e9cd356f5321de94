"""Builds a small repository for tests of the runner: chapters, a `lib` of its own, facts, an organism."""

from pathlib import Path

import nbformat
import yaml

from lib.chapters import SETUP_CELL

PARAMETERS = """\
model: str = "tiny"  # an organism
seed: int = 0  # of everything random
n_examples: int = 8  # how many
device: str = "auto"  # cpu, cuda
dtype: str = "auto"  # float32, bfloat16
rate: float = 0.5  # a number
layers: list[int] = [1, 2]  # a list
"""

FACE = """\
from importlib import import_module

HOMES = {"one": "first", "two": "second"}


def __getattr__(name):
    return getattr(import_module(f"lib.{HOMES[name]}"), name)
"""

FACTS = {
    "short": "Small",
    "authors": ["A. Person"],
    "year": 2024,
    "venue": "arXiv preprint",
    "bibtex": "person2024small",
    "area": "understanding",
    "status": "written",
    "basis": "Full text.",
    "asks": "What?",
    "finds": "This.",
    "organisms": ["tiny"],
    "models": [],
    "presets": {"smoke": {"n_examples": 2}, "organism": {}, "gpu": {"device": "cuda"}},
    "claims": [
        {
            "text": "It is so.",
            "statistic": "a difference",
            "null": "nothing",
            "no_twin": "Nothing is trained.",
            "rule": {"direction": "greater", "size": 1.0, "null": 0.0},
        }
    ],
}


def code(source: str, *tags: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)} if tags else {})


def chapter(
    *cells: str | nbformat.NotebookNode, parameters: str | None = PARAMETERS
) -> nbformat.NotebookNode:
    """A chapter of the right anatomy; a cell given as text is a plain code cell."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.cells = [nbformat.v4.new_markdown_cell("# A chapter"), code(SETUP_CELL, "setup", "remove-cell")]
    if parameters is not None:
        notebook.cells.append(code(parameters, "parameters"))
    notebook.cells.append(code("def double(x):\n    return 2 * x", "method", "core"))
    notebook.cells += [code(cell) if isinstance(cell, str) else cell for cell in cells]
    return notebook


def build(root: Path, **chapters: nbformat.NotebookNode) -> Path:
    """Write a repository; a chapter `a_b` gets the slug `a-b`."""
    for folder in ("notebooks", "data/papers", "data/models/tiny", "lib"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "data/models/tiny/config.json").write_text("{}")
    (root / "lib/__init__.py").write_text(FACE)
    (root / "lib/first.py").write_text("from lib.base import BASE\n\none = BASE + 1\n")
    (root / "lib/second.py").write_text("two = 2\n")
    (root / "lib/base.py").write_text("BASE = 0\n")
    for name, notebook in chapters.items():
        write(root, name.replace("_", "-"), notebook)
    return root


def write(root: Path, slug: str, notebook: nbformat.NotebookNode) -> None:
    nbformat.write(notebook, root / "notebooks" / f"{slug}.ipynb")
    claims = [{"id": f"{slug}.1", **claim} for claim in FACTS["claims"]]
    facts = {"slug": slug, "title": slug, **FACTS, "claims": claims}
    (root / f"data/papers/{slug}.yml").write_text(yaml.safe_dump(facts, sort_keys=False))
