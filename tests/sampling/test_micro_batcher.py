"""Micro-batches of prompts and latents give each run the same results as a call of its own."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tpdm.core.errors import TpdmError
from tpdm.pipelines.attach import attach
from tpdm.pipelines.loading.load import call_defaults, load_pipeline
from tpdm.policies.fixed import FixedSchedule
from tpdm.sampling.batching.micro_batcher import MicroBatcher
from tpdm.sampling.batching.pipeline import BatchedPipeline
from tpdm.sampling.batching.text_encoder import TextEncoderBatcher
from tpdm.sampling.batching.vae_decoder import VaeDecoderBatcher, supports_batched_decoding

PROMPTS = ["red circle", "blue ring and red circle", "green square top", "red circle"]
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("tinyworld", device="cpu")


def run_in_threads(calls):
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(call) for call in calls]
        return [future.exception(30) or future.result() for future in futures]


class Work:
    """Doubles numbers, records the batches, and raises on negative numbers."""

    def __init__(self):
        self.batches = []

    def __call__(self, numbers):
        self.batches.append(sorted(numbers))
        if min(numbers) < 0:
            raise ValueError("negative")
        return [2 * number for number in numbers]


def submit_all(batcher, numbers, key=lambda number: 0, max_batch_size=8):
    """Makes all reservations before the first item is submitted, so that batches do not depend on timing."""
    reservations = [batcher.reserve() for _ in numbers]
    return run_in_threads(
        [
            lambda n=n, r=r: batcher.submit(key(n), n, max_batch_size, r)
            for n, r in zip(numbers, reservations, strict=True)
        ]
    )


def test_items_with_equal_keys_are_processed_together_and_each_gets_its_own_result():
    batcher = MicroBatcher(work := Work())
    assert submit_all(batcher, range(6), key=lambda n: n % 2) == [0, 2, 4, 6, 8, 10]
    assert sorted(work.batches) == [[0, 2, 4], [1, 3, 5]]
    assert (batcher.calls, batcher.items) == (2, 6)


def test_a_batch_has_at_most_max_batch_size_items():
    batcher = MicroBatcher(work := Work())
    assert submit_all(batcher, range(6), max_batch_size=2) == [0, 2, 4, 6, 8, 10]
    assert [len(batch) for batch in work.batches] == [2, 2, 2]


def test_an_item_that_fails_does_not_affect_the_others():
    batcher = MicroBatcher(Work())
    zero, error, two = submit_all(batcher, [0, -1, 2])
    assert (zero, two) == (0, 4)
    assert str(error) == "negative"
    assert batcher.submit(0, 3, 8) == 6


def test_the_tensors_of_a_failed_batch_are_freed_before_the_retry(failed_tensors):
    def work(numbers):
        failed_tensors.check_freed()
        activation = failed_tensors.add(torch.zeros(1000))
        if len(numbers) > 1 or numbers[0] < 0:
            raise torch.OutOfMemoryError(f"out of memory with {len(activation)}")
        return numbers

    batcher = MicroBatcher(work)
    zero, error, two = submit_all(batcher, [0, -1, 2])
    assert (zero, two, type(error)) == (0, 2, torch.OutOfMemoryError)
    del error
    failed_tensors.check_freed()


def test_a_released_reservation_is_not_waited_for():
    batcher = MicroBatcher(Work())
    reservation = batcher.reserve()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(batcher.submit, 0, 1, 8)
        time.sleep(0.05)
        assert not future.done()
        reservation.release()
        reservation.release()
        assert future.result(10) == 2


def test_items_that_arrive_during_a_call_form_the_next_batch():
    batches, begun, go_on = [], threading.Event(), threading.Event()

    def work(numbers):
        batches.append(sorted(numbers))
        begun.set()
        assert go_on.wait(10)
        return numbers

    batcher = MicroBatcher(work)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(batcher.submit, 0, 0, 8)]
        assert begun.wait(10)
        futures += [pool.submit(batcher.submit, 0, n, 8) for n in (1, 2, 3)]
        while len(batcher._waiting) < 3:
            time.sleep(0.001)
        go_on.set()
        assert [future.result(10) for future in futures] == [0, 1, 2, 3]
    assert batches == [[0], [1, 2, 3]]


def encode(pipe, encoder, prompts, **arguments):
    reservations = [encoder.reserve() for _ in prompts]
    texts = {"prompt_2": None, "prompt_3": None, "max_sequence_length": 0, **arguments}
    calls = [encoder.make_encode_prompt(pipe, reservation) for reservation in reservations]
    return run_in_threads(
        [lambda call=call, p=p: call(prompt=p, **texts) for call, p in zip(calls, prompts, strict=True)]
    )


@pytest.mark.parametrize("guided", [False, True])
def test_prompts_are_encoded_in_one_call_with_the_same_embeddings(pipe, guided):
    encoder = TextEncoderBatcher(pipe, max_batch_size=8)
    with torch.no_grad():
        found = encode(pipe, encoder, PROMPTS, do_classifier_free_guidance=guided, negative_prompt="blue ring")
    assert encoder.calls == 1
    for prompt, row in zip(PROMPTS, found, strict=True):
        alone = encode(
            pipe, TextEncoderBatcher(pipe, 1), [prompt], do_classifier_free_guidance=guided, negative_prompt="blue ring"
        )
        for one, other in zip(row, alone[0], strict=True):
            if other is not None:
                torch.testing.assert_close(one, other, atol=ROUNDING, rtol=0)
        assert (row[1] is None) is not guided


def test_a_recent_prompt_is_not_encoded_again_and_the_cache_is_bounded(pipe):
    encoder = TextEncoderBatcher(pipe, max_batch_size=1)
    first = encode(pipe, encoder, ["red circle"])[0]
    assert encode(pipe, encoder, ["red circle"])[0] is first
    assert encoder.calls == 1
    encode(pipe, encoder, ["red circle"], clip_skip=1)  # another key
    assert encoder.calls == 2
    bytes_of_one = sum(part.numel() * part.element_size() for part in first if part is not None)
    small = TextEncoderBatcher(pipe, max_batch_size=1, cache_bytes=2 * bytes_of_one)
    for prompt in ("a", "red", "blue", "a"):
        encode(pipe, small, [prompt])
    assert small.calls == 4
    assert small._cache.bytes <= 2 * bytes_of_one


def test_embeddings_of_the_caller_are_passed_on(pipe):
    encoder = TextEncoderBatcher(pipe, max_batch_size=8)
    embeds = [part for part in encode(pipe, encoder, ["red circle"])[0] if part is not None]
    given = {"prompt_embeds": embeds[0], "pooled_prompt_embeds": embeds[1], "do_classifier_free_guidance": False}
    assert encode(pipe, encoder, [None], **given)[0][0] is embeds[0]


def test_latents_are_decoded_in_one_call_to_the_same_images(pipe):
    decoder, latents = (
        VaeDecoderBatcher(pipe.vae, max_batch_size=8),
        torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(0)),
    )
    latents = latents[:, : pipe.vae.config.latent_channels]
    reservations = [decoder.reserve() for _ in latents]
    vaes = [decoder.make_vae(lambda one=one: one) for one in reservations]
    with torch.no_grad():
        found = run_in_threads(
            [
                lambda vae=vae, z=z: torch.no_grad()(vae.decode)(z[None], return_dict=False, generator=None)[0]
                for vae, z in zip(vaes, latents, strict=True)
            ]
        )
        assert decoder.calls == 1
        for one, z in zip(found, latents, strict=True):
            torch.testing.assert_close(one, pipe.vae.decode(z[None]).sample, atol=ROUNDING, rtol=0)
    assert "decode" not in vars(pipe.vae)


def test_large_images_are_decoded_one_by_one(pipe):
    decoder = VaeDecoderBatcher(pipe.vae, max_batch_size=8)
    ratio = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    assert [decoder._batch_size(torch.empty(1, 4, side // ratio, side // ratio)) for side in (64, 512, 1024, 2048)] == [
        8,
        4,
        1,
        1,
    ]


def test_a_decoder_that_changes_its_dtype_is_not_shared(pipe):
    assert supports_batched_decoding(pipe)
    half = load_pipeline("tinyworld", "fp16", "cpu")
    half.vae.register_to_config(force_upcast=True)
    assert not supports_batched_decoding(half)


def test_runs_of_one_length_are_encoded_and_decoded_together(pipe):
    shared = BatchedPipeline(pipe, num_slots=4)
    attached = attach(pipe, FixedSchedule([1.0, 0.6, 0.3, 0.0]), defaults=call_defaults("tinyworld"))
    try:
        runs = [
            lambda p=p, i=i: shared.run()(attached, prompt=p, seeds=[i], output_type="pt")
            for i, p in enumerate(PROMPTS)
        ]
        outputs = run_in_threads(runs)
    finally:
        shared.close(TpdmError("closed"))
    for i, output in enumerate(outputs):
        alone = attached(PROMPTS[i], seeds=[i], output_type="pt")
        assert output.steps == alone.steps
        torch.testing.assert_close(output.images, alone.images, atol=ROUNDING, rtol=0)
    assert shared.text_encoder.calls < len(PROMPTS)
    assert shared.vae_decoder.calls <= len(PROMPTS)


def test_a_slow_decoder_call_does_not_block_the_steps(pipe):
    """While an image is being decoded, others make their steps and end."""
    shared = BatchedPipeline(pipe, num_slots=2)
    held, whole = threading.Event(), pipe.vae.decode
    landed = []

    def slow(z, **options):
        assert held.wait(20)
        return whole(z, **options)

    pipe.vae.decode = slow
    short = attach(pipe, FixedSchedule([1.0, 0.0]), defaults=call_defaults("tinyworld"))
    long = attach(
        pipe, FixedSchedule([1 - i / 12 for i in range(12)] + [0.0]), max_steps=12, defaults=call_defaults("tinyworld")
    )
    try:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(shared.run(), short, prompt="red circle", seeds=[0])
            second = pool.submit(shared.run(on_step_end=landed.append), long, prompt="blue ring", seeds=[1])
            end = time.monotonic() + 20
            while len(landed) < 12:
                assert time.monotonic() < end
                time.sleep(0.005)
            assert not first.done()
            held.set()
            assert (first.result(20).steps, second.result(20).steps) == ([1], [12])
    finally:
        held.set()
        del pipe.vae.decode
        shared.close(TpdmError("closed"))
