"""Texts and latents of several runs go through the encoders and the decoder together, and come out as they do alone."""

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


def at_once(calls):
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(call) for call in calls]
        return [future.exception(30) or future.result() for future in futures]


class Work:
    """Doubles numbers; notes which were done together; fails on negative ones."""

    def __init__(self):
        self.batches = []

    def __call__(self, numbers):
        self.batches.append(sorted(numbers))
        if min(numbers) < 0:
            raise ValueError("negative")
        return [2 * number for number in numbers]


def ask_all(desk, numbers, kind=lambda number: 0, most=8):
    """All are expected before the first asks, so that batches do not depend on the clock."""
    expected = [desk.expect() for _ in numbers]
    return at_once([lambda n=n, e=e: desk.ask(kind(n), n, most, e) for n, e in zip(numbers, expected, strict=True)])


def test_a_desk_does_alike_tasks_together_and_gives_each_its_own_result():
    desk = MicroBatcher(work := Work())
    assert ask_all(desk, range(6), kind=lambda n: n % 2) == [0, 2, 4, 6, 8, 10]
    assert sorted(work.batches) == [[0, 2, 4], [1, 3, 5]]
    assert (desk.calls, desk.tasks) == (2, 6)


def test_a_desk_does_no_more_at_once_than_it_may():
    desk = MicroBatcher(work := Work())
    assert ask_all(desk, range(6), most=2) == [0, 2, 4, 6, 8, 10]
    assert [len(batch) for batch in work.batches] == [2, 2, 2]


def test_a_task_that_fails_harms_no_other():
    desk = MicroBatcher(Work())
    zero, error, two = ask_all(desk, [0, -1, 2])
    assert (zero, two) == (0, 4)
    assert str(error) == "negative"
    assert desk.ask(0, 3, 8) == 6


def test_what_a_failed_batch_held_is_gone_before_the_next(kept):
    def work(numbers):
        kept.check()
        activation = kept.note(torch.zeros(1000))
        if len(numbers) > 1 or numbers[0] < 0:
            raise torch.OutOfMemoryError(f"out of memory beside {len(activation)}")
        return numbers

    desk = MicroBatcher(work)
    zero, error, two = ask_all(desk, [0, -1, 2])
    assert (zero, two, type(error)) == (0, 2, torch.OutOfMemoryError)
    del error
    kept.check()


def test_who_withdraws_is_not_waited_for():
    desk = MicroBatcher(Work())
    expected = desk.expect()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(desk.ask, 0, 1, 8)
        time.sleep(0.05)
        assert not future.done()
        expected.release_reservation()
        expected.release_reservation()
        assert future.result(10) == 2


def test_what_comes_during_work_is_the_next_batch():
    batches, begun, go_on = [], threading.Event(), threading.Event()

    def work(numbers):
        batches.append(sorted(numbers))
        begun.set()
        assert go_on.wait(10)
        return numbers

    desk = MicroBatcher(work)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(desk.ask, 0, 0, 8)]
        assert begun.wait(10)
        futures += [pool.submit(desk.ask, 0, n, 8) for n in (1, 2, 3)]
        while len(desk._line) < 3:
            time.sleep(0.001)
        go_on.set()
        assert [future.result(10) for future in futures] == [0, 1, 2, 3]
    assert batches == [[0], [1, 2, 3]]


def encode(pipe, desk, prompts, **arguments):
    expected = [desk.expect() for _ in prompts]
    texts = {"prompt_2": None, "prompt_3": None, "max_sequence_length": 0, **arguments}
    asks = [desk.at(pipe, one) for one in expected]
    return at_once([lambda ask=ask, p=p: ask(prompt=p, **texts) for ask, p in zip(asks, prompts, strict=True)])


@pytest.mark.parametrize("guided", [False, True])
def test_prompts_are_encoded_in_one_call_and_as_alone(pipe, guided):
    desk = TextEncoderBatcher(pipe, most=8)
    with torch.no_grad():
        found = encode(pipe, desk, PROMPTS, do_classifier_free_guidance=guided, negative_prompt="blue ring")
    assert desk.calls == 1
    for prompt, row in zip(PROMPTS, found, strict=True):
        alone = encode(
            pipe, TextEncoderBatcher(pipe, 1), [prompt], do_classifier_free_guidance=guided, negative_prompt="blue ring"
        )
        for one, other in zip(row, alone[0], strict=True):
            if other is not None:
                torch.testing.assert_close(one, other, atol=ROUNDING, rtol=0)
        assert (row[1] is None) is not guided


def test_a_prompt_of_late_is_not_encoded_again_and_the_memory_is_bounded(pipe):
    desk = TextEncoderBatcher(pipe, most=1)
    first = encode(pipe, desk, ["red circle"])[0]
    assert encode(pipe, desk, ["red circle"])[0] is first
    assert desk.calls == 1
    encode(pipe, desk, ["red circle"], clip_skip=1)  # another question
    assert desk.calls == 2
    bytes_of_one = sum(part.numel() * part.element_size() for part in first if part is not None)
    small = TextEncoderBatcher(pipe, most=1, kept_bytes=2 * bytes_of_one)
    for prompt in ("a", "red", "blue", "a"):
        encode(pipe, small, [prompt])
    assert small.calls == 4
    assert small._kept._bytes <= 2 * bytes_of_one


def test_embeddings_of_the_callers_own_pass_as_they_are(pipe):
    desk = TextEncoderBatcher(pipe, most=8)
    embeds = [part for part in encode(pipe, desk, ["red circle"])[0] if part is not None]
    given = {"prompt_embeds": embeds[0], "pooled_prompt_embeds": embeds[1], "do_classifier_free_guidance": False}
    assert encode(pipe, desk, [None], **given)[0][0] is embeds[0]


def test_latents_are_decoded_in_one_call_and_as_alone(pipe):
    desk, latents = (
        VaeDecoderBatcher(pipe.vae, most=8),
        torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(0)),
    )
    latents = latents[:, : pipe.vae.config.latent_channels]
    expected = [desk.expect() for _ in latents]
    vaes = [desk.at(lambda one=one: one) for one in expected]
    with torch.no_grad():
        found = at_once(
            [
                lambda vae=vae, z=z: torch.no_grad()(vae.decode)(z[None], return_dict=False, generator=None)[0]
                for vae, z in zip(vaes, latents, strict=True)
            ]
        )
        assert desk.calls == 1
        for one, z in zip(found, latents, strict=True):
            torch.testing.assert_close(one, pipe.vae.decode(z[None]).sample, atol=ROUNDING, rtol=0)
    assert "decode" not in vars(pipe.vae)


def test_large_pictures_are_decoded_one_by_one(pipe):
    desk = VaeDecoderBatcher(pipe.vae, most=8)
    ratio = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    assert [desk._most(torch.empty(1, 4, side // ratio, side // ratio)) for side in (64, 512, 1024, 2048)] == [
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
        outputs = at_once(runs)
    finally:
        shared.close(TpdmError("closed"))
    for i, output in enumerate(outputs):
        alone = attached(PROMPTS[i], seeds=[i], output_type="pt")
        assert output.steps == alone.steps
        torch.testing.assert_close(output.images, alone.images, atol=ROUNDING, rtol=0)
    assert shared.text_encoder.calls < len(PROMPTS)
    assert shared.vae_decoder.calls <= len(PROMPTS)


def test_one_late_decode_never_stops_the_steps(pipe):
    """While a picture is being decoded, others step and end."""
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
