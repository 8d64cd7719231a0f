"""Images as bytes, for files and for scorers that read pictures."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def to_bytes(images_B3HW: Tensor) -> np.ndarray:
    """Images (B, 3, H, W) in [0, 1] to uint8 (B, H, W, 3)."""
    return (images_B3HW.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
