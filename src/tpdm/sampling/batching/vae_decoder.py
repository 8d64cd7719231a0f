"""Finished latents of several runs decoded in one call of the VAE."""

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

# A picture of 1024 pixels a side is decoded alone: the activations of its decoder are what serving costs most memory.
MOST_PIXELS = 1024 * 1024


@dataclass(frozen=True)
class _Latents:
    z: Tensor
    options: dict[str, Any]


class VaeDecoderBatcher:
    """Decodes for the runs of one pipeline.

    Args:
        vae: its decoder; left as it is.
        most: images in one call, whatever their size; 1 gives the very bits of a run alone.
    """

    def __init__(self, vae: nn.Module, most: int) -> None:
        self._limit = most
        self._vae: Any = vae
        self._desk: MicroBatcher[_Latents, Tensor] = MicroBatcher(self._decode)

    @property
    def calls(self) -> int:
        """Calls of the decoder."""
        return self._desk.calls

    def expect(self) -> Reservation:
        """See ``MicroBatcher.expect``."""
        return self._desk.expect()

    def at(self, expected: Callable[[], Reservation | None]) -> nn.Module:
        """The VAE for one run: the shared one to look at, whose ``decode`` comes here.

        Args:
            expected: () -> what the run expects, withdrawn when it decodes; None where nobody waits for it.
        """
        made = shallow_clone(self._vae)

        def decode(z: Tensor, return_dict: bool = True, **options: Any) -> Any:
            kind, most = (z.shape, z.dtype, self._kind(options)), self._most(z)
            sample = self._desk.ask(kind, _Latents(z, options), most, expected())
            return DecoderOutput(sample=sample) if return_dict else (sample,)

        vars(made).update(decode=decode)
        return made

    def _kind(self, options: dict[str, Any]) -> Hashable:
        kept = {name: value for name, value in options.items() if value is not None}
        if isinstance(self._vae, AutoencoderKL):
            kept.pop("generator", None)  # it takes one and draws nothing from it
        return object() if kept else None

    def _most(self, z: Tensor) -> int:
        if not isinstance(self._vae, AutoencoderKL) or z.ndim != 4:
            return 1  # videos, and decoders that keep things between their calls
        ratio = 2 ** (len(self._vae.config.block_out_channels) - 1)
        room = MOST_PIXELS // (z.shape[0] * z.shape[-1] * z.shape[-2] * ratio**2)
        return max(1, min(self._limit, room))

    def _decode(self, tasks: Sequence[_Latents]) -> list[Tensor]:
        z = torch.cat([task.z for task in tasks]) if len(tasks) > 1 else tasks[0].z
        sample: Tensor = self._vae.decode(z, return_dict=False, **tasks[0].options)[0]
        return list(sample.chunk(len(tasks)))


def supports_batched_decoding(pipe: Any) -> bool:
    """Whether runs may decode together: not where the pipeline turns its decoder to another dtype and back."""
    vae = getattr(pipe, "vae", None)
    if vae is None:
        return False
    return not (vae.dtype == torch.float16 and vae.config.get("force_upcast", False))
