"""Rows of metrics.jsonl in tensorboard, wandb and trackio, through accelerate.

All trackers use the same names: ``train/FIELD`` or ``validation/FIELD``, with nested keys after it. docs/metrics.md
explains each field.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from tpdm.config.recipe import Recipe
from tpdm.core.errors import ConfigError
from tpdm.core.io import write_text

NOT_CURVES = frozenset({"kind", "update", "steps_histogram"})
IMAGE_SHEETS = "validation/pictures"


class TrackerCallback(Protocol):
    """Receives the rows and the image sheets of a run."""

    def begin(self, update: int) -> None:
        """The run starts or resumes after ``update`` updates. Rows of later updates come again."""

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl."""

    def image_sheet(self, update: int, path: Path) -> None:
        """The image sheet (PNG) of a validation."""


class Trackers:
    """The trackers of accelerate that a recipe names.

    Args:
        recipe: Recipe of the run. ``trackers`` contains their names.
        folder: Folder of the run. tensorboard and wandb write below it. Its file ``tracker-id`` makes a resumed run the
            same run for wandb and trackio.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self._started: list[Any] = []

    def begin(self, update: int) -> None:
        """See ``TrackerCallback``."""
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's trackers read the rank from it
        for name in self.recipe.trackers:
            tracker = LOGGER_TYPE_TO_CLASS[name](self._project(name), **self._options(name, update))
            tracker.start()
            if update == 0:
                tracker.store_init_configuration(_plain(asdict(self.recipe)))
            self._started.append(tracker)

    def row(self, row: Mapping[str, Any]) -> None:
        """See ``TrackerCallback``."""
        values = dict(curves(row))
        for tracker in self._started:
            tracker.log(values, step=row["update"])

    def image_sheet(self, update: int, path: Path) -> None:
        """See ``TrackerCallback``. The trackio tracker of accelerate accepts no images."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels_BHWC = np.asarray(image.convert("RGB"))[None]
        for name, tracker in zip(self.recipe.trackers, self._started, strict=True):
            options = {"dataformats": "NHWC"} if name == "tensorboard" else {}
            if name != "trackio":
                tracker.log_images({IMAGE_SHEETS: pixels_BHWC}, step=update, **options)

    def finish(self) -> None:
        """Writes all pending data."""
        for tracker in self._started:
            tracker.finish()

    def _project(self, name: str) -> str:
        # accelerate uses the project as a folder for tensorboard. A run writes to one folder.
        return "tensorboard" if name == "tensorboard" else self.recipe.tracker_project

    def _options(self, name: str, update: int) -> dict[str, Any]:
        if name == "tensorboard":
            return {"logging_dir": self.folder, "purge_step": update + 1 if update else None}
        run_id = self._id(update)
        if name == "wandb":
            return {"dir": self.folder, "name": self.recipe.name, "id": run_id, "resume": "allow"}
        return {"name": f"{self.recipe.name}-{run_id}", "resume": "allow"}

    def _id(self, update: int) -> str:
        path = self.folder / "tracker-id"
        if update == 0 or not path.exists():
            write_text(path, secrets.token_hex(4))
        return path.read_text(encoding="utf-8")


@contextmanager
def open_trackers(recipe: Recipe, folder: Path) -> Iterator[Sequence[TrackerCallback]]:
    """The trackers of a recipe inside the block. They are finished at its end, also after an error.

    Raises:
        ConfigError: A package is missing.
    """
    check_packages(recipe.trackers)
    if not recipe.trackers:
        yield ()
        return
    trackers = Trackers(recipe, folder)
    try:
        yield (trackers,)
    finally:
        trackers.finish()


def check_packages(trackers: Sequence[str]) -> None:
    """Refuses trackers whose package is not installed, before anything is loaded.

    Raises:
        ConfigError: A package is missing. Names the first one.
    """
    for package in ("accelerate", *trackers) if trackers else ():
        if find_spec(package) is None:
            raise ConfigError(
                f"trackers is {', '.join(trackers)}, and the package {package} is not installed. Run pip install "
                "'tpdm[track]', or remove it from trackers."
            )


def curves(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(name, value) of every finite number of a row that trackers plot."""
    for key, value in row.items():
        if key not in NOT_CURVES:
            yield from _numbers(f"{row['kind']}/{key}", value)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{name}/{key}", inner)
    elif isinstance(value, list | tuple):
        yield from _numbers(name, {str(index): inner for index, inner in enumerate(value)})
    elif isinstance(value, int | float) and math.isfinite(value):
        yield name, float(value)


def _plain(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A recipe as dotted keys with values that every tracker accepts."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _plain(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str | int | float) else json.dumps(value)
    return flat
