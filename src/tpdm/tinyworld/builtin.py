"""Interface of tinyworld for the rest of tpdm. See ``tpdm.core.builtins.Builtin``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from tpdm.tinyworld.captions import make_captions

__all__ = ["CALL_DEFAULTS", "WEIGHTS", "make_captions"]

WEIGHTS = Path(str(resources.files("tpdm.tinyworld") / "weights"))
# There is no T5 encoder, so its tokens (256 zero vectors by default) are switched off. The denoiser was trained without
# them. Guidance is off, as in guidance-distilled models, so that an image has one row per step.
CALL_DEFAULTS: dict[str, float | int] = {"guidance_scale": 1.0, "max_sequence_length": 0}
