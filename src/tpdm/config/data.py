"""Sections of a recipe about the data: ``reward`` and ``prompts``.

``tpdm.config.recipe`` explains the origins in brackets.
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
        name: Name of a single reward, as in ``reward.name``.
        weight: Weight of its standardized score, not 0. A negative weight is a penalty.
    """

    name: Text
    weight: Real = 1.0

    def __post_init__(self) -> None:
        if self.weight == 0:
            raise ValueError(
                f"weight of '{self.name}' is 0. It must not be 0. Leave the part out, or set another weight"
            )


COMPOSITE = "composite"


@dataclass(frozen=True)
class RewardConfig(Part):
    """The reward of the final image, and the price of a step.

    Attributes:
        name: Name of the reward (``tpdm.rewards.loading`` lists them), or ``composite`` for ``parts``. [ours; paper
            and release: ImageReward]
        parts: Parts of a composite reward. Each is standardized on a calibration batch, so that weights are
            comparable. [ours]
        form: ``discounted`` is eq. (9) [paper]; ``additive`` is score - step_cost * N. [ours]
        gamma: Discount of eq. (9), in (0, 1]. Lower means fewer steps. [paper: .97 gives about 15 steps, .85 about
            7.5]
        gamma_range: (low, high): train one gamma-conditioned TPM for all gammas in between; each prompt of an update
            draws its own. ``gamma``, which must lie inside, is then the default when the TPM is used. None trains for
            ``gamma`` only. [ours]
        offset: Added to the score before the discount. Keep the sum positive: below 0, eq. (9) rewards more steps.
            [ours: 0; release: 3.10 with ImageReward]
        step_cost: Lambda of the additive form, reward per step, >= 0. [ours]
        batch: Images that a reward scores at once. Memory only. [ours]
        device: Device of the reward model: ``auto`` (that of the backbone), ``cpu``, ``cuda:1`` ... [ours]
        timeout: Seconds to wait for the answer of a remote reward, > 0. [ours]
        token_env: Environment variable that contains the token of a remote reward. None sends no token. [ours]
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
                f"name is '{self.name}' with {len(self.parts)} parts. Only name {COMPOSITE} has parts. Set both"
            )
        names = [part.name for part in self.parts]
        if COMPOSITE in names or len(set(names)) < len(names):
            raise ValueError(f"parts is {', '.join(names)}. Parts must be different single rewards. Give each one once")
        if self.parts and self.form == "discounted" and self.offset <= 0:
            raise ValueError(
                f"offset is {self.offset} with a composite reward. A composite is 0 on average, and below 0 the "
                "discount rewards more steps. Set offset (3 is about three standard deviations), or form additive"
            )
        if self.step_cost and self.form == "discounted":
            raise ValueError(
                f"step_cost is {self.step_cost} with form discounted, which uses gamma. Set form additive, or "
                "step_cost 0"
            )
        if self.gamma_range is not None:
            low, high = self.gamma_range
            if self.form != "discounted":
                raise ValueError(
                    "gamma_range is set with form additive. Only form discounted has gamma. Set form discounted"
                )
            if not low < high or not low <= self.gamma <= high:
                raise ValueError(
                    f"gamma_range is {[low, high]} and gamma is {self.gamma}. low must be below high, and gamma must "
                    "lie between them. Correct one of them"
                )

    @property
    def label(self) -> str:
        """Name of the reward in reports and saved TPMs: its own, or its parts with their weights."""
        return " + ".join(f"{part.weight:g} x {part.name}" for part in self.parts) or self.name


@dataclass(frozen=True)
class PromptsConfig(Part):
    """The source of prompts.

    Attributes:
        source: ``tinyworld`` (its caption grammar), a prompt file, or ``hub:owner/name``, a dataset of the hub.
            [ours; paper: captions of COCO, Laion-Art and COYO]
        column: Column of a table, or key of JSON objects, that contains the prompt. None finds it by its name: prompt,
            or another usual name such as text or caption. [ours; release: jsonl with "prompt"]
        held_out_fraction: Fraction kept for validation, chosen by content hash, in [0, 1). [ours]
        limit: Maximum number of distinct prompts. None reads all. [ours]
        negative: Column of negative prompts. None finds it by its name, such as negative or negative_prompt, if there
            is one. [ours]
        subset: Subset of a hub dataset. None if the dataset has only one. [ours]
        split: Split of a hub dataset. [ours]
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
                    f"{key} is '{value}' with source '{self.source}'. Only a dataset (hub:owner/name) has it. Leave "
                    "it out"
                )
        # Older recipes were written with column: prompt, whatever their source.
        for key, value, plain in (("column", self.column, "prompt"), ("negative", self.negative, None)):
            if value not in (None, plain) and self.source == "tinyworld":
                raise ValueError(
                    f"{key} is '{value}' with source tinyworld. Only a prompt file or dataset has columns. Leave it out"
                )
