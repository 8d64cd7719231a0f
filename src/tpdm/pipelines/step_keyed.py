"""Options and callbacks that are keyed on the steps of a fixed schedule, which a policy does not have.

A value that means the same at any number of steps is taken; any other is refused, for it would count against the cap.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from tpdm.core.errors import BackboneError

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
