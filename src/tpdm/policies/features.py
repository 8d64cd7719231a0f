"""From a denoiser's features to what a TPM reads: checked against its shape, and pooled or folded."""

from __future__ import annotations

import torch
from torch import Tensor

from tpdm.core.device import average_pool
from tpdm.core.errors import BackboneError
from tpdm.core.types import Features
from tpdm.policies.layers import fold_tokens, normalize
from tpdm.policies.tpm_config import TPMConfig


def reduce_features(shape: TPMConfig, features: Features | None) -> tuple[Tensor, Tensor]:
    """What a TPM of this shape reads of one evaluation, fp32.

    Args:
        shape: of the TPM.
        features: of B images.

    Returns:
        Map (B, 2D, S, S) for "pooled" whatever the resolution, (B, 2D, H, W) for "release", half as many channels for
        ``maps="last"``; time embedding (B, E).

    Raises:
        BackboneError: no features, other widths than the TPM's, or a token grid it was not trained for.
    """
    features = check_features(shape, features)
    first = [features.first_BDHW] if shape.feature_maps == "first_last" else []
    maps, temb_BE = [*first, features.last_BDHW], features.temb_BE
    if shape.layout == "release":
        maps_BDHW = [fold_tokens(x) for x in maps]
    else:
        grid = (shape.grid, shape.grid)
        maps_BDHW = [average_pool(normalize(x), grid) for x in maps]
        temb_BE = normalize(temb_BE)
    return torch.cat([x.float() for x in maps_BDHW], dim=1), temb_BE.float()


def check_features(shape: TPMConfig, features: Features | None) -> Features:
    """The features, which fit the TPM.

    Raises:
        BackboneError: as ``reduce_features``.
    """
    if features is None:
        raise BackboneError("got no features, expected those of the denoiser; attach the pipeline with its hooks on.")
    got = (features.first_BDHW.shape[1], features.last_BDHW.shape[1], features.temb_BE.shape[-1])
    expected = (shape.feature_channels, shape.feature_channels, shape.temb_channels)
    if got != expected:
        raise BackboneError(
            f"got features of widths {got} (first, last, temb), expected {expected}; load a TPM"
            " trained for this denoiser."
        )
    grid = tuple(features.first_BDHW.shape[2:])
    if shape.token_grid is not None and grid != tuple(shape.token_grid):
        raise BackboneError(
            f"got a token grid of {grid}, expected {shape.token_grid} as in this TPM of the release layout's training;"
            " use its image size or a pooled TPM."
        )
    return features
