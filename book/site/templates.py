"""The HTML of what the extension adds to pages: Jinja templates of `book/_templates`."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, Template

FOLDER = Path(__file__).parents[1] / "_templates"


@cache
def _environment() -> Environment:
    return Environment(loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def template(name: str) -> Template:
    return _environment().get_template(name)
