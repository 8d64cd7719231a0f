"""What ``attach`` finds out about a pipeline once, and the pipelines that no policy can drive."""

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

# How the names of pipeline classes begin that use their network in a way of their own, and what that is. Classes that
# derive from one of them are refused too.
REFUSED_PIPELINES = {
    "PAGMixin": "it puts perturbed rows into the network's calls; take the class without PAG, which "
    "AutoPipelineForText2Image.from_pipe(pipe, enable_pag=False) gives",
    "StableDiffusionInstructPix2Pix": "it computes three rows for each image",
    "StableDiffusionXLInstructPix2Pix": "it computes three rows for each image",
    "SemanticStableDiffusion": "it computes a row for each edit",
    "StableDiffusionSAG": "it calls its network on images that it degraded between two steps",
    "StableDiffusionPanorama": "it calls its network for each part of the image",
    "StableDiffusionAttendAndExcite": "it changes latents by gradients between two steps",
    "StableDiffusionPix2PixZero": "it changes latents by gradients between two steps",
    "StableDiffusionParadigms": "it computes several steps of one chain at once",
    "StableDiffusionDiffEdit": "it inverts an image on a fixed schedule",
    "CycleDiffusion": "it inverts an image on a fixed schedule",
    "StableDiffusionLatentUpscale": "it reads the sigmas of a fixed schedule",
    "TextToVideoZero": "it moves images forward in time between two steps",
    "StableDiffusionPipelineSafe": "it computes a row for a safety concept",
    "LEditsPP": "it goes through the schedule on which it inverted an image",
    "LatentConsistencyModel": "it takes the last image from what its own scheduler predicts",
    "SanaSprint": "it takes the last image from what its own scheduler predicts",
    "VisualClozePipeline": "it runs two chains",
    "Kandinsky": "its network predicts a variance too",
    "IF": "its network predicts a variance too",
    "Marigold": "it draws no image from a text",
}


@dataclass(frozen=True)
class PipelineSpec:
    """Everything that calls have to know of a pipeline; resolved once, and again only when the pipeline changed.

    Attributes:
        pipeline: Name of the pipeline's class.
        denoiser: The network of its steps.
        entry: Row of that network in ``registry.DENOISERS``.
        signature: Arguments of the pipeline's call, with their defaults.
        guidance: How the pipeline guides.
        time_mapping: Solver, and what the pipeline is handed for a time.
        sources: The objects from which all this was read. Another one of them needs another spec.
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
            pipe: A diffusers pipeline.
            policy: The policy that will drive it; a TPM has to be trained for its denoiser.
            solver: A name in ``tpdm.core.solvers.SOLVERS``.

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
    """What a TPM was trained with; None for other policies, and for a TPM that comes from no folder."""
    return policy.artifact if isinstance(policy, TimePredictionModule) else None


def _sources(pipe: Any, policy: Policy | None, solver: str) -> tuple[object, ...]:
    """What a spec depends on. diffusers replaces a configuration as a whole when one of its values changes."""
    denoiser, scheduler = find_denoiser(pipe), own_scheduler(pipe)
    other = getattr(pipe, "transformer_2", None)
    configs = (pipe.config, denoiser.config, getattr(scheduler, "config", None))
    return (type(pipe), denoiser, scheduler, other, *configs, policy, trained_config(policy), sys.intern(solver))


def check_pipe(pipe: Any) -> DenoiserSpec:
    """The entry of the pipeline's denoiser.

    Raises:
        BackboneError: no scheduler, a class of ``REFUSED_PIPELINES``, no denoiser, an unknown one, one that is
            compiled whole or caches between its steps, or a chain that is split by the time.
    """
    if getattr(pipe, "scheduler", None) is None:
        raise BackboneError(
            f"got {type(pipe).__name__} without a scheduler, expected a text-to-image DiffusionPipeline such as "
            "StableDiffusion3Pipeline: load one with tpdm.pipelines.loading.load."
        )
    for cls in type(pipe).__mro__:
        for name, reason in REFUSED_PIPELINES.items():
            if cls.__name__.startswith(name):
                raise BackboneError(
                    f"got a {type(pipe).__name__}, expected a pipeline whose steps call the network, with one row "
                    f"per image or an unconditional and a conditional one: {reason}."
                )
    denoiser = find_denoiser(pipe)
    check_denoiser(denoiser)
    entry = find_entry(denoiser)
    if getattr(pipe, "transformer_2", None) is not None or pipe.config.get("boundary_ratio") is not None:
        raise BackboneError(
            f"got {type(pipe).__name__} with two experts that share the chain (transformer_2), expected one denoiser "
            "for all times: use Wan 2.1, or another model with a single one."
        )
    if pipe.config.get("expand_timesteps"):
        raise BackboneError(
            f"got {type(pipe).__name__} with one time per token (expand_timesteps), expected one time per image: use "
            "Wan 2.1, or another model that takes one."
        )
    return entry


def check_denoiser(denoiser: nn.Module) -> None:
    """Refuses a denoiser whose calls do not stand alone: both can be switched on after ``attach``.

    What is compiled in one call keeps the hooks of that call. What is cached of one step has rows of images that have
    left the call by the next, and is skipped by the count of steps or by one time for all.

    Raises:
        BackboneError: it was compiled whole, or caches between its steps.
    """
    if is_compiled_module(denoiser) or denoiser._compiled_call_impl is not None:
        raise BackboneError(
            f"got a {type(denoiser).__name__} that is compiled as a whole, expected one whose hooks run in every call: "
            "compile an uncompiled one with tpdm.pipelines.feature_hooks.compile_denoiser(pipe), or its blocks alone, "
            "with block.compile() for each."
        )
    if isinstance(denoiser, CacheMixin) and denoiser.is_cache_enabled:
        raise BackboneError(
            f"got a {type(denoiser).__name__} that caches between steps, expected one that computes each of them, for "
            "images leave the call at steps of their own: disable_cache() first."
        )


def check_pictures(pipe: Any) -> None:
    """Refuses a pipeline of videos, where pictures are saved, sent or scored.

    Raises:
        BackboneError: it makes videos.
    """
    if "num_frames" in inspect.signature(pipe.__call__).parameters:
        raise BackboneError(
            f"got {type(pipe).__name__}, which makes videos, expected a pipeline of pictures: call it through "
            "tpdm.attach, or choose another."
        )


def check_shared(pipe: Any) -> None:
    """Refuses a pipeline whose parts move during a call, which several calls at once would mix up.

    Raises:
        BackboneError: its parts are offloaded.
    """
    if getattr(pipe, "_all_hooks", None) or pipe.hf_device_map is not None:
        raise BackboneError(
            f"got a {type(pipe).__name__} whose parts are offloaded or spread over devices, expected all of it on one "
            "device, for several images are made at once: leave offloading out."
        )
