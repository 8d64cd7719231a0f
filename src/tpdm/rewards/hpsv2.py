"""HPSv2.1: the cosine of a fine-tuned open_clip ViT-H-14 (arXiv 2306.09341)."""

from __future__ import annotations

import html

from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from tpdm.rewards.checkpoints import fill, find_file, load_tokenizer, read_checkpoint, tokenizer_place
from tpdm.rewards.clip import ClipReward
from tpdm.rewards.key_mapping import from_open_clip
from tpdm.rewards.preprocessing import Preprocess

NAME, HUB, FILE = "HPSv2.1", "xswu/HPSv2", "HPS_v2.1_compressed.pt"
# The same vocabulary as OpenAI's; this is the model that HPSv2 was fine-tuned from.
TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"'})


def vit_h_14() -> CLIPConfig:
    """open_clip's ViT-H-14: activation "gelu" (not OpenAI's quick one), 16 heads in both towers."""
    shared = {"projection_dim": 1024, "num_attention_heads": 16, "hidden_act": "gelu"}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "patch_size": 14}
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    return CLIPConfig(
        text_config={**shared, **text}, vision_config={**shared, **vision, "image_size": 224}, projection_dim=1024
    )


def load_hpsv2(place: str = HUB, device: str = "cpu", batch: int = 64, config: CLIPConfig | None = None) -> ClipReward:
    """HPSv2.1 as published: the cosine itself, without a logit scale (about .2 to .35).

    Args:
        place: the file ``HPS_v2.1_compressed.pt`` (or its safetensors), its folder, or a hub id. A folder that holds
            a tokenizer too needs no other place; else the tokenizer comes from ``TOKENIZER``.
        device: where it runs, in fp32.
        batch: images at a time.
        config: shape of the model; the published one if not given.

    Raises:
        RewardError: something is missing or damaged, or of another shape.
    """
    shape = config or vit_h_14()
    weights = find_file(place, FILE, NAME)
    model = fill(lambda: CLIPModel(shape), from_open_clip(read_checkpoint(weights, NAME), NAME), NAME)
    vocabulary = int(shape.text_config.vocab_size)
    tokenizer = load_tokenizer(CLIPTokenizer, tokenizer_place(weights, TOKENIZER), NAME, vocabulary)
    preprocess = Preprocess(int(shape.vision_config.image_size), fit="pad")
    return ClipReward(model, tokenizer, preprocess, NAME, device=device, batch=batch, clean=clean_prompt)


def clean_prompt(prompt: str) -> str:
    """What open_clip does to a prompt before its tokenizer: HTML entities twice, straight quotes, single spaces.

    open_clip also mends text in a wrong encoding, with ftfy; no score here should depend on that being installed.
    """
    return " ".join(html.unescape(html.unescape(prompt)).translate(_QUOTES).split()).lower()
