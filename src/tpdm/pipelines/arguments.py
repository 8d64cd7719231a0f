"""Arguments of a call of an adaptive pipeline: checked, merged with the defaults, and completed with seeded noise."""

from __future__ import annotations

import difflib
import inspect
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Number, Real
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from tpdm.core.errors import BackboneError, ConfigError
from tpdm.pipelines.compatibility import PipelineSpec
from tpdm.pipelines.guidance import settle

DECIDED = "The policy decides the times. Limit the number of steps with max_steps."

# Argument -> why a policy cannot use it, and what to do.
REFUSED: dict[str, str] = {
    "num_inference_steps": DECIDED,
    "sigmas": DECIDED,
    "timesteps": DECIDED,
    "mu": "It shifts a fixed schedule, and the policy decides the times. Leave it out.",
    "denoising_end": "It ends a fixed schedule early. Leave it out.",
    "denoising_start": "It starts in the middle of a fixed schedule. Set the start with strength instead.",
    "eta": "A driven pipeline adds no noise between its steps. Leave it out.",
    "skip_guidance_layers": "It depends on step indices of a fixed schedule. Leave skip-layer guidance out.",
    "return_dict": "The call always returns an AdaptiveOutput. Leave it out.",
}

# Values of those arguments that change nothing.
NEUTRAL: dict[str, float] = {"eta": 0.0, "denoising_end": 1.0}

# Options that count in steps of a fixed schedule, and their values that mean the same at any number of steps.
STEP_KEYED: dict[str, tuple[float, ...]] = {
    "cfg_trunc_ratio": (1.0,),
    "cfg_truncation": (1.0,),
    "control_guidance_start": (0.0,),
    "control_guidance_end": (1.0,),
    "adapter_conditioning_factor": (1.0, 0.0),
    "gligen_scheduled_sampling_beta": (1.0, 0.0),
}
# Values passed to the pipeline instead. None keeps Z-Image's pipelines from reading all times before the first step.
PASSED_INSTEAD: dict[str, None] = {"cfg_truncation": None}


def merge_arguments(
    spec: PipelineSpec, args: tuple[Any, ...], arguments: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the arguments of one pipeline call by name: the user's, or else the defaults.

    If the user gives None, a default of ``attach`` replaces it. A default of the pipeline does not.

    Args:
        spec: Spec of the pipeline.
        args: Positional arguments of the call.
        arguments: Named arguments of the call.
        defaults: Arguments for which the call gives no value.

    Raises:
        BackboneError: The pipeline does not know an argument, a policy cannot use it, or it has no effect.
    """
    for name in [*arguments, *defaults]:
        if name not in spec.signature.parameters:
            raise BackboneError(f"{name} is not an argument of {spec.pipeline}. {_suggestion(spec, name)}")
    try:
        given = spec.signature.bind_partial(*args, **arguments).arguments
    except TypeError as error:
        raise BackboneError(f"{spec.pipeline} cannot take these arguments: {error}. Correct the call.") from error
    merged = {**given, **defaults, **{k: v for k, v in given.items() if v is not None}}
    for name, reason in REFUSED.items():
        value = merged.pop(name, None)
        if value is not None and not (name in NEUTRAL and value == NEUTRAL[name]):
            value = given.get(name, defaults.get(name))
            raise BackboneError(f"{name} is {value!r}. A policy cannot use this argument. {reason}")
    return settle(spec.guidance, merged | step_keyed_arguments(merged, spec.signature.parameters), given)


def step_keyed_arguments(merged: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Returns the step-keyed options of a pipeline with values that mean the same at any number of steps.

    Args:
        merged: Arguments of the call, with all defaults except the pipeline's own.
        parameters: Parameters of the pipeline's call.

    Raises:
        BackboneError: An option, or a number in its list, has another value. It may be the pipeline's own default.
    """
    passed: dict[str, Any] = {}
    for name, neutral in STEP_KEYED.items():
        if name not in parameters:
            continue
        given = merged.get(name)
        value = _plain(parameters[name].default if given is None else given)
        if not all(number in (None, *neutral) for number in _numbers(value)):
            source = " (the pipeline's default)" if given is None else ""
            raise BackboneError(
                f"{name} is {value!r}{source}. It must be {neutral[0]:g} with a policy, because it depends on the "
                f"number of steps. Pass {name}={neutral[0]:g}."
            )
        passed[name] = PASSED_INSTEAD.get(name, neutral[0] if value is None else value)
    _check_callback(merged.get("callback_on_step_end"))
    return passed


def count_images(arguments: Mapping[str, Any]) -> int:
    """Returns the number of images (or videos) of a call: prompts x images per prompt.

    Raises:
        ConfigError: There is neither a prompt nor embeddings, or the images per prompt are not a whole number.

    Example:
        >>> count_images({"prompt": ["a cat", "a dog"], "num_images_per_prompt": 3})
        6
    """
    prompt, embeds = arguments.get("prompt"), arguments.get("prompt_embeds")
    if prompt is None and embeds is None:
        raise ConfigError("prompt is missing. The call needs prompt or prompt_embeds. Pass prompt='...'.")
    prompts: Any = embeds if prompt is None else prompt
    images = 1 if isinstance(prompt, str) else len(prompts)
    if images == 0:
        raise ConfigError("prompt is an empty list. It must contain at least one prompt. Pass prompt='...'.")
    for name in ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt"):
        per_prompt = arguments.get(name)
        if per_prompt is None:
            continue
        if not isinstance(per_prompt, Integral) or per_prompt < 1:
            raise ConfigError(
                f"{name} is {per_prompt!r}. It must be one whole number of at least 1 for all prompts. Repeat a prompt "
                "in the list for more images of it."
            )
        images *= int(per_prompt)
    return images


def start_time(spec: PipelineSpec, arguments: Mapping[str, Any]) -> float | None:
    """Returns the time at which the images start: the strength of an image-to-image call. None is pure noise.

    Raises:
        ConfigError: The strength is not a number.
    """
    parameter = spec.signature.parameters.get("strength")
    if parameter is None:
        return None
    strength = arguments.get("strength", parameter.default)
    if not isinstance(strength, Real):
        raise ConfigError(
            f"strength is {strength!r}. It must be one number in (0, 1] for all images. Call once for each strength."
        )
    return float(strength)


def requested_steps(limit: int, strength: float | None) -> int:
    """Returns the ``num_inference_steps`` at which a pipeline makes at least ``limit`` steps.

    Image-to-image pipelines subtract the part that a strength leaves out, and do not run if nothing is left.

    Args:
        limit: Maximum number of steps, >= 1.
        strength: Strength of an image-to-image call. None for other calls.

    Example:
        >>> requested_steps(28, None), requested_steps(3, 0.6)
        (28, 5)
    """
    steps = limit
    if strength is not None and 0.0 < strength < 1.0:
        steps = math.ceil(limit / strength)
        steps += int(steps * strength) < limit  # rounding
    return max(steps, 2)  # at 1, PixArt-Alpha expects the scheduler of a distilled model


def noise_arguments(
    arguments: Mapping[str, Any], seeds: Sequence[int] | None, images: int
) -> dict[str, list[torch.Generator]]:
    """Returns ``generator=[...]``, one per image, so that an image depends on its seed and not on its batch.

    Raises:
        ConfigError: The seeds are not one integer per image, or the call also gives latents or generators.
    """
    if seeds is None:
        return {}
    if isinstance(seeds, Number):
        raise ConfigError(f"seeds is {seeds}. It must be a list with one integer per image. Pass seeds=[{seeds}].")
    if broken := [seed for seed in seeds if int(seed) != seed]:
        raise ConfigError(f"seeds contains {broken[0]!r}. It must contain one integer per image. Use whole numbers.")
    if len(seeds) != images:
        raise ConfigError(
            f"seeds has length {len(seeds)} for {images} images. It must contain one integer per image (prompts x "
            f"images per prompt). Pass {images} seeds."
        )
    for name in ("latents", "generator"):
        if arguments.get(name) is not None:
            raise ConfigError(
                f"seeds and {name} are both given. Only one of them can be the source of noise. Pass decision_seeds "
                "instead of seeds if only the sampled decisions need them."
            )
    # Generators on the CPU give the same noise on every device.
    return {"generator": [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]}


def deciding_seeds(
    sample: bool, seeds: Sequence[int] | None, decision_seeds: Sequence[int] | None
) -> Sequence[int] | None:
    """Returns the seeds of sampled decisions. None uses the policy's mode.

    Raises:
        ConfigError: ``sample`` is set without seeds, or decision seeds are given without it.
    """
    if not sample:
        if decision_seeds is not None:
            raise ConfigError("decision_seeds is given without sample=True. Decisions need both. Pass both or neither.")
        return None
    deciding = seeds if decision_seeds is None else decision_seeds
    if deciding is None:
        raise ConfigError("sample is True without seeds. Sampling needs one integer per image. Pass seeds=[...].")
    return deciding


def is_argument_error(error: ValueError, pipe: Any) -> bool:
    """Whether a pipeline raised an error about the arguments of its call, and not one from inside its parts.

    Args:
        error: Error that the call raised.
        pipe: Pipeline whose class checks arguments in ``check_inputs``, or in its call itself (Z-Image).
    """
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    call = inspect.unwrap(type(pipe).__call__).__code__
    return codes[-1] is call or any(code.co_name == "check_inputs" for code in codes)


SEEDS, STEPS = "seeds=[...], one integer per image", "max_steps, because the policy decides the times"

# Names in other libraries and in the command line, and what to use in a call of an adaptive pipeline.
SUGGESTIONS = {
    "seed": SEEDS,
    "generators": "generator",
    "steps": STEPS,
    "num_steps": STEPS,
    "sample_steps": STEPS,
    "prompts": "prompt",
    "negative": "negative_prompt",
    "negative_prompts": "negative_prompt",
    "n": "num_images_per_prompt",
    "num_images": "num_images_per_prompt",
    "batch_size": "num_images_per_prompt",
}

GUIDANCE = ("cfg", "cfg_scale", "guidance", "guidance_scale", "true_cfg_scale", "true_cfg", "scale")


def _suggestion(spec: PipelineSpec, name: str) -> str:
    """A sentence that names the argument that was probably meant."""
    names = list(spec.signature.parameters)
    scale = spec.entry.guidance_scale
    likely = (scale if scale in names else None) if name in GUIDANCE else SUGGESTIONS.get(name)
    likely = likely or next(iter(difflib.get_close_matches(name, names, n=1)), None)
    if likely is None:
        return "See its __call__ for the names."
    return f"Did you mean {repr(likely) if likely.isidentifier() else likely}?"


def _check_callback(callback: Any) -> None:
    """Refuses diffusers' callbacks that end something after a fraction of the steps. A step index is allowed."""
    if isinstance(callback, MultiPipelineCallbacks):
        for each in callback.callbacks:
            _check_callback(each)
    elif isinstance(callback, PipelineCallback):
        ratio = getattr(callback, "config", {}).get("cutoff_step_ratio")
        if ratio not in (None, 0.0, 1.0):
            raise BackboneError(
                f"cutoff_step_ratio of {type(callback).__name__} is {ratio:g}. A policy does not know the number of "
                "steps in advance. Pass cutoff_step_index, or a callback that reads the time."
            )


def _plain(value: Any) -> Any:
    """A tuple, an array or a tensor as a list, which several control networks need. Other values are returned."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _numbers(value: Any) -> Iterator[Any]:
    """The numbers in nested lists, or a single number."""
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    else:
        yield value
