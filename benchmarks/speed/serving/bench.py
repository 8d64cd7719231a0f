"""What is served, and how each way serves it."""

import random
from functools import partial
from statistics import median

import numpy as np

from benchmarks.speed.serving.assigned import SERVED, assigned_gamma, assigned_policy, serve_shape
from benchmarks.speed.serving.ways import all_rows_computed, at_once, bursts, poisson, serve_batches, serve_steps
from benchmarks.timing import in_turns, ratios
from tpdm.pipelines.attach import attach
from tpdm.serving.engine.engine import PipelineEngine
from tpdm.serving.engine.interface import ImageRequest
from tpdm.tinyworld.captions import make_captions

ARRIVALS = ("poisson", "bursts")
WAYS = ("alone", "static", "cut", "steps")


class Bench:
    """A pipeline, the ways to serve it, and requests of mixed difficulty.

    Args:
        shape: a name in ``shapes.SERVED``.
        side: of the images, in pixels.
        tpm: a TPM's folder, for tinyworld.
        slots: images at once, of batches and of the engine.
        images: requests.
        seed: of the prompts, of their order and of the arrivals.
        device: of torch.
    """

    def __init__(self, shape, side, tpm, slots, images, seed, device):
        served = SERVED[shape]
        self.pipe, self.call = serve_shape(served, device)
        self.slots, self.seed, self.side = slots, seed, side
        self.tpm = tpm if served.shape is None else assigned_policy(self.pipe, self.call, side)
        self.attached = attach(self.pipe, self.tpm, defaults=self.call)
        captions = make_captions(images, seed)  # of all levels, one object to six
        random.Random(seed).shuffle(captions)
        size = {} if side == 64 and served.shape is None else {"width": side, "height": side}
        self.requests = [
            ImageRequest(prompt, seed + i, gamma=None if served.shape is None else assigned_gamma(seed + i), **size)
            for i, prompt in enumerate(captions)
        ]

    def draw(self, requests):
        first = requests[0]
        gamma = {} if first.gamma is None else {"gamma": [r.gamma for r in requests]}
        size = {} if first.width is None else {"width": first.width, "height": first.height}
        return self.attached([r.prompt for r in requests], seeds=[r.seed for r in requests], **gamma, **size)

    def serve(self, way, arrivals):
        if way == "steps":
            engine = PipelineEngine(
                self.pipe, self.tpm, slots=self.slots, queue_limit=len(arrivals), defaults=self.call
            )
            try:
                return serve_steps(engine, arrivals)
            finally:
                engine.close()
        if way == "static":
            with all_rows_computed():
                return serve_batches(self.draw, arrivals, self.slots)
        return serve_batches(self.draw, arrivals, 1 if way == "alone" else self.slots)


def saturated(bench, repeats):
    """Everything is there at the start: images per second, side by side, in turn."""
    arrivals = at_once(bench.requests)
    runs = in_turns({way: partial(bench.serve, way, arrivals) for way in WAYS}, repeats)
    steps = runs["static"][0].steps
    batches = [max(steps[i : i + bench.slots]) for i in range(0, len(steps), bench.slots)]
    bound = float(np.mean(batches) / np.mean(steps))
    ways = {way: _one_way(kept, runs["static"], len(arrivals)) for way, kept in runs.items()}
    return {"ways": ways, "bound": bound, "of_bound": [ratio / bound for ratio in ways["steps"]["ratio"]]}


def _one_way(kept, static, images):
    faster = ratios([run.seconds for run in static], [run.seconds for run in kept])
    busy = ratios([run.processor for run in static], [run.processor for run in kept])
    return {
        "per_second": images / median(one.seconds for one in kept),
        "ratio": [min(faster), median(faster), max(faster)],
        "processor": median(one.processor for one in kept) / images,
        "processor_ratio": [min(busy), median(busy), max(busy)],
        "rows": kept[0].rows / images,
        "calls": kept[0].calls / images,
        "steps": float(np.mean(kept[0].steps)),
    }


def latency(bench, capacity, loads, arrivals, ways):
    """Open loop at shares of what static batches can do."""
    rows = []
    for load in loads:
        rate = load * capacity
        for kind, coming in _coming(bench, rate, arrivals):
            for way in ways:
                served = bench.serve(way, coming)
                p50, p95 = np.percentile(served.latency, [50, 95])
                steps, computed = float(np.mean(served.steps)), served.rows / len(coming)
                row = {"arrivals": kind, "load": load, "way": way, "p50": float(p50), "p95": float(p95)}
                rows.append({**row, "steps": steps, "rows": computed, "images": len(coming)})
    return rows


def _coming(bench, rate, arrivals):
    """(words, arrivals) of each kind that is asked for."""
    if "poisson" in arrivals:
        yield "Poisson", poisson(bench.requests, rate, bench.seed)
    if "bursts" in arrivals:
        yield f"bursts of {2 * bench.slots}", bursts(bench.requests, rate, 2 * bench.slots, bench.seed)
