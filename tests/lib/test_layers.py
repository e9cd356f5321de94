"""The floors of the library: a module imports from its own floor or from below, and never in a circle."""

import ast
import subprocess
import sys

import pytest

from lib import ROOT

FLOORS = [
    {"sites", "worlds", "stats", "papers", "probes", "plots", "data", "differences"},
    {"models", "hooks", "attention", "claims", "chapters"},
    {"edges", "generate", "organisms", "batch"},
    {"__main__"},
]


def modules():
    """Dotted name -> path of each module of the library."""
    found = {}
    for path in sorted((ROOT / "lib").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name, everywhere):
    """The modules of `lib` that a module imports: when it is imported itself, or (everywhere) at any time.

    What only a type checker imports (`if TYPE_CHECKING`) does not count.
    """
    tree = ast.parse(MODULES[name].read_text())
    tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test))]
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    homes = {}
    for dotted in found:
        while dotted and dotted not in MODULES:
            dotted = dotted.rpartition(".")[0]
        homes[dotted] = True
    return set(homes) - {"", "lib", name}


def floor(name):
    top = name.split(".")[1]
    found = [i for i, names in enumerate(FLOORS) if top in names]
    assert found, f"lib/{top} is on no floor: add it to FLOORS, and to the design"
    return found[0]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "lib"])
def test_a_module_imports_nothing_from_a_higher_floor(name):
    assert [other for other in imports(name, everywhere=True) if floor(other) > floor(name)] == []


def test_no_module_imports_itself_through_others():
    graph = {name: imports(name, everywhere=False) for name in MODULES if name != "lib"}
    done = set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in graph[name]:
                visit(other, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])


@pytest.mark.parametrize("name", ["papers", "claims", "chapters", "stats", "batch", "__main__"])
def test_what_reads_facts_and_runs_chapters_does_not_import_torch(name):
    check = f"import sys, lib.{name}; sys.exit(bool({{'torch', 'distributed'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
