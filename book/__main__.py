"""The command line: `python -m book run | build | record | claims | clean`."""

import contextlib
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from lib import ROOT

preset = click.option(
    "--preset", default="organism", help="From data/papers/SLUG.yml, such as smoke, organism or gpu."
)
jobs = click.option(
    "-j", "--jobs", default=1, type=click.IntRange(1), help="Chapters at a time; they share the cores."
)
parameter = click.option(
    "-p", "parameter", nargs=2, multiple=True, metavar="NAME VALUE", help="As in papermill."
)
slugs = click.argument("slugs", nargs=-1, metavar="[SLUG]...")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Worked Papers: execute the chapters, build the book, record runs."""


@main.command()
@slugs
@preset
@parameter
@click.option(
    "--sweep", multiple=True, metavar="NAME=V1,V2", help="Run with each value; several: all combinations."
)
@jobs
@click.option(
    "--scheduler", metavar="tcp://HOST:PORT", help="Run on this Dask scheduler's workers (trusted network!)."
)
@click.option("--out", metavar="FOLDER|URL", help="In place of _build/runs/PRESET; any fsspec URL.")
@click.option("--timeout", default=900.0, help="Seconds that a chapter may take.")
@click.option("--force", is_flag=True, help="Run also what is unchanged.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be run, and why.")
def run(
    slugs: tuple[str, ...],
    preset: str,
    parameter: tuple[tuple[str, str], ...],
    sweep: tuple[str, ...],
    **options: Any,
) -> None:
    """Execute chapters (all by default), in parallel; what is unchanged comes from the cache.

    Executed notebooks, report.json and junit.xml are in _build/runs/PRESET. The exit status is 0 if every
    chapter is there. A run that was stopped goes on where it was.

    \b
    python -m book run --jobs 2
    python -m book run lambda-vit -p seed 3 --sweep n_remove=0,1,2,3
    python -m book run --preset gpu --scheduler tcp://login:8786 --out s3://bucket/runs
    """
    from book.run import batch
    from book.run.values import split_values

    apart = [text.partition("=") for text in sweep]
    if wrong := [name for name, equals, _ in apart if not (name and equals)]:
        raise ValueError(f"{wrong[0]!r}: expected --sweep NAME=V1,V2")
    report = batch.run(
        list(slugs),
        preset=preset,
        parameters=_once("-p", parameter),
        sweep=_once("--sweep", ((name, split_values(values)) for name, _, values in apart)),
        **options,
    )
    place = (
        "" if options["dry_run"] else f": {options['out'] or ROOT / '_build' / 'runs' / preset}/report.json"
    )
    click.echo(f"{report.summary()}{place}", err=True)
    raise SystemExit(0 if report.ok else 1)


def _once(option: str, given: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in given:
        if "=" in name:
            raise ValueError(f"{name!r}: expected {option} NAME VALUE")
        if name in found:
            raise ValueError(f"{option} gives {name} twice; give all of its values in one, or one of them")
        found[name] = value
    return found


@main.command()
@preset
@jobs
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the site, in place of _build/html.")
def build(preset: str, jobs: int, out: Path | None) -> None:
    """Execute the chapters and build the website from them.

    \b
    python -m book build --jobs 2
    python -m book build --preset gpu --out site
    """
    from book.site.build import build

    build(preset=preset, out=out, jobs=jobs)


@main.command()
@slugs
@preset
@parameter
@click.option("--name", help="What sets this run apart, such as n_seeds=3. [default: seeds, with --seeds]")
@click.option("--seeds", metavar="S1,S2", help="Keep how the verdicts differ between these values of seed.")
@jobs
def record(
    slugs: tuple[str, ...],
    preset: str,
    parameter: tuple[tuple[str, str], ...],
    name: str | None,
    seeds: str | None,
    jobs: int,
) -> None:
    """Execute chapters, or take them from the cache, and keep their claims in data/results/SLUG--NAME.json.

    \b
    python -m book record d-leaf -p n_seeds 3 --name n_seeds=3
    python -m book record --seeds 0,1,2 --jobs 2
    python -m book record pahq --preset untrained --name untrained

    The names real and untrained have columns of their own in the ledger.
    """
    from book.run.record import record
    from book.run.values import split_values

    if not name and not (name := "seeds" if seeds else None):
        raise click.UsageError("Missing option '--name', which tells this run from others.")
    given = split_values(seeds) if seeds else None
    for path in record(
        list(slugs), name, preset=preset, parameters=_once("-p", parameter), seeds=given, jobs=jobs
    ):
        click.echo(path)


@main.command()
@slugs
@preset
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def claims(slugs: tuple[str, ...], preset: str, as_json: bool) -> None:
    """Print the ledger: each claim of the executed chapters, what was measured, and the verdict.

    \b
    python -m book claims lambda-vit --preset smoke
    """
    import json

    from book.run.collect import collect
    from lib.chapters import did_you_mean

    folder = ROOT / "_build" / "runs" / preset
    executed = {path.stem: path for path in sorted(folder.glob("*.ipynb")) if "--" not in path.stem}
    for slug in slugs:
        if slug not in executed:
            raise LookupError(f"no executed chapter {slug!r} in {folder}; {did_you_mean(slug, executed)}")
    if not executed:
        raise LookupError(f"nothing in {folder}; execute it: python -m book run --preset {preset}")
    records = [record for slug in slugs or executed for record in collect(executed[slug])]
    if as_json:
        click.echo(json.dumps([record.to_json() for record in records], indent=1))
        return
    width = shutil.get_terminal_size().columns
    for record in records:
        click.echo(_wrapped(str(record), min(width, 110)) + "\n")


def _wrapped(text: str, width: int) -> str:
    """Lines no longer than a width; what is carried over is indented a little more than its line."""
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        lines += textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False) or [""]
    return "\n".join(lines)


@main.command()
def clean() -> None:
    """Remove from _build what runs and builds have written (the cache too), and nothing else."""
    from book.run.cache import clean
    from book.site.replace import MARKER

    if left := clean(ROOT / "_build", MARKER):
        click.echo(f"left in {ROOT / '_build'}, because it is not ours: {', '.join(left[:10])}", err=True)


def cli(arguments: list[str]) -> None:
    """Run a command. What the user or the machine did wrong is told in one message, without a traceback."""

    def terminate(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number and signal.getsignal(number) != signal.SIG_IGN:  # as it is under nohup
            signal.signal(number, terminate)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # it is none of the interpreter's own
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        main.main(arguments, prog_name="python -m book", standalone_mode=False)
    except click.exceptions.Abort:
        raise SystemExit(130) from None
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, LookupError, RuntimeError, OSError) as error:
        if "--debug" in arguments[:1]:
            raise
        click.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    cli(sys.argv[1:])
