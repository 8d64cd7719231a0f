"""The published reward models, written down again from their papers' architectures in plain torch.

Their parameters carry the names of the published files. Nothing here knows transformers or ``tpdm``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter, biases and norms too, away from its first value: a swapped pair would show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval().requires_grad_(False)


# --- open_clip -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClipSize:
    image: int
    patch: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_mlp: int
    text_width: int
    text_layers: int
    text_heads: int
    text_mlp: int
    vocabulary: int
    tokens: int
    embedding: int


VIT_H_14 = ClipSize(224, 14, 1280, 32, 16, 5120, 1024, 24, 16, 4096, 49408, 77, 1024)
TINY_CLIP = ClipSize(16, 4, 40, 3, 4, 96, 24, 2, 3, 64, 651, 32, 20)


class ClipBlock(nn.Module):
    def __init__(self, width: int, heads: int, mlp: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        layers = [("c_fc", nn.Linear(width, mlp)), ("c_proj", nn.Linear(mlp, width))]
        self.mlp = nn.ModuleDict(OrderedDict(layers))
        self.act = act

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](self.act(self.mlp["c_fc"](self.ln_2(x))))


class ClipTransformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, mlp: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([ClipBlock(width, heads, mlp, act) for _ in range(layers)])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class ClipVision(nn.Module):
    def __init__(self, size: ClipSize, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        width = size.vision_width
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((size.image // size.patch) ** 2 + 1, width))
        self.proj = nn.Parameter(torch.zeros(width, size.embedding))
        self.conv1 = nn.Conv2d(3, width, size.patch, size.patch, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = ClipTransformer(width, size.vision_layers, size.vision_heads, size.vision_mlp, act)
        self.ln_post = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """The text tower's weights lie beside ``visual``, as in the published files."""

    def __init__(self, size: ClipSize, act: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(size.tokens, size.text_width))
        self.text_projection = nn.Parameter(torch.zeros(size.text_width, size.embedding))
        self.logit_scale = nn.Parameter(torch.tensor(4.0))
        self.visual = ClipVision(size, act)
        self.transformer = ClipTransformer(size.text_width, size.text_layers, size.text_heads, size.text_mlp, act)
        self.token_embedding = nn.Embedding(size.vocabulary, size.text_width)
        self.ln_final = nn.LayerNorm(size.text_width)

    def text(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)
        x = self.transformer(self.token_embedding(ids) + self.positional_embedding[:length], mask)
        # The end has the highest number of the vocabulary.
        return self.ln_final(x)[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection

    def cosine(self, pixels: Tensor, ids: Tensor) -> Tensor:
        return F.cosine_similarity(self.visual(pixels), self.text(ids))


# --- BLIP and ImageReward --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlipSize:
    image: int
    patch: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_mlp: int
    text_width: int
    text_layers: int
    text_heads: int
    text_mlp: int
    vocabulary: int
    positions: int


BLIP_LARGE = BlipSize(224, 16, 1024, 24, 16, 4096, 768, 12, 12, 3072, 30524, 512)
TINY_BLIP = BlipSize(16, 4, 40, 2, 4, 96, 24, 2, 3, 64, 50, 48)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    return F.scaled_dot_product_attention(split(q), split(k), split(v), mask).transpose(1, 2).flatten(2)


class VitAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(attend(*self.qkv(x).chunk(3, dim=-1), self.heads))


class VitBlock(nn.Module):
    def __init__(self, size: BlipSize) -> None:
        super().__init__()
        width = size.vision_width
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn = VitAttention(width, size.vision_heads)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, size.vision_mlp), "fc2": nn.Linear(size.vision_mlp, width)},
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class BlipVit(nn.Module):
    def __init__(self, size: BlipSize) -> None:
        super().__init__()
        width = size.vision_width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (size.image // size.patch) ** 2 + 1, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, size.patch, size.patch)})
        self.blocks = nn.ModuleList([VitBlock(size) for _ in range(size.vision_layers)])
        self.norm = nn.LayerNorm(width, 1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), 1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class BertAttention(nn.Module):
    def __init__(self, width: int, source: int, heads: int) -> None:
        super().__init__()
        ends = {"query": nn.Linear(width, width), "key": nn.Linear(source, width), "value": nn.Linear(source, width)}
        self.self = nn.ModuleDict(ends)
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, 1e-12)})
        self.heads = heads

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        ends = self.self["query"](x), self.self["key"](source), self.self["value"](source)
        return self.output["LayerNorm"](x + self.output["dense"](attend(*ends, self.heads, mask)))


class BertLayer(nn.Module):
    def __init__(self, size: BlipSize) -> None:
        super().__init__()
        width = size.text_width
        self.attention = BertAttention(width, width, size.text_heads)
        self.crossattention = BertAttention(width, size.vision_width, size.text_heads)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, size.text_mlp)})
        self.output = nn.ModuleDict({"dense": nn.Linear(size.text_mlp, width), "LayerNorm": nn.LayerNorm(width, 1e-12)})

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
        x = self.crossattention(self.attention(x, x, mask), seen, None)
        inner = F.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](x + self.output["dense"](inner))


class BertEmbeddings(nn.Module):
    def __init__(self, size: BlipSize) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(size.vocabulary, size.text_width)
        self.position_embeddings = nn.Embedding(size.positions, size.text_width)
        self.LayerNorm = nn.LayerNorm(size.text_width, 1e-12)
        self.register_buffer("position_ids", torch.arange(size.positions)[None])

    def forward(self, ids: Tensor) -> Tensor:
        return self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings.weight[: ids.shape[1]])


class MedBert(nn.Module):
    def __init__(self, size: BlipSize) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(size)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList([BertLayer(size) for _ in range(size.text_layers)])})

    def forward(self, ids: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
        x = self.embeddings(ids)
        for layer in self.encoder["layer"]:
            x = layer(x, seen, mask[:, None, None, :].bool())
        return x


class Head(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        linear = [nn.Linear(a, b) for a, b in ((width, 1024), (1024, 128), (128, 64), (64, 16), (16, 1))]
        first, second, third, fourth, fifth = linear
        drop = [nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)]
        self.layers = nn.Sequential(first, drop[0], second, drop[1], third, drop[2], fourth, fifth)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[:, 0]


class PublishedImageReward(nn.Module):
    """With the two projections that BLIP's pre-training used and the score does not."""

    def __init__(self, size: BlipSize) -> None:
        super().__init__()
        self.blip = nn.ModuleDict(
            {
                "visual_encoder": BlipVit(size),
                "text_encoder": MedBert(size),
                "vision_proj": nn.Linear(size.vision_width, 8),
                "text_proj": nn.Linear(size.text_width, 8),
            }
        )
        self.mlp = Head(size.text_width)

    def score(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        read = self.blip["text_encoder"](ids, mask, self.blip["visual_encoder"](pixels))
        return (self.mlp(read[:, 0]) - 0.16717362830052426) / 1.0333394966054072
