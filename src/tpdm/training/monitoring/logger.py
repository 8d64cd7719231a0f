"""What a run tells of itself: its metrics, warnings when they turn bad, pictures, and whoever else listens."""

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
from tpdm.training.monitoring.sample_sheets import write_pictures
from tpdm.training.monitoring.trackers import TrackerCallback
from tpdm.training.monitoring.warnings import TrainingMonitor

logger = logging.getLogger(__name__)


class RunLogger:
    """Writes a run's rows and pictures, and warns in the log.

    Args:
        recipe: of the run.
        folder: of the run.
        update: updates done; what was written of later ones is dropped, a resumed run makes it again.
        listeners: are told the same.
    """

    def __init__(self, recipe: Recipe, folder: Path, update: int, listeners: Sequence[TrackerCallback] = ()) -> None:
        self.recipe, self.folder, self.listeners = recipe, folder, listeners
        self._metrics = MetricsLog(folder / "metrics.jsonl", keep_up_to=update)
        self._health = TrainingMonitor(recipe)
        for row in read_metrics(self._metrics.path):  # what was told before the interruption is not told again
            self._health.look(row)
        for listener in listeners:
            listener.begin(update)

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends one row."""
        self._metrics.write(row)
        for listener in self.listeners:
            listener.row(row)
        for warned in self._health.look(row):
            with tqdm.external_write_mode():  # not into the middle of a progress bar
                logger.warning("update %d: %s", warned.update, warned.message)

    def show(self, update: int, request: SampleRequest, generated: SampleBatch, score_B: Tensor) -> None:
        """Keeps the first images of a validation, of each gamma, as a picture; none where they are no RGB images.

        Of several processes the first one shows its own images, which are the first ones.
        """
        images = generated.images_B3HW
        shown = first_of_each(len(images), request.gammas, self.recipe.validation.num_images_logged)
        if not shown or images.ndim != 4:
            return
        path = write_pictures(
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
            listener.picture(update, path)


class NullRunLogger:
    """Of a process that does not lead."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def show(self, update: int, request: SampleRequest, generated: SampleBatch, score_B: Tensor) -> None:
        """Nothing."""


def first_of_each(images: int, gammas: Sequence[float] | None, count: int) -> list[int]:
    """Which of the first so many images are shown: at most ``count``, as many of each gamma as of the others."""
    if gammas is None:
        return [*range(min(images, count))]
    places: dict[float, list[int]] = {}
    for i in range(images):
        places.setdefault(gammas[i], []).append(i)
    each = max(1, count // max(1, len(places)))
    return [i for group in places.values() for i in group[:each]][:count]


class MetricsLog:
    """Appends rows to a file.

    Args:
        path: the file.
        keep_up_to: rows of later updates are dropped first: a resumed run makes them again.
    """

    def __init__(self, path: Path, keep_up_to: int) -> None:
        self.path = path
        kept = [row for row in read_metrics(path) if row["update"] <= keep_up_to]
        # Before the first checkpoint nothing is resumed: not even the untrained policy's validation stays.
        kept = kept if keep_up_to else []
        write_text(path, "".join(_line(row) for row in kept))

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends one row and flushes it."""
        with self.path.open("a", encoding="utf-8") as f:
            f.write(_line(row))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(dict(row)) + "\n"
