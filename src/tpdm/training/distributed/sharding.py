"""The frozen denoiser divided over the processes of a run, and how they stay in step while each makes its images.

FSDP2 gathers a block's weights from all processes whenever it runs, so every process has to run it as often as the
others. But their images end at different steps. So before each call of the denoiser a process says that it has one
to make; one that is done says that it has none, and runs a row of its last call again for as long as anybody goes on.
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
    """Refuses a recipe that cannot be sharded over this context.

    Args:
        recipe: of the run.
        context: its processes.
        validation_images: of one validation.

    Raises:
        ConfigError: there is one process, or one of them would have no image to make.
    """
    if not recipe.backbone.shard:
        return
    if context.size == 1:
        raise ConfigError(
            "got backbone.shard=true in one process, expected several to divide the denoiser over; start them with "
            "torchrun --nproc-per-node N -m tpdm train RECIPE.yaml, or set backbone.shard=false"
        )
    images = min(recipe.rl.prompts_per_update * recipe.rl.samples_per_prompt, validation_images)
    if images < context.size:
        raise ConfigError(
            f"got {images} images of an update or a validation for {context.size} processes with backbone.shard=true, "
            "expected one for each at least; raise rl.prompts_per_update or validation.prompts"
        )


def find_blocks(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Every element of a list of the denoiser that has weights, by its path."""
    lists = [(name, part) for name, part in denoiser.named_children() if isinstance(part, nn.ModuleList)]
    blocks = {f"{name}.{index}": block for name, part in lists for index, block in enumerate(part)}
    return {path: block for path, block in blocks.items() if next(block.parameters(), None) is not None}


def shard_denoiser(pipe: Any, device: str, processes: int) -> None:
    """Divides the weights of the denoiser's blocks over the processes; each moves to the device by itself.

    Blocks alone: embedders and the final projection are small, and policies look at them.

    Args:
        pipe: still on the CPU.
        device: of this process, where its share of the weights goes.
        processes: of the run.

    Raises:
        BackboneError: the denoiser has no such list.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    denoiser = find_denoiser(pipe).requires_grad_(False)
    blocks = find_blocks(denoiser)
    if not blocks:
        raise BackboneError(
            f"got a {type(denoiser).__name__} without a list of blocks, expected one to divide; set "
            "backbone.shard=false"
        )
    mesh = init_device_mesh(torch.device(device).type, (processes,))
    for block in blocks.values():
        # Each is gathered when it runs, and given back when it has run.
        fully_shard(block, mesh=mesh, reshard_after_forward=True)


@dataclass(frozen=True)
class SynchronizedSampler:
    """A ``Sampler`` whose processes make equally many calls of one sharded denoiser.

    Every process calls it at the same time, with one image at least.

    Attributes:
        sampler: makes this process's images.
        denoiser: whose blocks are divided.
        context: the processes.
    """

    sampler: Sampler
    denoiser: nn.Module
    context: DistributedContext

    def __call__(self, request: SampleRequest) -> SampleBatch:
        """See ``Sampler``.

        Raises:
            TrainingError: memory is short in this process: the others cannot try again with it.
        """
        calls = CallSynchronizer(self.denoiser, self.context)
        with calls:
            generated = self.sampler(request)
        while self.context.any(False):
            calls.repeat()
        return generated


class CallSynchronizer:
    """Tells the context of every call of a denoiser while its ``with`` block lasts, and can repeat the newest one."""

    def __init__(self, denoiser: nn.Module, context: DistributedContext) -> None:
        self._denoiser, self._entry, self._context = denoiser, find_entry(denoiser), context
        self._arguments: dict[str, Any] = {}
        self._running = False
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        # First of all hooks: what a block gathers comes after what processes agree on.
        before = self._denoiser.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True)
        self._handles = [before, self._denoiser.register_forward_hook(self._end)]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def repeat(self) -> None:
        """One row of the newest call."""
        rows = len(self._arguments[self._entry.sample])
        with ActiveRows(self._denoiser, lambda: (rows, [0])):
            self._denoiser(**self._arguments)

    def _begin(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._running:
            # Somewhere in the middle of the call before: that is where the others wait.
            raise TrainingError(
                "got too little memory for a call of the denoiser with backbone.shard=true, expected it to fit, for no "
                "process can make a call alone; lower rl.rollout_batch"
            )
        self._keep(args, kwargs)
        self._running = True
        self._context.any(True)

    def _end(self, denoiser: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._running = False

    def _keep(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = bind_arguments(self._denoiser, args, kwargs).arguments
        rows = len(arguments[self._entry.sample])
        # UNets are given one time per image even where guidance doubles the rows.
        self._arguments = {
            name: value.expand(rows).as_subclass(torch.Tensor) if isinstance(value, PerSampleTimesteps) else value
            for name, value in arguments.items()
        }
