"""The command line of the organisms: `python -m data train [NAME] [--check]`, `python -m data cards`."""

import click

# `data.train` brings torch, which takes seconds: it is imported when a command runs, so that --help is quick.


class _OneLine(click.Group):
    """Errors in the user's input are one line, not a traceback."""

    def invoke(self, ctx: click.Context) -> None:
        try:
            super().invoke(ctx)
        except click.exceptions.Exit:  # a RuntimeError by which click ends --help
            raise
        except (ValueError, LookupError, RuntimeError, OSError) as error:
            message = error.args[0] if isinstance(error, LookupError) and error.args else error
            raise click.ClickException(" ".join(str(message).split())) from None


@click.group(cls=_OneLine, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Make the book's model organisms."""


@main.command()
@click.argument("name", required=False)
@click.option("--device", default="cpu", show_default=True, help="As in torch: cpu, cuda, ...")
@click.option("--resume/--no-resume", default=True, help="Go on from the last checkpoint, or start anew.")
@click.option("--check", is_flag=True, help="Only measure what is shipped, against its bars.")
def train(name: str | None, device: str, resume: bool, check: bool) -> None:
    """Train the organism NAME into `data/models`, or check the one that is shipped; without NAME, list them.

    A run that was stopped goes on from its last checkpoint.
    """
    from data import registry

    if name is None:
        for family, recipes in registry.families().items():
            for base in recipes:
                click.echo(f"{family:10} {' '.join(registry.names(base))}")
    elif check:
        registry.check(name)
    else:
        registry.train(name, device=device, resume=resume)


@main.command()
def cards() -> None:
    """Write cards and bars of the shipped organisms anew, after a change of a recipe's bars or prose."""
    from data import registry

    changed = registry.rewrite_cards()
    click.echo(f"changed: {', '.join(changed)}" if changed else "every card is up to date")


if __name__ == "__main__":
    main(prog_name="python -m data")
