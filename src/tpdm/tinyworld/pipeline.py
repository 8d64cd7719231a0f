"""Puts the trained parts together as a stock ``StableDiffusion3Pipeline`` and loads it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from tpdm.core.errors import BackboneError
from tpdm.tinyworld.build.denoiser import TextToLatent
from tpdm.tinyworld.tokenizer import make_tokenizer

# What the stock pipeline is called with where the caller says nothing else. The T5 slot is empty, so its tokens
# (256 zero vectors by default) are switched off; the denoiser was trained without them. Guidance is off, as in
# guidance-distilled models: one row per image and step (docs/decisions.md, 18).
CALL_DEFAULTS: dict[str, float | int] = {"guidance_scale": 1.0, "max_sequence_length": 0}


def assemble(vae: AutoencoderKL, model: TextToLatent) -> StableDiffusion3Pipeline:
    """The pipeline of the given parts, with the scheduler as Stable Diffusion 3 ships it (shift 3)."""
    return StableDiffusion3Pipeline(
        transformer=model.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=model.text[0],
        tokenizer=make_tokenizer(),
        text_encoder_2=model.text[1],
        tokenizer_2=make_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without the libraries' progress bars, which outlive the second that these small files take."""
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in (diffusers_logging, transformers_logging):
            library.enable_progress_bar()


def load_tinyworld_pipeline(dtype: torch.dtype = torch.float32, device: str = "cpu", folder: Path | None = None) -> Any:
    """The embedded text-to-image pipeline, ready to be called with ``CALL_DEFAULTS``.

    Raises:
        BackboneError: the weights are not there.
    """
    path = folder or weights_folder() / "pipeline"
    if not (path / "model_index.json").exists():
        raise BackboneError(f"no tinyworld pipeline in {path}; make one with `tpdm tinyworld build`")
    from tpdm.pipelines.loading.load import from_pretrained

    with quiet_loading():
        pipe = from_pretrained(path, dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


WEIGHTS = Path(str(resources.files("tpdm.tinyworld") / "weights"))


def weights_folder() -> Path:
    """Folder with ``pipeline/``, ``reward/`` and ``tpm/`` inside the installed package."""
    return WEIGHTS
