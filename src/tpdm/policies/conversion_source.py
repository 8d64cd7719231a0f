"""Where the checkpoint of a release is: a file, a folder that holds it, or a folder of a repository on the hub."""

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
        files: that hold it; more than one where it was saved in shards.
        called: where it comes from, in words.
    """

    files: tuple[Path, ...]
    called: str


def find_checkpoint(
    place: str | Path, subfolder: str | None, revision: str | None, wanted: Sequence[str]
) -> Checkpoint:
    """The checkpoint at a place, downloaded where that is on the hub; of shards, those that hold what is wanted.

    Args:
        place: a ``.safetensors`` file, a folder, or a hub id: "owner/name", or "owner/name/folder".
        subfolder: of the folder or the repository.
        revision: branch, tag or commit on the hub.
        wanted: beginnings of the names of the tensors that are needed.

    Raises:
        CheckpointError: there is no such place, or not one checkpoint in it.
        ConfigError: a subfolder of a file, or a revision of what is on this machine.
    """
    path = Path(place)
    here = path.exists() or path.is_absolute() or isinstance(place, Path) or path.suffix in (_WEIGHTS, *PICKLES)
    if here and revision is not None:
        raise ConfigError(f"got revision {revision!r} for {path}, expected a hub id such as owner/name: leave it out.")
    if path.is_dir():
        return _from_folder(path, subfolder, str(path), wanted)
    if here:
        if subfolder is not None:
            raise ConfigError(f"got subfolder {subfolder!r} for the file {path}, expected a folder: leave it out.")
        if path.is_file() and path.suffix != _WEIGHTS:
            raise CheckpointError(
                f"got {path}, expected a .safetensors checkpoint, for pickles are never loaded; find one of that kind."
            )
        if not path.is_file():
            raise CheckpointError(
                f"got {path}, which is no file, expected a .safetensors checkpoint; correct the path."
            )
        return Checkpoint((path,), path.name)
    owner, *rest = str(place).strip("/").split("/")
    repository, inner = "/".join([owner, *rest[:1]]), "/".join(rest[1:])
    if not HUB_ID.fullmatch(repository) or (inner and subfolder is not None):
        raise CheckpointError(
            f"got {str(place)!r}, which is no file or folder here, expected one, or a hub id such as owner/name with "
            "--subfolder; correct the path."
        )
    return _from_hub(repository, inner or subfolder, revision, wanted)


def _from_folder(folder: Path, subfolder: str | None, where: str, wanted: Sequence[str]) -> Checkpoint:
    patterns = ["*", "*/*", *([f"{subfolder}/*"] if subfolder else [])]
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    names = [path.relative_to(folder).as_posix() for path in found]
    return _choose(names, subfolder, where, lambda name: folder / name, wanted)


def _from_hub(repository: str, subfolder: str | None, revision: str | None, wanted: Sequence[str]) -> Checkpoint:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    def fetch(name: str) -> Path:
        try:
            return Path(hf_hub_download(repository, name, revision=revision))
        except Exception as error:  # as in artifact.locate: the hub raises a dozen unrelated types
            raise _out_of_reach(repository, error) from error

    try:
        names = HfApi().list_repo_files(repository, revision=revision)
    except Exception as error:
        try:  # what an earlier call or `hf download` has brought
            folder = snapshot_download(repository, revision=revision, local_files_only=True)
        except Exception:
            raise _out_of_reach(repository, error) from error
        return _from_folder(Path(folder), subfolder, repository, wanted)
    return _choose(names, subfolder, repository, fetch, wanted)


def _out_of_reach(repository: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"got {repository!r}, which is no file or folder here and cannot be had from the hub ({type(error).__name__}), "
        "expected a checkpoint; correct the name or the revision, or check the network."
    )


def _choose(
    names: Sequence[str], subfolder: str | None, where: str, fetch: Callable[[str], Path], wanted: Sequence[str]
) -> Checkpoint:
    """The one checkpoint among files.

    Args:
        names: of files, relative to a folder or repository.
        subfolder: in which it is.
        where: the folder or repository, in words.
        fetch: gives a file of those.
        wanted: as for ``find_checkpoint``.
    """
    inside = PurePosixPath(subfolder or ".")
    weights = sorted(name for name in set(names) if name.endswith(_WEIGHTS))
    there = [name for name in weights if PurePosixPath(name).parent == inside]
    lists = [name for name in names if name.endswith(_SHARDS) and PurePosixPath(name).parent == inside]
    if len(lists) == 1 and len(there) != 1:
        shards = _shards(fetch(lists[0]), wanted)
        return Checkpoint(tuple(fetch(str(inside / name)) for name in shards), f"{where}/{lists[0]}")
    if len(there) == 1:
        return Checkpoint((fetch(there[0]),), f"{where}/{there[0]}")
    place = f"{where}/{inside}" if subfolder else where
    if there:
        raise CheckpointError(
            f"got {len(there)} checkpoints in {place} ({', '.join(there[:5])}), expected one; give the file itself "
            "(of a repository: after `hf download`)."
        )
    pickles = [n for n in names if PurePosixPath(n).parent == inside and PurePosixPath(n).suffix in PICKLES]
    if pickles:
        raise CheckpointError(
            f"got {min(pickles)} alone in {where}, expected a .safetensors file; pickles are never loaded, find a "
            "copy that was saved otherwise."
        )
    folders = sorted({str(PurePosixPath(name).parent) for name in weights})
    hint = f"give --subfolder {' or '.join(folders[:5])}" if folders else "correct the place"
    raise CheckpointError(f"got no .safetensors file in {place}, expected the release's checkpoint; {hint}.")


def _shards(path: Path, wanted: Sequence[str]) -> list[str]:
    """The shards that hold tensors whose names begin so; all where none does, so that a later sentence says it."""
    try:
        named = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"got {path}, which is no list of shards ({first_line(error)}), expected one; download it again."
        ) from error
    return sorted({file for name, file in named.items() if name.startswith(tuple(wanted))} or set(named.values()))
