"""The config of a saved TPM: the keys of ``config.json``, and how they are checked."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, Literal

from pydantic import TypeAdapter, ValidationError

from tpdm.core.errors import CheckpointError, ConfigError
from tpdm.policies.tpm_config import TPMConfig

FORMAT_VERSION = 3
RENAMED = {  # keys of config.json up to format_version 2
    "dial": "gamma_steps",
    "shape.maps": "shape.feature_maps",
    "shape.change": "shape.velocity_change",
    "shape.start_times": "shape.init_times",
    "shape.fast_times": "shape.init_times_low_gamma",
}
FIRST_NORM_EPS = 1e-5  # of the group norm, in TPMs of format_version 1
CONFIG = "config.json"
OPTIONAL = {"backbone_facts"}


def _tpdm_version() -> str:
    try:
        return version("tpdm")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"


@dataclass(frozen=True)
class PretrainedConfig:
    """Everything that is needed to use a TPM as it was trained. The keys are those of config.json.

    Attributes:
        shape: Architecture.
        backbone_class: Class of the denoiser, such as "SD3Transformer2DModel".
        backbone_name: Hub id or path of the pipeline that the TPM was trained on.
        features: Description of the features that it reads.
        guidance_scale: Guidance scale in training. Another one changes the features.
        gamma: Discount of eq. (9). A gamma-conditioned TPM uses it if the call gives none.
        reward: Name of the reward.
        reward_form: "paper" (eq. 9) or "additive" (score - lambda N).
        reward_offset: Number added to the score before the discount (3.10 as published).
        solver: Name of a solver of ``tpdm.core.solvers``.
        max_steps: Cap on network evaluations.
        stop_below: Time below which the next step goes to 0.
        mean_steps: Average NFE in validation. None if it was not measured.
        gamma_steps: Calibration for ``quality``: (gamma, average NFE in validation) at rising gammas. None if the TPM
            is not gamma-conditioned.
        call_defaults: Arguments of the pipeline call in training (height, width ...), as JSON values.
        backbone_facts: Values that distinguish its denoiser from others of the same class and widths. The file leaves
            them out if there are none, as older versions did.
        trained: Facts about the run (updates, prompts, seed, hardware ...), as JSON values.
        tpdm_version: Version that wrote the file.
        format_version: Format of the file that was read. ``save_pretrained`` always writes the newest. In version 1,
            the norm's linear layer gives the scale before the shift, and the shape has no ``norm_eps``. Versions 1 and
            2 have other names for the keys in ``RENAMED``, and call the layout ``release`` ``folded``.

    Example:
        >>> from tpdm import load_policy
        >>> config = load_policy("tinyworld").artifact
        >>> config.solver, config.max_steps
        ('euler', 36)
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "strict": True,
        "allow_inf_nan": False,
    }

    shape: TPMConfig
    backbone_class: str
    backbone_name: str
    features: str
    guidance_scale: float
    gamma: float
    reward: str
    reward_form: Literal["paper", "additive"]
    reward_offset: float
    solver: str
    max_steps: int
    stop_below: float
    mean_steps: float | None = None
    gamma_steps: tuple[tuple[float, float], ...] | None = None
    call_defaults: dict[str, Any] = field(default_factory=dict)
    backbone_facts: dict[str, Any] = field(default_factory=dict)
    trained: dict[str, Any] = field(default_factory=dict)
    tpdm_version: str = field(default_factory=_tpdm_version)
    format_version: int = FORMAT_VERSION

    @property
    def token_grid(self) -> tuple[int, int] | None:
        """Token grid (H, W) that a TPM of the release layout requires. None if every grid fits."""
        return self.shape.token_grid


def _check_keys(value: Any, cls: type, where: str) -> None:
    """Check that the keys are the fields of ``cls``. Only those of ``OPTIONAL`` may be missing."""
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is of type {type(value).__name__}. It must be an object. Save the TPM again.")
    names = {f.name for f in dataclasses.fields(cls)}
    for problem, keys in (("unknown key", value.keys() - names), ("no key", names - value.keys() - OPTIONAL)):
        if keys:
            raise CheckpointError(
                f"{where} has {problem} {min(keys)!r}. It must have exactly the keys of {cls.__name__}. Correct it, or "
                "save the TPM again."
            )


def _complete_first_format(raw: dict[str, Any], where: str) -> None:
    """Add keys that format_version 1 did not have.

    Raises:
        CheckpointError: The config was converted from the release. Version 1 read the halves of its norm in the wrong
            order.
    """
    trained, shape = raw.get("trained"), raw.get("shape")
    if isinstance(trained, dict) and "converted_from" in trained:
        raise CheckpointError(
            f"{where} was converted from {trained['converted_from']} by an earlier tpdm, which exchanged scale and "
            "shift of the norm. It must be converted by this version. Run tpdm convert again."
        )
    if isinstance(shape, dict):
        shape.setdefault("norm_eps", FIRST_NORM_EPS)


def _rename_keys(raw: dict[str, Any]) -> None:
    """Rename the keys of a config of format_version 1 or 2 in place."""
    for old, new in RENAMED.items():
        part = raw.get("shape") if "." in old else raw
        name = old.rpartition(".")[2]
        if isinstance(part, dict) and name in part:
            part[new.rpartition(".")[2]] = part.pop(name)
    if isinstance(raw.get("shape"), dict) and raw["shape"].get("layout") == "folded":
        raw["shape"]["layout"] = "release"


def parse_config(text: str, where: str = CONFIG) -> PretrainedConfig:
    """Parse the JSON text of a config.

    Args:
        text: Content of the file.
        where: Name of the file, for messages.

    Raises:
        CheckpointError: The text is no JSON, a key is missing or unknown, a value has the wrong type, the format is
            newer than this program, or an earlier version converted the checkpoint with a wrong norm.
    """
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{where} is no JSON ({error}). It must be one object. Download it again.") from None
    format_version = raw.get("format_version") if isinstance(raw, dict) else None
    if isinstance(format_version, int) and not 1 <= format_version <= FORMAT_VERSION:
        raise CheckpointError(
            f"format_version in {where} is {format_version}. It must be 1 to {FORMAT_VERSION}. Install the tpdm "
            "version that wrote it."
        )
    if format_version == 1:
        _complete_first_format(raw, where)
    if format_version in (1, 2):
        _rename_keys(raw)
    _check_keys(raw, PretrainedConfig, where)
    _check_keys(raw["shape"], TPMConfig, f"shape of {where}")
    try:
        return TypeAdapter(PretrainedConfig).validate_json(json.dumps(raw))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].rstrip(".")
        raise CheckpointError(f"{key} in {where} is {first['input']!r}. {reason}. Correct it.") from None
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from None
