"""How the book is put together: staging, the extension's parts, and addresses that stand in one place."""

import json
import re
import subprocess
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from sphinx.ext.napoleon import GoogleDocstring

from book.site import api, docstrings, figures, maths, replace, results, tables, templates, theme
from book.site import build as book
from lib import ROOT, chapters, papers

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
REPOSITORY = CONFIG["repository"]["url"]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of one chapter, `small`, with the book's real configuration."""
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.v4.new_notebook()
    setup = nbformat.v4.new_code_cell(chapters.SETUP_CELL, metadata={"tags": ["setup", "remove-cell"]})
    notebook.cells = [nbformat.v4.new_markdown_cell("# Small"), setup]
    nbformat.write(notebook, tmp_path / "notebooks" / "small.ipynb")
    (tmp_path / "_config.yml").write_text((ROOT / "_config.yml").read_text())
    toc = {"format": "jb-book", "root": "book/index", "chapters": [{"file": "notebooks/small"}]}
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump(toc))
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "index.md").write_text("# A book\n")
    monkeypatch.setattr(book, "ROOT", tmp_path)
    monkeypatch.setattr(replace, "ROOT", tmp_path)
    monkeypatch.setattr(chapters, "slugs", lambda root=tmp_path: ["small"])
    monkeypatch.setattr(
        chapters, "read", lambda slug, root=tmp_path: nbformat.read(tmp_path / f"notebooks/{slug}.ipynb", 4)
    )
    return tmp_path


def executed(folder, text="ran"):
    notebook = nbformat.read(folder / "notebooks" / "small.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_markdown_cell(text))
    nbformat.write(notebook, folder / "executed.ipynb")
    return folder / "executed.ipynb"


def test_staging_takes_the_executed_notebook_and_fills_in_the_repository(repository):
    stage = book.stage({"small": executed(repository)}, {}, repository / "stage")
    staged = nbformat.read(stage / "notebooks" / "small.ipynb", as_version=4)
    assert staged.cells[-1].source == "ran"
    assert f'REPOSITORY = "{REPOSITORY}"' in staged.cells[1].source
    assert yaml.safe_load((stage / "_config.yml").read_text())["execute"]["execute_notebooks"] == "off"
    compile(staged.cells[1].source, "setup cell", "exec")


def test_a_chapter_that_died_is_staged_as_it_is_with_its_error(repository):
    stage = book.stage({}, {"small": "the kernel died"}, repository / "stage")
    staged = nbformat.read(stage / "notebooks" / "small.ipynb", as_version=4)
    assert staged.metadata.worked_papers["error"] == "the kernel died"


def test_a_chapter_that_the_contents_forget_is_an_error(repository):
    (repository / "_toc.yml").write_text("format: jb-book\nroot: book/index\n")
    with pytest.raises(ValueError, match=r"_toc\.yml does not list notebooks/small"):
        book.stage({}, {}, repository / "stage")


def test_a_stage_is_made_in_no_folder_that_holds_something(repository):
    (repository / "stage").mkdir()
    (repository / "stage" / "mine").touch()
    with pytest.raises(ValueError, match="stage is not empty"):
        book.stage({}, {}, repository / "stage")
    assert [path.name for path in (repository / "stage").iterdir()] == ["mine"]


def fake_jupyter_book(monkeypatch, pages, status=0, log=""):
    """A stand-in for `jupyter-book build` that writes some pages and exits with some status."""

    def run(command, *, stdout, **options):
        html = command[command.index("--path-output") + 1] + "/_build/html/"
        for page in pages:
            (path := book.Path(html + page)).parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page)
        replace.note_written(book.Path(html), [])  # as the extension does when Sphinx ends
        stdout.write(log.encode())
        return SimpleNamespace(returncode=status)

    monkeypatch.setattr(book.subprocess, "run", run)


PAGES = ["book/index.html", "notebooks/small.html", "index.html", "search.html", "404.html", "sitemap.xml"]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_rendering_replaces_the_old_site_and_only_that(repository, monkeypatch):
    out = repository / "site"
    fake_jupyter_book(monkeypatch, [*PAGES, "stale.html"])
    assert book.render(book.stage({}, {}, repository / "stage"), out) == out / "index.html"
    fake_jupyter_book(monkeypatch, PAGES)
    stage = book.stage({}, {}, repository / "another")
    book.render(stage, out)
    assert files(out) == sorted([*PAGES, replace.MARKER])
    (out / "mine.txt").touch()
    fake_jupyter_book(monkeypatch, PAGES)
    with pytest.raises(ValueError, match=r"not an earlier site's \(mine\.txt\)"):
        book.render(stage, out)
    assert files(out) == sorted([*PAGES, replace.MARKER, "mine.txt"])
    assert not [path for path in repository.iterdir() if path.name.startswith(".")]  # nothing is left over


@pytest.mark.parametrize(
    "place", [".", "..", "notebooks", "notebooks/site", "book/site", ".git", ".git/site"]
)
def test_no_site_is_put_over_the_repository_or_into_its_folders(repository, place):
    (repository / ".git").mkdir()
    (repository / ".git" / "HEAD").touch()
    before = files(repository)
    with pytest.raises(
        ValueError, match=r"holds this repository|is inside the repository's|not an earlier site's"
    ):
        book.build(out=repository / place)
    assert files(repository) == before


@pytest.mark.parametrize("foreign", ["a/file.txt", "link"])
def test_a_folder_with_something_foreign_is_refused_before_anything_is_run(tmp_path, foreign):
    (tmp_path / "site" / "a").mkdir(parents=True)
    if foreign == "link":
        (tmp_path / "site" / "link").symlink_to(tmp_path)
    else:
        (tmp_path / "site" / foreign).touch()
    with pytest.raises(ValueError, match=f"{foreign}.*nothing was changed"):
        book.build(out=tmp_path / "site")
    assert (tmp_path / "site" / foreign).exists()


def test_a_folder_below_a_file_is_refused_before_anything_is_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file is not a folder that can be written to"):
        book.build(out=tmp_path / "file" / "site")


def test_a_build_that_fails_leaves_the_former_site(repository, monkeypatch):
    out = repository / "site"
    fake_jupyter_book(monkeypatch, PAGES)
    book.render(book.stage({}, {}, repository / "stage"), out)
    fake_jupyter_book(monkeypatch, PAGES[1:])
    with pytest.raises(RuntimeError, match="missing"):
        book.render(book.stage({}, {}, repository / "another"), out)
    assert files(out) == sorted([*PAGES, replace.MARKER])


def test_of_two_builds_at_once_one_site_stands_whole_and_the_other_says_so(repository, monkeypatch):
    out = repository / "site"

    def site(name):
        (repository / name).mkdir()
        (repository / name / "index.html").write_text(name)
        replace.note_written(repository / name, [])
        return repository / name

    first, second = site("first"), site("second")
    rename = replace.Path.rename

    def interrupted(path, target):
        rename(path, target)
        if path == out and not (repository / "passed").exists():
            (repository / "passed").touch()
            replace.replace(out, second)  # between moving the old site away and putting the new one there

    replace.replace(out, site("former"))
    monkeypatch.setattr(replace.Path, "rename", interrupted)
    with pytest.raises(RuntimeError, match=r"another build has just written .*site: its site stands"):
        replace.replace(out, first)
    assert (out / "index.html").read_text() == "second"
    assert {path.name for path in repository.iterdir() if path.name.startswith(".")} == set()


def test_a_site_that_cannot_be_put_in_place_leaves_the_former_one(repository, monkeypatch):
    out, new = repository / "site", repository / "new"
    for folder in (out, new):
        folder.mkdir()
        (folder / "index.html").write_text(folder.name)
        replace.note_written(folder, [])
    rename = replace.Path.rename
    broken = [out]

    def fails_once(path, target):
        if target == out and broken:
            broken.clear()
            raise KeyboardInterrupt
        rename(path, target)

    monkeypatch.setattr(replace.Path, "rename", fails_once)
    with pytest.raises(KeyboardInterrupt):
        replace.replace(out, new)
    assert (out / "index.html").read_text() == "site"


def test_what_was_in_a_folder_before_a_plain_build_stays_foreign(tmp_path):
    (tmp_path / "mine.txt").touch()
    before = replace.foreign(tmp_path)
    (tmp_path / "index.html").touch()
    replace.note_written(tmp_path, before)
    assert replace.foreign(tmp_path) == ["mine.txt"]


@pytest.mark.parametrize("missing", PAGES)
def test_a_missing_page_is_an_error_although_jupyter_book_says_0(repository, monkeypatch, missing):
    stage = book.stage({}, {}, repository / "stage")
    fake_jupyter_book(monkeypatch, [page for page in PAGES if page != missing])
    with pytest.raises(RuntimeError, match=f"missing: {re.escape(missing)}"):
        book.render(stage, repository / "site")
    assert not (repository / "site").exists()


def test_a_warning_is_an_error_that_names_it(repository, monkeypatch):
    stage = book.stage({}, {}, repository / "stage")
    log = "reading sources\n\x1b[91mbook/index.md:3: WARNING: unknown document: nowhere\x1b[0m\n"
    fake_jupyter_book(monkeypatch, PAGES, status=1, log=log)
    with pytest.raises(RuntimeError, match=r"index\.md:3: WARNING: unknown document: nowhere\n"):
        book.render(stage, repository / "site")


def test_a_failed_chapter_is_published_and_named_by_the_error(repository, monkeypatch, capsys):
    path = executed(repository)
    result = book.Result(
        "small", "small", "smoke", {}, "key", "failed", path, cell="cell 3", error="a\nValueError: b"
    )
    monkeypatch.setattr(book, "run", lambda **options: book.Report("smoke", [result]))
    monkeypatch.setattr(book.shutil, "rmtree", lambda *args, **options: None)  # the stage is looked at below
    fake_jupyter_book(monkeypatch, PAGES)
    with pytest.raises(RuntimeError, match="these chapters failed, as their pages say: small"):
        book.build("smoke", repository / "site")
    assert str(repository / "site" / "index.html") in capsys.readouterr().out
    (staged,) = (repository / "_build").glob("stage-*/notebooks/small.ipynb")
    assert nbformat.read(staged, 4).metadata.worked_papers["error"] == "failed in cell 3: ValueError: b"


def test_the_card_of_a_failed_chapter_says_so_first():
    paper = papers.read("lambda-vit")
    facts = {"paper": paper, "counted": {}, "whose": {}, "badges": {}, "colab": "", "organisms": []}
    card = templates.template("card.html").render(run={"error": "failed in cell 3: <b>"}, **facts)
    assert card.index("This chapter failed") < card.index(paper.authors[0])
    assert "failed in cell 3: &lt;b&gt;" in card
    assert "failed" not in templates.template("card.html").render(run={}, **facts)


def test_the_card_says_what_had_to_be_rebuilt():
    paper = papers.read("lambda-vit").model_copy(update={"reconstruction": "The loss was guessed."})
    facts = {"counted": {}, "whose": {}, "badges": {}, "run": {}, "organisms": []}
    card = BeautifulSoup(templates.template("card.html").render(paper=paper, **facts), "html.parser")
    assert card.select_one(".reconstruction").get_text() == "reconstruction"
    assert "The loss was guessed." in card.get_text()
    paper = paper.model_copy(update={"reconstruction": None})
    assert "reconstruction" not in templates.template("card.html").render(paper=paper, **facts)


def test_the_repositorys_address_stands_in_one_file_only():
    address = REPOSITORY.removeprefix("https://")
    found = subprocess.run(
        ["git", "grep", "-lI", "-F", address], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.stdout.split() == ["_config.yml"]


def test_the_sites_address_is_derived_from_the_repositorys():
    found = theme.addresses("https://github.com/someone/some-book")
    assert found["site"] == "https://someone.github.io/some-book/"
    assert found["colab"].endswith("/github/someone/some-book/blob/gh-pages/_sources/")


@pytest.mark.parametrize(
    "url", ["", "https://github.com/someone", "http://github.com/a/b", "https://x.org/a/b"]
)
def test_a_repository_address_of_another_form_is_an_error(url):
    with pytest.raises(
        theme.ConfigError, match=r"repository\.url is .*expected https://github\.com/OWNER/NAME"
    ):
        theme.addresses(url)


def test_the_contents_list_the_written_chapters_by_area():
    parts = {part["caption"].lower(): part["chapters"] for part in TOC["parts"]}
    listed = {
        entry["file"].removeprefix("notebooks/"): (area, entry["title"])
        for area, entries in parts.items()
        for entry in entries
        if entry["file"].startswith("notebooks/")
    }
    written = [papers.read(slug) for slug in chapters.slugs()]
    assert listed == {paper.slug: (paper.area, paper.short) for paper in written}


def test_every_module_of_lib_and_data_has_a_page_that_the_contents_and_the_index_list():
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for floor in ("lib", "data")
        for path in (ROOT / floor).rglob("*.py")
        if not path.name.startswith("_")
    }
    assert modules <= set(api.modules())
    assert {f"book/api/{name}" for name in api.modules()} <= set(book.pages(TOC))
    indexed = re.findall(r"^```\{modules\} (\S+)$", (ROOT / "book" / "api.md").read_text(), re.MULTILINE)
    assert {name for name in api.modules() if {name, name.rpartition(".")[0]} & set(indexed)} == set(
        api.modules()
    )


def test_pages_of_modules_are_made_and_those_of_lost_modules_removed(tmp_path):
    folder = tmp_path / "book" / "api"
    folder.mkdir(parents=True)
    (folder / "lib.lost.md").write_text(f"{api.MADE}\n# `lib.lost`\n")
    (folder / "mine.md").write_text("# Mine\n")
    api.write_pages(SimpleNamespace(srcdir=tmp_path), None)
    assert {path.stem for path in folder.iterdir()} == {*api.modules(), "mine"}
    assert ".. automodule:: lib.hooks\n" in (folder / "lib.hooks.md").read_text()


def test_every_module_says_in_its_first_line_what_it_is():
    short = {name: api.summary(source) for name, source in api.modules().items()}
    assert {name: line for name, line in short.items() if len(line.split()) < 4} == {}


@pytest.mark.parametrize(
    ("letter", "variant", "expected"),
    [
        ("R", "double-struck", "ℝ"),
        ("A", "double-struck", "𝔸"),
        ("L", "script", "ℒ"),
        ("x", "bold", "𝐱"),
        ("σ", "bold", "𝛔"),
        ("1", "bold", "𝟏"),
        ("1", "double-struck", "𝟙"),
        ("h", "italic", "ℎ"),
        ("I", "fraktur", "ℑ"),
        ("+", "bold", "+"),
    ],
)
def test_letters_in_a_mathematical_style_are_characters_of_their_own(letter, variant, expected):
    assert maths.styled(letter, variant) == expected


def test_maths_is_mathml_that_needs_nothing_else():
    inline, display = maths.render(r"x \in \mathbb{R}^d"), maths.render(r"\frac{a}{b}", display=True)
    assert inline.startswith("<math")
    assert "ℝ" in inline
    assert "double-struck" not in inline
    assert 'display="block"' in display
    assert "<mfrac>" in display


def test_a_thin_space_follows_a_named_function_but_not_before_a_bracket():
    assert '<mspace width="0.1667em"' in maths.render(r"\log x")
    assert '<mspace width="0.1667em"' in maths.render(r"\max_i p_i")
    assert "mspace" not in maths.render(r"\log(x)")
    assert maths.render(r"\sqrt{\log x} y").count("mspace") == 1


def test_cells_of_aligned_equations_keep_their_sides():
    sides = re.findall(r"text-align: (\w+)", maths.render(r"\begin{aligned} x &= y \\ z &= 1 \end{aligned}"))
    assert sides == ["right", "left"] * 2


def test_bars_of_a_norm_are_set_tight_but_the_sign_for_parallel_is_not():
    assert maths.render(r"\lVert x \rVert").count('lspace="0"') == 2
    assert "lspace" not in maths.render(r"a \parallel b")


def test_maths_with_an_error_is_refused_and_the_next_formula_is_not():
    with pytest.raises(ValueError, match="KaTeX parse error"):
        maths.render(r"\frac{a")
    assert "<math" in maths.render("a")


def test_docstrings_in_plain_text_become_restructuredtext():
    lines = ["Gives `x`, and y_ of *args.", "", "    code(*args)", "", "Args:", "    n: how `many`."]
    assert docstrings.plain_to_rest(lines) == [
        r"Gives ``x``, and y\_ of \*args.",
        "",
        ".. code-block:: python",
        "",
        "    code(*args)",
        "",
        "Args:",
        "    n: how ``many``.",
    ]


def test_a_colon_in_what_is_said_of_a_constant_does_not_make_its_first_half_a_type():
    lines = ["Ink, 0 to 255: `L`."]
    docstrings.process(None, "data", "x", None, {}, lines)
    assert GoogleDocstring(lines, what="data", name="x").lines() == ["Ink, 0 to 255: ``L``."]


def test_search_has_the_text_of_each_section_without_code_for_machines():
    html = """<section id="a"><h1>One<a class="headerlink" href="#a">#</a></h1><p>first <b>words</b></p>
        <math><mi>x</mi><annotation>\\x</annotation></math>
        <section id="b"><h2>Two</h2><img alt=""><p>second</p><script>no()</script>
        <details><summary>Show</summary><b>a</b></details></section></section>"""
    assert theme.search_sections(html) == [["a", "One", "first words x"], ["b", "Two", "second a"]]


def test_search_knows_of_a_chapters_code_what_it_defines():
    html = """<p>before</p><div class="cell_input"><div class="highlight"><pre><span>class</span> Gate:
    <span>def</span> open(self) -&gt; int:
        return 1
</pre></div></div><p>after</p><pre>make book</pre>"""
    assert theme.search_sections(html) == [
        ["", "", "before class Gate: def open(self) -> int: after make book"]
    ]


def test_tables_scroll_and_empty_headers_are_cells():
    mended = theme.mend('<table border="1"><tr><th></th><th>a</th></tr></table>')
    assert mended == '<div class="scroll"><table border="1"><tr><td></td><th>a</th></tr></table></div>'
    assert theme.mend('<th class="blank level0" >&nbsp;</th><th>\xa0</th><th>a</th>') == (
        "<td></td><td></td><th>a</th>"
    )


def test_code_keeps_its_text_and_the_marks_that_have_a_colour():
    code = '<pre><span></span><span class="k">if</span><span class="w"> </span><span class="n">x</span></pre>'
    assert theme.mend(code) == '<pre><span class="k">if</span> x</pre>'
    assert theme.mend('<span class="n"><span class="pre">x</span></span>') == "x"


def test_signatures_keep_their_text_but_not_a_list_without_terms():
    signature = (
        '<dt class="sig sig-object py"><span>f</span><dl><dd><em>x</em></dd></dl></dt><dd><dl></dl></dd>'
    )
    mended = theme.mend(signature)
    assert '<div class="params"><div><em>x</em></div></div></dt>' in mended
    assert mended.endswith("<dd><dl></dl></dd>")


def test_an_executed_notebooks_error_is_found(tmp_path):
    output = nbformat.v4.new_output("error", ename="ValueError", evalue="n_examples=0", traceback=[])
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output])])
    (tmp_path / "small.ipynb").write_text(json.dumps(notebook))
    run, findings, picture = results.executed(tmp_path / "small.ipynb")
    assert run["error"] == "ValueError: n_examples=0"
    assert (findings, picture) == ([], None)


def test_a_paragraph_that_several_cards_share_is_told_once():
    seen = {}
    world = f"**World.** {'A grid of cells. ' * 20}"
    own = f"**Training.** {'Many steps. ' * 20}"
    assert tables.once(f"{world}\n\n{own}", "first", seen) == f"{world}\n\n{own}"
    again = tables.once(f"{world}\n\n**Training.** Few steps.", "second", seen)
    assert again == "**World.** As on the card of [first](#first).\n\n**Training.** Few steps."


def test_a_dose_response_starts_from_the_undisturbed_world():
    def estimate(value):
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    measures = {
        "colour": estimate(0.9),
        "captions: recall": estimate(0.8),
        "colour, held-out wording": estimate(0.7),
        "noise 0.4: colour": estimate(0.3),
        "noise 0.1: colour": estimate(0.6),
        "contrast 0.5: recall": estimate(0.5),
    }
    found = figures.dose_response(measures)
    assert [point[:2] for point in found["noise"]["colour"]] == [(0.0, 0.9), (0.1, 0.6), (0.4, 0.3)]
    assert [point[:2] for point in found["contrast"]["recall"]] == [(0.5, 0.5), (1.0, 0.8)]
    assert found.keys() == {"noise", "contrast"}
