"""Saving and loading of TPMs: a folder with model.safetensors and config.json, which are read strictly."""

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
from tpdm.core.file_errors import describe_damage
from tpdm.core.io import expand, load_tensors, replaced_folder, save_tensors, write_json
from tpdm.core.types import Policy
from tpdm.policies.pretrained_config import CONFIG, FORMAT_VERSION, OPTIONAL, PretrainedConfig, parse_config
from tpdm.policies.tpm import TimePredictionModule

WEIGHTS = "model.safetensors"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def save_pretrained(policy: TimePredictionModule, config: PretrainedConfig, folder: str | Path) -> Path:
    """Write a TPM to a folder, so that readers see the old or the new files and never a mix.

    Other files of an existing folder (a README, samples) are kept.

    Args:
        policy: TPM to save.
        config: Its config, with ``shape=policy.shape``.
        folder: Folder to write. Missing parent folders are created.

    Returns:
        The absolute path of the folder.

    Raises:
        CheckpointError: The config does not describe this TPM, contains a value that JSON does not support, or
            ``folder`` is a file.

    Example:
        >>> policy, config = from_pretrained("tinyworld")
        >>> save_pretrained(policy, config, "my-tpm").name
        'my-tpm'
        >>> load_policy("my-tpm").shape == policy.shape
        True
    """
    if config.shape != policy.shape:
        raise CheckpointError("config.shape is not the shape of the policy. Both must be the same. Use policy.shape.")
    # Without empty values, the file is as older versions wrote it, and they can read it.
    current = dataclasses.replace(config, format_version=FORMAT_VERSION)
    values = {k: v for k, v in dataclasses.asdict(current).items() if v or k not in OPTIONAL}
    try:
        text = json.dumps(values, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"The config has a value that JSON does not support ({error}). All values must be plain. Correct it."
        ) from None
    parse_config(text, "the config")
    folder = Path(expand(folder)).resolve()
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file. A TPM is saved in a folder. Choose another path.")
    with replaced_folder(folder, keep_others=True) as new:
        save_tensors(new / WEIGHTS, policy.state_dict(), {"format": "pt"})
        write_json(new / CONFIG, values)
    return folder


def resolve_path(name: str | Path, revision: str | None = None, also: Sequence[str] = ()) -> Path:
    """Find the local folder of a TPM. A TPM on the hub is downloaded on first use.

    Args:
        name: Folder, name of the TPM that comes with tpdm ("tinyworld"), or hub id "owner/name".
        revision: Branch, tag or commit on the hub. None is the default branch.
        also: Names of further files to download, if they exist.

    Raises:
        CheckpointError: There is no such folder, here or on the hub.

    Example:
        >>> sorted(path.name for path in resolve_path("tinyworld").iterdir())
        ['config.json', 'model.safetensors']
    """
    name = expand(name)
    builtin = find_builtin(name)
    if builtin is not None:
        return builtin.WEIGHTS / "tpm"
    folder = Path(name)
    if folder.is_dir():
        return folder
    if isinstance(name, Path) or not HUB_ID.fullmatch(name):
        raise CheckpointError(
            f"There is no folder {str(name)!r}. A TPM is a folder or a hub id such as owner/name. Correct it. "
            "A training writes its TPM to runs/NAME/best."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[WEIGHTS, CONFIG, *also]))
    except Exception as error:  # the hub raises many unrelated types: its own, httpx's, OSError, ValueError
        raise CheckpointError(
            f"{name!r} is no folder here and cannot be downloaded from the hub ({type(error).__name__}). It must be a "
            "trained TPM. Correct the name, or check the network."
        ) from error


def read_config(folder: Path) -> PretrainedConfig:
    """Read ``config.json`` of a TPM's folder.

    Raises:
        CheckpointError: The file is missing, unreadable or invalid.

    Example:
        >>> read_config(resolve_path("tinyworld")).backbone_class
        'SD3Transformer2DModel'
    """
    path = folder / CONFIG
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        best = folder / "best"
        remedy = f"Use {best}." if (best / CONFIG).is_file() else "Correct the path."
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}). The folder must be one that save_pretrained wrote. "
            f"{remedy}"
        ) from None
    return parse_config(text, str(path))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of a TPM's folder, on the CPU.

    Raises:
        CheckpointError: The file is missing, damaged or a pickle.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        but = f", only {pickles[0]}" if pickles else ""
        raise CheckpointError(f"{folder} has no {WEIGHTS}{but}. It must. Save the TPM again with save_pretrained.")
    if clause := describe_damage(path):
        raise CheckpointError(f"{path} {clause}. It must be whole safetensors. Download it again.")
    return load_tensors(path)[0]


def load_state_dict_strict(policy: TimePredictionModule, tensors: dict[str, Tensor], where: str | Path) -> None:
    """Load weights. Names, shapes and dtypes must match exactly, and every value must be finite.

    Args:
        policy: TPM that gets the weights.
        tensors: Weights by name.
        where: Where they come from, for messages.

    Raises:
        CheckpointError: A tensor does not fit. The message names the first one.
    """
    expected = policy.state_dict()
    for problem, names in (
        ("no", expected.keys() - tensors.keys()),
        ("unknown", tensors.keys() - expected.keys()),
    ):
        if names:
            raise CheckpointError(
                f"{where} has {problem} tensor {min(names)!r}. Names must be those of the config's shape. Use the "
                "matching config."
            )
    for name, tensor in tensors.items():
        target = expected[name]
        if tensor.shape != target.shape or tensor.dtype != target.dtype:
            raise CheckpointError(
                f"{name!r} in {where} is {tensor.dtype} {tuple(tensor.shape)}. It must be {target.dtype} "
                f"{tuple(target.shape)}. Use the matching config."
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{name!r} in {where} contains NaN or infinity. All numbers must be finite. Use an earlier checkpoint."
            )
    policy.load_state_dict(tensors)


def load_weights(policy: TimePredictionModule, config: PretrainedConfig, folder: Path) -> None:
    """Load the weights of a folder in the format that its config names.

    Args:
        policy: TPM of ``config.shape``.
        config: Config of the folder.
        folder: Folder with the weights.

    Raises:
        CheckpointError: As for ``read_weights`` and ``load_state_dict_strict``.
    """
    load_state_dict_strict(policy, read_weights(folder), folder / WEIGHTS)
    if config.format_version == 1:  # its linear layer gives the scale before the shift
        with torch.no_grad():
            for parameter in policy.norm1.linear.parameters():
                parameter.copy_(torch.cat(parameter.chunk(2)[::-1]))


def from_pretrained(name: str | Path, revision: str | None = None) -> tuple[TimePredictionModule, PretrainedConfig]:
    """Load a TPM and its config on the CPU.

    Args:
        name: Folder, name of the TPM that comes with tpdm ("tinyworld"), or hub id "owner/name".
        revision: Branch, tag or commit on the hub. None is the default branch.

    Returns:
        (TPM in evaluation mode, its config).

    Raises:
        CheckpointError: Something is missing, unknown, damaged or of another shape.

    Example:
        >>> policy, config = from_pretrained("tinyworld")
        >>> config.solver
        'euler'
    """
    folder = resolve_path(name, revision)
    config = read_config(folder)
    policy = TimePredictionModule(config.shape)
    load_weights(policy, config, folder)
    policy.artifact = config
    return policy.eval(), config


def load_policy(name: str | Path, revision: str | None = None) -> TimePredictionModule:
    """Load a TPM on the CPU. Its config is in ``policy.artifact``.

    Args:
        name: Folder, name of the TPM that comes with tpdm ("tinyworld"), or hub id "owner/name".
        revision: Branch, tag or commit on the hub. None is the default branch.

    Raises:
        CheckpointError: Something is missing, unknown, damaged or of another shape.

    Example:
        >>> load_policy("tinyworld").reads_features
        True
    """
    return from_pretrained(name, revision)[0]


def backbone_defaults(defaults: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    """Return the call defaults of a backbone, without those that the TPM's training replaced.

    Args:
        defaults: Default arguments of the backbone's pipeline call.
        policy: Any policy. Only a loaded TPM replaces defaults.
    """
    trained = policy.artifact if isinstance(policy, TimePredictionModule) else None
    return {k: v for k, v in defaults.items() if trained is None or k not in trained.call_defaults}


def check_backbone(
    config: PretrainedConfig,
    denoiser_class: str,
    feature_channels: int,
    temb_channels: int | None = None,
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Check that a denoiser is the one that the TPM was trained for.

    Args:
        config: Config of the TPM.
        denoiser_class: Name of the denoiser's class.
        feature_channels: Width of its tokens.
        temb_channels: Width of its time embedding. None if it is not known before the first evaluation.
        facts: Values that distinguish models of the same class and widths. Only those in the TPM's config are compared.

    Raises:
        CheckpointError: The class, a width or a fact differs.
    """
    shape = config.shape
    temb_fits = temb_channels in (None, shape.temb_channels)
    if (denoiser_class, feature_channels) != (config.backbone_class, shape.feature_channels) or not temb_fits:
        raise CheckpointError(
            f"The denoiser is {denoiser_class} of width {feature_channels} (time embedding "
            f"{temb_channels or 'unknown'}). It must be {config.backbone_class} of width {shape.feature_channels} "
            f"(time embedding {shape.temb_channels}). Load {config.backbone_name}, or a TPM trained for this denoiser."
        )
    for name, trained in config.backbone_facts.items():
        if facts.get(name) != trained:
            raise CheckpointError(
                f"The denoiser {denoiser_class} has {name} {facts.get(name)!r}. It must be {trained!r}. Load "
                f"{config.backbone_name}, or a TPM trained for this denoiser."
            )
