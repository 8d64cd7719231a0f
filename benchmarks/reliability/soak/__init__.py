"""Does a server lose, double or leak anything? Thousands of good, bad, cancelled and abandoned requests at once.

A real `tpdm serve` on tinyworld answers clients that want images, clients that cancel, leave or hang up, a fuzzer and
schemathesis, all at once. Then it is stopped while it makes images.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from benchmarks.reliability.soak.bodies import explore, fuzz
from benchmarks.reliability.soak.clients import PATH, Tally, run_clients
from benchmarks.reliability.soak.server import MemoryWatch, Server, machine
from benchmarks.reliability.soak.table import part as part

SLOTS, QUEUE, AT_ONCE = 8, 12, 24  # more clients than fit, so that some are answered 429
GROWTH = 0.03  # of the memory, over two thirds of the run


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--bad", type=int, default=5200, help="bad requests, half of them from each source")
    parser.add_argument("--seed", type=int, default=0)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    return soak(chosen.requests, chosen.bad, chosen.seed)


def broken(facts: dict[str, Any]) -> list[str]:
    names = [name for name, kept in facts["promises"].items() if not kept]
    return [f"{name} (problems: {facts['problems'][:5]})" for name in names]


def soak(requests: int, bad: int, seed: int) -> dict[str, Any]:
    """The results of a whole run."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "server.log", SLOTS, QUEUE)
        try:
            refused: dict[str, Counter[str]] = {}
            sources = {"fuzzer": fuzz, "schemathesis": explore}
            others = [
                threading.Thread(target=lambda n=name, f=send: refused.update({n: f(server.address, bad // 2, seed)}))
                for name, send in sources.items()
            ]
            with MemoryWatch(server) as memory:
                for other in others:
                    other.start()
                tally = asyncio.run(run_clients(server.address, requests, AT_ONCE, seed))
                for other in others:
                    other.join()
                idle = wait_until_idle(server)
            drained = drain(server)
        finally:
            server.kill()
        log = (Path(folder) / "server.log").read_text(encoding="utf-8")
    return report(tally, refused, memory.summary(), idle, drained, log)


def wait_until_idle(server: Server) -> dict[str, float]:
    """The metrics when no image waits or runs, or after half a minute."""
    for _ in range(300):
        metrics = server.metrics()
        if metrics["tpdm_queue_waiting"] == metrics["tpdm_slots_in_use"] == 0:
            break
        time.sleep(0.1)
    return metrics


def drain(server: Server) -> dict[str, Any]:
    """SIGTERM while images are made: those are finished, others are refused, the exit code is 0."""
    found: dict[str, Any] = {"asked": 6, "answered": 0, "refused_status": None, "retry_after": None}
    begun = threading.Barrier(found["asked"] + 1)

    def follow(seed: int) -> None:
        body = {"prompt": "red circle", "seed": seed, "num_inference_steps": 200, "stream": True, "partial_images": 0}
        with httpx.stream("POST", f"{server.address}{PATH}", json=body, timeout=120, trust_env=False) as response:
            for line in response.iter_lines():
                if '"step":1,' in line:
                    begun.wait(60)
                found["answered"] += "image_generation.completed" in line and line.startswith("event")

    clients = [threading.Thread(target=follow, args=(seed,)) for seed in range(found["asked"])]
    for client in clients:
        client.start()
    begun.wait(60)
    start = time.monotonic()
    server.terminate()
    while found["refused_status"] is None:
        response = httpx.post(f"{server.address}{PATH}", json={"prompt": "a"}, trust_env=False, timeout=60)
        if response.status_code != 200:
            found |= {"refused_status": response.status_code, "retry_after": response.headers.get("retry-after")}
    for client in clients:
        client.join()
    return found | {"exit_code": server.wait(60), "seconds": round(time.monotonic() - start, 2)}


def report(
    tally: Tally,
    refused: dict[str, Counter[str]],
    memory: dict[str, float],
    idle: dict[str, float],
    drained: dict[str, Any],
    log: str,
) -> dict[str, Any]:
    """The results, with the promises that they keep."""
    ended = {
        name: int(idle[f"tpdm_images_{name}_total"])
        for name in ("finished", "cancelled", "expired", "failed", "refused")
    }
    over = sum(ended[name] for name in ("finished", "cancelled", "expired", "failed")) - 1  # the first image
    valid = sum(statuses["200"] for statuses in refused.values())  # mutations that left the body valid
    statuses = sum(refused.values(), tally.statuses)
    repeated = [seen for seen in tally.pictures.values() if seen.total() > 1]
    promises = {
        "none lost": tally.outcomes["lost"] == 0
        and tally.admitted <= over <= tally.admitted + tally.unsure + valid * 8,
        "none answered twice or out of order": not tally.problems,
        "no 5xx": not any(status.startswith("5") for status in statuses),
        "no error in the log": " ERROR " not in log,
        "queue empty": idle["tpdm_queue_waiting"] == idle["tpdm_slots_in_use"] == 0,
        "memory flat": memory["slope_times_run_mib"] <= GROWTH * memory["third_mib"],
        "equal steps for equal requests": all(len({steps for steps, _ in seen}) == 1 for seen in repeated),
        "drained": drained["answered"] == drained["asked"] and drained["exit_code"] == 0,
        "refused while draining": drained["refused_status"] == 503 and drained["retry_after"] is not None,
    }
    return {
        **machine(),
        "settings": {"slots": SLOTS, "queue_limit": QUEUE, "clients": AT_ONCE},
        "promises": promises,
        "problems": tally.problems[:20],
        "requests": {"sent": tally.outcomes.total(), **dict(sorted(tally.outcomes.items()))},
        "statuses": dict(sorted(tally.statuses.items())),
        "refused": sum(refused.values(), Counter()).total() - valid - sum(seen["429"] for seen in refused.values()),
        "bad_bodies": {name: {"sent": seen.total(), **dict(sorted(seen.items()))} for name, seen in refused.items()},
        "images": {"received": tally.images, "admitted": tally.admitted, "unsure": tally.unsure, "engine": ended},
        "same_request_again": {
            "requests": len(repeated),
            "pictures": sum(seen.total() for seen in repeated),
            "identical": sum(len(seen) == 1 for seen in repeated),
        },
        "memory": memory,
        "drain": drained,
    }
