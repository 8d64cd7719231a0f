"""One TPM with a dial beside TPMs trained for one gamma each, on tinyworld: what does serving all gammas cost?

    python benchmarks/specialists.py                  six gammas, seeds 0 to 4: trains, judges, writes docs/results
    python benchmarks/specialists.py --seeds 0 --points 1 --only     one training: a process may take each

Five gammas are spread as a calibration spreads them, evenly in the log of a step's price; the first is the dial's low
end. A specialist has the dial's recipe with one gamma, the updates of recipes/tinyworld.yaml, and starts from about as
many steps as the dial starts from there. What is known of either side is not trained or judged again.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiment import (
    MEASURES,
    RESULTS,
    column,
    difference,
    objective_difference,
    options,
    recipe_of,
    trained,
    training_hash,
    write_part,
)
from specialists_page import part
from tpdm.config.recipe import Recipe
from tpdm.core.io import write_json, write_text
from tpdm.evaluation.comparison import BaselineComparison
from tpdm.evaluation.result_store import Store
from tpdm.evaluation.summary import provenance
from tpdm.evaluation.tasks import fingerprint, learned_fingerprint, make_tasks
from tpdm.policies.gamma import gamma_at
from tpdm.policies.pretrained import load_policy

KEYS = ("steps", *MEASURES.values())
SINGLE_PROCESS = "specialist"
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
    return recipe_of("specialist", place / f"gamma-{gamma:.5f}", seed, alone, "tinyworld-dial")


def rows_of(recipe: Recipe, gamma: float | None, controls: Path) -> list[dict[str, Any]]:
    """Rows of a TPM; of one with a dial at this gamma."""
    tuning, test = make_tasks(recipe)
    common = fingerprint(recipe, tuning, test)
    store = Store(Path(recipe.output) / "eval-specialists", {**common, **learned_fingerprint(recipe)})
    match = BaselineComparison(
        test, tuning, load_policy(Path(recipe.output) / "best"), None, store, Store(controls, common)
    )
    return match.learned("tpdm" if gamma is None else f"tpdm, gamma {gamma:.6f}", gamma).rows


def compared(seed: int, point: tuple[float, int], chosen: argparse.Namespace, kept: Path) -> dict[str, Any] | None:
    """What the dial and the specialist made of every prompt; measured, or None, where ``kept`` does not have it.

    Kept are these numbers alone: 30 trainings are 66 megabytes, and nobody asks a specialist again.
    """
    dial = recipe_of("tpm", chosen.dials / f"seed-{seed}" / "tpm", seed, chosen.set, "tinyworld-dial")
    alone = specialist(seed, chosen.runs / f"seed-{seed}", point, chosen.set)
    both = {"dial": (dial, point[0]), SINGLE_PROCESS: (alone, None)}
    of = {who: {"hash": training_hash(r), "prompts": r.evaluation.prompts} for who, (r, _) in both.items()}
    path = kept / f"seed-{seed}-{point[0]:.5f}.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"of": {}}
    lacking = [who for who in of if known["of"].get(who) != of[who]]
    if not lacking:
        return known
    if chosen.kept:
        return None
    for who in lacking:
        recipe, gamma = both[who]
        rows = rows_of(trained(recipe), gamma, chosen.runs / "controls")
        known[who] = {key: column(rows, key).round(6).tolist() for key in KEYS}
    known |= {"of": of, "gamma": point[0], **provenance(alone)}
    write_text(path, json.dumps(known) + "\n")  # of 8,000 numbers none has a line of its own
    return known


def as_rows(columns: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """One dictionary per image."""
    images = zip(*(columns[key] for key in KEYS), strict=True)
    return [{"index": i, **dict(zip(KEYS, values, strict=True))} for i, values in enumerate(images)]


def point(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """One gamma, over seeds."""
    dial, alone = ([as_rows(seed[who]) for seed in seeds] for who in ("dial", SINGLE_PROCESS))
    gamma = seeds[0]["gamma"]
    return {
        "gamma": gamma,
        "dial_steps": [float(column(rows, "steps").mean()) for rows in dial],
        "steps": [float(column(rows, "steps").mean()) for rows in alone],
        "reward": float(np.mean([column(rows, "score").mean() for rows in alone])),
        "minus": difference(dial, alone),
        "objective_minus": objective_difference(dial, alone, gamma),
    }


def main() -> None:
    parser = options(__doc__, RESULTS / "specialists.json")
    parser.add_argument("--runs", type=Path, default=Path("runs/specialists"))
    parser.add_argument("--dials", type=Path, default=Path("runs/frontier"), help="where the TPMs with a dial are")
    places = range(len(POINTS))
    parser.add_argument("--points", type=int, nargs="+", default=places, choices=places, help="of the six gammas")
    parser.add_argument("--kept", action="store_true", help="train nothing: of what docs/results/specialists has")
    parser.add_argument("--only", action="store_true", help="train and judge, and write no page")
    chosen = parser.parse_args()
    out, page, _ = chosen.out.resolve(), chosen.page.resolve(), os.chdir(RESULTS.parents[1])
    if not chosen.render:
        kept = out.parent / "specialists"
        every = [[compared(seed, POINTS[i], chosen, kept) for seed in chosen.seeds] for i in chosen.points]
        found = [[one for one in seeds if one] for seeds in every]
        if chosen.only:
            return
        facts = {
            "seeds": chosen.seeds,
            "prompts": len(found[0][0]["dial"]["score"]),
            "changes": chosen.set,
            "points": [point(seeds) for seeds in found],
            **{k: v for k, v in found[0][0].items() if k not in ("of", "gamma", "dial", SINGLE_PROCESS)},
        }
        write_json(out, facts)
    write_part(page, "specialists", part(json.loads(out.read_text(encoding="utf-8"))))
    print(json.dumps({"written": [out.name, page.name]}))


if __name__ == "__main__":
    main()
