"""Rows of metrics.jsonl to tensorboard, wandb and trackio, through accelerate: the same names everywhere.

A field is called ``train/FIELD`` or ``validation/FIELD``; what is nested has its keys behind it. docs/metrics.md
explains each of them.
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
PICTURES = "validation/pictures"


class TrackerCallback(Protocol):
    """Whoever is told of a run besides its own files."""

    def begin(self, update: int) -> None:
        """The run starts, or goes on after so many updates: what was told of later ones is made again."""

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl."""

    def picture(self, update: int, path: Path) -> None:
        """A picture (PNG) of a validation."""


class Trackers:
    """Listeners of accelerate.

    Args:
        recipe: names them in ``trackers``.
        folder: of the run: tensorboard and wandb write below it; ``tracker-id`` there makes a run that goes on one
            run for wandb and trackio, too.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self._started: list[Any] = []

    def begin(self, update: int) -> None:
        """See ``TrackerCallback``."""
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's trackers ask it who leads
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

    def picture(self, update: int, path: Path) -> None:
        """See ``TrackerCallback``; accelerate's trackio takes no pictures."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels_BHWC = np.asarray(image.convert("RGB"))[None]
        for name, tracker in zip(self.recipe.trackers, self._started, strict=True):
            options = {"dataformats": "NHWC"} if name == "tensorboard" else {}
            if name != "trackio":
                tracker.log_images({PICTURES: pixels_BHWC}, step=update, **options)

    def finish(self) -> None:
        """Everything that was told is written."""
        for tracker in self._started:
            tracker.finish()

    def _project(self, name: str) -> str:
        # For tensorboard accelerate makes it a folder: one run, one place.
        return "tensorboard" if name == "tensorboard" else self.recipe.tracker_project

    def _options(self, name: str, update: int) -> dict[str, Any]:
        if name == "tensorboard":
            return {"logging_dir": self.folder, "purge_step": update + 1 if update else None}
        one = self._id(update)
        if name == "wandb":
            return {"dir": self.folder, "name": self.recipe.name, "id": one, "resume": "allow"}
        return {"name": f"{self.recipe.name}-{one}", "resume": "allow"}

    def _id(self, update: int) -> str:
        path = self.folder / "tracker-id"
        if update == 0 or not path.exists():
            write_text(path, secrets.token_hex(4))
        return path.read_text(encoding="utf-8")


@contextmanager
def open_trackers(recipe: Recipe, folder: Path) -> Iterator[Sequence[TrackerCallback]]:
    """The trackers of a recipe; they are finished when the block ends, whatever ends it.

    Raises:
        ConfigError: a package is missing.
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
    """Refuses trackers whose package is not there, before anything is loaded.

    Raises:
        ConfigError: the first one that is missing.
    """
    for package in ("accelerate", *trackers) if trackers else ():
        if find_spec(package) is None:
            raise ConfigError(
                f"got trackers {', '.join(trackers)} without the package {package}, expected it; pip install "
                "'tpdm[track]', or leave it out of trackers"
            )


def curves(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(name, value) of every finite number of a row that makes a curve."""
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
    """Dotted keys of a recipe with values that every tracker takes."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _plain(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str | int | float) else json.dumps(value)
    return flat
