"""The processes of one run, and the collectives that they use.

The number of processes changes how a run is computed, not its result. Every process knows the whole update (prompts,
seeds, scores, advantages) and computes its share: its images and the gradient of its decisions. Scores are joined in
the order of the images. Gradients are summed in float64.

All collectives use gloo, also on GPUs. The data are small (one gradient of the TPM per pass), and gloo reports a lost
process at once, whereas NCCL waits. Objects travel as JSON and tensors as safetensors, which cannot execute code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor, nn

from tpdm.core.errors import ConfigError, TrainingError

logger = logging.getLogger(__name__)
# The number of processes in the environment of torchrun, accelerate and MPI launchers.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# A rollout may be much slower on one process than on another. The heartbeat notices a lost process sooner.
_TIMEOUT = timedelta(hours=6)


class PeerLostError(TrainingError):
    """Another process of the run does not answer."""


class DistributedContext:
    """The processes of a run, from the view of one of them.

    Args:
        rank: Rank of this process, in [0, size). Rank 0 is the main process. Default: 0.
        size: Number of processes, >= 1. Default: 1.
        group: A gloo group of all processes. None for a single process.

    Example:
        >>> [DistributedContext(rank, 3).part(8) for rank in range(3)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
    """

    def __init__(self, rank: int = 0, size: int = 1, group: dist.ProcessGroup | None = None) -> None:
        self.rank, self.size, self._group = rank, size, group

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This process's share of ``count`` items: a consecutive range. Sizes differ by at most 1 and may be 0."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def gather(self, x_B: Tensor) -> Tensor:
        """The rows of all processes in their order, on the CPU. Other axes and the dtype must be equal everywhere."""
        if self.size == 1:
            return x_B
        data = save({"x": x_B.detach().cpu().contiguous()})
        return torch.cat([load(part)["x"] for part in self._gather_bytes(data)])

    def all_gather_object(self, value: Any) -> list[Any]:
        """A JSON value of every process, in their order. Floats arrive without rounding."""
        if self.size == 1:
            return [value]
        return [json.loads(part) for part in self._gather_bytes(json.dumps(value).encode())]

    def broadcast_object(self, value: Any) -> Any:
        """The JSON value of the main process."""
        return self.all_gather_object(value if self.is_main_process else None)[0]

    def broadcast_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the main process, on the CPU. Those of other processes are ignored."""
        if self.size == 1:
            return dict(tensors)
        local = {k: v.detach().cpu().contiguous() for k, v in tensors.items()} if self.is_main_process else {}
        return load(self._gather_bytes(save(local))[0])

    def any(self, value: bool) -> bool:
        """Whether ``value`` is true in any process. All processes must call it."""
        if self.size == 1:
            return value
        flag = torch.tensor([int(value)], dtype=torch.int64, device="cpu")
        with self._translate_errors():
            dist.all_reduce(flag, group=self._group)
        return bool(flag.item())

    def wait(self) -> None:
        """Waits until every process has called it."""
        if self.size > 1:
            with self._translate_errors():
                dist.barrier(group=self._group)

    def all_reduce_gradients(self, policy: nn.Module) -> None:
        """Sets every parameter's gradient to the sum over processes. A missing gradient counts as 0."""
        if self.size == 1:
            return
        parameters = [p for p in policy.parameters() if p.requires_grad]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        # In float64, so that the order of the processes changes only the rounding.
        flat = torch.cat([g.flatten().cpu().double() for g in parts])
        with self._translate_errors():
            dist.all_reduce(flat, group=self._group)
        for p, summed in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = summed.view_as(p).to(p.device, p.dtype)

    def assert_replicas_equal(self, policy: nn.Module) -> None:
        """Checks that all processes have the same weights.

        Raises:
            TrainingError: The weights of two processes differ.
        """
        if self.size == 1:
            return
        weights = save({k: v.detach().cpu().contiguous() for k, v in policy.state_dict().items()})
        digests = self.all_gather_object(hashlib.sha256(weights).hexdigest())
        other = next((rank for rank, digest in enumerate(digests) if digest != digests[0]), None)
        if other is not None:
            raise TrainingError(
                f"The weights of processes 0 and {other} differ. They must be the same everywhere. Run all processes "
                "on the same kind of hardware with the same versions, and resume from the last checkpoint."
            )

    def _gather_bytes(self, data: bytes) -> list[bytes]:
        """The data of every process, in their order. Collectives need equal sizes, so that shorter data are padded."""
        size = torch.tensor([len(data)], dtype=torch.int64, device="cpu")
        sizes = [torch.zeros_like(size) for _ in range(self.size)]
        with self._translate_errors():
            dist.all_gather(sizes, size, group=self._group)
            longest = max(int(n) for n in sizes)
            padded = torch.frombuffer(bytearray(data.ljust(longest, b"\0")), dtype=torch.uint8)
            parts = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(parts, padded, group=self._group)
        return [part[: int(n)].numpy().tobytes() for part, n in zip(parts, sizes, strict=True)]

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # the only error class of torch.distributed
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise PeerLostError(
                f"Process {self.rank} of {self.size} got no answer from another process ({reason}). All processes must "
                "run to the end. The same command resumes from the last checkpoint."
            ) from error


SINGLE_PROCESS = DistributedContext()


@contextmanager
def init_distributed(device: str = "auto") -> Iterator[DistributedContext]:
    """The processes that ``torchrun`` or ``accelerate launch`` started, or this process only.

    Args:
        device: "cpu" uses no GPU. Otherwise each process gets the GPU of its local rank. Default: "auto".

    Raises:
        ConfigError: There are several processes, and accelerate is not installed.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("", "no") and os.environ.get("RANK", "0") == "0":
        logger.warning(
            "accelerate launch sets mixed precision %s, which has no effect. The TPM is trained in fp32. Set "
            "backbone.dtype for the pipeline.",
            precision,
        )
    if _started(os.environ) == 1:
        if _launched_without_effect(os.environ):
            logger.warning(
                "accelerate launch started one process instead of several, as it does on CPUs without mpirun. Start "
                "several with torchrun --nproc-per-node N -m tpdm train RECIPE.yaml."
            )
        yield SINGLE_PROCESS
        return
    try:
        from accelerate import PartialState
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"WORLD_SIZE is {_started(os.environ)}, and accelerate is not installed. Several processes need it. Run "
            "pip install 'tpdm[train]'."
        ) from error
    state = PartialState(cpu=device == "cpu" or not torch.accelerator.is_available(), timeout=_TIMEOUT)
    group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    context = DistributedContext(state.process_index, state.num_processes, group)
    try:
        yield context
        context.wait()  # until the main process has written all files
    finally:
        state.destroy_process_group()


def _started(environment: Mapping[str, str]) -> int:
    return int(next((environment[name] for name in _SIZES if name in environment), "1"))


def _launched_without_effect(environment: Mapping[str, str]) -> bool:
    """``accelerate launch`` for several processes sets a main address, and on CPUs then starts a single process."""
    return "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment
