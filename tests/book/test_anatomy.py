"""What `book/authoring.md` asks of a notebook: what is wrong with one is told."""

import nbformat
import pytest
from small_book import PARAMETERS, build, chapter, code, write

from book.run import anatomy
from lib.chapters import SETUP_CELL


@pytest.fixture
def root(tmp_path):
    return build(tmp_path, good=chapter())


def problems(root, notebook):
    write(root, "good", notebook)
    return anatomy.check("good", root)


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


def untagged(tag):
    notebook = chapter()
    notebook.cells[3].metadata.tags.remove(tag)
    return notebook


@pytest.mark.parametrize(
    ("notebook", "problem"),
    [
        (without(0), "the first cell is not Markdown with the title"),
        (without(1), "first code cell is not lib.chapters.SETUP_CELL"),
        (untagged("method"), "no cell is tagged 'method'"),
        (untagged("core"), "no cell is tagged 'core'"),
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


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ('plots.show(fig, alt="It rises.")', 1),
        ('plots.show(fig, alt=f"It rises to {top:.0f}.")', 0),
        ("plots.show(fig, alt=text)", 0),
        ('for ax in axes:\n    ax.set_title("Nine heads")', 1),
        ('ax.set_title("Heads", fontsize=9)', 1),
        ("ax.set_title(message(top))", 0),
        ('finding(r, holds="It rises.", fails="It stays at {0.estimate}.", undecided=f"{n} is too few")', 1),
        ('finding(r, holds="{0.null}", fails="{1.estimate}", undecided="{0.estimate}", untested="No.")', 0),
        ('show(fig, caption="The ten images.")', 0),
    ],
)
def test_what_is_said_of_a_run_is_not_typed(root, said, typed):
    found = problems(root, chapter(code(said)))
    assert len(found) == typed
    assert all("is typed" in problem for problem in found)


def test_method_cells_may_hold_every_kind_of_definition(root):
    source = '"""Words."""\nimport os\nfrom os import path\nSIZE: int = 3\nPair = tuple[int, int]\n\n'
    source += "@staticmethod\ndef f(): ...\n\nclass A: ..."
    assert problems(root, chapter(code(source, "method"))) == []
