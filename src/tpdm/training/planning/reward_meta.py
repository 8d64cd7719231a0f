"""Rewards on the meta device, whose memory a plan counts before anything is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import BlipTextModel, BlipVisionModel, CLIPModel

from tpdm.rewards.hpsv2 import vit_h_14
from tpdm.rewards.imagereward import blip_large
from tpdm.rewards.preprocessing import Preprocess


@dataclass(frozen=True)
class RewardShape:
    """A reward on the meta device.

    Attributes:
        parameters: Number of parameters of all networks. They run in fp32.
        see: The vision tower on images (B, 3, H, W), with preprocessing. The text tower is small in comparison.
    """

    parameters: int
    see: Callable[[Tensor], object]


def reward_shape(name: str) -> RewardShape | None:
    """The published reward of a name. None for rewards whose size the name does not determine."""
    make = {"imagereward": _imagereward, "pickscore": _clip_h, "hpsv2": _clip_h}.get(name.partition(":")[0])
    if make is None:
        return None
    with torch.device("meta"):
        return make()


def _imagereward() -> RewardShape:
    shape = blip_large()
    vision, text = BlipVisionModel(shape.vision).float(), BlipTextModel(shape.text, add_pooling_layer=False).float()
    return RewardShape(_count(vision, text), lambda images: vision(pixel_values=_ready(images)))


def _clip_h() -> RewardShape:
    """CLIP ViT-H/14, the network of PickScore and HPSv2."""
    clip = CLIPModel(vit_h_14()).float()
    return RewardShape(_count(clip), lambda images: clip.vision_model(pixel_values=_ready(images)))


def _ready(images: Tensor) -> Tensor:
    return Preprocess(224)(images, torch.device("meta"))


def _count(*networks: nn.Module) -> int:
    return sum(p.numel() for network in networks for p in network.parameters())
