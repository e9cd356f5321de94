"""The library's pages: one for each module of `lib` and `data`, written when Sphinx starts.

They are found, not listed: a module that comes or goes brings or takes its page.
"""

import ast
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective

from book.site.templates import template
from lib import ROOT

FLOORS = ("lib", "data")
FOLDER = "book/api"
MADE = "<!-- Made from the module when the site is built. -->"


def modules() -> dict[str, ast.Module]:
    """Name -> source of each module that has a page: no command, no package without code."""
    found = {}
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[-1] == "__init__" and any(isinstance(node, ast.FunctionDef) for node in tree.body):
                parts = parts[:-1]
            if not parts[-1].startswith("_"):
                found[".".join(parts)] = tree
    return found


def summary(source: ast.Module) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(source) or "").partition("\n")[0]


def write_pages(app: Sphinx, config: Config) -> None:
    """Write the page of each module, and remove those of modules that are gone."""
    folder = Path(app.srcdir, FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    pages = {}
    for name in modules():
        pages[folder / f"{name}.md"] = template("module.md").render(made=MADE, name=name)
    for path in folder.glob("*.md"):
        if path not in pages and path.read_text(encoding="utf-8").startswith(MADE):
            path.unlink()
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")


class Modules(SphinxDirective):
    """`{modules}` with a package's name: its modules, with a link and a line each."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        package = self.arguments[0]
        inside = {
            name: summary(source)
            for name, source in modules().items()
            if package in (name, name.rpartition(".")[0])
        }
        if not inside:
            raise self.error(f"modules: no module in the package {package!r}")
        lines = [f"- {{doc}}`{name} </{FOLDER}/{name}>`: {line}" for name, line in inside.items()]
        list_of_modules = nodes.container(classes=["modules"])
        self.state.nested_parse(StringList(lines, source=package), 0, list_of_modules)
        return [list_of_modules]


def setup(app: Sphinx) -> None:
    app.add_directive("modules", Modules)
    app.connect("config-inited", write_pages, priority=100)  # before the contents' globs are looked up
