"""Sharding of the frozen denoiser over the processes of a run, with equal numbers of calls in all of them.

FSDP2 gathers the weights of a block from all processes when it runs. Every process must therefore run the denoiser
equally often, but their images end at different steps. Before each call a process announces it. A process that has
finished its images repeats one row of its last call until no process announces another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tpdm.config.recipe import Recipe
from tpdm.core.errors import BackboneError, ConfigError, TrainingError
from tpdm.pipelines.active_rows import ActiveRows
from tpdm.pipelines.registry import bind_arguments, find_denoiser, find_entry
from tpdm.pipelines.time_mapping import PerSampleTimesteps
from tpdm.sampling.base import SampleBatch, Sampler, SampleRequest
from tpdm.training.distributed.context import DistributedContext


def check_shard(recipe: Recipe, context: DistributedContext, validation_images: int) -> None:
    """Refuses a recipe whose denoiser cannot be sharded over these processes.

    Args:
        recipe: Recipe of the run.
        context: The processes of the run.
        validation_images: Images of one validation, >= 1.

    Raises:
        ConfigError: There is only one process, or a process would have no image.
    """
    if not recipe.backbone.shard:
        return
    if context.size == 1:
        raise ConfigError(
            "backbone.shard is true in one process. Sharding needs several. Start them with torchrun --nproc-per-node "
            "N -m tpdm train RECIPE.yaml, or set backbone.shard=false."
        )
    images = min(recipe.rl.prompts_per_update * recipe.rl.samples_per_prompt, validation_images)
    if images < context.size:
        raise ConfigError(
            f"backbone.shard is true, with {images} images of an update or a validation for {context.size} processes. "
            "Every process needs at least one. Raise rl.prompts_per_update or validation.prompts."
        )


def find_blocks(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The blocks of the denoiser's module lists that have weights, by path."""
    lists = [(name, part) for name, part in denoiser.named_children() if isinstance(part, nn.ModuleList)]
    blocks = {f"{name}.{index}": block for name, part in lists for index, block in enumerate(part)}
    return {path: block for path, block in blocks.items() if next(block.parameters(), None) is not None}


def shard_denoiser(pipe: Any, device: str, processes: int) -> None:
    """Shards the weights of the denoiser's blocks over the processes, and moves each shard to its device.

    Embedders and the final projection stay whole, because they are small and the feature hooks read them.

    Args:
        pipe: The pipeline, on the CPU.
        device: Device of this process.
        processes: Number of processes of the run, >= 2.

    Raises:
        BackboneError: The denoiser has no list of blocks.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    denoiser = find_denoiser(pipe).requires_grad_(False)
    blocks = find_blocks(denoiser)
    if not blocks:
        raise BackboneError(
            f"backbone.shard is true, but {type(denoiser).__name__} has no list of blocks to shard. Set "
            "backbone.shard=false."
        )
    mesh = init_device_mesh(torch.device(device).type, (processes,))
    for block in blocks.values():
        # The weights of a block are gathered when it runs, and freed after it.
        fully_shard(block, mesh=mesh, reshard_after_forward=True)


@dataclass(frozen=True)
class SynchronizedSampler:
    """A ``Sampler`` that makes equally many calls of a sharded denoiser in all processes.

    Every process must call it at the same time, with at least one image.

    Attributes:
        sampler: Makes the images of this process.
        denoiser: The sharded denoiser.
        context: The processes of the run.
    """

    sampler: Sampler
    denoiser: nn.Module
    context: DistributedContext

    def __call__(self, request: SampleRequest) -> SampleBatch:
        """See ``Sampler``.

        Raises:
            TrainingError: Memory is short in this process. A retry is not possible, because the others do not retry.
        """
        calls = CallSynchronizer(self.denoiser, self.context)
        with calls:
            generated = self.sampler(request)
        while self.context.any(False):
            calls.repeat()
        return generated


class CallSynchronizer:
    """Announces every call of a denoiser inside its ``with`` block, and can repeat the last one."""

    def __init__(self, denoiser: nn.Module, context: DistributedContext) -> None:
        self._denoiser, self._entry, self._context = denoiser, find_entry(denoiser), context
        self._arguments: dict[str, Any] = {}
        self._running = False
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        # Before all other hooks: processes agree on a call before a block gathers weights.
        before = self._denoiser.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True)
        self._handles = [before, self._denoiser.register_forward_hook(self._end)]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def repeat(self) -> None:
        """Runs one row of the last call."""
        rows = len(self._arguments[self._entry.sample])
        with ActiveRows(self._denoiser, lambda: (rows, [0])):
            self._denoiser(**self._arguments)

    def _begin(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._running:
            # The last call failed half-way, where the other processes wait for this one.
            raise TrainingError(
                "A call of the sharded denoiser did not fit into memory. With backbone.shard=true every call must fit, "
                "because all processes make it together. Lower rl.rollout_batch."
            )
        self._keep(args, kwargs)
        self._running = True
        self._context.any(True)

    def _end(self, denoiser: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._running = False

    def _keep(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = bind_arguments(self._denoiser, args, kwargs).arguments
        rows = len(arguments[self._entry.sample])
        # A UNet gets one time per image, even if guidance doubles the rows.
        self._arguments = {
            name: value.expand(rows).as_subclass(torch.Tensor) if isinstance(value, PerSampleTimesteps) else value
            for name, value in arguments.items()
        }
