"""Published reward files: found on disk or on the hub, read without running anything, kept as safetensors."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tpdm.core.errors import RewardError
from tpdm.core.file_errors import describe_damage, first_damage, first_line
from tpdm.core.io import expand, load_tensors, save_tensors
from tpdm.core.vocabulary import vocabulary_fault, vocabulary_files

Model = TypeVar("Model", bound=nn.Module)
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")


def find_file(place: str, filename: str, reward: str) -> Path:
    """The published file of a reward.

    Args:
        place: the file itself, a folder that holds it (or its safetensors), or a hub id.
        filename: its published name.
        reward: for the error.

    Raises:
        RewardError: it is not there.
    """
    path = Path(expand(place))
    if path.is_file():
        return path
    if path.is_dir():
        names = (filename, f"{filename}.safetensors", f"{Path(filename).stem}.safetensors")
        if found := next((path / name for name in names if (path / name).is_file()), None):
            return found
        raise RewardError(f"reward '{reward}': got folder '{path}' without {filename}; put the published file there")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(place, filename))
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise RewardError(
            f"reward '{reward}': no {filename} at '{place}' ({first_line(error)}); give the file, a folder or a hub id"
        ) from error


def tokenizer_place(weights: Path, default: str) -> str:
    """The folder of the weights where it holds a tokenizer too, or else the hub id that the authors used."""
    folder = weights.parent
    return str(folder) if any((folder / name).is_file() for name in _TOKENIZER_FILES) else default


def load_tokenizer(kind: Any, place: str | Path, reward: str, vocabulary: int) -> Any:
    """A tokenizer of the transformers class ``kind`` from a folder or hub id.

    Args:
        kind: the class.
        place: folder or hub id.
        reward: for the error.
        vocabulary: of the model that it is for. From a place without its files, or a hub out of reach, transformers 5
            makes an empty tokenizer without a word, to which all prompts look alike.

    Raises:
        RewardError: there is none, or one of another model.
    """
    try:
        tokenizer = kind.from_pretrained(place)
    except Exception as error:  # a damaged file may fail in any of three libraries
        raise RewardError(
            f"reward '{reward}': no tokenizer at '{place}' ({first_line(error)}); put its files beside the weights"
        ) from error
    if said := vocabulary_fault(tokenizer, vocabulary):
        raise RewardError(
            f"reward '{reward}': got a tokenizer at '{place}' that {said}, expected its own vocabulary; put "
            f"{vocabulary_files(tokenizer.vocab_files_names)} beside the weights, or check the network"
        )
    return tokenizer


def load_whole(kind: Any, place: str | Path, reward: str) -> Any:
    """A transformers model from a folder or hub id, with every one of its weights: transformers makes up missing ones.

    Raises:
        RewardError: there is none, or it lacks weights.
    """
    folder = Path(place)
    if folder.is_dir() and not (folder / "config.json").is_file():  # transformers would make up that, too
        raise RewardError(
            f"reward '{reward}': got no config.json in {folder}, expected the whole model; fetch it again"
        )
    try:
        model, info = kind.from_pretrained(place, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # a damaged file may fail in any of three libraries
        files = sorted(folder.glob("*.*")) if folder.is_dir() else []
        if said := first_damage(path for path in files if path.suffix in (".json", ".safetensors")):
            raise RewardError(f"reward '{reward}': got {said}, expected the whole file; fetch it again") from error
        raise RewardError(
            f"reward '{reward}': no CLIP model at '{place}' ({first_line(error)}); give a folder or a hub id"
        ) from error
    lacking = sorted(str(name) for kind_of in ("missing_keys", "mismatched_keys") for name in info[kind_of])
    if lacking:
        raise RewardError(
            f"reward '{reward}': got a model without {lacking[0]} at '{place}' (and {len(lacking) - 1} more), expected "
            "all its weights; fetch the files again"
        )
    return model


def read_checkpoint(path: Path, reward: str) -> dict[str, Tensor]:
    """Tensors by their published names, from safetensors or from a pickled state dictionary.

    A pickle is read with ``weights_only=True``, which runs no code, and kept beside itself as
    ``NAME.safetensors``, which later calls read while it is newer. Where the folder cannot be written, nothing is kept.

    Raises:
        RewardError: the file is damaged, or is a pickle of more than tensors.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path, reward)
    kept = path.with_name(f"{path.name}.safetensors")
    if kept.is_file() and kept.stat().st_mtime >= path.stat().st_mtime:
        return _read_safetensors(kept, reward)
    _check_file(path, reward)
    tensors = _state_dict(_unpickle(path, reward), path, reward)
    try:
        save_tensors(kept, tensors, {"source": path.name})
    except OSError:  # a folder without write permission, a full disk: the pickle still serves
        return tensors
    return tensors


def _read_safetensors(path: Path, reward: str) -> dict[str, Tensor]:
    _check_file(path, reward)
    return load_tensors(path)[0]


def _check_file(path: Path, reward: str) -> None:
    """Refuses what is visibly no whole file, of safetensors or of a pickle."""
    if said := describe_damage(path):
        raise RewardError(f"reward '{reward}': got {path}, which {said}, expected the whole file; fetch it again")


def _unpickle(path: Path, reward: str) -> Any:
    try:
        with warnings.catch_warnings():
            # PyTorch asks for a report of every unusual pickle; what cannot be read is answered below.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RewardError(
            f"reward '{reward}': got {path}, a pickle that holds more than tensors and might run code, or is damaged, "
            "expected a plain state dictionary; fetch the published file, or save the tensors as safetensors"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError) as error:
        raise RewardError(
            f"reward '{reward}': got {path}, which cannot be read ({first_line(error)}), expected a whole PyTorch "
            "file; fetch the file again"
        ) from error


def _state_dict(content: Any, path: Path, reward: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint, which may keep them under ``state_dict``; none shares memory with another."""
    inner = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(inner, Mapping) or not all(isinstance(value, Tensor) for value in inner.values()):
        raise RewardError(
            f"reward '{reward}': got {path} with something else than named tensors, expected a state dictionary; "
            "fetch the published file"
        )
    seen: set[int] = set()
    tensors = {}
    for name, value in inner.items():
        place = value.untyped_storage().data_ptr()
        tensors[str(name)] = value.clone() if place in seen else value
        seen.add(place)
    return tensors


def fill(make: Callable[[], Model], tensors: Mapping[str, Tensor], reward: str) -> Model:
    """The model that ``make`` builds, with exactly these tensors in fp32 as its weights, without a random start.

    Raises:
        RewardError: a tensor is missing, unknown or of another shape.
    """
    with torch.device("meta"):
        model = make()
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = sorted(name for name in {**wanted, **got} if wanted.get(name) != got.get(name))
    if wrong:
        name = wrong[0]
        raise RewardError(
            f"reward '{reward}': got {got.get(name, 'nothing')} for {name} (and {len(wrong) - 1} more that differ), "
            f"expected {wanted.get(name, 'nothing')}; fetch the published file of this very reward"
        )
    model.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            # The only buffers of these models that no file holds: 0, 1, 2 ...
            assert leaf == "position_ids", name
            numbers = torch.arange(buffer.shape[-1], dtype=torch.int64, device="cpu")
            setattr(model.get_submodule(owner), leaf, numbers.expand(buffer.shape))
    return model.eval().requires_grad_(False)
