"""The table of denoiser classes: each row says how to drive one class, without code of its own."""

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
    """How to drive one denoiser class, and where to read its features.

    Attributes:
        first: Module path whose output enters the first block: tokens (B, N, D), the tokens of all rows in one list
            (B N, D), or a map (B, D, ..., W).
        last: Module path whose first input leaves the last block: tokens (B, N, D) or a map (B, D, ..., W).
        temb: Module path whose output is the time embedding, (B, E).
        grid: (arguments of a denoiser call, denoiser) -> (H, W) of its image tokens in raster order. Tokens after those
            (padding, text, reference images) are cut off.
        time_scale, time_offset: The denoiser receives ``time_scale * t + time_offset``.
        guidance: Order of conditional and unconditional rows. "uncond_cond": one call on [uncond, cond]. "cond_uncond":
            one call on [cond, uncond]. "two_calls": two calls, the conditional one first.
        guidance_scale: Argument of the pipeline that is w in u + w (c - u).
        guided_above: Pipelines guide if w is greater, default 1.0.
        against_negative: Whether they guide only with a negative prompt. An empty one is enough.
        user_scale: Argument of the pipeline that the guidance scale of ``tpdm sample``, servers and recipes sets.
            Denoisers that receive the scale as a number use ``guidance_scale`` instead.
        temb_index: Element of the temb module's output, if that is a tuple.
        sample: Argument that contains the latents, a tensor or a list. Its length is the number of rows.
        unbatched: Tensor arguments whose dimension 0 is never rows (position ids).
        listed: Arguments that are lists with one element per row.
        last_start: (arguments, denoiser) -> position (B,) of each row's first image token in ``last``. None is 0.
        path: "flow" (velocity) or "vp" (eps or v on the variance-preserving path of the scheduler's betas).
        distinguishing_config: Configuration keys that differ between models of this class with equal widths.
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
    user_scale: str = "guidance_scale"
    time_offset: float = 0.0
    temb_index: int | None = None
    sample: str = "hidden_states"
    unbatched: frozenset[str] = frozenset()
    listed: frozenset[str] = frozenset()
    last_start: Starts | None = None
    path: Literal["flow", "vp"] = "flow"
    distinguishing_config: tuple[str, ...] = ()


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
        user_scale="true_cfg_scale",
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
        distinguishing_config=("cross_attention_dim", "addition_embed_type"),  # SD1.5, SD2 and SDXL
        path="vp",
    ),
}


def find_denoiser(pipe: Any) -> nn.Module:
    """Returns the network that a pipeline calls in every step: its transformer or its UNet.

    Raises:
        BackboneError: The pipeline has neither.

    Example:
        >>> from types import SimpleNamespace
        >>> find_denoiser(SimpleNamespace(transformer=nn.Linear(2, 2)))
        Linear(in_features=2, out_features=2, bias=True)
    """
    for name in DENOISER_ATTRIBUTES:
        denoiser: nn.Module | None = getattr(pipe, name, None)
        if denoiser is not None:
            return denoiser
    raise BackboneError(
        f"{type(pipe).__name__} has no transformer or unet. It must be a text-to-image DiffusionPipeline such as "
        "StableDiffusion3Pipeline. Load one with tpdm.load_pipeline."
    )


def find_entry(denoiser: nn.Module) -> DenoiserSpec:
    """Returns the row of a denoiser's class, or of the nearest parent class that has one.

    Raises:
        BackboneError: No class has a row.
    """
    for cls in type(denoiser).__mro__:
        if cls.__name__ in DENOISERS:
            return DENOISERS[cls.__name__]
    name = type(denoiser).__name__
    if inner := _wrapped(denoiser):
        raise BackboneError(f"{name} wraps {inner}")
    raise BackboneError(
        f"{name} is not a known denoiser class. Known ones are {', '.join(DENOISERS)}. Add DENOISERS[{name!r}] = "
        "DenoiserSpec(first=<patch embedder>, last=<final projection>, temb=<time embedder>, grid=..., time_scale=..., "
        "guidance=...) to tpdm.pipelines.registry, or set it in your own code (docs/how-to/add-a-family.md)."
    )


def _wrapped(denoiser: nn.Module) -> str | None:
    """Describes the known denoiser inside a wrapper and how to use it. Returns None if there is none.

    tpdm does not unwrap it: the wrapper acts in its own calls, and hooks on the inner network may never run.
    """
    classes = [(path, type(module).__name__) for path, module in denoiser.named_modules() if path]
    inner = next(((path, name) for path, name in classes if name in DENOISERS), None)
    if inner is None:
        return None
    path, name = inner
    place = "pipe.unet" if "UNet" in name else "pipe.transformer"
    if hasattr(denoiser, "merge_and_unload"):  # peft's models
        remedy = f"Set {place} = {place}.merge_and_unload(), or load the adapter with pipe.load_lora_weights."
    elif path.startswith("_"):  # FSDP, whose inner module cannot be used alone
        remedy = "Load the pipeline without that wrapper (tpdm train shards a denoiser with backbone.shard=true)."
    else:
        remedy = f"Set {place} = {place}." + (path if path.isidentifier() else f"get_submodule({path!r})") + "."
    return f"a {name}. The denoiser must be the {name} itself. {remedy}"


def token_width(denoiser: nn.Module) -> int:
    """Returns the number of channels that enter the module called ``last``.

    It works for quantized weights, whose packed shape differs, and for adapters (LoRA), which wrap the layer.
    """
    last = denoiser.get_submodule(find_entry(denoiser).last)
    for module in last.modules():
        if isinstance(module, nn.Linear):
            return module.in_features
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return next(last.parameters()).shape[1]


def backbone_facts(denoiser: nn.Module) -> dict[str, Any]:
    """Returns the configuration values that distinguish a denoiser from others of its class and widths, as in JSON."""
    config: Any = denoiser.config
    values = {name: config[name] for name in find_entry(denoiser).distinguishing_config}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def bind_arguments(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
    """Returns the arguments of a denoiser call by name, whether they were passed by name or by position."""
    return forward_signature(denoiser).bind(*args, **kwargs)


def forward_signature(denoiser: nn.Module) -> inspect.Signature:
    """Returns the signature of a denoiser's calls, even if a wrapper of ``forward`` lost the names.

    Raises:
        BackboneError: Neither ``forward`` nor the class has the argument that contains the latents.
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
        f"forward of {type(denoiser).__name__} takes {signature} and no {sample!r}. It must have the arguments of its "
        "class. Wrap it with functools.wraps(original)."
    )
