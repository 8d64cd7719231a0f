"""Encoded images have 8 bits per channel. Invalid images are refused."""

import base64
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tpdm.rewards import remote_protocol
from tpdm.rewards.remote_protocol import decode_images, encode_images


def packed(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return base64.b64encode(buffer.getvalue()).decode()


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_encoding_and_decoding_keep_the_levels(count, height, width, seed):
    levels = torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(seed))
    there = encode_images(levels / 255)
    assert torch.equal((decode_images(there) * 255).round().long(), levels)


def test_values_out_of_range_are_clamped():
    assert decode_images(encode_images(torch.tensor([-1.0, 2.0, 0.5]).view(1, 3, 1, 1))).flatten().tolist() == (
        pytest.approx([0, 1, 128 / 255])
    )


GOOD = packed(Image.new("RGB", (4, 4)))
BAD = {
    "no base64": (["%%%"], "image 0 is not a PNG in base64"),
    "another character set": (["é"], "image 0 is not a PNG in base64"),
    "nothing": ([""], "image 0 is not a PNG in base64"),
    "a JPEG": ([GOOD, packed(Image.new("RGB", (4, 4)), "JPEG")], "image 1 is not a PNG in base64"),
    "half a PNG": ([GOOD[: len(GOOD) // 2 // 4 * 4]], "image 0 is not a PNG in base64"),
    "two sizes": ([GOOD, packed(Image.new("RGB", (4, 5)))], "image 1 is 4 x 5, and image 0 has another size"),
}


@pytest.mark.parametrize("case", BAD)
def test_invalid_images_are_refused(case):
    images, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        decode_images(images)


def test_small_files_of_huge_images_are_not_decoded(monkeypatch):
    monkeypatch.setattr(remote_protocol, "MAX_PIXELS", 40)
    assert decode_images([GOOD, GOOD]).shape == (2, 3, 4, 4)
    with pytest.raises(ValueError, match="images 0 to 2 have 48 pixels, the maximum is 40"):
        decode_images([GOOD] * 3)


def test_other_modes_become_rgb():
    assert decode_images([packed(Image.new("RGBA", (2, 2), (255, 0, 0, 9)))])[0, :, 0, 0].tolist() == [1, 0, 0]
