"""What tpdm knows of each denoiser class: one row of a table, and no code of its own."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from tpdm.core.errors import BackboneError
from tpdm.pipelines.token_grids import (
    Grid,
    Starts,
    grid_of_image_shapes,
    grid_of_latent_list,
    grid_of_latents,
    grid_of_position_ids,
    grid_of_unet_latents,
    grid_of_video,
    text_lengths,
)

Guidance = Literal["uncond_cond", "cond_uncond", "two_calls"]
DENOISER_ATTRIBUTES = ("transformer", "unet")


@dataclass(frozen=True)
class DenoiserSpec:
    """What tpdm has to know of one denoiser class.

    Attributes:
        first: module path whose output is what enters the first block: tokens (B, N, D), the tokens of all rows in
            one list (B N, D), or a map (B, D, ..., W).
        last: module path whose first input is what leaves the last block: tokens (B, N, D) or a map (B, D, ..., W).
        temb: module path whose output is the time embedding, (B, E).
        grid: (arguments of a denoiser call, denoiser) -> (H, W) of its raster image tokens; tokens after those
            (padding, text, reference images) are cut.
        time_scale, time_offset: the denoiser is fed ``time_scale * t + time_offset``.
        guidance: how conditional rows are told from unconditional ones. "uncond_cond": one call on
            [uncond, cond]; "cond_uncond": the reverse; "two_calls": the conditional call comes first.
        guidance_scale: the pipeline's argument that is w in u + w (c - u).
        guided_above: pipelines guide where w is above it.
        against_negative: they guide only where they are given a negative prompt; an empty one is given.
        asked: the pipeline's argument that users of ``tpdm sample``, of a server and of recipes mean by guidance scale,
            where the denoiser is told none as a number.
        temb_index: element of the temb module's output, where that is a tuple.
        sample: argument that holds the latents, a tensor or a list; its length is the number of rows.
        unbatched: tensor arguments whose dimension 0 is never rows (position ids).
        listed: arguments that are lists with one element per row.
        last_start: (arguments, denoiser) -> position (B,) of each row's first image token in ``last``; None is 0.
        path: "flow" (velocity) or "vp" (eps or v on the variance-preserving path of the scheduler's betas).
        told_apart_by: values of its config that differ between models of this class whose widths are the same.
    """

    first: str
    last: str
    temb: str
    grid: Grid
    time_scale: float
    guidance: Guidance
    guidance_scale: str = "guidance_scale"
    guided_above: float = 1.0
    against_negative: bool = False
    asked: str = "guidance_scale"
    time_offset: float = 0.0
    temb_index: int | None = None
    sample: str = "hidden_states"
    unbatched: frozenset[str] = frozenset()
    listed: frozenset[str] = frozenset()
    last_start: Starts | None = None
    path: Literal["flow", "vp"] = "flow"
    told_apart_by: tuple[str, ...] = ()


DENOISERS: dict[str, DenoiserSpec] = {
    "SD3Transformer2DModel": DenoiserSpec(
        "pos_embed", "proj_out", "time_text_embed", grid_of_latents, time_scale=1000.0, guidance="uncond_cond"
    ),
    "FluxTransformer2DModel": DenoiserSpec(
        "x_embedder",
        "proj_out",
        "time_text_embed",
        grid_of_position_ids,
        time_scale=1.0,
        guidance="two_calls",
        guidance_scale="true_cfg_scale",
        against_negative=True,
        unbatched=frozenset({"img_ids", "txt_ids"}),
    ),
    "Flux2Transformer2DModel": DenoiserSpec(
        "x_embedder",
        "proj_out",
        "time_guidance_embed",
        grid_of_position_ids,
        time_scale=1.0,
        guidance="two_calls",
        unbatched=frozenset({"img_ids", "txt_ids"}),
    ),
    "QwenImageTransformer2DModel": DenoiserSpec(
        "img_in",
        "proj_out",
        "time_text_embed",
        grid_of_image_shapes,
        time_scale=1.0,
        guidance="two_calls",
        guidance_scale="true_cfg_scale",
        against_negative=True,
        asked="true_cfg_scale",
        listed=frozenset({"img_shapes"}),
    ),
    "SanaTransformer2DModel": DenoiserSpec(
        "patch_embed",
        "proj_out",
        "time_embed",
        grid_of_latents,
        time_scale=1000.0,
        guidance="uncond_cond",
        temb_index=1,
    ),
    "Lumina2Transformer2DModel": DenoiserSpec(
        "x_embedder",
        "norm_out.linear_2",
        "time_caption_embed",
        grid_of_latents,
        time_scale=-1.0,
        time_offset=1.0,
        guidance="two_calls",
        temb_index=0,
        last_start=text_lengths,
    ),
    "ZImageTransformer2DModel": DenoiserSpec(
        "all_x_embedder.2-1",
        "all_final_layer.2-1.linear",
        "t_embedder",
        grid_of_latent_list,
        time_scale=-1.0,
        time_offset=1.0,
        guidance="cond_uncond",
        guided_above=0.0,
        sample="x",
        listed=frozenset({"x", "cap_feats"}),
    ),
    "WanTransformer3DModel": DenoiserSpec(
        "patch_embedding",
        "proj_out",
        "condition_embedder",
        grid_of_video,
        time_scale=1000.0,
        guidance="two_calls",
        temb_index=0,
    ),
    "PixArtTransformer2DModel": DenoiserSpec(
        "pos_embed",
        "proj_out",
        "adaln_single",
        grid_of_latents,
        time_scale=1000.0,
        time_offset=-1.0,
        guidance="uncond_cond",
        temb_index=1,
        path="vp",
    ),
    "UNet2DConditionModel": DenoiserSpec(
        "conv_in",
        "conv_out",
        "time_embedding",
        grid_of_unet_latents,
        time_scale=1000.0,
        time_offset=-1.0,
        guidance="uncond_cond",
        sample="sample",
        told_apart_by=("cross_attention_dim", "addition_embed_type"),  # SD1.5, SD2 and SDXL
        path="vp",
    ),
}


def find_denoiser(pipe: Any) -> nn.Module:
    """The network that a pipeline calls in every step: its transformer or its UNet.

    Raises:
        BackboneError: it has neither.
    """
    for name in DENOISER_ATTRIBUTES:
        denoiser: nn.Module | None = getattr(pipe, name, None)
        if denoiser is not None:
            return denoiser
    raise BackboneError(
        f"got {type(pipe).__name__} without a transformer or unet, expected a text-to-image DiffusionPipeline such as "
        "StableDiffusion3Pipeline: load one with tpdm.pipelines.loading.load."
    )


def find_entry(denoiser: nn.Module) -> DenoiserSpec:
    """The entry of the denoiser's class, or of the nearest parent class that has one.

    Raises:
        BackboneError: there is none.
    """
    for cls in type(denoiser).__mro__:
        if cls.__name__ in DENOISERS:
            return DENOISERS[cls.__name__]
    name = type(denoiser).__name__
    if inner := _wrapped(denoiser):
        raise BackboneError(f"got a {name} around {inner}.")
    raise BackboneError(
        f"got denoiser class {name}, expected one of {', '.join(DENOISERS)}: add DENOISERS[{name!r}] = DenoiserSpec("
        "first=<patch embedder>, last=<final projection>, temb=<time embedder>, grid=..., time_scale=..., "
        "guidance=...) to tpdm.pipelines.registry, or set it from your own code (docs/pipelines.md)."
    )


def _wrapped(denoiser: nn.Module) -> str | None:
    """The known denoiser inside a wrapper, what is expected instead and how to get there; None where there is none.

    Wrappers stay: what they do is in calls of their own, and hooks of a policy on what is inside may never run.
    """
    found = [(path, type(module).__name__) for path, module in denoiser.named_modules() if path]
    inside = next(((path, name) for path, name in found if name in DENOISERS), None)
    if inside is None:
        return None
    path, name = inside
    place = "pipe.unet" if "UNet" in name else "pipe.transformer"
    if hasattr(denoiser, "merge_and_unload"):  # peft's models
        cure = f"set {place} = {place}.merge_and_unload(), or load the adapter with pipe.load_lora_weights"
    elif path.startswith("_"):  # FSDP's, whose inside is no network of its own
        cure = "load the pipeline without that wrapper (tpdm train shares a denoiser with backbone.shard=true)"
    else:
        cure = f"set {place} = {place}." + (path if path.isidentifier() else f"get_submodule({path!r})")
    return f"a {name}, expected the {name} itself: {cure}"


def token_width(denoiser: nn.Module) -> int:
    """Channels of what enters the module called ``last``, whatever its weights are kept as.

    Quantised weights are packed, so their shape says nothing; an adapter (LoRA) wraps the layer that knows.
    """
    last = denoiser.get_submodule(find_entry(denoiser).last)
    for module in last.modules():
        if isinstance(module, nn.Linear):
            return module.in_features
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return next(last.parameters()).shape[1]


def backbone_facts(denoiser: nn.Module) -> dict[str, Any]:
    """What tells a denoiser from others of its class and widths, as JSON keeps it."""
    config: Any = denoiser.config
    values = {name: config[name] for name in find_entry(denoiser).told_apart_by}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def bind_arguments(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
    """Arguments of a denoiser call by name, however they were passed."""
    return forward_signature(denoiser).bind(*args, **kwargs)


def forward_signature(denoiser: nn.Module) -> inspect.Signature:
    """The arguments of a denoiser's calls, also where somebody wrapped its ``forward`` and lost their names.

    Raises:
        BackboneError: neither it nor its class knows the argument that holds the latents.
    """
    signature = inspect.signature(denoiser.forward)
    if all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in signature.parameters.values()):
        return signature
    sample = find_entry(denoiser).sample
    if sample in signature.parameters:
        return signature
    for cls in type(denoiser).__mro__:
        if "forward" in vars(cls):
            plain = inspect.signature(vars(cls)["forward"])
            if sample in plain.parameters:
                return plain.replace(parameters=list(plain.parameters.values())[1:])  # without self
    raise BackboneError(
        f"got a {type(denoiser).__name__} whose forward takes {signature} and no {sample!r}, expected the arguments of "
        "its class: wrap it with functools.wraps(original)."
    )
