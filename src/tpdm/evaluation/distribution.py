"""Distances between sets of images (FID, KID, CMMD) and diversity per prompt, from the features of any extractor."""

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

SLICE = 1024  # rows of the kernel matrix that are computed at once

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0  # Jayasumana et al., arXiv 2401.09603, section 4


class _Given(nn.Module):
    """Identity in place of the network that torchmetrics expects: the inputs are features already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features_BF: Tensor) -> Tensor:
        return features_BF


def distances(real_NF: Tensor, made_MF: Tensor, seed: int = 0) -> dict[str, float]:
    """Compute FID, KID and CMMD between two sets of features. Lower is closer.

    FID is omitted unless both sets have more images than features. Otherwise its covariance would be singular, and the
    value would depend mainly on the number of images.

    Args:
        real_NF: Features of the reference images.
        made_MF: Features of the generated images.
        seed: Seed of the random subsets of KID, >= 0.

    Returns:
        Distances by name: ``kid``, ``cmmd`` and possibly ``fid``.

    Raises:
        ConfigError: If a set has fewer than 100 images, or if the numbers of features differ.

    Example:
        >>> reference = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
        >>> distances(reference, reference)["cmmd"]
        0.0
    """
    if real_NF.shape[1:] != made_MF.shape[1:]:
        raise ConfigError(
            f"The features have widths {real_NF.shape[1]} and {made_MF.shape[1]}. They must be equal. Use one "
            "extractor "
            "for both sets."
        )
    fewest = min(len(real_NF), len(made_MF))
    check_enough(fewest)
    found = {"kid": _kid(real_NF, made_MF, seed), "cmmd": cmmd(real_NF, made_MF)}
    return {"fid": _fid(real_NF, made_MF), **found} if fewest > real_NF.shape[1] else found


def check_enough(images: int) -> None:
    """Check the number of images of a set.

    Args:
        images: Number of images.

    Raises:
        ConfigError: If it is below 100, the size of KID's subsets.
    """
    if images < KID_SUBSET:
        raise ConfigError(
            f"evaluation.features needs sets of at least {KID_SUBSET} images. There are {images} images. Increase "
            "evaluation.prompts (and add images to evaluation.reference), or remove evaluation.features."
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
    """Compute the maximum mean discrepancy of unit features with a Gaussian kernel, times 1,000.

    Source: arXiv 2401.09603, section 4.

    Args:
        real_NF: Features of the reference images.
        made_MF: Features of the generated images.
    """
    x, y = (nn.functional.normalize(wide(f), dim=1) for f in (real_NF, made_MF))

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        # In slices: the kernel matrix of 30,000 images would need 7 GB.
        sums = [torch.exp(-torch.cdist(rows, b).square() / (2 * CMMD_SIGMA**2)).sum() for rows in a.split(SLICE)]
        return torch.stack(sums).sum() / (len(a) * len(b))

    return float(CMMD_SCALE * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)))


def diversity(features_BF: Tensor, prompts: Sequence[str]) -> float | None:
    """Compute the mean cosine distance between images of the same prompt.

    Args:
        features_BF: Features of B images.
        prompts: B prompts, one per image.

    Returns:
        Distance in [0, 2]. None if every prompt has one image.

    Example:
        >>> diversity(torch.eye(2), ["a red ring", "a red ring"])
        1.0
    """
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
    """Return each policy's distances to the reference and its diversity, by name of the policy."""
    return {
        name: {**distances(reference_NF, made_BF), "diversity": diversity(made_BF, prompts)}
        for name, made_BF in features.items()
    }


Extractor = Callable[[Tensor], Tensor]

"""RGB images (B, 3, H, W) in [0, 1], fp32, to features (B, F)."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def load_extractor(name: str, device: str = "cpu") -> Extractor:
    """Load the feature extractor that ``evaluation.features`` names.

    Args:
        name: ``clip:PLACE`` for the image embeddings of a CLIP model (the definition of CMMD uses them), or
            ``python:package.module:function`` for a custom function (for example an Inception network for FID).
        device: Device of the extractor.

    Raises:
        ConfigError: If the name has another form, or if the function cannot be imported.
        RewardError: If there is no CLIP model at PLACE.
    """
    kind, _, place = name.partition(":")
    if kind == "clip" and place:
        from tpdm.rewards.clip import ClipReward

        return ClipReward.from_folder(expand(place), name, device=device).embed
    if kind == "python" and place.count(":") == 1:
        return _function(place, device)
    raise ConfigError(
        f"evaluation.features is {name!r}. It must be clip:PLACE or python:package.module:function. Correct it."
    )


def _function(place: str, device: str) -> Extractor:
    try:
        function = import_function(place)
    except ValueError as error:
        raise ConfigError(
            f"evaluation.features is python:{place}, which {error}. It must be python:package.module:function. Correct "
            "it, or run in the folder that contains the module."
        ) from error

    @torch.no_grad()
    def extract(images_B3HW: Tensor) -> Tensor:
        features_BF = function(images_B3HW.to(device))
        if features_BF.ndim != 2 or len(features_BF) != len(images_B3HW):
            raise ConfigError(
                f"Function {place} returned features of shape {tuple(features_BF.shape)} for {len(images_B3HW)} "
                "images. The shape must be (images, features). Fix the function."
            )
        return features_BF

    return extract


def folder_features(folder: Path, extract: Extractor, batch: int) -> Tensor:
    """Extract the features of all images of a folder.

    Args:
        folder: Folder with PNG, JPEG or WebP files.
        extract: Feature extractor.
        batch: Maximum number of images per call, >= 1.

    Returns:
        Features (N, F) in fp32 on the CPU, ordered by the length of the file name and then by the name.

    Raises:
        ConfigError: If the folder contains no images.
    """
    pictures = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES] if folder.is_dir() else []
    paths = sorted(pictures, key=lambda p: (len(p.stem), p.name))  # 10000 follows 9999
    if not paths:
        raise ConfigError(
            f"Folder {folder} contains no images. It must contain {', '.join(PICTURES)} files. Correct the folder."
        )
    bar = tqdm(total=len(paths), desc=f"features of {folder.name}", unit="image", leave=False, dynamic_ncols=True)
    found = []
    for images_B3HW in _batches(paths, batch):
        found.append(extract(images_B3HW).float().cpu())
        bar.update(len(images_B3HW))
    bar.close()
    return torch.cat(found)


def _batches(paths: Iterable[Path], size: int) -> Iterator[Tensor]:
    """Yield batches of images (B, 3, H, W) in [0, 1]. All images of a batch have the same size."""
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
