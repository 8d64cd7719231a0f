"""Other pipelines of diffusers around the denoiser of a tiny family: inpainting, control, adapters."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import ControlNetModel

from tests.support.families import FAMILIES, tiny_pipe
from tpdm.pipelines.registry import find_denoiser, find_entry
from tpdm.pipelines.time_mapping import flow_times, vp_times

OFF = {"requires_safety_checker": False, "add_watermarker": False, "requires_aesthetics_score": False}
ABSENT = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))


def relative(cls: Any, name: str, **parts: Any) -> Any:
    """A pipeline of ``cls`` from the parts of a family, and others."""
    known = inspect.signature(cls.__init__).parameters
    found = {**ABSENT, **tiny_pipe(name).components, **OFF, **parts}
    pipe = cls(**{key: value for key, value in found.items() if key in known})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call_of(name: str, images: int = 2, **more: Any) -> dict[str, Any]:
    """Arguments of a guided call of a family."""
    return {**FAMILIES[name].text(images), **FAMILIES[name].arguments(), **more}


def stock(pipe: Any, call: dict[str, Any], seeds: Any, steps: int = 4) -> tuple[Any, list[float]]:
    """Latents and times of the unmodified pipeline."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = pipe(**call, num_inference_steps=steps, generator=generators)[0]
    if find_entry(find_denoiser(pipe)).path == "vp":
        return latents, vp_times(pipe.scheduler, steps)
    return latents, flow_times(pipe.scheduler)


def control_net(unet: Any) -> ControlNetModel:
    """For a UNet; its last layers, zero at first, control something."""
    known = inspect.signature(ControlNetModel.__init__).parameters
    config = {key: value for key, value in unet.config.items() if key in known and not key.startswith("_")}
    torch.manual_seed(1)
    net = ControlNetModel(**config, conditioning_embedding_out_channels=(8, 16)).eval()
    for parameter in net.controlnet_down_blocks.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net
