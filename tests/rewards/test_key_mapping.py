"""Every published name maps to exactly one weight of the full-size model (on the meta device)."""

import pytest
import torch
from transformers import BlipTextModel, BlipVisionModel, CLIPModel

from tests.support.published import BLIP_LARGE, TINY_CLIP, VIT_H_14, OpenClip, PublishedImageReward
from tpdm.core.errors import RewardError
from tpdm.rewards.aesthetic import make_head
from tpdm.rewards.hpsv2 import vit_h_14
from tpdm.rewards.imagereward import blip_large
from tpdm.rewards.key_mapping import below, from_blip_vit, from_med_bert, from_open_clip


def shapes(tensors):
    return {name: tuple(value.shape) for name, value in tensors.items()}


def test_open_clip_vit_h_14():
    with torch.device("meta"):
        published = OpenClip(VIT_H_14).state_dict()
        expected = CLIPModel(vit_h_14()).state_dict()
    assert len(published) == 686  # counted in the published model
    assert len(expected) == 910
    assert shapes(from_open_clip(published, "test")) == shapes(expected)


def test_imagereward():
    shape = blip_large()
    with torch.device("meta"):
        published = PublishedImageReward(BLIP_LARGE).state_dict()
        vision, text = BlipVisionModel(shape.vision), BlipTextModel(shape.text, add_pooling_layer=False)
        head = make_head(768)
    vision_weights, text_weights = below(published, "blip.visual_encoder."), below(published, "blip.text_encoder.")
    assert len(vision_weights) == 294
    assert len(text_weights) == 317  # one of them contains the position ids
    assert shapes(from_blip_vit(vision_weights, "test")) == shapes(vision.state_dict())
    assert shapes(from_med_bert(text_weights)) == shapes(text.state_dict())
    assert shapes(below(published, "mlp.layers.")) == shapes(head.state_dict())
    assert text.encoder.layer[0].crossattention.self.num_attention_heads == 12  # not visible in any shape


def test_the_head_has_the_published_numbers():
    assert {name.split(".")[0] for name in make_head(768).state_dict()} == {"0", "2", "4", "6", "7"}


@pytest.mark.parametrize(
    "name", ["visual.attnpool.q.weight", "transformer.resblocks.0.ls_1.gamma", "transformer.resblocks.0.ls_1.weight"]
)
def test_a_name_of_another_layout_is_refused(name):
    tensors = {**OpenClip(TINY_CLIP).state_dict(), name: torch.zeros(1)}
    with pytest.raises(
        RewardError, match=f"a weight named '{name}'. It must contain the weights of an open_clip model"
    ):
        from_open_clip(tensors, "test")
    with pytest.raises(RewardError, match="must contain the weights of BLIP's vision transformer"):
        from_blip_vit({name: torch.zeros(1)}, "test")
