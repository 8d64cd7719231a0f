"""Map the weights of published rewards to the names that transformers uses.

Projections are transposed, and joint query-key-value weights are split in three. Other values are unchanged.
``checkpoints.fill`` checks that no weight is missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from tpdm.core.errors import RewardError

_CLIP_LAYER = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
_CLIP_JOINT = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")
_CLIP_INNER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_CLIP_OUTER = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    # transformers spells it this way.
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_CLIP_TRANSPOSED = {
    "text_projection": "text_projection.weight",
    "visual.proj": "visual_projection.weight",
}
_CLIP_DROPPED = {"attn_mask"}  # the causal mask: transformers computes it

_VIT_OUTER = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_VIT_LAYER = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
_VIT_INNER = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def from_open_clip(published: Mapping[str, Tensor], reward: str) -> dict[str, Tensor]:
    """Rename the weights of an open_clip ``CLIP`` with a ViT to those of a transformers ``CLIPModel``.

    Args:
        published: Tensors by their names in open_clip.
        reward: Name of the reward, for the error message.

    Raises:
        RewardError: If a name does not belong to that layout.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in published.items():
        if name in _CLIP_OUTER:
            renamed[_CLIP_OUTER[name]] = value
        elif name in _CLIP_TRANSPOSED:
            renamed[_CLIP_TRANSPOSED[name]] = value.T.contiguous()
        elif joint := _CLIP_JOINT.fullmatch(name):
            place = f"{_tower(joint[1])}.encoder.layers.{joint[2]}.self_attn"
            for part, piece in zip(("q", "k", "v"), value.chunk(3), strict=True):
                renamed[f"{place}.{part}_proj.{joint[3]}"] = piece
        elif (layer := _CLIP_LAYER.fullmatch(name)) and layer[3] in _CLIP_INNER:
            renamed[f"{_tower(layer[1])}.encoder.layers.{layer[2]}.{_CLIP_INNER[layer[3]]}.{layer[4]}"] = value
        elif name not in _CLIP_DROPPED:
            raise _unknown(name, "an open_clip model", reward)
    return renamed


def from_blip_vit(published: Mapping[str, Tensor], reward: str) -> dict[str, Tensor]:
    """Rename the weights of BLIP's vision transformer to those of a transformers ``BlipVisionModel``.

    Args:
        published: Tensors by their names in BLIP.
        reward: Name of the reward, for the error message.

    Raises:
        RewardError: If a name does not belong to that layout.
    """
    renamed = {}
    for name, value in published.items():
        if name in _VIT_OUTER:
            renamed[_VIT_OUTER[name]] = value
        elif (layer := _VIT_LAYER.fullmatch(name)) and layer[2] in _VIT_INNER:
            renamed[f"encoder.layers.{layer[1]}.{_VIT_INNER[layer[2]]}.{layer[3]}"] = value
        else:
            raise _unknown(name, "BLIP's vision transformer", reward)
    return renamed


def from_med_bert(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a transformers ``BlipTextModel``: the same names as BLIP's, without the position ids."""
    return {name: value for name, value in published.items() if name != "embeddings.position_ids"}


def below(published: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries whose names begin with ``prefix``, and remove the prefix.

    Example:
        >>> sorted(below({"mlp.0.weight": 1, "blip.x": 2}, "mlp."))
        ['0.weight']
    """
    return {name.removeprefix(prefix): value for name, value in published.items() if name.startswith(prefix)}


def _tower(visual: str | None) -> str:
    return "vision_model" if visual else "text_model"


def _unknown(name: str, layout: str, reward: str) -> RewardError:
    return RewardError(
        f"Reward '{reward}': the file contains a weight named '{name}'. It must contain the weights of {layout}. Fetch "
        "the published file of this reward."
    )
