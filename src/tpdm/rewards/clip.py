"""Rewards that are the cosine of a CLIP image and a CLIP text embedding (CLIP score, PickScore, tinyworld's own)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from tpdm.types import RewardError


class ClipReward:
    """``scale * cos(image, text) + shift`` of a ``CLIPModel``.

    Args:
        model: any ``CLIPModel``; moved to ``device`` in fp32.
        tokenizer: the tokenizer it was trained with.
        processor: gives the image size, mean and standard deviation.
        name: for logs.
        scale: factor on the cosine (100 for CLIP score; the logit scale for PickScore).
        shift: added afterwards.
        device: where the model runs.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        processor: CLIPImageProcessorPil,
        name: str,
        scale: float = 1.0,
        shift: float = 0.0,
        device: str = "cpu",
    ) -> None:
        self.model = model.float().eval().requires_grad_(False).to(device)
        self.tokenizer = tokenizer
        self.name = name
        self.scale, self.shift = scale, shift
        self.device = torch.device(device)
        self.size = int(model.config.vision_config.image_size)
        self.mean = torch.tensor(processor.image_mean, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(processor.image_std, device=self.device).view(1, 3, 1, 1)

    @classmethod
    def from_folder(
        cls, path: str | Path, name: str, scale: float = 1.0, shift: float = 0.0, device: str = "cpu"
    ) -> ClipReward:
        """Loads model, tokenizer and preprocessing from one folder or hub id (safetensors only).

        Raises:
            RewardError: something is missing there.
        """
        try:
            return cls(
                CLIPModel.from_pretrained(path, use_safetensors=True),
                CLIPTokenizer.from_pretrained(path),
                CLIPImageProcessorPil.from_pretrained(path),
                name,
                scale,
                shift,
                device,
            )
        except OSError as e:
            reason = str(e).splitlines()[0]
            raise RewardError(
                f"reward '{name}': no CLIP model at '{path}' ({reason}); give a folder or a hub id"
            ) from e

    @torch.no_grad()
    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of RGB images (B, 3, H, W) in [0, 1] against their prompts."""
        ids = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        output = self.model(pixel_values=self._prepare(images_B3HW), input_ids=ids.to(self.device))
        # The model returns both embeddings at unit length.
        cosine = (output.image_embeds * output.text_embeds).sum(-1)
        return self.scale * cosine.cpu() + self.shift

    def _prepare(self, images_B3HW: Tensor) -> Tensor:
        x = images_B3HW.to(self.device, torch.float32)
        if x.shape[-2:] != (self.size, self.size):
            x = _resize_and_crop(x, self.size)
        return (x - self.mean) / self.std


def _resize_and_crop(x: Tensor, size: int) -> Tensor:
    """Shorter side to ``size`` (bicubic, antialiased), then the centre square: CLIP's own preprocessing."""
    height, width = x.shape[-2:]
    factor = size / min(height, width)
    new = (max(size, round(height * factor)), max(size, round(width * factor)))
    x = F.interpolate(x, new, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    return x[..., top : top + size, left : left + size]
