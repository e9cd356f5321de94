"""What decides a result: the key of a run, and the values of its parameters."""

import nbformat
import numpy as np
import pytest
from small_book import PARAMETERS, build, chapter, code, write

from book.run import key
from book.run.plan import plan_runs
from book.run.values import LONGEST_NAME, convert, run_name, split_values
from lib.chapters import Parameter


def plan(root, **options):
    arguments = {"slugs": None, "preset": "organism", "parameters": None, "sweep": None, **options}
    return plan_runs(**arguments, root=root)


def keys(root, **options):
    return {job.name: job.key for job in plan(root, **options)}


def edit(root, name, text):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def with_cell(source):
    return lambda root: write(root, "a", chapter(source))


@pytest.fixture
def small(tmp_path):
    """Chapter a rests on lib/first and lib/base, b on lib/second, c on the method of a."""
    return build(
        tmp_path,
        a=chapter("from lib.first import one\none"),
        b=chapter("import lib.second\nlib.second.two"),
        c=chapter(
            "from lib.chapters import method\nmethod('a').double(2)",
            parameters=PARAMETERS.replace("tiny", "x"),
        ),
    )


@pytest.mark.parametrize(
    ("change", "affected"),
    [
        (lambda root: edit(root, "lib/base.py", "BASE = 1\n"), "ac"),
        (lambda root: edit(root, "lib/first.py", "one = 5\n"), "a"),
        (lambda root: edit(root, "lib/second.py", "two = 3\n"), "b"),
        (lambda root: edit(root, "lib/second.py", '"""Words."""\ntwo = 2  # a comment\n'), ""),
        (lambda root: edit(root, "lib/third.py", "three = 3\n"), ""),
        (lambda root: edit(root, "data/models/tiny/config.json", "{} "), "ab"),
        (lambda root: edit(root, "data/models/tiny-seed1/config.json", "{} "), "ab"),
        (lambda root: edit(root, "data/models/other/config.json", "{}"), ""),
        (lambda root: edit(root, "README.md", "changed"), ""),
        (lambda root: edit(root, "data/papers/b.yml", (root / "data/papers/b.yml").read_text() + "\n"), "b"),
        (lambda root: edit(root, "data/results/b--steps=9.json", "{}"), "b"),
        (with_cell("from lib.first import one\none + 0"), "a"),
        (with_cell(code("from lib.first import one\none", "hide-input")), "a"),
    ],
)
def test_a_change_affects_just_the_chapters_that_rest_on_it(small, change, affected):
    if "c" in affected:  # the method of a is what ties c to lib
        write(
            small, "a", chapter("from lib.first import one\none", code("from lib.base import BASE", "method"))
        )
    before = keys(small)
    change(small)
    after = keys(small)
    assert {name for name in before if before[name] != after[name]} == set(affected)


def test_prose_and_what_an_earlier_run_left_do_not_decide_a_result(small):
    before = keys(small)
    notebook = chapter("from lib.first import one\none")
    notebook.cells.insert(2, nbformat.v4.new_markdown_cell("More words."))
    notebook.cells.insert(4, code("# Parameters\nseed = 5", "injected-parameters"))
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text="1")]
    notebook.cells[-1].execution_count = 3
    write(small, "a", notebook)
    assert keys(small) == before


def test_a_changed_method_affects_the_chapters_that_import_it(small):
    before = keys(small)
    notebook = chapter("from lib.first import one\none")
    notebook.cells[3].source = "def double(x):\n    return x + x"
    write(small, "a", notebook)
    assert [name for name in before if keys(small)[name] != before[name]] == ["a", "c"]


@pytest.mark.parametrize(
    "statement",
    [
        "import lib.first",
        "import lib.first as f",
        "from lib import first",
        "from lib.first import one",
        "from lib.first import *",
        "import lib\nlib.first.one",
        "def f():\n    from lib.first import one",
        "from importlib import import_module\nimport_module('lib.first')",
        "%matplotlib inline\nfrom lib.first import one",
        "files = !ls\nfrom lib.first import one",
        "from lib.package.inner import deep",
        "from data.kept import one",
    ],
)
def test_every_way_to_import_is_seen(tmp_path, statement):
    root = build(tmp_path, a=chapter(statement))
    edit(root, "lib/package/__init__.py", "from . import inner\n")
    edit(root, "lib/package/inner.py", "from ..first import one as deep\n")
    edit(root, "data/kept.py", "from lib.first import one\n")
    before = keys(root)
    edit(root, "lib/base.py", "BASE = 7\n")
    assert keys(root) != before


def test_imports_for_the_type_checker_only_do_not_count(tmp_path):
    root = build(tmp_path, a=chapter("import lib.third"))
    edit(root, "lib/third.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import lib.base\n")
    before = keys(root)
    edit(root, "lib/base.py", "BASE = 7\n")
    assert keys(root) == before


def test_the_version_of_every_imported_package_decides(tmp_path, monkeypatch):
    root = build(tmp_path, a=chapter("import PIL.Image, scipy"), b=chapter("from lib.third import x"))
    edit(root, "lib/third.py", "import yaml\nx = 1\n")
    labels = {job.name: {n for n in job.manifest if n.startswith("package ")} for job in plan(root)}
    assert labels == {"a": {"package PIL", "package scipy"}, "b": {"package yaml"}}
    before = keys(root)
    monkeypatch.setattr(key, "package_version", lambda name: "0" if name == "yaml" else "1")
    monkeypatch.setattr(key.platform, "python_version", lambda: "3.99")
    assert not set(before.values()) & set(keys(root).values())
    python = keys(root)
    monkeypatch.setattr(key, "package_version", lambda name: "1")
    assert [name for name in python if keys(root)[name] != python[name]] == ["b"]


def test_parameters_and_the_files_that_they_name_decide(small, tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    before = keys(small)["a"]
    assert keys(small, parameters={"seed": 1})["a"] != before
    assert keys(small, parameters={"seed": 0})["a"] == before
    for value, file in {
        str(home / "checkpoint"): home / "checkpoint/model.safetensors",
        "~/folder": home / "folder/deep/texts.txt",
        "~/texts.txt": home / "texts.txt",
        "texts/T.txt": small / "texts/T.txt",
    }.items():
        edit(file.parent, file.name, "old")
        local = keys(small, parameters={"model": value})["a"]
        edit(file.parent, file.name, "newer")
        assert keys(small, parameters={"model": value})["a"] != local, value


ODD = [
    "/",
    ".",
    "..",
    "~nobody/x",
    "word " * 60,
    "x" * 5000,
    "a\0b",
    "a\nb",
    "",
    " ",
    "бы/" * 90,
    "://",
    "*",
]


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_a_text_is_never_taken_for_a_path_that_it_is_not(small, value):
    job = plan(small, slugs=["a"], parameters={"model": value})[0]
    assert job.parameters["model"] == value
    assert {label.partition(" ")[0] for label in job.manifest} <= {
        *("code", "python", "package", "parameter", "lib/__init__.py", "lib/first.py", "lib/base.py"),
        *("data/papers/a.yml", "data/models/tiny"),  # its code names the organism
    }
    swept = plan(small, slugs=["a"], sweep={"model": [value, "short"]})
    for name in (f"{job.name}.ipynb" for job in swept):
        (small / name).touch()  # a file system takes it
        assert len(name.encode()) <= LONGEST_NAME + 6


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("open('data/words.txt')", True),
        ("!cat data/words.txt | head", True),
        ("%%bash\nsort < data/words.txt", True),
        ("x = 'words.txt'", False),
        ("x = 'see data/words.txt, it says'", True),  # too much is better than too little
        ("x = '/etc/passwd'", False),
    ],
)
def test_files_of_the_repository_that_the_code_names_decide(tmp_path, source, named):
    root = build(tmp_path, a=chapter(source.replace("words.txt,", "words.txt ,")))
    edit(root, "data/words.txt", "old")
    before = keys(root)
    edit(root, "data/words.txt", "new")
    assert (keys(root) != before) is named


# A chapter, or what it rests on, is damaged


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("notebooks/bad.ipynb", '{"cells": ', "bad.ipynb is not a notebook"),
        ("notebooks/bad.ipynb", "[]", "bad.ipynb is not a notebook"),
        ("notebooks/bad.ipynb", "", "bad.ipynb is not a notebook"),
        ("notebooks/bad.ipynb", chapter("x = = 1"), "code cell 3 is not valid Python"),
        ("notebooks/bad.ipynb", chapter(parameters=None), "has 0 cells tagged 'parameters'"),
        ("notebooks/bad.ipynb", chapter(code("x: int = 1", "parameters")), "has 2 cells tagged 'parameters'"),
        ("notebooks/bad.ipynb", chapter(parameters="x: int = 1.5  # x"), "x=1.5: expected int"),
        ("data/papers/bad.yml", "slug: [", "bad.yml"),
        ("data/papers/bad.yml", "slug: other", "bad.yml"),
        ("lib/second.py", "x = = 1", "lib/second.py is not valid Python"),
    ],
)
def test_a_damaged_chapter_fails_alone_and_is_named(tmp_path, name, text, problem):
    root = build(tmp_path, good=chapter("1"), bad=chapter("import lib.second"))
    edit(root, name, text if isinstance(text, str) else nbformat.writes(text))
    bad, good = plan(root)
    assert (bad.slug, good.slug) == ("bad", "good")
    assert problem in bad.problem
    assert not good.problem


def test_presets_that_name_no_parameter_are_the_chapters_own_fault(tmp_path):
    root = build(tmp_path, typo=chapter(), b=chapter())
    facts = (root / "data/papers/typo.yml").read_text()
    edit(root, "data/papers/typo.yml", facts.replace("n_examples: 2", "n_example: 2"))
    problems = {job.slug: job.problem for job in plan(root, preset="smoke")}
    assert "typo.yml, preset smoke" in problems["typo"]
    assert "did you mean 'n_examples'" in problems["typo"]
    assert not problems["b"]


# Values


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("int", "-3", -3),
        ("int", "010", 10),  # YAML 1.1 says 8
        ("float", "1e-3", 0.001),
        ("float", "2", 2.0),
        ("bool", "true", True),
        ("bool", "False", False),
        ("str", "3", "3"),
        ("str", "true", "true"),
        ("str", "'quoted'", "'quoted'"),
        ("str", "[1, 2]", "[1, 2]"),
        ("str", "1:30", "1:30"),
        ("str", "", ""),
        ("list[int]", "[1, 2]", [1, 2]),
        ("list[int]", "[010, 1]", [10, 1]),
        ("list[str]", "[a, 'b']", ["a", "b"]),
        ("list[str]", "[no, 1:30, 010]", ["no", "1:30", "010"]),
        ("list[float]", "[1, .5]", [1.0, 0.5]),
        ("dict", "{'a': 1}", {"a": 1}),
        ("dict", '{"a": "1"}', {"a": "1"}),
    ],
)
def test_text_is_read_in_the_parameters_type_as_papermill_does(kind, text, value):
    converted = convert(Parameter("x", kind, None, ""), text)
    assert converted == value
    assert type(converted) is type(value)
    assert convert(Parameter("x", kind, None, ""), value) == value


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int", "1.0"),
        ("int", "x"),
        ("int", "1:30"),
        ("int", "0x10"),
        ("int", True),
        ("int", 1.0),
        ("bool", 1),
        ("bool", "1"),
        ("bool", "no"),
        ("float", "[1]"),
        ("list[int]", "[1.5]"),
        ("list[int]", "[1:30]"),
        ("list[bool]", "[yes]"),
        ("list", "{1, 2}"),
        ("list", "[" * 100_000),
        ("dict", "{(1, 2): 3}"),
        ("str", 3),
        ("str", "half a character: \udcff"),
    ],
)
def test_a_value_of_another_type_is_refused(kind, value):
    with pytest.raises(ValueError, match=r"x=.*: expected .*, for example 7") as error:
        convert(Parameter("x", kind, 7, ""), value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("kind", "value", "plain"),
    [
        ("int", np.int64(3), 3),
        ("float", np.float32(0.5), 0.5),
        ("bool", np.bool_(True), True),
        ("str", np.str_("x"), "x"),
        ("list[int]", np.arange(3), [0, 1, 2]),
    ],
)
def test_numpy_values_are_plain_values(kind, value, plain):
    converted = convert(Parameter("x", kind, None, ""), value)
    assert (converted, type(converted)) == (plain, type(plain))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0,1,2", ["0", "1", "2"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("[[1,2],[3]],[]", ["[[1,2],[3]]", "[]"]),
        ("'a, b',c", ["a, b", "c"]),
        ('"a, b","c"', ["a, b", "c"]),
        ("['a,]', b],c", ["['a,]', b]", "c"]),
        ("don't,can't", ["don't", "can't"]),
        ("", [""]),
        ("a,", ["a", ""]),
    ],
)
def test_a_sweep_is_apart_at_commas_but_not_within_quotes_or_brackets(text, values):
    assert split_values(text) == values


@pytest.mark.parametrize("text", ["[1,2", "'a,b", "1]"])
def test_a_quote_or_bracket_without_a_partner_is_told(text):
    with pytest.raises(ValueError, match="has no partner"):
        split_values(text)


def test_a_sweep_is_the_product_of_its_values(small):
    names = keys(small, slugs=["a"], sweep={"seed": ["0", "1"], "model": ["x/y", "tiny"]})
    assert list(names) == [f"a--seed={s}--model={m}" for s in (0, 1) for m in ("x%2Fy", "tiny")]
    assert len(set(names.values())) == 4


def test_long_values_keep_their_names_apart():
    one, two = (run_name("a", {"prompt": "x" * 300 + end}) for end in "12")
    assert one != two
    assert len(one) <= LONGEST_NAME
    assert one.startswith("a--prompt=xxx")
