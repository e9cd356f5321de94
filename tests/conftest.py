"""What several test files share: models and their inputs, one run of all chapters, and one browser."""

import pytest


def pytest_collection_modifyitems(config, items):
    """What is marked weekly waits for `-m weekly`."""
    if "weekly" not in config.getoption("markexpr"):
        left_out = pytest.mark.skip(reason="weekly: pytest -m weekly")
        for item in items:
            if item.get_closest_marker("weekly"):
                item.add_marker(left_out)


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    """The report on every chapter at its `smoke` preset; of two test processes one runs, the other waits."""
    from filelock import FileLock

    from book.run import batch

    with FileLock(tmp_path_factory.getbasetemp().parent / "smoke.lock"):  # shared by the processes
        return batch.run(preset="smoke", jobs=2)


@pytest.fixture(scope="session")
def chromium():
    """Playwright allows one browser of this kind in a process."""
    browsing = pytest.importorskip("browsing")
    with browsing.chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def llava():
    """The tiny LLaVA of `families`."""
    import families

    return families.subject("llava")


@pytest.fixture(scope="session")
def batch(llava):
    """Three prompts of different lengths, padded on the left, an image each."""
    import families

    return families.inputs(llava, families.QUESTIONS)
