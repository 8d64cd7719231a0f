"""Rewards by name."""

from __future__ import annotations

from pathlib import Path

from tpdm.rewards.base import Reward
from tpdm.types import RewardError


def load_reward(name: str, device: str = "cpu") -> Reward:
    """The reward that a recipe names.

    Args:
        name: ``tinyworld`` (shipped), or ``clip:FOLDER_OR_HUB_ID`` for the CLIP score, 100 x cosine, of a CLIP model.
        device: where it runs.

    Raises:
        RewardError: the name is unknown, or its files are missing.
    """
    from tpdm.rewards.clip import ClipReward

    if name == "tinyworld":
        from tpdm.tinyworld.pipeline import quiet_loading
        from tpdm.tinyworld.shipped import weights_folder

        with quiet_loading():
            return ClipReward.from_folder(weights_folder() / "reward", "tinyworld", device=device)
    kind, _, place = name.partition(":")
    if kind == "clip" and place:
        return ClipReward.from_folder(place, f"CLIP score ({Path(place).name})", scale=100.0, device=device)
    raise RewardError(f"got reward '{name}', expected 'tinyworld' or 'clip:FOLDER_OR_HUB_ID'; correct reward.name")
