"""A chapter on a real language model: what is judged is the model, and what it cannot tell is said."""

import importlib.util
from pathlib import Path

import pytest

from book.run import batch
from book.run.collect import collect
from lib import packaged


@pytest.mark.chapter
@pytest.mark.skipif(
    not (packaged.MODELS["smollm2"].path and importlib.util.find_spec("gguf")),
    reason=f"the packages of requirements-real.txt are not installed: {packaged.INSTALL}",
)
def test_words_of_smollm2_are_judged_and_trainings_that_are_not_seen_are_not(tmp_path: Path) -> None:
    report = batch.run(
        ["two-phase-interactions"],
        preset="real",
        parameters={"n_players": 4, "iterations": 50},
        out=str(tmp_path),
    )
    (result,) = report.results
    assert result.status in ("passed", "cached"), result.error
    records = {record.id: record for record in collect(Path(str(result.notebook)))}
    words = records.pop("two-phase-interactions.21")
    assert words.estimate is not None
    assert words.estimate.n == 16
    assert {record.verdict for record in records.values()} == {"not testable here"}
