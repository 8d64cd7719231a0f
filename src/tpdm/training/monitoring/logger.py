"""The logger of a run: metrics.jsonl, warnings, image sheets and trackers."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from tpdm.config.recipe import Recipe
from tpdm.core.io import read_metrics, write_text
from tpdm.sampling.base import SampleBatch, SampleRequest
from tpdm.training.monitoring.sample_sheets import write_image_sheet
from tpdm.training.monitoring.trackers import TrackerCallback
from tpdm.training.monitoring.warnings import TrainingMonitor

logger = logging.getLogger(__name__)


class RunLogger:
    """Writes the metrics and the images of a run. Only the main process has one.

    Args:
        recipe: Recipe of the run.
        folder: Folder of the run.
        update: Updates done. Rows of later updates are removed, because a resumed run writes them again.
        listeners: Trackers that get the same rows and images. Default: none.
    """

    def __init__(self, recipe: Recipe, folder: Path, update: int, listeners: Sequence[TrackerCallback] = ()) -> None:
        self.recipe, self.folder, self.listeners = recipe, folder, listeners
        self._metrics = MetricsLog(folder / "metrics.jsonl", keep_up_to=update)
        self._health = TrainingMonitor(recipe)
        for row in read_metrics(self._metrics.path):  # so that a warning is not repeated after an interruption
            self._health.look(row)
        for listener in listeners:
            listener.begin(update)

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row to metrics.jsonl, passes it to the trackers, and logs new warnings."""
        self._metrics.write(row)
        for listener in self.listeners:
            listener.row(row)
        for warned in self._health.look(row):
            with tqdm.external_write_mode():  # keeps the progress bar intact
                logger.warning("update %d: %s", warned.update, warned.message)

    def show(self, update: int, request: SampleRequest, generated: SampleBatch, score_B: Tensor) -> None:
        """Writes a sheet of the first images of a validation, the same number for each gamma.

        With several processes it contains images of the main process, which has the first ones. Images that are not
        RGB are skipped.

        Args:
            update: Updates done.
            request: The images of the validation.
            generated: The first of these images.
            score_B: Scores of all images.
        """
        images = generated.images_B3HW
        shown = first_of_each(len(images), request.gammas, self.recipe.validation.num_images_logged)
        if not shown or images.ndim != 4:
            return
        path = write_image_sheet(
            self.folder / "pictures",
            update,
            images[shown],
            [request.prompts[i] for i in shown],
            [request.seeds[i] for i in shown],
            [generated.times[i] for i in shown],
            score_B[shown].tolist(),
            None if request.gammas is None else [request.gammas[i] for i in shown],
        )
        for listener in self.listeners:
            listener.image_sheet(update, path)


def first_of_each(images: int, gammas: Sequence[float] | None, count: int) -> list[int]:
    """Rows of the images on a sheet.

    Args:
        images: Number of images of this process.
        gammas: Gamma of each image. None without a range of gammas.
        count: Largest number of images on the sheet.

    Returns:
        At most ``count`` rows, the same number for each gamma.

    Example:
        >>> first_of_each(6, [0.9, 0.9, 0.9, 0.99, 0.99, 0.99], count=4)
        [0, 1, 3, 4]
    """
    if gammas is None:
        return [*range(min(images, count))]
    rows: dict[float, list[int]] = {}
    for i in range(images):
        rows.setdefault(gammas[i], []).append(i)
    each = max(1, count // max(1, len(rows)))
    return [i for group in rows.values() for i in group[:each]][:count]


class MetricsLog:
    """Appends rows to a file of JSON lines.

    Args:
        path: The file.
        keep_up_to: Updates done. Rows of later updates are removed first, because a resumed run writes them again.
    """

    def __init__(self, path: Path, keep_up_to: int) -> None:
        self.path = path
        kept = [row for row in read_metrics(path) if row["update"] <= keep_up_to]
        # A run without a checkpoint starts again, so that the validation of the untrained policy is removed too.
        kept = kept if keep_up_to else []
        write_text(path, "".join(_line(row) for row in kept))

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends and flushes one row."""
        with self.path.open("a", encoding="utf-8") as f:
            f.write(_line(row))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(dict(row)) + "\n"
