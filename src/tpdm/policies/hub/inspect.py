"""Inspection of a TPM folder for ``tpdm inspect``: its purpose, its training, and whether its files are intact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tpdm.core.errors import CheckpointError
from tpdm.core.io import sha256
from tpdm.policies.hub.provenance import RunProvenance, read_provenance
from tpdm.policies.hub.push import DIGESTS
from tpdm.policies.pretrained import PICKLES, WEIGHTS, load_weights, resolve_path
from tpdm.policies.pretrained_config import CONFIG, PretrainedConfig
from tpdm.policies.tpm import TimePredictionModule

READ = (WEIGHTS, CONFIG)


@dataclass(frozen=True)
class Report:
    """Result of an inspection.

    Attributes:
        folder: Folder that was inspected.
        facts: Config, run and evaluation of the TPM.
        parameters: Number of trained parameters.
        files: Bytes and sha256 by file name. Subfolders are left out.
        problems: One sentence per problem. Empty if the TPM can be used.
        notes: Further information for readers.
    """

    folder: Path
    facts: RunProvenance
    parameters: int
    files: Mapping[str, tuple[int, str]]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values."""
        evaluation = self.facts.evaluation
        return {
            "folder": str(self.folder),
            "config": asdict(self.facts.config),
            "parameters": self.parameters,
            "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in self.files.items()},
            "validations": [row for row in self.facts.metrics if row["kind"] == "validation"],
            "evaluation": None if evaluation is None else evaluation["rows"],
            "sound": not self.problems,
            "problems": list(self.problems),
            "notes": list(self.notes),
        }


def inspect_tpm(name: str | Path, revision: str | None = None) -> Report:
    """Inspect a TPM. Damaged weights are reported and do not raise an error.

    Args:
        name: Folder, name of the TPM that comes with tpdm ("tinyworld"), or hub id "owner/name".
        revision: Branch, tag or commit on the hub.

    Raises:
        CheckpointError: There is no such TPM, or its config cannot be read.

    Example:
        >>> inspect_tpm("tinyworld").problems
        ()
    """
    folder = resolve_path(name, revision, also=(DIGESTS,))
    facts = read_provenance(folder)
    policy = TimePredictionModule(facts.config.shape)
    found = {p.name: (p.stat().st_size, sha256(p)) for p in sorted(folder.iterdir()) if p.is_file()}
    problems = _weights(folder, policy, facts.config) + _digests(
        folder, {name: digest for name, (_, digest) in found.items()}
    )
    pickles = [name for name in found if name.endswith(PICKLES)]
    notes = [f"{name} is a pickle, which tpdm never loads" for name in pickles]
    if DIGESTS not in found:
        notes.append(f"no {DIGESTS}, so that changed weights would not be noticed (tpdm push writes it)")
    parameters = sum(p.numel() for p in policy.parameters())
    return Report(folder, facts, parameters, found, tuple(problems), tuple(notes))


def _weights(folder: Path, policy: TimePredictionModule, config: PretrainedConfig) -> list[str]:
    try:
        load_weights(policy, config, folder)
    except CheckpointError as error:
        return [str(error)]
    return []


def _digests(folder: Path, found: Mapping[str, str]) -> list[str]:
    if DIGESTS not in found:
        return []
    try:
        recorded = dict(json.loads((folder / DIGESTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return [f"{DIGESTS} cannot be read"]
    changed = [name for name, digest in recorded.items() if name in found and found[name] != digest]
    gone = [name for name in READ if name in recorded and name not in found]
    return [f"{name} has another sha256 than at its publication" for name in changed] + [
        f"{name} is missing" for name in gone
    ]


def describe(report: Report) -> str:
    """Format a report as text, one fact per line."""
    config, shape = report.facts.config, report.facts.config.shape
    grid = f", token grid {shape.token_grid[0]} x {shape.token_grid[1]}" if shape.token_grid else ""
    call = ", ".join(f"{key}={value}" for key, value in config.call_defaults.items()) or "the pipeline's own arguments"
    steps = "not measured" if config.mean_steps is None else f"{config.mean_steps:.1f} in validation"
    size = report.files.get(WEIGHTS, (0, ""))[0]
    lines = [
        f"TPM        {report.folder}",
        f"for        {config.backbone_name} ({config.backbone_class}), {call}, guidance {config.guidance_scale:g}",
        f"reads      {config.features}",
        f"shape      {shape.layout}, tokens {shape.feature_channels} wide, time embedding {shape.temb_channels}{grid}",
        f"size       {report.parameters:,} parameters, {size / 1e6:.1f} MB",
        f"samples    {config.solver}, at most {config.max_steps} steps; mean steps {steps}",
        f"reward     {config.reward} ({config.reward_form}, gamma {config.gamma:g}, offset {config.reward_offset:g})",
        *(f"gamma      {gamma:g}: {mean:.1f} steps" for gamma, mean in config.gamma_steps or ()),
        "trained    " + (", ".join(f"{k} {v}" for k, v in config.trained.items()) or "unknown"),
        f"written by tpdm {config.tpdm_version}, format {config.format_version}",
        *_evaluated(report.facts),
        *(f"file       {digest[:12]}  {name} ({size} bytes)" for name, (size, digest) in report.files.items()),
        *(f"note       {note}" for note in report.notes),
        *(f"PROBLEM    {problem}" for problem in report.problems),
        "sound      no" if report.problems else "sound      yes",
    ]
    return "\n".join(lines)


def _evaluated(facts: RunProvenance) -> list[str]:
    if facts.evaluation is None:
        return ["evaluated  no (tpdm eval RECIPE.yaml)"]
    rows = facts.evaluation["rows"]
    return [f"evaluated  {r['name']}: {r['steps_mean']:.2f} steps, reward {r['reward_mean']:.4f}" for r in rows]
