"""``PipelineSpec``: what ``attach`` resolves of a pipeline, and checks for pipelines that no policy can drive."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import Any

from diffusers.models.cache_utils import CacheMixin
from diffusers.utils.torch_utils import is_compiled_module
from torch import nn

from tpdm.core.errors import BackboneError
from tpdm.core.types import Policy
from tpdm.pipelines.guidance import Guidance
from tpdm.pipelines.registry import DenoiserSpec, backbone_facts, find_denoiser, find_entry, token_width
from tpdm.pipelines.scheduler import own_scheduler
from tpdm.pipelines.time_mapping import TimeMapping, make_time_mapping
from tpdm.policies.pretrained import check_backbone
from tpdm.policies.pretrained_config import PretrainedConfig
from tpdm.policies.tpm import TimePredictionModule

# Beginning of a pipeline class's name -> why a policy cannot drive it. Derived classes are refused too.
REFUSED_PIPELINES = {
    "PAGMixin": "It adds perturbed rows to the calls of its network. Use the class without PAG: "
    "AutoPipelineForText2Image.from_pipe(pipe, enable_pag=False)",
    "StableDiffusionInstructPix2Pix": "It computes three rows for each image",
    "StableDiffusionXLInstructPix2Pix": "It computes three rows for each image",
    "SemanticStableDiffusion": "It computes a row for each edit",
    "StableDiffusionSAG": "It calls its network on images that it degraded between two steps",
    "StableDiffusionPanorama": "It calls its network for each part of the image",
    "StableDiffusionAttendAndExcite": "It changes latents by gradients between two steps",
    "StableDiffusionPix2PixZero": "It changes latents by gradients between two steps",
    "StableDiffusionParadigms": "It computes several steps of one image at once",
    "StableDiffusionDiffEdit": "It inverts an image on a fixed schedule",
    "CycleDiffusion": "It inverts an image on a fixed schedule",
    "StableDiffusionLatentUpscale": "It reads the sigmas of a fixed schedule",
    "TextToVideoZero": "It moves images forward in time between two steps",
    "StableDiffusionPipelineSafe": "It computes a row for a safety concept",
    "LEditsPP": "It follows the schedule on which it inverted an image",
    "LatentConsistencyModel": "It takes the last image from a prediction of its own scheduler",
    "SanaSprint": "It takes the last image from a prediction of its own scheduler",
    "VisualClozePipeline": "It runs two denoising loops",
    "Kandinsky": "Its network also predicts a variance",
    "IF": "Its network also predicts a variance",
    "Marigold": "It does not generate images from a prompt",
}


CONFIG_KEYS = ("boundary_ratio", "expand_timesteps", "is_distilled")  # pipeline config values that affect the spec


@dataclass(frozen=True)
class PipelineSpec:
    """Everything that a call needs to know about a pipeline. ``attach`` resolves it once.

    A call resolves it again only if the pipeline, the policy or the solver was replaced.

    Attributes:
        pipeline: Name of the pipeline's class.
        denoiser: The network of its steps.
        entry: Row of that network in ``registry.DENOISERS``.
        signature: Arguments of the pipeline's call, with their defaults.
        guidance: How the pipeline guides.
        time_mapping: Solver, and conversions between times and the pipeline's timesteps.
        sources: Objects that this was read from. If one of them is replaced, the spec is out of date.
    """

    pipeline: str
    denoiser: nn.Module
    entry: DenoiserSpec
    signature: inspect.Signature
    guidance: Guidance
    time_mapping: TimeMapping
    sources: tuple[object, ...]

    @classmethod
    def of(cls, pipe: Any, policy: Policy | None = None, solver: str = "euler") -> PipelineSpec:
        """Resolves a pipeline as it is now.

        Args:
            pipe: Diffusers pipeline.
            policy: Policy that will drive it. A TPM must be trained for its denoiser.
            solver: Name in ``tpdm.core.solvers.SOLVERS``.

        Raises:
            BackboneError: The pipeline cannot be driven.
            CheckpointError: The TPM belongs to another denoiser.
            ConfigError: The solver is unknown, or does not fit the pipeline's path.
        """
        entry, denoiser = check_pipe(pipe), find_denoiser(pipe)
        if (trained := trained_config(policy)) is not None:
            check_backbone(trained, type(denoiser).__name__, token_width(denoiser), facts=backbone_facts(denoiser))
        mapping = make_time_mapping(own_scheduler(pipe), entry, solver)
        signature = inspect.signature(pipe.__call__)
        sources = _sources(pipe, policy, solver)
        return cls(type(pipe).__name__, denoiser, entry, signature, Guidance.of(pipe), mapping, sources)

    def refreshed(self, pipe: Any, policy: Policy, solver: str) -> PipelineSpec:
        """Returns this spec, or a new one if the pipeline, the policy or the solver was replaced.

        Raises:
            BackboneError: The pipeline can no longer be driven. ``of`` names the other errors.
        """
        sources = zip(self.sources, _sources(pipe, policy, solver), strict=True)
        if any(before is not now for before, now in sources):
            return PipelineSpec.of(pipe, policy, solver)
        check_denoiser(self.denoiser)  # compiling and caching change a network in place
        return self


def trained_config(policy: Policy | None) -> PretrainedConfig | None:
    """Returns the settings that a TPM was trained with. None for other policies, and for a TPM without a folder."""
    return policy.artifact if isinstance(policy, TimePredictionModule) else None


def _sources(pipe: Any, policy: Policy | None, solver: str) -> tuple[object, ...]:
    """Objects that a spec depends on. diffusers replaces the whole configuration if one of its values changes.

    A driven call sets the scheduler, which replaces the configuration of the pipe. So its values are compared.
    """
    denoiser, scheduler = find_denoiser(pipe), own_scheduler(pipe)
    other = getattr(pipe, "transformer_2", None)
    configs = (denoiser.config, getattr(scheduler, "config", None), *map(pipe.config.get, CONFIG_KEYS))
    return (type(pipe), denoiser, scheduler, other, *configs, policy, trained_config(policy), sys.intern(solver))


def check_pipe(pipe: Any) -> DenoiserSpec:
    """Returns the row of the pipeline's denoiser, if a policy can drive the pipeline.

    Raises:
        BackboneError: The pipeline has no scheduler, is of a class in ``REFUSED_PIPELINES``, has no denoiser or an
            unknown one, has one that is compiled as a whole or caches between steps, or splits the times.
    """
    if getattr(pipe, "scheduler", None) is None:
        raise BackboneError(
            f"{type(pipe).__name__} has no scheduler. It must be a text-to-image DiffusionPipeline such as "
            "StableDiffusion3Pipeline. Load one with tpdm.load_pipeline."
        )
    for cls in type(pipe).__mro__:
        for name, reason in REFUSED_PIPELINES.items():
            if cls.__name__.startswith(name):
                raise BackboneError(
                    f"{type(pipe).__name__} cannot be driven. {reason}. Use a pipeline that calls its network once or "
                    "twice per step, with one row per image or with unconditional and conditional rows."
                )
    denoiser = find_denoiser(pipe)
    check_denoiser(denoiser)
    entry = find_entry(denoiser)
    if getattr(pipe, "transformer_2", None) is not None or pipe.config.get("boundary_ratio") is not None:
        raise BackboneError(
            f"{type(pipe).__name__} has two experts, each for a part of the times (transformer_2). It must have one "
            "denoiser for all times. Use Wan 2.1, or another model with a single one."
        )
    if pipe.config.get("expand_timesteps"):
        raise BackboneError(
            f"{type(pipe).__name__} uses one time per token (expand_timesteps). It must use one time per image. Use "
            "Wan 2.1, or another model that does."
        )
    return entry


def check_denoiser(denoiser: nn.Module) -> None:
    """Refuses a denoiser whose calls depend on each other. Both causes can be switched on after ``attach``.

    A denoiser that is compiled in one call keeps the hooks of that call. A cache contains rows of images that are no
    longer in the next call, and skips steps by their count or by one time for all images.

    Raises:
        BackboneError: The denoiser is compiled as a whole, or caches between steps.
    """
    if is_compiled_module(denoiser) or denoiser._compiled_call_impl is not None:
        raise BackboneError(
            f"{type(denoiser).__name__} is compiled as a whole. Its hooks must run in every call. Compile an "
            "uncompiled one with tpdm.compile_denoiser(pipe), or each of its blocks with block.compile()."
        )
    if isinstance(denoiser, CacheMixin) and denoiser.is_cache_enabled:
        raise BackboneError(
            f"{type(denoiser).__name__} caches between steps. It must compute each step, because images finish at "
            "different steps. Call its disable_cache() first."
        )


def check_generates_images(pipe: Any) -> None:
    """Refuses a pipeline of videos. Commands, rewards and the server take images only.

    Raises:
        BackboneError: The pipeline generates videos.
    """
    if "num_frames" in inspect.signature(pipe.__call__).parameters:
        raise BackboneError(
            f"{type(pipe).__name__} generates videos. A pipeline of images is needed here. Call it through tpdm.attach "
            "in Python, or choose another pipeline."
        )


def check_not_offloaded(pipe: Any) -> None:
    """Refuses a pipeline whose parts move between devices during a call, because several calls run at once.

    Raises:
        BackboneError: Its parts are offloaded.
    """
    if getattr(pipe, "_all_hooks", None) or pipe.hf_device_map is not None:
        raise BackboneError(
            f"{type(pipe).__name__} is offloaded or spread over devices. All of it must be on one device, because "
            "several calls run at once. Do not offload it."
        )
