"""Which choices of the training matter, on tinyworld: one change at a time, several seeds, learning curves.

    python benchmarks/ablations.py --axes noise group --seeds 0 1 2   adds to docs/results/ablations.json; hours in all
    python benchmarks/ablations.py --render                           the picture and the table alone

Every run is the demo's recipe with the changes of one variant; the first variant of an axis is what its others are
compared with. Runs are kept in runs/ablations and go on where they stopped.
"""

import argparse
import json
import os
from importlib import resources
from pathlib import Path
from statistics import fmean, stdev

from matplotlib.figure import Figure

from tpdm.config import load_recipe
from tpdm.evals.run import provenance
from tpdm.files import write_atomically, write_json
from tpdm.train.log import read_metrics
from tpdm.train.run import train

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "ablations.json"
PICTURE = ROOT / "docs" / "images" / "ablations.png"
GROUPS = {
    f"{p} prompts x {k}": [f"rl.prompts_per_update={p}", f"rl.samples_per_prompt={k}"]
    for p, k in ((24, 4), (48, 2), (12, 8))
}
PUBLISHED_START = ["tpm.start_steps=null", "tpm.start_shift=null"]  # equal ratios: the folded layout has no other
AXES = {
    "noise": {"shared": [], "independent": ["rl.noise=independent"]},
    "group": GROUPS,
    "advantages": {name: [f"rl.normalise_advantages={name}"] for name in ("batch", "none", "group")},
    "reward": {"discounted": [], "additive": ["reward.form=additive", "reward.step_cost=0.00075"]},
    "ratio": {name: [f"rl.ratio={name}"] for name in ("trajectory", "decision")},
    "start": {"18 uniform steps": [], "equal ratios": PUBLISHED_START},
    "layout": {
        "pooled": PUBLISHED_START,
        "folded": [*PUBLISHED_START, "tpm.layout=folded"],
    },
    "features": {
        "conditional": ["backbone.guidance_scale=3"],
        "guided": ["backbone.guidance_scale=3", "tpm.features=guided"],
    },
    "maps": {"first and last": [], "last": ["tpm.maps=last"]},
    "change": {"unseen": [], "seen": ["tpm.change=true"]},
    "eyes": {"features": [], "time only": ["tpm.time_only=true"]},
    "solver": {name: [f"sampling.solver={name}"] for name in ("euler", "ab2", "dpmpp_2m")},
    "entropy": {"none": [], "0.002": ["rl.entropy_weight=0.002"]},
    "average": {"0.95": [], "none": ["optimizer.average=0"]},
}


def run(axis, name, changes, seed, more):
    slug = "-".join([axis, *name.split()])
    path = Path(str(resources.files("tpdm") / "recipes" / "tinyworld.yaml"))
    places = [f"name={slug}-{seed}", "output=runs/ablations/{name}", f"seed={seed}"]
    recipe = load_recipe(path, [*places, *changes, *more])
    train(recipe)
    rows = [row for row in read_metrics(Path(recipe.output) / "metrics.jsonl") if row["kind"] == "validation"]
    per_update = recipe.rl.prompts_per_update * recipe.rl.samples_per_prompt
    curve = [
        {
            "trajectories": row["update"] * per_update,
            "objective": row["objective_mean"],
            "score": row["score_mean"],
            "steps": row["steps_mean"],
        }
        for row in rows
    ]
    return {"axis": axis, "variant": name, "seed": seed, "changes": changes, "curve": curve, **provenance(recipe)}


def spread(values):
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def table(runs):
    head = ["axis", "variant", "seeds", "last objective", "best objective", "score", "steps"]
    lines = [head, ["---"] * len(head)]
    for axis, variants in AXES.items():
        for name in variants:
            found = [r["curve"] for r in runs if (r["axis"], r["variant"]) == (axis, name)]
            if not found:
                continue
            last = [curve[-1] for curve in found]
            best = [max(p["objective"] for p in curve) for curve in found]
            cells = [spread([p["objective"] for p in last]), spread(best), spread([p["score"] for p in last])]
            lines.append([axis, name, str(len(found)), *cells, f"{fmean(p['steps'] for p in last):.1f}"])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def draw(runs, path):
    axes = [axis for axis in AXES if any(r["axis"] == axis for r in runs)]
    rows = (len(axes) + 2) // 3
    figure = Figure(figsize=(10, 3 * rows), layout="constrained")
    for place, axis in enumerate(axes, start=1):
        panel = figure.add_subplot(rows, 3, place, title=axis, xlabel="trajectories", ylabel="objective")
        for colour, name in enumerate(AXES[axis]):
            for i, r in enumerate(r for r in runs if (r["axis"], r["variant"]) == (axis, name)):
                x, y = ([p[key] for p in r["curve"]] for key in ("trajectories", "objective"))
                panel.plot(x, y, color=f"C{colour}", linewidth=1, label=None if i else name)
        panel.legend(fontsize=8)
    write_atomically(path, lambda p: figure.savefig(p, format="png", dpi=110))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to every recipe")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--render", action="store_true")
    chosen = parser.parse_args()
    out, picture, _ = chosen.out.resolve(), chosen.picture.resolve(), os.chdir(ROOT)
    runs = json.loads(out.read_text(encoding="utf-8")) if out.exists() else []
    done = {(r["axis"], r["variant"], r["seed"]) for r in runs}
    if not chosen.render:
        wanted = [(a, n, c, s) for s in chosen.seeds for a in chosen.axes for n, c in AXES[a].items()]
        for axis, name, changes, seed in wanted:
            if (axis, name, seed) not in done:
                runs.append(run(axis, name, changes, seed, chosen.set))
                write_json(out, runs)  # after each: hours of others are not lost with one
    draw(runs, picture)
    print(table(runs), end="")


if __name__ == "__main__":
    main()
