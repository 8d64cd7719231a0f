"""A training problem whose best schedule is known, on the exact Gaussian denoiser: no pipeline, no pictures.

Easy prompts have a single point as data: their velocity is constant along the path, every step is exact,
and the best schedule is the shortest. Hard prompts have a well separated mixture: their error falls with the
steps. An "image" is the pair (where the schedule ended, where the exact flow ends); the reward is minus their
distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.mixture import Mixture, integrate
from tpdm.config.loader import make_recipe
from tpdm.config.recipe import Recipe
from tpdm.core.solvers import AB2, Euler
from tpdm.core.stepper import Stepper
from tpdm.core.types import Features, Policy
from tpdm.data.prompts import Prompt
from tpdm.policies.conditioned import condition_policy
from tpdm.policies.pretrained import save_pretrained
from tpdm.policies.pretrained_config import PretrainedConfig
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.rewards.base import Reward
from tpdm.sampling.base import SampleBatch, SampleRequest
from tpdm.training.components import TrainingComponents
from tpdm.training.monitoring.metrics import calibration

EASY = Mixture((1.0,), ((1.0, 0.5),), (0.0,))
HARD = Mixture((0.5, 0.5), ((2.0, 2.0), (-2.0, -2.0)), (0.1, 0.1))
NOISES = 512  # noise is one of so many, so that the exact ends are computed once
STOP_BELOW, MAX_STEPS = 0.1, 12
SHAPE = TPMConfig(
    feature_channels=8, temb_channels=4, channels=16, grid=2, storage="fp32", init_alpha=1.5, init_beta=1.0
)
RECIPE: dict[str, Any] = {
    "name": "gaussian",
    "sampling": {"max_steps": MAX_STEPS, "stop_below": STOP_BELOW},
    "reward": {"form": "additive", "step_cost": 0.03},
    "optimizer": {"lr": 4e-3, "lr_schedule": "linear"},
    "rl": {"updates": 80, "prompts_per_update": 8, "samples_per_prompt": 16, "rollout_batch": 1000},
    "validation": {"every": 20},
    "checkpoint": {"every": 20},
}


def prompts(count: int, first: int = 0) -> list[Prompt]:
    """Easy and hard ones by turns."""
    return [Prompt(f"{'hard' if n % 2 else 'easy'} {n}") for n in range(first, first + count)]


def is_hard(prompt: str) -> bool:
    return prompt.startswith("hard")


@cache
def noise_pool() -> Tensor:
    return torch.randn(NOISES, 2, generator=torch.Generator().manual_seed(5))


@cache
def exact_ends() -> dict[bool, Tensor]:
    """Ends of the flow from every noise of the pool, for easy (False) and hard (True) prompts."""
    grid = torch.linspace(1, 0, 401, dtype=torch.float64).sqrt()  # finer near 1, where the hard flow chooses its side
    start = noise_pool().double()
    ends = {kind: integrate(AB2(), m, start, [grid] * NOISES)[0].float() for kind, m in ((False, EASY), (True, HARD))}
    return ends


class GaussianSampler:
    """A ``Sampler`` of the real stepper with Euler on the exact velocity, ``batch`` images at a time."""

    def __init__(self, policy: Policy, batch: int = 1000) -> None:
        self.policy, self.batch = policy, batch

    def __call__(self, request: SampleRequest) -> SampleBatch:
        images, steps, times, trajectories = [], [], [], []
        for start in range(0, len(request), self.batch):
            end, stepper = self._run(request.rows(slice(start, start + self.batch)))
            images.append(end)
            steps += stepper.steps
            times += stepper.times
            trajectories += stepper.trajectories() if request.record else []
        return SampleBatch(torch.cat(images), steps, times, trajectories if request.record else None)

    def _run(self, request: SampleRequest) -> tuple[Tensor, Stepper]:
        policy = condition_policy(self.policy, len(request), request.gammas)
        hard_B = torch.tensor([is_hard(p) for p in request.prompts])
        place_B = torch.tensor([s % NOISES for s in request.seeds])
        x = noise_pool()[place_B]
        exact = torch.where(hard_B[:, None], exact_ends()[True][place_B], exact_ends()[False][place_B])
        stepper = Stepper(
            policy,
            Euler(),
            images=len(request),
            max_steps=MAX_STEPS,
            stop_below=STOP_BELOW,
            seeds=request.decision_seeds,
            record=request.record,
        )
        while not stepper.done:
            t_B = stepper.t_B.clamp_min(1e-3)  # rows that have ended are computed and ignored
            v = torch.where(hard_B[:, None], HARD.velocity(x, t_B), EASY.velocity(x, t_B))
            rows = torch.tensor(stepper.active_rows)
            features = _features(x, v, hard_B, t_B, rows) if policy.reads_features else None
            x = stepper.advance(x, v, features)
        return torch.stack([x, exact], dim=1), stepper


def _features(x: Tensor, v: Tensor, hard_B: Tensor, t_B: Tensor, rows: Tensor) -> Features:
    """Maps of 2 x 2 cells and 8 channels: x or v, then a code of the prompt, then constants."""
    x, v, hard_B, t_B = x[rows], v[rows], hard_B[rows].float(), t_B[rows]
    code = torch.stack([hard_B, 1 - hard_B, torch.ones_like(hard_B), -torch.ones_like(hard_B)], dim=1)
    first, last = torch.cat([x, -x, code], dim=1), torch.cat([v, -v, code], dim=1)
    temb = torch.stack([t_B, 1 - t_B, torch.cos(3 * t_B), torch.sin(3 * t_B)], dim=1)
    cells = (1, 1, 2, 2)
    return Features(first[..., None, None].repeat(cells), last[..., None, None].repeat(cells), temb)


class DistanceReward:
    """Minus the distance to the exact end."""

    name = "distance"

    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        return -(images_B3HW[:, 0] - images_B3HW[:, 1]).norm(dim=1)


class ShuffledReward(DistanceReward):
    """The same scores, dealt to other images of the batch."""

    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(len(prompts)))
        return super().score(images_B3HW, prompts)[order]


def make_problem(folder: Path, judge: Reward | None = None, **sections: Any) -> tuple[Recipe, TrainingComponents]:
    """A recipe (``RECIPE``, its sections updated key by key) and fresh parts that save to ``folder``."""
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in RECIPE.items()}
    for key, value in sections.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    recipe = make_recipe(values)
    shape = replace(SHAPE, gamma_range=recipe.reward.gamma_range, time_only=recipe.tpm.time_only)
    policy = TimePredictionModule(shape, seed=recipe.seed)

    def save(name: str, trained: TimePredictionModule, facts: dict[str, Any]) -> None:
        config = PretrainedConfig(
            shape=shape,
            backbone_class="None",
            backbone_name="gaussian",
            features="x, v and a code of the prompt",
            guidance_scale=1.0,
            gamma=recipe.reward.gamma,
            reward="distance",
            reward_form="additive",
            reward_offset=0.0,
            solver="euler",
            max_steps=MAX_STEPS,
            stop_below=STOP_BELOW,
            gamma_steps=calibration(facts["validation"]),
            trained=facts,
        )
        save_pretrained(trained, config, folder / name)

    sampler = GaussianSampler(policy, recipe.rl.rollout_batch)
    return recipe, TrainingComponents(policy, sampler, judge or DistanceReward(), prompts(40), prompts(32, 40), save)


def make_small_problem(folder: Path, judge: Reward | None = None, **sections: Any) -> tuple[Recipe, TrainingComponents]:
    """Ten updates of 16 images, a third of a second: for what does not depend on how well it learns."""
    small = {
        "rl": {"updates": 10, "prompts_per_update": 4, "samples_per_prompt": 4},
        "validation": {"every": 3},
        "checkpoint": {"every": 4},
    }
    merged = {
        key: {**small.get(key, {}), **value} if isinstance(value, dict) else value for key, value in sections.items()
    }
    return make_problem(folder, judge, **{**small, **merged})
