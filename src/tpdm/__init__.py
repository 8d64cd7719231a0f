"""tpdm: learned per-image denoising schedules for text-to-image pipelines.

The public names are loaded when they are first used, so that ``import tpdm`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpdm.artefact import load_policy
    from tpdm.config import load_recipe
    from tpdm.pipelines.attach import AdaptiveOutput, AdaptivePipeline, attach
    from tpdm.pipelines.load import load_pipeline
    from tpdm.policy import TimePredictor
    from tpdm.rewards.load import load_reward
    from tpdm.schedules import FixedTimes
    from tpdm.types import TpdmError

_HOMES = {
    "AdaptiveOutput": "tpdm.pipelines.attach",
    "AdaptivePipeline": "tpdm.pipelines.attach",
    "FixedTimes": "tpdm.schedules",
    "TimePredictor": "tpdm.policy",
    "TpdmError": "tpdm.types",
    "attach": "tpdm.pipelines.attach",
    "load_pipeline": "tpdm.pipelines.load",
    "load_policy": "tpdm.artefact",
    "load_recipe": "tpdm.config",
    "load_reward": "tpdm.rewards.load",
}

__all__ = [
    "AdaptiveOutput",
    "AdaptivePipeline",
    "FixedTimes",
    "TimePredictor",
    "TpdmError",
    "attach",
    "load_pipeline",
    "load_policy",
    "load_recipe",
    "load_reward",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tpdm' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
