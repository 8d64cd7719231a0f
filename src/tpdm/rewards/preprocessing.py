"""From pictures in [0, 1] to what an image encoder reads: its size, its mean, its standard deviation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

# Of OpenAI's CLIP; BLIP and ImageReward took them over.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """Resize to a square of ``size`` pixels, then normalize.

    Attributes:
        size: side in pixels.
        mean, std: of each channel.
        fit: ``crop`` brings the shorter side to ``size`` and keeps the centre (CLIP, PickScore, ImageReward, LAION
            aesthetic); ``pad`` brings the longer side there and fills up with black (HPSv2). A square picture is the
            same under both, but for ``crop`` cutting what bicubic overshoots.
    """

    size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    fit: Literal["crop", "pad"] = "crop"

    def __call__(self, images_B3HW: Tensor, device: torch.device) -> Tensor:
        """Pixel values (B, 3, size, size) in fp32 on ``device``, of RGB images (B, 3, H, W) in [0, 1]."""
        x = images_B3HW.to(device, torch.float32)
        if x.shape[-2:] != (self.size, self.size):
            x = resize_and_crop(x, self.size) if self.fit == "crop" else resize_and_pad(x, self.size)
        mean = torch.tensor(self.mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        return (x - mean) / std


def resize_and_crop(x: Tensor, size: int) -> Tensor:
    """Shorter side to ``size`` (bicubic, antialiased), then the centre square: CLIP's own preprocessing."""
    height, width = x.shape[-2:]
    shorter = min(height, width)
    new = (size * height // shorter, size * width // shorter)  # rounded down, as transformers and torchvision do
    x = F.interpolate(x, new, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    return x[..., top : top + size, left : left + size]


def resize_and_pad(x: Tensor, size: int) -> Tensor:
    """Longer side to ``size`` (bicubic on the tensor, antialiased), black around it: HPSv2's own preprocessing."""
    height, width = x.shape[-2:]
    factor = size / max(height, width)
    new = (max(1, round(height * factor)), max(1, round(width * factor)))
    # No clamp: bicubic overshoots, and the published code works on tensors that may.
    x = F.interpolate(x, new, mode="bicubic", antialias=True)
    high, wide = size - new[0], size - new[1]
    return F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
