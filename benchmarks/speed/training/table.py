"""The section of docs/training-speed.md, from the results."""

from __future__ import annotations

from typing import Any

from benchmarks.page import table


def part(facts: dict[str, Any]) -> str:
    """Comparison with a plain loop, shares, scaling and memory."""
    scaling = [_scaling(facts)] if "scaling" in facts else []
    return "\n\n".join([_beside(facts), _shares(facts), *scaling, _memory(facts), _origin(facts)])


def _times(one: dict[str, float]) -> str:
    return f"{one['median']:.2f}x [{one['low']:.2f}, {one['high']:.2f}]"


def _beside(facts: dict[str, Any]) -> str:
    head = "TPM after updates | steps, mean (most) | trajectories a second | than the plain loop | rollout"
    stages = facts["beside_a_plain_loop"]
    lines = [_line(str(row["update"]), f"{row['steps_mean']:.1f} ({row['steps_max']})", row) for row in stages]
    if "whole" in facts:
        lines.append(_line("**a whole training**", f"{facts['whole']['steps_mean']:.1f}", facts["whole"]))
    same = "the same step counts" if all(row["equal_steps"] for row in stages) else "DIFFERENT step counts"
    apart = max(row["weights_apart"] for row in stages)
    shown = table(f"{head} | update passes | replay", lines, narrow=True)
    return f"{shown}\n\nBoth loops made {same}; after the update their weights differ by at most {apart:.0e}."


def _line(name: str, steps: str, row: dict[str, Any]) -> list[str]:
    cells = [f"{row['trajectories_per_second']['median']:.1f}"]
    cells += [_times(row[key]) for key in ("ratio", "rollout_ratio", "update_ratio")]
    cells.append(f"1/{row['plain_bytes'] / row['replay_bytes']:.1f}" if "replay_bytes" in row else "")
    return [name, steps, *cells]


def _shares(facts: dict[str, Any]) -> str:
    names = ["denoiser", "decode", "reward", "update", "rest"]
    shares = facts["shares"].items()
    lines = [[str(policy), *(f"{100 * found[name]:.0f} %" for name in names)] for policy, found in shares]
    return table(" | ".join(["share of our time, TPM after updates", *names]), lines, narrow=True)


def _scaling(facts: dict[str, Any]) -> str:
    found = facts["scaling"]
    e, two = found["efficiency"], found["two"]
    most, mean = (sum(f(run["seconds_of_making"]) for run in two) for f in (max, lambda x: sum(x) / len(x)))
    alone = sum(run["seconds_of_making"][0] for run in found["one"])
    learns = [sum(max(run["seconds_of_learning"]) for run in found[size]) for size in ("one", "two")]
    return (
        f"From one to two processes with a thread each: {100 * e['median']:.0f} % efficiency "
        f"[{100 * e['low']:.0f}, {100 * e['high']:.0f}] in {len(two)} pairs of runs, where the slower process sets the "
        f"pace between two meetings. Where the rest goes: it makes images for {100 * (most / mean - 1):.0f} % longer "
        f"than the mean of both, and learning takes {learns[1] / learns[0]:.2f} of its time alone; making the same "
        f"images in batches of half the size costs {100 * (2 * mean / alone - 1):+.0f} %."
    )


def _memory(facts: dict[str, Any]) -> str:
    lines = []
    for row in facts["memory"]:
        kept = [f"{row[key] / 1024:.0f} KiB" for key in ("bytes", "plain_bytes")]
        share = f"1/{row['plain_bytes'] / row['bytes']:.0f}"
        lines.append([str(row["steps"]), f"{row['side']} x {row['side']}", str(row["group"]), *kept, share])
    return table("steps | pixels | group | replay | features at full size | share", lines, narrow=True)


def _origin(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return f"{facts['hardware']}; {versions}; CPU time, median and range of {facts['repeats']} repetitions."
