"""The runner against plain papermill in a loop: `python tests/bench_batch.py [--synthetic N]`.

Two batches: small synthetic chapters that import torch and transformers, so that the start of the kernels is
what is measured, and the book's own chapters at their `smoke` preset. Each is run by papermill in a loop, by
the runner with two jobs, and again by the runner when nothing has changed.
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

from book.run import batch
from lib import ROOT, chapters, papers

IMPORTS = (
    "import torch\nfrom transformers import AutoModelForCausalLM\nfloat(torch.randn(64, 64).square().mean())"
)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def loop(root: Path, preset: str) -> None:
    """What one would write without the runner."""
    with tempfile.TemporaryDirectory() as out:
        for slug in chapters.slugs(root):
            given = papers.read(slug, root / "data/papers").presets.get(preset, {})
            source = str(root / f"notebooks/{slug}.ipynb")
            papermill.execute_notebook(source, f"{out}/{slug}.ipynb", given, cwd=root, progress_bar=False)


def command(root: Path, *options: str) -> None:
    """`python -m book run`, as a user calls it."""
    script = f"import lib, pathlib; lib.ROOT = pathlib.Path({str(root)!r}); import book.__main__ as main; "
    script += f"main.cli({['run', *options]!r})"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def compare(title: str, root: Path, preset: str, out: Path) -> None:
    options = ["--preset", preset, "--jobs", "2", "--out", str(out)]
    plain = seconds(lambda: loop(root, preset))
    cold = seconds(lambda: command(root, *options, "--force"))
    warm = seconds(lambda: command(root, *options))
    print(f"{title}: papermill in a loop {plain:.1f} s")
    print(f"  cold, --jobs 2: {cold:.1f} s, {plain / cold:.2f} x as fast")
    print(f"  warm:           {warm:.1f} s, {plain / warm:.1f} x as fast", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--synthetic", type=int, default=6, metavar="N", help="how many small chapters")
    parser.add_argument("--no-chapters", action="store_true", help="leave the book's own chapters out")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores; runner: {batch.__name__}, papermill {papermill.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        root = build(Path(folder), **{f"c{i}": chapter(f"{IMPORTS}{i}") for i in range(options.synthetic)})
        compare(f"{options.synthetic} small chapters", root, "organism", Path(folder, "out"))
        if not options.no_chapters:
            compare(f"{len(chapters.slugs())} chapters of the book", ROOT, "smoke", Path(folder, "book"))


if __name__ == "__main__":
    main()
