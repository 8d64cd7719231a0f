"""What the experiments on tinyworld share: recipes trained once, tables of rows, and pages that results are written to.

Runs are kept below runs/ and go on where they stopped; what they found is kept in docs/results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

import trained_tpms
from tpdm.config.loader import load_recipe
from tpdm.config.recipe import EvaluationConfig, Recipe
from tpdm.config.renamed import with_first_names
from tpdm.core.io import write_text
from tpdm.evaluation.runner import EvalResult
from tpdm.evaluation.statistics import paired_bootstrap, quantile_of_difference, two_way_bootstrap
from tpdm.training.objective import discounted_reward
from tpdm.training.train import train

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
MEASURES = {"reward": "score", "accuracy": "accuracy", "residual": "residual"}
BETTER = {"reward": 1, "accuracy": 1, "residual": -1}  # the sign of a difference that is a gain
WORST = 0.01

Rows = Sequence[Mapping[str, Any]]


def recipe_of(name: str, place: Path, seed: int, changes: Sequence[str], base: str) -> Recipe:
    """A shipped recipe with a place, a seed and changes."""
    path = Path(str(resources.files("tpdm.config") / "recipes" / f"{base}.yaml"))
    return load_recipe(path, [f"name={name}", f"output={place}", f"seed={seed}", *changes])


def trained(recipe: Recipe) -> Recipe:
    """The recipe, after its training where that was not done before, here or where ``trained_tpms`` finds it."""
    run = Path(recipe.output)
    if not (run / "run.json").exists() and not trained_tpms.fetch(training_hash(recipe), run):
        train(recipe)
    return recipe


def keep(recipe: Recipe) -> Path:
    """Puts what a training ended with where ``trained_tpms`` finds it; its place."""
    return trained_tpms.keep(training_hash(recipe), Path(recipe.output), training_changes(recipe))


def training_hash(recipe: Recipe) -> str:
    """What a training depends on: not its place, nor what is done with the TPM afterwards.

    Values that are the default's are left out, so that a new key of recipes, whose default is what was done before it,
    changes no hash. Keys are under the names of version 0.1, of which the kept results have hashes.
    """
    return hashlib.sha256(json.dumps(training_changes(recipe), sort_keys=True).encode()).hexdigest()[:12]


def training_changes(recipe: Recipe) -> dict[str, Any]:
    """What a training depends on and is not the default."""
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


def options(description: str | None, out: Path, *, keeps: bool = False) -> argparse.ArgumentParser:
    """The words that all experiments understand, and ``--keep`` where an experiment ``keeps`` what it trained."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of the trainings")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to every recipe")
    parser.add_argument("--out", type=Path, default=out, help="results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "frontier.md", help="whose part is written anew")
    if keeps:
        parser.add_argument("--keep", action="store_true", help="what was trained goes to runs/trained as well")
    parser.add_argument("--render", action="store_true", help="the page alone, from results")
    return parser


def column(rows: Rows, key: str) -> np.ndarray:
    """One number per image, in the order of images."""
    return np.asarray([row[key] for row in sorted(rows, key=lambda row: row["index"])], dtype=np.float64)


def difference(mine: Sequence[Rows], others: Sequence[Rows]) -> dict[str, Any]:
    """What several trainings have beyond a control, image by image.

    Args:
        mine: rows of each training.
        others: of the control beside each; empty where it has none.

    Returns:
        For every measure ``mean``, [mean, low, high] over trainings and images (over images alone where there is one),
        ``seeds`` (the same of each) and ``of``, how many; for the reward ``worst`` too: what the worst 1 % lose.
    """
    pairs = [(a, b) for a, b in zip(mine, others, strict=True) if b]
    found: dict[str, Any] = {"of": len(pairs)}
    for label, key in MEASURES.items():
        tables = [column(a, key) - column(b, key) for a, b in pairs]
        if not tables:
            continue
        single = [paired_bootstrap(t) for t in tables]
        found[label] = {"mean": two_way_bootstrap(np.stack(tables)) if len(tables) > 1 else single[0], "seeds": single}
        if label == "reward":
            found["worst"] = worst_lost(pairs)
    return found


def apply_step_penalty(rows: Rows, gamma: float) -> np.ndarray:
    """What is trained for, of every image: eq. (9), the reward with the price of its steps."""
    score_B, steps_B = (torch.from_numpy(column(rows, key)) for key in ("score", "steps"))
    return discounted_reward(score_B, steps_B, gamma).numpy()


def objective_difference(mine: Sequence[Rows], others: Sequence[Rows], gamma: float) -> tuple[float, float, float]:
    """[mean, low, high] over trainings and images of what was trained for."""
    minus = [apply_step_penalty(a, gamma) - apply_step_penalty(b, gamma) for a, b in zip(mine, others, strict=True)]
    return two_way_bootstrap(np.stack(minus)) if len(minus) > 1 else paired_bootstrap(minus[0])


def worst_lost(pairs: Sequence[tuple[Rows, Rows]]) -> tuple[float, float, float]:
    """What the worst 1 % of images lose, over all trainings; a mixture counts by the odds of what it may come to."""
    gains, odds = [], []
    for mine, others in pairs:
        score_BK, odds_BK = EvalResult(
            "control", [dict(r) for r in sorted(others, key=lambda row: row["index"])]
        ).outcomes()
        gains.append((column(mine, "score")[:, None] - score_BK).T)
        odds.append(odds_BK.T)
    # Numbers of one image, over trainings, side by side: they are drawn together.
    gain_NB, odds_NB = np.concatenate(gains), np.concatenate(odds)
    return quantile_of_difference(gain_NB.T.ravel(), WORST, samples=len(gain_NB), odds_B=odds_NB.T.ravel())


def signed(interval: Sequence[float]) -> str:
    """Mean and interval, marked where it excludes 0."""
    mean, low, high = interval
    text = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def write_part(page: Path, name: str, text: str) -> None:
    """Replaces what stands between the marks of a name."""
    begin, end = f"<!-- {name}: generated -->", f"<!-- end of {name} -->"
    head, rest = page.read_text(encoding="utf-8").split(begin)
    write_text(page, f"{head}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")


def origin(results: Mapping[str, Any]) -> str:
    """One line on where the numbers come from."""
    changes = ", ".join(f"`{change}`" for change in results["changes"]) or "none"
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return (
        f"Training seeds {', '.join(map(str, results['seeds']))}; {results['prompts']} held-out prompts; "
        f"changes to the recipe: {changes}; {results['hardware']}; {versions}."
    )
