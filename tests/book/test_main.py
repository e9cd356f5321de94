"""The command line."""

import io
import json
import os
import subprocess
import sys

import pytest
from small_book import build, chapter

import book.__main__ as main
from book.run import batch, collect
from book.run import record as recording
from book.run.report import Display, Report, Result
from lib import claims, papers


def call(capsys, *arguments):
    """Exit status and what was printed."""
    status = 0
    try:
        main.cli(list(arguments))
    except SystemExit as stopped:
        status = stopped.code
    printed = capsys.readouterr()
    return status, printed.out + printed.err


@pytest.fixture
def given(monkeypatch):
    """What the command line hands to `batch.run`, which does nothing."""
    seen = {}

    def run(slugs, **options):
        seen.update(options, slugs=slugs)
        return Report("organism", [Result("a", "a", "organism", {}, "k", seen.get("status", "passed"))])

    monkeypatch.setattr(batch, "run", run)
    return seen


@pytest.mark.parametrize("command", ["run", "build", "record", "claims", "clean"])
def test_every_command_explains_itself(capsys, command):
    status, text = call(capsys, command, "--help")
    assert status == 0
    assert f"Usage: python -m book {command}" in text
    assert command == "clean" or f"  python -m book {command} " in text.replace("\n\n", "\n")


def test_parameters_and_sweeps_are_read(given, capsys):
    arguments = "run a b -p seed -1 -p model x=y -p rate --2 --sweep n=0,1 --sweep layers=[1,2],[3] -j 2"
    assert call(capsys, *arguments.split(), "--sweep", "text='a, b',c")[0] == 0
    assert given["slugs"] == ["a", "b"]
    assert given["parameters"] == {"seed": "-1", "model": "x=y", "rate": "--2"}
    assert given["sweep"] == {"n": ["0", "1"], "layers": ["[1,2]", "[3]"], "text": ["a, b", "c"]}
    assert given["jobs"] == 2


@pytest.mark.parametrize(("outcome", "status"), [("passed", 0), ("cached", 0), ("failed", 1), ("died", 1)])
def test_the_exit_status_tells_whether_every_chapter_is_there(given, capsys, outcome, status):
    given["status"] = outcome
    assert call(capsys, "run")[0] == status


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "-p", "seed"], "'-p' requires 2 arguments"),
        (["run", "-p"], "'-p' requires 2 arguments"),
        (["run", "-p", "seed=1", "--force"], "'seed=1': expected -p NAME VALUE"),
        (["run", "--sweep", "seed"], "'seed': expected --sweep NAME=V1,V2"),
        (["run", "--sweep", "seed=1", "--sweep", "seed=2"], "--sweep gives seed twice"),
        (["run", "-p", "seed", "1", "-p", "seed", "2"], "-p gives seed twice"),
        (["run", "--jobs", "0"], "not in the range"),
        (["run", "no-such-chapter"], "error: no chapter 'no-such-chapter'"),
        (["run", "--preset", "no-such-preset"], "no preset 'no-such-preset'"),
        (["record", "lambda-vit"], "Missing option '--name'"),
        (["record", "lambda-vit", "--seeds", "x"], "seed='x': expected int"),
        (["record", "lambda-vit", "--name", "a/b"], "--name 'a/b': expected letters"),
        (["claims", "--preset", "no-such-preset"], "python -m book run --preset no-such-preset"),
        (["rum"], "No such command 'rum'"),
    ],
)
def test_a_mistake_is_one_message_and_no_traceback(capsys, arguments, message):
    status, text = call(capsys, *arguments)
    assert status != 0
    assert message in " ".join(text.split())
    assert "Traceback" not in text


def test_debug_shows_the_error_itself():
    with pytest.raises(LookupError):
        main.cli(["--debug", "run", "no-such-chapter"])


RECORD = claims.ClaimRecord(
    claim=papers.Claim(
        id="a.1",
        text="It is so [in brackets], as a long sentence that goes on and on says, in all of eighty columns.",
        paper="0.5",
        statistic="x",
        unit="points",
        null="y",
    ),
    verdict="holds",
    reason="r",
)


def test_claims_prints_the_ledger_of_the_executed_chapters_without_sweeps(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "_build/runs/smoke"
    folder.mkdir(parents=True)
    for name in ("a", "a--seed=1"):
        (folder / f"{name}.ipynb").touch()
    monkeypatch.setattr(main, "ROOT", tmp_path)
    monkeypatch.setattr(collect, "collect", lambda path: [RECORD])
    status, text = call(capsys, "claims", "--preset", "smoke", "--json")
    assert status == 0
    assert [(c["claim"]["id"], c["verdict"]) for c in json.loads(text)] == [("a.1", "holds")]
    monkeypatch.setenv("COLUMNS", "80")
    text = call(capsys, "claims", "--preset", "smoke")[1]
    assert max(map(len, text.splitlines())) <= 80
    assert "a.1: It is so [in brackets], as a long sentence that goes on" in text


def test_record_keeps_what_a_run_has_measured(tmp_path, monkeypatch):
    root = build(tmp_path, a=chapter("print(1)"), bad=chapter("1 / 0"))
    monkeypatch.setattr(recording, "collect", lambda path: [RECORD])
    (path,) = recording.record(["a"], "seed=3", preset="smoke", parameters={"seed": "3"}, root=root)
    assert path == root / "data/results/a--seed=3.json"
    kept = json.loads(path.read_text())
    assert kept["parameters"] == {"n_examples": 2, "seed": 3}  # what is not the default
    assert {"slug", "preset", "versions", "commit", "machine", "seconds", "date", "claims"} < set(kept)
    assert [record["claim"]["id"] for record in kept["claims"]] == ["a.1"]
    with pytest.raises(RuntimeError, match="bad failed, nothing is recorded"):
        recording.record(["bad"], "x", root=root)
    (root / "data/results/a--mine.json").write_text("by hand")
    with pytest.raises(ValueError, match=r"a--mine\.json"):
        recording.record(["a"], "mine", root=root)
    monkeypatch.setattr(recording, "collect", lambda path: [])
    with pytest.raises(RuntimeError, match="a has recorded no claim"):
        recording.record(["a"], "x", root=root)
    assert sorted(p.name for p in (root / "data/results").iterdir()) == ["a--mine.json", "a--seed=3.json"]


def test_help_does_not_import_what_it_does_not_need():
    code = "import sys, book.__main__ as m\ntry:\n    m.cli(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(bool({'torch', 'papermill', 'distributed', 'nbformat', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True)
    assert done.returncode == 0


def test_a_run_does_not_import_distributed_or_torch(tmp_path):
    code = "import sys, book.run.batch\n"
    code += "sys.exit(bool({'torch', 'distributed', 'dask', 'papermill', 'IPython'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0


# Terminals


class Terminal(io.StringIO):
    """A terminal that cannot show everything, and may be closed."""

    encoding = "ascii"
    closed_after = 10**6

    def isatty(self):
        return True

    def write(self, text):
        text.encode("ascii")
        self.closed_after -= 1
        if self.closed_after < 0:
            raise BrokenPipeError("closed")
        return super().write(text)


def test_names_and_errors_are_shown_as_they_are_on_any_terminal():
    display = Display(1, Terminal())
    display.finished(
        Result("a--x=[bold]", "a", "p", {}, "k", "failed", cell="cell 1: [/]", error="it was été")
    )
    text = display.stream.getvalue()
    for words in ("a--x=[bold]", "cell 1: [/]", "it was \\xe9t\\xe9"):
        assert words in text


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_display_that_fails_decides_nothing(writes):
    display = Display(2, Terminal())
    display.stream.closed_after = writes
    for _ in range(3):
        display.running({"a": (1, 2)})
        display.finished(Result("a", "a", "p", {}, "k", "passed"))
    assert display.done == 3


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_run_in_a_terminal_draws_its_progress_and_passes(tmp_path):
    """What shows in terminals only is hidden by pipes, and so is what goes wrong there."""
    import pty

    root = build(tmp_path, a=chapter("import time; time.sleep(0.5)"))
    code = (
        f"from pathlib import Path; from book.run import batch; print(batch.run(root=Path({str(root)!r})).ok)"
    )
    written = bytearray()

    def read(descriptor):
        written.extend(data := os.read(descriptor, 1024))
        return data

    status = pty.spawn([sys.executable, "-c", code], read, lambda _: b"")
    assert os.waitstatus_to_exitcode(status) == 0
    assert b"True" in written
    assert b"0/1 done; a cell 5/5" in written


def test_output_survives_a_terminal_that_knows_ascii_only(tmp_path):
    root = build(tmp_path, a=chapter("raise ValueError('été → [x]')"))
    code = f"import lib, pathlib; lib.ROOT = pathlib.Path({str(root)!r}); "
    code += "import book.__main__ as main; main.cli(['run'])"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ValueError: \\xe9t\\xe9 \\u2192 [x]" in done.stderr
    assert "1 failed in" in done.stderr
    assert "Traceback" not in done.stderr


def test_record_keeps_runs_with_several_seeds_side_by_side_and_loses_none_to_another_chapters_fault(
    tmp_path, monkeypatch
):
    root = build(tmp_path, a=chapter("print(1)"), bad=chapter("1 / 0"))
    monkeypatch.setattr(recording, "collect", lambda path: [RECORD])
    with pytest.raises(RuntimeError, match="bad--seed=0 failed, nothing is recorded"):
        recording.record([], "seeds", seeds=["0", "5"], root=root)
    kept = json.loads((root / "data/results/a--seeds.json").read_text())
    assert [run["parameters"] for run in kept["runs"]] == [{"seed": 0}, {"seed": 5}]
    assert kept["runs"][1]["claims"] == [{"id": "a.1", "estimate": None, "null": None}]
    assert [path.name for path in (root / "data/results").iterdir()] == ["a--seeds.json"]
