"""The recipe: all settings of a training or evaluation run, as frozen dataclasses checked by pydantic.

Every default names its origin in brackets: [paper] arXiv 2412.01243, [release] the code published with it, [ours] this
project. Ranges are part of the types, so a wrong value is refused before anything is loaded. Paths may begin with ``~``
or contain ``$NAME``. ``tpdm.config.loader`` reads and writes recipes.
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
    """AdamW and its learning-rate schedule.

    Attributes:
        lr: Learning rate, > 0. [paper; release: 1e-6]
        lr_schedule: Learning-rate schedule over all updates, after the warm-up. [paper: constant]
        warmup_updates: Updates of linear warm-up from 0. [ours]
        beta1: Decay of the first moment, in [0, 1). [paper]
        beta2: Decay of the second moment, in [0, 1). [paper]
        eps: Term added to the denominator, > 0. [release]
        weight_decay: Decoupled weight decay, >= 0. [release]
        grad_clip: Maximum gradient norm, > 0. [paper]
        ema_decay: Decay, per update, of the exponential moving average (EMA) of the weights that validation and saved
            TPMs use, in [0, 1). 0 uses the weights themselves. [ours; paper: none]
    """

    lr: Above0 = 1e-5
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_updates: Count = 0
    beta1: Below1 = 0.9
    beta2: Below1 = 0.99
    eps: Above0 = 1e-5
    weight_decay: NonNegative = 0.0
    grad_clip: Above0 = 1.0
    ema_decay: Below1 = 0.0


@dataclass(frozen=True)
class RlConfig(Part):
    """RLOO with a clipped ratio.

    Attributes:
        updates: Number of rollouts, each followed by gradient steps. [paper: about 200]
        prompts_per_update: P, prompts of one rollout. P * K trajectories make one update. [ours: 64 * 4 = the
            paper's 256]
        samples_per_prompt: K, images of each prompt, >= 2: the group of the leave-one-out mean. [ours; release: 2]
        noise: ``shared`` starts all images of a prompt from the same noise, so that only the schedules differ
            [paper: s = (c, eps)]. ``independent`` gives each its own. [release]
        epochs: Passes over each rollout. [release]
        clip: Half width of the clip range of the ratio, in (0, 1). [release]
        ratio: Probability ratio of the whole ``trajectory`` [paper], or of each ``decision``. [ours]
        normalize_advantages: Divide advantages by the standard deviation of the ``batch``, of each prompt's
            ``group``, or of prompts with similar ``gamma`` (the same as ``batch`` without reward.gamma_range), or by
            nothing (``none``). [ours; release: none]
        entropy_weight: Weight of the bonus on the entropy of the Beta distribution, >= 0. [ours]
        kl_weight: Weight of the KL penalty towards the initial policy, >= 0. [release: 0; optional in the paper]
        rollout: ``static`` makes images in batches that end with their slowest image. ``continuous`` fills the slot
            of a finished image with the next one. Speed only: results are the same up to floating-point rounding.
            [ours]
        rollout_batch: Images in flight at once in each process. Memory only. [ours]
        update_batch: Decisions per forward pass of an update in each process. Memory only. [ours]
    """

    updates: Positive = 200
    prompts_per_update: Positive = 64
    samples_per_prompt: Annotated[Whole, Field(ge=2)] = 4
    noise: Literal["shared", "independent"] = "shared"
    epochs: Positive = 4
    clip: Annotated[Real, Field(gt=0, lt=1)] = 0.2
    ratio: Literal["trajectory", "decision"] = "trajectory"
    normalize_advantages: Literal["none", "batch", "group", "gamma"] = "batch"
    entropy_weight: NonNegative = 0.0
    kl_weight: NonNegative = 0.0
    rollout: Literal["static", "continuous"] = "static"
    rollout_batch: Positive = 16
    update_batch: Positive = 256


@dataclass(frozen=True)
class ValidationConfig(Part):
    """Validation: held-out prompts under the mode of the policy. [all ours]

    Attributes:
        every: Updates between validations.
        prompts: Number of held-out prompts.
        samples_per_prompt: Images of each prompt.
        gamma_points: With ``reward.gamma_range``, number of gammas, evenly placed over the range with both ends, at
            which each image is made; >= 2. The results calibrate ``quality``.
        judges: Rewards that score validations and are not trained on, named as in ``reward.name``.
        num_images_logged: Images of each validation that are saved with their schedules. 0 saves none.
    """

    every: Positive = 20
    prompts: Positive = 64
    samples_per_prompt: Positive = 1
    gamma_points: Annotated[Whole, Field(ge=2)] = 5
    judges: tuple[Text, ...] = ()
    num_images_logged: Count = 16

    def __post_init__(self) -> None:
        _check_different(self.judges)


@dataclass(frozen=True)
class CheckpointConfig(Part):
    """Checkpoints of a training run. [all ours]

    Attributes:
        every: Updates between checkpoints.
        keep: Number of latest checkpoints kept. The best TPM is kept in addition.
    """

    every: Positive = 10
    keep: Positive = 2


@dataclass(frozen=True)
class EvaluationConfig(Part):
    """``tpdm eval``: the baselines that a trained TPM is compared with, and the number of images. [all ours]

    Attributes:
        prompts: Maximum number of held-out test prompts. Differences of one per cent need hundreds.
        tuning_prompts: Held-out prompts, disjoint from those, on which baselines are tuned.
        step_grid: Numbers of steps of the fixed schedules that measure how many steps an image needs, ascending.
        step_grid_prompts: Number of test prompts for that measurement.
        tuned_baseline: Folder of a TPM trained with ``tpm.time_only``: the best fixed schedule that training finds.
            None leaves this baseline out.
        baseline_cache: Folder for results that do not depend on the TPM (fixed schedules, tuning of error control),
            so that several TPMs of one backbone share them. None keeps them in the evaluation's folder.
        judges: Rewards that were not trained on, named as in ``reward.name``.
        gamma_points: Number of values of quality from 0 to 1 at which a gamma-conditioned TPM is compared.
        samples_per_prompt: Images of each prompt, each from its own noise. 2 or more measure diversity.
        features: ``clip:PATH`` or ``python:package.module:function``: the image features on which distances between
            sets of images (FID, KID, CMMD) and diversity are measured. None leaves them out.
        reference: Folder of images that the distances are measured to. None uses images of the pipeline's own
            schedule of 28 steps.
    """

    prompts: Annotated[Whole, Field(ge=2)] = 512
    tuning_prompts: Annotated[Whole, Field(ge=2)] = 96
    step_grid: Annotated[tuple[Positive, ...], Field(min_length=2)] = (3, 4, 5, 6, 8, 10, 14, 20, 28)
    step_grid_prompts: Annotated[Whole, Field(ge=2)] = 256
    tuned_baseline: Location | None = None
    baseline_cache: Location | None = None
    judges: tuple[Text, ...] = ()
    gamma_points: Annotated[Whole, Field(ge=2)] = 5
    samples_per_prompt: Positive = 1
    features: Text | None = None
    reference: Location | None = None

    def __post_init__(self) -> None:
        if list(self.step_grid) != sorted(set(self.step_grid)):
            raise ValueError(f"step_grid is {list(self.step_grid)}. It must ascend. Sort it and drop repetitions")
        _check_different(self.judges)
        if self.reference is not None and self.features is None:
            raise ValueError(
                f"reference is '{self.reference}' without features. Distances are measured on features. Set features "
                "too"
            )


def _check_different(judges: tuple[str, ...]) -> None:
    if len(set(judges)) < len(judges):
        raise ValueError(f"judges is {', '.join(judges)}. Judges must differ. Give each one once")


@dataclass(frozen=True)
class Recipe(Part):
    """The settings of one run.

    Attributes:
        name: Name of the run: letters, digits, ``.``, ``_`` and ``-``.
        seed: Seed of the run, >= 0. The seed of every image follows from it. [ours]
        output: Run folder. ``{name}`` is replaced by the name at once. [ours]
        trackers: Experiment trackers that receive metrics in addition to metrics.jsonl. [ours]
        tracker_project: Project name in wandb and trackio. [ours]

    Example:
        >>> from tpdm.config.loader import make_recipe
        >>> recipe = make_recipe({"name": "first", "rl": {"updates": 50}})
        >>> recipe.output, recipe.rl.updates, recipe.rl.clip
        ('runs/first', 50, 0.2)
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
            # Networks that move between host and device during a call cannot be shared by images at different times.
            raise ValueError(
                f"rl.rollout is continuous and backbone.offload is {self.backbone.offload}. Continuous rollouts need "
                "all networks on the device. Set rl.rollout to static, or backbone.offload to none"
            )
        if self.tpm.init_steps_low_gamma is not None and self.reward.gamma_range is None:
            raise ValueError(
                f"tpm.init_steps_low_gamma is {self.tpm.init_steps_low_gamma} without reward.gamma_range. Set both or "
                "neither"
            )
        trained = {part.name for part in self.reward.parts} or {self.reward.name}
        for key, judges in (("validation", self.validation.judges), ("evaluation", self.evaluation.judges)):
            if seen := [judge for judge in judges if judge in trained]:
                raise ValueError(
                    f"{key}.judges contains {', '.join(seen)}, which is trained on. A judge must be a reward that "
                    "training does not use. Leave it out"
                )
        if self.tpm.layout == "release" and self.reward.gamma_range is not None:
            raise ValueError(
                f"reward.gamma_range is {list(self.reward.gamma_range)} with tpm.layout release. The published layout "
                "does not read gamma. Set tpm.layout to pooled"
            )
