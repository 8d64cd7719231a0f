"""The table of the serving guide, from the committed result."""

from __future__ import annotations

from typing import Any


def part(result: dict[str, Any]) -> str:
    """Markdown."""
    requests, bad, memory, drained = (result[name] for name in ("requests", "bad_bodies", "memory", "drain"))
    same, images = result["same_request_again"], result["images"]
    changed = ", ".join(f"{requests.get(name, 0)} {name}" for name in ("cancelled", "left", "hung up"))
    kinds = ", ".join(f"{seen['sent']} from {name}" for name, seen in bad.items())
    slope = f"{memory['slope_mib_per_minute']:+.2f} MiB a minute"
    rows = (
        ("requests", f"{requests['sent']}: {requests['answered']} answered, {changed}, {requests.get('lost', 0)} lost"),
        ("bad requests at the same time", f"{kinds}; {result['refused']} refused, the others were valid"),
        ("images", f"{images['engine']['finished']} made, {images['engine']['cancelled']} cancelled"),
        ("answered 429", f"{result['statuses'].get('429', 0)} times"),
        ("answers of 500 and above", "none" if result["promises"]["no 5xx"] else "some"),
        ("same request again", f"{same['identical']} of {same['requests']} always the same image to the byte"),
        ("memory", f"{memory['third_mib']} MiB after a third, {memory['end_mib']} MiB at the end; {slope}"),
        (
            "SIGTERM",
            f"{drained['answered']} of {drained['asked']} finished, others answered {drained['refused_status']}",
        ),
    )
    hardware = result["hardware"]
    machine = f"{hardware['cores']} CPU cores, {hardware['machine']}; torch {result['versions']['torch']}"
    lines = ["| | |", "|---|---|", *(f"| {name} | {words} |" for name, words in rows)]
    return "\n".join([*lines, "", f"{round(memory['seconds'] / 60, 1)} minutes on {machine}."])
