"""A trained TPM as a folder: model.safetensors and config.json, strict in what it reads, never pickle."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tpdm.core.builtins import find_builtin
from tpdm.core.errors import CheckpointError
from tpdm.core.file_errors import fault
from tpdm.core.io import expand, load_tensors, replaced_folder, save_tensors, write_json
from tpdm.core.types import Policy
from tpdm.policies.pretrained_config import CONFIG, FORMAT_VERSION, OPTIONAL, PretrainedConfig, parse_config
from tpdm.policies.tpm import TimePredictionModule

WEIGHTS = "model.safetensors"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def save_pretrained(policy: TimePredictionModule, config: PretrainedConfig, folder: str | Path) -> Path:
    """Writes the folder whole: both files are finished beside it, then the folder changes places by renaming.

    Other files of an existing folder (a README, samples) are kept.

    Raises:
        CheckpointError: the config does not describe this policy, or holds something JSON cannot.
    """
    if config.shape != policy.shape:
        raise CheckpointError("got a config of another shape than the policy's, expected policy.shape; use that one.")
    # Without what is empty, the file is as older versions wrote it, and read it.
    current = dataclasses.replace(config, format_version=FORMAT_VERSION)
    values = {k: v for k, v in dataclasses.asdict(current).items() if v or k not in OPTIONAL}
    try:
        text = json.dumps(values, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"got a config that JSON cannot hold ({error}), expected plain values; correct it."
        ) from None
    parse_config(text, "the config")
    folder = Path(expand(folder)).resolve()
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"got the file {folder}, expected a folder to save the TPM in; choose another path.")
    with replaced_folder(folder, keep_others=True) as new:
        save_tensors(new / WEIGHTS, policy.state_dict(), {"format": "pt"})
        write_json(new / CONFIG, values)
    return folder


def resolve_path(name: str | Path, revision: str | None = None, also: Sequence[str] = ()) -> Path:
    """The local folder of a path, of the shipped TPM ("tinyworld"), or of a hub id (downloaded on first use).

    Args:
        name: of the TPM.
        revision: branch, tag or commit on the hub.
        also: files to download beside weights and config, where there are such.

    Raises:
        CheckpointError: there is no such folder, here or on the hub.
    """
    name = expand(name)
    builtin = find_builtin(name)
    if builtin is not None:
        return builtin.WEIGHTS / "tpm"
    folder = Path(name)
    if folder.is_dir():
        return folder
    if isinstance(name, Path) or not HUB_ID.fullmatch(name):
        raise CheckpointError(f"got {str(name)!r}, expected a folder or a hub id such as org/name; correct the path.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[WEIGHTS, CONFIG, *also]))
    except Exception as error:  # the hub raises a dozen unrelated types: its own, httpx's, OSError, ValueError
        raise CheckpointError(
            f"got {name!r}, which is no folder here and cannot be had from the hub ({type(error).__name__}),"
            " expected a trained TPM; correct the name or check the network."
        ) from error


def read_config(folder: Path) -> PretrainedConfig:
    """``config.json`` of a folder.

    Raises:
        CheckpointError: missing, unreadable, or not as it was written.
    """
    path = folder / CONFIG
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"got no readable {path} ({type(error).__name__}), expected a folder written by save_pretrained;"
            " correct the path."
        ) from None
    return parse_config(text, str(path))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder, on the CPU.

    Raises:
        CheckpointError: missing, damaged, or a pickle.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        found = f"only {pickles[0]}" if pickles else "none"
        raise CheckpointError(f"got {found} in {folder}, expected {WEIGHTS}; save the TPM again with save_pretrained.")
    if said := fault(path):
        raise CheckpointError(f"got {path}, which {said}, expected whole safetensors; fetch it again.")
    return load_tensors(path)[0]


def load_state_dict_strict(policy: TimePredictionModule, tensors: dict[str, Tensor], where: str | Path) -> None:
    """Loads weights where names, shapes and dtypes match exactly and every value is finite.

    Raises:
        CheckpointError: naming the first tensor that does not fit.
    """
    expected = policy.state_dict()
    for problem, names in (
        ("no", expected.keys() - tensors.keys()),
        ("unknown", tensors.keys() - expected.keys()),
    ):
        if names:
            raise CheckpointError(
                f"got {problem} tensor {min(names)!r} in {where}, expected those of its shape; use the matching config."
            )
    for name, tensor in tensors.items():
        want = expected[name]
        if tensor.shape != want.shape or tensor.dtype != want.dtype:
            raise CheckpointError(
                f"got {name!r} as {tensor.dtype} {tuple(tensor.shape)} in {where}, expected {want.dtype}"
                f" {tuple(want.shape)}; use the matching config."
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"got NaN or infinity in {name!r} of {where}, expected numbers; take an earlier save."
            )
    policy.load_state_dict(tensors)


def load_weights(policy: TimePredictionModule, config: PretrainedConfig, folder: Path) -> None:
    """Loads the weights of a folder as its config says that they are kept.

    Args:
        policy: of ``config.shape``.
        config: of the folder.
        folder: with the weights.

    Raises:
        CheckpointError: as ``read_weights`` and ``load_state_dict_strict``.
    """
    load_state_dict_strict(policy, read_weights(folder), folder / WEIGHTS)
    if config.format_version == 1:  # the scale came before the shift
        with torch.no_grad():
            for parameter in policy.norm1.linear.parameters():
                parameter.copy_(torch.cat(parameter.chunk(2)[::-1]))


def from_pretrained(name: str | Path, revision: str | None = None) -> tuple[TimePredictionModule, PretrainedConfig]:
    """Loads a TPM on the CPU, ready for use.

    Args:
        name: folder, or hub id "org/name".
        revision: branch, tag or commit on the hub.

    Raises:
        CheckpointError: anything missing, unknown, damaged or misshapen, in one sentence.
    """
    folder = resolve_path(name, revision)
    config = read_config(folder)
    policy = TimePredictionModule(config.shape)
    load_weights(policy, config, folder)
    policy.artifact = config
    return policy.eval(), config


def load_policy(name: str | Path, revision: str | None = None) -> TimePredictionModule:
    """Like :func:`from_pretrained`; the config is in ``policy.artifact``."""
    return from_pretrained(name, revision)[0]


def backbone_defaults(defaults: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    """Those of a backbone's arguments that a TPM was not trained with others for; all of them for other policies."""
    trained = policy.artifact if isinstance(policy, TimePredictionModule) else None
    return {k: v for k, v in defaults.items() if trained is None or k not in trained.call_defaults}


def check_backbone(
    config: PretrainedConfig,
    denoiser_class: str,
    feature_channels: int,
    temb_channels: int | None = None,
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Refuses a denoiser that the TPM was not trained for.

    Args:
        config: of the TPM.
        denoiser_class: name of the class.
        feature_channels: width of its tokens.
        temb_channels: width of its time embedding; None where that is not known before the first evaluation.
        facts: what tells it from others of the class and widths; heeded where the TPM has them.

    Raises:
        CheckpointError: another class, other widths or other facts.
    """
    shape = config.shape
    temb_fits = temb_channels in (None, shape.temb_channels)
    if (denoiser_class, feature_channels) != (config.backbone_class, shape.feature_channels) or not temb_fits:
        raise CheckpointError(
            f"got the denoiser {denoiser_class} of width {feature_channels} (time embedding"
            f" {temb_channels or 'not looked at'}), expected {config.backbone_class} of width"
            f" {shape.feature_channels} (time embedding {shape.temb_channels}); load {config.backbone_name} or a"
            " TPM trained for this denoiser."
        )
    for name, trained in config.backbone_facts.items():
        if facts.get(name) != trained:
            raise CheckpointError(
                f"got the denoiser {denoiser_class} of {name} {facts.get(name)!r}, expected {trained!r}; load"
                f" {config.backbone_name} or a TPM trained for this denoiser."
            )
