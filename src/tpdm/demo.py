"""``tpdm demo``: train a TPM on the embedded model, compare it with fixed schedules, write a report."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from dataclasses import replace
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tpdm.artefact import load_policy
from tpdm.config import Recipe, load_recipe
from tpdm.evals.compare import (
    Result,
    Task,
    best_shift,
    default_schedule,
    difficulty,
    mean_schedule,
    run_policy,
    shuffled_schedules,
)
from tpdm.evals.judge import TinyworldJudge
from tpdm.evals.report import write_report
from tpdm.evals.statistics import paired_bootstrap, spearman
from tpdm.files import write_atomically, write_json, write_text
from tpdm.pipelines.load import load_pipeline
from tpdm.prompts import load_source, split_by_hash
from tpdm.rewards.load import load_reward
from tpdm.rollout import derive_seed
from tpdm.train.run import pipeline_arguments, train

TEST_PROMPTS = 256
TUNING_PROMPTS = 64  # held out too, but not those of the test: the best shift is chosen on them
DIFFICULTY_GRID = (3, 4, 5, 6, 7, 8, 10, 12, 14, 17, 20, 24, 28)
DIFFICULTY_MARGIN = 0.02  # of a score between about 0 and 1
TEST_STREAM = 5  # seeds of the test's noise


def demo_recipe(out: Path, seed: int) -> Recipe:
    """The shipped tinyworld recipe, with its run in ``out/train``."""
    path = Path(str(resources.files("tpdm") / "recipes" / "tinyworld.yaml"))
    return replace(load_recipe(path), output=str(out / "train"), seed=seed)


def run_demo(out: Path = Path("runs/demo"), seed: int = 0) -> Path:
    """Trains (or resumes), evaluates on held-out prompts, and writes ``report.html`` and ``summary.json``.

    Args:
        out: folder of the run.
        seed: of training; the test prompts and their noise stay the same.

    Returns:
        The report.
    """
    began = time.monotonic()
    recipe = demo_recipe(out, seed)
    artefact = train(recipe)
    tuning, test = demo_tasks(recipe)
    policy = load_policy(artefact)
    shift, shift_scores = best_shift(tuning, 14)
    print(f"best shift of a fixed grid of 14: {shift} (scores {shift_scores})")
    results = compare_all(test, tuning, policy, shift, recipe.sampling.max_steps)
    needed, grid = difficulty(test, shift, DIFFICULTY_GRID, DIFFICULTY_MARGIN)
    save_results(out, results)
    run = json.loads((out / "train" / "run.json").read_text(encoding="utf-8"))
    summary = summarise(results, needed)
    summary["best_shift"] = {"shift": shift, "scores": {str(k): v for k, v in shift_scores.items()}}
    summary["fixed_grid"] = [[r.name, float(r.column("score").mean())] for r in grid]
    summary |= {
        "train_seconds": run["train_seconds"],
        "total_seconds": round(time.monotonic() - began, 1),
        "best_update": run["best_update"],
        "seeds": {"training": seed, "test_noise": [TEST_STREAM, "index"]},
        **provenance(),
        "command": f"tpdm demo --out {out} --seed {seed}",
    }
    write_json(out / "summary.json", summary)
    report = write_report(out, "tpdm demo on tinyworld")
    for row in summary["rows"]:
        print(
            "{name:26s} steps {steps_mean:5.2f}  reward {reward_mean:.4f}  accuracy {accuracy:.3f}".format(
                **row
            )
        )
    print(f"report: {report}")
    return report


def demo_tasks(recipe: Recipe) -> tuple[Task, Task]:
    """Tuning and test tasks on held-out prompts that validation does not use."""
    _, held_out = split_by_hash(
        load_source(recipe.prompts.source, recipe.prompts.column, recipe.prompts.limit),
        recipe.prompts.held_out_fraction,
    )
    fresh = [p.text for p in held_out[recipe.validation.prompts :]]
    pipe = load_pipeline(recipe.backbone.name_or_path, recipe.backbone.dtype, recipe.backbone.device)
    pipe.set_progress_bar_config(disable=True)
    task = Task(
        prompts=fresh[:TUNING_PROMPTS],
        seeds=[derive_seed(TEST_STREAM, 1, i) for i in range(TUNING_PROMPTS)],
        pipe=pipe,
        arguments=pipeline_arguments(recipe),
        reward=load_reward(recipe.reward.name),
        judge=TinyworldJudge(),
        solver=recipe.sampling.solver,
        stop_below=recipe.sampling.stop_below,
    )
    test = replace(
        task,
        prompts=fresh[TUNING_PROMPTS : TUNING_PROMPTS + TEST_PROMPTS],
        seeds=[derive_seed(TEST_STREAM, 0, i) for i in range(TEST_PROMPTS)],
    )
    return tuning, test


def compare_all(test: Task, tuning: Task, policy: Any, shift: float, max_steps: int) -> list[Result]:
    """The TPM, the default schedules, the best fixed grids, and its own schedules without looking at the image."""
    from tpdm.core.paths import shifted
    from tpdm.schedules import FixedTimes

    tpdm = run_policy("tpdm", policy, test, max_steps)
    own_mean = mean_schedule(run_policy("tpdm (tuning)", policy, tuning, max_steps))
    equal = max(1, round(float(tpdm.column("steps").mean())))
    fixed = {
        "static-28": default_schedule(test.pipe, 28),
        "static-14": default_schedule(test.pipe, 14),
        "static-10": default_schedule(test.pipe, 10),
        "static-14 (best shift)": FixedTimes(shifted(14, shift).tolist()),
        "static-10 (best shift)": FixedTimes(shifted(10, shift).tolist()),
        f"static-{equal} (best shift, equal steps)": FixedTimes(shifted(equal, shift).tolist()),
        "mean schedule of tpdm": own_mean,
        "shuffled schedules of tpdm": shuffled_schedules(tpdm),
    }
    return [tpdm, *(run_policy(name, schedule, test) for name, schedule in fixed.items())]


def summarise(results: list[Result], needed: np.ndarray) -> dict[str, Any]:
    """The numbers of ``summary.json``."""
    tpdm = results[0]
    steps, objects = tpdm.column("steps"), tpdm.column("objects")
    # Undefined where one of the two does not vary at all.
    rho, low, high = spearman(needed, steps) or (None, None, None)
    return {
        "rows": [
            {
                "name": r.name,
                "steps_mean": float(r.column("steps").mean()),
                "steps_sd": float(r.column("steps").std()),
                "reward_mean": float(r.column("score").mean()),
                "accuracy": float(r.column("accuracy").mean()),
                "residual": float(r.column("residual").mean()),
            }
            for r in results
        ],
        "paired": {
            other.name: {
                label: list(paired_bootstrap(tpdm.column(key) - other.column(key)))
                for label, key in (("reward", "score"), ("accuracy", "accuracy"), ("residual", "residual"))
            }
            for other in results[1:]
        },
        "steps_by_objects": {
            str(int(n)): {
                "mean": float(steps[objects == n].mean()),
                "sd": float(steps[objects == n].std()),
                "count": int((objects == n).sum()),
                "difficulty": float(needed[objects == n].mean()),
            }
            for n in sorted(set(objects))
        },
        "steps_vs_difficulty": {
            "correlation": rho,
            "low": low,
            "high": high,
            "margin": DIFFICULTY_MARGIN,
            "grid": list(DIFFICULTY_GRID),
        },
        "difficulty": [[int(d), int(s)] for d, s in zip(needed, steps, strict=True)],
    }


def save_results(out: Path, results: list[Result]) -> None:
    """results.jsonl and one PNG per policy and image."""
    rows = [json.dumps(row) for r in results for row in r.rows]
    write_text(out / "results.jsonl", "\n".join(rows) + "\n")
    for r in results:
        folder = out / "pictures" / r.name
        for i, image in enumerate(r.images_BHWC):
            picture = Image.fromarray(image)
            write_atomically(
                folder / f"{i:04d}.png", lambda p, picture=picture: picture.save(p, format="PNG")
            )


def provenance() -> dict[str, Any]:
    """Versions, git revision and hardware of this run."""
    here = Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return {
        "versions": {n: version(n) for n in ("tpdm", "torch", "diffusers", "transformers")}
        | {"python": platform.python_version()},
        "git_revision": git.stdout.strip() or None,
        "hardware": f"{torch.get_num_threads()} CPU threads, {platform.machine()}",
    }
