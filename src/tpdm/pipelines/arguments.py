"""What a call of an adaptive pipeline may say: pipeline arguments checked, images counted, noise seeded."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tpdm.types import BackboneError, ConfigError

DECIDED = "the policy decides the times; limit the number of steps with max_steps"
REFUSED: dict[str, str] = {
    "num_inference_steps": DECIDED,
    "sigmas": DECIDED,
    "timesteps": DECIDED,
    "mu": "it shifts a fixed schedule, and the policy decides the times; leave it out",
    "denoising_end": "it cuts a fixed schedule short; leave it out",
    "denoising_start": "it enters a fixed schedule half-way; say with strength where the chain starts",
    "eta": "a driven chain adds no noise between its steps; leave it out",
    "skip_guidance_layers": "it is keyed on the index of a fixed schedule; leave skip-layer guidance out",
    "return_dict": "the call always returns an AdaptiveOutput; leave it out",
}

# Guidance and control that begin or end at a step of a fixed schedule: (value that means "never", what the pipeline is
# told then).
# None keeps Z-Image's pipeline from reading all times before the first step.
STEP_KEYED: dict[str, tuple[float, float | None]] = {
    "cfg_trunc_ratio": (1.0, 1.0),
    "cfg_truncation": (1.0, None),
    "control_guidance_start": (0.0, 0.0),
    "control_guidance_end": (1.0, 1.0),
}


def merge_arguments(
    pipe: Any, args: tuple[Any, ...], arguments: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of one pipeline call by name: the user's, else the defaults.

    None, where the user gives it, goes behind a default of ``attach`` and before one of the pipeline.

    Raises:
        BackboneError: an argument is unknown to this pipeline, or cannot go with a policy.
    """
    signature = inspect.signature(pipe.__call__)
    for name in [*arguments, *defaults]:
        if name not in signature.parameters:
            near = difflib.get_close_matches(name, signature.parameters, n=1)
            hint = f"did you mean {near[0]!r}" if near else "see its __call__ for the names"
            raise BackboneError(
                f"got argument {name!r}, expected one of {type(pipe).__name__}'s own arguments: {hint}?"
            )
    try:
        given = signature.bind_partial(*args, **arguments).arguments
    except TypeError as error:
        raise BackboneError(f"got arguments that {type(pipe).__name__} cannot take: {error}.") from error
    merged = {**given, **defaults, **{k: v for k, v in given.items() if v is not None}}
    for name, reason in REFUSED.items():
        if merged.pop(name, None) is not None:
            value = given.get(name, defaults.get(name))
            raise BackboneError(f"got {name}={value!r}, expected no such argument with a policy: {reason}.")
    return merged | _without_step_keys(merged, signature.parameters)


def _without_step_keys(merged: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What the pipeline is told of options that are keyed on the index of a step: not to use them."""
    told: dict[str, Any] = {}
    for name, (never, value) in STEP_KEYED.items():
        if name not in parameters:
            continue
        if merged.get(name) not in (None, never):
            raise BackboneError(
                f"got {name}={merged[name]!r}, expected {never:g} with a policy: it is keyed on the steps of a fixed "
                "schedule; leave it out."
            )
        told[name] = value
    return told


def count_images(arguments: Mapping[str, Any]) -> int:
    """Images (or videos) that a call makes: prompts x images per prompt.

    Raises:
        ConfigError: neither a prompt nor prompt embeddings are given, or the list of prompts is empty.
    """
    prompt, embeds = arguments.get("prompt"), arguments.get("prompt_embeds")
    if prompt is None and embeds is None:
        raise ConfigError("got neither prompt nor prompt_embeds, expected one of them: pass prompt='...'.")
    listed: Any = embeds if prompt is None else prompt
    prompts = 1 if isinstance(prompt, str) else len(listed)
    if prompts == 0:
        raise ConfigError("got an empty list of prompts, expected at least one: pass prompt='...'.")
    for name in ("num_images_per_prompt", "num_videos_per_prompt"):
        prompts *= int(arguments.get(name) or 1)
    return prompts


def start_time(pipe: Any, arguments: Mapping[str, Any]) -> float | None:
    """Where the chain starts: the strength of an image-to-image pipeline; None (pure noise) where there is none."""
    parameter = inspect.signature(pipe.__call__).parameters.get("strength")
    return None if parameter is None else float(arguments.get("strength", parameter.default))


def noise_arguments(
    arguments: Mapping[str, Any], seeds: Sequence[int] | None, images: int
) -> dict[str, list[torch.Generator]]:
    """``generator=[...]``, one per image, so that an image depends on its seed and not on its batch.

    Raises:
        ConfigError: the number of seeds is wrong, or the call also gives latents or generators.
    """
    if seeds is None:
        return {}
    if len(seeds) != images:
        raise ConfigError(
            f"got {len(seeds)} seeds for {images} images, expected one integer per image (prompts x images "
            "per prompt): give that many."
        )
    for name in ("latents", "generator"):
        if arguments.get(name) is not None:
            raise ConfigError(
                f"got both seeds and {name}, expected one source of noise: pass decision_seeds instead "
                "of seeds if only the sampled decisions need them."
            )
    # On the CPU whatever the device: the same seed is the same noise everywhere.
    return {"generator": [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]}


def deciding_seeds(
    sample: bool, seeds: Sequence[int] | None, decision_seeds: Sequence[int] | None
) -> Sequence[int] | None:
    """Seeds of sampled decisions, None for the mode.

    Raises:
        ConfigError: sampling without seeds, or seeds without sampling.
    """
    if not sample:
        if decision_seeds is not None:
            raise ConfigError("got decision_seeds without sampling, expected sample=True: pass both or neither.")
        return None
    deciding = seeds if decision_seeds is None else decision_seeds
    if deciding is None:
        raise ConfigError("got sample=True without seeds, expected one integer per image: pass seeds=[...].")
    return deciding
