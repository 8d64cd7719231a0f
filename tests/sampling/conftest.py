import gc
import weakref

import pytest
import torch

from tests.support.tiny_flux import make_tiny_flux
from tests.support.tiny_sd3 import make_tiny_sd3


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    return make_tiny_sd3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def sd3_bf16(tmp_path_factory):
    return make_tiny_sd3(tmp_path_factory.mktemp("sd3"), torch.bfloat16)


@pytest.fixture(scope="module")
def flux():
    return make_tiny_flux()


class FailedTensors:
    """Tensors of failed attempts, all of which have to be freed."""

    def __init__(self):
        self._made = []

    def add(self, tensor):
        self._made.append(weakref.ref(tensor))
        return tensor

    def check_freed(self):
        assert [made() for made in self._made] == [None] * len(self._made)


@pytest.fixture
def failed_tensors():
    """A ``FailedTensors``, while objects are freed by reference counting only."""
    gc.disable()
    yield FailedTensors()
    gc.enable()
