"""Bytes of the rollout buffer at several steps, sizes and groups."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.shapes import Shape, make_pipeline
from tpdm.core.grids import shifted
from tpdm.pipelines.attach import attach
from tpdm.pipelines.probe import infer_feature_shapes
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.tinyworld.captions import make_captions
from tpdm.training.rollout import make_rollout_buffer


def memory_rows() -> list[dict[str, Any]]:
    """Bytes of the recorded decisions of one prompt's group, and of its features at full size, as both loops keep them.

    The denoiser has one layer and SD3's layout. The TPM follows uniform steps. One of steps, size and group changes at
    a time.
    """
    cases = [(8, 64, 4), (4, 64, 4), (16, 64, 4), (8, 128, 4), (8, 256, 4), (8, 512, 4), (8, 64, 2), (8, 64, 8)]
    rows = []
    for steps, side, group in cases:
        shape = Shape(1, 1, (8, 8, 8, 8), {"height": side, "width": side})
        pipe = make_pipeline(shape, "cpu")
        call = {"guidance_scale": 1.0, "max_sequence_length": 0, **shape.size}
        widths = infer_feature_shapes(pipe, call)
        times = tuple(shifted(steps, 1.0).tolist())
        tpm = TPMConfig(widths.feature_channels, widths.temb_channels, channels=8, grid=4, init_times=times)
        kept = []
        handles = full_features(pipe.transformer, kept)
        output = attach(pipe, TimePredictionModule(tpm).eval(), max_steps=steps, stop_below=0.5 / steps)(
            make_captions(1) * group, seeds=list(range(group)), record=True, output_type="latent", **call
        )
        for handle in handles:
            handle.remove()
        assert output.trajectories is not None
        seen = make_rollout_buffer(output.trajectories).observation
        assert seen.map_BCHW is not None
        assert seen.temb_BE is not None
        ours = sum(x.numel() * x.element_size() for x in (seen.map_BCHW, seen.temb_BE))
        rows.append({"steps": max(output.steps), "side": side, "group": group, "bytes": ours, "plain_bytes": sum(kept)})
    return rows


def full_features(denoiser: Any, kept: list[int]) -> list[Any]:
    """Hooks that count the bytes of first and last features and of the time embedding, at full size."""

    def count(x: torch.Tensor) -> None:
        kept.append(x.numel() * x.element_size())

    return [
        denoiser.pos_embed.register_forward_hook(lambda module, args, output: count(output)),
        denoiser.proj_out.register_forward_pre_hook(lambda module, args: count(args[0])),
        denoiser.time_text_embed.register_forward_hook(lambda module, args, output: count(output)),
    ]
