"""The published TPM and its sampling loop, written from the paper and the facts of docs/explanation/method.md."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNELS = 8


def make_checkpoint(width: int, temb: int, prefix: str = "agent_model.time_predictor.") -> dict[str, Tensor]:
    """A file's tensors with random weights, large enough that schedules depend on what is seen; and a backbone's."""
    g = torch.Generator().manual_seed(1)

    def normal(*size: int, std: float) -> Tensor:
        return std * torch.randn(*size, generator=g)

    C = CHANNELS
    parts = {
        "conv1.weight": normal(C, 2 * width, 3, 3, std=0.3),
        "conv1.bias": normal(C, std=0.1),
        "norm1.norm.weight": 1 + normal(C, std=0.1),
        "norm1.norm.bias": normal(C, std=0.1),
        "norm1.linear.weight": normal(2 * C, temb, std=0.2),
        "norm1.linear.bias": normal(2 * C, std=0.1),
        "conv2.weight": normal(C, C, 3, 3, std=0.3),
        "conv2.bias": normal(C, std=0.1),
        "fc1.weight": normal(C, C, std=0.5),
        "fc1.bias": normal(C, std=0.1),
        "fc2.weight": normal(2, C, std=0.2),
        "fc2.bias": torch.tensor([1.5, 1.0]),
    }
    backbone = {"agent_model.transformer.proj_out.weight": torch.zeros(3, 3)}
    return {prefix + name: tensor for name, tensor in parts.items()} | backbone


def released_ratio(parts: dict[str, Tensor], first: Tensor, last: Tensor, temb: Tensor) -> Tensor:
    """The mode of the Beta, (B,), from guided tokens (B, 4096, D) and time embedding (B, E)."""

    def to_map(tokens: Tensor) -> Tensor:
        B, _, D = tokens.shape
        return tokens.view(B, 32, 32, 2, 2, D).permute(0, 5, 1, 3, 2, 4).reshape(B, D, 64, 64)

    x = F.conv2d(torch.cat([to_map(first), to_map(last)], 1), parts["conv1.weight"], parts["conv1.bias"], padding=1)
    x = F.group_norm(x, 1, parts["norm1.norm.weight"], parts["norm1.norm.bias"], eps=1e-6)
    shift, scale = F.linear(F.silu(temb), parts["norm1.linear.weight"], parts["norm1.linear.bias"]).chunk(2, 1)
    x = F.silu(x * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
    x = F.conv2d(x, parts["conv2.weight"], parts["conv2.bias"], stride=2, padding=1)
    x = F.adaptive_avg_pool2d(x, 16).flatten(2).max(2).values
    x = F.silu(F.linear(x, parts["fc1.weight"], parts["fc1.bias"]))
    alpha, beta = (F.linear(x, parts["fc2.weight"], parts["fc2.bias"]).exp() + 1).unbind(1)
    return ((alpha - 1) / (alpha + beta - 2)).clamp(1e-3, 1 - 1e-3)


@torch.no_grad()
def released_times(
    pipe: Any, parts: dict[str, Tensor], prompt: str, seed: int, w: float, stop_below: float, max_steps: int
) -> list[float]:
    """Times of one image of 64 x 64 tokens, from 1.0 to the last one before ``stop_below``."""
    seen: dict[str, Tensor] = {}
    net = pipe.transformer
    handles = [
        net.pos_embed.register_forward_hook(lambda _m, _a, out: seen.update(first=out)),
        net.proj_out.register_forward_pre_hook(lambda _m, args: seen.update(last=args[0])),
        net.time_text_embed.register_forward_hook(lambda _m, _a, out: seen.update(temb=out)),
    ]
    text, no_text, pooled, no_pooled = pipe.encode_prompt(prompt, prompt, prompt, max_sequence_length=4)
    text, pooled = torch.cat([no_text, text]), torch.cat([no_pooled, pooled])
    x = torch.randn(1, 4, 128, 128, generator=torch.Generator().manual_seed(seed))
    times = [1.0]
    try:
        while len(times) <= max_steps:
            t = torch.full((2,), 1000 * times[-1])
            v_u, v_c = net(torch.cat([x, x]), text, pooled, t, return_dict=False)[0].chunk(2)
            guided = {k: u + w * (c - u) for k, (u, c) in ((k, v.chunk(2)) for k, v in seen.items())}
            t_next = times[-1] * float(released_ratio(parts, guided["first"], guided["last"], guided["temb"]))
            if t_next < stop_below:
                break
            x = x + (t_next - times[-1]) * (v_u + w * (v_c - v_u))
            times.append(t_next)
    finally:
        for handle in handles:
            handle.remove()
    return times
