"""The command line."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from small_book import build, chapter

import book.__main__ as main
from book.run import batch
from book.run.report import Report, Result
from data import registry as organisms
from lib import claims


def call(capsys, *arguments):
    """Exit status and what was printed."""
    with pytest.raises(SystemExit) as stopped:
        main.cli(list(arguments))
    printed = capsys.readouterr()
    return stopped.value.code, printed.out + printed.err


@pytest.fixture
def given(monkeypatch):
    """What the command line hands to `batch.run`, which does nothing."""
    seen = {}

    def run(slugs, **options):
        seen.update(options, slugs=slugs)
        return Report("organism", [Result("a", "a", "organism", {}, "k", seen.get("status", "passed"))])

    monkeypatch.setattr(batch, "run", run)
    return seen


@pytest.mark.parametrize("command", ["run", "book", "train", "claims", "doctor"])
def test_every_command_explains_itself(capsys, command):
    status, text = call(capsys, command, "--help")
    assert status == 0
    assert f"python -m book {command}" in text.replace("\n", " ") or command == "doctor"


def test_parameters_and_sweeps_are_read(given, capsys):
    arguments = "run a b -p seed -1 -p model x=y -p rate=2 --sweep n=0,1 --sweep layers=[1,2],[3] -j 2"
    assert call(capsys, *arguments.split())[0] == 0
    assert given["slugs"] == ["a", "b"]
    assert given["parameters"] == {"seed": "-1", "model": "x=y", "rate": "2"}
    assert given["sweep"] == {"n": ["0", "1"], "layers": ["[1,2]", "[3]"]}
    assert given["jobs"] == 2


@pytest.mark.parametrize(("outcome", "status"), [("passed", 0), ("cached", 0), ("failed", 1), ("died", 1)])
def test_the_exit_status_tells_whether_every_chapter_is_there(given, capsys, outcome, status):
    given["status"] = outcome
    assert call(capsys, "run")[0] == status


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "-p", "seed"], "'seed': expected -p NAME VALUE"),
        (["run", "-p"], "expected -p NAME VALUE"),
        (["run", "--sweep", "seed"], "'seed': expected --sweep NAME=V1,V2"),
        (["run", "no-such-chapter"], "error: no chapter 'no-such-chapter'"),
        (["run", "--preset", "no-such-preset"], "no preset 'no-such-preset'"),
        (["claims", "--preset", "no-such-preset"], "python -m book run --preset no-such-preset"),
        (["train", "no-such-organism"], "no organism 'no-such-organism'"),
        (["rum"], "Did you mean 'run'"),
    ],
)
def test_a_mistake_is_one_message_and_no_traceback(capsys, monkeypatch, arguments, message):
    monkeypatch.delenv("WORKED_PAPERS_DEBUG", raising=False)
    status, text = call(capsys, *arguments)
    assert status != 0
    assert message in " ".join(text.split())
    assert "Traceback" not in text


def test_debug_shows_the_error_itself(monkeypatch):
    monkeypatch.setenv("WORKED_PAPERS_DEBUG", "")
    with pytest.raises(LookupError):
        main.cli(["--debug", "run", "no-such-chapter"])


def test_train_trains_or_checks(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(organisms, "train", lambda name, **options: calls.append((name, options)))
    monkeypatch.setattr(organisms, "check", lambda name: calls.append((name, "check")))
    call(capsys, "train", "x", "--device", "cuda", "--no-resume")
    call(capsys, "train", "x", "--check")
    assert calls == [("x", {"device": "cuda", "resume": False}), ("x", "check")]


def test_claims_prints_the_ledger_of_the_executed_chapters_without_sweeps(monkeypatch, capsys, tmp_path):
    record = claims.ClaimRecord(
        id="a.1",
        slug="a",
        text="It is so.",
        paper="0.5",
        statistic="x",
        unit="points",
        verdict="holds",
        reason="r",
    )
    folder = tmp_path / "_build/runs/smoke"
    folder.mkdir(parents=True)
    for name in ("a", "a--seed=1"):
        (folder / f"{name}.ipynb").touch()
    monkeypatch.setattr(main, "ROOT", tmp_path)
    monkeypatch.setattr(claims, "collect", lambda path: [record])
    status, text = call(capsys, "claims", "--preset", "smoke", "--json")
    assert status == 0
    assert [(c["id"], c["verdict"]) for c in json.loads(text)] == [("a.1", "holds")]
    assert "It is so." in call(capsys, "claims", "--preset", "smoke")[1]


def test_doctor_finds_a_damaged_organism_and_tells_no_secret(monkeypatch, capsys, tmp_path):
    build(tmp_path, a=chapter())
    tiny = tmp_path / "data/models/tiny"
    save_file({"weight": torch.zeros(1)}, tiny / "model.safetensors")
    (tiny / "sha256.json").write_text('{"config.json": "0"}')
    for name in ("requirements.txt", "constraints.txt"):
        (tmp_path / name).write_text("pytest==0.1\n" if "con" in name else "pytest  # a remark\n-e .\n")
    monkeypatch.setattr(main, "ROOT", tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    status, text = call(capsys, "doctor")
    assert status == 1
    assert f"✗ organism tiny: {tiny / 'config.json'} is not the published file" in text
    assert "required packages: none missing" in text
    assert "(not 0.1)" in text
    assert "HF_TOKEN" in text
    assert "hf_0123456789" not in text


def test_help_does_not_import_what_it_does_not_need():
    code = "import sys, book.__main__ as m\ntry:\n    m.cli(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(bool({'torch', 'papermill', 'distributed', 'nbformat', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True)
    assert done.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_run_in_a_terminal_draws_its_progress_and_passes(tmp_path):
    """Columns of the display are drawn in terminals only; pipes hide what goes wrong there."""
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
    assert b"cell" in written


def test_no_folder_is_written_to_that_holds_something_else(tmp_path, capsys):
    root = build(tmp_path / "book", a=chapter(), bad=chapter("1 / 0"))
    before = {path.name: path.read_bytes() for path in (root / "notebooks").iterdir()}
    with pytest.raises(ValueError, match="holds files that the runner has not written"):
        batch.run(root=root, out=root / "notebooks")
    assert {path.name: path.read_bytes() for path in (root / "notebooks").iterdir()} == before
    batch.run(["a"], root=root, out=tmp_path / "new")
    batch.run(["a", "bad"], root=root, out=tmp_path / "new")  # its own
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/mine.md").write_text("by hand")
    status, text = call(capsys, "book", "--out", str(tmp_path / "docs"))
    assert status == 1
    assert "mine.md" in text
    assert (tmp_path / "docs/mine.md").read_text() == "by hand"
