"""One TPM for all gammas, compared with TPMs trained for one gamma each: what does serving all gammas cost?

Five gammas are spread as a calibration spreads them, evenly in the log of a step's price. The first is the lowest gamma
of the recipe tinyworld-quality.yaml. A specialist has that recipe with one gamma and the updates of tinyworld.yaml. It
starts from about as many steps as the other TPM does at that gamma. What is known of either is not trained or evaluated
again. With --seeds 0 --points 1 --print a process may take each training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.page import signed, table
from benchmarks.quality.comparison import (
    MEASURES,
    as_rows,
    column,
    comparison,
    difference,
    objective_difference,
    origin,
    reach,
)
from benchmarks.quality.experiments import EXPERIMENTS
from benchmarks.quality.trainings import conditioned_recipe, recipe_of, trained, training_hash
from tpdm.config.recipe import Recipe
from tpdm.core.io import write_text
from tpdm.evaluation.summary import provenance
from tpdm.policies.gamma import gamma_at

EXPERIMENT = EXPERIMENTS["specialists"]
KEYS = ("steps", *MEASURES.values())
SPECIALIST = "specialist"
ALLOWED = 0.01  # share of the specialist's reward
SPREAD = (0.99, 0.99995)
POINTS = (  # gamma, and the steps that its specialist starts from
    (0.98, 4),
    *((gamma_at(share, *SPREAD), start) for share, start in ((0.0, 5), (0.25, 7), (0.5, 11), (0.75, 16), (1.0, 24))),
)


def specialist(seed: int, place: Path, point: tuple[float, int], changes: list[str]) -> Recipe:
    """The recipe of the TPM for one gamma."""
    gamma, start = point
    alone = ["rl.updates=140", *changes, "rl.normalize_advantages=batch", "reward.gamma_range=null"]
    alone += [f"reward.gamma={gamma}", "tpm.init_steps_low_gamma=null", f"tpm.init_steps={start}"]
    return recipe_of("specialist", place / f"gamma-{gamma:.5f}", seed, alone, EXPERIMENT.recipe)


def compared(seed: int, point: tuple[float, int], chosen: argparse.Namespace, kept: Path) -> dict[str, Any] | None:
    """Numbers of both TPMs on every prompt: read from ``kept`` or measured; None if --kept forbids to measure them.

    Only these numbers are kept: 30 trainings are 66 megabytes, and no other experiment needs a specialist.
    """
    conditioned = conditioned_recipe(chosen.frontier_runs, seed, chosen.set)
    alone = specialist(seed, chosen.runs / f"seed-{seed}", point, chosen.set)
    both = {"dial": (conditioned, point[0]), SPECIALIST: (alone, None)}
    identities = {key: {"hash": training_hash(r), "prompts": r.evaluation.prompts} for key, (r, _) in both.items()}
    path = kept / f"seed-{seed}-{point[0]:.5f}.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"of": {}}
    missing = [key for key, identity in identities.items() if known["of"].get(key) != identity]
    if not missing:
        return known
    if chosen.kept:
        return None
    for name in missing:
        recipe, gamma = both[name]
        match = comparison(trained(recipe, chosen.keep), chosen.runs / "controls", "eval-specialists", shared=False)
        rows = match.learned("tpdm" if gamma is None else f"tpdm, gamma {gamma:.6f}", gamma).rows
        known[name] = {key: column(rows, key).round(6).tolist() for key in KEYS}
    known |= {"of": identities, "gamma": point[0], **provenance(alone)}
    write_text(path, json.dumps(known) + "\n")  # 8,000 numbers in one line
    return known


def point(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """One gamma, over seeds."""
    conditioned, alone = ([as_rows(seed[name], KEYS) for seed in seeds] for name in ("dial", SPECIALIST))
    gamma = seeds[0]["gamma"]
    return {
        "gamma": gamma,
        "dial_steps": [float(column(rows, "steps").mean()) for rows in conditioned],
        "steps": [float(column(rows, "steps").mean()) for rows in alone],
        "reward": float(np.mean([column(rows, "score").mean() for rows in alone])),
        "minus": difference(conditioned, alone),
        "objective_minus": objective_difference(conditioned, alone, gamma),
    }


def options(parser: argparse.ArgumentParser) -> None:
    places = range(len(POINTS))
    parser.add_argument(
        "--frontier-runs", type=Path, default=Path("runs/frontier"), help="folder of the trainings of frontier"
    )
    parser.add_argument("--points", type=int, nargs="+", default=places, choices=places, help="of the six gammas")
    parser.add_argument("--kept", action="store_true", help="train nothing: use docs/results/specialists")


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    kept = chosen.file.parent / "specialists"
    every = [[compared(seed, POINTS[i], chosen, kept) for seed in chosen.seeds] for i in chosen.points]
    found = [[one for one in seeds if one] for seeds in every]
    return {
        "seeds": chosen.seeds,
        "prompts": len(found[0][0]["dial"]["score"]),
        "changes": chosen.set,
        "points": [point(seeds) for seeds in found],
        **{k: v for k, v in found[0][0].items() if k not in ("of", "gamma", "dial", SPECIALIST)},
    }


def is_within(point: dict[str, Any]) -> bool:
    """Whether the mean reward of the gamma-conditioned TPM is at most ``ALLOWED`` below that of the specialist."""
    gain: float = point["minus"]["reward"]["mean"][0]
    return gain >= -ALLOWED * point["reward"]


def part(facts: dict[str, Any]) -> str:
    """The section of the page."""
    lines, within, worst = [], 0, 0.0
    for point in facts["points"]:
        minus = point["minus"]["reward"]["mean"]
        within += is_within(point)
        worst = max(worst, *(-seed[0] / point["reward"] for seed in point["minus"]["reward"]["seeds"]))
        steps = [f"{np.mean(point[name]):.1f}" for name in ("dial_steps", "steps")]
        minuses = [signed(minus), signed(point["objective_minus"])]
        place = [f"{point['gamma']:.5f}", str(len(point["steps"]))]
        lines.append([*place, *steps, f"{point['reward']:.4f}", *minuses])
    head = "gamma | trainings | steps | steps, specialist | reward, specialist | minus specialist: reward | objective"
    intro = (
        f"The reward of the TPM for all gammas is within {100 * ALLOWED:g} % of the specialist's at {within} of "
        f"{len(lines)} gammas. On a single seed it is at worst {100 * worst:.1f} % below. The objective is what both "
        "were trained for at that gamma, eq. (9), of each image."
    )
    reached = reach([point["dial_steps"] for point in facts["points"]], "gamma")
    return "\n\n".join([intro, reached, table(head, lines), origin(facts)])
