"""Tiny files in the published layouts, with tokenizers in the same folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BlipTextConfig, BlipVisionConfig, CLIPConfig, CLIPModel

from tests.support.published import (
    TINY_BLIP,
    TINY_CLIP,
    BlipSize,
    ClipSize,
    Head,
    OpenClip,
    PublishedImageReward,
    quick_gelu,
    randomize,
)
from tpdm.rewards.aesthetic import FILE as AESTHETIC_FILE
from tpdm.rewards.checkpoints import fill
from tpdm.rewards.clip import ImageProcessor
from tpdm.rewards.hpsv2 import FILE as HPS_FILE
from tpdm.rewards.imagereward import FILE as IMAGEREWARD_FILE
from tpdm.rewards.imagereward import BlipShape
from tpdm.rewards.key_mapping import from_open_clip
from tpdm.tinyworld.tokenizer import make_tokenizer

PROMPTS = ["large red circle", "blue ring top left and green square", "object", "red &amp;amp; “blue” ring"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "large", "red", "circle", "blue", "ring", "top", "left", "and"]


@pytest.fixture(scope="session")
def images():
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def clip_config(size: ClipSize, act: str) -> CLIPConfig:
    text = {
        "vocab_size": size.vocabulary,
        "hidden_size": size.text_width,
        "intermediate_size": size.text_mlp,
        "num_hidden_layers": size.text_layers,
        "num_attention_heads": size.text_heads,
        "max_position_embeddings": size.tokens,
        "eos_token_id": size.vocabulary - 1,
        "bos_token_id": size.vocabulary - 2,
        "pad_token_id": size.vocabulary - 1,
        "hidden_act": act,
    }
    vision = {
        "image_size": size.image,
        "patch_size": size.patch,
        "hidden_size": size.vision_width,
        "intermediate_size": size.vision_mlp,
        "num_hidden_layers": size.vision_layers,
        "num_attention_heads": size.vision_heads,
        "projection_dim": size.embedding,
        "hidden_act": act,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=size.embedding)


def blip_shape(size: BlipSize) -> BlipShape:
    vision = BlipVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=size.vision_mlp,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_heads,
        image_size=size.image,
        patch_size=size.patch,
        layer_norm_eps=1e-6,
    )
    text = BlipTextConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.text_width,
        encoder_hidden_size=size.vision_width,
        intermediate_size=size.text_mlp,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.text_heads,
        max_position_embeddings=size.positions,
        is_decoder=True,
    )
    return BlipShape(vision, text)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> tuple[Path, OpenClip]:
    """A CLIP in transformers' layout with OpenAI's activation, and the independent model with its weights."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)  # the fixture does not depend on the order of tests
    reference = randomize(OpenClip(TINY_CLIP, quick_gelu))
    config = clip_config(TINY_CLIP, "quick_gelu")
    fill(lambda: CLIPModel(config), from_open_clip(reference.state_dict(), "test"), "test").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    size = {"height": TINY_CLIP.image, "width": TINY_CLIP.image}
    ImageProcessor(size={"shortest_edge": TINY_CLIP.image}, crop_size=size).save_pretrained(folder)
    return folder, reference


@pytest.fixture(scope="session")
def hps_folder(tmp_path_factory) -> tuple[Path, OpenClip]:
    folder = tmp_path_factory.mktemp("hps")
    reference = randomize(OpenClip(TINY_CLIP))
    torch.save({"state_dict": reference.state_dict()}, folder / HPS_FILE)
    make_tokenizer().save_pretrained(folder)
    return folder, reference


@pytest.fixture(scope="session")
def imagereward_folder(tmp_path_factory) -> tuple[Path, PublishedImageReward]:
    folder = tmp_path_factory.mktemp("imagereward")
    reference = PublishedImageReward(TINY_BLIP).eval()
    randomize(reference.blip)
    torch.save(reference.state_dict(), folder / IMAGEREWARD_FILE)
    # As published: BERT's tokenizer has two tokens fewer than BLIP.
    fillers = [f"word{n}" for n in range(TINY_BLIP.vocabulary - 2 - len(WORDS))]
    (folder / "vocab.txt").write_text("\n".join([*WORDS, *fillers]))
    return folder, reference.requires_grad_(False)


@pytest.fixture(scope="session")
def aesthetic_folder(tmp_path_factory, clip_folder) -> tuple[Path, Head]:
    """The head's file and a copy of the CLIP in one folder."""
    folder = tmp_path_factory.mktemp("aesthetic")
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((clip_folder[0] / name).read_bytes())
    torch.manual_seed(0)
    head = Head(TINY_CLIP.embedding).eval().requires_grad_(False)
    torch.save(head.state_dict(), folder / AESTHETIC_FILE)
    return folder, head
