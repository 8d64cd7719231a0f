"""Feature extractors of the user's choice, for distances between sets of images."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from tpdm.files import expand
from tpdm.types import ConfigError

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
    module, _, attribute = place.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"got evaluation.features=python:{place}, which cannot be imported ({reason}), expected a "
            "function in an importable module; mend it, or run from the folder that holds it."
        ) from error

    @torch.no_grad()
    def extract(images_B3HW: Tensor) -> Tensor:
        features_BF = function(images_B3HW.to(device))
        if features_BF.ndim != 2 or len(features_BF) != len(images_B3HW):
            raise ConfigError(
                f"got features of shape {tuple(features_BF.shape)} for {len(images_B3HW)} images from {attribute}, "
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
