"""Which errors of a pipeline are its word on what it was asked for."""

import pytest

from tests.support.families import FAMILIES, tiny_pipe
from tpdm.pipelines.arguments import is_argument_error

ODD = {"height": 17, "width": 17}


@pytest.mark.parametrize("name", ["SD3", "Z-Image", "SD1.5", "Sana"])
def test_a_size_that_cannot_be_is_refused(name):
    family, pipe = FAMILIES[name], tiny_pipe(name)
    with pytest.raises(ValueError, match="divisible") as caught:
        pipe(**family.text(1), **{**family.arguments(), **ODD})
    assert is_argument_error(caught.value, pipe)


def test_what_goes_wrong_inside_is_not():
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
