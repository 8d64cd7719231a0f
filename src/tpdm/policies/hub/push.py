"""A TPM with its card, in a folder of its own or on the hub."""

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

# (rows of metrics.jsonl, update that was kept, file_format="png") -> (caption, data URI) of each picture
DrawCurves = Callable[..., list[tuple[str, str]]]
CARD, DIGESTS = "README.md", "sha256.json"
CURVES = ("objective", "steps", "score")  # of the plots that a report draws, by the words of their captions
WRITTEN = {WEIGHTS, CONFIG, CARD, DIGESTS, *(f"{word}.png" for word in CURVES)}


def publish_to_folder(
    source: str | Path, target: str | Path, place: str | None = None, draw_curves: DrawCurves | None = None
) -> Path:
    """Writes the TPM of ``source`` with card, curves and digests to ``target``, whole or not at all.

    Args:
        source: folder of a TPM, as a rule ``best/`` of a run, from which the card is written.
        target: folder; an older one of a TPM is replaced, any other, or one with files of yours, is refused.
        place: what the card tells readers to load; the name of ``target`` if not given.
        draw_curves: makes the card's pictures of the training; None leaves them out (its table says it too).

    Raises:
        CheckpointError: the TPM is unsound, or ``target`` holds something else.
    """
    target = Path(expand(target)).resolve()
    folder = resolve_path(source)
    if target == folder.resolve():
        raise CheckpointError(f"got {target} as source and target, expected two folders; choose another target.")
    _check_replaceable(target)
    from_pretrained(folder)  # nothing unsound is handed on
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
    """Uploads the TPM of ``source`` with card, curves and digests; the repository is made where there is none.

    Args:
        source: as for ``publish_to_folder``.
        repo_id: "owner/name".
        private: for a repository that is new.
        draw_curves: as for ``publish_to_folder``.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: the TPM is unsound, the name is none, or the hub refuses.
    """
    if not HUB_ID.fullmatch(repo_id):
        raise CheckpointError(f"got the repository {repo_id!r}, expected owner/name; correct it.")
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as room:
        folder = publish_to_folder(source, Path(room) / "tpm", place=repo_id, draw_curves=draw_curves)
        api = HfApi()
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="A TPM, its card and curves")
        except Exception as error:  # as in artifact.locate: the hub raises a dozen unrelated types
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"got a refusal of the hub for '{repo_id}' ({type(error).__name__}: {reason}), expected to write there;"
                " log in with `hf auth login`, or correct the name."
            ) from error
    return str(commit.commit_url)


def _check_replaceable(target: Path) -> None:
    """Refuses to replace what cannot be written again: all that lies in a folder goes with it.

    Raises:
        CheckpointError: ``target`` holds no TPM, or something beside one.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        read_config(target)  # models of diffusers and transformers have a config.json too
    except CheckpointError:
        raise CheckpointError(
            f"got {target}, which holds no TPM, expected a new folder; choose another target."
        ) from None
    others = sorted(path.name for path in target.iterdir() if path.name not in WRITTEN or path.is_dir())
    if others:
        raise CheckpointError(
            f"got {target} with {others[0]!r}, which would be deleted, expected a TPM alone; move it away or choose"
            " another target."
        )


def _write_curves(facts: RunProvenance, folder: Path, draw: DrawCurves | None) -> list[str]:
    """PNG files of the training curves; none where there is no run or nothing that draws."""
    if not facts.metrics or draw is None:
        return []
    names = []
    for caption, uri in draw(facts.metrics, facts.config.trained.get("update"), file_format="png"):
        word = next((word for word in CURVES if word in caption.lower()), None)
        if word is not None:
            (folder / f"{word}.png").write_bytes(base64.b64decode(uri.split(",", 1)[1]))
            names.append(f"{word}.png")
    return names
