"""Devices and precision: the device to use, float64 where a device has none, and arithmetic without autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from tpdm.core.errors import ConfigError

AUTOCAST = ("cpu", "cuda", "mps", "xpu")  # device types on which torch.autocast lowers precision


def choose_device() -> str:
    """Return the best device of this machine: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_device(name: str | torch.device | int) -> str:
    """Return the name of a torch device that this machine can use.

    Args:
        name: "auto" (see :func:`choose_device`), "cpu", "cuda", "cuda:1" ..., a ``torch.device``, or its number.

    Raises:
        ConfigError: torch does not know the device, this machine does not have it, or it stores no numbers ("meta").

    Example:
        >>> resolve_device("cpu")
        'cpu'
    """
    if name == "auto":
        return choose_device()
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it has shapes and no numbers")
        torch.empty(0, dtype=torch.float32, device=device)
    # torch without CUDA raises AssertionError. A value that is no device raises TypeError.
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"device is {str(name)!r}, which cannot be used here ({reason}). It must be auto, cpu, or a device of this "
            "machine such as cuda:0. Run `tpdm doctor` to list them."
        ) from error
    return str(device)


def wide(x: Tensor) -> Tensor:
    """Convert a few numbers to float64 on the CPU, for arithmetic that cancels. The gradient passes.

    Not every device has float64 (Apple's has none). Tensors on the meta device, which plans use, stay there in fp32.

    Args:
        x: Tensor of any shape and floating dtype. It should be small, because it is copied to the CPU.

    Example:
        >>> wide(torch.ones(2)).dtype
        torch.float64
    """
    return x.float() if x.is_meta else x.cpu().double()


def average_pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Apply ``adaptive_avg_pool2d``, on the CPU for the shapes that Apple's devices do not support.

    Args:
        x: Maps, shape (B, C, H, W).
        size: New height and width.
    """
    divides = all(side % new == 0 for side, new in zip(x.shape[-2:], size, strict=True))
    if x.device.type == "mps" and not divides:  # pytorch/pytorch issue 96056
        return F.adaptive_avg_pool2d(x.cpu(), size).to(x.device)
    return F.adaptive_avg_pool2d(x, size)


@contextmanager
def without_autocast() -> Iterator[None]:
    """Disable the caller's ``torch.autocast`` inside the block. Also a decorator, ``@without_autocast()``.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), without_autocast():
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    with ExitStack() as stack:
        for kind in AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
