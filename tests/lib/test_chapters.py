"""Chapters: their anatomy, their parameters, and the import of their method."""

import ast
import pickle
import shutil
import subprocess
import sys

import nbformat
import papermill
import pytest
from small_book import PARAMETERS, build, chapter, code, write

from book.run import anatomy
from lib import ROOT, chapters
from lib.chapters import SETUP_CELL


@pytest.fixture
def root(tmp_path):
    return build(tmp_path, good=chapter())


def problems(root, notebook):
    write(root, "good", notebook)
    return anatomy.check("good", root)


@pytest.mark.parametrize("slug", chapters.slugs())
def test_every_chapter_has_the_anatomy(slug):
    assert anatomy.check(slug) == []
    assert vars(chapters.method(slug))


def test_a_chapter_of_the_right_anatomy_has_no_problems(root):
    assert anatomy.check("good", root) == []


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        (PARAMETERS.replace("seed: int = 0", "sed: int = 0"), "parameter seed is missing"),
        (PARAMETERS.replace("n_examples", "examples"), "no size"),
        (PARAMETERS.replace("seed: int = 0", "seed = 0"), "seed has no type: write seed: int = 0"),
        (PARAMETERS.replace("  # of everything random", ""), "seed has no comment"),
        (PARAMETERS + 'hf_token: str = ""  # of the hub', "hf_token looks like a secret"),
        (PARAMETERS + "x: int | None = None  # x", "papermill does not see parameter x"),
        (PARAMETERS + "x: int = 1  # where y=2", "papermill does not see parameter x"),
        (PARAMETERS + "x: int = 1.5  # x", "x=1.5: expected int"),
        (PARAMETERS + "x: Path = 1  # x", "type 'Path': a parameter is one of bool, int"),
        (PARAMETERS + "x: int = 1 + y  # x", "only assign literals to names, not: x: int = 1 + y"),
        (PARAMETERS + "x, y = 1, 2  # x", "only assign literals to names, not: x, y = 1, 2"),
        (PARAMETERS + "x: int  # x", "only assign literals to names, not: x: int"),
        (PARAMETERS + "import os", "only assign literals to names, not: import os"),
        (PARAMETERS + "x: int =", "not valid Python"),
        (None, "has 0 cells tagged 'parameters'"),
    ],
)
def test_a_wrong_parameters_cell_is_told(root, parameters, problem):
    found = problems(root, chapter(parameters=parameters))
    assert len(found) == 1
    assert problem in found[0]


def with_setup(source, *tags):
    notebook = chapter()
    notebook.cells[1] = code(source, *tags)
    return notebook


def with_output():
    notebook = chapter("1")
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text="1")]
    return notebook


def without(index):
    notebook = chapter()
    del notebook.cells[index]
    return notebook


@pytest.mark.parametrize(
    ("notebook", "problem"),
    [
        (without(0), "the first cell is not Markdown with the title"),
        (without(1), "first code cell is not lib.chapters.SETUP_CELL"),
        (without(3), "no cell is tagged 'method'"),
        (
            with_setup(SETUP_CELL + " ", "setup", "remove-cell"),
            "first code cell is not lib.chapters.SETUP_CELL",
        ),
        (with_setup(SETUP_CELL, "setup"), "first code cell is not lib.chapters.SETUP_CELL"),
        (with_output(), "cell 5: outputs are not stripped"),
        (chapter(code("x", "paramters")), "cell 5: unknown tag 'paramters'; did you mean 'parameters'?"),
        (chapter(code("data = load()", "method")), "definitions and CONSTANTS only, not: data = load()"),
        (chapter(code("for i in x:\n    print()", "method")), "CONSTANTS only, not: for i in x:"),
        (chapter(code("print(1)", "method")), "CONSTANTS only, not: print(1)"),
        (chapter(code("x = = 1", "method")), "cell 5: neither Python nor IPython"),
    ],
)
def test_a_wrong_cell_is_told(root, notebook, problem):
    found = problems(root, notebook)
    assert len(found) == 1
    assert problem in found[0]


def test_the_core_of_a_chapter_may_be_tagged(root):
    assert problems(root, chapter(code("1", "core"))) == []


def test_method_cells_may_hold_every_kind_of_definition(root):
    source = '"""Words."""\nimport os\nfrom os import path\nSIZE: int = 3\nPair = tuple[int, int]\n\n'
    source += "@staticmethod\ndef f(): ...\n\nclass A: ..."
    assert problems(root, chapter(code(source, "method"))) == []


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
