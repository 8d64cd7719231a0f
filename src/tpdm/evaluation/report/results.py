"""Load the results of an evaluation, and select the images that the report shows."""

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
    """Contents of an evaluation folder.

    Attributes:
        folder: Path of the folder.
        summary: Contents of summary.json.
        rows_of: Rows of results.jsonl by policy and image index, in the order of the file.
        metrics: Rows of train/metrics.jsonl. Empty if the file does not exist.
    """

    folder: Path
    summary: Mapping[str, Any]
    rows_of: Mapping[str, Mapping[int, Row]]
    metrics: Sequence[Row]

    def has_pictures(self, policy: str) -> bool:
        """Return whether images of a policy were kept. Those of most baselines are not, and mixtures have no images."""
        return policy in (LEARNED, REFERENCE) or (self.folder / "pictures" / policy).is_dir()

    def picture(self, policy: str, index: int) -> bytes | None:
        """Return the PNG file of one image, or None if it was not kept."""
        pictures = (self.folder / "pictures").resolve()
        path = (pictures / policy / f"{index:04d}.png").resolve()
        # The policy name comes from a file. It must not lead out of the folder.
        return path.read_bytes() if path.is_relative_to(pictures) and path.is_file() else None


def load_results(folder: Path) -> Results:
    """Load the results of an evaluation.

    Args:
        folder: Folder that ``tpdm eval`` or ``tpdm demo`` wrote.

    Raises:
        ConfigError: If a file is missing or unreadable, or if policy ``tpdm`` or ``static-28`` is missing.
    """
    folder = Path(expand(folder))
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        rows = read_metrics(folder / "results.jsonl")
        metrics = read_metrics(folder / "train" / "metrics.jsonl")
    except (OSError, json.JSONDecodeError) as e:
        raise ConfigError(
            f"Folder '{folder}' cannot be read ({e}). It must contain a finished evaluation. Run the evaluation first."
        ) from e
    rows_of: dict[str, dict[int, Row]] = {}
    for row in rows:
        rows_of.setdefault(row["policy"], {})[int(row["index"])] = row
    known = set(rows_of) & {row["name"] for row in summary.get("rows", [])}
    missing = [name for name in (LEARNED, REFERENCE) if name not in known]
    if missing:
        raise ConfigError(
            f"Folder '{folder}' contains results of {', '.join(sorted(known)) or 'no policy'}. The report also needs "
            f"{' and '.join(missing)}. Let the evaluation finish."
        )
    return Results(folder, summary, rows_of, metrics)


def gains(rows_of: Mapping[str, Mapping[int, Row]]) -> dict[int, float]:
    """Return the score of tpdm minus the score of static-28, by index of the images that both have."""
    learned, reference = rows_of[LEARNED], rows_of[REFERENCE]
    return {i: learned[i]["score"] - reference[i]["score"] for i in sorted(learned) if i in reference}


def choose_images(rows_of: Mapping[str, Mapping[int, Row]]) -> list[tuple[str, list[int]]]:
    """Select images by fixed rules, two per rule.

    Of equal values, the lower index is selected. Several rules may select the same image.

    Returns:
        Pairs (rule, indices).
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
