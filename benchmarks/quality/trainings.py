"""Trainings of the experiments: done once, kept by the hash of their recipe, resumed where they stopped."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.command import RECIPES
from benchmarks.quality import trained_tpms
from benchmarks.quality.experiments import CONDITIONED, Experiment
from tpdm.config.loader import load_recipe
from tpdm.config.recipe import EvaluationConfig, Recipe
from tpdm.config.renamed import with_first_names
from tpdm.training.train import train

# A schedule without features takes about five steps at gamma .99: fewer gammas leave more images for each.
FIXED = ("tpm.time_only=true", "reward.gamma_range=[0.99, 0.99995]", "tpm.init_steps_low_gamma=5")


def recipe_of(name: str, place: Path, seed: int, changes: Sequence[str], base: str) -> Recipe:
    """A shipped recipe with a name, an output folder, a seed and changes."""
    return load_recipe(RECIPES / f"{base}.yaml", [f"name={name}", f"output={place}", f"seed={seed}", *changes])


def trained(recipe: Recipe, kept: bool = False) -> Recipe:
    """The recipe, after its training if that was not done before, here or in the folder of ``trained_tpms``.

    Args:
        recipe: What to train; its output is the folder of the run.
        kept: Whether the result is copied to the folder of ``trained_tpms``, too.
    """
    run = Path(recipe.output)
    if not (run / "run.json").exists() and not trained_tpms.fetch(training_hash(recipe), run):
        train(recipe)
    if kept:
        trained_tpms.keep(training_hash(recipe), run, training_changes(recipe))
    return recipe


def training_hash(recipe: Recipe) -> str:
    """Hash of what a training depends on: without its folder, and without what is done with the TPM afterwards.

    Default values are left out, so that a new key of recipes, whose default is the behavior before it, changes no hash.
    Keys have their names of version 0.1, under which the kept results were hashed.
    """
    return hashlib.sha256(json.dumps(training_changes(recipe), sort_keys=True).encode()).hexdigest()[:12]


def training_changes(recipe: Recipe) -> dict[str, Any]:
    """The values that a training depends on, without defaults."""
    backbone = replace(recipe.backbone, device="auto")
    changed = replace(recipe, name="any", output="any", trackers=(), backbone=backbone, evaluation=EvaluationConfig())
    return with_first_names(_chosen(changed))


def _chosen(part: Any) -> dict[str, Any]:
    """The values of a part of a recipe that are not its defaults."""
    values = {f.name: (getattr(part, f.name), _default(f)) for f in fields(part)}
    found = {name: _chosen(value) if is_dataclass(value) else value for name, (value, _) in values.items()}
    return {name: value for name, value in found.items() if value not in (values[name][1], {})}


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def train_seeds(experiment: Experiment, chosen: argparse.Namespace) -> list[Recipe]:
    """The recipe of every seed of an experiment, trained."""
    changes = [*experiment.overrides, *chosen.set]
    return [
        trained(recipe_of(f"seed-{seed}", chosen.runs / f"seed-{seed}", seed, changes, experiment.recipe), chosen.keep)
        for seed in chosen.seeds
    ]


def conditioned_recipe(folder: Path, seed: int, changes: Sequence[str]) -> Recipe:
    """The gamma-conditioned TPM of ``frontier``."""
    return recipe_of("tpm", folder / f"seed-{seed}" / "tpm", seed, changes, CONDITIONED)


def fixed_recipe(folder: Path, seed: int, changes: Sequence[str]) -> Recipe:
    """The TPM of ``frontier`` that sees only the time: the best fixed schedules that the same training finds."""
    return recipe_of("fixed", folder / f"seed-{seed}" / "fixed", seed, [*changes, *FIXED], CONDITIONED)
