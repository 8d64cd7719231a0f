"""Image sheets of validations: one PNG with labels, and the schedules as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from torch import Tensor

from tpdm.core.io import to_uint8, write_atomically, write_text

LARGEST_SIDE = 256  # of an image on the sheet, in pixels
LABEL = 14  # height of the label below an image, in pixels
KEPT = 40  # number of sheets: the first and the newest ones


def write_image_sheet(
    folder: Path,
    update: int,
    images_B3HW: Tensor,
    prompts: Sequence[str],
    seeds: Sequence[int],
    times: Sequence[Sequence[float]],
    scores: Sequence[float],
    gammas: Sequence[float] | None = None,
) -> Path:
    """Writes ``update-NNNNNN.png`` and ``update-NNNNNN.json``, and removes the oldest sheets except the first.

    Args:
        folder: Folder of the sheets.
        update: Updates done.
        images_B3HW: RGB images in [0, 1].
        prompts: Prompt of each image.
        seeds: Noise seed of each image.
        times: Times of each image, from the start to 0.
        scores: Score of each image.
        gammas: Gamma of each image. None without a range of gammas.

    Returns:
        The path of the PNG.
    """
    name = f"update-{update:06d}"
    labels = [f"{len(t) - 1} steps  {s:.3f}" for t, s in zip(times, scores, strict=True)]
    if gammas is not None:
        labels = [f"{label}  gamma {gamma:.5f}" for label, gamma in zip(labels, gammas, strict=True)]
    sheet = contact_sheet(images_B3HW, labels)
    path = write_atomically(folder / f"{name}.png", lambda p: sheet.save(p, format="PNG"))
    write_text(folder / f"{name}.json", _schedules(update, prompts, seeds, times, scores, gammas))
    for old in sorted(folder.glob("update-*.png"))[1 : -(KEPT - 1)]:
        old.unlink()
        old.with_suffix(".json").unlink(missing_ok=True)
    return path


def contact_sheet(images_B3HW: Tensor, labels: Sequence[str]) -> Image.Image:
    """The images in a nearly square grid, each with a label below it."""
    count, (height, width) = len(images_B3HW), images_B3HW.shape[2:]
    scale = LARGEST_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * size[0], rows * (size[1] + LABEL)), "white")
    draw = ImageDraw.Draw(sheet)
    pixels_BHWC = to_uint8(images_B3HW)
    for i, label in enumerate(labels):
        x, y = i % columns * size[0], i // columns * (size[1] + LABEL)
        # Small images are enlarged without blur.
        resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        sheet.paste(Image.fromarray(pixels_BHWC[i]).resize(size, resample), (x, y))
        draw.text((x + 2, y + size[1] + 1), label, fill="black")
    return sheet


def _schedules(
    update: int,
    prompts: Sequence[str],
    seeds: Sequence[int],
    times: Sequence[Sequence[float]],
    scores: Sequence[float],
    gammas: Sequence[float] | None,
) -> str:
    images: list[dict[str, Any]] = [
        {"prompt": p, "seed": seed, "steps": len(t) - 1, "score": score, "times": [round(x, 6) for x in t]}
        for p, seed, t, score in zip(prompts, seeds, times, scores, strict=True)
    ]
    if gammas is not None:
        for image, gamma in zip(images, gammas, strict=True):
            image["gamma"] = gamma
    return json.dumps({"update": update, "images": images}, indent=1, ensure_ascii=False) + "\n"
