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
