"""How much there is to gain by looking, on tinyworld: the best schedule of N steps for every image, searched for.

    python benchmarks/oracle.py                        48 images, N = 5, 8, 12: minutes on two cores
    python benchmarks/oracle.py --images 4 --steps 3 --candidates 2 --rounds 1 --out runs/oracle.json

Every schedule is tried on the same noise. `shared` is the best one for all images, chosen on the other half of
them; `own` the best one of each image, chosen by the reward of its finished picture, which no policy can see before.
The scene reader's accuracy of the same pictures says how much of that the reward's luck is.
"""

import argparse
import json
from importlib import resources
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from tpdm.config import load_recipe
from tpdm.evals.compare import run_policy
from tpdm.evals.controls import best_of_family
from tpdm.evals.oracle import search_schedules
from tpdm.evals.run import provenance
from tpdm.evals.statistics import paired_bootstrap
from tpdm.evals.tasks import make_tasks
from tpdm.files import write_json
from tpdm.schedules import FixedTimes

ROOT = Path(__file__).parents[1]


def search(task, tuning, steps, candidates, rounds):
    name, start, _ = best_of_family(tuning, steps)
    images = len(task.prompts)
    bar = tqdm(total=(1 + candidates * (1 + rounds)) * images, desc=f"{steps} steps", unit="image")

    def run(schedules):
        return run_policy(f"{steps} steps", FixedTimes(schedules), task)

    def score(schedules):
        scores = run(schedules).column("score")
        bar.update(images)
        return scores

    found = search_schedules(score, start.lists[0], images, candidates, rounds, seed=steps)
    bar.close()
    accuracy = {k: run(s).column("accuracy") for k, s in (("start", start.lists * images), ("own", found.own))}
    return {
        "steps": steps,
        "start": name,
        "tried": found.tried,
        "start_mean": float(found.start_B.mean()),
        "shared_minus_start": paired_bootstrap(found.shared_B - found.start_B),
        "own_minus_shared": paired_bootstrap(found.own_B - found.shared_B),
        "accuracy_own_minus_start": paired_bootstrap(accuracy["own"] - accuracy["start"]),
        "mean_own": np.mean(found.own, axis=0).tolist(),
        "sd_own": np.std(found.own, axis=0).tolist(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 8, 12])
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "oracle.json")
    chosen = parser.parse_args()
    recipe = load_recipe(Path(str(resources.files("tpdm") / "recipes" / "tinyworld.yaml")))
    tuning, test = make_tasks(recipe)
    task = test.first(chosen.images)
    found = [search(task, tuning, n, chosen.candidates, chosen.rounds) for n in chosen.steps]
    result = {"images": chosen.images, "search": found, **provenance(recipe)}
    write_json(chosen.out, result)
    print(json.dumps([{k: v for k, v in f.items() if "own" not in k or "minus" in k} for f in found], indent=1))


if __name__ == "__main__":
    main()
