"""The recipe: everything a training or evaluation run is told, as frozen dataclasses checked by pydantic.

In the docstrings below every default names its origin: [paper] arXiv 2412.01243, [release] the code published with it,
[ours] chosen by this project. Ranges are part of the types, so a value outside is refused before anything is loaded. In
paths ``~`` and ``$NAME`` mean what they mean to a shell (``tpdm.core.io.expand``).
Recipes are read and written by ``tpdm.config.loader``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from tpdm.config.data import COMPOSITE, PromptsConfig, RewardConfig, RewardPartConfig
from tpdm.config.fields import Above0, Below1, Count, Location, NonNegative, Part, Positive, Real, Text, Whole, expanded
from tpdm.config.model import BackboneConfig, SamplingConfig, TpmConfig

__all__ = [
    "COMPOSITE",
    "BackboneConfig",
    "CheckpointConfig",
    "EvaluationConfig",
    "OptimizerConfig",
    "PromptsConfig",
    "Recipe",
    "RewardConfig",
    "RewardPartConfig",
    "RlConfig",
    "SamplingConfig",
    "TpmConfig",
    "ValidationConfig",
]


@dataclass(frozen=True)
class OptimizerConfig(Part):
    """AdamW.

    Attributes:
        lr: learning rate, > 0. [paper; release: 1e-6]
        lr_schedule: over all updates, after the warm-up. [paper: constant]
        warmup_updates: linear rise from 0. [ours]
        beta1: in [0, 1). [paper]
        beta2: in [0, 1). [paper]
        eps: > 0. [release]
        weight_decay: >= 0. [release]
        grad_clip: largest gradient norm, > 0. [paper]
        average: decay, per update, of a running average of the weights that validation and artefacts use, in [0, 1);
            0 uses the weights themselves. [ours; paper: none]
    """

    lr: Above0 = 1e-5
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_updates: Count = 0
    beta1: Below1 = 0.9
    beta2: Below1 = 0.99
    eps: Above0 = 1e-5
    weight_decay: NonNegative = 0.0
    grad_clip: Above0 = 1.0
    average: Below1 = 0.0


@dataclass(frozen=True)
class RlConfig(Part):
    """RLOO with a clipped ratio.

    Attributes:
        updates: number of rollout-and-learn rounds. [paper: about 200]
        prompts_per_update: P; P * K trajectories make one update. [ours: 64 * 4 = the paper's 256]
        samples_per_prompt: K >= 2, the group of the leave-one-out mean. [ours; release: 2]
        noise: ``shared`` within a group, so that the schedule alone differs [paper: s = (c, eps)], or
            ``independent``. [release]
        epochs: passes over one rollout. [release]
        clip: half width of the ratio's clip range, in (0, 1). [release]
        ratio: of the whole ``trajectory`` [paper] or per ``decision``. [ours]
        normalise_advantages: divide them by the standard deviation of their ``group`` (each prompt is heard alike),
            of prompts near on the ``dial`` (every price is heard alike; without a dial, ``batch``)
            or of the whole ``batch``, or by nothing (``none``). [ours; release: none]
        entropy_weight: bonus on the Beta's entropy, >= 0. [ours]
        kl_weight: penalty towards the initial policy, >= 0. [release: 0; optional in the paper]
        rollout: ``waiting`` makes images in batches, each of which waits for its slowest one; ``continuous`` gives the
            place of a finished image to the next one, so that calls stay full to the end of an update's images. Speed
            only, never the result but for rounding. [ours]
        rollout_batch: images in flight at once in each process; memory only, never the result. [ours]
        update_batch: decisions per forward pass of an update in each process; memory only, never the result. [ours]
    """

    updates: Positive = 200
    prompts_per_update: Positive = 64
    samples_per_prompt: Annotated[Whole, Field(ge=2)] = 4
    noise: Literal["shared", "independent"] = "shared"
    epochs: Positive = 4
    clip: Annotated[Real, Field(gt=0, lt=1)] = 0.2
    ratio: Literal["trajectory", "decision"] = "trajectory"
    normalise_advantages: Literal["none", "batch", "group", "dial"] = "batch"
    entropy_weight: NonNegative = 0.0
    kl_weight: NonNegative = 0.0
    rollout: Literal["waiting", "continuous"] = "waiting"
    rollout_batch: Positive = 16
    update_batch: Positive = 256


@dataclass(frozen=True)
class ValidationConfig(Part):
    """Held-out prompts under the mode of the policy. [all ours]

    Attributes:
        every: updates between validations.
        prompts: held-out prompts used each time.
        samples_per_prompt: images of each.
        dial_points: with ``reward.gamma_range``, gammas at which each image is made: 2 or more, over the range with
            both its ends. They calibrate ``quality``.
        judges: rewards, named as in ``reward.name``, that score validations and teach nothing.
        pictures: images that are kept of each validation, with their schedules; 0 keeps none.
    """

    every: Positive = 20
    prompts: Positive = 64
    samples_per_prompt: Positive = 1
    dial_points: Annotated[Whole, Field(ge=2)] = 5
    judges: tuple[Text, ...] = ()
    pictures: Count = 16

    def __post_init__(self) -> None:
        _check_different(self.judges)


@dataclass(frozen=True)
class CheckpointConfig(Part):
    """What survives an interruption. [all ours]

    Attributes:
        every: updates between checkpoints.
        keep: latest checkpoints kept (the best one is kept besides).
    """

    every: Positive = 10
    keep: Positive = 2


@dataclass(frozen=True)
class EvaluationConfig(Part):
    """``tpdm eval``: what a trained TPM is compared with, and on how many images. [all ours]

    Attributes:
        prompts: held-out prompts of the test at most; differences of one per cent need hundreds.
        tuning_prompts: held-out prompts, others than those, on which the controls are chosen.
        grid: steps of the fixed schedules from which the steps that an image needs are measured, rising.
        grid_prompts: of the test, on which that is done.
        tuned: folder of a TPM trained with ``tpm.time_only``: the best fixed schedule that training finds; None leaves
            that control out.
        controls: folder where what does not depend on the TPM (fixed schedules, error control's tuning) is kept and
            looked for, so that several TPMs of one backbone share it; None keeps it with the evaluation.
        judges: rewards that were not trained on, as ``reward.name`` names them.
        dial_points: values of quality from 0 to 1 at which a TPM with a dial is compared.
        samples_per_prompt: images of each prompt, on noises of their own; 2 or more measure diversity.
        features: ``clip:PLACE`` or ``python:package.module:function``, on which distances between sets of images
            (FID, KID, CMMD) and diversity are measured; None leaves them out.
        reference: folder of pictures that the distances are to; None takes those of the pipeline's own 28 steps.
    """

    prompts: Annotated[Whole, Field(ge=2)] = 512
    tuning_prompts: Annotated[Whole, Field(ge=2)] = 96
    grid: Annotated[tuple[Positive, ...], Field(min_length=2)] = (3, 4, 5, 6, 8, 10, 14, 20, 28)
    grid_prompts: Annotated[Whole, Field(ge=2)] = 256
    tuned: Location | None = None
    controls: Location | None = None
    judges: tuple[Text, ...] = ()
    dial_points: Annotated[Whole, Field(ge=2)] = 5
    samples_per_prompt: Positive = 1
    features: Text | None = None
    reference: Location | None = None

    def __post_init__(self) -> None:
        if list(self.grid) != sorted(set(self.grid)):
            raise ValueError(f"the grid rises, got {list(self.grid)}: sort it and drop repetitions")
        _check_different(self.judges)
        if self.reference is not None and self.features is None:
            raise ValueError(
                f"reference needs features to measure distances on, got '{self.reference}' alone: set both"
            )


def _check_different(judges: tuple[str, ...]) -> None:
    if len(set(judges)) < len(judges):
        raise ValueError(f"judges are different rewards, got {', '.join(judges)}: give each one once")


@dataclass(frozen=True)
class Recipe(Part):
    """One run.

    Attributes:
        name: letters, digits, ``.``, ``_`` and ``-``.
        seed: of the run, >= 0; every image's seed follows from it. [ours]
        output: run folder; ``{name}`` stands for the name and is filled in at once. [ours]
        trackers: that are told of the run besides metrics.jsonl. [ours]
        tracker_project: under which wandb and trackio file it. [ours]
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Count = 0
    output: Location = "runs/{name}"
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    tracker_project: Text = "tpdm"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    tpm: TpmConfig = field(default_factory=TpmConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    rl: RlConfig = field(default_factory=RlConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", expanded(self.output.replace("{name}", self.name)))
        if self.rl.rollout == "continuous" and self.backbone.offload != "none":
            # Networks that come and go during a call cannot be shared by images at different times.
            raise ValueError(
                f"rl.rollout continuous goes with backbone.offload none, got {self.backbone.offload}: set rl.rollout "
                "to waiting, or backbone.offload to none"
            )
        if self.tpm.fast_steps is not None and self.reward.gamma_range is None:
            raise ValueError(f"tpm.fast_steps needs reward.gamma_range, got {self.tpm.fast_steps} without: set both")
        trained = {part.name for part in self.reward.parts} or {self.reward.name}
        for key, judges in (("validation", self.validation.judges), ("evaluation", self.evaluation.judges)):
            if seen := [judge for judge in judges if judge in trained]:
                raise ValueError(
                    f"{key}.judges are rewards that training does not see, got {', '.join(seen)}, which is trained on: "
                    "leave it out"
                )
        if self.tpm.layout == "folded" and self.reward.gamma_range is not None:
            raise ValueError("reward.gamma_range needs tpm.layout pooled, got folded: the release has no dial")
