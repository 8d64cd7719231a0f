"""Provenance of a TPM: its config, and the run and the evaluation next to its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpdm.config.loader import load_recipe
from tpdm.config.recipe import Recipe
from tpdm.core.io import read_metrics
from tpdm.policies.pretrained import read_config
from tpdm.policies.pretrained_config import PretrainedConfig


@dataclass(frozen=True)
class RunProvenance:
    """Config of a TPM, with its run and its evaluation.

    Attributes:
        config: Config of the TPM.
        recipe: Recipe of its run. None if the folder is not inside a run.
        metrics: Rows of the run's metrics.jsonl up to this TPM. Empty if there are none.
        evaluation: summary.json of this TPM. None if it was not evaluated.
    """

    config: PretrainedConfig
    recipe: Recipe | None
    metrics: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any] | None


def read_provenance(folder: Path) -> RunProvenance:
    """Read the config of a TPM, and ``../recipe.yaml``, ``../metrics.jsonl`` and the evaluation if they exist.

    Args:
        folder: Folder of the TPM.

    Raises:
        CheckpointError: The config cannot be read.
        ConfigError: The recipe of the run cannot be read.
        TrainingError: The metrics of the run are damaged.
    """
    config = read_config(folder)
    run = folder.resolve().parent
    if not (run / "recipe.yaml").is_file() or not (run / "metrics.jsonl").is_file():
        return RunProvenance(config, None, [], None)
    update = config.trained.get("update")
    rows = [row for row in read_metrics(run / "metrics.jsonl") if update is None or row["update"] <= update]
    return RunProvenance(config, load_recipe(run / "recipe.yaml"), rows, _evaluation(run, config))


def _evaluation(run: Path, config: PretrainedConfig) -> Mapping[str, Any] | None:
    """The summary of ``tpdm eval`` (in the run) or of ``tpdm demo`` (above it), if it is about this TPM."""
    return next(
        (summary for above in (run / "eval", run.parent) if (summary := _summary_of(config, above / "summary.json"))),
        None,
    )


def _summary_of(config: PretrainedConfig, path: Path) -> dict[str, Any] | None:
    """The summary in a file, if it is valid and about this TPM."""
    try:
        summary = dict(json.loads(path.read_text(encoding="utf-8")))
        evaluated = (summary["best_update"], summary["seeds"]["training"])
        # An evaluation is about best/. After more training, or for last/, it is about another TPM.
        return summary if summary["rows"] and evaluated == (config.trained["update"], config.trained["seed"]) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
