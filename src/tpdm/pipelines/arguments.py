"""What a call of an adaptive pipeline may say: pipeline arguments checked, images counted, noise seeded."""

from __future__ import annotations

import difflib
import inspect
import traceback
from collections.abc import Container, Iterable, Mapping, Sequence
from numbers import Integral, Number, Real
from typing import Any

import torch

from tpdm.core.errors import BackboneError, ConfigError
from tpdm.pipelines.guidance import settle
from tpdm.pipelines.registry import find_denoiser, find_entry
from tpdm.pipelines.step_keyed import without_step_keys

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


def merge_arguments(
    pipe: Any, args: tuple[Any, ...], arguments: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of one pipeline call by name: the user's, else the defaults.

    None, where the user gives it, goes behind a default of ``attach`` and before one of the pipeline.

    Raises:
        BackboneError: an argument is unknown to this pipeline, cannot go with a policy, or would have no effect.
    """
    signature = inspect.signature(pipe.__call__)
    for name in [*arguments, *defaults]:
        if name not in signature.parameters:
            raise BackboneError(
                f"got argument {name!r}, expected one of {type(pipe).__name__}'s own arguments: "
                f"{meant(pipe, name, signature.parameters)}"
            )
    try:
        given = signature.bind_partial(*args, **arguments).arguments
    except TypeError as error:
        raise BackboneError(f"got arguments that {type(pipe).__name__} cannot take: {error}.") from error
    merged = {**given, **defaults, **{k: v for k, v in given.items() if v is not None}}
    for name, reason in REFUSED.items():
        value = merged.pop(name, None)
        if value is not None and not (name in NEUTRAL and value == NEUTRAL[name]):
            value = given.get(name, defaults.get(name))
            raise BackboneError(f"got {name}={value!r}, expected no such argument with a policy: {reason}.")
    return settle(pipe, merged | without_step_keys(merged, signature.parameters), given)


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


def start_time(pipe: Any, arguments: Mapping[str, Any]) -> float | None:
    """Where the chain starts: the strength of an image-to-image pipeline; None (pure noise) where there is none.

    Raises:
        ConfigError: the strength is no number.
    """
    parameter = inspect.signature(pipe.__call__).parameters.get("strength")
    if parameter is None:
        return None
    strength = arguments.get("strength", parameter.default)
    if not isinstance(strength, Real):
        raise ConfigError(
            f"got strength={strength!r}, expected one number in (0, 1] for all images: call once for each strength."
        )
    return float(strength)


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


def meant(pipe: Any, name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an argument that the pipeline does not know.

    Args:
        pipe: of the call.
        name: of the argument.
        known: names of the pipeline's arguments.
    """
    names = list(known)
    found = _guidance(pipe, names) if name in GUIDANCE else MEANT.get(name)
    near = difflib.get_close_matches(name, names, n=1)
    if found is None and not near:
        return "see its __call__ for the names"
    likely = found or near[0]
    return f"did you mean {repr(likely) if likely.isidentifier() else likely}?"


def _guidance(pipe: Any, known: Container[str]) -> str | None:
    try:
        name = find_entry(find_denoiser(pipe)).guidance_scale
    except BackboneError:
        return None
    return name if name in known else None
