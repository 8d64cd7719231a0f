"""One update of either loop from the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import RECIPES
from benchmarks.shapes import EMBEDDED, SD3_MEDIUM, TINY, Shape, make_pipeline
from benchmarks.speed.training.plain_loop import Captured, PlainLoop
from benchmarks.timing import Clock
from tpdm.config.loader import load_recipe
from tpdm.config.recipe import Recipe
from tpdm.core.io import load_tensors
from tpdm.core.seeding import derive_seed
from tpdm.data.prompts import load_source
from tpdm.pipelines.attach import attach
from tpdm.pipelines.probe import infer_feature_shapes
from tpdm.policies.pretrained import load_policy
from tpdm.policies.tpm import TimePredictionModule
from tpdm.rewards.loading import load_reward
from tpdm.sampling.base import SampleBatch, SampleRequest
from tpdm.sampling.samplers import PipelineSampler
from tpdm.tinyworld.builtin import WEIGHTS
from tpdm.training.distributed.context import SINGLE_PROCESS, DistributedContext
from tpdm.training.initialization import init_policy, init_times
from tpdm.training.objective import apply_step_penalty, rloo_advantages
from tpdm.training.policy_update import make_optimizer, update_policy
from tpdm.training.rollout import collect_rollout
from tpdm.training.train import train

RECIPE = RECIPES / "tinyworld.yaml"
PASSES = 4  # the release's
EVERY = 20  # updates between the stages of a training
ARGUMENTS = {"guidance_scale": 1.0, "max_sequence_length": 0}


@dataclass(frozen=True)
class Load:
    """An update: a backbone, prompts of four images each, and images in flight."""

    backbone: Shape
    prompts: int
    batch: int


SHAPES = {"tinyworld": Load(EMBEDDED, 24, 96), "sd3-medium": Load(SD3_MEDIUM, 4, 8), "tiny": Load(TINY, 2, 8)}


class Bench:
    """One shape: pipeline, reward, prompts of an update and their seeds; ``place`` is where the stages are trained."""

    def __init__(self, shape: str, device: str, place: Path) -> None:
        self.shape, self.device, self.place = SHAPES[shape], device, place
        self.recipe: Recipe = load_recipe(
            RECIPE, [f"rl.epochs={PASSES}", f"rl.prompts_per_update={self.shape.prompts}", "optimizer.ema_decay=0"]
        )
        self.pipe = make_pipeline(self.shape.backbone, device)
        self.arguments = {**ARGUMENTS, **self.shape.backbone.size}
        self.reward = load_reward("tinyworld", device)
        K = self.recipe.rl.samples_per_prompt
        self.prompts = [p for p in load_source("tinyworld", limit=400)[: self.shape.prompts] for _ in range(K)]
        self.seeds = [derive_seed(0, 0, i // K) for i in range(len(self.prompts))]
        self.decision_seeds = [derive_seed(0, 1, i) for i in range(len(self.prompts))]

    def untrained(self) -> TimePredictionModule:
        """A new TPM, which follows 18 uniform steps."""
        widths = infer_feature_shapes(self.pipe, self.arguments)
        start = init_times(self.recipe.tpm, self.pipe, self.arguments)
        return init_policy(self.recipe, widths, start).to(self.device)

    def shipped(self) -> TimePredictionModule:
        """The TPM that comes with the embedded model, whose images take one to twenty steps."""
        return load_policy(WEIGHTS / "tpm").to(self.device)

    @property
    def updates(self) -> list[int]:
        """The updates of the demo's training after which both loops are compared."""
        return list(range(0, self.recipe.rl.updates + 1, EVERY))

    def stage(self, update: int) -> TimePredictionModule:
        """The TPM after a number of updates of the demo's training, as it makes the images."""
        if not update:
            return self.untrained()
        policy = load_policy(self._training / "last").to(self.device)
        tensors, _ = load_tensors(self._training / "checkpoints" / f"update-{update:06d}" / "policy.safetensors")
        policy.load_state_dict(tensors)
        return policy

    @cached_property
    def _training(self) -> Path:
        """The demo's training with a checkpoint of every stage; resumes where it stopped."""
        keeps = [f"checkpoint.every={EVERY}", "checkpoint.keep=1000", "validation.prompts=2", "validation.every=1000"]
        recipe = load_recipe(RECIPE, [*keeps, f"output={self.place}", f"backbone.device={self.device}"])
        if not (Path(recipe.output) / "run.json").exists():
            train(recipe)
        return Path(recipe.output)

    def ours(
        self, policy: TimePredictionModule, clock: Clock, team: DistributedContext = SINGLE_PROCESS
    ) -> tuple[list[int], int]:
        """One update; returns the steps of all images and the bytes of the rollout buffer."""
        sampling = self.recipe.sampling
        adaptive = attach(self.pipe, policy, max_steps=sampling.max_steps, stop_below=sampling.stop_below)
        sampler = PipelineSampler(adaptive, self.shape.batch, self.arguments)

        def timed(request: SampleRequest) -> SampleBatch:
            made: SampleBatch = clock.timed("rollout", sampler, request)
            return made

        reward = TimedReward(self.reward, clock)
        texts = [prompt.text for prompt in self.prompts]
        request = SampleRequest(texts, self.seeds, self.decision_seeds, record=True)
        rollout = collect_rollout(team, timed, reward, request)
        advantage_B = self.advantages(rollout.scored.score_B, rollout.steps)
        replay = rollout.buffer()
        optimizer = make_optimizer(policy, self.recipe.optimizer)
        clock.timed(
            "update",
            update_policy,
            policy,
            optimizer,
            replay,
            advantage_B[rollout.share],
            self.recipe.rl,
            self.recipe.optimizer.grad_clip,
            None,
            team,
        )
        seen = [] if replay is None else [replay.observation.map_BCHW, replay.observation.temb_BE]
        return rollout.steps, sum(x.numel() * x.element_size() for x in seen if x is not None)

    def plain(self, policy: TimePredictionModule, clock: Clock, captured: Captured) -> tuple[list[int], int]:
        """The same update by the plain loop."""
        sampling, rl = self.recipe.sampling, self.recipe.rl
        loop = PlainLoop(
            self.pipe, policy, captured, self.arguments, self.shape.batch, sampling.max_steps, sampling.stop_below
        )
        texts = [p.text for p in self.prompts]
        images, steps, records = clock.timed("rollout", loop.roll_out, texts, self.seeds, self.decision_seeds)
        score_B = clock.timed("reward", self.reward.score, images, texts)
        optimizer = make_optimizer(policy, self.recipe.optimizer)
        advantage_B = self.advantages(score_B, steps)
        clip = self.recipe.optimizer.grad_clip
        clock.timed("update", loop.update, optimizer, records, advantage_B, rl.epochs, rl.clip, clip)
        return steps, sum(record.bytes for record in records)

    def advantages(self, score_B: torch.Tensor, steps: list[int]) -> torch.Tensor:
        objective_B = apply_step_penalty(score_B.float().cpu(), torch.tensor(steps), self.recipe.reward)
        K = self.recipe.rl.samples_per_prompt
        return rloo_advantages(objective_B.view(-1, K), self.recipe.rl.normalize_advantages).flatten()


class TimedReward:
    """A reward whose scoring is timed."""

    def __init__(self, reward: Any, clock: Clock) -> None:
        self.name, self._reward, self._clock = reward.name, reward, clock

    def score(self, images_B3HW: torch.Tensor, prompts: Any) -> torch.Tensor:
        scores: torch.Tensor = self._clock.timed("reward", self._reward.score, images_B3HW, prompts)
        return scores
