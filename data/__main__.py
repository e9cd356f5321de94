"""The command line of the organisms: `python -m data train NAME [--check]`."""

import sys

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train the book's model organisms."""


@main.command()
@click.argument("name")
@click.option("--device", default="cpu", show_default=True, help="As in torch: cpu, cuda, ...")
@click.option("--resume/--no-resume", default=True, help="Go on from the last checkpoint, or start anew.")
@click.option("--check", is_flag=True, help="Only measure what is shipped, against its bars.")
def train(name: str, device: str, resume: bool, check: bool) -> None:
    """Train the organism NAME, as in `data/models`, or check the one that is shipped."""
    from data.train import registry

    try:
        if check:
            registry.check(name)
        else:
            registry.train(name, device=device, resume=resume)
    except (ValueError, LookupError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main(prog_name="python -m data")
