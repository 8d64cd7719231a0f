"""Loading a pipeline by name or folder."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from tpdm.config.recipe import BackboneConfig
from tpdm.core.builtins import find_builtin
from tpdm.core.device import resolve_device
from tpdm.core.errors import BackboneError, ConfigError
from tpdm.core.file_errors import first_line
from tpdm.core.io import expand
from tpdm.core.progress import quiet_loading
from tpdm.pipelines.guidance import Guidance, named_scales
from tpdm.pipelines.loading.components import load_components, meta_component, part_config
from tpdm.pipelines.loading.model_index import read_index
from tpdm.pipelines.loading.weight_files import local_folder, no_such_variant
from tpdm.pipelines.registry import DENOISER_ATTRIBUTES, DENOISERS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


TrainingComponents = Literal["all", "text encoders", "all but text encoders"]
ALL: TrainingComponents = "all"
TEXT_ENCODERS: TrainingComponents = "text encoders"
NO_TEXT_ENCODERS: TrainingComponents = "all but text encoders"


def load_pipeline(
    name_or_path: str | Path,
    dtype: str = "fp32",
    device: str | torch.device = "auto",
    parts: TrainingComponents = "all",
    variant: str | None = None,
) -> Any:
    """The embedded pipeline, or a diffusers one from a folder or the Hub. Only safetensors weights are read.

    Args:
        name_or_path: "tinyworld", a folder written by ``save_pretrained``, or a Hub name "owner/model".
        dtype: "fp32", "bf16" or "fp16".
        device: "auto" (CUDA, then Apple's, then the CPU) or a torch device.
        parts: networks to load; the others are None, as where a pipeline comes without them (for "text encoders" the
            denoiser is there with its shapes and no weights). Tokenizers always come.
        variant: of the weight files, as diffusers calls them: "fp16" reads ``model.fp16.safetensors``. It says which
            files are read, and ``dtype`` what they become.

    Raises:
        BackboneError: there is no such pipeline, a file of it is missing or damaged, or the installed libraries lack a
            class of it.
        ConfigError: the dtype is unknown, or the device is not there.
    """
    name_or_path = expand(name_or_path)
    if dtype not in DTYPES:
        raise ConfigError(f"got dtype {dtype!r}, expected one of {', '.join(DTYPES)}: choose one of them.")
    device = resolve_device(device)
    builtin = find_builtin(name_or_path)
    if builtin is not None:
        if variant is not None:
            raise BackboneError(no_such_variant(str(name_or_path), variant, []))
        with quiet_loading():
            pipe = from_pretrained(builtin.WEIGHTS / "pipeline", DTYPES[dtype])
        pipe.set_progress_bar_config(disable=True)
        pipe = pipe.to(device)
        for name in [n for n in pipe.components if n.startswith("text_encoder") and parts == "all but text encoders"]:
            setattr(pipe, name, None)
        return pipe
    pipe = from_pretrained(name_or_path, DTYPES[dtype], parts, variant)
    if parts != "text encoders":
        return pipe.to(device)
    for name in [n for n, part in pipe.components.items() if n.startswith("text_encoder") and part is not None]:
        getattr(pipe, name).to(device)  # the denoiser is shapes alone, which go nowhere
    return pipe


def load_backbone(backbone: BackboneConfig, device: str, parts: TrainingComponents = "all") -> Any:
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
    pipe = load_pipeline(backbone.name_or_path, backbone.dtype, "cpu" if waits else device, parts, backbone.variant)
    offload(pipe, backbone.offload, device)
    return pipe


def offload(pipe: Any, way: Literal["none", "model", "sequential"], device: str) -> None:
    """Networks come to the device when they are called: each as a ``model``, or layer by layer (``sequential``)."""
    if way == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif way == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)


def from_pretrained(
    name_or_path: str | Path, dtype: torch.dtype, parts: TrainingComponents = "all", variant: str | None = None
) -> Any:
    """Any diffusers pipeline, on the CPU; parts that were saved as None stay None.

    Raises:
        BackboneError: there is no such pipeline, or a part of it cannot be loaded whole.
    """
    import diffusers

    index = read_index(name_or_path)
    takes = inspect.signature(index.pipeline_class().__init__).parameters
    left_out = [name for name in index.parts if _is_left_out(name, parts)]
    wanted = [name for name in index.parts if name in takes and name not in left_out]
    for name in wanted:
        index.part_class(name)  # one that is not there is known before anything is fetched
    folder = local_folder(index, left_out, variant)
    # A part that was saved as None (SD3 without T5) is found missing unless it is passed as None again.
    given: dict[str, Any] = dict.fromkeys([*index.empty, *left_out])
    if parts == "text encoders":
        # Some pipelines ask the denoiser for the width of what they encode.
        shapes = {name: meta_component(index, name) for name in left_out if name in DENOISER_ATTRIBUTES}
        # diffusers' own `to` warns.
        given |= {name: torch.nn.Module.to(network, dtype) for name, network in shapes.items() if network is not None}
    given |= load_components(replace(index, place=folder), wanted, dtype, variant)
    try:
        with _putting_together():
            pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **given)
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"got {str(name_or_path)!r}, whose parts diffusers cannot put together ({first_line(error)}), expected a "
            "whole pipeline: fetch it again."
        ) from error
    pipe.register_to_config(_name_or_path=str(name_or_path))
    return pipe


@contextmanager
def _putting_together() -> Iterator[None]:
    """Without diffusers' bar of parts, all of which are loaded, nor its warning that it cannot check some of them."""
    from diffusers.utils import logging as diffusers_logging

    def is_news(record: logging.LogRecord) -> bool:
        return "passed a non-standard module" not in record.getMessage()

    source = logging.getLogger("diffusers.pipelines.pipeline_loading_utils")
    bars = diffusers_logging.is_progress_bar_enabled()
    source.addFilter(is_news)
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        source.removeFilter(is_news)
        if bars:
            diffusers_logging.enable_progress_bar()


def _is_left_out(name: str, parts: TrainingComponents) -> bool:
    if name.startswith("text_encoder"):
        return parts == "all but text encoders"
    return parts == "text encoders" and not name.startswith(("tokenizer", "scheduler"))


def pipeline_folder(name_or_path: str | Path) -> str | Path:
    """Where diffusers finds the pipeline: the folder of the embedded one, any other name as it is."""
    builtin = find_builtin(name_or_path)
    return expand(name_or_path) if builtin is None else builtin.WEIGHTS / "pipeline"


def pipeline_class(name_or_path: str | Path) -> str:
    """Name of the pipeline's class, from its index alone.

    Raises:
        BackboneError: there is no such pipeline.
    """
    return read_index(pipeline_folder(name_or_path), name_or_path).class_name


def call_defaults(name_or_path: str | Path) -> dict[str, Any]:
    """Arguments of the pipeline's call that this backbone wants where the user gives none."""
    builtin = find_builtin(name_or_path)
    return {} if builtin is None else dict(builtin.CALL_DEFAULTS)


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
        BackboneError: there is no such pipeline, or the installed diffusers lacks a class of it.
    """
    index = read_index(pipeline_folder(name_or_path), name_or_path)
    part = next((name for name in DENOISER_ATTRIBUTES if name in index.parts), None)
    denoiser = None if part is None else index.part_class(part)
    entry = next((DENOISERS[c.__name__] for c in getattr(denoiser, "__mro__", ()) if c.__name__ in DENOISERS), None)
    if part is None or entry is None:
        return None
    made = (index.pipeline_class(), index.parts[part][1], entry)
    return Guidance.made(*made, part_config(index, part), index.content)


def guidance_arguments(backbone: BackboneConfig) -> dict[str, Any]:
    """The scales of a recipe under the names of its pipeline's call, and the empty negative prompt that they need.

    Raises:
        BackboneError: there is no such pipeline.
        ConfigError: both scales are given, and mean the same to it.
    """
    scales = {"guidance_scale": backbone.guidance_scale, "true_cfg_scale": backbone.true_cfg_scale}
    given = {name: value for name, value in scales.items() if value is not None}
    named, avoided = named_scales(guidance_of(backbone.name_or_path) if given else None, **scales)
    return named | avoided


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
