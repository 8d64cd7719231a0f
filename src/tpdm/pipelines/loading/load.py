"""Loads pipelines by name or folder, and reads the arguments of their calls."""

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

LoadedParts = Literal["all", "text encoders", "all but text encoders"]
ALL: LoadedParts = "all"
TEXT_ENCODERS: LoadedParts = "text encoders"
NO_TEXT_ENCODERS: LoadedParts = "all but text encoders"


def load_pipeline(
    name_or_path: str | Path,
    dtype: str = "fp32",
    device: str | torch.device = "auto",
    parts: LoadedParts = "all",
    variant: str | None = None,
) -> Any:
    """Loads a diffusers pipeline, and checks that every file of it is complete.

    diffusers initializes some parts at random whose files are missing. Here a missing or damaged file is an error that
    names it. Only safetensors weights are read.

    Args:
        name_or_path: "tinyworld" (the embedded model), a folder written by ``save_pretrained``, or a Hub name
            "owner/model".
        dtype: dtype of the networks: "fp32", "bf16" or "fp16". Default "fp32".
        device: A torch device, or "auto" for CUDA, then Apple's, then the CPU.
        parts: Networks to load. The others are None, except that "text encoders" keeps the denoiser on the meta device.
            Tokenizers are always loaded, and the embedded model always loads its denoiser.
        variant: Variant of the weight files: "fp16" reads ``model.fp16.safetensors``. It selects files, while ``dtype``
            is what they are converted to. None reads the plain files.

    Returns:
        The pipeline on the device.

    Raises:
        BackboneError: The pipeline does not exist, a file is missing or damaged, or the installed libraries lack one of
            its classes.
        ConfigError: The dtype is unknown, or the device is not available.

    Example:
        >>> pipe = load_pipeline("tinyworld", device="cpu")  # doctest: +SKIP
        >>> type(pipe).__name__  # doctest: +SKIP
        'StableDiffusion3Pipeline'
    """
    name_or_path = expand(name_or_path)
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}. It must be one of {', '.join(DTYPES)}. Choose one of them.")
    device = resolve_device(device)
    builtin = find_builtin(name_or_path)
    if builtin is not None:
        if variant is not None:
            raise BackboneError(no_such_variant(str(name_or_path), variant, []))
        with quiet_loading():
            pipe = from_pretrained(builtin.WEIGHTS / "pipeline", DTYPES[dtype])
        pipe.set_progress_bar_config(disable=True)
        pipe = pipe.to(device)
        if parts == NO_TEXT_ENCODERS:
            for name in [n for n in pipe.components if n.startswith("text_encoder")]:
                setattr(pipe, name, None)
        return pipe
    pipe = from_pretrained(name_or_path, DTYPES[dtype], parts, variant)
    if parts != TEXT_ENCODERS:
        return pipe.to(device)
    for name in [n for n, part in pipe.components.items() if n.startswith("text_encoder") and part is not None]:
        getattr(pipe, name).to(device)  # the denoiser has shapes only and stays on the meta device
    return pipe


def load_backbone(backbone: BackboneConfig, device: str, parts: LoadedParts = "all") -> Any:
    """Loads the pipeline of a recipe. Networks that will be sharded or offloaded stay on the CPU.

    Args:
        backbone: Section of the recipe.
        device: Device on which the pipeline computes.
        parts: Networks to load, as for ``load_pipeline``.

    Raises:
        BackboneError: The pipeline does not exist, or cannot be loaded.
        ConfigError: It is offloaded without a GPU.
    """
    if backbone.offload != "none" and torch.device(device).type == "cpu":
        raise ConfigError(
            f"backbone.offload is {backbone.offload} on the CPU. Offloading moves networks to a GPU when they are "
            "called. Set backbone.offload=none, or backbone.device to a GPU."
        )
    on_cpu = backbone.shard or backbone.offload != "none"
    pipe = load_pipeline(backbone.name_or_path, backbone.dtype, "cpu" if on_cpu else device, parts, backbone.variant)
    offload(pipe, backbone.offload, device)
    return pipe


def offload(pipe: Any, way: Literal["none", "model", "sequential"], device: str) -> None:
    """Moves networks to the device only while they run: a whole ``model``, or layer by layer (``sequential``)."""
    if way == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif way == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)


def from_pretrained(
    name_or_path: str | Path, dtype: torch.dtype, parts: LoadedParts = "all", variant: str | None = None
) -> Any:
    """Loads a diffusers pipeline to the CPU. Parts that were saved as None stay None.

    Args:
        name_or_path: Folder or Hub name.
        dtype: dtype of the networks.
        parts: Networks to load, as for ``load_pipeline``.
        variant: Variant of the weight files, as for ``load_pipeline``.

    Raises:
        BackboneError: The pipeline does not exist, or a part of it cannot be loaded completely.
    """
    import diffusers

    index = read_index(name_or_path)
    known = inspect.signature(index.pipeline_class().__init__).parameters
    left_out = [name for name in index.parts if _is_left_out(name, parts)]
    to_load = [name for name in index.parts if name in known and name not in left_out]
    for name in to_load:
        index.part_class(name)  # a missing class is reported before anything is downloaded
    folder = local_folder(index, left_out, variant)
    # diffusers misses a part that was saved as None (SD3 without T5) unless None is passed.
    given: dict[str, Any] = dict.fromkeys([*index.empty, *left_out])
    if parts == "text encoders":
        # Some pipelines read the width of embeddings from the denoiser.
        shapes = {name: meta_component(index, name) for name in left_out if name in DENOISER_ATTRIBUTES}
        # `to` of diffusers warns.
        given |= {name: torch.nn.Module.to(network, dtype) for name, network in shapes.items() if network is not None}
    given |= load_components(replace(index, place=folder), to_load, dtype, variant)
    try:
        with _quiet_assembly():
            pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **given)
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"diffusers cannot assemble the parts of {str(name_or_path)!r} ({first_line(error)}). The pipeline must be "
            "complete. Fetch it again."
        ) from error
    pipe.register_to_config(_name_or_path=str(name_or_path))
    return pipe


@contextmanager
def _quiet_assembly() -> Iterator[None]:
    """Hides diffusers' progress bar, since all parts are loaded, and its warning that it cannot check some of them."""
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


def _is_left_out(name: str, parts: LoadedParts) -> bool:
    if name.startswith("text_encoder"):
        return parts == "all but text encoders"
    return parts == "text encoders" and not name.startswith(("tokenizer", "scheduler"))


def pipeline_folder(name_or_path: str | Path) -> str | Path:
    """Returns the folder of an embedded pipeline. Any other name is returned with variables expanded."""
    builtin = find_builtin(name_or_path)
    return expand(name_or_path) if builtin is None else builtin.WEIGHTS / "pipeline"


def pipeline_class(name_or_path: str | Path) -> str:
    """Returns the name of the pipeline's class, read from its index.

    Raises:
        BackboneError: The pipeline does not exist.

    Example:
        >>> pipeline_class("tinyworld")
        'StableDiffusion3Pipeline'
    """
    return read_index(pipeline_folder(name_or_path), name_or_path).class_name


def call_defaults(name_or_path: str | Path) -> dict[str, Any]:
    """Returns arguments of the pipeline's call that this backbone needs if the user gives none.

    Example:
        >>> call_defaults("tinyworld")["guidance_scale"], call_defaults("owner/model")
        (1.0, {})
    """
    builtin = find_builtin(name_or_path)
    return {} if builtin is None else dict(builtin.CALL_DEFAULTS)


def pipeline_arguments(backbone: BackboneConfig) -> dict[str, Any]:
    """Returns the arguments of every pipeline call of a recipe: those of the recipe, or else the backbone's defaults.

    Raises:
        BackboneError: The pipeline does not exist.
        ConfigError: Both guidance scales are given, and set the same argument.
    """
    sizes = {"height": backbone.height, "width": backbone.width}
    given = {name: value for name, value in sizes.items() if value is not None}
    return call_defaults(backbone.name_or_path) | given | guidance_arguments(backbone)


def guidance_of(name_or_path: str | Path) -> Guidance | None:
    """Returns the guidance of "tinyworld", of a pipeline folder or of a Hub repository, read from its configuration.

    Returns:
        The guidance. None if the denoiser has no entry.

    Raises:
        BackboneError: The pipeline does not exist, or the installed diffusers lacks one of its classes.
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
    """Returns the guidance scales of a recipe as arguments of its pipeline's call, with a negative prompt if needed.

    Raises:
        BackboneError: The pipeline does not exist.
        ConfigError: Both scales are given, and set the same argument.
    """
    scales = {"guidance_scale": backbone.guidance_scale, "true_cfg_scale": backbone.true_cfg_scale}
    given = {name: value for name, value in scales.items() if value is not None}
    named, avoided = named_scales(guidance_of(backbone.name_or_path) if given else None, **scales)
    return named | avoided


def pinned_arguments(pipe: Any, arguments: Mapping[str, Any], negatives: bool = False) -> dict[str, Any]:
    """Returns the arguments of a training's calls with explicit guidance, including the pipeline's default.

    A saved TPM must not depend on defaults of a later version.

    Args:
        pipe: The pipeline.
        arguments: Arguments of every call.
        negatives: Whether every image also had a negative prompt, possibly an empty one.
    """
    guidance = Guidance.find(pipe)
    return dict(arguments) if guidance is None else guidance.pinned(arguments, negatives)
