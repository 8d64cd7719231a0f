"""PickScore v1: a CLIP ViT-H-14 fine-tuned on choices between two images (arXiv 2305.01569)."""

from __future__ import annotations

from pathlib import Path

from tpdm.rewards.clip import ClipReward

NAME, HUB = "PickScore", "yuvalkirstain/PickScore_v1"
# The model's own page names this processor.
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


def load_pickscore(place: str = HUB, device: str = "cpu", batch: int = 64) -> ClipReward:
    """PickScore as published: exp(logit_scale) x cosine (about 18 to 24).

    Args:
        place: folder or hub id of the model. A folder that holds tokenizer and preprocessing too needs no other
            place; else they come from ``PROCESSOR``.
        device: where it runs, in fp32.
        batch: images at a time.

    Raises:
        RewardError: something is missing or damaged.
    """
    complete = (Path(place) / "preprocessor_config.json").is_file()
    return ClipReward.from_folder(
        place, NAME, scale=None, device=device, batch=batch, processor=None if complete else PROCESSOR
    )
