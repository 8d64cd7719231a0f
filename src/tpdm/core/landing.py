"""How a chain that nears its cap comes to an end: in equal steps, not in one jump."""

from __future__ import annotations

import struct

LANDING = 4  # a chain lands in the last 1 / LANDING of its steps


def latest_time(t: float, left: int, max_steps: int) -> float:
    """The highest time at which a step may end. [ours]

    A chain that is stopped at its cap has to jump to 0 from wherever it is, which ruins the image. In the last quarter
    of the allowed steps no step may be shorter than equal steps to 0 would be.

    Args:
        t: where the step begins, in (0, 1].
        left: steps that are allowed after this one, at least 0.
        max_steps: the cap.

    Returns:
        A time in [0, t) that fp32 holds; 1 where the cap is still far, and 0 for the last step.
    """
    if left * LANDING >= max_steps:
        return 1.0
    return float(struct.unpack("f", struct.pack("f", t * left / (left + 1)))[0])
