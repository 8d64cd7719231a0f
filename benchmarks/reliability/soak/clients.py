"""Clients that want images, and clients that cancel, leave or hang up: each returns the outcome of its request."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

PATH = "/v1/images/generations"
PROMPTS = (
    "large striped red circle top left",
    "small blue ring upper right and green square bottom left",
    "red circle top and blue triangle and object on navy",
    "object and ring and dotted object and small object",
)
SEEDS = 30
KINDS = {"plain": 45, "stream": 22, "by_url": 6, "cancel": 11, "leave": 10, "hang_up": 6}
LATE = 120.0  # seconds after which an answer counts as lost


@dataclass
class Tally:
    """What the clients received.

    Attributes:
        outcomes: requests by what became of them.
        statuses: HTTP answers.
        problems: broken promises, in words.
        images: images received.
        admitted: images of requests that were admitted for certain.
        unsure: images that may have been admitted: their client hung up before the answer, or was refused in part.
        pictures: (prompt, seed, schedule) -> steps and a hash of each of its images.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    images: int = 0
    admitted: int = 0
    unsure: int = 0
    pictures: dict[tuple[Any, ...], Counter[tuple[int, str]]] = field(default_factory=dict)

    def saw(self, body: dict[str, Any], data: dict[str, Any], png: bytes) -> None:
        """Keeps an image for comparison with others of the same request."""
        self.images += 1
        if data["steps"] != len(data["times"]) - 1:
            self.problems.append(f"{data['steps']} steps with {len(data['times'])} times")
        key = (body["prompt"], data["seed"], body.get("num_inference_steps"))
        self.pictures.setdefault(key, Counter())[data["steps"], hashlib.sha256(png).hexdigest()] += 1


async def run_clients(address: str, requests: int, at_once: int, seed: int) -> Tally:
    """Sends all requests, ``at_once`` at a time."""
    tally, numbers = Tally(), iter(range(requests))
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=LATE, limits=limits) as client:

        async def work() -> None:
            for number in numbers:
                dice = random.Random(f"{seed}/{number}")
                kind = dice.choices(list(KINDS), list(KINDS.values()))[0]
                try:
                    tally.outcomes[await _ask(client, kind, dice, tally)] += 1
                except Exception as error:
                    tally.outcomes["lost"] += 1
                    tally.problems.append(f"{kind} {number}: {type(error).__name__}: {error}")

        await asyncio.gather(*(work() for _ in range(at_once)))
    return tally


async def _ask(client: httpx.AsyncClient, kind: str, dice: random.Random, tally: Tally) -> str:
    """One request, repeated until it is admitted; returns its outcome."""
    body: dict[str, Any] = {
        "prompt": dice.choice(PROMPTS),
        "seed": dice.randrange(SEEDS),
        "n": dice.choice((1, 1, 1, 2)),
    }
    if dice.random() < 0.15:
        body["num_inference_steps"] = dice.choice((7, 14))
    ask = {"plain": _plain, "by_url": _by_url, "hang_up": _hang_up}.get(kind, _stream)
    while (outcome := await ask(client, body, kind, dice, tally)) is None:
        await asyncio.sleep(dice.uniform(0.5, 1.5))  # 429: about the second that it asks for, at random
    return outcome


def _count(response: httpx.Response, tally: Tally, images: int) -> bool:
    """Whether the request was admitted."""
    tally.statuses[str(response.status_code)] += 1
    if response.status_code == 429:
        if int(response.headers["retry-after"]) < 1:
            tally.problems.append("429 without a time to wait")
        tally.unsure += images - 1  # those before the refused one were cancelled
        return False
    if response.status_code != 200:
        tally.problems.append(f"status {response.status_code}")
    tally.admitted += images
    return True


async def _plain(client: httpx.AsyncClient, body: dict[str, Any], kind: str, dice: Any, tally: Tally) -> str | None:
    response = await client.post(PATH, json=body)
    if not _count(response, tally, body["n"]):
        return None
    found = response.json()["data"]
    if [data["seed"] for data in found] != [body["seed"] + i for i in range(body["n"])]:
        tally.problems.append("other images than requested")
    for data in found:
        tally.saw(body, data, base64.b64decode(data["b64_json"]))
    return "answered"


async def _by_url(client: httpx.AsyncClient, body: dict[str, Any], kind: str, dice: Any, tally: Tally) -> str | None:
    response = await client.post(PATH, json={**body, "response_format": "url"})
    if not _count(response, tally, body["n"]):
        return None
    for data in response.json()["data"]:
        tally.saw(body, data, (await client.get(data["url"])).raise_for_status().content)
    return "answered"


async def _hang_up(client: httpx.AsyncClient, body: dict[str, Any], kind: str, dice: Any, tally: Tally) -> str | None:
    try:
        response = await client.post(PATH, json=body, timeout=dice.uniform(0.01, 0.2))
    except httpx.TimeoutException:
        tally.unsure += body["n"]
        return "hung up"
    return "answered" if _count(response, tally, body["n"]) else None


async def _stream(client: httpx.AsyncClient, body: dict[str, Any], kind: str, dice: Any, tally: Tally) -> str | None:
    patience = dice.randint(1, 12) if kind != "stream" else None  # events until the client cancels or leaves
    ends, steps = Counter[int](), Counter[int]()
    async with client.stream("POST", PATH, json={**body, "stream": True}) as response:
        if not _count(response, tally, body["n"]):
            return None
        call, finished = None, False
        async for data in _events(response):
            if data is None:
                finished = True
                continue
            call = data.get("id", call)
            index = data.get("index")
            if "step" in data:
                steps[index] += 1
                if data["step"] != steps[index] or ends[index]:
                    tally.problems.append("a step out of order")
            if "error" in data or "steps" in data:
                ends[index] += 1
                _check_end(body, data, kind, tally)
            if patience is not None and (patience := patience - 1) == 0:
                if kind == "leave":
                    return "left"
                tally.statuses[str((await client.delete(f"/v1/requests/{call}")).status_code)] += 1
    if not finished or ends != Counter(range(body["n"])):
        tally.problems.append(f"{kind}: ends {dict(ends)} of {body['n']} images, finished {finished}")
    return "cancelled" if kind == "cancel" else "answered"


def _check_end(body: dict[str, Any], data: dict[str, Any], kind: str, tally: Tally) -> None:
    if "error" not in data:
        tally.saw(body, data, base64.b64decode(data["b64_json"]))
    elif kind != "cancel" or data["error"]["code"] != "cancelled":
        tally.problems.append(f"{kind}: {data['error']['message']}")


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any] | None]:
    """Data of the events; None for the last line."""
    async for line in response.aiter_lines():
        if line == "data: [DONE]":
            yield None
        elif line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))
