"""The pipelines of ``training.py``, and what their replay takes at several steps, sizes and groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel

from tpdm.core.grids import shifted
from tpdm.pipelines.attach import attach
from tpdm.pipelines.loading.load import load_pipeline
from tpdm.pipelines.probe import infer_feature_shapes
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.tinyworld.captions import make_captions
from tpdm.training.rollout import make_rollout_buffer


@dataclass(frozen=True)
class Shape:
    """A backbone: the embedded one, or a Stable Diffusion 3 of random weights between its text encoders.

    Attributes:
        prompts: of an update, four images each.
        batch: images in flight.
        layers, heads: of the denoiser, 64 channels a head; 0 leaves the embedded one.
        vae: channels of the decoder's levels.
        size: of the images, in the words of the pipeline's call.
        dtype: of the weights.
    """

    prompts: int
    batch: int
    layers: int = 0
    heads: int = 0
    vae: tuple[int, ...] = ()
    size: dict[str, int] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32


SHAPES = {
    "tinyworld": Shape(prompts=24, batch=96),
    "sd3-medium": Shape(4, 8, 24, 24, (128, 256, 512, 512), {"height": 1024, "width": 1024}, torch.bfloat16),
    "tiny": Shape(2, 8, 1, 1, (8, 8), {"height": 32, "width": 32}),
}


def make_pipeline(shape: Shape, device: str) -> Any:
    """The embedded pipeline, its denoiser and decoder replaced where the shape says so."""
    pipe = load_pipeline("tinyworld", device="cpu")
    if shape.layers:
        torch.manual_seed(0)
        old = pipe.transformer.config
        latent = 16
        side = shape.size["height"] // 2 ** (len(shape.vae) - 1)
        with torch.device(device):
            transformer = SD3Transformer2DModel(
                sample_size=side,
                patch_size=2,
                in_channels=latent,
                out_channels=latent,
                num_layers=shape.layers,
                attention_head_dim=64,
                num_attention_heads=shape.heads,
                joint_attention_dim=old.joint_attention_dim,
                caption_projection_dim=64 * shape.heads,
                pooled_projection_dim=old.pooled_projection_dim,
                pos_embed_max_size=192,
            )
            vae = AutoencoderKL(
                block_out_channels=shape.vae,
                down_block_types=("DownEncoderBlock2D",) * len(shape.vae),
                up_block_types=("UpDecoderBlock2D",) * len(shape.vae),
                layers_per_block=2,
                latent_channels=latent,
                norm_num_groups=8,
                use_quant_conv=False,
                use_post_quant_conv=False,
                shift_factor=0.0609,
                scaling_factor=1.5305,
            )
        pipe = type(pipe)(**{**pipe.components, "transformer": transformer.eval(), "vae": vae.eval()})
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, shape.dtype)


def memory_rows() -> list[dict[str, Any]]:
    """Bytes of the recorded decisions of one prompt's group, and of its features at full size, as both loops keep them.

    A denoiser of one layer and SD3's layout; the TPM follows so many uniform steps. One of steps, size and group
    changes at a time.
    """
    cases = [(8, 64, 4), (4, 64, 4), (16, 64, 4), (8, 128, 4), (8, 256, 4), (8, 512, 4), (8, 64, 2), (8, 64, 8)]
    rows = []
    for steps, side, group in cases:
        shape = Shape(1, group, 1, 1, (8, 8, 8, 8), {"height": side, "width": side})
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
