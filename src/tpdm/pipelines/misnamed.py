"""Arguments that a pipeline does not know by that name: the name that is likely meant."""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterable
from typing import Any

from tpdm.pipelines.backbones import find_denoiser, find_entry
from tpdm.types import BackboneError

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
