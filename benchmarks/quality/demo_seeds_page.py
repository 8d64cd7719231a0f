"""Several training seeds of one evaluation, as a Markdown section that is generated and never typed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any


def results_section(runs: Sequence[dict[str, Any]]) -> str:
    """The table of policies over all seeds, and the facts beneath it."""
    lines = [
        "| policy | steps | reward | scene accuracy | tpdm minus it: reward | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for name, rows, pairs in _policies(runs):
        cells = [
            _spread([r["steps_mean"] for r in rows], 1),
            _spread([r["reward_mean"] for r in rows], 4),
            _spread([r["accuracy"] for r in rows], 3),
            *(_intervals([p[key] for p in pairs]) if pairs else "" for key in ("reward", "accuracy")),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    first = runs[0]
    relation = [r["steps_vs_difficulty"] for r in runs]
    lines += [
        "",
        f"{first['images']} held-out prompts; training seeds: {len(runs)} (mean ± sd over them). Differences are paired"
        " over the prompts, mean over seeds [lowest and highest end of the seeds' 95 % bootstrap intervals].",
        "Rank correlation of the steps taken with the steps needed: "
        + ", ".join(f"{r['correlation']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for r in relation)
        + ".",
        f"Training {_spread([r['train_seconds'] for r in runs], 0)} s, whole demo"
        f" {_spread([r['total_seconds'] for r in runs], 0)} s on {first['hardware']}; torch"
        f" {first['versions']['torch']}, diffusers {first['versions']['diffusers']}.",
        "",
    ]
    return "\n".join(lines)


def _policies(runs: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]], list[dict[str, Any]]]]:
    """(name, rows of all seeds, paired differences of all seeds), in the order of the first seed."""
    table: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
    for run in runs:
        for row in run["rows"]:
            rows, pairs = table.setdefault(row["name"], ([], []))
            rows.append(row)
            if row["name"] in run["paired"]:
                pairs.append(run["paired"][row["name"]])
    return [(name, rows, pairs) for name, (rows, pairs) in table.items()]


def _spread(values: Sequence[float], digits: int) -> str:
    if len(values) < 2 or stdev(values) == 0:
        return f"{fmean(values):.{digits}f}"
    return f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def _intervals(triples: Sequence[Sequence[float]]) -> str:
    mean = fmean(t[0] for t in triples)
    return f"{mean:+.4f} [{min(t[1] for t in triples):+.4f}, {max(t[2] for t in triples):+.4f}]"
