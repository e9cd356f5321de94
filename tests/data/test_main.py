"""The command line of the organisms."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from data import registry
from data.__main__ import main
from lib import ROOT


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.output


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["cards", "-h"], ["trane"]])
def test_help_and_mistakes_in_commands_do_not_wait_for_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from data.__main__ import main;"
        f"print(CliRunner().invoke(main, {arguments}).output); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage:")
    assert "Error: 0" not in done.stdout


def test_train_trains_or_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(registry, "train", lambda name, **options: calls.append((name, options)))
    monkeypatch.setattr(registry, "check", lambda name: calls.append((name, "check")))
    assert call("train", "x", "--device", "cuda", "--no-resume") == (0, "")
    assert call("train", "x", "--check") == (0, "")
    assert calls == [("x", {"device": "cuda", "resume": False}), ("x", "check")]


def test_train_without_a_name_lists_all_organisms() -> None:
    status, text = call("train")
    assert status == 0
    listed = [name for line in text.splitlines() for name in line.split()[1:]]
    assert listed == registry.names()


def test_a_mistake_is_one_line_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    status, text = call("train", "scene-vlm")
    assert status == 1
    assert text == "Error: no organism 'scene-vlm'; there are: scenes-vlm, scan-vlm, scenes-vlm-seed2\n"

    def refuse(name: str) -> None:
        raise RuntimeError(f"{name} misses\n 1 of its 2 bars")

    monkeypatch.setattr(registry, "check", refuse)
    assert call("train", "x", "--check") == (1, "Error: x misses 1 of its 2 bars\n")


def test_cards_says_which_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "rewrite_cards", lambda: ["a", "b"])
    assert call("cards") == (0, "changed: a, b\n")
    monkeypatch.setattr(registry, "rewrite_cards", list)
    assert call("cards") == (0, "every card is up to date\n")
