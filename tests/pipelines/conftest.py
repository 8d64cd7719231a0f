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


class Kept:
    """What failed attempts made, none of which may be there later."""

    def __init__(self):
        self._made = []

    def note(self, tensor):
        self._made.append(weakref.ref(tensor))
        return tensor

    def check(self):
        assert [made() for made in self._made] == [None] * len(self._made)


@pytest.fixture
def kept():
    """A ``Kept``, while nothing is freed but by its last reference."""
    gc.disable()
    yield Kept()
    gc.enable()
