"""The same request alone, through ``tpdm sample`` and in random mixes."""

import random
import time
from queue import SimpleQueue

import numpy as np
from PIL import Image
from tqdm import tqdm

from tpdm.pipelines.loading.load import call_defaults
from tpdm.sampling.generate import sample_to_folder
from tpdm.serving.engine.engine import PipelineEngine
from tpdm.serving.engine.interface import Failed, ImageDone

MIX = 12  # requests of a mix at most


def try_mixes(bench, mixes, folder):
    """Each mix: an engine of its own with a random number of slots, random requests, order and pauses.

    Returns:
        How often the steps differ from those of ``tpdm sample``, largest differences of times and pixels (0 to 255),
        and the share of images that are equal bit by bit.
    """
    reference = _references(bench, folder)
    rng, differ, times, pixels, equal, total = random.Random(bench.seed), 0, 0.0, 0, 0, 0
    for _ in tqdm(range(mixes), desc="mixes", dynamic_ncols=True):
        chosen = [rng.randrange(len(bench.requests)) for _ in range(rng.randint(1, MIX))]
        for index, done in _make(bench, chosen, rng):
            steps, expected_times, image = reference[index]
            total += 1
            if done.steps != steps:
                differ += 1
                continue
            difference = np.abs(np.asarray(done.image).astype(int) - image)
            times = max(times, float(np.abs(np.array(done.times) - expected_times).max()))
            pixels = max(pixels, int(difference.max()))
            equal += not difference.any()
    return {
        "mixes": mixes,
        "images": total,
        "steps_differ": differ,
        "times": times,
        "pixels": pixels,
        "equal": equal / total,
    }


def _references(bench, folder):
    """(steps, times, pixels) of every request through ``tpdm sample``, one call each, so that each is alone."""
    found = []
    for i, request in enumerate(tqdm(bench.requests, desc="tpdm sample", dynamic_ncols=True)):
        [line] = sample_to_folder(
            "tinyworld",
            bench.tpm,
            [request.prompt],
            request.seed,
            folder / str(i),
            device="cpu",
            defaults=call_defaults("tinyworld"),
        )
        image = np.asarray(Image.open(folder / str(i) / line["file"])).astype(int)
        found.append((line["steps"], np.array(line["times"]), image))
    return found


def _make(bench, chosen, rng):
    engine = PipelineEngine(
        bench.pipe, bench.tpm, slots=rng.randint(1, 8), queue_limit=MIX, defaults=call_defaults("tinyworld")
    )
    ended = SimpleQueue()

    def listener(index):
        return lambda event: ended.put((index, event)) if isinstance(event, ImageDone | Failed) else None

    try:
        for index in chosen:
            engine.submit(bench.requests[index], listener(index))
            time.sleep(rng.choice([0.0, 0.0, 0.01, 0.05]))
        answers = [ended.get() for _ in chosen]
    finally:
        engine.close()
    for _, event in answers:
        if isinstance(event, Failed):
            raise event.error
    return answers
