"""The library's docstrings are plain text with `code` in backticks; autodoc expects reStructuredText."""

import re
from typing import Any

from sphinx.application import Sphinx

SECTIONS = re.compile(r"(Args|Attributes|Examples?|Raises|Returns|Yields|Notes?):$")


def plain_to_rest(lines: list[str]) -> list[str]:
    """Mark code as literal, escape what would be read as markup, open indented blocks of code."""
    result: list[str] = []
    in_code, last = False, ""
    for line in lines:
        indented = line.startswith("    ")
        if in_code and line and not indented:
            in_code = False
        elif indented and not in_code and not (result or ["x"])[-1] and re.match(r"\S", last):
            in_code = not SECTIONS.match(last)
            result += [".. code-block:: python", ""] * in_code
        result.append(line if in_code else _inline(line))
        last = line or last
    return result


def _inline(line: str) -> str:
    parts = re.split(r"(`+[^`]+`+)", line)
    for i, part in enumerate(parts):
        parts[i] = f"``{part.strip('`')}``" if i % 2 else re.sub(r"([*|]|(?<=\w)_\b)", r"\\\1", part)
    return "".join(parts)


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = plain_to_rest(lines)
    if lines and what in ("attribute", "data", "property"):
        lines[0] = f": {lines[0]}"  # else napoleon takes what stands before a colon for a type


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", process, priority=100)  # before napoleon
