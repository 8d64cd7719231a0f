"""What a trained TPM says of itself: ``config.json``, key by key, strict in what is read."""

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
    """All that is needed to use a TPM as it was trained; config.json is this, key by key.

    Attributes:
        shape: architecture, layout and token grid.
        backbone_class: class of the denoiser, such as "SD3Transformer2DModel".
        backbone_name: hub id or path of the pipeline it was trained on.
        features: which features it reads, in words.
        guidance_scale: of the pipeline in training; another one moves the features.
        gamma: discount of eq. (9); with a dial, the one used where none is asked for.
        reward: name of the reward.
        reward_form: "paper" (eq. 9) or "additive" (score - lambda N).
        reward_offset: added to the score before the discount (3.10 as published).
        solver: name of the solver of ``tpdm.core.solvers``.
        max_steps: cap on network evaluations.
        stop_below: below this time the step goes to 0.
        mean_steps: average NFE in validation; None where nobody measured it.
        gamma_steps: (gamma, average NFE in validation) at rising gammas, which ``quality`` is read by; None without a
            dial.
        call_defaults: arguments of the pipeline call in training (height, width ...); JSON values.
        backbone_facts: what tells its denoiser from others of the class and widths; left out of the file where it is
            empty, as in those of older versions.
        trained: facts of the run (updates, prompts, seed, hardware ...); JSON values, free.
        tpdm_version: that wrote it.
        format_version: of the file that was read; ``save_pretrained`` always writes the newest. In version 1 the
            weights of the norm give the scale before the shift, and its shape has no ``norm_eps``. Versions 1 and 2
            have other names for the keys in ``RENAMED``, and ``folded`` for the layout ``release``.
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
        """(H, W) in tokens that a TPM of the release layout is bound to; None where any goes."""
        return self.shape.token_grid


def _check_keys(value: Any, cls: type, where: str) -> None:
    """Every field of ``cls`` is there and nothing else: defaults are for writers, and for readers of ``OPTIONAL``."""
    if not isinstance(value, dict):
        raise CheckpointError(f"got {type(value).__name__} for {where}, expected an object; save the TPM again.")
    names = {f.name for f in dataclasses.fields(cls)}
    for problem, keys in (("unknown key", value.keys() - names), ("no key", names - value.keys() - OPTIONAL)):
        if keys:
            raise CheckpointError(
                f"got {problem} {min(keys)!r} in {where}, expected exactly the keys of {cls.__name__};"
                " correct it or save the TPM again."
            )


def _complete_first_format(raw: dict[str, Any], where: str) -> None:
    """Gives a config of format_version 1 the keys that came later.

    Raises:
        CheckpointError: it is of a checkpoint of the release: version 1 read the halves of its norm in the wrong order.
    """
    trained, shape = raw.get("trained"), raw.get("shape")
    if isinstance(trained, dict) and "converted_from" in trained:
        raise CheckpointError(
            f"got {where} of the checkpoint {trained['converted_from']} as an earlier tpdm converted it, with scale "
            "and shift of its norm exchanged, expected one converted by this version; run tpdm convert again."
        )
    if isinstance(shape, dict):
        shape.setdefault("norm_eps", FIRST_NORM_EPS)


def _rename_keys(raw: dict[str, Any]) -> None:
    """Gives a config of format_version 1 or 2 the present names, in place."""
    for old, new in RENAMED.items():
        part = raw.get("shape") if "." in old else raw
        name = old.rpartition(".")[2]
        if isinstance(part, dict) and name in part:
            part[new.rpartition(".")[2]] = part.pop(name)
    if isinstance(raw.get("shape"), dict) and raw["shape"].get("layout") == "folded":
        raw["shape"]["layout"] = "release"


def parse_config(text: str, where: str = CONFIG) -> PretrainedConfig:
    """Reads the JSON text of a config.

    Raises:
        CheckpointError: no JSON, a missing or unknown key, a wrong type, a format newer than this program, or a
            checkpoint of the release that an earlier version converted with a wrong norm.
    """
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise CheckpointError(
            f"got {where} that is no JSON ({error}), expected one object; download it again."
        ) from None
    found = raw.get("format_version") if isinstance(raw, dict) else None
    if isinstance(found, int) and not 1 <= found <= FORMAT_VERSION:
        raise CheckpointError(
            f"got format_version {found} in {where}, expected 1 to {FORMAT_VERSION}; install the tpdm version that "
            "wrote it."
        )
    if found == 1:
        _complete_first_format(raw, where)
    if found in (1, 2):
        _rename_keys(raw)
    _check_keys(raw, PretrainedConfig, where)
    _check_keys(raw["shape"], TPMConfig, f"shape of {where}")
    try:
        return TypeAdapter(PretrainedConfig).validate_json(json.dumps(raw))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise CheckpointError(
            f"got {first['input']!r} for {key} in {where}, expected something else ({reason}); correct it."
        ) from None
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from None
