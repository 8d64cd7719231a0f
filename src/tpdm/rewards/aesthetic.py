"""LAION aesthetic predictor v2: a head on the image embedding of CLIP ViT-L/14; the prompt is not read."""

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
    """The published score, about 1 to 10.

    Args:
        vision: CLIP's image tower; moved to ``device`` in fp32.
        head: from its embedding at unit length to the score.
        device: where it runs.
        batch: images at a time.
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
        """Scores (B,) of RGB images (B, 3, H, W) in [0, 1]; the prompts only say how many."""
        return in_batches(self._score, images_B3HW, prompts, self.batch)

    @without_autocast()
    @torch.no_grad()
    def _score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        embeds = self.vision(pixel_values=self.preprocess(images_B3HW, self.device)).image_embeds
        return self.head(embeds / embeds.norm(dim=-1, keepdim=True)).squeeze(-1)


def load_aesthetic(place: str | None, device: str = "cpu", batch: int = 64) -> AestheticReward:
    """The predictor from its published file.

    Args:
        place: the file ``sac+logos+ava1-l14-linearMSE.pth`` (or its safetensors), its folder, or a hub id. CLIP comes
            from the same folder where that holds one (``config.json``), else from ``BACKBONE``.
        device: where it runs, in fp32.
        batch: images at a time.

    Raises:
        RewardError: no place is given (its authors have none on the hub), or something is missing or damaged.
    """
    if place is None:
        raise RewardError(f"reward 'aesthetic': got no place, expected aesthetic:FILE; fetch {FILE} from {HOME}")
    weights = find_file(place, FILE, NAME)
    backbone = str(weights.parent) if (weights.parent / "config.json").is_file() else BACKBONE
    vision = load_whole(CLIPVisionModelWithProjection, backbone, NAME)
    width = int(vision.config.projection_dim)
    head = fill(lambda: make_head(width), below(read_checkpoint(weights, NAME), "layers."), NAME)
    return AestheticReward(vision, head, device, batch)


def make_head(width: int) -> nn.Sequential:
    """(B, width) -> (B, 1). Published with dropout between the linear layers and no non-linearity.

    The places where dropout was keep their numbers, which are part of the published names (0, 2, 4, 6, 7).
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
