"""Settings of every test process, and of those that tests start."""

import os
from pathlib import Path

import pytest

SLOW = Path(__file__).with_name("slow_tests.txt")

# pytest-xdist already has one process per core; with more threads they would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test may reach for the network, and the libraries' hints are not warnings.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of slow_tests.txt, which ``tests/support/slow_tests.py`` writes from a measured run."""
    slow = set(SLOW.read_text(encoding="utf-8").split())
    for item in items:
        if item.nodeid.partition("[")[0] in slow:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def small_tinyworld():
    """The embedded model is the small one of ``tests.support.small_world`` while the module's tests run."""
    from tests.support.small_world import small_world

    with small_world():
        yield
