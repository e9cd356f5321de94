"""The runner: what decides a result, what is run again, what is reported, and what never gets out."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from contextvars import Context
from pathlib import Path

import nbformat
import psutil
import pytest
from jupyter_core.utils import ensure_event_loop
from rich.console import Console
from small_book import PARAMETERS, build, chapter, code, write

from book.run import batch, kernel
from book.run import plan as planning
from book.run.cache import Output
from book.run.redact import redact

SECRET = "hf_AbCdEf0123456789"


def run(root, *slugs, **options):
    return batch.run(list(slugs) or None, root=root, console=Console(file=io.StringIO()), **options)


def statuses(report):
    return {result.name: result.status for result in report.results}


def keys(root, **options):
    arguments = {"slugs": None, "preset": "organism", "parameters": None, "sweep": None, **options}
    return {job.name: job.key for job in planning.plan_runs(**arguments, root=root)}


def stdout(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.text for c in cells for o in c.get("outputs", []) if o.output_type == "stream")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """One batch with a chapter of every kind; the folder and the report."""
    root = build(
        tmp_path_factory.mktemp("mixed"),
        good=chapter("print(double(n_examples), seed)"),
        where=chapter(
            "import os, sys\n"
            "print(os.getcwd(), sys.executable, os.environ['PYTHONHASHSEED'], os.environ['MKL_NUM_THREADS'])"
        ),
        fails=chapter(
            "fine = 1", "'<b>&'; raise ValueError('\\x1b[1m\\x00 because of me')", "print('not reached')"
        ),
        dies=chapter("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"),
        exits=chapter("import os\nos._exit(3)"),
        hangs=chapter("import time\ntime.sleep(60)"),
        stubborn=chapter(
            "import time\nwhile True:\n    try:\n        time.sleep(60)\n    except BaseException: pass"
        ),
        leaks=chapter(
            "import os\nfrom IPython.display import HTML, display\ntoken = os.environ['HF_TOKEN']\n"
            "print(token[:5], end='', flush=True); print(token[5:])\n"
            "display(HTML(f'<a href=\"https://x/?t={token}\">'), metadata={'t': token})\n{token: [token]}",
            "raise RuntimeError(f'401 for {token}')",
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", SECRET)
        patch.setenv("MKL_NUM_THREADS", "1")
        patch.setattr(kernel, "GRACE", 1.0)
        return root, run(root, jobs=2, timeout=2, preset="smoke")


def test_what_fails_hangs_or_dies_does_not_stop_the_others(mixed):
    assert statuses(mixed[1]) == {
        "good": "passed",
        "where": "passed",
        "fails": "failed",
        "dies": "died",
        "exits": "died",
        "hangs": "timeout",
        "stubborn": "timeout",
        "leaks": "failed",
    }
    assert not mixed[1].ok


def test_the_report_names_the_cell_and_holds_the_traceback(mixed):
    results = {result.name: result for result in mixed[1].results}
    assert results["fails"].cell == "cell 6: '<b>&'; raise ValueError('\\x1b[1m\\x00 because of me')"
    assert "because of me" in results["fails"].error
    assert "KeyboardInterrupt" in results["hangs"].error
    assert "time.sleep(60)" in results["hangs"].error
    for name, words in {"dies": "SIGKILL", "exits": "exit status 3", "stubborn": "2 s"}.items():
        assert results[name].cell.startswith("cell 5: import")
        assert words in results[name].error
    failed = nbformat.read(results["fails"].notebook, as_version=4)
    assert results["fails"].notebook.parent.name == "failed"
    assert "not reached" not in nbformat.writes(failed).split("source")[0]


def test_reports_agree_and_can_be_read_by_machines(mixed):
    folder = mixed[0] / "_build/runs/smoke"
    stored = json.loads((folder / "report.json").read_text())
    assert stored["ok"] is False
    assert {result["name"]: result["status"] for result in stored["results"]} == statuses(mixed[1])
    suite = ET.parse(folder / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("8", "2", "4")
    assert "because of me" in suite.find("testcase[@name='fails']/failure").text
    page = (folder / "report.html").read_text()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "http" not in page
    assert len(page) < 50_000


def test_executed_notebooks_say_how_they_were_made(mixed):
    path = mixed[0] / "_build/runs/smoke/good.ipynb"
    assert stdout(path) == "4 0\n"
    notebook = nbformat.read(path, as_version=4)
    facts = notebook.metadata.worked_papers
    assert (facts.slug, facts.preset, facts.parameters.n_examples) == ("good", "smoke", 2)
    assert set(facts.versions) == {"python", "torch", "transformers"}
    assert facts.seconds > 0
    assert 20 < facts.peak_memory_mib < 2000
    assert facts.finished.endswith("+00:00")
    assert notebook.metadata.papermill.input_path == "notebooks/good.ipynb"


def test_kernels_run_this_python_in_the_repository_with_fixed_hashing_and_threads(mixed):
    printed = stdout(mixed[0] / "_build/runs/smoke/where.ipynb").split()
    assert printed == [str(mixed[0]), sys.executable, "0", "1"]


def test_no_secret_gets_out(mixed):
    written = [path for path in mixed[0].rglob("*") if path.is_file()]
    assert [path for path in written if SECRET in path.read_text(errors="replace")] == []
    failed = (mixed[0] / "_build/runs/smoke/failed/leaks.ipynb").read_text()
    assert failed.count("[HF_TOKEN hidden]") >= 5
    assert SECRET not in str(mixed[1])


def test_colours_do_not_hide_a_secret_from_redaction(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-123456")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    assert redact("\x1b[31msk-\x1b[0m123456 in eu-central-1") == "[OPENAI_API_KEY hidden] in eu-central-1"


def test_no_process_is_left(mixed):
    assert [
        p for p in psutil.Process().children(recursive=True) if "zygote.py" in " ".join(p.cmdline())
    ] == []


# What decides a result


def edit(root, name, text):
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(text)


def with_cell(source):
    return lambda root: write(root, "a", chapter(source))


@pytest.fixture
def small(tmp_path):
    """Chapter a rests on lib/first and lib/base, b on lib/second, c on the method of a."""
    return build(
        tmp_path,
        a=chapter("from lib import one\none"),
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
        (lambda root: edit(root, "lib/second.py", "two = 2  # a comment\n"), ""),
        (lambda root: edit(root, "lib/third.py", "three = 3\n"), ""),
        (lambda root: edit(root, "data/models/tiny/config.json", "{} "), "ab"),
        (lambda root: edit(root, "data/models/tiny-seed1/config.json", "{} "), "ab"),
        (lambda root: edit(root, "data/models/other/config.json", "{}"), ""),
        (lambda root: edit(root, "README.md", "changed"), ""),
        (lambda root: edit(root, "data/papers/b.yml", (root / "data/papers/b.yml").read_text() + "\n"), "b"),
        (lambda root: edit(root, "data/results/b--steps=9.json", "{}"), "b"),
        (with_cell("from lib import one\none + 0"), "a"),
        (with_cell(code("from lib import one\none", "hide-input")), "a"),
    ],
)
def test_a_change_affects_just_the_chapters_that_rest_on_it(small, change, affected):
    if "c" in affected:  # the method of a is what ties c to lib
        write(small, "a", chapter("from lib import one\none", code("from lib.base import BASE", "method")))
    before = keys(small)
    change(small)
    after = keys(small)
    assert {name for name in before if before[name] != after[name]} == set(affected)


def test_prose_does_not_decide_a_result(small):
    before = keys(small)
    notebook = chapter("from lib import one\none")
    notebook.cells.insert(2, nbformat.v4.new_markdown_cell("More words."))
    write(small, "a", notebook)
    assert keys(small) == before


def test_a_changed_method_affects_the_chapters_that_import_it(small):
    before = keys(small)
    notebook = chapter("from lib import one\none")
    notebook.cells[3].source = "def double(x):\n    return x + x"
    write(small, "a", notebook)
    assert [name for name in before if keys(small)[name] != before[name]] == ["a", "c"]


@pytest.mark.parametrize(
    "statement",
    [
        "import lib\nlib.one",
        "import lib.first",
        "import lib.first as f",
        "from lib import first",
        "from lib.first import one",
        "from lib.first import *",
        "from lib import *",
        "def f():\n    from lib import one",
        "from importlib import import_module\nimport_module('lib.first')",
        "%matplotlib inline\nfrom lib import one",
        "from lib.package.inner import deep",
    ],
)
def test_every_way_to_import_is_seen(tmp_path, statement):
    root = build(tmp_path, a=chapter(statement))
    (root / "lib/package").mkdir()
    edit(root, "lib/package/__init__.py", "from . import inner\n")
    edit(root, "lib/package/inner.py", "from ..first import one as deep\n")
    before = keys(root)
    edit(root, "lib/base.py", "BASE = 7\n")
    assert keys(root) != before


def test_imports_for_the_type_checker_only_do_not_count(tmp_path):
    root = build(tmp_path, a=chapter("import lib.third"))
    edit(root, "lib/third.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import lib.base\n")
    before = keys(root)
    edit(root, "lib/base.py", "BASE = 7\n")
    assert keys(root) == before


def test_parameters_versions_and_local_checkpoints_decide(small, monkeypatch, tmp_path_factory):
    before = keys(small)["a"]
    assert keys(small, parameters={"seed": 1})["a"] != before
    assert keys(small, parameters={"seed": 0})["a"] == before
    folder = tmp_path_factory.mktemp("checkpoint")
    edit(folder, "model.safetensors", "old")
    local = keys(small, parameters={"model": str(folder)})["a"]
    edit(folder, "model.safetensors", "newer")
    assert keys(small, parameters={"model": str(folder)})["a"] != local
    monkeypatch.setattr(planning, "versions", lambda: {"python": "2.7"})
    assert keys(small)["a"] != before


def test_a_sweep_is_the_product_of_its_values(small):
    names = keys(small, slugs=["a"], sweep={"seed": ["0", "1"], "model": ["x/y", "tiny"]})
    assert list(names) == [f"a--seed={s}--model={m}" for s in (0, 1) for m in ("x%2Fy", "tiny")]
    assert len(set(names.values())) == 4


# What is run


def test_chapters_run_side_by_side_where_the_caller_has_an_event_loop_of_its_own(tmp_path):
    root = build(tmp_path, a=chapter("import time\ntime.sleep(1)"), b=chapter("import time\ntime.sleep(1)"))

    def caller():
        ensure_event_loop()  # as whoever has executed a notebook or drives a browser
        return run(root, jobs=2)

    assert statuses(Context().run(caller)) == {"a": "passed", "b": "passed"}


def test_only_what_an_edit_affects_is_run_again_and_new_prose_is_shown(small):
    first = run(small, "a", "b", jobs=2)
    assert statuses(first) == {"a": "passed", "b": "passed"}
    outputs = {r.name: r.notebook.read_bytes() for r in first.results}

    edit(small, "lib/base.py", "BASE = 10\n")
    notebook = chapter("import lib.second\nlib.second.two")
    notebook.cells.append(nbformat.v4.new_markdown_cell("New words."))
    write(small, "b", notebook)
    planned = run(small, "a", "b", dry_run=True)
    assert statuses(planned) == {"a": "planned", "b": "cached"}
    assert planned.results[0].reason == "changed: lib/base.py"
    second = run(small, "a", "b")
    assert statuses(second) == {"a": "passed", "b": "cached"}
    assert "New words." in second.results[1].notebook.read_text()
    assert second.results[0].notebook.read_bytes() != outputs["a"]

    edit(small, "lib/base.py", "BASE = 0\n")
    third = run(small, "a", "b")
    assert statuses(third) == {"a": "cached", "b": "cached"}
    assert third.results[0].notebook.read_bytes() == outputs["a"]


def test_a_result_from_the_cache_is_the_result_itself(small, monkeypatch):
    options = {"parameters": {"seed": 3}, "preset": "smoke"}
    first = run(small, "b", **options).results[0]
    content = first.notebook.read_bytes()
    first.notebook.unlink()
    monkeypatch.setattr(batch, "_cluster", None)  # it is not needed
    again = run(small, "b", **options).results[0]
    assert again.status == "cached"
    assert again.notebook.read_bytes() == content
    assert (again.seconds, again.peak_memory_mib) == (first.seconds, first.peak_memory_mib)


def test_a_result_is_not_kept_if_the_code_was_edited_while_it_ran(small):
    write(small, "b", chapter("open('lib/second.py', 'a').write('three = 3\\n')\nimport lib.second"))
    first = run(small, "b").results[0]
    assert first.status == "passed"
    assert first.reason == "not kept, changed meanwhile: lib/second.py"
    assert statuses(run(small, "b")) == {"b": "passed"}


def test_a_failure_replaces_the_older_success_and_the_reverse(small):
    good = run(small, "b").results[0].notebook
    write(small, "b", chapter("1/0"))
    bad = run(small, "b").results[0].notebook
    assert bad.exists()
    assert not good.exists()
    write(small, "b", chapter("import lib.second\nlib.second.two"))
    run(small, "b")
    assert good.exists()
    assert not bad.exists()


def test_an_ordinary_kernel_does_the_same_where_forking_is_impossible(small, monkeypatch):
    forked = run(small, "b").results[0]
    monkeypatch.setattr(kernel.Nest, "zygote", lambda self: "/nowhere")
    ordinary = run(small, "b", force=True).results[0]
    assert (forked.status, ordinary.status) == ("passed", "passed")
    plain = [nbformat.read(r.notebook, as_version=4).cells[-1].outputs for r in (forked, ordinary)]
    assert plain[0] == plain[1]


def test_numerical_libraries_use_their_threads_in_a_forked_kernel(tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "2")
    source = "import numpy as np, torch\na = np.ones((600, 600)); t = torch.ones(600, 600)\n"
    source += "print((a @ a).max(), (t @ t).max().item(), torch.get_num_threads())"
    report = run(build(tmp_path, a=chapter(source)), timeout=60)
    assert stdout(report.results[0].notebook) == "600.0 600.0 2\n"


def test_a_scheduler_elsewhere_and_an_output_url_take_the_same_path(small):
    import fsspec
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        report = run(small, "b", scheduler=address, out="memory://bucket/runs", timeout=60)
    assert statuses(report) == {"b": "passed"}
    assert report.results[0].notebook == "memory:///bucket/runs/b.ipynb"
    files = fsspec.filesystem("memory")
    assert {Path(name).name for name in files.ls("/bucket/runs", detail=False)} == {
        "b.ipynb",
        "report.json",
        "junit.xml",
        "report.html",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slugs": ["bb"]}, "no chapter 'bb'.*did you mean 'b'"),
        ({"preset": "smok"}, "preset 'smok'.*did you mean 'smoke'"),
        ({"parameters": {"sed": 1}}, "parameter 'sed'.*did you mean 'seed'"),
        ({"parameters": {"seed": "1.5"}}, "seed='1.5': expected int"),
        ({"sweep": {"layers": ["1"]}}, "layers='1': expected list"),
        ({"sweep": {"seed": ["1"]}, "parameters": {"seed": 1}}, "seed: given both"),
        ({"parameters": {"hf_token": "x"}}, "hf_token looks like a secret.*environment"),
        ({"parameters": {"model": f"https://user:{SECRET}@host"}}, "model.*HF_TOKEN.*environment"),
        ({"slugs": ["none"]}, "none.ipynb has 0 cells tagged 'parameters'"),
        ({"slugs": ["twice"]}, "twice.ipynb has 2 cells tagged 'parameters'"),
        (
            {"slugs": ["typo"]},
            "typo.yml, preset smoke.*'n_example'.*did you mean 'n_examples'",
        ),
        ({"scheduler": "tcp://127.0.0.1:9"}, "no Dask scheduler at tcp://127.0.0.1:9"),
        ({"out": "nosuch://bucket"}, "nosuch"),
        ({"jobs": 0}, "jobs=0"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, monkeypatch, options, message):
    root = build(
        tmp_path,
        b=chapter(f"open({str(tmp_path / 'has-run')!r}, 'w')"),
        none=chapter(parameters=None),
        twice=chapter(code("x: int = 1  # x", "parameters")),
        typo=chapter(),
    )
    facts = root / "data/papers/typo.yml"
    facts.write_text(facts.read_text().replace("n_examples: 2", "n_example: 2"))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with pytest.raises((LookupError, ValueError, OSError), match=f"(?s){message}") as error:
        run(root, *options.pop("slugs", ["b"]), **{"preset": "smoke"} | options)
    assert SECRET not in str(error.value)
    assert not (tmp_path / "has-run").exists()


def test_an_output_that_cannot_be_written_is_told_before_anything_runs(small, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*file/sub"):
        run(small, out=tmp_path / "file/sub")


def test_a_full_disk_leaves_no_half_written_file(tmp_path, monkeypatch):
    output = Output(tmp_path)
    output.write("x", b"old")

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"cannot write .*No space left"):
        output.write("x", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


@pytest.fixture
def short_folder():
    """A folder for temporary files; pytest's own are too deep for a Unix socket, whose path has 107 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_stopped_run_keeps_what_is_finished_and_goes_on_from_there(tmp_path, short_folder, number, status):
    waits = "import os, pathlib, time\nif os.environ['WAIT'] == '1':\n"
    waits += "    pathlib.Path('pid').write_text(str(os.getpid()))\n    time.sleep(60)"
    root = build(tmp_path, a=chapter("'done'"), b=chapter(waits))
    # A shell's background job starts with Ctrl-C switched off.
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    script += f"import lib, pathlib; lib.ROOT = pathlib.Path({str(root)!r}); import book.__main__ as main; "
    script += "main.cli(['run'])"
    environment = os.environ | {"WAIT": "1", "TMPDIR": str(short_folder)}
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True
    )
    kernel = root / "pid"
    while not (kernel.exists() and kernel.read_text()) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status
    assert "Traceback" not in errors
    assert number == signal.SIGKILL or "1 passed, interrupted" in errors
    pid = int(kernel.read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(pid)
    while list(short_folder.glob("worked-papers-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(short_folder.glob("worked-papers-*")) == []
    assert [path.name for path in (root / "_build/runs/organism").glob("*.ipynb")] == ["a.ipynb"]
    if number != signal.SIGKILL:  # it leaves no time to report
        assert json.loads((root / "_build/runs/organism/report.json").read_text())["interrupted"] is True
    again = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"WAIT": "0"}, capture_output=True, text=True
    )
    assert again.returncode == 0
    assert "a  cached" in again.stderr
    assert "b  passed" in again.stderr
