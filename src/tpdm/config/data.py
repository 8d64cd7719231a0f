"""The recipe's sections about what is learnt from: the reward and the prompts.

Where a default comes from stands in brackets, as ``tpdm.config.recipe`` explains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from tpdm.config.fields import Above0, Below1, Gamma, Location, NonNegative, Part, Positive, Real, Text


@dataclass(frozen=True)
class RewardPartConfig(Part):
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
class RewardConfig(Part):
    """What the final image is worth, and what a step costs.

    Attributes:
        name: of the reward (``tpdm.rewards.loading`` lists them), or ``composite`` for ``parts``. [ours; paper and
            release: ImageReward]
        parts: of a composite reward; each is standardised on a calibration batch, so that weights compare. [ours]
        form: ``discounted`` is eq. (9) [paper], ``additive`` is score - step_cost * N. [ours]
        gamma: discount of eq. (9), in (0, 1]; lower means fewer steps. [paper: .97 gives about 15,
            .85 about 7.5]
        gamma_range: (low, high) trains one TPM for all gammas between, each prompt of an update at another; gamma,
            within it, is then what is used where none is asked for. None trains for gamma alone. [ours]
        offset: added to the score before the discount; keep the sum positive, or eq. (9) rewards more steps.
            [ours: 0; release: 3.10 with ImageReward]
        step_cost: lambda of the additive form, reward per step, >= 0. [ours]
        batch: images that a reward scores at once; memory only, never the result but for rounding. [ours]
        device: of the reward model, ``auto`` (that of the backbone), ``cpu``, ``cuda:1`` ... [ours]
        timeout: seconds to wait for a remote reward's answer, > 0. [ours]
        token_env: environment variable that holds a remote reward's token; None sends none. [ours]
    """

    name: Text = "tinyworld"
    parts: tuple[RewardPartConfig, ...] = ()
    form: Literal["discounted", "additive"] = "discounted"
    gamma: Annotated[Real, Field(gt=0, le=1)] = 0.97
    gamma_range: tuple[Gamma, Gamma] | None = None
    offset: Real = 0.0
    step_cost: NonNegative = 0.0
    batch: Positive = 64
    device: Text = "auto"
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

        if self.step_cost and self.form == "discounted":
            raise ValueError(
                f"step_cost is of form additive, got {self.step_cost} with discounted, priced by gamma: set one"
            )
        if self.gamma_range is not None:
            low, high = self.gamma_range
            if self.form != "discounted":
                raise ValueError("gamma_range needs form discounted, got additive: a dial turns gamma")
            if not low < high or not low <= self.gamma <= high:
                raise ValueError(
                    f"gamma_range is [low, high] with gamma between, got {[low, high]} and gamma {self.gamma}"
                )

    @property
    def label(self) -> str:
        """What artefacts say of the reward: its name, or its parts with their weights."""
        return " + ".join(f"{part.weight:g} x {part.name}" for part in self.parts) or self.name


@dataclass(frozen=True)
class PromptsConfig(Part):
    """Where prompts come from.

    Attributes:
        source: ``tinyworld`` (its caption grammar), a prompt file, or ``hub:owner/name``, a data set of the hub. [ours;
            paper: captions of COCO, Laion-Art and COYO]
        column: of a table, or key of JSON objects, that holds the text; None takes the one called prompt, or else
            the one with another usual name, such as text or caption. [ours; release: jsonl with "prompt"]
        held_out_fraction: kept for validation by content hash, in [0, 1). [ours]
        limit: distinct prompts read at most; None reads all. [ours]
        negative: column of the negative prompt; None takes the one with a usual name, such as negative or
            negative_prompt, where there is one. [ours]
        subset: of a data set; None where it has only one. [ours]
        split: of a data set. [ours]
    """

    source: Location = "tinyworld"
    column: Text | None = None
    held_out_fraction: Below1 = 0.1
    limit: Positive | None = None
    negative: Text | None = None
    subset: Text | None = None
    split: Text = "train"

    def __post_init__(self) -> None:
        hub = self.source.startswith("hub:")
        for key, value, plain in (("subset", self.subset, None), ("split", self.split, "train")):
            if value != plain and not hub:
                raise ValueError(
                    f"{key} is of a data set (source hub:owner/name), got '{value}' with source '{self.source}': leave "
                    "it out"
                )
        # Older recipes were written with column: prompt, whatever their source.
        for key, value, plain in (("column", self.column, "prompt"), ("negative", self.negative, None)):
            if value not in (None, plain) and self.source == "tinyworld":
                raise ValueError(
                    f"{key} is of a table or of JSON objects, got '{value}' with source tinyworld: leave it out"
                )
