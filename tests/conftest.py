"""What several test files share: the one execution of all chapters at the `smoke` preset."""

import pytest

from lib import batch


@pytest.fixture(scope="session")
def smoke_run() -> batch.Report:
    """Every chapter at its `smoke` preset, executed once a session (or served from the cache)."""
    return batch.run(preset="smoke", jobs=2)
