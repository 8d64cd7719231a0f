"""Load rewards by the names that recipes use."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tpdm.config.recipe import RewardConfig
from tpdm.core.builtins import find_builtin
from tpdm.core.device import resolve_device
from tpdm.core.errors import RewardError
from tpdm.core.io import expand
from tpdm.core.progress import quiet_loading
from tpdm.rewards.base import Reward


@dataclass(frozen=True)
class RewardSpec:
    """Arguments that a reward is loaded with. ``place`` is None if the name contains no place."""

    name: str
    place: str | None
    device: str
    batch: int
    timeout: float
    token: str | None


def load_reward(
    name: str, device: str | torch.device = "cpu", batch: int = 64, timeout: float = 60.0, token: str | None = None
) -> Reward:
    """Load a reward by name.

    Args:
        name: One of

            - ``tinyworld``: the reward of the embedded model;
            - ``clip:PLACE``: CLIP score, 100 x cosine;
            - ``pickscore[:PLACE]``, ``hpsv2[:PLACE]``, ``imagereward[:PLACE]``, ``aesthetic:PLACE``: as published;
            - ``python:package.module:function``: a custom function;
            - ``remote:http://host:port``: a server.

            PLACE is a folder, a file or a hub id. The default is the authors' repository on the hub.
        device: Device of the model, for example ``cpu`` or ``cuda:0``. The model runs in fp32.
        batch: Maximum number of images per forward pass, >= 1. It limits memory. Scores are the same up to
            floating-point rounding.
        timeout: Seconds to wait for a server's response, > 0.
        token: Bearer token of the server, if it requires one.

    Raises:
        RewardError: If the name is unknown, or if files are missing or damaged.
        ConfigError: If the device does not exist.

    Example:
        >>> import torch
        >>> reward = load_reward("tinyworld")
        >>> reward.score(torch.rand(2, 3, 32, 32), ["large red circle", "blue ring"]).shape
        torch.Size([2])
    """
    kind, colon, place = name.partition(":")
    if kind not in _KINDS or (colon and not place):
        raise RewardError(f"reward.name is '{name}'. It must be one of {', '.join(_USAGES)}. Correct reward.name.")
    if kind not in ("python", "remote"):
        place = expand(place)
    return _KINDS[kind](RewardSpec(name, place or None, resolve_device(device), batch, timeout, token))


def recipe_reward(config: RewardConfig, device: str = "cpu") -> Reward:
    """Load the reward of a recipe. A composite is not calibrated yet.

    Args:
        config: Section ``reward`` of the recipe.
        device: Device of the models.

    Raises:
        RewardError: As ``load_reward``, or if the environment variable of the token is not set.

    Example:
        >>> from tpdm.config.recipe import RewardConfig
        >>> recipe_reward(RewardConfig(name="tinyworld")).name
        'tinyworld'
    """
    from tpdm.rewards.composite import CompositeReward, RewardPart

    token = read_token(config.token_env)

    def load(name: str) -> Reward:
        return load_reward(name, device, config.batch, config.timeout, token)

    if not config.parts:
        return load(config.name)
    return CompositeReward(tuple(RewardPart(part.name, load(part.name), part.weight) for part in config.parts))


def load_judges(names: Sequence[str], config: RewardConfig, device: str = "cpu") -> dict[str, Reward]:
    """Load judges: held-out rewards that training does not use.

    Args:
        names: Names as in ``load_reward``.
        config: Section ``reward`` of the recipe. Judges use its batch, timeout and token.
        device: Device of the models.

    Returns:
        Rewards by name.

    Raises:
        RewardError: As ``recipe_reward``.
    """
    token = read_token(config.token_env) if names else None
    return {name: load_reward(name, device, config.batch, config.timeout, token) for name in names}


def reward_device(config: RewardConfig, backbone: str) -> str:
    """Return the device of rewards and judges: ``reward.device``, or the backbone's if that is ``auto``.

    Raises:
        ConfigError: If the device does not exist.
    """
    return backbone if config.device == "auto" else resolve_device(config.device)


def read_token(variable: str | None) -> str | None:
    """Return the token in an environment variable.

    Args:
        variable: Name of the variable. None returns None.

    Raises:
        RewardError: If the variable is not set or is empty.
    """
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise RewardError(
            f"Environment variable '{variable}' is not set or empty. It must contain the token. export {variable}=..."
        )
    return token


def _builtin(spec: RewardSpec) -> Reward:
    from tpdm.rewards.clip import ClipReward

    name = spec.name.partition(":")[0]
    builtin = find_builtin(name)
    if builtin is None or spec.place is not None:
        raise RewardError(
            f"reward.name is '{spec.name}'. It must be '{name}' only, because its files are part of the package. "
            "Remove the place."
        )
    with quiet_loading():
        # One batch for all images, whatever ``batch`` is: the model is tiny, and the published runs stay bit-identical.
        return ClipReward.from_folder(builtin.WEIGHTS / "reward", name, device=spec.device, batch=2**20)


def _clip(spec: RewardSpec) -> Reward:
    from tpdm.rewards.clip import ClipReward

    if spec.place is None:
        raise RewardError("reward.name is 'clip'. It must be clip:FOLDER_OR_HUB_ID. Add the place of a CLIP model.")
    name = f"CLIP score ({Path(spec.place).name})"
    return ClipReward.from_folder(spec.place, name, scale=100.0, device=spec.device, batch=spec.batch)


def _pickscore(spec: RewardSpec) -> Reward:
    from tpdm.rewards.clip import HUB, load_pickscore

    return load_pickscore(spec.place or HUB, spec.device, spec.batch)


def _hpsv2(spec: RewardSpec) -> Reward:
    from tpdm.rewards.hpsv2 import HUB, load_hpsv2

    return load_hpsv2(spec.place or HUB, spec.device, spec.batch)


def _imagereward(spec: RewardSpec) -> Reward:
    from tpdm.rewards.imagereward import HUB, load_imagereward

    return load_imagereward(spec.place or HUB, spec.device, spec.batch)


def _aesthetic(spec: RewardSpec) -> Reward:
    from tpdm.rewards.aesthetic import load_aesthetic

    return load_aesthetic(spec.place, spec.device, spec.batch)


def _python(spec: RewardSpec) -> Reward:
    from tpdm.rewards.custom import load_function

    return load_function(spec.place or "", spec.device, spec.batch)


def _remote(spec: RewardSpec) -> Reward:
    from tpdm.rewards.remote import RemoteReward

    return RemoteReward(spec.place or "", spec.token, spec.timeout, batch=spec.batch)


_KINDS: dict[str, Callable[[RewardSpec], Reward]] = {
    "tinyworld": _builtin,
    "clip": _clip,
    "pickscore": _pickscore,
    "hpsv2": _hpsv2,
    "imagereward": _imagereward,
    "aesthetic": _aesthetic,
    "python": _python,
    "remote": _remote,
}
_USAGES = (
    "tinyworld",
    "clip:FOLDER_OR_HUB_ID",
    "pickscore[:PLACE]",
    "hpsv2[:PLACE]",
    "imagereward[:PLACE]",
    "aesthetic:PLACE",
    "python:package.module:function",
    "remote:http://host:port",
)
