"""``tpdm inspect``: what a TPM is for, how it was trained, and whether its files are sound."""

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
    """What was found in a folder.

    Attributes:
        folder: that was looked at.
        facts: of the TPM.
        parameters: trained numbers of its architecture.
        files: bytes and sha256 by name; other folders are left out.
        problems: one sentence each; none where the TPM can be used.
        notes: what a reader should know and nothing is wrong with.
    """

    folder: Path
    facts: RunProvenance
    parameters: int
    files: Mapping[str, tuple[int, str]]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
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
    """Looks at a folder, the shipped "tinyworld", or a hub id; damaged weights are reported, not raised.

    Raises:
        CheckpointError: there is no such TPM, or its config cannot be read.
    """
    folder = resolve_path(name, revision, also=(DIGESTS,))
    facts = read_provenance(folder)
    policy = TimePredictionModule(facts.config.shape)
    found = {p.name: (p.stat().st_size, sha256(p)) for p in sorted(folder.iterdir()) if p.is_file()}
    problems = _weights(folder, policy, facts.config) + _digests(
        folder, {name: digest for name, (_, digest) in found.items()}
    )
    pickles = [name for name in found if name.endswith(PICKLES)]
    notes = [f"{name} is a pickle: tpdm never loads it" for name in pickles]
    if DIGESTS not in found:
        notes.append(f"no {DIGESTS}: a bit that changed within a weight would not be noticed (tpdm push writes one)")
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
        said = dict(json.loads((folder / DIGESTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return [f"{DIGESTS} cannot be read"]
    changed = [name for name, digest in said.items() if name in found and found[name] != digest]
    gone = [name for name in READ if name in said and name not in found]
    return [f"{name} has another sha256 than when it was published" for name in changed] + [
        f"{name} is gone" for name in gone
    ]


def describe(report: Report) -> str:
    """The report as text."""
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
        *(f"dial       gamma {gamma:g}: {mean:.1f} steps" for gamma, mean in config.gamma_steps or ()),
        "trained    " + (", ".join(f"{k} {v}" for k, v in config.trained.items()) or "nothing is said"),
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
