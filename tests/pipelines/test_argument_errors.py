"""``is_argument_error``: errors about the arguments of a call, and errors inside a pipeline."""

import pytest

from tests.support.families import FAMILIES, tiny_pipe
from tpdm.pipelines.arguments import is_argument_error

ODD = {"height": 17, "width": 17}


@pytest.mark.parametrize("name", ["SD3", "Z-Image", "SD1.5", "Sana"])
def test_an_invalid_size_is_an_argument_error(name):
    family, pipe = FAMILIES[name], tiny_pipe(name)
    with pytest.raises(ValueError, match="divisible") as caught:
        pipe(**family.text(1), **{**family.arguments(), **ODD})
    assert is_argument_error(caught.value, pipe)


def test_an_error_inside_the_denoiser_is_not_an_argument_error():
    pipe, family = tiny_pipe("SD3"), FAMILIES["SD3"]

    def fail(*args):
        raise ValueError("a file of ours is damaged")

    handle = pipe.transformer.register_forward_pre_hook(fail)
    try:
        with pytest.raises(ValueError, match="damaged") as caught:
            pipe(**family.text(1), **family.arguments())
    finally:
        handle.remove()
    assert not is_argument_error(caught.value, pipe)
