"""LAION aesthetic predictor v2: a head on the image embedding of CLIP ViT-L/14. It ignores the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from tpdm.core.device import without_autocast
from tpdm.core.errors import RewardError
from tpdm.rewards.base import in_batches
from tpdm.rewards.checkpoints import fill, find_file, load_whole, read_checkpoint
from tpdm.rewards.key_mapping import below
from tpdm.rewards.preprocessing import Preprocess

NAME, FILE = "LAION aesthetic", "sac+logos+ava1-l14-linearMSE.pth"

BACKBONE = "openai/clip-vit-large-patch14"

HOME = "github.com/christophschuhmann/improved-aesthetic-predictor"


class AestheticReward:
    """The published aesthetic score, about 1 to 10.

    Args:
        vision: CLIP's image tower. It is moved to ``device`` in fp32.
        head: Network from the embedding at unit length to the score.
        device: Device of the model.
        batch: Maximum number of images per forward pass, >= 1.
    """

    def __init__(
        self, vision: CLIPVisionModelWithProjection, head: nn.Sequential, device: str = "cpu", batch: int = 64
    ) -> None:
        self.name = NAME
        self.vision = vision.float().eval().requires_grad_(False).to(device)
        self.head = head.to(device)
        self.preprocess = Preprocess(int(vision.config.image_size))
        self.device = torch.device(device)
        self.batch = batch

    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return scores (B,) of RGB images (B, 3, H, W) in [0, 1]. The text of the B prompts is ignored."""
        return in_batches(self._score, images_B3HW, prompts, self.batch)

    @without_autocast()
    @torch.no_grad()
    def _score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        embeds = self.vision(pixel_values=self.preprocess(images_B3HW, self.device)).image_embeds
        return self.head(embeds / embeds.norm(dim=-1, keepdim=True)).squeeze(-1)


def load_aesthetic(place: str | None, device: str = "cpu", batch: int = 64) -> AestheticReward:
    """Load the predictor from its published file.

    Args:
        place: The file ``sac+logos+ava1-l14-linearMSE.pth`` (or its safetensors), its folder, or a hub id. If the
            folder contains ``config.json``, CLIP is loaded from it, otherwise from ``BACKBONE``.
        device: Device of the model. The model runs in fp32.
        batch: Maximum number of images per forward pass, >= 1.

    Raises:
        RewardError: If no place is given (the authors publish none on the hub), or if files are missing or damaged.
    """
    if place is None:
        raise RewardError(
            f"reward.name is 'aesthetic'. It must be aesthetic:FILE, because the hub has no copy. Fetch {FILE} "
            f"from {HOME}."
        )
    weights = find_file(place, FILE, NAME)
    backbone = str(weights.parent) if (weights.parent / "config.json").is_file() else BACKBONE
    vision = load_whole(CLIPVisionModelWithProjection, backbone, NAME)
    width = int(vision.config.projection_dim)
    head = fill(lambda: make_head(width), below(read_checkpoint(weights, NAME), "layers."), NAME)
    return AestheticReward(vision, head, device, batch)


def make_head(width: int) -> nn.Sequential:
    """Make the head (B, width) -> (B, 1). It has linear layers and no non-linearity.

    The published network has dropout between the layers. Identity layers replace it, so that the layers keep their
    published numbers (0, 2, 4, 6, 7).
    """
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Identity(),
        nn.Linear(1024, 128),
        nn.Identity(),
        nn.Linear(128, 64),
        nn.Identity(),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )
