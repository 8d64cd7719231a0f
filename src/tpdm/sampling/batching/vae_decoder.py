"""Micro-batches of finished latents for the VAE decoder."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor, nn

from tpdm.sampling.batching.micro_batcher import MicroBatcher, Reservation
from tpdm.sampling.batching.proxy import shallow_clone

# An image of 1024 x 1024 pixels is decoded alone: the activations of its decoder are the memory peak of serving.
MAX_PIXELS = 1024 * 1024


@dataclass(frozen=True)
class _Latents:
    z: Tensor
    options: dict[str, Any]


class VaeDecoderBatcher:
    """Decodes the latents of all runs of one pipeline.

    Args:
        vae: VAE of the pipeline. It is not changed.
        max_batch_size: Maximum number of images in one call, whatever their size. 1 gives the same bits as a run on
            its own.
    """

    def __init__(self, vae: nn.Module, max_batch_size: int) -> None:
        self._max_batch_size = max_batch_size
        self._vae: Any = vae
        self._batcher: MicroBatcher[_Latents, Tensor] = MicroBatcher(self._decode)

    @property
    def calls(self) -> int:
        """Number of calls of the decoder."""
        return self._batcher.calls

    def reserve(self) -> Reservation:
        """See ``MicroBatcher.reserve``."""
        return self._batcher.reserve()

    def make_vae(self, reservation: Callable[[], Reservation | None]) -> nn.Module:
        """Returns the VAE of one run: a shallow clone whose ``decode`` submits to this batcher.

        Args:
            reservation: Returns the reservation of the run, released when it decodes. None if there is none.
        """
        clone = shallow_clone(self._vae)

        def decode(z: Tensor, return_dict: bool = True, **options: Any) -> Any:
            key = (z.shape, z.dtype, self._options_key(options))
            sample = self._batcher.submit(key, _Latents(z, options), self._batch_size(z), reservation())
            return DecoderOutput(sample=sample) if return_dict else (sample,)

        vars(clone).update(decode=decode)
        return clone

    def _options_key(self, options: dict[str, Any]) -> Hashable:
        given = {name: value for name, value in options.items() if value is not None}
        if isinstance(self._vae, AutoencoderKL):
            given.pop("generator", None)  # accepted, but not used
        return object() if given else None

    def _batch_size(self, z: Tensor) -> int:
        if not isinstance(self._vae, AutoencoderKL) or z.ndim != 4:
            return 1  # videos, and decoders that keep state between calls
        ratio = 2 ** (len(self._vae.config.block_out_channels) - 1)
        fitting = MAX_PIXELS // (z.shape[0] * z.shape[-1] * z.shape[-2] * ratio**2)
        return max(1, min(self._max_batch_size, fitting))

    def _decode(self, batch: Sequence[_Latents]) -> list[Tensor]:
        z = torch.cat([latents.z for latents in batch]) if len(batch) > 1 else batch[0].z
        sample: Tensor = self._vae.decode(z, return_dict=False, **batch[0].options)[0]
        return list(sample.chunk(len(batch)))


def supports_batched_decoding(pipe: Any) -> bool:
    """Returns whether runs may share decoder calls: not if the pipeline changes the dtype of its decoder in a call."""
    vae = getattr(pipe, "vae", None)
    if vae is None:
        return False
    return not (vae.dtype == torch.float16 and vae.config.get("force_upcast", False))
