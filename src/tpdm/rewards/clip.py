"""Rewards from the cosine of CLIP image and text embeddings: CLIP score, PickScore, HPSv2 and the tinyworld reward."""

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
except ImportError:  # the name in transformers 4 and 5.0. In later versions it needs torchvision.
    from transformers import CLIPImageProcessor as ImageProcessor


class ClipReward:
    """``scale * cos(image, text) + shift`` of a ``CLIPModel``.

    Args:
        model: Any ``CLIPModel``. It is moved to ``device`` in fp32.
        tokenizer: Tokenizer that the model was trained with.
        preprocess: Image size, mean and standard deviation that the model was trained with.
        name: Name in logs and reports.
        scale: Factor of the cosine (100 for CLIP score). None uses exp(logit_scale) of the model (PickScore).
        shift: Constant added to the scaled cosine.
        device: Device of the model.
        batch: Maximum number of images per forward pass, >= 1. It limits memory. Scores are the same up to
            floating-point rounding.
        clean: Function applied to each prompt before the tokenizer.
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
        # Some tokenizers define no maximum length.
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
        """Load model, tokenizer and preprocessing from a folder or hub id (safetensors only).

        Args:
            path: Folder or hub id of the model.
            name: As in the class.
            scale: As in the class.
            shift: As in the class.
            device: As in the class.
            batch: As in the class.
            processor: Folder or hub id of tokenizer and preprocessing. The default is ``path``.

        Raises:
            RewardError: If files are missing or damaged.
        """
        model = load_whole(CLIPModel, path, name)
        tokenizer = load_tokenizer(CLIPTokenizer, processor or path, name, int(model.config.text_config.vocab_size))
        try:
            image_processor = ImageProcessor.from_pretrained(processor or path)
        except Exception as error:  # a damaged file may fail in any of three libraries
            reason = " ".join(str(error).splitlines()[:1]) or type(error).__name__
            raise RewardError(
                f"Reward '{name}': no preprocessing at '{processor or path}' ({reason}). Put "
                "preprocessor_config.json there."
            ) from error
        size = int(model.config.vision_config.image_size)
        preprocess = Preprocess(size, tuple(image_processor.image_mean), tuple(image_processor.image_std))
        return cls(model, tokenizer, preprocess, name, scale, shift, device, batch)

    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return scores (B,) of RGB images (B, 3, H, W) in [0, 1] for their B prompts."""
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
        """Return image embeddings (B, F) of RGB images (B, 3, H, W) in [0, 1], not normalized."""
        return self.model.get_image_features(pixel_values=self.preprocess(images_B3HW, self.device)).cpu()

    def count_truncated(self, prompts: Sequence[str]) -> list[Truncation]:
        """Count the prompts that have more tokens than the text tower reads."""
        texts = [self.clean(prompt) for prompt in prompts]
        return [
            Truncation(
                f"reward '{self.name}'", self.tokens, count_truncated_prompts(self.tokenizer, self.tokens, texts)
            )
        ]


NAME, HUB = "PickScore", "yuvalkirstain/PickScore_v1"

# The model card names this processor.
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


def load_pickscore(place: str = HUB, device: str = "cpu", batch: int = 64) -> ClipReward:
    """Load PickScore as published: exp(logit_scale) x cosine, about 18 to 24.

    Args:
        place: Folder or hub id of the model. If the folder does not contain ``preprocessor_config.json``, tokenizer
            and preprocessing are loaded from ``PROCESSOR``.
        device: Device of the model. The model runs in fp32.
        batch: Maximum number of images per forward pass, >= 1.

    Raises:
        RewardError: If files are missing or damaged.
    """
    complete = (Path(place) / "preprocessor_config.json").is_file()
    return ClipReward.from_folder(
        place, NAME, scale=None, device=device, batch=batch, processor=None if complete else PROCESSOR
    )
