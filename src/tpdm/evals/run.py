"""``tpdm eval``: a trained TPM beside fixed schedules, on held-out prompts and the same noise."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import time
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tpdm.artefact import load_policy
from tpdm.config import recipe_hash
from tpdm.core.paths import shifted
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
from tpdm.evals.summary import summarise
from tpdm.files import write_atomically, write_json, write_text
from tpdm.pipelines.load import choose_device, load_pipeline, pipeline_arguments
from tpdm.policy import TimePredictor
from tpdm.prompts import load_source, split_by_hash
from tpdm.recipe import Recipe
from tpdm.rewards.composite import run_reward
from tpdm.rewards.load import recipe_reward
from tpdm.rollout import derive_seed
from tpdm.schedules import FixedTimes
from tpdm.types import PromptError

TEST_PROMPTS = 960
TUNING_PROMPTS = 96  # held out too, but not those of the test: the best shift is chosen on them
DIFFICULTY_PROMPTS = 256  # of the test, the first
DIFFICULTY_GRID = (3, 4, 5, 6, 8, 10, 14, 20, 28)
DIFFICULTY_SHARE = 0.1  # margin, as a share of the mean range of an image's scores over the grid
TEST_STREAM = 5  # seeds of the test's noise


def evaluate(recipe: Recipe, out: Path | None = None) -> dict[str, Any]:
    """Evaluates ``output/best`` of a trained recipe and writes results, pictures, summary and report.

    Args:
        recipe: that was trained.
        out: folder for the results; ``output/eval`` if not given.

    Returns:
        The summary.

    Raises:
        ArtefactError: the recipe has not been trained.
        PromptError: too few held-out prompts.
    """
    began = time.monotonic()
    run = Path(recipe.output)
    out = out or run / "eval"
    policy = load_policy(run / "best")
    tuning, test = make_tasks(recipe)
    shift, shift_scores = best_shift(tuning, 14)
    results = compare_all(test, tuning, policy, shift)
    needed_B, margin, fixed = difficulty(test.first(DIFFICULTY_PROMPTS), shift, DIFFICULTY_GRID, DIFFICULTY_SHARE)
    _save(out, results, run / "metrics.jsonl")
    summary = summarise(results, needed_B, margin, DIFFICULTY_GRID)
    summary |= {
        "best_shift": {"shift": shift, "scores": {str(k): v for k, v in shift_scores.items()}},
        "fixed_grid": [[r.name, float(r.column("score").mean())] for r in fixed],
        "eval_seconds": round(time.monotonic() - began, 1),
        "seeds": {"training": recipe.seed, "test_noise_stream": TEST_STREAM},
        **json.loads((run / "run.json").read_text(encoding="utf-8")),
        **provenance(recipe),
    }
    write_json(out / "summary.json", summary)
    write_report(out, f"tpdm on {recipe.backbone.name_or_path}")
    return summary


def make_tasks(recipe: Recipe, test_prompts: int | None = None) -> tuple[Task, Task]:
    """Tuning and test tasks on held-out prompts that validation does not use.

    Args:
        recipe: of the training.
        test_prompts: at most so many in the test; ``TEST_PROMPTS`` if not given.
    """
    p = recipe.prompts
    source = load_source(p.source, p.column, p.limit, p.negative, p.subset, p.split)
    _, held_out = split_by_hash(source, p.held_out_fraction)
    fresh = held_out[recipe.validation.prompts :]
    # As in training: where any prompt has a negative one, the others have an empty one.
    negatives = [p.negative or "" for p in fresh] if any(p.negative for p in source) else None
    if len(fresh) < TUNING_PROMPTS + 2:
        raise PromptError(
            f"got {len(fresh)} held-out prompts beside those of validation, expected at least {TUNING_PROMPTS + 2}; "
            "add prompts, raise prompts.held_out_fraction or lower validation.prompts"
        )
    device = choose_device() if recipe.backbone.device == "auto" else recipe.backbone.device
    pipe = load_pipeline(recipe.backbone.name_or_path, recipe.backbone.dtype, device)
    pipe.set_progress_bar_config(disable=True)
    reward = run_reward(recipe_reward(recipe.reward, device), Path(recipe.output))
    tuning = Task(
        prompts=[p.text for p in fresh[:TUNING_PROMPTS]],
        seeds=[derive_seed(TEST_STREAM, 1, i) for i in range(TUNING_PROMPTS)],
        pipe=pipe,
        arguments=pipeline_arguments(recipe.backbone),
        reward=reward,
        judge=TinyworldJudge() if recipe.prompts.source == "tinyworld" else None,
        solver=recipe.sampling.solver,
        max_steps=recipe.sampling.max_steps,
        stop_below=recipe.sampling.stop_below,
        negatives=None if negatives is None else negatives[:TUNING_PROMPTS],
    )
    asked = slice(TUNING_PROMPTS, TUNING_PROMPTS + (test_prompts or TEST_PROMPTS))
    prompts = [p.text for p in fresh[asked]]
    return tuning, replace(
        tuning,
        prompts=prompts,
        seeds=[derive_seed(TEST_STREAM, 0, i) for i in range(len(prompts))],
        negatives=None if negatives is None else negatives[asked],
    )


def compare_all(test: Task, tuning: Task, policy: TimePredictor, shift: float) -> list[Result]:
    """The TPM, the default schedules, the best fixed grids, and its own schedules without looking at the image."""
    tpdm = run_policy("tpdm", policy, test)
    own_mean = mean_schedule(run_policy("tpdm (tuning)", policy, tuning))
    equal = max(1, round(float(tpdm.column("steps").mean())))
    fixed = {
        "static-28": default_schedule(test.pipe, 28, test.arguments),
        "static-14": default_schedule(test.pipe, 14, test.arguments),
        "static-10": default_schedule(test.pipe, 10, test.arguments),
        "static-14 (best shift)": FixedTimes(shifted(14, shift).tolist()),
        "static-10 (best shift)": FixedTimes(shifted(10, shift).tolist()),
        f"static-{equal} (best shift, equal steps)": FixedTimes(shifted(equal, shift).tolist()),
        "mean schedule of tpdm": own_mean,
        "shuffled schedules of tpdm": shuffled_schedules(tpdm),
    }
    return [tpdm, *(run_policy(name, schedule, test) for name, schedule in fixed.items())]


def _save(out: Path, results: list[Result], metrics: Path) -> None:
    """results.jsonl, one PNG per policy and image, and the training curves where the report looks for them."""
    rows = [json.dumps(row) for r in results for row in r.rows]
    write_text(out / "results.jsonl", "\n".join(rows) + "\n")
    for r in results:
        for i, image in enumerate(r.images_BHWC):
            save_png = partial(Image.fromarray(image).save, format="PNG")
            write_atomically(out / "pictures" / r.name / f"{i:04d}.png", save_png)
    curves = out / "train" / "metrics.jsonl"
    if metrics.exists() and metrics.resolve() != curves.resolve():
        write_atomically(curves, lambda p: shutil.copyfile(metrics, p))


def provenance(recipe: Recipe) -> dict[str, Any]:
    """Versions, git revision, recipe and hardware of this run."""
    here = Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    packages = ("tpdm", "torch", "diffusers", "transformers")
    return {
        "versions": {"python": platform.python_version(), **{n: version(n) for n in packages}},
        "git_revision": git.stdout.strip() or None,
        "recipe_hash": recipe_hash(recipe),
        "hardware": f"{torch.get_num_threads()} CPU threads, {platform.machine()}",
    }
