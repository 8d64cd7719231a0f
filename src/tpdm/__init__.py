"""tpdm: learned per-image denoising schedules for text-to-image pipelines.

The public names are loaded when they are first used, so that ``import tpdm`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpdm.config.loader import load_recipe
    from tpdm.core.errors import TpdmError
    from tpdm.pipelines.attach import AdaptiveOutput, AdaptivePipeline, attach
    from tpdm.pipelines.loading.load import load_pipeline
    from tpdm.policies.fixed import FixedSchedule
    from tpdm.policies.pretrained import load_policy
    from tpdm.policies.tpm import TimePredictionModule
    from tpdm.rewards.loading import load_reward

_HOMES = {
    "AdaptiveOutput": "tpdm.pipelines.attach",
    "AdaptivePipeline": "tpdm.pipelines.attach",
    "FixedSchedule": "tpdm.policies.fixed",
    "TimePredictionModule": "tpdm.policies.tpm",
    "TpdmError": "tpdm.core.types",
    "attach": "tpdm.pipelines.attach",
    "load_pipeline": "tpdm.pipelines.loading.load",
    "load_policy": "tpdm.policies.pretrained",
    "load_recipe": "tpdm.config.loader",
    "load_reward": "tpdm.rewards.loading",
}

__all__ = [
    "AdaptiveOutput",
    "AdaptivePipeline",
    "FixedSchedule",
    "TimePredictionModule",
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
