"""Location of a release's checkpoint: a file, a folder, or a folder of a repository on the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tpdm.core.errors import CheckpointError, ConfigError
from tpdm.core.file_errors import first_line
from tpdm.policies.pretrained import HUB_ID, PICKLES

_WEIGHTS, _SHARDS = ".safetensors", ".safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine.

    Attributes:
        files: Its files. More than one if it was saved in shards.
        name: Description of where it comes from.
    """

    files: tuple[Path, ...]
    name: str


def find_checkpoint(
    place: str | Path, subfolder: str | None, revision: str | None, prefixes: Sequence[str]
) -> Checkpoint:
    """Find a checkpoint, and download it if it is on the hub. Of shards, only the needed ones are used.

    Args:
        place: ``.safetensors`` file, folder, or hub id: "owner/name" or "owner/name/folder".
        subfolder: Subfolder of the folder or the repository.
        revision: Branch, tag or commit on the hub.
        prefixes: Starts of the names of the needed tensors.

    Raises:
        CheckpointError: The place does not exist, or does not contain exactly one checkpoint.
        ConfigError: ``subfolder`` is given for a file, or ``revision`` for a local path.
    """
    path = Path(place)
    here = path.exists() or path.is_absolute() or isinstance(place, Path) or path.suffix in (_WEIGHTS, *PICKLES)
    if here and revision is not None:
        raise ConfigError(f"revision is {revision!r}, but {path} is not on the hub. Leave revision out.")
    if path.is_dir():
        return _from_folder(path, subfolder, str(path), prefixes)
    if here:
        if subfolder is not None:
            raise ConfigError(f"subfolder is {subfolder!r}, but {path} is a file. Leave subfolder out.")
        if path.is_file() and path.suffix != _WEIGHTS:
            raise CheckpointError(
                f"{path} is not a .safetensors checkpoint. Pickles are never loaded. Give a .safetensors file."
            )
        if not path.is_file():
            raise CheckpointError(f"{path} is no file. It must be a .safetensors checkpoint. Correct the path.")
        return Checkpoint((path,), path.name)
    owner, *rest = str(place).strip("/").split("/")
    repository, inner = "/".join([owner, *rest[:1]]), "/".join(rest[1:])
    if not HUB_ID.fullmatch(repository) or (inner and subfolder is not None):
        raise CheckpointError(
            f"{str(place)!r} is no file or folder here. It must be one, or a hub id such as owner/name with "
            "--subfolder. Correct the path."
        )
    return _from_hub(repository, inner or subfolder, revision, prefixes)


def _from_folder(folder: Path, subfolder: str | None, where: str, prefixes: Sequence[str]) -> Checkpoint:
    patterns = ["*", "*/*", *([f"{subfolder}/*"] if subfolder else [])]
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    names = [path.relative_to(folder).as_posix() for path in found]
    return _choose(names, subfolder, where, lambda name: folder / name, prefixes)


def _from_hub(repository: str, subfolder: str | None, revision: str | None, prefixes: Sequence[str]) -> Checkpoint:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    def fetch(name: str) -> Path:
        try:
            return Path(hf_hub_download(repository, name, revision=revision))
        except Exception as error:  # the hub raises many unrelated types
            raise _out_of_reach(repository, error) from error

    try:
        names = HfApi().list_repo_files(repository, revision=revision)
    except Exception as error:
        try:  # what an earlier call or `hf download` has downloaded
            folder = snapshot_download(repository, revision=revision, local_files_only=True)
        except Exception:
            raise _out_of_reach(repository, error) from error
        return _from_folder(Path(folder), subfolder, repository, prefixes)
    return _choose(names, subfolder, repository, fetch, prefixes)


def _out_of_reach(repository: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{repository!r} is no file or folder here and cannot be downloaded from the hub ({type(error).__name__}). It "
        "must be a checkpoint. Correct the name or the revision, or check the network."
    )


def _choose(
    names: Sequence[str], subfolder: str | None, where: str, fetch: Callable[[str], Path], prefixes: Sequence[str]
) -> Checkpoint:
    """Choose the one checkpoint among files.

    Args:
        names: Files, relative to the folder or repository.
        subfolder: Subfolder that contains the checkpoint.
        where: Folder or repository, for messages.
        fetch: Function that returns the path of a file.
        prefixes: As for ``find_checkpoint``.
    """
    inside = PurePosixPath(subfolder or ".")
    weights = sorted(name for name in set(names) if name.endswith(_WEIGHTS))
    there = [name for name in weights if PurePosixPath(name).parent == inside]
    lists = [name for name in names if name.endswith(_SHARDS) and PurePosixPath(name).parent == inside]
    if len(lists) == 1 and len(there) != 1:
        shards = _shards(fetch(lists[0]), prefixes)
        return Checkpoint(tuple(fetch(str(inside / name)) for name in shards), f"{where}/{lists[0]}")
    if len(there) == 1:
        return Checkpoint((fetch(there[0]),), f"{where}/{there[0]}")
    place = f"{where}/{inside}" if subfolder else where
    if there:
        raise CheckpointError(
            f"{place} has {len(there)} checkpoints ({', '.join(there[:5])}). It must have one. Give the file itself "
            "(of a repository, after `hf download`)."
        )
    pickles = [n for n in names if PurePosixPath(n).parent == inside and PurePosixPath(n).suffix in PICKLES]
    if pickles:
        raise CheckpointError(f"{where} has only {min(pickles)}. Pickles are never loaded. Give a .safetensors file.")
    folders = sorted({str(PurePosixPath(name).parent) for name in weights})
    hint = f"Give --subfolder {' or '.join(folders[:5])}" if folders else "Correct the place"
    raise CheckpointError(f"{place} has no .safetensors file. It must have the release's checkpoint. {hint}.")


def _shards(path: Path, prefixes: Sequence[str]) -> list[str]:
    """Shards that contain tensors with these prefixes. All if there are none, so that a later check reports it."""
    try:
        named = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no index of shards ({first_line(error)}). It must list the file of each tensor. Download it "
            "again."
        ) from error
    return sorted({file for name, file in named.items() if name.startswith(tuple(prefixes))} or set(named.values()))
