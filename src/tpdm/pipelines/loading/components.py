"""Loads the parts of a pipeline one by one, so that an error can name the damaged file.

The libraries load some parts even without their files: they make up missing weights, vocabularies and configurations.
Here each of these is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tpdm.core.errors import BackboneError
from tpdm.core.file_errors import first_damage, first_line
from tpdm.core.vocabulary import vocabulary_fault, vocabulary_files
from tpdm.pipelines.loading.model_index import PipelineIndex
from tpdm.pipelines.loading.weight_files import missing_weights, variant_of, variants

_SUFFIXES = {".json", ".safetensors", ".model", ".txt"}  # of files that the libraries read
_CONFIGS = {
    "scheduler": "scheduler_config.json",
    "feature_extractor": "preprocessor_config.json",
    "image_processor": "preprocessor_config.json",
}


def load_components(
    index: PipelineIndex, names: Sequence[str], dtype: torch.dtype, variant: str | None
) -> dict[str, Any]:
    """Loads parts of a pipeline to the CPU. All quick checks run before the first weight is read.

    Args:
        index: Index of a pipeline folder.
        names: Names of the parts.
        dtype: dtype of the networks' weights.
        variant: Variant of the weight files. Parts without it use their plain files, as in diffusers.

    Returns:
        The parts by name.

    Raises:
        BackboneError: Files are missing or damaged, or the installed libraries lack a class.
    """
    from diffusers.utils import logging

    networks = [name for name in names if issubclass(index.part_class(name), nn.Module)]
    for name in networks:
        place = _place(index, name)
        _check_there(place, name, "config.json")
        if not (weights := _weights(place, variant)):
            raise BackboneError(f"{place} has {missing_weights(path.name for path in place.iterdir())}")
        if fault := first_damage([place / "config.json", *weights]):
            raise BackboneError(_unusable(fault))
    parts = {name: _load(index, name, variant) for name in names if name not in networks}
    for name, part in parts.items():
        _check_tokenizer(index, name, part, networks)
    for name in logging.tqdm(networks, desc="load networks"):
        parts[name] = _load(index, name, variant, dtype)
    return parts


def _load(index: PipelineIndex, name: str, variant: str | None, dtype: torch.dtype | None = None) -> Any:
    """Loads one part. ``dtype`` is that of a network, and None for other parts."""
    from diffusers import ModelMixin

    cls, place = index.part_class(name), _place(index, name)
    options: dict[str, Any] = {}
    if dtype is not None:
        options = {"use_safetensors": True, "output_loading_info": True}
        options["torch_dtype" if issubclass(cls, ModelMixin) else "dtype"] = dtype
    if variant in variants(path.name for path in place.iterdir()):
        options["variant"] = variant
    try:
        loaded = cls.from_pretrained(place, **options)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged file may fail in any of four libraries, one of which raises Exception
        raise BackboneError(_explain(index, name, variant, error)) from error
    if dtype is None:
        return loaded
    network, info = loaded
    if missing := sorted(info["missing_keys"]):
        files = _weights(place, variant)
        where = f"{files[0]}" if len(files) == 1 else f"the {len(files)} weight files of {place}"
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise BackboneError(f"{where} does not contain {some}. Every weight of the part is needed. Fetch it again.")
    return network


def part_config(index: PipelineIndex, name: str) -> Any:
    """Returns the configuration of a network: a mapping of diffusers, or an object of transformers.

    Raises:
        BackboneError: The file is missing or damaged, or the installed libraries lack the class of the network.
    """
    from diffusers import ModelMixin

    cls, place = index.part_class(name), index.place
    where: dict[str, Any] = {"subfolder": name}
    if Path(place).is_dir():
        place, where = _place(index, name), {}
        _check_there(place, name, "config.json")
    try:
        read = cls.load_config if issubclass(cls, ModelMixin) else cls.config_class.from_pretrained
        return read(place, **where)
    except (OSError, ValueError, TypeError) as error:
        fault = None if where else first_damage([Path(place) / "config.json"])
        problem = f"config.json of {name} in {place}, which cannot be read ({first_line(error)})"
        raise BackboneError(_unusable(fault or problem)) from error


def meta_component(index: PipelineIndex, name: str) -> nn.Module | None:
    """Returns a network of a pipeline on the meta device. None if the part is not a network.

    Raises:
        BackboneError: See ``part_config``.
    """
    cls = index.part_class(name)
    if not issubclass(cls, nn.Module):
        return None
    config = part_config(index, name)
    with torch.device("meta"):
        network: nn.Module = cls.from_config(config) if isinstance(config, Mapping) else cls(config)
    return network


def _check_tokenizer(index: PipelineIndex, name: str, part: Any, networks: Sequence[str]) -> None:
    """Refuses a tokenizer without its files, which cannot distinguish prompts, or one of another text encoder.

    Args:
        index: Index of the pipeline.
        name: Name of the part.
        part: A tokenizer, a processor that contains one, or any other part.
        networks: Names of the loaded networks. A tokenizer is not checked if its text encoder is not among them.
    """
    tokenizer = getattr(part, "tokenizer", part)
    kinds = getattr(tokenizer, "vocab_files_names", None)
    encoder = name.replace("tokenizer", "text_encoder") if name.startswith("tokenizer") else "text_encoder"
    if kinds is None or encoder not in networks:
        return
    place = _place(index, name)
    _check_there(place, name, "tokenizer_config.json")
    fault = vocabulary_fault(tokenizer, getattr(part_config(index, encoder).get_text_config(), "vocab_size", None))
    empty = [path.name for path in place.iterdir() if path.name in kinds.values() and not path.stat().st_size]
    if fault or empty:
        raise BackboneError(
            f"{place} has a {type(tokenizer).__name__} that {fault or f'has an empty {empty[0]}'}. It needs its own "
            f"vocabulary to distinguish prompts. Fetch {vocabulary_files(kinds)}."
        )


def _place(index: PipelineIndex, name: str) -> Path:
    """Folder with the files of a part. Some repositories have those of one part next to the index."""
    folder = Path(index.place)
    return folder / name if (folder / name).is_dir() else folder


def _weights(place: Path, variant: str | None) -> list[Path]:
    """Weight files of a part that are read: those of the variant if there are any."""
    by_variant: dict[str | None, list[Path]] = {}
    for path in sorted(place.iterdir()):
        by_variant.setdefault(variant_of(path.name), []).append(path)
    return by_variant.get(variant or "") or by_variant.get("", [])


def _check_there(place: Path, name: str, file: str) -> None:
    if not (place / file).is_file():
        missing = file if place.name == name else f"{name}/{file}"
        raise BackboneError(f"{missing} is missing in {place}. All files of {name} are needed. Fetch them again.")


def _unusable(fault: str) -> str:
    """The error for a file, described as "FILE, which ..."."""
    return f"Cannot use {fault}. A complete file is needed. Fetch it again."


def _explain(index: PipelineIndex, name: str, variant: str | None, error: Exception) -> str:
    """Explains why a part cannot be loaded, with the damaged file if it can be found."""
    cls, place, line = index.part_class(name), _place(index, name), first_line(error).split(". ")[0]
    files = sorted(path for path in place.iterdir() if path.is_file() and path.suffix in _SUFFIXES)
    if fault := first_damage(path for path in files if variant_of(path.name) is None):
        return _unusable(fault)
    if isinstance(error, ImportError):
        return f"{name} in {place} needs a package that is not installed ({line}). Install that package."
    if issubclass(cls, nn.Module) and (fault := _misshapen(index, name, _weights(place, variant))):
        return f"{fault} according to its config.json. Fetch both again."
    if name in _CONFIGS:
        _check_there(place, name, _CONFIGS[name])
    kinds = getattr(cls, "vocab_files_names", None)
    if kinds and not any((place / file).is_file() for file in kinds.values()):
        return f"{name} in {place} has no vocabulary. It needs one. Fetch {vocabulary_files(kinds)}."
    alone = [path.name for path in files if path.suffix == ".model" and not (place / "tokenizer.json").exists()]
    lacking = " ".join(name for name in ("sentencepiece", "protobuf") if not any(distributions(name=name)))
    if alone and lacking:  # transformers would ask for tiktoken, which does not help
        return f"{place}/{alone[0]} cannot be read without a package. Install it: pip install {lacking}."
    return (
        f"{place} cannot be loaded as the {cls.__name__} of {name} ({line}). Its files must be complete. Fetch them "
        "again."
    )


def _misshapen(index: PipelineIndex, name: str, weights: Sequence[Path]) -> str | None:
    """Describes the first weight whose shape differs from the network's. None if all shapes are the same."""
    from safetensors import safe_open

    network = meta_component(index, name)
    assert network is not None
    expected = {key: list(value.shape) for key, value in network.state_dict().items()}
    for path in weights:
        if path.suffix != ".safetensors":  # the index of the shards
            continue
        with safe_open(str(path), framework="pt") as file:
            for key in sorted(expected.keys() & set(file.keys())):
                shape = file.get_slice(key).get_shape()
                if shape != expected[key]:
                    return f"{key} in {path} has shape {shape}. It must be {expected[key]}"
    return None
