"""The command line: `python -m book run | book | train | claims | doctor`."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from lib import ROOT

app = typer.Typer(
    name="python -m book",
    help="Worked Papers: execute the chapters, build the book, train its model organisms.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Preset = Annotated[
    str, typer.Option(help="Parameters from `data/papers/<slug>.yml`: smoke, organism or gpu.")
]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Chapters at a time; they share the cores.")]
Name = Annotated[str, typer.Argument(help="As in `data/models`, for example digits-vit.")]


@app.callback()
def main(debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False) -> None:
    """Worked Papers: execute the chapters, build the book, train its model organisms."""
    if debug:
        os.environ["WORKED_PAPERS_DEBUG"] = "1"


@app.command()
def run(
    slugs: Annotated[list[str] | None, typer.Argument(help="The chapters; all of them by default.")] = None,
    preset: Preset = "organism",
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", metavar="NAME VALUE", help="A parameter's value, as in papermill. Repeatable."),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=V1,V2", help="Run with each value; several sweeps: each combination."),
    ] = None,
    jobs: Jobs = 1,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="tcp://HOST:PORT", help="Run on this Dask scheduler's workers (trusted network!)."
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|URL", help="In place of `_build/runs/<preset>`; any fsspec URL."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that a chapter may take.")] = 900.0,
    force: Annotated[bool, typer.Option("--force", help="Run also what is unchanged.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be run, and why.")] = False,
) -> None:
    """Execute chapters, in parallel; what is unchanged comes from the cache.

    Executed notebooks, `report.json`, `junit.xml` and `report.html` are in `_build/runs/<preset>`.
    The exit status is 0 if every chapter is there. A run that was stopped goes on where it was.

        python -m book run --jobs 2

        python -m book run lambda-vit -p seed 3 --sweep n_remove=0,1,2,3

        python -m book run --preset gpu --scheduler tcp://login:8786 --out s3://bucket/runs
    """
    from book.run import batch

    report = batch.run(
        slugs,
        preset=preset,
        parameters=dict(_assignment(text, "-p NAME VALUE") for text in parameter or []),
        sweep={
            name: re.split(r",(?![^\[]*\])", values)  # not at the commas of a list
            for name, values in (_assignment(text, "--sweep NAME=V1,V2") for text in sweep or [])
        },
        jobs=jobs,
        scheduler=scheduler,
        out=out,
        timeout=timeout,
        force=force,
        dry_run=dry_run,
    )
    place = "" if dry_run else f": {out or ROOT / '_build' / 'runs' / preset}/report.html"
    Console(stderr=True).print(f"{report.summary()}{place}", highlight=False, soft_wrap=True)
    raise typer.Exit(0 if report.ok else 1)


def _assignment(text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"{text!r}: expected {form}")
    return name, value


@app.command()
def book(
    preset: Preset = "organism",
    jobs: Jobs = 1,
    out: Annotated[Path | None, typer.Option(help="Folder of the site, in place of `_build/html`.")] = None,
) -> None:
    """Execute the chapters and build the website from them.

    python -m book build --jobs 2

    python -m book build --preset gpu --out site
    """
    from book.site.build import build

    build(preset=preset, out=out, jobs=jobs)


@app.command()
def train(
    name: Name,
    device: Annotated[str, typer.Option(help="As in torch: cpu, cuda, ...")] = "cpu",
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = True,
    check: Annotated[bool, typer.Option("--check", help="Only measure what is shipped.")] = False,
) -> None:
    """Train a model organism, or check the one that is shipped against its bars.

    python -m data train digits-vit

    python -m data train digits-vit --check
    """
    from data import registry as organisms

    if check:
        organisms.check(name)
    else:
        organisms.train(name, device=device, resume=resume)


@app.command()
def claims(
    slugs: Annotated[list[str] | None, typer.Argument(help="The chapters; all of them by default.")] = None,
    preset: Preset = "organism",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Print the ledger: each claim of the executed chapters, what was measured, and the verdict.

    python -m book claims lambda-vit --preset smoke
    """
    import json

    from rich.table import Table

    from lib.chapters import did_you_mean
    from lib.claims import collect

    folder = ROOT / "_build" / "runs" / preset
    executed = {path.stem: path for path in sorted(folder.glob("*.ipynb")) if "--" not in path.stem}
    for slug in slugs or []:
        if slug not in executed:
            raise LookupError(f"no executed chapter {slug!r} in {folder}; {did_you_mean(slug, executed)}")
    if not executed:
        raise LookupError(f"nothing in {folder}; execute it: python -m book run --preset {preset}")
    records = [record for slug in slugs or executed for record in collect(executed[slug])]
    if as_json:
        print(json.dumps([record.to_json() for record in records], indent=1, ensure_ascii=False))
        return
    table = Table("Claim", "Verdict", "This run", "Control", "Paper", title=f"Claims, preset {preset}")
    for record in records:
        measured = [f"{e} {record.unit or ''}" if e else "" for e in (record.estimate, record.control)]
        cells = (f"{record.id}\n{record.text}", record.verdict, *measured, record.paper or "")
        table.add_row(*map(escape, cells))
    Console().print(table)


@app.command()
def doctor() -> None:
    """Check this machine: packages, devices, memory, browser, organisms, write access."""
    failed = False
    for good, text in _findings():
        sign = {True: "[green]✓[/]", False: "[red]✗[/]", None: "[yellow]–[/]"}[good]
        Console().print(f"{sign} {escape(text)}", highlight=False, soft_wrap=True)
        failed |= good is False
    raise typer.Exit(int(failed))


def _findings() -> Iterator[tuple[bool | None, str]]:
    """Whether something is as it should be (None: it could be better), and what was found."""
    import platform
    import shutil
    from importlib.metadata import distributions

    import psutil

    from book.run.cache import Output
    from book.run.redact import secrets

    yield sys.version_info >= (3, 11), f"Python {platform.python_version()} (3.11 or newer is needed)"

    installed = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions()}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    needed = [name[0].lower() for line in lines if (name := re.match(r"\w[\w.-]*", line))]
    missing = [name for name in needed if name not in installed]
    yield not missing, f"required packages: {', '.join(missing) or 'none'} missing"
    pinned = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    pins = {name.lower().replace("_", "-"): version for name, version in pinned}
    other = [
        f"{n} {installed[n]} (not {v})" for n, v in pins.items() if installed.get(n, v).split("+")[0] != v
    ]
    yield (None if other else True), f"versions other than in constraints.txt: {', '.join(other) or 'none'}"

    import torch

    from lib.models import check_files

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    gpus += ["Apple GPU (mps)"] if torch.backends.mps.is_available() else []
    yield True, f"devices: cpu ({torch.get_num_threads()} threads){''.join(f', {name}' for name in gpus)}"
    memory = psutil.virtual_memory()
    enough = memory.available > 4 * 2**30 or None
    yield (
        enough,
        f"{os.cpu_count()} cores, {memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free",
    )
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    yield bool(browser) or None, f"browser for the tests of the site: {browser or 'no Chromium'}"

    for folder in sorted((ROOT / "data" / "models").glob("*/")):
        good, text = True, "intact"
        try:
            check_files(folder)
            if not (folder / "sha256.json").is_file():
                good, text = False, "has no sha256.json"
        except (OSError, ValueError) as error:
            good, text = False, str(error)
        yield good, f"organism {folder.name}: {text}"

    try:
        Output(ROOT / "_build").prepare()
        yield True, f"{ROOT / '_build'} can be written to"
    except OSError as error:
        yield False, str(error)
    names = sorted({mask.strip("[]").removesuffix(" hidden") for mask in secrets().values()})
    yield True, f"secrets in the environment, hidden in outputs: {', '.join(names) or 'none'}"


def cli(arguments: list[str]) -> None:
    """Run a command. What the user or the machine did wrong is told in one message, without a traceback."""

    def terminate(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, terminate)
    try:
        app(_joined(arguments))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, LookupError, RuntimeError, OSError) as error:
        if os.environ.get("WORKED_PAPERS_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _joined(arguments: list[str]) -> list[str]:
    """`-p NAME VALUE`, as in papermill, made one argument, which is what typer can repeat."""
    rest, joined = iter(arguments), []
    for argument in rest:
        joined.append(argument)
        if argument == "-p":
            name = next(rest, "")
            joined.append(name if "=" in name else f"{name}={value}" if (value := next(rest, None)) else name)
    return joined


if __name__ == "__main__":
    cli(sys.argv[1:])
