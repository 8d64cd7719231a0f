"""The embedded model with one of its six blocks and few images to calibrate on: for tests of what happens around it.

Classes, widths, tokenizers, decoder and reward are the shipped ones, so that the shipped TPM fits; pictures are noise.
Whatever says something of pictures, quality or the documented numbers uses the shipped model.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from diffusers import SD3Transformer2DModel

from tpdm.tinyworld import builtin
from tpdm.training import initialization as calibrate

PROMPTS = 4  # to calibrate on


@cache
def small_weights() -> Path:
    """A folder like ``tpdm/tinyworld/weights``; once per test process."""
    folder = Path(tempfile.mkdtemp()) / "weights"
    shutil.copytree(builtin.WEIGHTS, folder, ignore=shutil.ignore_patterns("transformer"))
    whole = SD3Transformer2DModel.from_pretrained(builtin.WEIGHTS / "pipeline" / "transformer")
    config = {name: value for name, value in whole.config.items() if not name.startswith("_")}
    small = SD3Transformer2DModel(**{**config, "num_layers": 1})
    last = f"transformer_blocks.{config['num_layers'] - 1}."
    weights = whole.state_dict()
    small.load_state_dict({name: weights[name.replace("transformer_blocks.0.", last)] for name in small.state_dict()})
    small.save_pretrained(folder / "pipeline" / "transformer")
    return folder


@contextmanager
def small_world(weights: Path | None = None) -> Iterator[None]:
    """Inside it, ``tinyworld`` is the small model."""
    before = builtin.WEIGHTS, calibrate.CALIBRATION_PROMPTS
    builtin.WEIGHTS, calibrate.CALIBRATION_PROMPTS = weights or small_weights(), PROMPTS
    try:
        yield
    finally:
        builtin.WEIGHTS, calibrate.CALIBRATION_PROMPTS = before
