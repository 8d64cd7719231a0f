"""The embedded model with one of its six blocks and few images to calibrate on: for tests of what happens around it.

Classes, widths, tokenizers, decoder and reward are the shipped ones, so that the shipped TPM fits; pictures are noise.
Plots as SVG are left empty: tests/evaluation/test_plots.py and test_report.py draw them.
Whatever says something of pictures, quality or the documented numbers uses the shipped model.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from diffusers import SD3Transformer2DModel
from matplotlib.figure import Figure

from tpdm.tinyworld import builtin
from tpdm.training import initialization

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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtin, "WEIGHTS", weights or small_weights())
        patch.setattr(initialization, "CALIBRATION_PROMPTS", PROMPTS)
        patch.setattr(Figure, "savefig", _save_without_svg)
        yield


def _save_without_svg(self: Figure, file: Any, *, format: str, **options: Any) -> None:
    if format == "svg":
        file.write(b'<svg xmlns="http://www.w3.org/2000/svg"/>')
    else:
        _SAVE(self, file, format=format, **options)


_SAVE = Figure.savefig
