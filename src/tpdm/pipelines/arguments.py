"""What a call of an adaptive pipeline may say: pipeline arguments checked, images counted, noise seeded."""

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

# Their values that ask for what is done anyway.
NEUTRAL: dict[str, float] = {"eta": 0.0, "denoising_end": 1.0}


# Option -> its values that mean the same at any number of steps: always, or never.
STEP_KEYED: dict[str, tuple[float, ...]] = {
    "cfg_trunc_ratio": (1.0,),
    "cfg_truncation": (1.0,),
    "control_guidance_start": (0.0,),
    "control_guidance_end": (1.0,),
    "adapter_conditioning_factor": (1.0, 0.0),
    "gligen_scheduled_sampling_beta": (1.0, 0.0),
}
# None keeps Z-Image's pipelines from reading all times before the first step.
TOLD: dict[str, None] = {"cfg_truncation": None}


def merge_arguments(
    spec: PipelineSpec, args: tuple[Any, ...], arguments: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of one pipeline call by name: the user's, else the defaults.

    None, where the user gives it, goes behind a default of ``attach`` and before one of the pipeline.

    Raises:
        BackboneError: an argument is unknown to this pipeline, cannot go with a policy, or would have no effect.
    """
    for name in [*arguments, *defaults]:
        if name not in spec.signature.parameters:
            raise BackboneError(
                f"got argument {name!r}, expected one of {spec.pipeline}'s own arguments: {meant(spec, name)}"
            )
    try:
        given = spec.signature.bind_partial(*args, **arguments).arguments
    except TypeError as error:
        raise BackboneError(f"got arguments that {spec.pipeline} cannot take: {error}.") from error
    merged = {**given, **defaults, **{k: v for k, v in given.items() if v is not None}}
    for name, reason in REFUSED.items():
        value = merged.pop(name, None)
        if value is not None and not (name in NEUTRAL and value == NEUTRAL[name]):
            value = given.get(name, defaults.get(name))
            raise BackboneError(f"got {name}={value!r}, expected no such argument with a policy: {reason}.")
    return settle(spec.guidance, merged | without_step_keys(merged, spec.signature.parameters), given)


def without_step_keys(merged: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """What the pipeline is told of options that are keyed on the index of a step: values that are not.

    Args:
        merged: arguments of the call, with all defaults but the pipeline's.
        parameters: of the pipeline's call.

    Raises:
        BackboneError: an option, or one of its list, has another value, be it the pipeline's own default.
    """
    told: dict[str, Any] = {}
    for name, neutral in STEP_KEYED.items():
        if name not in parameters:
            continue
        given = merged.get(name)
        said = _plain(parameters[name].default if given is None else given)
        if not all(value in (None, *neutral) for value in _numbers(said)):
            whose = " (the pipeline's default)" if given is None else ""
            raise BackboneError(
                f"got {name}={said!r}{whose}, expected {neutral[0]:g} with a policy: it is keyed on the steps of a "
                f"fixed schedule; pass {neutral[0]:g}."
            )
        told[name] = TOLD.get(name, neutral[0] if said is None else said)
    _check_callback(merged.get("callback_on_step_end"))
    return told


def count_images(arguments: Mapping[str, Any]) -> int:
    """Images (or videos) that a call makes: prompts x images per prompt.

    Raises:
        ConfigError: neither a prompt nor prompt embeddings are given, the list of prompts is empty, or the images per
            prompt are no whole number.
    """
    prompt, embeds = arguments.get("prompt"), arguments.get("prompt_embeds")
    if prompt is None and embeds is None:
        raise ConfigError("got neither prompt nor prompt_embeds, expected one of them: pass prompt='...'.")
    listed: Any = embeds if prompt is None else prompt
    prompts = 1 if isinstance(prompt, str) else len(listed)
    if prompts == 0:
        raise ConfigError("got an empty list of prompts, expected at least one: pass prompt='...'.")
    for name in ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt"):
        per_prompt = arguments.get(name)
        if per_prompt is None:
            continue
        if not isinstance(per_prompt, Integral) or per_prompt < 1:
            raise ConfigError(
                f"got {name}={per_prompt!r}, expected one whole number of at least 1 for all prompts: repeat a prompt "
                "in the list for more images of it."
            )
        prompts *= int(per_prompt)
    return prompts


def start_time(spec: PipelineSpec, arguments: Mapping[str, Any]) -> float | None:
    """Where the chain starts: the strength of an image-to-image pipeline; None (pure noise) where there is none.

    Raises:
        ConfigError: the strength is no number.
    """
    parameter = spec.signature.parameters.get("strength")
    if parameter is None:
        return None
    strength = arguments.get("strength", parameter.default)
    if not isinstance(strength, Real):
        raise ConfigError(
            f"got strength={strength!r}, expected one number in (0, 1] for all images: call once for each strength."
        )
    return float(strength)


def told_steps(limit: int, strength: float | None) -> int:
    """The number of steps that a pipeline is told; what it is really asked for is ``limit`` steps at most.

    Pipelines take the part that a strength leaves out off it, and refuse to run where nothing is left.

    Args:
        limit: the cap.
        strength: of an image-to-image call; None where there is none.
    """
    steps = limit
    if strength is not None and 0.0 < strength < 1.0:
        steps = math.ceil(limit / strength)
        steps += int(steps * strength) < limit  # rounding
    return max(steps, 2)  # at 1, PixArt-Alpha asks its scheduler for what distilled models need


def noise_arguments(
    arguments: Mapping[str, Any], seeds: Sequence[int] | None, images: int
) -> dict[str, list[torch.Generator]]:
    """``generator=[...]``, one per image, so that an image depends on its seed and not on its batch.

    Raises:
        ConfigError: the number of seeds is wrong, one is no integer, or the call also gives latents or generators.
    """
    if seeds is None:
        return {}
    if isinstance(seeds, Number):
        raise ConfigError(f"got seeds={seeds}, expected one integer per image: pass seeds=[{seeds}].")
    if broken := [seed for seed in seeds if int(seed) != seed]:
        raise ConfigError(f"got the seed {broken[0]!r}, expected one integer per image: give whole numbers.")
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


def is_argument_error(error: ValueError, pipe: Any) -> bool:
    """Whether a pipeline says so of the arguments of its call, and not a tokenizer, an encoder or a decoder of its own.

    Args:
        error: that its call raised.
        pipe: whose class checks arguments in ``check_inputs``, or in its call itself (Z-Image).
    """
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    call = inspect.unwrap(type(pipe).__call__).__code__
    return codes[-1] is call or any(code.co_name == "check_inputs" for code in codes)


SEEDS = "seeds=[...], one integer per image"

STEPS = "max_steps, for the policy decides the times"

# Words of other libraries and of the command line, and what they are in a call of an adaptive pipeline.
MEANT = {
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


def meant(spec: PipelineSpec, name: str) -> str:
    """The end of a sentence about an argument that the pipeline does not know.

    Args:
        spec: of the pipeline.
        name: of the argument.
    """
    names = list(spec.signature.parameters)
    scale = spec.entry.guidance_scale
    found = (scale if scale in names else None) if name in GUIDANCE else MEANT.get(name)
    near = difflib.get_close_matches(name, names, n=1)
    if found is None and not near:
        return "see its __call__ for the names"
    likely = found or near[0]
    return f"did you mean {repr(likely) if likely.isidentifier() else likely}?"


def _check_callback(callback: Any) -> None:
    """Refuses diffusers' callbacks that end something after a part of the steps; an index of a step is one here too."""
    if isinstance(callback, MultiPipelineCallbacks):
        for one in callback.callbacks:
            _check_callback(one)
    elif isinstance(callback, PipelineCallback):
        ratio = getattr(callback, "config", {}).get("cutoff_step_ratio")
        if ratio not in (None, 0.0, 1.0):
            raise BackboneError(
                f"got {type(callback).__name__}(cutoff_step_ratio={ratio:g}), expected no part of the steps with a "
                "policy, which does not know their number: pass cutoff_step_index, or a callback that reads the time."
            )


def _plain(value: Any) -> Any:
    """A tuple, an array or a tensor as a list, which several control networks want; other values as they are."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _numbers(value: Any) -> Iterator[Any]:
    """The numbers in a list of lists, or the one number."""
    if isinstance(value, list):
        for one in value:
            yield from _numbers(one)
    else:
        yield value
