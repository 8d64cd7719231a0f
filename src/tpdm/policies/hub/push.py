"""Publication of a TPM with its model card, in a folder or on the hub."""

from __future__ import annotations

import base64
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tpdm.core.errors import CheckpointError
from tpdm.core.io import expand, replaced_folder, sha256, write_json, write_text
from tpdm.policies.hub.model_card import model_card
from tpdm.policies.hub.provenance import RunProvenance, read_provenance
from tpdm.policies.pretrained import HUB_ID, WEIGHTS, from_pretrained, read_config, resolve_path
from tpdm.policies.pretrained_config import CONFIG

# (rows of metrics.jsonl, update that was kept, file_format="png") -> (caption, data URI) of each plot
DrawCurves = Callable[..., list[tuple[str, str]]]
CARD, DIGESTS = "README.md", "sha256.json"
CURVES = ("objective", "steps", "score")  # plots of a report that the card shows, by a word of their captions
WRITTEN = {WEIGHTS, CONFIG, CARD, DIGESTS, *(f"{word}.png" for word in CURVES)}


def publish_to_folder(
    source: str | Path, target: str | Path, place: str | None = None, draw_curves: DrawCurves | None = None
) -> Path:
    """Write a TPM with its card, curves and digests to a folder, completely or not at all.

    Args:
        source: Folder of a TPM, usually ``best/`` of a run, from which the card is written.
        target: Folder to write. An older TPM is replaced. Folders with other files are an error.
        place: Name that the card tells readers to load. None is the name of ``target``.
        draw_curves: Function that draws the training curves. None leaves them out. The card has the numbers anyway.

    Returns:
        The absolute path of ``target``.

    Raises:
        CheckpointError: The TPM is damaged, or ``target`` contains something else.

    Example:
        >>> sorted(path.name for path in publish_to_folder("tinyworld", "published").iterdir())
        ['README.md', 'config.json', 'model.safetensors', 'sha256.json']
    """
    target = Path(expand(target)).resolve()
    folder = resolve_path(source)
    if target == folder.resolve():
        raise CheckpointError(f"source and target are both {target}. They must differ. Choose another target.")
    _check_replaceable(target)
    from_pretrained(folder)  # raises an error if the TPM is damaged
    with replaced_folder(target) as new:
        for name in (WEIGHTS, CONFIG):
            shutil.copyfile(folder / name, new / name)
        facts = read_provenance(folder)
        curves = _write_curves(facts, new, draw_curves)
        title = target.name if place is None else place.split("/")[-1]
        write_text(new / CARD, model_card(facts, title, place or target.name, curves))
        write_json(new / DIGESTS, {p.name: sha256(p) for p in sorted(new.iterdir())})
    return target


def push_to_hub(source: str | Path, repo_id: str, private: bool = False, draw_curves: DrawCurves | None = None) -> str:
    """Upload a TPM with its card, curves and digests. The repository is created if it does not exist.

    Args:
        source: As for :func:`publish_to_folder`.
        repo_id: Repository, "owner/name".
        private: Whether a new repository is private.
        draw_curves: As for :func:`publish_to_folder`.

    Returns:
        The URL of the commit.

    Raises:
        CheckpointError: The TPM is damaged, the name is invalid, or the hub refuses.
    """
    if not HUB_ID.fullmatch(repo_id):
        raise CheckpointError(f"repo_id is {repo_id!r}. It must be owner/name. Correct it.")
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as temporary:
        folder = publish_to_folder(source, Path(temporary) / "tpm", place=repo_id, draw_curves=draw_curves)
        api = HfApi()
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="A TPM, its card and curves")
        except Exception as error:  # the hub raises many unrelated types
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"The hub refused to write '{repo_id}' ({type(error).__name__}: {reason}). You must be allowed to "
                "write there. Log in with `hf auth login`, or correct the name."
            ) from error
    return str(commit.commit_url)


def _check_replaceable(target: Path) -> None:
    """Check that only files of a TPM would be replaced, because they can be written again.

    Raises:
        CheckpointError: ``target`` contains no TPM, or files that are not the TPM's.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        read_config(target)  # models of diffusers and transformers have a config.json too
    except CheckpointError:
        raise CheckpointError(
            f"{target} contains no TPM. The target must be a new folder or a TPM. Choose another target."
        ) from None
    others = sorted(path.name for path in target.iterdir() if path.name not in WRITTEN or path.is_dir())
    if others:
        raise CheckpointError(
            f"{target} contains {others[0]!r}, which would be deleted. It must contain only a TPM. Move the file, or "
            "choose another target."
        )


def _write_curves(facts: RunProvenance, folder: Path, draw: DrawCurves | None) -> list[str]:
    """Write the training curves as PNG files. There are none without a run or without ``draw``."""
    if not facts.metrics or draw is None:
        return []
    names = []
    for caption, uri in draw(facts.metrics, facts.config.trained.get("update"), file_format="png"):
        word = next((word for word in CURVES if word in caption.lower()), None)
        if word is not None:
            (folder / f"{word}.png").write_bytes(base64.b64decode(uri.split(",", 1)[1]))
            names.append(f"{word}.png")
    return names
