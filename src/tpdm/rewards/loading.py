"""Rewards by name."""

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
    """What a reward is loaded with; ``place`` is None where the name gives none."""

    name: str
    place: str | None
    device: str
    batch: int
    timeout: float
    token: str | None


def load_reward(
    name: str, device: str | torch.device = "cpu", batch: int = 64, timeout: float = 60.0, token: str | None = None
) -> Reward:
    """The reward that a recipe names.

    Args:
        name: one of

            - ``tinyworld``: the embedded one;
            - ``clip:PLACE``: CLIP score, 100 x cosine;
            - ``pickscore[:PLACE]``, ``hpsv2[:PLACE]``, ``imagereward[:PLACE]``, ``aesthetic:PLACE``: as published;
            - ``python:package.module:function``: a function of your own;
            - ``remote:http://host:port``: a server.

            PLACE is a folder, a file or a hub id; without it the authors' own place on the hub.
        device: where it runs, in fp32.
        batch: images at a time, >= 1; memory only, never the result but for rounding.
        timeout: seconds to wait for a server's answer.
        token: for a server that asks for one.

    Raises:
        RewardError: the name is unknown, or its files are missing or damaged.
        ConfigError: the device is not there.
    """
    kind, colon, place = name.partition(":")
    if kind not in _KINDS or (colon and not place):
        raise RewardError(f"got reward '{name}', expected one of {', '.join(_USAGES)}; correct reward.name")
    if kind not in ("python", "remote"):
        place = expand(place)
    return _KINDS[kind](RewardSpec(name, place or None, resolve_device(device), batch, timeout, token))


def recipe_reward(config: RewardConfig, device: str = "cpu") -> Reward:
    """The reward of a recipe; a composite still has to be calibrated.

    Raises:
        RewardError: as ``load_reward``; or the token's environment variable is not set.
    """
    from tpdm.rewards.composite import CompositeReward, RewardPart

    token = read_token(config.token_env)

    def load(name: str) -> Reward:
        return load_reward(name, device, config.batch, config.timeout, token)

    if not config.parts:
        return load(config.name)
    return CompositeReward(tuple(RewardPart(part.name, load(part.name), part.weight) for part in config.parts))


def load_judges(names: Sequence[str], config: RewardConfig, device: str = "cpu") -> dict[str, Reward]:
    """Rewards that only look on, by name, loaded as the recipe's own: its batch, timeout and token.

    Raises:
        RewardError: as ``recipe_reward``.
    """
    token = read_token(config.token_env) if names else None
    return {name: load_reward(name, device, config.batch, config.timeout, token) for name in names}


def reward_device(config: RewardConfig, backbone: str) -> str:
    """Where rewards and judges run: ``reward.device``, or with the backbone.

    Raises:
        ConfigError: that device is not there.
    """
    return backbone if config.device == "auto" else resolve_device(config.device)


def read_token(variable: str | None) -> str | None:
    """The token in an environment variable; None where no variable is named.

    Raises:
        RewardError: the variable is not set, or empty.
    """
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise RewardError(f"got no token in the environment variable '{variable}', expected one; export {variable}=...")
    return token


def _builtin(spec: RewardSpec) -> Reward:
    from tpdm.rewards.clip import ClipReward

    name = spec.name.partition(":")[0]
    builtin = find_builtin(name)
    if builtin is None or spec.place is not None:
        raise RewardError(f"got reward '{spec.name}', expected '{name}' alone, it is shipped; correct reward.name")
    with quiet_loading():
        # All images at once, whatever the batch: it is tiny, and its published runs stay what they are to the bit.
        return ClipReward.from_folder(builtin.WEIGHTS / "reward", name, device=spec.device, batch=2**20)


def _clip(spec: RewardSpec) -> Reward:
    from tpdm.rewards.clip import ClipReward

    if spec.place is None:
        raise RewardError("got reward 'clip', expected clip:FOLDER_OR_HUB_ID; say which CLIP model")
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
