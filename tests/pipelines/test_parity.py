"""A driven pipeline at the stock scheduler's times equals the stock pipeline bit by bit."""

import pytest
import torch

from tests.support.tiny_flux import text
from tpdm.pipelines.attach import attach
from tpdm.policies.fixed import FixedSchedule

SD3_CALL = {"prompt": ["a red cat", "blue"], "max_sequence_length": 4}
SD3_CASES = {
    "guided": {"guidance_scale": 4.0, "negative_prompt": ["bad", "worse"]},
    "unguided": {"guidance_scale": 1.0},
    "two per prompt": {"guidance_scale": 4.0, "num_images_per_prompt": 2},
    "not square": {"guidance_scale": 4.0, "height": 24, "width": 12},
}


def stock(pipe, seeds, steps, **call):
    """Images of the unmodified pipeline, and the times its scheduler used."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipe(**call, generator=generators, num_inference_steps=steps).images
    return images, pipe.scheduler.sigmas.tolist()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("case", SD3_CASES)
def test_sd3_is_reproduced_exactly(sd3, sd3_bf16, dtype, case):
    pipe = sd3 if dtype == "fp32" else sd3_bf16
    call = {**SD3_CALL, **SD3_CASES[case], "output_type": "latent"}
    seeds = list(range(2 * call.get("num_images_per_prompt", 1)))
    expected, times = stock(pipe, seeds, 6, **call)
    output = attach(pipe, FixedSchedule(times))(**call, seeds=seeds)
    assert output.images.dtype == expected.dtype
    assert (output.images - expected).abs().max().item() == 0.0
    assert output.steps == [6] * len(seeds)
    assert output.times == [times] * len(seeds)
    assert output.nfe_rows == 6 * len(seeds) * (2 if call["guidance_scale"] > 1 else 1)


def test_decoded_images_are_reproduced_exactly(sd3):
    expected, times = stock(sd3, [3, 4], 4, **SD3_CALL, output_type="np")
    output = attach(sd3, FixedSchedule(times))(**SD3_CALL, output_type="np", seeds=[3, 4])
    assert abs(output.images - expected).max() == 0.0


@pytest.mark.parametrize("true_cfg", [False, True])
def test_flux_is_reproduced_exactly(flux, true_cfg):
    call = {**text(2), "height": 24, "width": 16, "output_type": "latent"}
    if true_cfg:
        negative = {f"negative_{name}": value for name, value in text(2, seed=1).items()}
        call |= {**negative, "true_cfg_scale": 3.0}
    expected, times = stock(flux, [0, 1], 5, **call)
    output = attach(flux, FixedSchedule(times))(**call, seeds=[0, 1])
    assert (output.images - expected).abs().max().item() == 0.0
    assert output.nfe_rows == 5 * 2 * (2 if true_cfg else 1)
