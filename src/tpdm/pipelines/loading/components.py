"""The parts of a pipeline, each loaded by itself, so that a sentence can name the file that is to blame.

The libraries load some parts without their files: weights that are missing become random, a tokenizer without its
vocabulary becomes an empty one, a configuration that is not there the default one. Here all of that is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tpdm.core.errors import BackboneError
from tpdm.core.file_errors import first_fault, first_line
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
    """Parts of a pipeline on the CPU, by name. What costs no time is looked at before the first weight is read.

    Args:
        index: of a folder.
        names: of the parts.
        dtype: of the networks' weights.
        variant: of the weights, for parts that have it; the others come plain, as in diffusers.

    Raises:
        BackboneError: files are missing or damaged, or the installed libraries lack a class.
    """
    from diffusers.utils import logging

    networks = [name for name in names if issubclass(index.part_class(name), nn.Module)]
    for name in networks:
        place = _place(index, name)
        _check_there(place, name, "config.json")
        if not (weights := _weights(place, variant)):
            raise BackboneError(f"got {place} with {missing_weights(path.name for path in place.iterdir())}.")
        if said := first_fault([place / "config.json", *weights]):
            raise BackboneError(f"got {said}, expected a whole file: fetch it again.")
    parts = {name: _load(index, name, variant) for name in names if name not in networks}
    for name, part in parts.items():
        _check_tokenizer(index, name, part, networks)
    for name in logging.tqdm(networks, desc="load networks"):
        parts[name] = _load(index, name, variant, dtype)
    return parts


def _load(index: PipelineIndex, name: str, variant: str | None, dtype: torch.dtype | None = None) -> Any:
    """One part; ``dtype`` is that of a network, and None for any other."""
    from diffusers import ModelMixin

    cls, place = index.part_class(name), _place(index, name)
    options: dict[str, Any] = {}
    if dtype is not None:
        options = {"use_safetensors": True, "output_loading_info": True}
        options["torch_dtype" if issubclass(cls, ModelMixin) else "dtype"] = dtype
    if variant in variants(path.name for path in place.iterdir()):
        options["variant"] = variant
    try:
        found = cls.from_pretrained(place, **options)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged file may fail in any of four libraries, one of which raises Exception
        raise BackboneError(_said(index, name, variant, error)) from error
    if dtype is None:
        return found
    network, info = found
    if missing := sorted(info["missing_keys"]):
        files = _weights(place, variant)
        where = f"{files[0]}" if len(files) == 1 else f"the {len(files)} weight files of {place}"
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise BackboneError(f"got {where} without {some}, expected every weight of the part: fetch it again.")
    return network


def part_config(index: PipelineIndex, name: str) -> Any:
    """The configuration of a network: a mapping of diffusers, or an object of transformers.

    Raises:
        BackboneError: it is missing or damaged, or the installed libraries lack the class of the network.
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
        said = None if where else first_fault([Path(place) / "config.json"])
        raise BackboneError(
            f"got {said or f'no usable config.json of {name} in {place} ({first_line(error)})'}, expected a whole one: "
            "fetch it again."
        ) from error


def meta_component(index: PipelineIndex, name: str) -> nn.Module | None:
    """A network of a pipeline with its shapes and without its numbers; None for what is no network.

    Raises:
        BackboneError: as ``part_config``.
    """
    cls = index.part_class(name)
    if not issubclass(cls, nn.Module):
        return None
    config = part_config(index, name)
    with torch.device("meta"):
        network: nn.Module = cls.from_config(config) if isinstance(config, Mapping) else cls(config)
    return network


def _check_tokenizer(index: PipelineIndex, name: str, part: Any, networks: Sequence[str]) -> None:
    """Refuses a tokenizer without its files, to which all prompts look alike, or one of another text encoder.

    Args:
        index: of the pipeline.
        name: of the part.
        part: a tokenizer, a processor that has one, or something else.
        networks: that are loaded; a tokenizer whose text encoder is not among them is not used.
    """
    tokenizer = getattr(part, "tokenizer", part)
    kinds = getattr(tokenizer, "vocab_files_names", None)
    encoder = name.replace("tokenizer", "text_encoder") if name.startswith("tokenizer") else "text_encoder"
    if kinds is None or encoder not in networks:
        return
    place = _place(index, name)
    _check_there(place, name, "tokenizer_config.json")
    said = vocabulary_fault(tokenizer, getattr(part_config(index, encoder).get_text_config(), "vocab_size", None))
    empty = [path.name for path in place.iterdir() if path.name in kinds.values() and not path.stat().st_size]
    if said or empty:
        raise BackboneError(
            f"got {place} with a {type(tokenizer).__name__} that {said or f'has an empty {empty[0]}'}, expected its "
            f"own vocabulary, without which prompts look alike: fetch {vocabulary_files(kinds)}."
        )


def _place(index: PipelineIndex, name: str) -> Path:
    """Where the files of a part are: some repositories hold those of one part beside the index."""
    folder = Path(index.place)
    return folder / name if (folder / name).is_dir() else folder


def _weights(place: Path, variant: str | None) -> list[Path]:
    """The weight files of a part that are read: those of the variant, where it has any."""
    by_variant: dict[str | None, list[Path]] = {}
    for path in sorted(place.iterdir()):
        by_variant.setdefault(variant_of(path.name), []).append(path)
    return by_variant.get(variant or "") or by_variant.get("", [])


def _check_there(place: Path, name: str, file: str) -> None:
    if not (place / file).is_file():
        missing = file if place.name == name else f"{name}/{file}"
        raise BackboneError(f"got no {missing} in {place}, expected all files of {name}: fetch them again.")


def _said(index: PipelineIndex, name: str, variant: str | None, error: Exception) -> str:
    """Why a part cannot be loaded, with the file that is to blame where one shows."""
    cls, place, line = index.part_class(name), _place(index, name), first_line(error).split(". ")[0]
    files = sorted(path for path in place.iterdir() if path.is_file() and path.suffix in _SUFFIXES)
    if said := first_fault(path for path in files if variant_of(path.name) is None):
        return f"got {said}, expected a whole file: fetch it again."
    if isinstance(error, ImportError):
        return f"got {name} in {place}, which needs a package that is not installed ({line}), expected it: install it."
    if issubclass(cls, nn.Module) and (said := _misshapen(index, name, _weights(place, variant))):
        return f"got {said} as its config.json says: fetch both again."
    if name in _CONFIGS:
        _check_there(place, name, _CONFIGS[name])
    kinds = getattr(cls, "vocab_files_names", None)
    if kinds and not any((place / file).is_file() for file in kinds.values()):
        return f"got no vocabulary of {name} in {place}, expected one: fetch {vocabulary_files(kinds)}."
    alone = [path.name for path in files if path.suffix == ".model" and not (place / "tokenizer.json").exists()]
    lacking = " ".join(name for name in ("sentencepiece", "protobuf") if not any(distributions(name=name)))
    if alone and lacking:  # transformers would ask for tiktoken, which does not help
        return f"got {place}/{alone[0]}, expected the packages that read it: pip install {lacking}."
    return (
        f"got {place}, which cannot be loaded as the {cls.__name__} of {name} ({line}), expected its whole files: "
        "fetch them again."
    )


def _misshapen(index: PipelineIndex, name: str, weights: Sequence[Path]) -> str | None:
    """The first weight of another shape than the network has, in words."""
    from safetensors import safe_open

    network = meta_component(index, name)
    assert network is not None
    wanted = {key: list(value.shape) for key, value in network.state_dict().items()}
    for path in weights:
        if path.suffix != ".safetensors":  # the list of the shards
            continue
        with safe_open(str(path), framework="pt") as file:
            for key in sorted(wanted.keys() & set(file.keys())):
                shape = file.get_slice(key).get_shape()
                if shape != wanted[key]:
                    return f"{key} of shape {shape} in {path}, expected {wanted[key]}"
    return None
