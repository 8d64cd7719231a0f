"""ImageReward: a BLIP that reads prompt and image together, and a head on it (arXiv 2304.05977)."""

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
# Of the head's output on the authors' validation set: scores have mean 0 and standard deviation 1 there.
MEAN, STD = 0.16717362830052426, 1.0333394966054072
TOKENS = 35  # what the published code cuts prompts to


@dataclass(frozen=True)
class BlipShape:
    """The two towers."""

    vision: BlipVisionConfig
    text: BlipTextConfig


def blip_large() -> BlipShape:
    """ViT-L/16 at 224 pixels, and a BERT base with cross attention to it.

    The 12 heads of the BERT stand in no weight's shape, and transformers' default is 8.
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
        is_decoder=True,  # it has cross attention; it is called as an encoder
    )
    return BlipShape(vision, text)


class ImageReward:
    """The published score, about -2 to 2.

    Args:
        vision, text, head: the model, in fp32; moved to ``device``.
        tokenizer: BERT's.
        device: where the model runs.
        batch: images at a time.
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
        """Scores (B,) of RGB images (B, 3, H, W) in [0, 1] against the first 35 tokens of their prompts."""
        return in_batches(self._score, images_B3HW, prompts, self.batch)

    def count_truncated(self, prompts: Sequence[str]) -> list[Truncation]:
        """How many prompts have more than 35 tokens."""
        return [Truncation(f"reward '{self.name}'", TOKENS, count_truncated_prompts(self.tokenizer, TOKENS, prompts))]

    @without_autocast()
    @torch.no_grad()
    def _score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        seen = self.vision(pixel_values=self.preprocess(images_B3HW, self.device)).last_hidden_state
        words = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(self.device)
        read = self.text(
            input_ids=words.input_ids,
            attention_mask=words.attention_mask,
            encoder_hidden_states=seen,
            is_decoder=False,
        ).last_hidden_state
        return (self.head(read[:, 0]).squeeze(-1) - MEAN) / STD


def load_imagereward(
    place: str = HUB, device: str = "cpu", batch: int = 64, shape: BlipShape | None = None
) -> ImageReward:
    """ImageReward v1.0 from its published file.

    Args:
        place: the file ``ImageReward.pt`` (or its safetensors), its folder, or a hub id. A folder that holds a
            tokenizer too needs no other place; else the tokenizer comes from ``TOKENIZER``.
        device: where it runs, in fp32.
        batch: images at a time.
        shape: of the model; the published one if not given.

    Raises:
        RewardError: something is missing or damaged, or of another shape.
    """
    shape = shape or blip_large()
    weights = find_file(place, FILE, NAME)
    published = read_checkpoint(weights, NAME)
    # BLIP's other projections, which training used and the score does not, may be in the file: they are left out.
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
