"""Which choices of the training matter: one change at a time, several seeds, learning curves.

Every run is the recipe tinyworld.yaml with 80 updates and the changes of one variant. The other variants of an axis are
compared with its first one, seed by seed. A training that several axes share is done once. Runs resume where they
stopped. With --axes noise --print a process may take each axis.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.ablations_page import draw_curves, section
from benchmarks.quality.comparison import as_rows, column
from benchmarks.quality.experiments import EXPERIMENTS
from benchmarks.quality.trainings import recipe_of, trained, training_hash
from tpdm.config.data import RewardConfig
from tpdm.config.recipe import Recipe
from tpdm.core.io import read_metrics, write_json, write_text
from tpdm.evaluation.result_store import Store
from tpdm.evaluation.runner import evaluate_policy
from tpdm.evaluation.summary import provenance
from tpdm.evaluation.tasks import fingerprint, learned_fingerprint, make_tasks
from tpdm.policies.pretrained import load_policy
from tpdm.training.objective import discounted_reward

EXPERIMENT = EXPERIMENTS["ablations"]
PUBLISHED_START = ("tpm.init_steps=null", "tpm.init_shift=null")  # equal ratios, the only start of the release layout
GUIDED = ("backbone.guidance_scale=3",)
AXES: dict[str, dict[str, Sequence[str]]] = {
    "noise": {"shared": (), "independent": ("rl.noise=independent",)},
    "group": {
        "24 prompts x 4": (),
        "48 prompts x 2": ("rl.prompts_per_update=48", "rl.samples_per_prompt=2"),
        "12 prompts x 8": ("rl.prompts_per_update=12", "rl.samples_per_prompt=8"),
    },
    "advantages": {"batch": (), **{name: (f"rl.normalize_advantages={name}",) for name in ("none", "group")}},
    "reward": {"discounted": (), "additive": ("reward.form=additive", "reward.step_cost=0.00075")},
    "ratio": {"trajectory": (), "decision": ("rl.ratio=decision",)},
    "features": {"conditional": GUIDED, "guided": (*GUIDED, "tpm.features=guided")},
    "layout": {"pooled": PUBLISHED_START, "release": (*PUBLISHED_START, "tpm.layout=release")},
    "maps": {"first and last": (), "last": ("tpm.feature_maps=last",)},
    "start": {"18 uniform steps": (), "equal ratios": PUBLISHED_START},
    "change": {"unseen": (), "seen": ("tpm.velocity_change=true",)},
    "eyes": {"features": (), "time only": ("tpm.time_only=true",)},
    "solver": {"euler": (), **{name: (f"sampling.solver={name}",) for name in ("ab2", "dpmpp_2m")}},
    "entropy": {"none": (), "0.002": ("rl.entropy_weight=0.002",)},
    "average": {"0.95": (), "none": ("optimizer.ema_decay=0",)},
}


def recipe_for(changes: Sequence[str], seed: int, place: Path) -> Recipe:
    """The recipe of a variant. Its folder is named by the hash of the training, so that axes share it."""
    recipe = recipe_of("ablation", place, seed, changes, EXPERIMENT.recipe)
    return replace(recipe, output=str(place / training_hash(recipe)))


def objective(score: float, steps: float, reward: RewardConfig) -> float:
    """Eq. (9) of the means, in every variant: also where the reward has another form."""
    return float(discounted_reward(torch.tensor(score), torch.tensor(steps), reward.gamma, reward.offset))


def run(axis: str, name: str, recipe: Recipe, changes: Sequence[str]) -> dict[str, Any]:
    """Trains unless that was done before; returns the validations as a curve over trajectories."""
    rows = [r for r in read_metrics(Path(trained(recipe).output) / "metrics.jsonl") if r["kind"] == "validation"]
    per_update = recipe.rl.prompts_per_update * recipe.rl.samples_per_prompt
    curve = [
        {
            "trajectories": r["update"] * per_update,
            "objective": objective(r["score_mean"], r["steps_mean"], recipe.reward),
            "score": r["score_mean"],
            "steps": r["steps_mean"],
        }
        for r in rows
    ]
    where = {
        "axis": axis,
        "variant": name,
        "seed": recipe.seed,
        "gamma": recipe.reward.gamma,
        "prompts": recipe.validation.prompts,
        "changes": list(changes),
    }
    return {**where, "curve": curve, "test": training_hash(recipe), **provenance(recipe)}


def judged(recipe: Recipe, kept: Path) -> None:
    """Writes steps and score of the last TPM on prompts that no validation saw to ``kept``."""
    path = kept / f"{training_hash(recipe)}.json"
    if path.exists() and len(json.loads(path.read_text(encoding="utf-8"))["steps"]) == recipe.evaluation.prompts:
        return
    tuning, test = make_tasks(recipe)
    depends = {**fingerprint(recipe, tuning, test), **learned_fingerprint(recipe, "last")}
    store = Store(Path(recipe.output) / "eval-last", depends)
    rows = evaluate_policy("tpdm", load_policy(Path(recipe.output) / "last"), test, store).rows
    columns = {key: column(rows, key).round(5).tolist() for key in ("steps", "score")}
    write_text(path, json.dumps({**columns, **provenance(recipe)}) + "\n")  # 2,000 numbers in one line


def tested(name: str, kept: Path) -> list[dict[str, Any]]:
    """Rows of a test that ``judged`` has kept."""
    return as_rows(json.loads((kept / f"{name}.json").read_text(encoding="utf-8")), ("steps", "score"))


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))


def measure(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    runs = json.loads(chosen.file.read_text(encoding="utf-8")) if chosen.file.exists() else []
    done = {(r["axis"], r["variant"], r["seed"]) for r in runs}
    cases = [(axis, *variant, seed) for seed in chosen.seeds for axis in chosen.axes for variant in AXES[axis].items()]
    for axis, name, changes, seed in cases:
        if (axis, name, seed) not in done:
            every = [*EXPERIMENT.overrides, *changes, *chosen.set]
            recipe = recipe_for(every, seed, chosen.runs)
            runs.append(run(axis, name, recipe, every))
            judged(recipe, chosen.file.parent / "ablations")
            if not chosen.print:
                write_json(chosen.file, runs)  # after each: a failure loses one training
    return runs


def sections(runs: list[dict[str, Any]], folder: Path) -> dict[str, str]:
    tests = {name: tested(name, folder / "ablations") for name in {run["test"] for run in runs}}
    return {EXPERIMENT.section: section([{**run, "rows": tests[run["test"]]} for run in runs], AXES)}


def draw(runs: list[dict[str, Any]], chosen: argparse.Namespace) -> None:
    draw_curves(runs, AXES, chosen.picture)
