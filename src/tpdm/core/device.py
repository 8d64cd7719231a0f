"""Which device, and in which precision: what a process or a device would change in our arithmetic is settled here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from tpdm.core.errors import ConfigError

AUTOCAST = ("cpu", "cuda", "mps", "xpu")  # kinds of devices on which torch.autocast lowers precision


def choose_device() -> str:
    """The best device of this machine: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_device(name: str | torch.device | int) -> str:
    """A torch device that can be used here.

    Args:
        name: "auto" (see ``choose_device``), "cpu", "cuda", "cuda:1" ..., a ``torch.device``, or the number of one.

    Returns:
        Its name.

    Raises:
        ConfigError: torch knows no such device, this machine has none, or it holds no numbers ("meta").
    """
    if name == "auto":
        return choose_device()
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds shapes and no numbers")
        torch.empty(0, dtype=torch.float32, device=device)
    # torch without CUDA asserts; what is no device at all is a TypeError.
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"got device {str(name)!r}, which cannot be used here ({reason}), expected auto, cpu, or a device of this "
            "machine such as cuda:0; `tpdm doctor` lists what there is."
        ) from error
    return str(device)


def wide(x: Tensor) -> Tensor:
    """The same numbers in float64 on the CPU, for arithmetic that cancels; the gradient passes.

    Not every device has float64 (Apple's has none), and these are a few numbers of an image. Shapes without numbers
    (the meta device, on which plans count) stay where they are, in fp32.
    """
    return x.float() if x.is_meta else x.cpu().double()


def average_pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``adaptive_avg_pool2d``; on the CPU where Apple's devices refuse it: new sides that do not divide the old."""
    divides = all(side % new == 0 for side, new in zip(x.shape[-2:], size, strict=True))
    if x.device.type == "mps" and not divides:  # pytorch/pytorch issue 96056
        return F.adaptive_avg_pool2d(x.cpu(), size).to(x.device)
    return F.adaptive_avg_pool2d(x, size)


@contextmanager
def without_autocast() -> Iterator[None]:
    """Inside, ``torch.autocast`` of the caller lowers no precision; also a decorator, ``@without_autocast()``."""
    with ExitStack() as stack:
        for kind in AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
