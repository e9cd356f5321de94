"""Keep secrets out of what is stored: executed notebooks, reports, logs."""

import base64
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(API|ACCESS|PRIVATE|SECRET)_?KEY(_ID)?)(_|$)", re.I
)
SHORTEST = 6
"""Characters of a value that is taken for a secret; hiding shorter ones would mangle ordinary text."""
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def secrets() -> dict[str, str]:
    """Values that must not be published -> what to print instead, the longest first.

    They are the values of environment variables such as HF_TOKEN, OPENAI_API_KEY or AWS_SECRET_ACCESS_KEY,
    and the token that `hf auth login` stored; also in the forms in which they are often written.
    """
    named = {name: value for name, value in os.environ.items() if SECRET_NAME.search(name)}
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    stored = Path(os.environ.get("HF_TOKEN_PATH", f"{home}/token")).expanduser()
    if stored.is_file() and os.access(stored, os.R_OK):
        named["stored HF token"] = stored.read_text(encoding="utf-8", errors="replace").strip()
    hidden = {}
    for name, value in named.items():
        if len(value) >= SHORTEST:
            encoded = base64.b64encode(value.encode()).decode()
            for form in (value, quote(value, safe=""), json.dumps(value)[1:-1], repr(value)[1:-1], encoded):
                hidden[form] = f"[{name} hidden]"
    return dict(sorted(hidden.items(), key=lambda item: -len(item[0])))


def redact(value: Any, hidden: dict[str, str] | None = None) -> Any:
    """`value`, and all that it contains, with secrets replaced; a notebook is changed in place."""
    if hidden is None and not (hidden := secrets()):
        return value
    if isinstance(value, str):
        plain = ANSI.sub("", value)  # colours may run through the middle of a secret
        if plain != value and any(secret in plain and secret not in value for secret in hidden):
            value = plain
        for secret, mask in hidden.items():
            value = value.replace(secret, mask)
    elif isinstance(value, dict):
        for key in list(value):
            content = redact(value.pop(key), hidden)
            value[redact(key, hidden)] = content
    elif isinstance(value, list):
        value[:] = [redact(item, hidden) for item in value]
    return value
