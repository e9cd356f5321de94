"""What several test files share: the one execution of all chapters at the `smoke` preset, and one browser."""

import pytest


@pytest.fixture(scope="session")
def smoke_run():
    """The report on every chapter at its `smoke` preset, executed once a session (or cached)."""
    from lib import batch

    return batch.run(preset="smoke", jobs=2)


@pytest.fixture(scope="session")
def chromium():
    """Playwright allows one browser of this kind in a process."""
    browsing = pytest.importorskip("browsing")
    with browsing.chromium() as browser:
        yield browser
