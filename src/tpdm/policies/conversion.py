"""Conversion of the published TPM checkpoint to a TPM folder.

The release trains one agent that contains the TPM and the frozen backbone. Its files name the TPM's tensors
``agent_model.time_predictor.*``, or ``time_predictor.*`` if the agent was unwrapped.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from tpdm.core.errors import CheckpointError, ConfigError
from tpdm.core.file_errors import describe_damage
from tpdm.core.io import expand, sha256
from tpdm.policies.conversion_source import find_checkpoint
from tpdm.policies.pretrained import load_state_dict_strict, read_config, save_pretrained
from tpdm.policies.pretrained_config import PretrainedConfig
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig

PREFIXES = ("agent_model.time_predictor.", "time_predictor.")
NORM = "norm1.norm"  # our name of the group norm inside norm1
SD3_MEDIUM = "stabilityai/stable-diffusion-3-medium-diffusers"
SD3_PATCH = 16  # pixels per token: 8 of the autoencoder, 2 of the patch
RELEASE_GAMMA, RELEASE_OFFSET = 0.97, 3.10  # of the published run


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    backbone: str = SD3_MEDIUM,
    guidance_scale: float = 7.0,
    size: int = 1024,
    max_steps: int = 35,
    stop_below: float = 0.001,
) -> Path:
    """Convert a checkpoint of the release to a TPM folder. Only the TPM's tensors are read.

    Args:
        checkpoint: ``.safetensors`` file, with or without the frozen backbone; a folder that contains it or its
            shards; or a hub id, "owner/name" or "owner/name/folder".
        out: Folder to write.
        subfolder: Subfolder of the folder or the repository.
        revision: Branch, tag or commit on the hub.
        backbone: Hub id or folder of its pipeline.
        guidance_scale: Guidance scale of the pipeline (release: 7.0 for SD3, 3.5 for SD3.5).
        size: Side of the images in pixels. The release layout requires it (release: 1024).
        max_steps: Cap on steps (release: 35 in its demo, 28 in training).
        stop_below: Time below which an image is finished (release: .001 in inference, .01 in training).

    Returns:
        The folder, which ``attach`` accepts.

    Raises:
        CheckpointError: The checkpoint does not exist, is ambiguous, is not safetensors, or contains no complete TPM.
        ConfigError: ``subfolder`` is given for a file, ``revision`` for a local path, ``size`` does not fit the folded
            layout, a limit is out of range, or ``out`` contains other files.
    """
    if size < 1 or size % (2 * SD3_PATCH):
        raise ConfigError(
            f"size is {size}. It must be a multiple of {2 * SD3_PATCH}, for an even number of tokens. Try size=1024."
        )
    if not 0 <= stop_below < 1 or max_steps < 1:
        raise ConfigError(
            f"stop_below is {stop_below:g} and max_steps is {max_steps}. They must be in [0, 1) and at least 1. Try "
            "0.001 and 35."
        )
    checkpoint, out = expand(checkpoint), Path(expand(out))
    _check_target(out, Path(checkpoint))  # before anything is downloaded
    source = find_checkpoint(checkpoint, subfolder, revision, PREFIXES)
    for path in source.files:
        _check_target(out, path)
    tensors = {name: tensor for path in source.files for name, tensor in read_release(path).items()}
    shape = shape_of(tensors, (size // SD3_PATCH, size // SD3_PATCH), path)
    policy = TimePredictionModule(shape)
    load_state_dict_strict(policy, tensors, path)
    config = PretrainedConfig(
        shape=shape,
        backbone_class="SD3Transformer2DModel",
        backbone_name=backbone,
        features="tokens entering the first block and leaving the last, guided rows, time embedding",
        guidance_scale=guidance_scale,
        gamma=RELEASE_GAMMA,
        reward="ImageReward",
        reward_form="paper",
        reward_offset=RELEASE_OFFSET,
        solver="euler",
        max_steps=max_steps,
        stop_below=stop_below,
        call_defaults={"guidance_scale": guidance_scale, "height": size, "width": size},
        trained={"converted_from": source.name, "sha256": ", ".join(sha256(path) for path in source.files)},
    )
    return save_pretrained(policy, config, out)


def _check_target(out: Path, checkpoint: Path) -> None:
    """Check that ``out`` is new or a TPM's folder, because saving replaces its files.

    Raises:
        ConfigError: It contains other files, the checkpoint, or the current folder.
    """
    folder, here = out.resolve(), Path.cwd()
    if folder == here or folder in here.parents or folder in checkpoint.resolve().parents:
        raise ConfigError(f"out is {out}, which contains the checkpoint or the current folder. Choose a new folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        read_config(folder)
    except CheckpointError:
        raise ConfigError(f"out is {out}, which contains other files and no TPM. Choose a new folder.") from None


def read_release(path: Path) -> dict[str, Tensor]:
    """Read the TPM's tensors from a file of the release, with the names of this package, in fp32.

    Raises:
        CheckpointError: The file is damaged, not safetensors, or contains no tensor of a TPM.
    """
    if clause := describe_damage(path):
        raise CheckpointError(f"{path} {clause}. Give the release's checkpoint. Download it again.")
    with safe_open(str(path), framework="pt") as file:
        names = {name: _ours(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        tensors = {ours: file.get_tensor(name).float() for name, ours in names.items() if ours}
    if not tensors:
        first = f" (the first is {min(names)!r})" if names else ""
        raise CheckpointError(
            f"{path} has {len(names)} tensors{first} but none of a TPM. Their names begin with '{PREFIXES[1]}'. Give "
            "the release's checkpoint."
        )
    return tensors


def _ours(name: str) -> str | None:
    """Our name of a tensor of the release. None for tensors that do not belong to the TPM."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            # The group norm inside norm1, whatever its name: norm1 contains only it and the linear layer.
            if rest.startswith("norm1.") and not rest.startswith("norm1.linear."):
                return f"{NORM}.{rest.rsplit('.', 1)[1]}"
            return rest
    return None


def shape_of(tensors: dict[str, Tensor], token_grid: tuple[int, int], where: Path) -> TPMConfig:
    """Return the published architecture in the sizes of these tensors.

    Args:
        tensors: Tensors of a TPM by name.
        token_grid: (H, W) in tokens that the TPM was trained for.
        where: File of the tensors, for messages.

    Raises:
        CheckpointError: Tensors that determine the sizes are missing or have the wrong number of axes.
    """
    conv, linear = tensors.get("conv1.weight"), tensors.get("norm1.linear.weight")
    if conv is None or linear is None or conv.ndim != 4 or linear.ndim != 2 or conv.shape[1] % 2:
        found = None if conv is None else tuple(conv.shape)
        raise CheckpointError(
            f"conv1.weight in {where} has shape {found}. It must be (channels, 2 x width, 3, 3), next to norm1.linear. "
            "Give the release's checkpoint."
        )
    return TPMConfig(
        feature_channels=conv.shape[1] // 2,  # two maps
        temb_channels=linear.shape[1],
        features="guided",
        layout="release",
        channels=conv.shape[0],
        storage="fp32",
        token_grid=token_grid,
    )
