"""The runner against plain papermill: `python tests/bench/bench_batch.py [--chapters] [--threads]`.

What a run costs beside papermill's own time, on a small chapter; what a batch costs when nothing has changed;
with `--chapters` the same for the book's own chapters at `smoke`; with `--threads` how long two of them take
side by side by plain papermill, with OpenMP threads that sleep while they wait (as the chapters' setup cell
asks) and with threads that spin.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import papermill
from small_book import build, chapter

from lib import ROOT, chapters, papers

TWO = ("two-phase-interactions", "pgm")
"""Chapters whose default run keeps the cores busy."""


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def plain(root: Path, slug: str, out: Path, preset: str, **environment: str) -> subprocess.Popen[bytes]:
    """What one would type without the runner."""
    given = papers.read(slug, root / "data/papers").presets.get(preset, {})
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", f"notebooks/{slug}.ipynb", str(out)]
    for name, value in given.items():
        command += ["-y", f"{name}: {value}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=root, env=os.environ | environment, **quiet)


def loop(root: Path, preset: str, out: Path) -> None:
    for slug in chapters.slugs(root):
        if plain(root, slug, out / f"{slug}.ipynb", preset).wait():
            raise RuntimeError(f"{slug} failed")


def command(root: Path, *options: str) -> None:
    """`python -m book run`, as a user calls it."""
    script = f"import lib, pathlib; lib.ROOT = pathlib.Path({str(root)!r}); import book.__main__ as main; "
    script += f"main.cli({['run', *options]!r})"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def compare(title: str, root: Path, preset: str, out: Path) -> None:
    options = ["--preset", preset, "--out", str(out / "runs")]
    alone = seconds(lambda: loop(root, preset, out))
    one = seconds(lambda: command(root, *options, "--force"))
    two = seconds(lambda: command(root, *options, "--force", "--jobs", "2"))
    warm = seconds(lambda: command(root, *options))
    n = len(chapters.slugs(root))
    print(f"{title}: papermill in a loop {alone:.1f} s")
    print(f"  --jobs 1: {one:.1f} s, {(one - alone) / n:+.2f} s a run")
    print(f"  --jobs 2: {two:.1f} s, {alone / two:.2f} x as fast")
    print(f"  nothing changed: {warm:.1f} s", flush=True)


def side_by_side(out: Path) -> None:
    for policy in ("PASSIVE", "ACTIVE"):  # ACTIVE is what libgomp does by default, for a while

        def both(policy: str = policy) -> None:
            runs = [plain(ROOT, slug, out / f"{slug}.ipynb", "smoke", OMP_WAIT_POLICY=policy) for slug in TWO]
            statuses = [run.wait() for run in runs]
            if any(statuses):
                raise RuntimeError("a chapter failed")

        print(f"{' and '.join(TWO)} at once, OMP_WAIT_POLICY={policy}: {seconds(both):.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--synthetic", type=int, default=6, metavar="N", help="how many small chapters")
    parser.add_argument("--chapters", action="store_true", help="also the book's own chapters")
    parser.add_argument("--threads", action="store_true", help="also two chapters at once")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, papermill {papermill.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        small = {f"c{i}": chapter(f"print({i})") for i in range(options.synthetic)}
        compare(
            f"{len(small)} small chapters", build(Path(folder, "small"), **small), "organism", Path(folder)
        )
        if options.chapters:
            compare(f"{len(chapters.slugs())} chapters at smoke", ROOT, "smoke", Path(folder, "book"))
        if options.threads:
            side_by_side(Path(folder))


if __name__ == "__main__":
    main()
