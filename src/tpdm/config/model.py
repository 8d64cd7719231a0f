"""The recipe's sections about what is run: the frozen pipeline, the TPM, and how its schedules are integrated.

Where a default comes from stands in brackets, as ``tpdm.config.recipe`` explains.
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
        guidance_scale: classifier-free guidance, >= 0, or the scale that guidance-distilled models (FLUX.1-dev) are
            told; for Qwen-Image it is ``true_cfg_scale``. None leaves the pipeline's own. [ours; release: 7.0 for SD3,
            3.5 for SD3.5]
        true_cfg_scale: classifier-free guidance of pipelines that call it so (FLUX.1, Qwen-Image), >= 0, against the
            prompts' negative ones or the empty text; None leaves the pipeline's own. [ours]
        height: pixels; None leaves the pipeline's own. [ours]
        width: pixels; set together with height. [ours]
        variant: of the pipeline's weight files, as diffusers calls them: ``fp16`` reads ``model.fp16.safetensors``;
            None reads the plain ones. [ours]
        dtype: of the pipeline's weights; times and the TPM stay fp32. [ours]
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1`` ... [ours]
        text_encoders: ``stay`` encodes prompts in every call; ``leave`` encodes each prompt of a training run once,
            keeps the embeddings in ``output/texts`` and never loads the encoders beside the denoiser; memory only,
            never the result but for rounding. [ours]
        shard: whether the denoiser's blocks are divided over the processes of a training run (FSDP2), each of which
            holds its share of the weights; memory only. [ours]
        offload: ``model`` keeps each network on the host until it is called, ``sequential`` each layer; memory only,
            and needs a GPU; ``none`` keeps all of them on the device. [ours]
        decode_batch: images decoded at once; None decodes all that are in flight; memory only. [ours]
    """

    name_or_path: Location = "tinyworld"
    guidance_scale: NonNegative | None = None
    true_cfg_scale: NonNegative | None = None
    height: Positive | None = None
    width: Positive | None = None
    variant: Text | None = None
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Text = "auto"
    text_encoders: Literal["stay", "leave"] = "stay"
    decode_batch: Positive | None = None
    shard: bool = False
    offload: Literal["none", "model", "sequential"] = "none"

    def __post_init__(self) -> None:
        if self.shard and self.offload != "none":
            raise ValueError(f"shard goes with offload none, got offload {self.offload}: set one of them otherwise")
        if (self.height is None) != (self.width is None):
            raise ValueError(f"height and width go together, got {self.height} x {self.width}: set both or none")


@dataclass(frozen=True)
class TpmConfig(Part):
    """The Time Prediction Module.

    Attributes:
        layout: ``pooled`` keeps the true 2-D layout at any resolution [ours]; ``folded``, needed only for the
            release's checkpoint, is its own. [release]
        features: rows it reads under guidance: ``conditional`` [ours], or ``guided``, u + w (c - u). [release]
        channels: width of its convolutions. [release]
        grid: side of the adaptive pooling of the features, in cells. [ours; release pools to 16]
        init_alpha: last bias a, raw: alpha = 1 + exp(a) = 13.18. [release]
        init_beta: last bias b, raw: beta = 1 + exp(b) = 3.72, so the first mode is .818. [release]
        start_steps: the untrained TPM follows a fixed schedule of so many steps at its mode (``pooled`` alone;
            init_alpha is then not used); None starts with the equal ratios above. [ours]
        start_shift: shift of that schedule, > 0 (1 is uniform); None takes the pipeline's default one. [ours]
        fast_steps: with ``reward.gamma_range``, steps of that schedule at the low end of the dial (start_steps is then
            the high end's); None starts with start_steps everywhere. [ours]
        time_only: sees nothing but the time (and the dial): one learned schedule for every image, the control that
            says what looking at the image is worth. [ours]
        maps: token maps that it reads: ``first_last``, those entering the first block and leaving the last [paper], or
            ``last``. [ours]
        change: it also reads how fast the prediction changed since the step before (``pooled`` alone), what classical
            step-size control steers by; not where it is time_only. [ours]
        init_from: folder of a TPM to go on with, whose shape and dial the other keys have to agree with (those at their
            defaults are taken for not given, and those of the start are not used); None starts from scratch. [ours]
    """

    layout: Literal["pooled", "folded"] = "pooled"
    features: Literal["conditional", "guided"] = "conditional"
    channels: Positive = 128
    grid: Positive = 8
    init_alpha: Real = 2.5
    init_beta: Real = 1.0
    start_steps: Positive | None = None
    start_shift: Above0 | None = None
    fast_steps: Positive | None = None
    time_only: bool = False
    maps: Literal["first_last", "last"] = "first_last"
    change: bool = False
    init_from: Location | None = None

    def __post_init__(self) -> None:
        if self.layout == "folded" and self.start_steps is not None:
            raise ValueError(f"start_steps needs layout pooled, got {self.start_steps} with folded: set it to null")
        if self.start_steps is None and self.start_shift is not None:
            raise ValueError(f"start_shift needs start_steps, got {self.start_shift} without: set both or none")
        if self.start_steps is None and self.fast_steps is not None:
            raise ValueError(f"fast_steps needs start_steps, got {self.fast_steps} without: set both or none")
        if self.layout == "folded" and (self.change or self.maps == "last"):
            raise ValueError("change and maps: last need layout pooled, got folded: set one of them otherwise")
        if self.layout == "folded" and self.time_only:
            raise ValueError("time_only needs layout pooled, got folded: set one of them otherwise")


@dataclass(frozen=True)
class SamplingConfig(Part):
    """How a chosen schedule is integrated.

    Attributes:
        solver: ``euler`` [paper], ``dpmpp_2m`` [paper, for SD1.5] or ``ab2`` [ours].
        max_steps: network evaluations at most; the last one always lands on t = 0. [release: 28 in training]
        stop_below: a time below this becomes 0, in [0, 1). [release: .01 in training]
    """

    solver: Literal["euler", "dpmpp_2m", "ab2"] = "euler"
    max_steps: Positive = 28
    stop_below: Below1 = 0.01
