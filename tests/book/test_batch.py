"""The runner: what is run again, what is reported, what never gets out, and what is never touched."""

import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import nbformat
import psutil
import pytest
from small_book import PARAMETERS, build, chapter, code, write

from book.run import batch, cache, execute
from book.run.cache import MARKER, clean
from book.run.redact import redact

SECRET = "hf_AbCdEf0123456789"


def run(root, *slugs, **options):
    return batch.run(list(slugs) or None, root=root, **{"stream": io.StringIO()} | options)


def statuses(report):
    return {result.name: result.status for result in report.results}


def stdout(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.text for c in cells for o in c.get("outputs", []) if o.output_type == "stream")


def edit(root, name, text):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


LEFTOVER = code("# Parameters\nseed = 5", "injected-parameters")

MIXED = {
    "good": [
        "print(double(n_examples), seed)",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
    ],
    "where": [
        "import os, sys\nprint(os.getcwd(), sys.executable, os.environ['PYTHONHASHSEED'])\n"
        "print(os.environ['MKL_NUM_THREADS'], os.environ['OMP_WAIT_POLICY'])",
    ],
    "stdin": [
        "import subprocess\nprint(subprocess.run('cat', shell=True, capture_output=True))",
        "try: input()\nexcept Exception as error: print(type(error).__name__)",
    ],
    "shell": ["files = !ls data\nprint(files)", "%%bash\nfor x in a b; do echo $x; done"],
    "saved": [LEFTOVER, "print('seed', seed)"],
    "fails": [
        "fine = 1",
        "'<b>&'; raise ValueError('\x1b[1m\\x00 [bold]because[/] of me')",
        "print('unreached')",
    ],
    "dies": ["import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"],
    "exits": ["import os\nos._exit(3)"],
    "leaves": ["import sys\nsys.exit(0)", "1 / 0"],
    "quits": ["quit()", "1 / 0"],
    "skips": [code("1 / 0", "skip-execution"), "1"],
    "forgives": [code("1 / 0", "raises-exception"), "1"],
    "prints": ["while True: print('x' * 1000)"],
    "bursts": ["print('x' * 200_000_000)"],
    "fails-at-length": ["raise ValueError('x' * 100_000_000)"],
    "counts": ["from IPython.display import display\nwhile True: display(1)"],
    "shows": ["from IPython.display import HTML, display\nwhile True: display(HTML('x' * 100_000))"],
    "leaks": [
        "import os\nfrom IPython.display import HTML, display\ntoken = os.environ['HF_TOKEN']\n"
        "print(token[:5], end='', flush=True); print(token[5:])\n"
        "display(HTML(f'<a href=\"https://x/?t={token}\">'), metadata={'t': token})\n{token: [token]}",
        "raise RuntimeError(f'401 for {token}')",
    ],
    "stays": [
        "import subprocess\nsubprocess.Popen(['sleep', '987'], start_new_session=True)\nprint('started')"
    ],
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """One batch with a chapter of every kind; the folder, the report and what was displayed."""
    root = build(tmp_path_factory.mktemp("mixed"), **{name: chapter(*cells) for name, cells in MIXED.items()})
    edit(root, "notebooks/broken.ipynb", "{")
    edit(
        root, "data/papers/broken.yml", (root / "data/papers/good.yml").read_text().replace("good", "broken")
    )
    for name in ("._good", ".#good", "good-Copy1", "good (1)", "no-facts"):
        edit(root, f"notebooks/{name}.ipynb", (root / "notebooks/good.ipynb").read_text())
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", SECRET)
        patch.setenv("MKL_NUM_THREADS", "1")
        report = run(root, jobs=2, preset="smoke", stream=stream)
    return root, report, stream.getvalue()


def result(mixed, name):
    return next(result for result in mixed[1].results if result.name == name)


def test_what_fails_hangs_or_dies_does_not_stop_the_others(mixed):
    found = statuses(mixed[1])
    passed = {"good", "where", "stdin", "shell", "saved", "stays"}
    # quit() lets the kernel end soon: whether the next cell still fails before that is a matter of luck.
    assert found["quits"] in ("died", "failed")
    died = {"dies", "exits"} | {name for name in ["quits"] if found[name] == "died"}
    assert {name for name in found if found[name] == "passed"} == passed
    assert {name for name in found if found[name] == "died"} == died
    assert {name for name in found if found[name] == "failed"} == {*MIXED, "broken"} - passed - died
    assert not mixed[1].ok


def test_the_report_names_the_cell_and_holds_the_traceback(mixed):
    assert result(mixed, "fails").cell.startswith("cell 6: '<b>&'; raise ValueError(")
    assert "[bold]because[/] of me" in result(mixed, "fails").error
    for name, words in {"dies": "SIGKILL", "exits": "exit status 3"}.items():
        assert result(mixed, name).cell.startswith("cell 5: ")
        assert words in result(mixed, name).error
    quits = result(mixed, "quits")
    assert quits.cell.startswith("cell 6: ")
    assert ("exit status 0" if quits.status == "died" else "ZeroDivisionError") in quits.error
    failed = result(mixed, "fails").notebook
    assert failed.parent.name == "failed"
    assert "unreached" not in stdout(failed)


def test_passed_means_that_every_cell_ran(mixed):
    assert "SystemExit" in result(mixed, "leaves").error
    assert result(mixed, "leaves").cell.startswith("cell 5: import sys")
    assert result(mixed, "quits").cell
    assert (result(mixed, "skips").cell, result(mixed, "skips").error) == (
        "cell 5: 1 / 0",
        "this cell was not run",
    )
    assert "ZeroDivisionError" in result(mixed, "forgives").error


def test_what_an_earlier_run_left_in_the_file_is_not_executed(mixed):
    assert stdout(result(mixed, "saved").notebook) == "seed 0\n"
    assert result(mixed, "saved").parameters["seed"] == 0
    assert "left out 1 cell of an earlier run's output" in result(mixed, "saved").reason


@pytest.mark.parametrize("name", ["prints", "bursts", "shows", "counts", "fails-at-length"])
def test_output_without_limit_is_bounded_and_the_notebook_says_so(mixed, name):
    assert "more than 32 MiB of output" in result(mixed, name).error
    assert result(mixed, name).cell.startswith("cell 5: ")
    assert result(mixed, name).notebook.stat().st_size < 2**26
    assert "the rest was cut off" in stdout(result(mixed, name).notebook)[-200:]


def test_a_cell_that_reads_standard_input_meets_its_end(mixed):
    text = stdout(result(mixed, "stdin").notebook)
    assert "stdout=b''" in text
    assert "StdinNotImplementedError" in text


def test_figures_of_plain_matplotlib_are_in_the_notebook(mixed):
    cells = nbformat.read(result(mixed, "good").notebook, as_version=4).cells
    assert "image/png" in cells[-1].outputs[-1].data


def test_reports_agree_and_can_be_read_by_machines(mixed):
    folder = mixed[0] / "_build/runs/smoke"
    stored = json.loads((folder / "report.json").read_text())
    assert (stored["ok"], stored["finished"]) == (False, True)
    assert {result["name"]: result["status"] for result in stored["results"]} == statuses(mixed[1])
    suite = ET.parse(folder / "junit.xml").getroot()
    counts = [
        len([s for s in statuses(mixed[1]).values() if s in kinds])
        for kinds in (["failed"], ["timeout", "died"])
    ]
    assert [suite.get("tests"), suite.get("failures"), suite.get("errors")] == [
        str(len(MIXED) + 1),
        *map(str, counts),
    ]
    assert "because[/] of me" in suite.find("testcase[@name='fails']/failure").text


def test_lines_say_everything_as_it_is(mixed):
    lines = mixed[2].splitlines()
    assert any("[bold]because[/] of me" in line for line in lines)
    assert any(line.startswith("failed  broken") for line in lines)
    assert any("broken.ipynb is not a notebook" in line for line in lines)
    for name in ("._good", ".#good", "good-Copy1", "good (1)", "no-facts"):
        assert any(line.startswith(f"passed over notebooks/{name}.ipynb") for line in lines)


def test_executed_notebooks_say_how_they_were_made(mixed):
    path = mixed[0] / "_build/runs/smoke/good.ipynb"
    assert stdout(path) == "4 0\n"
    notebook = nbformat.read(path, as_version=4)
    facts = notebook.metadata.worked_papers
    assert (facts.slug, facts.preset, facts.parameters.n_examples) == ("good", "smoke", 2)
    assert set(facts.versions) == {"python", "matplotlib"}
    assert facts.seconds > 0
    assert 20 < facts.peak_memory_mib < 2000
    assert facts.finished.endswith("+00:00")
    assert notebook.metadata.papermill.input_path == "notebooks/good.ipynb"


def test_kernels_run_this_python_in_the_repository_with_fixed_hashing_and_threads(mixed):
    printed = stdout(mixed[0] / "_build/runs/smoke/where.ipynb").split()
    assert printed == [str(mixed[0]), sys.executable, "0", "1", "PASSIVE"]


def test_no_secret_gets_out(mixed):
    written = [path for path in mixed[0].rglob("*") if path.is_file()]
    assert [path for path in written if SECRET in path.read_text(errors="replace")] == []
    failed = (mixed[0] / "_build/runs/smoke/failed/leaks.ipynb").read_text()
    assert failed.count("[HF_TOKEN hidden]") >= 5
    assert SECRET not in str(mixed[1]) + mixed[2]


def test_no_process_and_no_temporary_folder_is_left(mixed):
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if "987" in (p.info["cmdline"] or [])]
    assert left == []
    children = [" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)]
    assert [line for line in children if "child.py" in line or "kernel.py" in line] == []


def test_colours_do_not_hide_a_secret_from_redaction(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-123456")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    assert redact("\x1b[31msk-\x1b[0m123456 in eu-central-1") == "[OPENAI_API_KEY hidden] in eu-central-1"


def test_a_time_limit_ends_whatever_the_run_is_doing(tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "GRACE", 2.0)
    deaf = "import time\nwhile True:\n    try:\n        time.sleep(600)\n    except BaseException: pass"
    root = build(tmp_path, hangs=chapter("import slow"), stubborn=chapter(deaf))
    edit(root, "slow.py", "import time\ntime.sleep(600)\n")
    hangs, stubborn = run(root, jobs=2, timeout=15).results
    assert (hangs.status, stubborn.status) == ("timeout", "timeout")
    assert "KeyboardInterrupt" in hangs.error
    assert "time.sleep(600)" in hangs.error
    for result in (hangs, stubborn):
        assert result.cell.startswith("cell 5: import")
        assert result.error.startswith("stopped after 15 s, its time limit. ")
        assert result.seconds < 15 + 3 * 2


# One run is as if there were no other


def test_runs_share_nothing(tmp_path):
    """Random state, imports and environment of one run do not reach another."""
    root = build(
        tmp_path,
        a=chapter(
            "import random, numpy as np, os\n"
            "print(random.random(), np.random.rand(), os.environ.get('MINE'))\n"
            "os.environ['MINE'] = '1'"
        ),
        b=chapter("import PIL\nprint(hasattr(PIL, 'ImageMorph'))"),
        c=chapter("from PIL import ImageMorph"),
    )
    random.seed(0)
    swept = run(root, "a", sweep={"seed": ["0", "1"]})
    numbers = [stdout(one.notebook).split() for one in swept.results]
    assert numbers[0][:2] != numbers[1][:2]
    assert numbers[0][2] == numbers[1][2] == "None"
    assert stdout(run(root, "c", "b").results[1].notebook) == "False\n"


# What is run


@pytest.fixture
def small(tmp_path):
    """Chapter a rests on lib/first and lib/base, b on lib/second."""
    return build(
        tmp_path,
        a=chapter("from lib.first import one\nprint(one)"),
        b=chapter("import lib.second\nlib.second.two"),
    )


def test_only_what_an_edit_affects_is_run_again_and_new_prose_is_shown(small):
    first = run(small, jobs=2)
    assert statuses(first) == {"a": "passed", "b": "passed"}
    outputs = {r.name: r.notebook.read_bytes() for r in first.results}

    edit(small, "lib/base.py", "BASE = 10\n")
    notebook = chapter("import lib.second\nlib.second.two")
    notebook.cells.append(nbformat.v4.new_markdown_cell("New words."))
    write(small, "b", notebook)
    planned = run(small, dry_run=True)
    assert statuses(planned) == {"a": "planned", "b": "cached"}
    assert planned.results[0].reason == "changed: lib/base.py"
    second = run(small)
    assert statuses(second) == {"a": "passed", "b": "cached"}
    assert "New words." in second.results[1].notebook.read_text()
    assert second.results[0].notebook.read_bytes() != outputs["a"]

    edit(small, "lib/base.py", "BASE = 0\n")
    third = run(small)
    assert statuses(third) == {"a": "cached", "b": "cached"}
    assert third.results[0].notebook.read_bytes() == outputs["a"]


READS = """\
import csv, glob, os, runpy, subprocess
from pathlib import Path
room = "da" + "ta"
print(Path(room, "one" + ".yml").read_text(), [path.name for path in Path(room, "texts").iterdir()])
try: open(room + "/absent.txt")
except OSError: pass
print(__import__("hel" + "per").X, runpy.run_path(room + "/script" + ".py")["Y"])
Path(room, "made.txt").write_text("by the run")
print(Path(room, "made.txt").read_text())"""


def test_every_file_that_a_run_has_read_decides_whether_its_result_is_still_good(tmp_path):
    """Files whose names are put together while it runs: what no reading of the code can tell."""
    root = build(tmp_path, a=chapter(READS))
    for name in ("data/one.yml", "data/texts/t.txt", "data/unread.txt", "data/papers/other.yml"):
        edit(root, name, "1")
    edit(root, "helper.py", "X = 1\n")
    edit(root, "data/script.py", "Y = 1\n")
    assert run(root).results[0].reason == "first run"
    assert statuses(run(root)) == {"a": "cached"}
    for name, label in {
        "data/one.yml": "data/one.yml",
        "data/absent.txt": "data/absent.txt",
        "data/texts/new.txt": "data/texts/",
        "helper.py": "helper.py",
        "data/script.py": "data/script.py",
    }.items():
        before = (root / name).read_text() if (root / name).exists() else None
        edit(root, name, "X = Y = 2\n")
        planned = run(root, dry_run=True).results[0]
        assert (planned.status, planned.reason) == ("planned", f"changed: {label}")
        (root / name).unlink() if before is None else edit(root, name, before)
    edit(root, "data/unread.txt", "2")
    edit(root, "data/models/other/config.json", "{}")
    edit(root, "data/papers/new.yml", "2")
    assert statuses(run(root)) == {"a": "cached"}


def test_a_result_from_the_cache_is_the_result_itself(small, monkeypatch):
    options = {"parameters": {"seed": 3}, "preset": "smoke"}
    first = run(small, "b", **options).results[0]
    content = first.notebook.read_bytes()
    first.notebook.unlink()
    monkeypatch.setattr(execute, "execute", None)  # it is not needed
    again = run(small, "b", **options).results[0]
    assert again.status == "cached"
    assert again.notebook.read_bytes() == content
    assert (again.seconds, again.peak_memory_mib) == (first.seconds, first.peak_memory_mib)


def test_a_damaged_entry_of_the_cache_is_none(small):
    key = run(small, "b").results[0].key
    entry = small / f"_build/cache/{key}.ipynb"
    whole = entry.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damaged in (b"", b"\n", whole[:-1], flipped, b"{}", b"[" * 100_000, b"\xff" * 100, whole[65:]):
        entry.write_bytes(damaged)
        assert statuses(run(small, "b", dry_run=True)) == {"b": "planned"}, damaged[:20]
    entry.unlink()
    entry.mkdir()
    (entry / "x").touch()
    report = run(small, "b")
    assert statuses(report) == {"b": "passed"}
    assert "not kept" in report.results[0].reason


@pytest.mark.parametrize("name", ["lib/second.py", "data/x.txt"])
def test_a_result_is_not_kept_if_what_decides_it_was_edited_while_it_ran(small, name):
    source = "import pathlib, subprocess\npathlib.Path('da' + 'ta', 'x.txt').read_text()\nimport lib.second\n"
    source += f"subprocess.run(['sh', '-c', 'echo three=3 >> {name[:5]}\"\"{name[5:]}'])"
    edit(small, "data/x.txt", "1")
    write(small, "b", chapter(source))
    first = run(small, "b").results[0]
    assert first.status == "passed"
    assert first.reason == f"not kept, changed meanwhile: {name}"
    assert statuses(run(small, "b")) == {"b": "passed"}


def test_a_failure_replaces_the_older_success_and_the_reverse(small):
    good = run(small, "b").results[0].notebook
    write(small, "b", chapter("1/0"))
    bad = run(small, "b").results[0].notebook
    assert bad.exists()
    assert not good.exists()
    write(small, "b", chapter("import lib.second\nlib.second.two"))
    assert statuses(run(small, "b")) == {"b": "cached"}
    assert good.exists()
    assert not bad.exists()


def test_long_and_odd_values_are_swept(tmp_path):
    root = build(
        tmp_path, a=chapter("print(repr(prompt))", parameters=PARAMETERS + 'prompt: str = "hi"  # words\n')
    )
    values = ["было " * 30, "a/b", 'x\n"y" [z] \\ \0 {0}']
    report = run(root, sweep={"prompt": values}, jobs=2)
    assert set(statuses(report).values()) == {"passed"}
    assert [stdout(result.notebook) for result in report.results] == [f"{value!r}\n" for value in values]
    assert set(statuses(run(root, sweep={"prompt": values})).values()) == {"cached"}


def test_an_output_url_takes_the_same_path(small):
    fsspec = pytest.importorskip("fsspec")
    report = run(small, "b", out="memory://bucket/runs")
    assert report.results[0].notebook == "memory://bucket/runs/b.ipynb"
    files = fsspec.filesystem("memory")
    found = {Path(name).name for name in files.ls("/bucket/runs", detail=False)}
    assert found == {"b.ipynb", "report.json", "junit.xml", MARKER}
    assert statuses(run(small, "b", out="memory://bucket/runs")) == {"b": "cached"}
    files.pipe_file("/bucket/other/mine.txt", b"by hand")
    with pytest.raises(ValueError, match=r"mine\.txt"):
        run(small, "b", out="memory://bucket/other")


# Mistakes


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
        ({"out": "nosuch://bucket"}, "nosuch"),
        ({"jobs": 0}, "jobs=0"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, monkeypatch, options, message):
    root = build(tmp_path, b=chapter(f"open({str(tmp_path / 'has-run')!r}, 'w')"))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with pytest.raises((LookupError, ValueError, OSError), match=f"(?s){message}") as error:
        run(root, *options.pop("slugs", ["b"]), **{"preset": "smoke"} | options)
    assert SECRET not in str(error.value)
    assert not (tmp_path / "has-run").exists()


def test_an_output_that_cannot_be_written_is_told_before_anything_runs(small, tmp_path):
    (tmp_path / "file").touch()
    for out in ("file/sub", "file"):
        with pytest.raises(OSError, match=r"cannot write .*file"):
            run(small, out=tmp_path / out)


def test_a_full_disk_leaves_no_half_written_file(tmp_path, monkeypatch):
    cache.write(tmp_path / "x", b"old")

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"cannot write .*No space left"):
        cache.write(tmp_path / "x", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


# Only what the runner wrote is replaced or removed


def test_no_folder_is_written_to_that_holds_something_else(small):
    before = {path.name: path.read_bytes() for path in (small / "notebooks").iterdir()}
    with pytest.raises(ValueError, match="holds files that the runner has not written"):
        run(small, out=small / "notebooks")
    (small / "notebooks" / MARKER).write_text("somebody else's")
    with pytest.raises(ValueError, match="holds files that the runner has not written"):
        run(small, out=small / "notebooks")
    (small / "notebooks" / MARKER).unlink()
    assert {path.name: path.read_bytes() for path in (small / "notebooks").iterdir()} == before


@pytest.mark.parametrize("name", ["b.ipynb", "failed/b.ipynb", "report.json", "junit.xml"])
@pytest.mark.parametrize("kind", ["text", "json", "folder", "notebook"])
def test_a_foreign_file_in_the_runners_folder_is_not_touched(small, name, kind):
    out = small / "out"
    cache.write(out / MARKER, cache.OWNER.encode())
    (out / name).parent.mkdir(exist_ok=True)
    if kind == "folder":
        (out / name).mkdir()
    else:
        content = {"text": "by hand", "json": '{"ok": true}', "notebook": nbformat.writes(chapter("1"))}
        (out / name).write_text(content[kind])
    with pytest.raises(ValueError, match=name):
        run(small, "b", out=out)
    assert kind == "folder" or (out / name).read_text() == content[kind]


def test_clean_removes_what_we_made_and_nothing_else(small):
    run(small, "b")
    build = small / "_build"
    mine = [
        "mine.txt",
        "runs/organism/mine.ipynb",
        "cache/mine.ipynb",
        "html/mine.html",
        "runs/other/b.ipynb",
    ]
    edit(build, "html/index.html", "built")
    edit(build, "html/.site", "index.html")
    for name in mine:
        edit(build, name, nbformat.writes(chapter("1")))
    assert clean(build, ".site") == sorted(mine)
    assert sorted(str(p.relative_to(build)) for p in build.rglob("*") if p.is_file()) == sorted(mine)
    for name in mine:
        (build / name).unlink()
    assert clean(build, ".site") == []


# Stopped, and several at once


COMMAND = """\
import signal; signal.signal(signal.SIGINT, signal.default_int_handler)  # off in a shell's background job
import lib, pathlib; lib.ROOT = pathlib.Path({root!r}); import book.__main__ as main
main.cli({arguments!r})"""


def command(root, *arguments, **environment):
    script = COMMAND.format(root=str(root), arguments=list(arguments))
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", script], env=os.environ | environment, **options)


@pytest.fixture
def short_folder():
    """A folder for temporary files; pytest's own are too deep for a Unix socket, whose path has 107 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_stopped_run_keeps_what_is_finished_and_goes_on_from_there(tmp_path, short_folder, number):
    waits = "import os, pathlib, subprocess, time\nif os.environ['WAIT'] == '1':\n"
    waits += "    other = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
    waits += "    pathlib.Path('_build/pids').write_text(f'{os.getpid()} {other.pid}')\n    time.sleep(60)"
    root = build(tmp_path, a=chapter("'done'"), b=chapter(waits))
    folder = root / "_build/runs/organism"
    cache.write(folder / MARKER, cache.OWNER.encode())
    cache.write(folder / "report.json", b'{"ok": true, "finished": true}')  # yesterday's, green
    # Under nohup, and in a script's background, signals are ignored: children inherit that.
    before = signal.getsignal(number)
    if before is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
    process = command(root, "run", WAIT="1", TMPDIR=str(short_folder))
    if before is signal.SIG_IGN:
        signal.signal(number, before)
    pids = root / "_build/pids"
    while not (pids.exists() and pids.read_text()) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    status = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGKILL: -9}[number]
    assert process.returncode == status
    assert "Traceback" not in errors
    assert number == signal.SIGKILL or "1 passed, interrupted" in errors
    deadline = time.monotonic() + 10
    alive = list(map(int, pids.read_text().split()))
    while any(map(psutil.pid_exists, alive)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(psutil.pid_exists, alive))
    while list(short_folder.glob("worked-papers-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(short_folder.glob("worked-papers-*")) == []
    report = json.loads((folder / "report.json").read_text())
    assert (report["ok"], report["finished"], [r["name"] for r in report["results"]]) == (False, False, ["a"])
    assert ET.parse(folder / "junit.xml").getroot().get("errors") == "1"
    if number == signal.SIGKILL:
        again = command(root, "run", WAIT="0")
        assert "cached  a" in again.communicate()[1]
        assert again.returncode == 0


def test_two_batches_into_the_same_folder_do_not_break_each_other(tmp_path):
    root = build(tmp_path, **{name: chapter(f"print('{name}')") for name in ("a", "b")})
    reports = []
    threads = [threading.Thread(target=lambda: reports.append(run(root, force=True))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.ok for report in reports] == [True, True]
    assert json.loads((root / "_build/runs/organism/report.json").read_text())["ok"] is True
    assert statuses(run(root)) == {"a": "cached", "b": "cached"}
