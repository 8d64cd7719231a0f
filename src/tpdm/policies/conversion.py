"""The published TPM checkpoint as an artifact folder.

The release trains one agent that holds the TPM and the frozen backbone; its files name the TPM's tensors
``agent_model.time_predictor.*``, or ``time_predictor.*`` where the agent was unwrapped (docs/explanation/method.md).
"""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from tpdm.core.errors import CheckpointError, ConfigError
from tpdm.core.file_errors import fault
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
LAUNCHED_GAMMA, LAUNCHED_OFFSET = 0.97, 3.10  # of the published run


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
    """Writes the folder of a TPM from a checkpoint of the release; the rest of the file is not even read.

    Args:
        checkpoint: ``.safetensors`` file, with or without the frozen backbone's weights; a folder that holds it (or its
            shards), or a hub id: "owner/name" or "owner/name/folder".
        out: folder to write.
        subfolder: of the folder or the repository.
        revision: branch, tag or commit on the hub.
        backbone: hub id or folder of the pipeline it belongs to.
        guidance_scale: of the pipeline (release: 7.0 for SD3, 3.5 for SD3.5).
        size: side of the images in pixels; the release layout is bound to it (release: 1024).
        max_steps: cap (release: 35 in its demo, 28 in training).
        stop_below: below this time an image is finished (release: .001 in inference, .01 in training).

    Returns:
        The folder, ready for ``attach``.

    Raises:
        CheckpointError: no such place, not one checkpoint in it, no safetensors, or no whole TPM in it.
        ConfigError: a subfolder of a file, a revision of what is not on the hub, a size that the release layout cannot
            have, a limit out of range, or a folder that holds something else.
    """
    if size < 1 or size % (2 * SD3_PATCH):
        raise ConfigError(
            f"got size {size}, expected a multiple of {2 * SD3_PATCH}: its layout needs an even number of tokens."
        )
    if not 0 <= stop_below < 1 or max_steps < 1:
        raise ConfigError(
            f"got stop_below {stop_below:g} and max_steps {max_steps}, expected a time in [0, 1) and at least 1 step."
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
        gamma=LAUNCHED_GAMMA,
        reward="ImageReward",
        reward_form="paper",
        reward_offset=LAUNCHED_OFFSET,
        solver="euler",
        max_steps=max_steps,
        stop_below=stop_below,
        call_defaults={"guidance_scale": guidance_scale, "height": size, "width": size},
        trained={"converted_from": source.called, "sha256": ", ".join(sha256(path) for path in source.files)},
    )
    return save_pretrained(policy, config, out)


def _check_target(out: Path, checkpoint: Path) -> None:
    """Refuses a folder that is not the TPM's own: saving replaces it, and files of the same names in it.

    Raises:
        ConfigError: it is.
    """
    folder, here = out.resolve(), Path.cwd()
    if folder == here or folder in here.parents or folder in checkpoint.resolve().parents:
        raise ConfigError(f"got out {out}, which holds the checkpoint or is where you are, expected a new folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        read_config(folder)
    except CheckpointError:
        raise ConfigError(f"got out {out}, which holds other files and no TPM, expected a new folder.") from None


def read_release(path: Path) -> dict[str, Tensor]:
    """The TPM's tensors of a release's file under our names, in fp32.

    Raises:
        CheckpointError: a damaged file, no safetensors, or no tensor of a TPM in it.
    """
    if said := fault(path):
        raise CheckpointError(f"got {path}, which {said}, expected the release's checkpoint; download it again.")
    with safe_open(str(path), framework="pt") as file:
        names = {name: _ours(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        tensors = {ours: file.get_tensor(name).float() for name, ours in names.items() if ours}
    if not tensors:
        some = f", the first is {min(names)!r}" if names else ""
        raise CheckpointError(
            f"got {len(names)} tensors in {path} but none of a TPM{some}, expected names with "
            f"'{PREFIXES[1]}'; give the release's checkpoint."
        )
    return tensors


def _ours(name: str) -> str | None:
    """Our name of a tensor of the release; None for what is not the TPM's."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            # Whatever the release calls the group norm inside norm1: it is all there is beside the linear layer.
            if rest.startswith("norm1.") and not rest.startswith("norm1.linear."):
                return f"{NORM}.{rest.rsplit('.', 1)[1]}"
            return rest
    return None


def shape_of(tensors: dict[str, Tensor], token_grid: tuple[int, int], where: Path) -> TPMConfig:
    """The published architecture in the sizes of these tensors.

    Raises:
        CheckpointError: the tensors that tell them are missing or misshapen.
    """
    conv, linear = tensors.get("conv1.weight"), tensors.get("norm1.linear.weight")
    if conv is None or linear is None or conv.ndim != 4 or linear.ndim != 2 or conv.shape[1] % 2:
        found = None if conv is None else tuple(conv.shape)
        raise CheckpointError(
            f"got conv1.weight of shape {found} in {where}, expected (channels, 2 x width, 3, 3) beside norm1.linear; "
            "give the release's checkpoint."
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
