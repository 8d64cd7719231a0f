"""``attach(pipe, policy)``: the stock pipeline, called as before, with its times decided by a policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tpdm.core.solvers import Solver
from tpdm.core.stepper import Stepper
from tpdm.core.stepper_checks import check_limits, check_start
from tpdm.core.types import Policy, Trajectory
from tpdm.pipelines.arguments import (
    count_images,
    deciding_seeds,
    merge_arguments,
    noise_arguments,
    start_time,
    told_steps,
)
from tpdm.pipelines.compatibility import PipelineSpec, check_pipe, trained_config
from tpdm.pipelines.driving import driven
from tpdm.pipelines.feature_hooks import FeatureHooks
from tpdm.pipelines.guidance import Guidance
from tpdm.policies.conditioned import condition_policy, quality_for
from tpdm.policies.pretrained import backbone_defaults, load_policy
from tpdm.policies.tpm import TimePredictionModule


@dataclass(frozen=True)
class AdaptiveOutput:
    """What a call returns.

    Attributes:
        images: as the pipeline makes them (list of PIL images, array or tensor, by ``output_type``).
        steps: network evaluations of each image.
        times: times of each image from its start to 0.0, one more than its steps.
        trajectories: the record of each image; None unless ``record=True``.
        nfe_rows: denoiser rows computed in all; guidance takes two per image and step.
        nsfw_content_detected: of each image, whether the pipeline's safety checker flagged it and made it black; None
            where there is no checker.
        others: what else the pipeline's output holds, by name.
    """

    images: Any
    steps: list[int]
    times: list[list[float]]
    trajectories: list[Trajectory] | None
    nfe_rows: int
    nsfw_content_detected: list[bool] | None = None
    others: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AdaptivePipeline:
    """A pipeline with a policy; made by ``attach``. Each call borrows the pipe and gives it back as it was.

    What may change on the pipe is read in every call: its scheduler, denoiser, adapters, dtype and device. Calls from
    several threads wait for each other. Copies (``copy.deepcopy``, ``pickle``) have a pipe of their own.

    Attributes:
        pipe: the stock pipeline.
        policy: decides the times.
        solver: name in ``tpdm.core.solvers.SOLVERS``.
        max_steps: cap of a call that names none.
        stop_below: a decided time below it becomes 0.
        defaults: arguments of the pipeline's call where the user gives none.
        watch: (solver) -> what steps in its place, for those who look at every step; None leaves it.
        spec: What ``attach`` resolved of the pipe; None resolves it in every call, as copies do.
    """

    pipe: Any
    policy: Policy
    solver: str
    max_steps: int
    stop_below: float
    defaults: Mapping[str, object]
    watch: Callable[[Solver], Solver] | None = None
    spec: PipelineSpec | None = field(default=None, repr=False, compare=False)

    def __call__(
        self,
        *args: Any,
        seeds: Sequence[int] | None = None,
        decision_seeds: Sequence[int] | None = None,
        sample: bool = False,
        record: bool = False,
        max_steps: int | None = None,
        gamma: float | Sequence[float] | None = None,
        quality: float | Sequence[float] | None = None,
        **pipeline_arguments: Any,
    ) -> AdaptiveOutput:
        """Generates images.

        Args:
            args: passed on to the pipeline (the prompt).
            seeds: one integer per image (prompts x images per prompt), the seed of its initial noise.
            decision_seeds: one integer per image for ``sample=True``; None takes ``seeds``. Give them with
                equal ``seeds`` (or with ``latents``) for different schedules on the same noise.
            sample: sample the decisions instead of taking the policy's mode.
            record: keep what replay needs, in ``trajectories``; an image at the cap then jumps to its end, as training
                wants it, instead of landing in equal steps.
            max_steps: at most so many steps, instead of the value of ``attach``.
            gamma: price of a step for a TPM with a dial, one number or one per image; lower means fewer steps.
            quality: the dial from 0 (fewest steps) to 1 (most), one number or one per image, instead of gamma. With
                neither, the TPM's own gamma.
            pipeline_arguments: of the stock pipeline, unchanged.

        Raises:
            BackboneError: an argument that this pipeline does not know, that cannot go with a policy, or that would
                have no effect: a scale that the pipeline does not use, a negative prompt where it does not guide.
            ConfigError: seeds that do not fit, or a dial that is not there or is set outside its range.
        """
        spec = self._resolve()
        arguments = merge_arguments(spec, args, pipeline_arguments, self.defaults)
        images = count_images(arguments)
        arguments.update(noise_arguments(arguments, seeds, images))
        limit = self.max_steps if max_steps is None else max_steps
        deciding = deciding_seeds(sample, seeds, decision_seeds)
        policy = condition_policy(self.policy, images, gamma, quality)
        strength = start_time(spec, arguments)
        # A fixed list says itself where it starts.
        t_start = strength if policy.fixed_steps is None else None
        # Wrong seeds and limits are reported before the text encoders run.
        check_start(policy, images, deciding, t_start)
        check_limits(policy, limit, self.stop_below)

        def make_stepper(device: str | torch.device | None) -> Stepper:
            return Stepper(
                policy,
                spec.time_mapping.solver,
                images=images,
                max_steps=limit,
                stop_below=self.stop_below,
                seeds=deciding,
                t_start=t_start,
                record=record,
                device="cpu" if device is None else device,
            )

        guidance = feature_guidance(spec.guidance, self.policy, arguments)
        hooks = (lambda: FeatureHooks(spec.denoiser, guidance)) if self.policy.reads_features else None
        guided = spec.guidance.may_double(arguments)
        with driven(self.pipe, spec, make_stepper, hooks, guided) as (scheduler, rows):
            # The number of steps only sizes the progress bar.
            output = self.pipe(**arguments, num_inference_steps=told_steps(limit, strength))
        stepper = scheduler.stepper
        others = dict(list(output.items())[1:])
        return AdaptiveOutput(
            images=output[0],  # the field is called frames where they are videos
            steps=stepper.steps,
            times=stepper.times,
            trajectories=stepper.trajectories() if record else None,
            nfe_rows=sum(rows.rows_per_call),
            nsfw_content_detected=others.pop("nsfw_content_detected", None),
            others=others,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the spec, which belongs to the denoiser of the original."""
        return {**vars(self), "spec": None}

    def _resolve(self) -> PipelineSpec:
        """The spec of the pipeline as it is now, with the solver of ``watch``."""
        if self.spec is None:
            spec = PipelineSpec.of(self.pipe, self.policy, self.solver)
        else:
            spec = self.spec.refreshed(self.pipe, self.policy, self.solver)
        if self.watch is None:
            return spec
        mapping = replace(spec.time_mapping, solver=self.watch(spec.time_mapping.solver))
        return replace(spec, time_mapping=mapping)

    def quality_for(self, mean_steps: float) -> float:
        """The ``quality`` at which the TPM takes that many steps on average.

        See ``tpdm.policies.conditioned.quality_for``.
        """
        return quality_for(self.policy, mean_steps)


def attach(
    pipe: Any,
    policy: Policy | str | Path,
    *,
    solver: str | None = None,
    max_steps: int | None = None,
    stop_below: float | None = None,
    defaults: Mapping[str, object] | None = None,
    pipeline_defaults: Mapping[str, object] | None = None,
) -> AdaptivePipeline:
    """Joins a stock diffusers pipeline and a policy.

    Args:
        pipe: a pipeline with a scheduler and a denoiser of a class in ``backbones.DENOISERS``; left as it is.
        policy: the policy, or the folder or hub id of a trained one, which is loaded to where the pipeline computes. A
            trained one brings what it was trained with: solver, limits, and arguments of the pipeline's call such as
            the guidance scale, as far as this pipeline knows them. What is given here, or in a call, goes first. A TPM
            computes where it lies, in fp32; the pipeline may lie elsewhere, or be moved or cast later.
        solver: a name in ``tpdm.core.solvers.SOLVERS``; None is the policy's own, or "euler". For models that predict
            eps or v, "euler" is DDIM and "dpmpp_2m" DPM-Solver++ 2M on their path, and there is no other.
        max_steps: no image takes more steps, at least 1, and those that near it land in equal ones; None is the
            policy's own, or 28.
        stop_below: a decided time below it becomes 0, in [0, 1); None is the policy's own, or 0.01. Fixed schedules
            ignore it.
        defaults: arguments of the pipeline's call for when the user does not give them.
        pipeline_defaults: Arguments that the pipeline needs where neither the call, ``defaults`` nor the TPM's training
            gives them.

    Raises:
        BackboneError: the pipeline cannot be driven.
        CheckpointError: the folder cannot be read, or its TPM belongs to another denoiser.
        ConfigError: the solver is unknown, or a limit is out of range.
    """
    if isinstance(policy, str | Path):
        check_pipe(pipe)  # before anything is fetched
        policy = load_policy(policy).to(pipe._execution_device)  # a policy that is given is left where it is
    trained = trained_config(policy)
    solver = solver or (trained.solver if trained else "euler")
    spec = PipelineSpec.of(pipe, policy, solver)
    if max_steps is None:
        max_steps = trained.max_steps if trained else 28
    if stop_below is None:
        stop_below = trained.stop_below if trained else 0.01
    check_limits(policy, max_steps, stop_below)
    # Another pipeline of the denoiser may know fewer arguments: the size of SD1.5's image-to-image is its picture's.
    brought = spec.guidance.brought(trained.call_defaults) if trained else {}
    merged = {**backbone_defaults(pipeline_defaults or {}, policy), **brought, **(defaults or {})}
    return AdaptivePipeline(pipe, policy, solver, max_steps, stop_below, merged, spec=spec)


def feature_guidance(guidance: Guidance, policy: Policy, arguments: Mapping[str, Any]) -> float | None:
    """w of this call, for a TPM that reads guided features; None for other policies and where nothing is guided."""
    if not isinstance(policy, TimePredictionModule) or policy.shape.features != "guided":
        return None
    # Some pipelines of a family cannot guide (FLUX.1 Fill): their features are those of guidance switched off.
    return guidance.scale(arguments)
