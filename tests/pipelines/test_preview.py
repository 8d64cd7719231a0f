import pytest
import torch

from tests.support.families import FAMILIES, tiny_pipe
from tpdm.pipelines.vae import decode_preview


@pytest.mark.parametrize(
    ("name", "latents", "size"),
    [
        ("SD3", (1, 4, 8, 8), (16, 16)),
        ("SD3", (1, 4, 128, 96), (64, 64)),  # pooled, whatever the size of the image
        ("FLUX.1 dev", (1, 24, 16), (16, 24)),
        ("SD1.5", (1, 4, 12, 8), (16, 24)),
        ("PixArt-Sigma", (1, 4, 12, 8), (16, 24)),
    ],
)
def test_previews_are_small_images(name, latents, size):
    width, height = FAMILIES[name].call["width"], FAMILIES[name].call["height"]
    image = decode_preview(tiny_pipe(name), torch.randn(latents), width, height)
    assert image is not None
    assert image.size == size


def test_the_preview_of_finished_latents_is_the_image(sd3):
    call = {"prompt": "a", "num_inference_steps": 2, "max_sequence_length": 4}
    image, latents = (
        sd3(**call, generator=torch.Generator().manual_seed(0), output_type=kind).images for kind in ("pil", "latent")
    )
    shown = decode_preview(sd3, latents, None, None)
    assert shown is not None
    assert shown.tobytes() == image[0].tobytes()


@pytest.mark.parametrize("name", ["Qwen-Image", "Wan 2.1"])
def test_unknown_latents_have_no_preview(name):
    assert decode_preview(tiny_pipe(name), torch.randn(1, 16, 8), None, None) is None
