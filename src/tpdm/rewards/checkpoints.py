"""Find published reward files on disk or on the hub, and read them without running code."""

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
    """Return the path of a reward's published file. A file on the hub is downloaded.

    Args:
        place: The file, a folder that contains it (or its safetensors), or a hub id.
        filename: Published name of the file.
        reward: Name of the reward, for the error message.

    Raises:
        RewardError: If the file does not exist.
    """
    path = Path(expand(place))
    if path.is_file():
        return path
    if path.is_dir():
        names = (filename, f"{filename}.safetensors", f"{Path(filename).stem}.safetensors")
        if found := next((path / name for name in names if (path / name).is_file()), None):
            return found
        raise RewardError(
            f"Reward '{reward}': folder '{path}' does not contain {filename}. Put the published file there."
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(place, filename))
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise RewardError(
            f"Reward '{reward}': no {filename} at '{place}' ({first_line(error)}). Give the file, a folder or a hub id."
        ) from error


def tokenizer_place(weights: Path, default: str) -> str:
    """Return the folder of the weights if it contains a tokenizer, otherwise ``default``, a hub id."""
    folder = weights.parent
    return str(folder) if any((folder / name).is_file() for name in _TOKENIZER_FILES) else default


def load_tokenizer(kind: Any, place: str | Path, reward: str, vocabulary: int) -> Any:
    """Load a tokenizer and check its vocabulary.

    If files are missing or the hub is unreachable, transformers 5 silently makes an empty tokenizer. Such a tokenizer
    gives all prompts the same tokens.

    Args:
        kind: Tokenizer class of transformers.
        place: Folder or hub id.
        reward: Name of the reward, for the error message.
        vocabulary: Vocabulary size of the model that reads the tokens.

    Raises:
        RewardError: If there is no tokenizer, or if it belongs to another model.
    """
    try:
        tokenizer = kind.from_pretrained(place)
    except Exception as error:  # a damaged file may fail in any of three libraries
        raise RewardError(
            f"Reward '{reward}': no tokenizer at '{place}' ({first_line(error)}). Put its files next to the weights."
        ) from error
    if reason := vocabulary_fault(tokenizer, vocabulary):
        raise RewardError(
            f"Reward '{reward}': the tokenizer at '{place}' {reason}. It must have the vocabulary of the model. Put "
            f"{vocabulary_files(tokenizer.vocab_files_names)} next to the weights, or check the network."
        )
    return tokenizer


def load_whole(kind: Any, place: str | Path, reward: str) -> Any:
    """Load a transformers model and check that every weight is in the file. transformers fills missing ones at random.

    Args:
        kind: Model class of transformers.
        place: Folder or hub id.
        reward: Name of the reward, for the error message.

    Raises:
        RewardError: If there is no model, or if weights are missing.
    """
    folder = Path(place)
    if folder.is_dir() and not (folder / "config.json").is_file():  # transformers would use a default configuration
        raise RewardError(
            f"Reward '{reward}': {folder} does not contain config.json. The model needs it. Fetch the model again."
        )
    try:
        model, info = kind.from_pretrained(place, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # a damaged file may fail in any of three libraries
        files = sorted(folder.glob("*.*")) if folder.is_dir() else []
        if reason := first_damage(path for path in files if path.suffix in (".json", ".safetensors")):
            raise RewardError(
                f"Reward '{reward}': found {reason}. The file must be complete. Fetch it again."
            ) from error
        raise RewardError(
            f"Reward '{reward}': no CLIP model at '{place}' ({first_line(error)}). Give a folder or a hub id."
        ) from error
    missing = sorted(str(name) for kind_of in ("missing_keys", "mismatched_keys") for name in info[kind_of])
    if missing:
        raise RewardError(
            f"Reward '{reward}': the model at '{place}' has no weight {missing[0]} (and {len(missing) - 1} more are "
            "missing). It must contain all weights. Fetch the files again."
        )
    return model


def read_checkpoint(path: Path, reward: str) -> dict[str, Tensor]:
    """Read tensors by their published names, from safetensors or from a pickled state dictionary.

    A pickle is read with ``weights_only=True``, which runs no code. A copy ``NAME.safetensors`` is written next to it
    if the folder is writable. Later calls read the copy while it is newer than the pickle.

    Args:
        path: File with the extension .safetensors, or a pickle with any other extension.
        reward: Name of the reward, for the error message.

    Raises:
        RewardError: If the file is damaged, or if the pickle contains more than tensors.
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
    except OSError:  # no write permission or a full disk: the pickle is still usable
        return tensors
    return tensors


def _read_safetensors(path: Path, reward: str) -> dict[str, Tensor]:
    _check_file(path, reward)
    return load_tensors(path)[0]


def _check_file(path: Path, reward: str) -> None:
    """Raise if the file is visibly incomplete."""
    if reason := describe_damage(path):
        raise RewardError(f"Reward '{reward}': {path} {reason}. The file must be complete. Fetch it again.")


def _unpickle(path: Path, reward: str) -> Any:
    try:
        with warnings.catch_warnings():
            # PyTorch warns of every unusual pickle. The code below reports those that cannot be read.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RewardError(
            f"Reward '{reward}': {path} is a pickle that contains more than tensors and might run code, or it is "
            "damaged. It must be a plain state dictionary. Fetch the published file, or save the tensors as "
            "safetensors."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError) as error:
        raise RewardError(
            f"Reward '{reward}': {path} cannot be read ({first_line(error)}). It must be a complete PyTorch file. "
            "Fetch the file again."
        ) from error


def _state_dict(content: Any, path: Path, reward: str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, or of its entry ``state_dict``. No two of them share memory."""
    inner = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(inner, Mapping) or not all(isinstance(value, Tensor) for value in inner.values()):
        raise RewardError(
            f"Reward '{reward}': {path} does not contain named tensors only. It must be a state dictionary. Fetch the "
            "published file."
        )
    seen: set[int] = set()
    tensors = {}
    for name, value in inner.items():
        place = value.untyped_storage().data_ptr()
        tensors[str(name)] = value.clone() if place in seen else value
        seen.add(place)
    return tensors


def fill(make: Callable[[], Model], tensors: Mapping[str, Tensor], reward: str) -> Model:
    """Build a model with exactly these tensors as its weights, in fp32. Nothing is initialized at random.

    Args:
        make: Function that builds the model. It runs on the meta device.
        tensors: Weights by the names of the model's state dictionary.
        reward: Name of the reward, for the error message.

    Raises:
        RewardError: If a tensor is missing, unknown or of another shape.
    """
    with torch.device("meta"):
        model = make()
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = sorted(name for name in {**expected, **got} if expected.get(name) != got.get(name))
    if wrong:
        name = wrong[0]
        raise RewardError(
            f"Reward '{reward}': the shape of {name} in the file is {got.get(name)} and in the model "
            f"{expected.get(name)} ({len(wrong) - 1} more differ). The shapes must be equal. Fetch the published file "
            "of this reward."
        )
    model.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            # The positions 0, 1, 2 ... are the only buffers of these models that no file contains.
            assert leaf == "position_ids", name
            numbers = torch.arange(buffer.shape[-1], dtype=torch.int64, device="cpu")
            setattr(model.get_submodule(owner), leaf, numbers.expand(buffer.shape))
    return model.eval().requires_grad_(False)
