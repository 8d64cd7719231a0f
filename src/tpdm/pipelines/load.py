"""Loading a pipeline by name or folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from packaging.version import Version

from tpdm.devices import resolve_device
from tpdm.files import expand
from tpdm.pipelines.backbones import DENOISERS, TAPS
from tpdm.pipelines.guidance import Guidance
from tpdm.recipe import BackboneConfig
from tpdm.types import BackboneError, ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


Parts = Literal["all", "text encoders", "all but text encoders"]
ALL: Parts = "all"
TEXT_ENCODERS: Parts = "text encoders"
NO_TEXT_ENCODERS: Parts = "all but text encoders"


def load_pipeline(
    name_or_path: str | Path, dtype: str = "fp32", device: str | torch.device = "auto", parts: Parts = "all"
) -> Any:
    """The embedded pipeline, or a diffusers one from a folder or the Hub. Only safetensors weights are read.

    Args:
        name_or_path: "tinyworld", a folder written by ``save_pretrained``, or a Hub name "owner/model".
        dtype: "fp32", "bf16" or "fp16".
        device: "auto" (CUDA, then Apple's, then the CPU) or a torch device.
        parts: networks to load; the others are None, as where a pipeline comes without them (for "text encoders" the
            denoiser is there with its shapes and no weights). Tokenizers always come.

    Raises:
        BackboneError: there is no such pipeline, or it cannot be loaded.
        ConfigError: the dtype is unknown, or the device is not there.
    """
    name_or_path = expand(name_or_path)
    if dtype not in DTYPES:
        raise ConfigError(f"got dtype {dtype!r}, expected one of {', '.join(DTYPES)}: choose one of them.")
    device = resolve_device(device)
    if str(name_or_path) == "tinyworld":
        from tpdm.tinyworld.pipeline import load_tinyworld_pipeline

        pipe = load_tinyworld_pipeline(DTYPES[dtype], device)
        for name in [n for n in pipe.components if n.startswith("text_encoder") and parts == "all but text encoders"]:
            setattr(pipe, name, None)
        return pipe
    if not Path(name_or_path).is_dir() and not _is_hub_name(name_or_path):
        raise BackboneError(
            f"got {str(name_or_path)!r}, which is no folder, expected 'tinyworld', a pipeline folder or a "
            "Hub name 'owner/model': check the path."
        )
    try:
        pipe = from_pretrained(name_or_path, DTYPES[dtype], parts)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackboneError(
            f"got {str(name_or_path)!r}, which diffusers cannot load, expected a complete pipeline with "
            f"safetensors weights: {reason}"
        ) from error
    if parts != "text encoders":
        return pipe.to(device)
    for name in [n for n, part in pipe.components.items() if n.startswith("text_encoder") and part is not None]:
        getattr(pipe, name).to(device)  # the denoiser is shapes alone, which go nowhere
    return pipe


def load_backbone(backbone: BackboneConfig, device: str, parts: Parts = "all") -> Any:
    """The pipeline of a recipe, its networks where the recipe wants them; to be sharded, they are still on the CPU.

    Args:
        backbone: of the recipe.
        device: on which it computes.
        parts: as for ``load_pipeline``.

    Raises:
        BackboneError: there is no such pipeline, or it cannot be loaded.
        ConfigError: it is to be offloaded, and there is no GPU to come back to.
    """
    if backbone.offload != "none" and torch.device(device).type == "cpu":
        raise ConfigError(
            f"got backbone.offload={backbone.offload} on the CPU, expected a GPU that networks are brought to when "
            "they are called; set backbone.offload=none, or backbone.device to a GPU"
        )
    waits = backbone.shard or backbone.offload != "none"
    pipe = load_pipeline(backbone.name_or_path, backbone.dtype, "cpu" if waits else device, parts)
    offload(pipe, backbone.offload, device)
    return pipe


def offload(pipe: Any, way: Literal["none", "model", "sequential"], device: str) -> None:
    """Networks come to the device when they are called: each as a ``model``, or layer by layer (``sequential``)."""
    if way == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif way == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)


def from_pretrained(name_or_path: str | Path, dtype: torch.dtype, parts: Parts = "all") -> Any:
    """Any diffusers pipeline, on the CPU; parts that were saved as None stay None."""
    import diffusers

    # The old name warns from 0.42 on; older versions ignore the new one, and would load fp32.
    keyword = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
    # A part that was saved as None (SD3 without T5) is found missing unless it is passed as None again.
    index = diffusers.DiffusionPipeline.load_config(name_or_path)
    given: dict[str, Any] = {}
    for name, part in index.items():
        if isinstance(part, list) and (part == [None, None] or _is_left_out(name, parts)):
            given[name] = None
        if parts == "text encoders" and name in DENOISERS:
            # Some pipelines ask the denoiser for the width of what they encode.
            cls = getattr(diffusers, part[1])
            with torch.device("meta"):
                shapes = cls.from_config(cls.load_config(name_or_path, subfolder=name))
            given[name] = torch.nn.Module.to(shapes, dtype)  # diffusers' own `to` warns
    return diffusers.DiffusionPipeline.from_pretrained(name_or_path, use_safetensors=True, **given, **{keyword: dtype})


def _is_left_out(name: str, parts: Parts) -> bool:
    if name.startswith("text_encoder"):
        return parts == "all but text encoders"
    return parts == "text encoders" and not name.startswith(("tokenizer", "scheduler"))


def pipeline_folder(name_or_path: str | Path) -> str | Path:
    """Where diffusers finds the pipeline: the folder of the embedded one, any other name as it is."""
    if str(name_or_path) == "tinyworld":
        from tpdm.tinyworld.shipped import weights_folder

        return weights_folder() / "pipeline"
    return expand(name_or_path)


def pipeline_index(name_or_path: str | Path) -> dict[str, Any]:
    """``model_index.json`` of the pipeline.

    Raises:
        BackboneError: there is no such pipeline.
    """
    import diffusers

    try:
        return dict(diffusers.DiffusionPipeline.load_config(pipeline_folder(name_or_path)))
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"got {str(name_or_path)!r}, whose index cannot be read, expected 'tinyworld', a pipeline folder or a Hub "
            f"name 'owner/model': {str(error).strip().splitlines()[0]}"
        ) from error


def pipeline_class(name_or_path: str | Path) -> str:
    """Name of the pipeline's class, from its index alone.

    Raises:
        BackboneError: there is no such pipeline.
    """
    return str(pipeline_index(name_or_path)["_class_name"])


def call_defaults(name_or_path: str | Path) -> dict[str, Any]:
    """Arguments of the pipeline's call that this backbone wants where the user gives none."""
    if str(name_or_path) == "tinyworld":
        from tpdm.tinyworld.pipeline import CALL_DEFAULTS

        return dict(CALL_DEFAULTS)
    return {}


def pipeline_arguments(backbone: BackboneConfig) -> dict[str, Any]:
    """Arguments of every pipeline call of a recipe: the backbone's defaults, then the recipe's wishes.

    Raises:
        BackboneError: there is no such pipeline.
        ConfigError: both scales of guidance are given, and mean the same to it.
    """
    sizes = {"height": backbone.height, "width": backbone.width}
    wishes = {name: value for name, value in sizes.items() if value is not None}
    return call_defaults(backbone.name_or_path) | wishes | guidance_arguments(backbone)


def guidance_of(name_or_path: str | Path) -> Guidance | None:
    """How "tinyworld", a pipeline folder or a Hub name guides, from its configuration files alone.

    Returns:
        None where its denoiser has no entry.

    Raises:
        BackboneError: there is no such pipeline.
    """
    import diffusers

    index = pipeline_index(name_or_path)
    pipeline: Any = getattr(diffusers, index["_class_name"], None)
    part = next((name for name in DENOISERS if index.get(name, [None])[0] is not None), None)
    denoiser: Any = None if part is None else getattr(diffusers, index[part][1], None)
    entry = next((TAPS[c.__name__] for c in getattr(denoiser, "__mro__", ()) if c.__name__ in TAPS), None)
    if pipeline is None or entry is None:
        return None
    config = denoiser.load_config(pipeline_folder(name_or_path), subfolder=part)
    return Guidance.made(pipeline, denoiser.__name__, entry, config, index)


def guidance_arguments(backbone: BackboneConfig) -> dict[str, Any]:
    """The scales of a recipe under the names of its pipeline's call, and the empty negative prompt that they need.

    Raises:
        BackboneError: there is no such pipeline.
        ConfigError: both scales are given, and mean the same to it.
    """
    scales = {"guidance_scale": backbone.guidance_scale, "true_cfg_scale": backbone.true_cfg_scale}
    given = {name: value for name, value in scales.items() if value is not None}
    guidance = guidance_of(backbone.name_or_path) if given else None
    if guidance is None:
        return given
    named = guidance.named(**scales)
    return named | guidance.against(named)


def pinned_arguments(pipe: Any, arguments: Mapping[str, Any], negatives: bool = False) -> dict[str, Any]:
    """The arguments of a call with the guidance that it had: the pipeline's own default where none is given.

    What a TPM was trained with must not follow a later version's default.

    Args:
        pipe: the pipeline.
        arguments: of every call.
        negatives: whether every image had a negative prompt besides, which may have been empty.
    """
    guidance = Guidance.find(pipe)
    return dict(arguments) if guidance is None else guidance.pinned(arguments, negatives)


def _is_hub_name(name: str | Path) -> bool:
    return isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/", "~"))
