"""What is known of a TPM: its own config, and the run and the evaluation that lie around its folder."""

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
    """A TPM and where it comes from.

    Attributes:
        config: its own.
        recipe: of its run; None where the folder lies in no run.
        metrics: rows of the run's metrics.jsonl up to this TPM; empty where there are none.
        evaluation: summary.json of this very TPM; None where there is none.
    """

    config: PretrainedConfig
    recipe: Recipe | None
    metrics: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any] | None


def read_provenance(folder: Path) -> RunProvenance:
    """Reads the config of ``folder``, and ``../recipe.yaml``, ``../metrics.jsonl`` and the evaluation where they are.

    Raises:
        CheckpointError: the config cannot be read.
        ConfigError, TrainingError: the run beside it is damaged.
    """
    config = read_config(folder)
    run = folder.resolve().parent
    if not (run / "recipe.yaml").is_file() or not (run / "metrics.jsonl").is_file():
        return RunProvenance(config, None, [], None)
    made = config.trained.get("update")
    rows = [row for row in read_metrics(run / "metrics.jsonl") if made is None or row["update"] <= made]
    return RunProvenance(config, load_recipe(run / "recipe.yaml"), rows, _evaluation(run, config))


def _evaluation(run: Path, config: PretrainedConfig) -> Mapping[str, Any] | None:
    """The summary of ``tpdm eval`` (in the run) or of ``tpdm demo`` (above it), where it is of this TPM."""
    return next(
        (summary for above in (run / "eval", run.parent) if (summary := _summary_of(config, above / "summary.json"))),
        None,
    )


def _summary_of(config: PretrainedConfig, path: Path) -> dict[str, Any] | None:
    """The summary in a file, where it is one and of this TPM."""
    try:
        summary = dict(json.loads(path.read_text(encoding="utf-8")))
        made = (summary["best_update"], summary["seeds"]["training"])
        # An evaluation is of best/: after more training, or for last/, it speaks of another TPM.
        return summary if summary["rows"] and made == (config.trained["update"], config.trained["seed"]) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
