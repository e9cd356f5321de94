"""What an executed notebook recorded: the rows of its ledger, and its findings."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lib.claims import CLAIM_MIME, FINDING_MIME, RECORD, ClaimRecord


def collect(path: str | Path) -> list[ClaimRecord]:
    """The records in an executed notebook's outputs, in order.

    Raises:
        ValueError: the file is no notebook, a record is damaged, or a claim is recorded twice.
    """
    try:
        records = [RECORD.validate_python(data) for data in _outputs(path, CLAIM_MIME)]
    except ValidationError as error:
        raise ValueError(
            f"{path}: a claim's record is damaged, execute the notebook again: {error}"
        ) from None
    ids = [record.id for record in records]
    if twice := sorted({id for id in ids if ids.count(id) > 1}):
        raise ValueError(f"{path} records {', '.join(twice)} more than once; a claim has one verdict")
    return records


def findings(path: str | Path) -> list[dict[str, Any]]:
    """The findings in an executed notebook's outputs, in order: `text`, `verdict` and `claims` of each."""
    return list(_outputs(path, FINDING_MIME))


def _outputs(path: str | Path, mime: str) -> Iterator[Any]:
    try:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a notebook: {error!r}") from None
    return (data[mime] for data in outputs if mime in data)
