"""Ways in which a picture goes wrong, for teaching the reward what quality is.

Every function takes latents or pictures and a severity in [0, 1] per image; the severity is only a knob: how bad the
result is gets measured afterwards, as the distance to the picture without the fault.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def _noise_like(x: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))


def latent_noise(z: Tensor, severity_B: Tensor, rng: np.random.Generator) -> Tensor:
    """Left-over noise, as when denoising stops early: x_t = (1 - t) z + t eps with t up to 0.5."""
    t = 0.5 * severity_B.view(-1, 1, 1, 1)
    return (1 - t) * z + t * _noise_like(z, rng)


def ghost(z: Tensor, severity_B: Tensor, rng: np.random.Generator) -> Tensor:
    """A blend with another scene, as when large early steps average over several pictures."""
    other = z[torch.from_numpy(rng.permutation(len(z)))]
    a = 0.5 * severity_B.view(-1, 1, 1, 1)
    return (1 - a) * z + a * other


def fade(z: Tensor, severity_B: Tensor, rng: np.random.Generator) -> Tensor:
    """Latents pulled towards their mean over a random half of the places: washed-out, half-decided objects."""
    where = F.interpolate(torch.from_numpy(rng.random((len(z), 1, 4, 4), dtype=np.float32)), scale_factor=2)
    a = 0.8 * severity_B.view(-1, 1, 1, 1) * (where > 0.5)
    return (1 - a) * z + a * z.mean(dim=(0, 2, 3), keepdim=True)


def pixel_noise(x: Tensor, severity_B: Tensor, rng: np.random.Generator) -> Tensor:
    """White noise on pixels in [-1, 1], standard deviation up to 0.35."""
    return x + 0.35 * severity_B.view(-1, 1, 1, 1) * _noise_like(x, rng)


def blur(x: Tensor, severity_B: Tensor, rng: np.random.Generator) -> Tensor:
    """A blend of the picture with itself blurred by an 7 x 7 box, applied twice."""
    soft = F.avg_pool2d(F.pad(x, (3, 3, 3, 3), mode="replicate"), 7, stride=1)
    soft = F.avg_pool2d(F.pad(soft, (3, 3, 3, 3), mode="replicate"), 7, stride=1)
    a = severity_B.view(-1, 1, 1, 1)
    return (1 - a) * x + a * soft


Fault = Callable[[Tensor, Tensor, np.random.Generator], Tensor]
LATENT_FAULTS: tuple[Fault, ...] = (latent_noise, ghost, fade)
PIXEL_FAULTS: tuple[Fault, ...] = (pixel_noise, blur)


def apply_mixture(faults: tuple[Fault, ...], x: Tensor, severity_B: Tensor, rng: np.random.Generator) -> Tensor:
    """Each image gets one of the faults, drawn evenly."""
    which = torch.from_numpy(rng.integers(len(faults), size=len(x)))
    out = x.clone()
    for i, fault in enumerate(faults):
        rows = which == i
        out[rows] = fault(x, severity_B, rng)[rows]
    return out
