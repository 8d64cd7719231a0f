"""One TPM with a dial beside TPMs trained for one gamma each, on tinyworld: what does serving all gammas cost?

    python benchmarks/specialists.py                  five gammas, seeds 0 to 4: trains, judges, writes docs/results
    python benchmarks/specialists.py --seeds 0 --shares 1 --only     one training, and nothing is written: a process
                                                      may take each

The gammas are spread over the dial as its calibration spreads them. A specialist has the dial's recipe with one gamma,
the updates of recipes/tinyworld.yaml, and starts from the schedule that the dial starts from at that gamma's place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiment import (
    RESULTS,
    Rows,
    column,
    difference,
    keep,
    options,
    origin,
    recipe_of,
    signed,
    table,
    trained,
    write_part,
)
from tpdm.artefact import load_policy
from tpdm.core.dial import gamma_at
from tpdm.evals.match import Match
from tpdm.evals.provenance import provenance
from tpdm.evals.run import fingerprint, learned_fingerprint
from tpdm.evals.statistics import paired_bootstrap, two_way_bootstrap
from tpdm.evals.store import Store
from tpdm.evals.tasks import make_tasks
from tpdm.files import write_json
from tpdm.recipe import Recipe

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the dial
ALLOWED = 0.01  # share of the specialist's reward


def specialist(dial: Recipe, place: Path, share: float, changes: list[str]) -> Recipe:
    """The recipe of the TPM for the gamma at a share of the dial."""
    assert dial.reward.gamma_range is not None
    assert dial.tpm.fast_steps is not None
    assert dial.tpm.start_steps is not None
    gamma = gamma_at(share, *dial.reward.gamma_range)
    # Between the ends the dial starts from ratios in between: about so many steps, geometrically.
    start = round(dial.tpm.fast_steps * (dial.tpm.start_steps / dial.tpm.fast_steps) ** share)
    alone = ["rl.updates=140", *changes, "rl.normalise_advantages=batch", "reward.gamma_range=null"]
    alone += [f"reward.gamma={gamma}", "tpm.fast_steps=null", f"tpm.start_steps={start}"]
    return recipe_of(f"gamma-{share:g}", place / f"gamma-{share:g}", dial.seed, alone, "tinyworld-dial")


def rows_of(recipe: Recipe, gamma: float | None, controls: Path) -> list[dict[str, Any]]:
    """Rows of a TPM; of one with a dial at this gamma."""
    tuning, test = make_tasks(recipe)
    common = fingerprint(recipe, [*tuning.prompts, *test.prompts])
    store = Store(Path(recipe.output) / "eval-specialists", {**common, **learned_fingerprint(recipe)})
    match = Match(test, tuning, load_policy(Path(recipe.output) / "best"), None, store, Store(controls, common))
    return match.learned("tpdm" if gamma is None else f"tpdm, gamma {gamma:.6f}", gamma).rows


def one_seed(
    seed: int, shares: Sequence[float], place: Path, dials: Path, changes: list[str], kept: bool
) -> dict[float, tuple[list, list]]:
    """For every share of the dial: rows of the dial and of the specialist."""
    dial = trained(recipe_of("tpm", dials / f"seed-{seed}" / "tpm", seed, changes, "tinyworld-dial"))
    found = {}
    for share in shares:
        alone = trained(specialist(dial, place / f"seed-{seed}", share, changes))
        if kept:
            keep(alone)
        found[share] = (
            rows_of(dial, alone.reward.gamma, place / "controls"),
            rows_of(alone, None, place / "controls"),
        )
    return found


def objective_difference(mine: list[Rows], others: list[Rows], gamma: float) -> list[float]:
    """[mean, low, high], over seeds and images, of what was trained for: reward times gamma to the number of steps."""
    tables = [
        [column(rows, "score") * gamma ** column(rows, "steps") for rows in pair]
        for pair in zip(mine, others, strict=True)
    ]
    minus = [a - b for a, b in tables]
    return two_way_bootstrap(np.stack(minus)) if len(minus) > 1 else paired_bootstrap(minus[0])


def part(facts: dict[str, Any]) -> str:
    """The page's part."""
    lines, within = [], 0
    for point in facts["points"]:
        minus = point["minus"]["reward"]["mean"]
        within += minus[0] >= -ALLOWED * point["reward"]
        steps = [f"{np.mean(point[name]):.1f}" for name in ("dial_steps", "steps")]
        minuses = [signed(minus), signed(point["objective_minus"])]
        lines.append([f"{point['gamma']:.5f}", *steps, f"{point['reward']:.4f}", *minuses])
    head = ["gamma", "steps, dial", "steps, specialist", "reward, specialist", "dial minus specialist", "objective"]
    said = (
        f"The dial's reward is within {100 * ALLOWED:g} % of the specialist's at {within} of {len(lines)} gammas. The "
        "objective is the reward times gamma to the number of steps, of each image."
    )
    return "\n\n".join([said, table(head, lines), origin(facts)])


def main() -> None:
    parser = options(__doc__, RESULTS / "specialists.json")
    parser.add_argument("--runs", type=Path, default=Path("runs/specialists"))
    parser.add_argument("--dials", type=Path, default=Path("runs/frontier"), help="where the TPMs with a dial are")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, choices=SHARES, help="of the dial, 0 to 1")
    parser.add_argument("--only", action="store_true", help="train and judge, and write no results")
    chosen = parser.parse_args()
    out, page, _ = chosen.out.resolve(), chosen.page.resolve(), os.chdir(RESULTS.parents[1])
    if not chosen.render:
        asked = (chosen.shares, chosen.runs, chosen.dials, chosen.set, chosen.keep)
        seeds = [one_seed(s, *asked) for s in chosen.seeds]
        if chosen.only:
            return
        first = recipe_of("tpm", chosen.dials, chosen.seeds[0], chosen.set, "tinyworld-dial")
        assert first.reward.gamma_range is not None
        points = []
        for share in seeds[0]:
            dial, alone = ([s[share][i] for s in seeds] for i in (0, 1))
            gamma = gamma_at(share, *first.reward.gamma_range)
            points.append(
                {
                    "gamma": gamma,
                    "dial_steps": [float(column(rows, "steps").mean()) for rows in dial],
                    "steps": [float(column(rows, "steps").mean()) for rows in alone],
                    "reward": float(np.mean([column(rows, "score").mean() for rows in alone])),
                    "minus": difference(dial, alone),
                    "objective_minus": objective_difference(dial, alone, gamma),
                }
            )
        facts = {"seeds": chosen.seeds, "prompts": len(seeds[0][0.0][0]), "changes": chosen.set, "points": points}
        write_json(out, facts | provenance(first))
    write_part(page, "specialists", part(json.loads(out.read_text(encoding="utf-8"))))
    print(json.dumps({"written": [out.name, page.name]}))


if __name__ == "__main__":
    main()
