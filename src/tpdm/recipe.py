"""The recipe: everything a training or evaluation run is told, as frozen dataclasses checked by pydantic.

In the docstrings below every default names its origin: [paper] arXiv 2412.01243, [release] the code published with it,
[ours] chosen by this project. Ranges are part of the types, so a value outside is refused before anything is loaded.
Recipes are read and written by ``tpdm.config``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field


def _no_boolean(value: object) -> object:
    # YAML reads yes and off as booleans, which Python would take for 1 and 0.
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {value}")
    return value


Text = Annotated[str, Field(min_length=1)]
Real = Annotated[float, BeforeValidator(_no_boolean)]
Whole = Annotated[int, BeforeValidator(_no_boolean)]
Count = Annotated[Whole, Field(ge=0)]
Positive = Annotated[Whole, Field(ge=1)]
NonNegative = Annotated[Real, Field(ge=0)]
Above0 = Annotated[Real, Field(gt=0)]
Below1 = Annotated[Real, Field(ge=0, lt=1)]


class _Part:
    """Makes pydantic refuse unknown keys, NaN and infinity in every part of a recipe."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class BackboneConfig(_Part):
    """The frozen text-to-image pipeline.

    Attributes:
        name_or_path: ``tinyworld`` (embedded), a diffusers folder or a hub id. [ours]
        guidance_scale: classifier-free guidance, >= 0; None leaves the pipeline's own. [ours; release: 7.0
            for SD3, 3.5 for SD3.5]
        height: pixels; None leaves the pipeline's own. [ours]
        width: pixels; set together with height. [ours]
        dtype: of the pipeline's weights; times and the TPM stay fp32. [ours]
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1`` ... [ours]
    """

    name_or_path: Text = "tinyworld"
    guidance_scale: NonNegative | None = None
    height: Positive | None = None
    width: Positive | None = None
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Text = "auto"

    def __post_init__(self) -> None:
        if (self.height is None) != (self.width is None):
            raise ValueError(f"height and width go together, got {self.height} x {self.width}: set both or none")


@dataclass(frozen=True)
class TpmConfig(_Part):
    """The Time Prediction Module.

    Attributes:
        layout: ``pooled`` keeps the true 2-D layout at any resolution [ours]; ``folded``, needed only for the
            release's checkpoint, is its own. [release]
        features: rows it reads under guidance: ``conditional`` [ours], or ``guided``, u + w (c - u). [release]
        channels: width of its convolutions. [release]
        grid: side of the adaptive pooling of the features, in cells. [ours; release pools to 16]
        init_alpha: last bias a, raw: alpha = 1 + exp(a) = 13.18. [release]
        init_beta: last bias b, raw: beta = 1 + exp(b) = 3.72, so the first mode is .818. [release]
        start_steps: the untrained TPM follows a fixed schedule of so many steps at its mode (``pooled`` alone;
            init_alpha is then not used); None starts with the equal ratios above. [ours]
        start_shift: shift of that schedule, > 0 (1 is uniform); None takes the pipeline's default one. [ours]
        init_from: folder of a TPM to start from; None starts from scratch. [ours]
    """

    layout: Literal["pooled", "folded"] = "pooled"
    features: Literal["conditional", "guided"] = "conditional"
    channels: Positive = 128
    grid: Positive = 8
    init_alpha: Real = 2.5
    init_beta: Real = 1.0
    start_steps: Positive | None = None
    start_shift: Above0 | None = None
    init_from: Text | None = None

    def __post_init__(self) -> None:
        if self.layout == "folded" and self.start_steps is not None:
            raise ValueError(f"start_steps needs layout pooled, got {self.start_steps} with folded: set it to null")
        if self.start_steps is None and self.start_shift is not None:
            raise ValueError(f"start_shift needs start_steps, got {self.start_shift} without: set both or none")


@dataclass(frozen=True)
class SamplingConfig(_Part):
    """How a chosen schedule is integrated.

    Attributes:
        solver: ``euler`` [paper], ``dpmpp_2m`` [paper, for SD1.5] or ``ab2`` [ours].
        max_steps: network evaluations at most; the last one always lands on t = 0. [release: 28 in training]
        stop_below: a time below this becomes 0, in [0, 1). [release: .01 in training]
    """

    solver: Literal["euler", "dpmpp_2m", "ab2"] = "euler"
    max_steps: Positive = 28
    stop_below: Below1 = 0.01


@dataclass(frozen=True)
class RewardPartConfig(_Part):
    """One part of a composite reward. [all ours]

    Attributes:
        name: of a reward, as in ``reward.name``; no composite.
        weight: of its score in standard deviations, not 0; below 0 it is a price.
    """

    name: Text
    weight: Real = 1.0

    def __post_init__(self) -> None:
        if self.weight == 0:
            raise ValueError(f"the weight of part '{self.name}' is 0: leave the part out, or give it another weight")


COMPOSITE = "composite"


@dataclass(frozen=True)
class RewardConfig(_Part):
    """What the final image is worth, and what a step costs.

    Attributes:
        name: of the reward (``tpdm.rewards.load`` lists them), or ``composite`` for ``parts``. [ours; paper and
            release: ImageReward]
        parts: of a composite reward; each is standardised on a calibration batch, so that weights compare. [ours]
        form: ``discounted`` is eq. (9) [paper], ``additive`` is score - step_cost * N. [ours]
        gamma: discount of eq. (9), in (0, 1]; lower means fewer steps. [paper: .97 gives about 15,
            .85 about 7.5]
        offset: added to the score before the discount; keep the sum positive, or eq. (9) rewards more steps.
            [ours: 0; release: 3.10 with ImageReward]
        step_cost: lambda of the additive form, reward per step, >= 0. [ours]
        batch: images that a reward scores at once; memory only, never the result but for rounding. [ours]
        timeout: seconds to wait for a remote reward's answer, > 0. [ours]
        token_env: environment variable that holds a remote reward's token; None sends none. [ours]
    """

    name: Text = "tinyworld"
    parts: tuple[RewardPartConfig, ...] = ()
    form: Literal["discounted", "additive"] = "discounted"
    gamma: Annotated[Real, Field(gt=0, le=1)] = 0.97
    offset: Real = 0.0
    step_cost: NonNegative = 0.0
    batch: Positive = 64
    timeout: Above0 = 60.0
    token_env: Text | None = None

    def __post_init__(self) -> None:
        if (self.name == COMPOSITE) != bool(self.parts):
            raise ValueError(
                f"name {COMPOSITE} and parts go together, got '{self.name}' with {len(self.parts)} parts: set both"
            )
        names = [part.name for part in self.parts]
        if COMPOSITE in names or len(set(names)) < len(names):
            raise ValueError(f"the parts are different single rewards, got {', '.join(names)}: give each one once")
        if self.parts and self.form == "discounted" and self.offset <= 0:
            raise ValueError(
                f"a composite is 0 on average, and a discount rewards more steps below 0, got offset {self.offset}: "
                "set offset (3 is about three standard deviations), or form additive"
            )

    @property
    def label(self) -> str:
        """What artefacts say of the reward: its name, or its parts with their weights."""
        return " + ".join(f"{part.weight:g} x {part.name}" for part in self.parts) or self.name


@dataclass(frozen=True)
class PromptsConfig(_Part):
    """Where prompts come from.

    Attributes:
        source: ``tinyworld`` (its caption grammar), a prompt file, or ``hub:owner/name``, a data set of the hub. [ours;
            paper: captions of COCO, Laion-Art and COYO]
        column: of a table, or key of JSON objects, that holds the text. [release: jsonl with "prompt"]
        held_out_fraction: kept for validation by content hash, in [0, 1). [ours]
        limit: distinct prompts read at most; None reads all. [ours]
        negative: column of the negative prompt; None reads ``negative`` where there is one. [ours]
        subset: of a data set; None where it has only one. [ours]
        split: of a data set. [ours]
    """

    source: Text = "tinyworld"
    column: Text = "prompt"
    held_out_fraction: Below1 = 0.1
    limit: Positive | None = None
    negative: Text | None = None
    subset: Text | None = None
    split: Text = "train"


@dataclass(frozen=True)
class OptimizerConfig(_Part):
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
class RlConfig(_Part):
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
        normalise_advantages: divide them by the standard deviation of their ``group`` (each prompt is heard alike)
            or of the whole ``batch``, or by nothing (``none``). [ours; release: none]
        entropy_weight: bonus on the Beta's entropy, >= 0. [ours]
        kl_weight: penalty towards the initial policy, >= 0. [release: 0; optional in the paper]
        rollout_batch: images in flight at once; memory only, never the result. [ours]
        update_batch: decisions per forward pass of an update; memory only, never the result. [ours]
    """

    updates: Positive = 200
    prompts_per_update: Positive = 64
    samples_per_prompt: Annotated[Whole, Field(ge=2)] = 4
    noise: Literal["shared", "independent"] = "shared"
    epochs: Positive = 4
    clip: Annotated[Real, Field(gt=0, lt=1)] = 0.2
    ratio: Literal["trajectory", "decision"] = "trajectory"
    normalise_advantages: Literal["none", "batch", "group"] = "batch"
    entropy_weight: NonNegative = 0.0
    kl_weight: NonNegative = 0.0
    rollout_batch: Positive = 16
    update_batch: Positive = 256


@dataclass(frozen=True)
class ValidationConfig(_Part):
    """Held-out prompts under the mode of the policy. [all ours]

    Attributes:
        every: updates between validations.
        prompts: held-out prompts used each time.
        samples_per_prompt: images of each.
    """

    every: Positive = 20
    prompts: Positive = 64
    samples_per_prompt: Positive = 1


@dataclass(frozen=True)
class CheckpointConfig(_Part):
    """What survives an interruption. [all ours]

    Attributes:
        every: updates between checkpoints.
        keep: latest checkpoints kept (the best one is kept besides).
    """

    every: Positive = 10
    keep: Positive = 2


@dataclass(frozen=True)
class Recipe(_Part):
    """One run.

    Attributes:
        name: letters, digits, ``.``, ``_`` and ``-``.
        seed: of the run, >= 0; every image's seed follows from it. [ours]
        output: run folder; ``{name}`` stands for the name and is filled in at once. [ours]
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Count = 0
    output: Text = "runs/{name}"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    tpm: TpmConfig = field(default_factory=TpmConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    rl: RlConfig = field(default_factory=RlConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", self.output.replace("{name}", self.name))
