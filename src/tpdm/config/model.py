"""Sections of a recipe about the model: ``backbone``, ``tpm`` and ``sampling``.

``tpdm.config.recipe`` explains the origins in brackets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tpdm.config.fields import Above0, Below1, Location, NonNegative, Part, Positive, Real, Text


@dataclass(frozen=True)
class BackboneConfig(Part):
    """The frozen text-to-image pipeline.

    Attributes:
        name_or_path: ``tinyworld`` (embedded), a diffusers folder or a hub id. [ours]
        guidance_scale: Scale of classifier-free guidance, >= 0, or the scale that guidance-distilled models
            (FLUX.1-dev) receive as an input. Qwen-Image calls it ``true_cfg_scale``. None uses the pipeline's own.
            [ours; release: 7.0 for SD3, 3.5 for SD3.5]
        true_cfg_scale: Scale of classifier-free guidance in pipelines that use this name (FLUX.1, Qwen-Image), >= 0.
            None uses the pipeline's own. [ours]
        height: Height of the images in pixels. None uses the pipeline's own. [ours]
        width: Width of the images in pixels. Set it together with height. [ours]
        variant: Variant of the weight files: ``fp16`` reads ``model.fp16.safetensors``. None reads the plain
            files. [ours]
        dtype: dtype of the pipeline's weights. Times and the TPM use fp32. [ours]
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1`` ... [ours]
        precompute_prompt_embeddings: Encode each prompt of a training run once, before the denoiser is loaded, keep
            the embeddings in ``output/texts``, and do not load the text encoders afterwards. False encodes prompts
            in every call. Memory only: results are the same up to floating-point rounding. [ours]
        decode_batch: Images decoded at once. None decodes a whole batch. Memory only. [ours]
        shard: Whether the blocks of the denoiser are sharded over the processes of a training run (FSDP2). Memory
            only. [ours]
        offload: ``model`` keeps each network in host memory until it is called, ``sequential`` each layer, ``none``
            keeps all of them on the device. Needs a GPU. Memory only. [ours]
    """

    name_or_path: Location = "tinyworld"
    guidance_scale: NonNegative | None = None
    true_cfg_scale: NonNegative | None = None
    height: Positive | None = None
    width: Positive | None = None
    variant: Text | None = None
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Text = "auto"
    precompute_prompt_embeddings: bool = False
    decode_batch: Positive | None = None
    shard: bool = False
    offload: Literal["none", "model", "sequential"] = "none"

    def __post_init__(self) -> None:
        if self.shard and self.offload != "none":
            raise ValueError(
                f"offload is {self.offload} and shard is true. A sharded denoiser cannot be offloaded. Set offload to "
                "none, or shard to false"
            )
        if (self.height is None) != (self.width is None):
            raise ValueError(f"height is {self.height} and width is {self.width}. Set both or neither")


@dataclass(frozen=True)
class TpmConfig(Part):
    """The Time Prediction Module.

    Attributes:
        layout: ``pooled`` keeps the 2-D layout of the features at any resolution [ours]. ``release`` is the layout of
            the published code, needed for its checkpoints. [release]
        features: Rows that the TPM reads under guidance: ``conditional`` [ours], or ``guided``, u + w (c - u).
            [release]
        channels: Width of the TPM's convolutions. [release]
        grid: Side of the pooled feature map, in cells. [ours; release pools to 16]
        init_alpha: Initial bias a: alpha = 1 + exp(a) = 13.18. [release]
        init_beta: Initial bias b: beta = 1 + exp(b) = 3.72, so the first mode is .818. [release]
        init_steps: The untrained TPM follows a fixed schedule of this many steps at its mode, and init_alpha has no
            effect. Layout ``pooled`` only. None starts with equal ratios of times. [ours]
        init_shift: Shift of that schedule, > 0 (1 is uniform). None uses the pipeline's default schedule. [ours]
        init_steps_low_gamma: Steps of that schedule at the low end of ``reward.gamma_range``; init_steps then applies
            to the high end. None uses init_steps at every gamma. [ours]
        time_only: The TPM reads only the time (and gamma): one learned schedule for every image. It is the baseline
            that measures what reading the image is worth. [ours]
        feature_maps: Token maps that the TPM reads: those that enter the first block and leave the last one
            (``first_last``) [paper], or only the latter (``last``). [ours]
        velocity_change: The TPM also reads how fast the prediction changed since the previous step, the signal of
            classical step-size control. Layout ``pooled`` only; no effect with time_only. [ours]
        init_from: Folder of a TPM to continue with. The other keys must agree with its architecture and gamma range;
            keys at their defaults count as not given. None starts from new weights. [ours]
    """

    layout: Literal["pooled", "release"] = "pooled"
    features: Literal["conditional", "guided"] = "conditional"
    channels: Positive = 128
    grid: Positive = 8
    init_alpha: Real = 2.5
    init_beta: Real = 1.0
    init_steps: Positive | None = None
    init_shift: Above0 | None = None
    init_steps_low_gamma: Positive | None = None
    time_only: bool = False
    feature_maps: Literal["first_last", "last"] = "first_last"
    velocity_change: bool = False
    init_from: Location | None = None

    def __post_init__(self) -> None:
        for key in ("init_shift", "init_steps_low_gamma"):
            if self.init_steps is None and getattr(self, key) is not None:
                raise ValueError(
                    f"{key} is {getattr(self, key)} without init_steps. Set init_steps too, or {key} to null"
                )
        if self.layout != "release":
            return
        pooled_only = {
            "init_steps": self.init_steps is not None,
            "velocity_change": self.velocity_change,
            "feature_maps": self.feature_maps == "last",
            "time_only": self.time_only,
        }
        for key in (name for name, given in pooled_only.items() if given):
            raise ValueError(
                f"{key} is {getattr(self, key)} with layout release. Only layout pooled has it. Set layout to pooled, "
                f"or leave {key} out"
            )


@dataclass(frozen=True)
class SamplingConfig(Part):
    """How a schedule is integrated.

    Attributes:
        solver: ``euler`` [paper], ``dpmpp_2m`` [paper, for SD1.5] or ``ab2`` [ours].
        max_steps: Maximum number of denoiser evaluations; the last one always goes to t = 0. [release: 28 in
            training]
        stop_below: A predicted time below this becomes 0, in [0, 1). [release: .01 in training]
    """

    solver: Literal["euler", "dpmpp_2m", "ab2"] = "euler"
    max_steps: Positive = 28
    stop_below: Below1 = 0.01
