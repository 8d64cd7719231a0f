"""The processes of one run: who makes which images, and the few words they exchange.

The number of processes is how a run is done, not what it does. So every process knows the whole update (prompts,
seeds, scores, advantages) and does its part of the work: its images, and the gradient of its decisions. Scores are
put together in the order of the images, and reduced alike by everyone; gradients are summed in float64.

All words go over gloo, on GPUs too. They are few (a gradient of the TPM's size a pass), and gloo says at once when
a process is gone, where NCCL waits.
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
# How many processes were started, in the words of torchrun, accelerate and the MPI launchers.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# A rollout may be much slower on one process than on another; one that died is noticed otherwise.
_PATIENCE = timedelta(hours=6)


class PeerLostError(TrainingError):
    """Another process of the run does not answer."""


class DistributedContext:
    """The processes of a run as one of them sees it; ``DistributedContext()`` is a process alone.

    Args:
        rank: of this process, 0 leads: it alone writes.
        size: number of processes.
        group: a gloo group of all of them; None where there is one.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: dist.ProcessGroup | None = None) -> None:
        self.rank, self.size, self._group = rank, size, group

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This process's share of ``count`` items: consecutive ones, sizes differ by one at most, perhaps none."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def gather(self, x_B: Tensor) -> Tensor:
        """The rows of all processes in their order; other axes and the dtype are the same everywhere."""
        if self.size == 1:
            return x_B
        x_B = x_B.detach().cpu().contiguous()
        with self._together():
            mine = torch.tensor([len(x_B)], dtype=torch.int64, device="cpu")
            rows = [torch.zeros_like(mine) for _ in range(self.size)]
            dist.all_gather(rows, mine, group=self._group)
            most = max(int(n) for n in rows)
            padded = torch.cat([x_B, x_B.new_zeros(most - len(x_B), *x_B.shape[1:])])
            found = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(found, padded, group=self._group)
        return torch.cat([part[: int(n)] for part, n in zip(found, rows, strict=True)])

    def all_gather_object(self, value: Any) -> list[Any]:
        """A plain value of every process, in their order; floats arrive bit for bit."""
        if self.size == 1:
            return [value]
        # One line each: JSON holds no bare newline.
        lines = self.gather(_bytes((json.dumps(value) + "\n").encode()))
        return [json.loads(line) for line in bytes(lines.tolist()).decode().splitlines()]

    def broadcast_object(self, value: Any) -> Any:
        """The leading process's plain value."""
        return self.all_gather_object(value if self.is_main_process else None)[0]

    def broadcast_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The leading process's tensors, on the CPU; what the others pass is not read."""
        if self.size == 1:
            return dict(tensors)
        ready = {k: v.detach().cpu().contiguous() for k, v in tensors.items()} if self.is_main_process else {}
        data = self.gather(
            _bytes(save(ready)) if self.is_main_process else torch.empty(0, dtype=torch.uint8, device="cpu")
        )
        return load(data.numpy().tobytes())

    def any(self, mine: bool) -> bool:
        """Whether any process says so; all are asked at the same time, from any of their threads."""
        if self.size == 1:
            return mine
        said = torch.tensor([int(mine)], dtype=torch.int64, device="cpu")
        with self._together():
            dist.all_reduce(said, group=self._group)
        return bool(said.item())

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            with self._together():
                dist.barrier(group=self._group)

    def all_reduce_gradients(self, policy: nn.Module) -> None:
        """Every parameter's gradient becomes the sum over processes; one without any counts as 0."""
        if self.size == 1:
            return
        parameters = [p for p in policy.parameters() if p.requires_grad]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        # In float64, so that the order of the processes is lost in the rounding.
        flat = torch.cat([g.flatten().cpu().double() for g in parts])
        with self._together():
            dist.all_reduce(flat, group=self._group)
        for p, summed in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = summed.view_as(p).to(p.device, p.dtype)

    def assert_replicas_equal(self, policy: nn.Module) -> None:
        """Refuses to go on where the weights of two processes differ.

        Raises:
            TrainingError: they do.
        """
        if self.size == 1:
            return
        weights = save({k: v.detach().cpu().contiguous() for k, v in policy.state_dict().items()})
        digests = self.all_gather_object(hashlib.sha256(weights).hexdigest())
        other = next((rank for rank, digest in enumerate(digests) if digest != digests[0]), None)
        if other is not None:
            raise TrainingError(
                f"got different weights in processes 0 and {other}, expected the same everywhere; run all processes "
                "on the same kind of hardware with the same versions, and go on from the last checkpoint"
            )

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what torch.distributed raises, whatever went wrong
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise PeerLostError(
                f"process {self.rank} of {self.size} got no answer from another one ({reason}), expected all of them; "
                "the same command goes on from the last checkpoint"
            ) from error


SINGLE_PROCESS = DistributedContext()


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@contextmanager
def init_distributed(device: str = "auto") -> Iterator[DistributedContext]:
    """The processes that ``torchrun`` or ``accelerate launch`` started; a process alone where nobody did.

    Args:
        device: ``cpu`` keeps GPUs out of it; otherwise each process gets the GPU of its local rank.

    Raises:
        ConfigError: several processes without accelerate.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("", "no") and os.environ.get("RANK", "0") == "0":
        logger.warning(
            "accelerate launch was asked for mixed precision (%s), which changes nothing here: the TPM is trained in "
            "fp32, and the pipeline runs in the dtype of backbone.dtype; set that",
            precision,
        )
    if _started(os.environ) == 1:
        if _asked_in_vain(os.environ):
            logger.warning(
                "accelerate launch was asked for several processes and started one, as it does on CPUs without mpirun; "
                "start them with torchrun --nproc-per-node N -m tpdm train RECIPE.yaml"
            )
        yield SINGLE_PROCESS
        return
    try:
        from accelerate import PartialState
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"got {_started(os.environ)} processes without the package accelerate, expected it; pip install "
            "'tpdm[train]'"
        ) from error
    state = PartialState(cpu=device == "cpu" or not torch.accelerator.is_available(), timeout=_PATIENCE)
    group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    team = DistributedContext(state.process_index, state.num_processes, group)
    try:
        yield team
        team.wait()  # the leading process has written everything before any ends
    finally:
        state.destroy_process_group()


def _started(environment: Mapping[str, str]) -> int:
    return int(next((environment[name] for name in _SIZES if name in environment), "1"))


def _asked_in_vain(environment: Mapping[str, str]) -> bool:
    """``accelerate launch`` names a meeting point for several processes, and then starts one by itself."""
    return "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment
