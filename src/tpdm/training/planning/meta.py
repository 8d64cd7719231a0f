"""Memory of networks while they run, counted on torch's meta device without weights.

A network on the meta device is called with the shapes of a real call. Every tensor counts from the operation that
creates it until nothing refers to it, as in PyTorch's allocator. Attention counts as fused kernels allocate it: the
output without the attention matrix. Workspaces of kernels and fragmentation of the allocator are not counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryTracker(TorchDispatchMode):
    """Counts the bytes of tensors that are created inside its ``with`` block.

    Attributes:
        alive: Bytes of the tensors that exist now.
        most: Largest value of ``alive`` so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and counts the storages that it creates."""
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor):
                self._count(made.untyped_storage(), given)
        return result

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in given or key in self._seen:
            return
        self._seen.add(key)
        self.alive += size
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


class _FusedAttention(TorchFunctionMode):
    """Replaces attention on the meta device, where it would allocate the attention matrix."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            names = ("query", "key", "value")
            given = {**dict(zip(names[: len(args)], args[: len(names)], strict=True)), **(kwargs or {})}
            query, value = given["query"], given["value"]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


@contextmanager
def counting() -> Iterator[MemoryTracker]:
    """Counts the tensors that are created on the meta device inside the block."""
    with torch.device("meta"), _FusedAttention(), MemoryTracker() as peak:
        yield peak


def peak_of(run: Callable[[], Any]) -> int:
    """Peak bytes of the meta tensors that ``run`` creates, including what it returns.

    Example:
        >>> peak_of(lambda: torch.empty(2, 3) + 1)  # two tensors of six fp32 numbers
        48
    """
    with counting() as peak:
        run()
    return peak.most


CLIP_TOKENS = 77


@dataclass(frozen=True)
class CallShape:
    """One call of a rollout.

    Attributes:
        rows: Number of images, or twice that with guidance in one call.
        height: Height of the latents, before patches.
        width: Width of the latents, before patches.
        text: ``max_sequence_length`` of the pipeline call. None keeps the default of the pipeline.
        dtype: Dtype of the weights.
    """

    rows: int
    height: int
    width: int
    text: int | None
    dtype: torch.dtype


Call = Callable[[Any, "_Maker"], dict[str, Any]]


@dataclass(frozen=True)
class _Maker:
    """Creates the tensors of one call on the device of its denoiser."""

    shape: CallShape
    device: torch.device

    def rows(self, *size: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor with one row per image. Default dtype: that of the weights."""
        return self.all(self.shape.rows, *size, dtype=dtype)

    def all(self, *size: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor that all images share. Default dtype: that of the weights."""
        return torch.empty(size, dtype=dtype or self.shape.dtype, device=self.device)


def _sd3(config: Any, make: _Maker) -> dict[str, Any]:
    shape = make.shape
    tokens = CLIP_TOKENS + (256 if shape.text is None else shape.text)
    return {
        "hidden_states": make.rows(config.in_channels, shape.height, shape.width),
        "encoder_hidden_states": make.rows(tokens, config.joint_attention_dim),
        "pooled_projections": make.rows(config.pooled_projection_dim),
        "timestep": make.rows(dtype=torch.float32),
    }


def _flux(config: Any, make: _Maker) -> dict[str, Any]:
    shape = make.shape
    image, text = (shape.height // 2) * (shape.width // 2), 512 if shape.text is None else shape.text
    guidance = {"guidance": make.rows(dtype=torch.float32)} if config.guidance_embeds else {}
    return {
        "hidden_states": make.rows(image, config.in_channels),
        "encoder_hidden_states": make.rows(text, config.joint_attention_dim),
        "pooled_projections": make.rows(config.pooled_projection_dim),
        "timestep": make.rows(),
        "img_ids": make.all(image, 3),
        "txt_ids": make.all(text, 3),
        **guidance,
    }


def _unet(config: Any, make: _Maker) -> dict[str, Any]:
    shape = make.shape
    call: dict[str, Any] = {
        "sample": make.rows(config.in_channels, shape.height, shape.width),
        "timestep": make.rows(dtype=torch.float32),
        "encoder_hidden_states": make.rows(CLIP_TOKENS, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        call["added_cond_kwargs"] = {"text_embeds": make.rows(pooled), "time_ids": make.rows(6)}
    return call


# (arguments of a call, latents along the side of a token) of the denoiser classes in the recipes. Activations of other
# classes are not counted. The pipeline of FLUX.1 packs 2 x 2 latents before it calls the denoiser.
CALLS: Mapping[str, tuple[Call, Callable[[Any], int]]] = {
    "SD3Transformer2DModel": (_sd3, lambda config: int(config.patch_size)),
    "FluxTransformer2DModel": (_flux, lambda config: 2),
    "UNet2DConditionModel": (_unet, lambda config: 1),
}

TEXTS = ("encoder_hidden_states", "pooled_projections", "text_embeds")


def denoiser_call(denoiser: Any, shape: CallShape) -> dict[str, Any] | None:
    """Arguments of a call, on the device of the denoiser. None for a class without an entry in ``CALLS``."""
    row = CALLS.get(type(denoiser).__name__)
    return None if row is None else row[0](denoiser.config, _Maker(shape, next(denoiser.parameters()).device))


def token_grid(denoiser: Any, shape: CallShape) -> tuple[int, int]:
    """(H, W) of the image tokens of a call. The rules of pipelines may need ids, which have no values on meta."""
    side = CALLS[type(denoiser).__name__][1](denoiser.config)
    return shape.height // side, shape.width // side


def text_bytes(call: Mapping[str, Any]) -> int:
    """Bytes of the embeddings of one row of a call."""
    flat = {**call, **call.get("added_cond_kwargs", {})}
    texts = [flat[name] for name in TEXTS if name in flat]
    return sum(t[0].numel() * t.element_size() for t in texts)
