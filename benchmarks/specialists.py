"""One TPM with a dial beside TPMs trained for one gamma each, on tinyworld: what does serving all gammas cost?

    python benchmarks/specialists.py                  five gammas, seeds 0 to 4: trains, judges, writes docs/results
    python benchmarks/specialists.py --seeds 0 --shares 1 --only     one training: a process may take each

The gammas are spread over the dial as its calibration spreads them. A specialist has the dial's recipe with one gamma,
the updates of recipes/tinyworld.yaml, and starts from the schedule that the dial starts from at that gamma's place.
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
from tpdm.artefact import load_policy
from tpdm.core.dial import gamma_at
from tpdm.evals.fingerprint import fingerprint, learned_fingerprint
from tpdm.evals.match import Match
from tpdm.evals.provenance import provenance
from tpdm.evals.store import Store
from tpdm.evals.tasks import make_tasks
from tpdm.files import write_json, write_text
from tpdm.recipe import Recipe

KEYS = ("steps", *MEASURES.values())
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the dial


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
    common = fingerprint(recipe, tuning, test)
    store = Store(Path(recipe.output) / "eval-specialists", {**common, **learned_fingerprint(recipe)})
    match = Match(test, tuning, load_policy(Path(recipe.output) / "best"), None, store, Store(controls, common))
    return match.learned("tpdm" if gamma is None else f"tpdm, gamma {gamma:.6f}", gamma).rows


def compared(seed: int, share: float, chosen: argparse.Namespace, kept: Path) -> dict[str, Any] | None:
    """What the dial and the specialist made of every prompt; measured, or None, where ``kept`` does not have it.

    Kept are these numbers alone: 25 trainings are 55 megabytes, and nobody asks a specialist again.
    """
    dial = recipe_of("tpm", chosen.dials / f"seed-{seed}" / "tpm", seed, chosen.set, "tinyworld-dial")
    alone = specialist(dial, chosen.runs / f"seed-{seed}", share, chosen.set)
    of = {"dial": training_hash(dial), "specialist": training_hash(alone), "prompts": dial.evaluation.prompts}
    path = kept / f"seed-{seed}-{share:g}.json"
    if path.exists() and (known := json.loads(path.read_text(encoding="utf-8")))["of"] == of:
        return known
    if chosen.kept:
        return None
    gamma, controls = alone.reward.gamma, chosen.runs / "controls"
    rows = {
        "dial": rows_of(trained(dial), gamma, controls),
        "specialist": rows_of(trained(alone), None, controls),
    }
    columns = {who: {k: column(r, k).round(6).tolist() for k in KEYS} for who, r in rows.items()}
    text = json.dumps({"of": of, "gamma": gamma, **columns, **provenance(alone)})
    write_text(path, text + "\n")  # of 8,000 numbers none has a line of its own
    found: dict[str, Any] = json.loads(text)
    return found


def as_rows(columns: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """One dictionary per image."""
    images = zip(*(columns[key] for key in KEYS), strict=True)
    return [{"index": i, **dict(zip(KEYS, values, strict=True))} for i, values in enumerate(images)]


def point(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """One gamma, over seeds."""
    dial, alone = ([as_rows(seed[who]) for seed in seeds] for who in ("dial", "specialist"))
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
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, choices=SHARES, help="of the dial, 0 to 1")
    parser.add_argument("--kept", action="store_true", help="train nothing: of what docs/results/specialists has")
    parser.add_argument("--only", action="store_true", help="train and judge, and write no page")
    chosen = parser.parse_args()
    out, page, _ = chosen.out.resolve(), chosen.page.resolve(), os.chdir(RESULTS.parents[1])
    if not chosen.render:
        kept = out.parent / "specialists"
        every = [[compared(seed, share, chosen, kept) for seed in chosen.seeds] for share in chosen.shares]
        found = [[one for one in seeds if one] for seeds in every]
        if chosen.only:
            return
        facts = {
            "seeds": chosen.seeds,
            "prompts": len(found[0][0]["dial"]["score"]),
            "changes": chosen.set,
            "points": [point(seeds) for seeds in found],
            **{k: v for k, v in found[0][0].items() if k not in ("of", "gamma", "dial", "specialist")},
        }
        write_json(out, facts)
    write_part(page, "specialists", part(json.loads(out.read_text(encoding="utf-8"))))
    print(json.dumps({"written": [out.name, page.name]}))


if __name__ == "__main__":
    main()
