"""ImageReward: a BLIP model of prompt and image with a scoring head (arXiv 2304.05977)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from tpdm.core.device import without_autocast
from tpdm.data.truncation import Truncation, count_truncated_prompts
from tpdm.rewards.aesthetic import make_head
from tpdm.rewards.base import in_batches
from tpdm.rewards.checkpoints import fill, find_file, load_tokenizer, read_checkpoint, tokenizer_place
from tpdm.rewards.key_mapping import below, from_blip_vit, from_med_bert
from tpdm.rewards.preprocessing import Preprocess

NAME, HUB, FILE = "ImageReward", "THUDM/ImageReward", "ImageReward.pt"
TOKENIZER = "bert-base-uncased"
# Statistics of the head's output on the authors' validation set. There, scores have mean 0 and standard deviation 1.
MEAN, STD = 0.16717362830052426, 1.0333394966054072
TOKENS = 35  # maximum length of a prompt in the published code


@dataclass(frozen=True)
class BlipShape:
    """Configurations of the two towers."""

    vision: BlipVisionConfig
    text: BlipTextConfig


def blip_large() -> BlipShape:
    """Return the published shape: ViT-L/16 at 224 pixels, and a BERT base with cross attention to it.

    The BERT has 12 heads. transformers' default is 8, and no shape of a weight would reveal the difference.
    """
    vision = BlipVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=16,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    text = BlipTextConfig(
        vocab_size=30524,
        hidden_size=768,
        encoder_hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=512,
        layer_norm_eps=1e-12,
        is_decoder=True,  # it has cross attention, and is called as an encoder
    )
    return BlipShape(vision, text)


class ImageReward:
    """The published score, about -2 to 2.

    Args:
        vision: Image tower in fp32. It is moved to ``device``.
        text: Text tower in fp32. It is moved to ``device``.
        head: Scoring head in fp32. It is moved to ``device``.
        tokenizer: Tokenizer of the text tower.
        device: Device of the model.
        batch: Maximum number of images per forward pass, >= 1.
    """

    def __init__(
        self,
        vision: BlipVisionModel,
        text: BlipTextModel,
        head: nn.Sequential,
        tokenizer: BertTokenizer,
        device: str = "cpu",
        batch: int = 64,
    ) -> None:
        self.name = NAME
        self.vision, self.text, self.head = vision.to(device), text.to(device), head.to(device)
        self.tokenizer = tokenizer
        self.preprocess = Preprocess(int(vision.config.image_size))
        self.device = torch.device(device)
        self.batch = batch

    def score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return scores (B,) of RGB images (B, 3, H, W) in [0, 1] for the first 35 tokens of their B prompts."""
        return in_batches(self._score, images_B3HW, prompts, self.batch)

    def count_truncated(self, prompts: Sequence[str]) -> list[Truncation]:
        """Count the prompts that have more than 35 tokens."""
        return [Truncation(f"reward '{self.name}'", TOKENS, count_truncated_prompts(self.tokenizer, TOKENS, prompts))]

    @without_autocast()
    @torch.no_grad()
    def _score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        patches = self.vision(pixel_values=self.preprocess(images_B3HW, self.device)).last_hidden_state
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(self.device)
        states = self.text(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=patches,
            is_decoder=False,
        ).last_hidden_state
        return (self.head(states[:, 0]).squeeze(-1) - MEAN) / STD


def load_imagereward(
    place: str = HUB, device: str = "cpu", batch: int = 64, shape: BlipShape | None = None
) -> ImageReward:
    """Load ImageReward v1.0 from its published file.

    Args:
        place: The file ``ImageReward.pt`` (or its safetensors), its folder, or a hub id. If the folder contains no
            tokenizer, the tokenizer is loaded from ``TOKENIZER``.
        device: Device of the model. The model runs in fp32.
        batch: Maximum number of images per forward pass, >= 1.
        shape: Shape of the model. The default is the published one.

    Raises:
        RewardError: If files are missing, damaged or of another shape.
    """
    shape = shape or blip_large()
    weights = find_file(place, FILE, NAME)
    published = read_checkpoint(weights, NAME)
    # The file may contain projections of BLIP that only training used. They are ignored.
    vision = from_blip_vit(below(published, "blip.visual_encoder."), NAME)
    text = from_med_bert(below(published, "blip.text_encoder."))
    return ImageReward(
        fill(lambda: BlipVisionModel(shape.vision), vision, NAME),
        fill(lambda: BlipTextModel(shape.text, add_pooling_layer=False), text, NAME),
        fill(lambda: make_head(int(shape.text.hidden_size)), below(published, "mlp.layers."), NAME),
        load_tokenizer(BertTokenizer, tokenizer_place(weights, TOKENIZER), NAME, int(shape.text.vocab_size)),
        device,
        batch,
    )
