"""``tpdm eval``: compares a trained TPM with baselines on held-out prompts and the same initial noise."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tpdm.config.recipe import Recipe
from tpdm.config.unused_keys import warn_unused_keys
from tpdm.core.errors import CheckpointError, ConfigError
from tpdm.core.io import expand, write_atomically, write_json, write_text
from tpdm.core.seeding import Stream
from tpdm.evaluation.baselines import difficulty
from tpdm.evaluation.comparison import FIRST_ORDER, BaselineComparison
from tpdm.evaluation.distribution import Extractor, check_enough, distribution_summary, folder_features, load_extractor
from tpdm.evaluation.oracle import allocation, at_steps
from tpdm.evaluation.report.build import write_report
from tpdm.evaluation.result_store import Store
from tpdm.evaluation.runner import EvalResult
from tpdm.evaluation.summary import point_summary, provenance, summarize
from tpdm.evaluation.tasks import check_no_leakage, fingerprint, learned_fingerprint, make_tasks, run_device
from tpdm.policies.pretrained import load_policy

DIFFICULTY_SHARE = 0.1  # margin, as a share of the mean range of an image's scores over the grid
DEFAULTS = (28, 14, 10)  # steps of the pipeline's own schedule that a TPM is compared with


def evaluate(recipe: Recipe, out: Path | None = None) -> dict[str, Any]:
    """Evaluate ``output/best`` of a trained recipe and write results, images, summary and report.

    An interrupted evaluation continues when it is called again. Finished rows are kept.

    Args:
        recipe: Recipe of the training.
        out: Folder for the results. Default: ``output/eval``.

    Returns:
        The content of summary.json.

    Raises:
        CheckpointError: If the recipe has not been trained.
        PromptError: If there are too few held-out prompts.
        ConfigError: If ``evaluation.tuned_baseline`` is not a time-only TPM, if ``evaluation.baseline_cache``
            contains the results of another evaluation, if ``evaluation.reference`` is not a folder, or if the TPM was
            trained on some of the prompts.

    Example:
        >>> from tpdm.config.loader import load_recipe
        >>> recipe = load_recipe("recipes/tinyworld.yaml", ["name=first"])  # doctest: +SKIP
        >>> evaluate(recipe)["images"]  # doctest: +SKIP
        1000
    """
    began = time.monotonic()
    run, wanted = Path(recipe.output), recipe.evaluation
    out = expand(out) if out else run / "eval"
    if not (run / "best").is_dir():
        raise CheckpointError(
            f"output is {run}, which contains no trained TPM. It must be in {run / 'best'}. Train it first."
        )
    if wanted.reference and not Path(wanted.reference).is_dir():
        raise ConfigError(
            f"evaluation.reference is {wanted.reference}, which is not a folder. It must be a folder of images. "
            "Correct it."
        )
    warn_unused_keys(recipe, "evaluation.")
    policy = load_policy(run / "best").to(run_device(recipe))
    tuned = load_policy(wanted.tuned_baseline) if wanted.tuned_baseline else None
    tuning, test = make_tasks(recipe)
    check_no_leakage(recipe, tuning, test)
    ruler = _load_reference_features(recipe, len(test.prompts))  # fails before any image is generated
    common = fingerprint(recipe, tuning, test)
    store = Store(out, {**common, **learned_fingerprint(recipe)})
    baselines = Store(Path(wanted.baseline_cache), common, shared=True) if wanted.baseline_cache else store
    match = BaselineComparison(test, tuning, policy, tuned, store, baselines)
    results = compare_all(match)
    points = [] if policy.shape.gamma_range is None else gamma_points(match, wanted.gamma_points)
    grid = [match.best_grid(n, test.first(wanted.step_grid_prompts)) for n in wanted.step_grid]
    needed_B, margin = difficulty(grid, wanted.step_grid, DIFFICULTY_SHARE)
    summary = summarize(results, needed_B, margin, wanted.step_grid)
    summary |= {
        "points": [{"quality": p.quality, "gamma": p.gamma, **point_summary(*p.results)} for p in points],
        "oracle": oracle_gap(grid, results[0]),
        "grids": match.chosen,
        "fixed_grid": [[f"fixed {r.rows[0]['steps']}", float(r.column("score").mean())] for r in grid],
        "eval_seconds": round(time.monotonic() - began, 1),
        "seeds": {"training": recipe.seed, "test_noise_stream": int(Stream.TEST)},
        **json.loads((run / "run.json").read_text(encoding="utf-8")),
        **provenance(recipe),
    }
    if ruler is not None:
        summary["distribution"] = _distribution(recipe, out, results, test.prompts, *ruler)
    _save(out, results, points, run / "metrics.jsonl")
    write_json(out / "summary.json", summary)
    write_report(out, f"tpdm on {recipe.backbone.name_or_path}")
    return summary


def compare_all(match: BaselineComparison) -> list[EvalResult]:
    """Evaluate the TPM at its own gamma, the pipeline's own schedule, and every baseline at the TPM's mean steps."""
    tpdm = match.learned("tpdm")
    steps = float(tpdm.column("steps").mean())
    shown = [tpdm, *(match.default(n) for n in DEFAULTS)]
    if match.test.solver != FIRST_ORDER:
        shown.append(match.default_first_order(DEFAULTS[0]))
    return [*shown, *match.baselines_at_nfe(steps), *match.ablation_baselines(tpdm)]


@dataclass(frozen=True)
class Point:
    """A gamma-conditioned TPM at one quality, and fixed schedules at its mean number of steps.

    Attributes:
        quality: Quality setting in [0, 1].
        gamma: Gamma at that quality.
        results: Result of the TPM, and results of the baselines.
    """

    quality: float
    gamma: float
    results: tuple[EvalResult, list[EvalResult]]


def gamma_points(match: BaselineComparison, count: int) -> list[Point]:
    """Evaluate the TPM and its baselines at ``count`` values of quality from 0 to 1."""
    points = []
    for i in range(count):
        quality = i / (count - 1)
        gamma = match.gamma(quality)
        learned = match.learned(f"tpdm, quality {quality:g}", gamma)
        baselines = match.baselines_at_nfe(float(learned.column("steps").mean()))
        points.append(Point(quality, gamma, (learned, baselines)))
    return points


def oracle_gap(grid: Sequence[EvalResult], tpdm: EvalResult) -> dict[str, Any] | None:
    """Compare the TPM with an oracle that selects the best fixed schedule for each image.

    Returns:
        Scores at the TPM's mean steps. ``share`` is the part of the oracle's gain over a fixed schedule that the TPM
        reaches, or None if there is no gain. The result is None if the TPM's steps are outside the grid.
    """
    score_NB = np.stack([r.column("score") for r in grid])
    steps_N = [int(r.rows[0]["steps"]) for r in grid]
    images = score_NB.shape[1]
    steps = float(tpdm.column("steps")[:images].mean())
    if not steps_N[0] <= steps <= steps_N[-1]:
        return None
    best = at_steps(allocation(score_NB, steps_N), steps)
    fixed = float(np.interp(steps, steps_N, score_NB.mean(axis=1)))
    reached = float(tpdm.column("score")[:images].mean())
    return {
        "images": images,
        "steps": steps,
        "oracle": best,
        "fixed": fixed,
        "tpdm": reached,
        "share": (reached - fixed) / (best - fixed) if best > fixed else None,
        "curve": allocation(score_NB, steps_N),
    }


def _load_reference_features(recipe: Recipe, images: int) -> tuple[Extractor, Tensor | None] | None:
    """Load the feature extractor, and the features of the reference images if there are any."""
    wanted = recipe.evaluation
    if not wanted.features:
        return None
    check_enough(images)
    extract = load_extractor(wanted.features, run_device(recipe))
    if not wanted.reference:
        return extract, None
    reference_NF = folder_features(Path(wanted.reference), extract, recipe.reward.batch)
    check_enough(len(reference_NF))
    return extract, reference_NF


def _distribution(
    recipe: Recipe,
    out: Path,
    results: Sequence[EvalResult],
    prompts: Sequence[str],
    extract: Extractor,
    reference_NF: Tensor | None,
) -> dict[str, Any]:
    """Return distances and diversity of the policies whose images are stored."""
    batch = recipe.reward.batch
    names = [r.name for r in results if (out / "pictures" / r.name).is_dir()]
    features = {name: folder_features(out / "pictures" / name, extract, batch) for name in names}
    if reference_NF is not None:
        return distribution_summary(reference_NF, features, prompts)
    own = f"static-{DEFAULTS[0]}"
    found = distribution_summary(features[own], features, prompts)
    # The distance to itself is zero and would look like the best result.
    found[own] = {key: value if key == "diversity" else None for key, value in found[own].items()}
    return found


def _save(out: Path, results: list[EvalResult], points: Sequence[Point], metrics: Path) -> None:
    """Write results.jsonl and points.jsonl (if there are quality settings), and copy the training curves."""
    rows = [json.dumps(row) for r in results for row in r.rows]
    write_text(out / "results.jsonl", "\n".join(rows) + "\n")
    if points:
        turned = [(p.quality, r) for p in points for r in (p.results[0], *p.results[1])]
        rows = [json.dumps({"quality": quality, **row}) for quality, r in turned for row in r.rows]
        write_text(out / "points.jsonl", "\n".join(rows) + "\n")
    curves = out / "train" / "metrics.jsonl"
    if metrics.exists() and metrics.resolve() != curves.resolve():
        write_atomically(curves, lambda p: shutil.copyfile(metrics, p))
