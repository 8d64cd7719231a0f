"""tpdm: learned per-image denoising schedules for text-to-image pipelines.

The public names are loaded when they are first used, so that ``import tpdm`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpdm.config.loader import load_recipe
    from tpdm.core.errors import TpdmError
    from tpdm.core.types import Policy
    from tpdm.evaluation.evaluate import evaluate
    from tpdm.pipelines.attach import AdaptiveOutput, AdaptivePipeline, attach
    from tpdm.pipelines.feature_hooks import compile_denoiser
    from tpdm.pipelines.loading.load import load_pipeline
    from tpdm.policies.fixed import FixedSchedule
    from tpdm.policies.pretrained import load_policy
    from tpdm.policies.tpm import TimePredictionModule
    from tpdm.rewards.loading import load_reward
    from tpdm.training.train import train

_HOMES = {
    "AdaptiveOutput": "tpdm.pipelines.attach",
    "AdaptivePipeline": "tpdm.pipelines.attach",
    "FixedSchedule": "tpdm.policies.fixed",
    "Policy": "tpdm.core.types",
    "TimePredictionModule": "tpdm.policies.tpm",
    "TpdmError": "tpdm.core.errors",
    "attach": "tpdm.pipelines.attach",
    "compile_denoiser": "tpdm.pipelines.feature_hooks",
    "evaluate": "tpdm.evaluation.evaluate",
    "load_pipeline": "tpdm.pipelines.loading.load",
    "load_policy": "tpdm.policies.pretrained",
    "load_recipe": "tpdm.config.loader",
    "load_reward": "tpdm.rewards.loading",
    "train": "tpdm.training.train",
}
# Names of version 0.1, read for one more version.
_RENAMED = {"FixedTimes": "FixedSchedule", "TimePredictor": "TimePredictionModule"}

__all__ = [
    "AdaptiveOutput",
    "AdaptivePipeline",
    "FixedSchedule",
    "Policy",
    "TimePredictionModule",
    "TpdmError",
    "attach",
    "compile_denoiser",
    "evaluate",
    "load_pipeline",
    "load_policy",
    "load_recipe",
    "load_reward",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("tpdm")
    if name in _RENAMED:
        import warnings

        warnings.warn(f"tpdm.{name} is now tpdm.{_RENAMED[name]}; use that.", FutureWarning, stacklevel=2)
        return __getattr__(_RENAMED[name])
    if name not in _HOMES:
        raise AttributeError(f"module 'tpdm' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
