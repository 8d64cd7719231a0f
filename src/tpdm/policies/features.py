"""Reduction of a denoiser's features to what a TPM reads: checked, then pooled or folded."""

from __future__ import annotations

import torch
from torch import Tensor

from tpdm.core.device import average_pool
from tpdm.core.errors import BackboneError
from tpdm.core.types import Features
from tpdm.policies.layers import fold_tokens, normalize
from tpdm.policies.tpm_config import TPMConfig


def reduce_features(shape: TPMConfig, features: Features | None) -> tuple[Tensor, Tensor]:
    """Reduce the features of one evaluation to what a TPM reads.

    Args:
        shape: Architecture of the TPM.
        features: Features of B images.

    Returns:
        (map, time embedding), fp32. The map is (B, 2D, S, S) for "pooled" at every resolution, and (B, 2D, H, W) for
        "release". ``maps="last"`` halves the channels. The time embedding is (B, E).

    Raises:
        BackboneError: There are no features, their widths differ from the TPM's, or the TPM was not trained for the
            token grid.

    Example:
        >>> from tpdm.policies.tpm_config import TPMConfig
        >>> features = Features(torch.rand(1, 6, 4, 4), torch.rand(1, 6, 4, 4), torch.rand(1, 5))
        >>> [x.shape for x in reduce_features(TPMConfig(6, 5, grid=2), features)]
        [torch.Size([1, 12, 2, 2]), torch.Size([1, 5])]
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
    """Return the features if they fit the TPM.

    Raises:
        BackboneError: As for :func:`reduce_features`.
    """
    if features is None:
        raise BackboneError(
            "features is None. The TPM reads features of the denoiser. Use the pipeline through tpdm.attach."
        )
    got = (features.first_BDHW.shape[1], features.last_BDHW.shape[1], features.temb_BE.shape[-1])
    expected = (shape.feature_channels, shape.feature_channels, shape.temb_channels)
    if got != expected:
        raise BackboneError(
            f"The features have widths {got} (first, last, temb). The TPM reads {expected}. Load a TPM that was "
            "trained for this denoiser."
        )
    grid = tuple(features.first_BDHW.shape[2:])
    if shape.token_grid is not None and grid != tuple(shape.token_grid):
        raise BackboneError(
            f"The token grid is {grid}. This TPM of the release layout was trained for {shape.token_grid}. Use "
            "its image size, or a "
            "pooled TPM."
        )
    return features
