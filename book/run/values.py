"""Parameters' values: read from a command line as papermill reads them, and never as something else."""

import ast
import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any, get_args, get_origin
from urllib.parse import quote

from pydantic import TypeAdapter

from lib.chapters import Parameter

LONGEST_NAME = 100
"""Characters of an output's file name; file systems end at 255 bytes, some folders much earlier."""
_TYPES = {t.__name__: t for t in (bool, int, float, str, list, dict)}
_WORDS = {"True": True, "true": True, "False": False, "false": False}


def convert(parameter: Parameter, value: Any) -> Any:
    """`value` in the parameter's type.

    Text is read in that type: a `str` as it is, a number as papermill does. YAML's own readings (010 is 8,
    1:30 is 90, no is False) are never used.

    Raises:
        ValueError: the value does not have the type.
    """
    try:
        kind = eval(parameter.type, {"__builtins__": {}}, _TYPES)
        adapter = TypeAdapter(kind)
    except Exception:
        known = ", ".join(_TYPES)
        raise ValueError(f"type {parameter.type!r}: a parameter is one of {known}, list[int], ...") from None
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    value = value.tolist() if hasattr(value, "tolist") else value  # numpy's and torch's scalars and arrays
    typed: Callable[[str], Any] = partial(_typed, kind=kind)
    structured = (get_origin(kind) or kind) in (list, dict)
    for read in (json.loads, ast.literal_eval, typed) if structured else (typed,):
        with contextlib.suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            candidate = read(value) if isinstance(value, str) else value
            found = adapter.validate_python(candidate, strict=True)  # a ValidationError is a ValueError
            json.dumps(found, ensure_ascii=False).encode()  # for reports: no sets, no half characters
            return found
    shown = f"{value[:80]}..." if isinstance(value, str) and len(value) > 80 else value
    raise ValueError(
        f"{parameter.name}={shown!r}: expected {parameter.type}, for example {parameter.default!r}"
    )


def _typed(text: str, kind: Any) -> Any:
    """A text read in a type; `[a, 2]` may have words without quotes."""
    if kind is str:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if (get_origin(kind) or kind) in (list, Any) and text[:1] == "[" and text[-1:] == "]":
        inner = (get_args(kind) or (Any,))[0]
        return [_typed(item.strip(), inner) for item in split_values(text[1:-1])]
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text


def split_values(text: str) -> list[str]:
    """The values of `--sweep NAME=V1,V2`: apart at commas, but not within brackets or quotes.

    Raises:
        ValueError: a quote or bracket has no partner.
    """
    values, depth, quoted = [""], 0, ""
    for character in text:
        if quoted:
            quoted = "" if character == quoted else quoted
        elif character in "\"'" and (depth or not values[-1].strip()):
            quoted = character  # an apostrophe within a word is none
        elif character == "," and not depth:
            values.append("")
            continue
        else:
            depth += (character in "[{") - (character in "]}")
        values[-1] += character
    if depth or quoted:
        raise ValueError(f"{text!r}: a quote or bracket has no partner; put a value that has one in quotes")
    return [re.sub(r"""^\s*(["'])(.*)\1\s*$""", r"\2", value, flags=re.DOTALL) for value in values]


def run_name(slug: str, swept: dict[str, Any]) -> str:
    """The slug and the swept values, as a file name that is short and valid everywhere."""
    name = "--".join([slug, *(f"{n}={quote(str(v), safe=' ,[]')}" for n, v in swept.items())])
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 17]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
