"""Which device: the best of this machine, or the one that was asked for, if it is there."""

from __future__ import annotations

import torch

from tpdm.types import ConfigError


def choose_device() -> str:
    """The best device of this machine: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_device(name: str) -> str:
    """A torch device that can be used here.

    Args:
        name: "auto" (see ``choose_device``), "cpu", "cuda", "cuda:1" ...

    Raises:
        ConfigError: torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return choose_device()
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch without CUDA asserts
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"got device {name!r}, which cannot be used here ({reason}), expected auto, cpu, or a device of this "
            "machine such as cuda:0; `tpdm doctor` lists what there is."
        ) from error
    return name
