"""What tpdm needs of this model: see ``tpdm.core.builtins.Builtin``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from tpdm.tinyworld.captions import make_captions

__all__ = ["CALL_DEFAULTS", "WEIGHTS", "make_captions"]

WEIGHTS = Path(str(resources.files("tpdm.tinyworld") / "weights"))
# The T5 slot is empty, so its tokens (256 zero vectors by default) are switched off; the denoiser was trained without
# them. Guidance is off, as in guidance-distilled models: one row per image and step
# (docs/decisions/0018-no-guidance-in-tinyworld.md).
CALL_DEFAULTS: dict[str, float | int] = {"guidance_scale": 1.0, "max_sequence_length": 0}
