"""Rewards that are the cosine of a CLIP image and a CLIP text embedding (CLIP score, PickScore, HPSv2, tinyworld's)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from tpdm.core.device import without_autocast
from tpdm.core.errors import RewardError
from tpdm.data.truncation import Truncation, count_truncated_prompts
from tpdm.rewards.base import in_batches
from tpdm.rewards.checkpoints import load_tokenizer, load_whole
from tpdm.rewards.preprocessing import Preprocess

try:
    from transformers import CLIPImageProcessorPil as ImageProcessor
except ImportError:  # transformers 4 and 5.0 have it under this name, which needs torchvision in later ones
    from transformers import CLIPImageProcessor as ImageProcessor


class ClipReward:
    """``scale * cos(image, text) + shift`` of a ``CLIPModel``.

    Args:
        model: any ``CLIPModel``; moved to ``device`` in fp32.
        tokenizer: the tokenizer it was trained with.
        preprocess: the size, mean and standard deviation it was trained with.
        name: for logs.
        scale: factor on the cosine (100 for CLIP score); None takes the model's own, exp(logit_scale) (PickScore).
        shift: added afterwards.
        device: where the model runs.
        batch: images at a time; memory only, never the result but for rounding.
        clean: applied to each prompt before the tokenizer.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        preprocess: Preprocess,
        name: str,
        scale: float | None = 1.0,
        shift: float = 0.0,
        device: str = "cpu",
        batch: int = 64,
        clean: Callable[[str], str] = str,
    ) -> None:
        self.model = model.float().eval().requires_grad_(False).to(device)
        self.tokenizer, self.preprocess, self.clean = tokenizer, preprocess, clean
        self.name = name
        self.scale = float(model.logit_scale.exp()) if scale is None else scale
        self.shift = shift
        self.device = torch.device(device)
        self.batch = batch
        # Some tokenizers name no length of their own.
        self.tokens = min(int(tokenizer.model_max_length), int(model.config.text_config.max_position_embeddings))

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        name: str,
        scale: float | None = 1.0,
        shift: float = 0.0,
        device: str = "cpu",
        batch: int = 64,
        processor: str | Path | None = None,
    ) -> ClipReward:
        """Loads model, tokenizer and preprocessing from one folder or hub id (safetensors only).

        Args:
            path: of the model.
            name, scale, shift, device, batch: as above.
            processor: folder or hub id of tokenizer and preprocessing; ``path`` if not given.

        Raises:
            RewardError: something is missing there, or damaged.
        """
        model = load_whole(CLIPModel, path, name)
        tokenizer = load_tokenizer(CLIPTokenizer, processor or path, name, int(model.config.text_config.vocab_size))
        try:
            pictures = ImageProcessor.from_pretrained(processor or path)
        except Exception as error:  # a damaged file may fail in any of three libraries
            reason = " ".join(str(error).splitlines()[:1]) or type(error).__name__
            raise RewardError(
                f"reward '{name}': no preprocessing at '{processor or path}' ({reason}); put its file there"
            ) from error
        size = int(model.config.vision_config.image_size)
        preprocess = Preprocess(size, tuple(pictures.image_mean), tuple(pictures.image_std))
        return cls(model, tokenizer, preprocess, name, scale, shift, device, batch)

    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of RGB images (B, 3, H, W) in [0, 1] against their prompts."""
        return in_batches(self._score, images_B3HW, prompts, self.batch)

    @without_autocast()
    @torch.no_grad()
    def _score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        texts = [self.clean(prompt) for prompt in prompts]
        ids = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.tokens, return_tensors="pt"
        ).input_ids
        output = self.model(pixel_values=self.preprocess(images_B3HW, self.device), input_ids=ids.to(self.device))
        # The model returns both embeddings at unit length.
        cosine = (output.image_embeds * output.text_embeds).sum(-1)
        return self.scale * cosine.cpu() + self.shift

    @without_autocast()
    @torch.no_grad()
    def embed(self, images_B3HW: Tensor) -> Tensor:
        """Image embeddings (B, F) of RGB images (B, 3, H, W) in [0, 1], not normalized."""
        return self.model.get_image_features(pixel_values=self.preprocess(images_B3HW, self.device)).cpu()

    def count_truncated(self, prompts: Sequence[str]) -> list[Truncation]:
        """How many prompts have more tokens than the text tower reads."""
        texts = [self.clean(prompt) for prompt in prompts]
        return [
            Truncation(
                f"reward '{self.name}'", self.tokens, count_truncated_prompts(self.tokenizer, self.tokens, texts)
            )
        ]


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
