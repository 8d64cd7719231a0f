"""One time per image, in a form that unmodified pipelines pass on to their denoiser."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class ImageTimes(Tensor):
    """One time per image, (B,). Behaves as a tensor, except that expanding to a multiple of B rows tiles it.

    Pipelines write ``t.expand(rows)``: with one time per image and guidance in one call, rows is 2B.
    """

    def expand(self, *sizes: Any) -> Tensor:  # type: ignore[override]
        """``expand(k * B)`` repeats the B times k times over; anything else is the usual expand."""
        plain = self.as_subclass(Tensor)
        if len(sizes) == 1 and isinstance(sizes[0], int) and plain.ndim == 1 and sizes[0] % len(plain) == 0:
            return plain.repeat(sizes[0] // len(plain))
        return plain.expand(*sizes)
