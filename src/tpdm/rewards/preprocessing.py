"""Resize and normalize images for an image encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

# OpenAI's CLIP, BLIP and ImageReward use these values.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """Resize to a square of ``size`` pixels, then normalize.

    Attributes:
        size: Side of the square in pixels.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        fit: ``crop`` resizes the shorter side to ``size`` and keeps the center (CLIP, PickScore, ImageReward, LAION
            aesthetic). ``pad`` resizes the longer side and adds black borders (HPSv2). For a square image the only
            difference is that ``crop`` clamps the overshoot of bicubic interpolation.

    Example:
        >>> import torch
        >>> Preprocess(224)(torch.rand(2, 3, 300, 400), torch.device("cpu")).shape
        torch.Size([2, 3, 224, 224])
    """

    size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    fit: Literal["crop", "pad"] = "crop"

    def __call__(self, images_B3HW: Tensor, device: torch.device) -> Tensor:
        """Return pixel values (B, 3, size, size) in fp32 on ``device``, of RGB images (B, 3, H, W) in [0, 1]."""
        x = images_B3HW.to(device, torch.float32)
        if x.shape[-2:] != (self.size, self.size):
            x = resize_and_crop(x, self.size) if self.fit == "crop" else resize_and_pad(x, self.size)
        mean = torch.tensor(self.mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        return (x - mean) / std


def resize_and_crop(x: Tensor, size: int) -> Tensor:
    """Resize the shorter side to ``size`` (bicubic, antialiased) and crop the center square, as CLIP does."""
    height, width = x.shape[-2:]
    shorter = min(height, width)
    new = (size * height // shorter, size * width // shorter)  # rounded down, as transformers and torchvision do
    x = F.interpolate(x, new, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    return x[..., top : top + size, left : left + size]


def resize_and_pad(x: Tensor, size: int) -> Tensor:
    """Resize the longer side to ``size`` (bicubic, antialiased) and add black borders, as HPSv2 does."""
    height, width = x.shape[-2:]
    factor = size / max(height, width)
    new = (max(1, round(height * factor)), max(1, round(width * factor)))
    # No clamp: bicubic interpolation overshoots, and the published code keeps these values.
    x = F.interpolate(x, new, mode="bicubic", antialias=True)
    rows, columns = size - new[0], size - new[1]
    return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
