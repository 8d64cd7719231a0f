"""``attach``: a stock diffusers pipeline whose denoising times a policy decides."""

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
    requested_steps,
    start_time,
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
    """Images of one call, and how many steps each of them took.

    Attributes:
        images: Output of the pipeline: PIL images, an array or a tensor, as ``output_type`` says.
        steps: Number of denoiser evaluations of each image.
        times: Times of each image, from its start down to 0.0. There is one more than steps.
        trajectories: Recorded steps of each image, for training. None without ``record=True``.
        nfe_rows: Number of denoiser rows computed in all. Guidance takes two per image and step.
        nsfw_content_detected: Whether the safety checker flagged each image and made it black. None without a checker.
        others: Other fields of the pipeline's output, by name.

    Example:
        >>> output = AdaptiveOutput(images=["image"], steps=[2], times=[[1.0, 0.4, 0.0]], trajectories=None, nfe_rows=4)
        >>> output.steps, output.times[0][-1]
        ([2], 0.0)
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
    """A pipeline and the policy that decides its times. Create it with ``attach``.

    A call borrows the pipe and restores it afterwards. You may replace the pipe's scheduler, denoiser, adapters, dtype
    or device between two calls. Calls from several threads wait for each other. Copies (``copy.deepcopy``, ``pickle``)
    have their own pipe.

    Attributes:
        pipe: Stock pipeline.
        policy: Policy that decides the times.
        solver: Name in ``tpdm.core.solvers.SOLVERS``.
        max_steps: Maximum number of steps of a call that gives none, >= 1.
        stop_below: A decided time below it becomes 0, in [0, 1).
        defaults: Arguments of the pipeline's call that are used if the call gives none.
        watch: Function that wraps the solver of a call, to observe every step. None leaves the solver as it is.
        spec: What ``attach`` resolved of the pipe. If it is None, as in copies, every call resolves it.

    Example:
        >>> import tpdm
        >>> fast = tpdm.attach(tpdm.load_pipeline("tinyworld"), "tinyworld")  # doctest: +SKIP
        >>> fast("red circle top", seeds=[0], quality=0.5).steps  # doctest: +SKIP
        [8]
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

        An argument of the pipeline has the first of these values that is there: the one of this call, the one of
        ``attach``, the one that the TPM was trained with, the pipeline's own default.

        Args:
            args: Positional arguments of the pipeline (the prompt).
            seeds: Seed of each image's initial noise, one integer per image (prompts x images per prompt).
            decision_seeds: Seed of each image's decisions, for ``sample=True``. None uses ``seeds``. With equal
                ``seeds`` (or ``latents``) they give different schedules for the same noise.
            sample: Whether to sample the decisions. By default the policy's mode is used.
            record: Whether to record ``trajectories``. A recorded image that reaches the cap jumps to its end, as
                training needs it. Other images spread their last steps evenly.
            max_steps: Maximum number of steps, >= 1. None uses the value of ``attach``.
            gamma: Price of a step for a gamma-conditioned TPM, one number or one per image. A lower gamma takes fewer
                steps. None uses the TPM's own.
            quality: Quality setting in [0, 1], one number or one per image, instead of gamma. 0 takes the fewest steps.
            pipeline_arguments: Arguments of the stock pipeline, unchanged.

        Returns:
            The images, with the steps and times of each.

        Raises:
            BackboneError: The pipeline does not know an argument, a policy cannot use it, or it has no effect: a scale
                that the pipeline ignores, a negative prompt without guidance.
            ConfigError: Seeds do not fit the images, or gamma or quality is not available or out of range.

        Example:
            >>> output = fast(["red circle top", "blue ring"], seeds=[0, 1], max_steps=12)  # doctest: +SKIP
            >>> output.images[1].save("ring.png")  # doctest: +SKIP
        """
        spec = self._resolve()
        arguments = merge_arguments(spec, args, pipeline_arguments, self.defaults)
        images = count_images(arguments)
        arguments.update(noise_arguments(arguments, seeds, images))
        limit = self.max_steps if max_steps is None else max_steps
        deciding = deciding_seeds(sample, seeds, decision_seeds)
        policy = condition_policy(self.policy, images, gamma, quality)
        strength = start_time(spec, arguments)
        # A fixed schedule contains its start.
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
            # The number of steps only sets the length of the progress bar.
            output = self.pipe(**arguments, num_inference_steps=requested_steps(limit, strength))
        stepper = scheduler.stepper
        others = dict(list(output.items())[1:])
        return AdaptiveOutput(
            images=output[0],  # pipelines of videos call the field frames
            steps=stepper.steps,
            times=stepper.times,
            trajectories=stepper.trajectories() if record else None,
            nfe_rows=sum(rows.rows_per_call),
            nsfw_content_detected=others.pop("nsfw_content_detected", None),
            others=others,
        )

    def __getstate__(self) -> dict[str, Any]:
        """State for copies, without the spec: it refers to the denoiser of the original."""
        return {**vars(self), "spec": None}

    def _resolve(self) -> PipelineSpec:
        """Returns the spec of the pipeline as it is now, with the solver that ``watch`` wrapped."""
        if self.spec is None:
            spec = PipelineSpec.of(self.pipe, self.policy, self.solver)
        else:
            spec = self.spec.refreshed(self.pipe, self.policy, self.solver)
        if self.watch is None:
            return spec
        mapping = replace(spec.time_mapping, solver=self.watch(spec.time_mapping.solver))
        return replace(spec, time_mapping=mapping)

    def quality_for(self, mean_steps: float) -> float:
        """Returns the ``quality`` at which the TPM takes a given number of steps on average.

        Args:
            mean_steps: Mean number of steps per image, >= 1.

        Returns:
            A quality in [0, 1].

        Raises:
            ConfigError: The policy has no calibrated gamma range.

        Example:
            >>> fast("red circle top", quality=fast.quality_for(7))  # doctest: +SKIP
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
    """Attaches a policy to a stock diffusers pipeline.

    A trained TPM comes with the settings of its training: solver, limits, and arguments of the pipeline's call such as
    the guidance scale. Arguments that this pipeline does not know are left out. Values given here or in a call take
    precedence.

    Args:
        pipe: Pipeline with a scheduler and a denoiser of a class in ``registry.DENOISERS``. It is not modified.
        policy: Policy, or folder or Hub id of a trained TPM. A TPM that is loaded here runs on the pipeline's device
            in fp32. One that is given stays where it is. The pipeline may be on another device, and you
            may move or cast it later.
        solver: Name in ``tpdm.core.solvers.SOLVERS``. None uses the policy's own, or "euler". For models that predict
            eps or v, "euler" is DDIM and "dpmpp_2m" is DPM-Solver++ 2M. No other solver fits them.
        max_steps: Maximum number of steps of an image, >= 1. An image that comes near it spreads its last steps evenly.
            None uses the policy's own, or 28.
        stop_below: A decided time below it becomes 0, in [0, 1). Fixed schedules ignore it. None uses the policy's own,
            or 0.01.
        defaults: Arguments of the pipeline's call that are used if the call gives none.
        pipeline_defaults: Arguments that are used if neither the call, ``defaults`` nor the TPM's training gives them.

    Returns:
        A callable that takes the pipeline's own arguments.

    Raises:
        BackboneError: The pipeline cannot be driven.
        CheckpointError: The folder cannot be read, or its TPM belongs to another denoiser.
        ConfigError: The solver is unknown, or a limit is out of range.

    Example:
        >>> from tpdm import attach, load_pipeline
        >>> from tpdm.policies.fixed import FixedSchedule
        >>> pipe = load_pipeline("tinyworld", device="cpu")  # doctest: +SKIP
        >>> attach(pipe, FixedSchedule([1.0, 0.5, 0.0]))("red circle top", seeds=[0]).steps  # doctest: +SKIP
        [2]
    """
    if isinstance(policy, str | Path):
        check_pipe(pipe)  # before anything is fetched
        policy = load_policy(policy).to(pipe._execution_device)
    trained = trained_config(policy)
    solver = solver or (trained.solver if trained else "euler")
    spec = PipelineSpec.of(pipe, policy, solver)
    if max_steps is None:
        max_steps = trained.max_steps if trained else 28
    if stop_below is None:
        stop_below = trained.stop_below if trained else 0.01
    check_limits(policy, max_steps, stop_below)
    # Another pipeline of the denoiser may know fewer arguments: SD1.5's image-to-image takes the size of its image.
    from_training = spec.guidance.usable(trained.call_defaults) if trained else {}
    merged = {**backbone_defaults(pipeline_defaults or {}, policy), **from_training, **(defaults or {})}
    return AdaptivePipeline(pipe, policy, solver, max_steps, stop_below, merged, spec=spec)


def feature_guidance(guidance: Guidance, policy: Policy, arguments: Mapping[str, Any]) -> float | None:
    """Returns the scale w at which a TPM combines features; None if it reads conditional features only.

    Args:
        guidance: How the pipeline guides.
        policy: Policy of the call.
        arguments: Arguments of the pipeline's call, with all defaults except the pipeline's own.
    """
    if not isinstance(policy, TimePredictionModule) or policy.shape.features != "guided":
        return None
    # Some pipelines of a family cannot guide (FLUX.1 Fill). They give features without guidance.
    return guidance.scale(arguments)
