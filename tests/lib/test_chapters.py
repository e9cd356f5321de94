"""Chapters: their parameters, and the import of their method."""

import ast
import pickle
import shutil
import subprocess
import sys

import papermill
import pytest
from small_book import PARAMETERS, build, chapter, code, write

from lib import ROOT, chapters
from lib.chapters import SETUP_CELL


@pytest.fixture
def root(tmp_path):
    return build(tmp_path, good=chapter())


def test_parameters_are_those_that_papermill_sees(root):
    ours = chapters.parameters("good", root)
    theirs = papermill.inspect_notebook(str(root / "notebooks/good.ipynb"))
    assert list(ours) == list(theirs)
    for name, parameter in ours.items():
        assert repr(parameter.default) == theirs[name]["default"].replace('"', "'")
        assert (parameter.type, parameter.help) == (theirs[name]["inferred_type_name"], theirs[name]["help"])


@pytest.mark.parametrize(
    ("source", "calls"),
    [
        ("%matplotlib inline", "run_line_magic"),
        ("files = !ls /", "getoutput"),
        ("for x in range(3):\n    !echo {x}", "system"),
        ("%%bash\nfor x in a b; do echo $x; done", "run_cell_magic"),
        ("len?", "run_line_magic"),
    ],
)
def test_ipythons_own_syntax_is_parsed_as_the_calls_that_it_makes(source, calls):
    tree = chapters.parse(source)
    assert calls in {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_what_is_neither_python_nor_ipython_is_told():
    with pytest.raises(SyntaxError):
        chapters.parse("x = = 1")


def test_copies_and_hidden_files_are_no_chapters(root):
    for name in ("._good", ".#good", "good-Copy1", "good (1)", "no-facts"):
        shutil.copy(root / "notebooks/good.ipynb", root / f"notebooks/{name}.ipynb")
    (root / "notebooks/folder.ipynb").mkdir()
    assert chapters.slugs(root) == ["good"]


def test_method_runs_the_method_cells_and_nothing_else(root):
    source = "from dataclasses import dataclass\n\n@dataclass\nclass Pair:\n    x: int\n\n"
    source += "def fail():\n    return 1 / 0"
    write(root, "good", chapter("raise SystemExit", code(source, "method")))
    method = chapters.method("good", root)
    assert method.double(3) == 6
    assert not hasattr(method, "seed")
    assert pickle.loads(pickle.dumps(method.Pair(3))) == method.Pair(3)
    with pytest.raises(ZeroDivisionError) as error:
        method.fail()
    assert "return 1 / 0" in str(error.traceback[-1])
    assert "notebooks/good.ipynb, cell 6" in str(error.traceback[-1].path)


def test_what_is_no_chapter_is_told(root):
    with pytest.raises(LookupError, match=r"no chapter 'god'.*did you mean 'good'"):
        chapters.read("god", root)
    write(root, "plain", chapter())
    (root / "notebooks/plain.ipynb").write_text('{"cells": ')
    with pytest.raises(ValueError, match=r"plain.ipynb is not a notebook"):
        chapters.read("plain", root)


@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_the_setup_cell_lets_idle_threads_sleep_unless_the_user_says_otherwise(given, policy):
    """Before torch loads OpenMP, which reads it once: any way to run a chapter takes the same time."""
    source = SETUP_CELL + "\nprint(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", source], env=given, capture_output=True, text=True)
    assert done.stdout == f"{policy} False\n"


@pytest.mark.parametrize("repository", ["", "x"])
def test_the_setup_cell_does_nothing_but_on_colab(tmp_path, repository):
    """Elsewhere nothing; on Colab it clones and installs, or says what to do where it knows no repository."""
    bare = [sys.executable, "-I", "-S", "-c"]
    assert subprocess.run([*bare, SETUP_CELL], cwd=tmp_path, check=True, capture_output=True).stdout == b""
    colab = "import sys, types\nsys.modules['google.colab'] = types.ModuleType('colab')\n"
    colab += "import subprocess\nsubprocess.run = lambda command, **_: print(command[:3])\n"
    colab += "import os\nos.chdir = lambda folder: print(folder)\n"
    cell = SETUP_CELL.replace('REPOSITORY = ""', f'REPOSITORY = "{repository}"')
    done = subprocess.run([*bare, colab + cell], cwd=tmp_path, capture_output=True, text=True)
    if repository:
        assert "['git', 'clone', '--depth']\n/content/worked-papers\n" in done.stdout
    else:
        assert "Colab button" in done.stderr


def test_the_setup_cell_is_as_ruff_would_write_it(tmp_path):
    ruff = shutil.which("ruff", path=f"{sys.prefix}/bin") or "ruff"
    options = ["--stdin-filename", str(ROOT / "notebooks/setup.py"), "-"]
    done = subprocess.run(
        [ruff, "format", *options], input=SETUP_CELL, capture_output=True, text=True, check=True
    )
    assert done.stdout.rstrip("\n") == SETUP_CELL


def test_parameters_outside_their_declared_range_are_named_together(tmp_path):
    declared = PARAMETERS.replace("# how many", "# how many; 2 to 64").replace(
        "# a number", "# a rate; above 0"
    )
    declared = declared.replace("# a list", "# which; at least 0").replace(
        "# cpu, cuda", "# where; one of auto, cpu"
    )
    root = build(tmp_path, a=chapter(parameters=declared))
    good = {"model": "x", "seed": 0, "n_examples": 2, "device": "cpu", "dtype": "auto", "rate": 0.1}
    chapters.check_parameters("a", good | {"layers": [0, 3], "unrelated": object()}, root)
    bad = good | {"n_examples": 65, "rate": 0.0, "layers": [0, -1], "device": "gpu", "seed": "x"}
    with pytest.raises(ValueError, match="n_examples=65: expected 2 to 64") as caught:
        chapters.check_parameters("a", bad, root)
    told = str(caught.value).splitlines()
    assert len(told) == 5
    for part in ("rate=0.0: expected more than 0", "layers=[0, -1]: expected at least 0", "one of auto, cpu"):
        assert part in str(caught.value)
