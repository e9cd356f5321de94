"""What several test files share: the one execution of all chapters at the `smoke` preset."""

import pytest


@pytest.fixture(scope="session")
def smoke_run():
    """The report on every chapter at its `smoke` preset, executed once a session (or cached)."""
    from lib import batch

    return batch.run(preset="smoke", jobs=2)
