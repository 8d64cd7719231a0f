"""HPSv2.1: the cosine of a fine-tuned open_clip ViT-H-14 (arXiv 2306.09341)."""

from __future__ import annotations

import html

from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from tpdm.rewards.checkpoints import fill, find_file, load_tokenizer, read_checkpoint, tokenizer_place
from tpdm.rewards.clip import ClipReward
from tpdm.rewards.key_mapping import from_open_clip
from tpdm.rewards.preprocessing import Preprocess

NAME, HUB, FILE = "HPSv2.1", "xswu/HPSv2", "HPS_v2.1_compressed.pt"
# HPSv2 was fine-tuned from this model. Its vocabulary is OpenAI's.
TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"'})


def vit_h_14() -> CLIPConfig:
    """Return the configuration of open_clip's ViT-H-14: exact GELU (not OpenAI's quick GELU), 16 heads per tower."""
    shared = {"projection_dim": 1024, "num_attention_heads": 16, "hidden_act": "gelu"}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "patch_size": 14}
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    return CLIPConfig(
        text_config={**shared, **text}, vision_config={**shared, **vision, "image_size": 224}, projection_dim=1024
    )


def load_hpsv2(place: str = HUB, device: str = "cpu", batch: int = 64, config: CLIPConfig | None = None) -> ClipReward:
    """Load HPSv2.1 as published: the cosine without a logit scale, about 0.2 to 0.35.

    Args:
        place: The file ``HPS_v2.1_compressed.pt`` (or its safetensors), its folder, or a hub id. If the folder
            contains no tokenizer, the tokenizer is loaded from ``TOKENIZER``.
        device: Device of the model. The model runs in fp32.
        batch: Maximum number of images per forward pass, >= 1.
        config: Shape of the model. The default is the published one.

    Raises:
        RewardError: If files are missing, damaged or of another shape.
    """
    shape = config or vit_h_14()
    weights = find_file(place, FILE, NAME)
    model = fill(lambda: CLIPModel(shape), from_open_clip(read_checkpoint(weights, NAME), NAME), NAME)
    vocabulary = int(shape.text_config.vocab_size)
    tokenizer = load_tokenizer(CLIPTokenizer, tokenizer_place(weights, TOKENIZER), NAME, vocabulary)
    preprocess = Preprocess(int(shape.vision_config.image_size), fit="pad")
    return ClipReward(model, tokenizer, preprocess, NAME, device=device, batch=batch, clean=clean_prompt)


def clean_prompt(prompt: str) -> str:
    """Clean a prompt as open_clip does: unescape HTML twice, straighten quotes, join spaces, and lower the case.

    open_clip also repairs wrong encodings with ftfy. This function does not, so that scores do not depend on an
    optional package.

    Example:
        >>> clean_prompt("A&amp;B  “nice”")
        'a&b "nice"'
    """
    return " ".join(html.unescape(html.unescape(prompt)).translate(_QUOTES).split()).lower()
