"""The book's site beside the same pages under Jupyter Book's default theme, opened by the same browser.

Run: python tests/bench_site.py
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import browsing
import yaml

from book.run.batch import run
from book.site import build as book


def default_config(config: dict) -> dict:
    """Jupyter Book's own configuration with this book's pages: default theme, MathJax, default extensions."""
    return {
        **{key: config[key] for key in ("title", "author", "only_build_toc_files", "repository", "parse")},
        "execute": config["execute"],
        "bibtex_bibfiles": config["bibtex_bibfiles"],
        "html": {"use_issues_button": True, "use_repository_button": True},
        "launch_buttons": {"colab_url": "https://colab.research.google.com"},
        "sphinx": {
            "extra_extensions": ["sphinx.ext.autodoc", "sphinx.ext.napoleon"],
            "local_extensions": {
                f"book.site.{name}": "." for name in ("tables", "outputs", "docstrings", "api")
            },
            "config": {"worked_papers_addresses": {"colab": "https://colab.research.google.com/"}},
        },
    }


def build_default(stage: Path, out: Path) -> Path:
    shutil.copytree(stage, out, ignore=shutil.ignore_patterns("_build"))
    config = yaml.safe_load((stage / "_config.yml").read_text())
    (out / "_config.yml").write_text(yaml.safe_dump(default_config(config)))
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=book.ROOT)
    return out / "_build" / "html"


def measure(site: Path, pages: list[str]) -> dict[str, browsing.Visit]:
    with browsing.chromium() as browser, browsing.served(site) as base:
        return browsing.tour(browser, base, pages, set(pages))


def spread(values: list[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)}-{max(values)}"


def rows(visits: dict[str, browsing.Visit]) -> dict[str, str]:
    """What the issue of the default theme is about, over all pages."""
    everyone = list(visits.values())
    rules = [{found.split(":")[0] for look in v.violations.values() for found in look} for v in everyone]
    weights = sorted(v.bytes / 1e6 for v in everyone)
    return {
        "axe rules broken, a page": spread([len(broken) for broken in rules]),
        "  rules": ", ".join(sorted(set().union(*rules))) or "-",
        "console errors, a page": spread([len(v.console) for v in everyone]),
        "  errors": "; ".join(sorted({text[:60] for v in everyone for text in v.console})) or "-",
        "foreign requests, a page": spread([len(v.foreign) for v in everyone]),
        "MB without figures, a page": f"{weights[0]:.2f}-{weights[-1]:.2f}",
        "pages wider than a phone": str(sum(v.overflow > 0 for v in everyone)),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        stage, ours, default = (Path(folder, name) for name in ("stage", "ours", "default"))
        results = run(preset="smoke", jobs=2).results
        executed = {result.slug: Path(result.notebook) for result in results if result.notebook}
        book.render(book.stage(executed, {}, stage), ours)
        toc = yaml.safe_load((stage / "_toc.yml").read_text())
        pages = [f"{name}.html" for name in book.pages(toc)]
        mine, theirs = measure(ours, pages), measure(build_default(stage, default), pages)
    left, right = rows(mine), rows(theirs)
    print(f"{len(pages)} pages at 1280 and 390 px, light and dark, network blocked\n")
    print(f"{'':<28}{'this book':<14}default theme")
    for name in left:
        print(f"{name:<28}{left[name]:<14}{right[name]}")
    ratio = [theirs[page].bytes / mine[page].bytes for page in pages]
    print(f"\nweight, default / ours: {min(ratio):.1f} to {max(ratio):.1f}")


if __name__ == "__main__":
    main()
