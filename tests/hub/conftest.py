"""A small run with a TPM that has the config of real ones, and an evaluation of it."""

import dataclasses
import json

import pytest

from tests.support.gaussian_problem import make_small_problem
from tpdm.policies.pretrained import from_pretrained, save_pretrained
from tpdm.training.loop import train_loop

EVALUATION = {
    "rows": [
        {"name": "tpdm", "steps_mean": 4.25, "reward_mean": -0.125},
        {"name": "static-28", "steps_mean": 28.0, "reward_mean": -0.25},
    ],
    "images": 512,
    "paired": {"static-28": {"reward": [0.125, -0.25, 0.5]}},
    "best_update": 10,
    "seeds": {"training": 0},
    "hardware": "2 threads of a test",
    "versions": {"torch": "2"},
}


@pytest.fixture(scope="package")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("publish") / "run"
    train_loop(*make_small_problem(folder), folder)
    policy, config = from_pretrained(folder / "last")
    trained = {"update": 10, "seed": 0, "objective": -0.5}
    save_pretrained(policy, dataclasses.replace(config, mean_steps=4.5, trained=trained), folder / "best")
    (folder / "eval").mkdir()
    (folder / "eval" / "summary.json").write_text(json.dumps(EVALUATION), encoding="utf-8")
    return folder
