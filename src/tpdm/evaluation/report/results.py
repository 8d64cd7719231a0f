"""What a finished demo left behind: the files of its folder, paired by image, and the images worth a look."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpdm.core.errors import ConfigError
from tpdm.core.io import expand, read_metrics

LEARNED, REFERENCE = "tpdm", "static-28"
PER_RULE = 2

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """A demo folder in memory.

    Attributes:
        folder: where it lies.
        summary: of summary.json.
        rows_of: policy -> index -> row of results.jsonl, in the order of the file.
        metrics: rows of train/metrics.jsonl, empty where there is none.
    """

    folder: Path
    summary: Mapping[str, Any]
    rows_of: Mapping[str, Mapping[int, Row]]
    metrics: Sequence[Row]

    def has_pictures(self, policy: str) -> bool:
        """Whether any picture of a policy was kept: those of controls are not, and blends never had any."""
        return policy in (LEARNED, REFERENCE) or (self.folder / "pictures" / policy).is_dir()

    def picture(self, policy: str, index: int) -> bytes | None:
        """The PNG of one image; None where none was kept."""
        pictures = (self.folder / "pictures").resolve()
        path = (pictures / policy / f"{index:04d}.png").resolve()
        # A policy's name is data: it must not lead out of the folder.
        return path.read_bytes() if path.is_relative_to(pictures) and path.is_file() else None


def load_results(folder: Path) -> Results:
    """Reads a demo folder.

    Raises:
        ConfigError: a file is missing or unreadable, or ``tpdm`` or ``static-28`` is not among the policies.
    """
    folder = Path(expand(folder))
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        rows = read_metrics(folder / "results.jsonl")
        metrics = read_metrics(folder / "train" / "metrics.jsonl")
    except (OSError, json.JSONDecodeError) as e:
        raise ConfigError(f"got a folder '{folder}' that cannot be read ({e}), expected a finished demo") from e
    rows_of: dict[str, dict[int, Row]] = {}
    for row in rows:
        rows_of.setdefault(row["policy"], {})[int(row["index"])] = row
    known = set(rows_of) & {row["name"] for row in summary.get("rows", [])}
    missing = [name for name in (LEARNED, REFERENCE) if name not in known]
    if missing:
        raise ConfigError(
            f"got results of {', '.join(sorted(known)) or 'no policy'} in '{folder}', expected {' and '.join(missing)} "
            "among them; run the demo to its end"
        )
    return Results(folder, summary, rows_of, metrics)


def gains(rows_of: Mapping[str, Mapping[int, Row]]) -> dict[int, float]:
    """Score of tpdm minus score of static-28, per image that both made."""
    learned, reference = rows_of[LEARNED], rows_of[REFERENCE]
    return {i: learned[i]["score"] - reference[i]["score"] for i in sorted(learned) if i in reference}


def choose_images(rows_of: Mapping[str, Mapping[int, Row]]) -> list[tuple[str, list[int]]]:
    """(rule, indices of the two images that it picks): by rule, never by hand.

    Ties go to the lower index; an image may appear under several rules.
    """
    gain = gains(rows_of)
    steps = {i: rows_of[LEARNED][i]["steps"] for i in gain}
    upwards = sorted(gain, key=lambda i: (gain[i], i))
    start = max(0, (len(upwards) - PER_RULE) // 2)
    return [
        ("Largest gain in score", sorted(gain, key=lambda i: (-gain[i], i))[:PER_RULE]),
        ("Largest loss in score", upwards[:PER_RULE]),
        ("Median difference", upwards[start : start + PER_RULE]),
        ("Fewest steps", sorted(gain, key=lambda i: (steps[i], i))[:PER_RULE]),
        ("Most steps", sorted(gain, key=lambda i: (-steps[i], i))[:PER_RULE]),
    ]
