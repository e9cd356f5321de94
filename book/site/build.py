"""Build the website from executed chapters: run, stage, `jupyter-book build`, count what came out."""

import fnmatch
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import nbformat
import yaml

from book.run.batch import run
from book.run.report import BAD, Report, Result
from book.site import api
from book.site.replace import check_replaceable, replace
from lib import ROOT, chapters


def build(preset: str = "organism", out: Path | None = None, jobs: int = 1) -> Path:
    """Execute all chapters (what is unchanged comes from the cache) and build the site from them.

    Args:
        preset: the parameters that the chapters are run with.
        out: folder for the site; replaced as a whole. Default: `_build/html`.
        jobs: chapters executed at once.

    Returns:
        The path of the site's `index.html`.

    Raises:
        ValueError, OSError: `out` holds something other than an earlier site, or cannot be written to.
            Nothing was run or changed.
        RuntimeError: the site could not be built without warnings, or a chapter failed. In the latter case
            the site is there, and the chapter's page says what failed.
    """
    out = Path(out or ROOT / "_build" / "html").resolve()
    check_replaceable(out)
    start = time.perf_counter()
    report = run(preset=preset, jobs=jobs)
    middle = time.perf_counter()
    index = publish(report, out)
    end = time.perf_counter()
    print(f"{index}\nexecuting the chapters {middle - start:.0f} s, building the site {end - middle:.0f} s")
    if failed := [result.slug for result in report.results if result.status in BAD]:
        raise RuntimeError(
            f"the site is there, but these chapters failed, as their pages say: {', '.join(failed)}"
        )
    return index


def publish(report: Report, out: Path) -> Path:
    """Build the site in `out` from the notebooks of a report.

    Each build has a stage of its own, which is left there if something goes wrong.
    """
    notebooks = {result.slug: Path(result.notebook) for result in report.results if result.notebook}
    failures = {result.slug: _last_line(result) for result in report.results if result.status in BAD}
    (ROOT / "_build").mkdir(exist_ok=True)
    folder = Path(mkdtemp(prefix="stage-", dir=ROOT / "_build"))
    index = render(stage(notebooks, failures, folder), out)
    shutil.rmtree(folder)
    return index


def stage(executed: Mapping[str, Path], failures: Mapping[str, str], folder: Path) -> Path:
    """Lay out the book's source with executed notebooks in place of the plain ones.

    Args:
        executed: slug -> its executed notebook. A chapter without one is staged as it is.
        failures: slug -> error of the chapters whose run failed.
        folder: a new or an empty one.

    Raises:
        ValueError: `folder` is not empty; a chapter is missing in `_toc.yml`, or has no setup cell.
    """
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    listed = {name.removeprefix("notebooks/") for name in pages(yaml.safe_load(toc))}
    if forgotten := [slug for slug in chapters.slugs() if slug not in listed]:
        raise ValueError(f"_toc.yml does not list {', '.join(f'notebooks/{slug}' for slug in forgotten)}")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: give a new folder for the stage")
    (folder / "notebooks").mkdir(parents=True)
    (folder / "book").mkdir()
    for path in (ROOT / "book").iterdir():
        if path.suffix in {".md", ".bib"}:
            shutil.copy(path, folder / "book")
    config["execute"]["execute_notebooks"] = "off"
    (folder / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    (folder / "_toc.yml").write_text(toc, encoding="utf-8")
    for slug in chapters.slugs():
        result = executed.get(slug)
        notebook = nbformat.read(result, as_version=4) if result and result.exists() else chapters.read(slug)
        _fill_in_repository(notebook, config["repository"]["url"], slug)
        if slug in failures:
            notebook.metadata.setdefault("worked_papers", {})["error"] = failures[slug]
        nbformat.write(notebook, folder / "notebooks" / f"{slug}.ipynb")
    return folder


def render(source: Path, out: Path) -> Path:
    """Run Jupyter Book on a staged book, warnings as errors, and put the site in the folder `out`.

    Raises:
        RuntimeError: a warning, an error, or a page that is missing afterwards.
    """
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(source)]
    command += ["--path-output", str(source), "-W", "--keep-going", "--all"]
    with (source / "build.log").open("wb") as file:
        status = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode
    log = re.sub(r"\x1b\[[0-9;]*m", "", (source / "build.log").read_text(encoding="utf-8", errors="replace"))
    html = source / "_build" / "html"
    # Jupyter Book's exit status is not enough: it can be 0 although a page is missing.
    toc = yaml.safe_load((source / "_toc.yml").read_text(encoding="utf-8"))
    expected = [f"{name}.html" for name in [*pages(toc), "index", "search", "404"]] + ["sitemap.xml"]
    missing = [name for name in expected if not (html / name).is_file()]
    if status or missing:
        problems = [line for line in log.splitlines() if re.search(r"WARNING|ERROR|Error:|error:", line)]
        problems += [f"missing: {name}" for name in missing]
        raise RuntimeError(
            "the site was not built without warnings:\n  "
            + "\n  ".join(problems or log.splitlines()[-20:])
            + f"\nthe whole log: {source / 'build.log'}"
        )
    replace(out, html)
    return out / "index.html"


def pages(toc: Mapping[str, Any]) -> list[str]:
    """The pages that a `_toc.yml` lists, without their suffix; a glob stands for pages of modules."""
    found = [toc[key] for key in ("root", "file") if key in toc]
    if "glob" in toc:
        found += fnmatch.filter([f"{api.FOLDER}/{name}" for name in api.modules()], toc["glob"])
    for key in ("parts", "chapters", "sections"):
        for entry in toc.get(key, []):
            found += pages(entry)
    return [re.sub(r"\.(md|ipynb)$", "", name) for name in found]


def _fill_in_repository(notebook: nbformat.NotebookNode, url: str, slug: str) -> None:
    for cell in chapters.code_cells(notebook, "setup"):
        filled = cell.source.replace('REPOSITORY = ""', f'REPOSITORY = "{url}"', 1)
        if filled != cell.source:
            cell.source = filled
            return
    raise ValueError(f"notebooks/{slug}.ipynb has no setup cell with an empty REPOSITORY: run its checks")


def _last_line(result: Result) -> str:
    lines = (result.error or "").strip().splitlines()
    return f"{result.status} in {result.cell or 'the run'}" + (f": {lines[-1]}" if lines else "")
