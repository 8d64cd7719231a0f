"""Distances between sets of images (FID, KID, CMMD) and the diversity within a prompt, on features of any extractor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from tpdm.core.builtins import import_function
from tpdm.core.device import wide
from tpdm.core.errors import ConfigError
from tpdm.core.io import expand

KID_SUBSET = 100

SLICE = 1024  # images of one set that meet all of the other at a time

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0  # of Jayasumana et al., arXiv 2401.09603, section 4


class _Given(nn.Module):
    """Stands where torchmetrics expects a network: the features are there already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features_BF: Tensor) -> Tensor:
        return features_BF


def distances(real_NF: Tensor, made_MF: Tensor, seed: int = 0) -> dict[str, float]:
    """FID, KID and CMMD of two sets of features; lower is nearer.

    FID is left out where either set has no more images than features (its covariance would be singular, and the
    number would say how many images there are).

    Args:
        real_NF: of the reference.
        made_MF: of the images to judge.
        seed: of KID's subsets.

    Raises:
        ConfigError: fewer images than KID's subsets need, or another number of features.
    """
    if real_NF.shape[1:] != made_MF.shape[1:]:
        raise ConfigError(f"got features of widths {real_NF.shape[1]} and {made_MF.shape[1]}, expected equal ones.")
    fewest = min(len(real_NF), len(made_MF))
    check_enough(fewest)
    found = {"kid": _kid(real_NF, made_MF, seed), "cmmd": cmmd(real_NF, made_MF)}
    return {"fid": _fid(real_NF, made_MF), **found} if fewest > real_NF.shape[1] else found


def check_enough(images: int) -> None:
    """Refuses distances between fewer images than they mean anything for.

    Raises:
        ConfigError: fewer than KID's subsets need.
    """
    if images < KID_SUBSET:
        raise ConfigError(
            f"got {images} images to measure distances on, expected at least {KID_SUBSET}: raise evaluation.prompts "
            "(and give as many pictures in evaluation.reference), or leave evaluation.features out."
        )


def _fid(real_NF: Tensor, made_MF: Tensor) -> float:
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Given(real_NF.shape[1])).set_dtype(torch.float64)
    metric.update(wide(real_NF), real=True)
    metric.update(wide(made_MF), real=False)
    return float(metric.compute())


def _kid(real_NF: Tensor, made_MF: Tensor, seed: int) -> float:
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all", UserWarning)
        metric = KernelInceptionDistance(feature=_Given(real_NF.shape[1]), subset_size=KID_SUBSET)
    metric.update(real_NF, real=True)
    metric.update(made_MF, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, _ = metric.compute()
    return float(mean)


def cmmd(real_NF: Tensor, made_MF: Tensor) -> float:
    """Maximum mean discrepancy on unit features with a Gaussian kernel, times 1,000 (arXiv 2401.09603, section 4)."""
    x, y = (nn.functional.normalize(wide(f), dim=1) for f in (real_NF, made_MF))

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        # In slices: all pairs of 30,000 images at once would be 7 GB.
        sums = [torch.exp(-torch.cdist(rows, b).square() / (2 * CMMD_SIGMA**2)).sum() for rows in a.split(SLICE)]
        return torch.stack(sums).sum() / (len(a) * len(b))

    return float(CMMD_SCALE * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)))


def diversity(features_BF: Tensor, prompts: Sequence[str]) -> float | None:
    """Mean cosine distance between images of the same prompt, in [0, 2]; None where every prompt has one image."""
    unit_BF = nn.functional.normalize(wide(features_BF), dim=1)
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(place)
    means = []
    for rows in places.values():
        if len(rows) > 1:
            cosine_KK = unit_BF[rows] @ unit_BF[rows].T
            K = len(rows)
            means.append(1 - float((cosine_KK.sum() - cosine_KK.diagonal().sum()) / (K * (K - 1))))
    return sum(means) / len(means) if means else None


def distribution_summary(
    reference_NF: Tensor, features: Mapping[str, Tensor], prompts: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """For each policy its distances to the reference, and its diversity."""
    return {
        name: {**distances(reference_NF, made_BF), "diversity": diversity(made_BF, prompts)}
        for name, made_BF in features.items()
    }


Extractor = Callable[[Tensor], Tensor]

"""RGB images (B, 3, H, W) in [0, 1], fp32, to features (B, F)."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def load_extractor(name: str, device: str = "cpu") -> Extractor:
    """The extractor that ``evaluation.features`` names.

    Args:
        name: ``clip:PLACE`` (image embeddings of a CLIP model, as CMMD is defined on) or
            ``python:package.module:function``, a function of your own (an Inception network for the usual FID).
        device: where it runs.

    Raises:
        ConfigError: another name, or a function that cannot be imported.
        RewardError: there is no CLIP model at PLACE.
    """
    kind, _, place = name.partition(":")
    if kind == "clip" and place:
        from tpdm.rewards.clip import ClipReward

        return ClipReward.from_folder(expand(place), name, device=device).embed
    if kind == "python" and place.count(":") == 1:
        return _function(place, device)
    raise ConfigError(
        f"got evaluation.features={name}, expected clip:PLACE or python:package.module:function; correct it."
    )


def _function(place: str, device: str) -> Extractor:
    try:
        function = import_function(place)
    except ValueError as error:
        raise ConfigError(
            f"evaluation.features is python:{place}, which {error}. It must be python:package.module:function. Correct "
            "it, or run from the folder that holds the module."
        ) from error

    @torch.no_grad()
    def extract(images_B3HW: Tensor) -> Tensor:
        features_BF = function(images_B3HW.to(device))
        if features_BF.ndim != 2 or len(features_BF) != len(images_B3HW):
            raise ConfigError(
                f"got features of shape {tuple(features_BF.shape)} for {len(images_B3HW)} images from {place}, "
                "expected (images, features); mend the function."
            )
        return features_BF

    return extract


def folder_features(folder: Path, extract: Extractor, batch: int) -> Tensor:
    """Features (N, F) of all pictures of a folder in the order of their names (shorter ones first), fp32 on the CPU.

    Raises:
        ConfigError: there are none.
    """
    pictures = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES] if folder.is_dir() else []
    paths = sorted(pictures, key=lambda p: (len(p.stem), p.name))  # 10000 comes behind 9999
    if not paths:
        raise ConfigError(f"got no pictures in {folder}, expected {', '.join(PICTURES)} files; correct the folder.")
    bar = tqdm(total=len(paths), desc=f"features of {folder.name}", unit="image", leave=False, dynamic_ncols=True)
    found = []
    for images_B3HW in _batches(paths, batch):
        found.append(extract(images_B3HW).float().cpu())
        bar.update(len(images_B3HW))
    bar.close()
    return torch.cat(found)


def _batches(paths: Iterable[Path], size: int) -> Iterator[Tensor]:
    """Pictures (B, 3, H, W) in [0, 1], one batch in memory at a time; neighbours of other sizes share none."""
    batch: list[Tensor] = []
    for path in paths:
        with Image.open(path) as picture:
            pixels = np.array(picture.convert("RGB"))
        image = torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255)
        if batch and (len(batch) == size or batch[0].shape != image.shape):
            yield torch.stack(batch)
            batch = []
        batch.append(image)
    if batch:
        yield torch.stack(batch)
