"""Settings of every test process, and of those that tests start."""

import os

import pytest

# pytest-xdist already has one process per core; with more threads they would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test may reach for the network, and the libraries' hints are not warnings.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


@pytest.fixture(scope="module")
def small_tinyworld():
    """The embedded model is the small one of ``tests.support.small_world`` while the module's tests run."""
    from tests.support.small_world import small_world

    with small_world():
        yield
