"""The engine on tinyworld: every request gets exactly one last event, and the image of its seed."""

import dataclasses
import gc
import queue
import random
import threading
import time
import weakref

import numpy as np
import pytest
import torch

from tpdm.core.errors import BackboneError
from tpdm.pipelines.attach import attach
from tpdm.pipelines.loading.load import call_defaults, load_pipeline
from tpdm.policies.pretrained import from_pretrained
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.serving.engine.engine import PipelineEngine
from tpdm.serving.engine.interface import (
    DeadlineExceeded,
    EngineStopped,
    Failed,
    ImageDone,
    ImageRequest,
    QueueFull,
    RequestCancelled,
    RequestRefused,
    StepEvent,
)

PROMPTS = [
    "red circle top",
    "blue ring and small dotted green square and red circle",
    "large striped red circle top left",
]
SLOW = ImageRequest("red circle top", 0, num_inference_steps=2000)  # runs until it is cancelled


class Client:
    """Collects the events of requests."""

    def __init__(self):
        self.events, self.ended = {}, queue.Queue()

    def listener(self, name):
        self.events[name] = []

        def listen(event):
            self.events[name].append(event)
            if not isinstance(event, StepEvent):
                self.ended.put(name)

        return listen

    def send(self, engine, name, request):
        return engine.submit(request, self.listener(name))

    def wait(self, number=1):
        for _ in range(number):
            self.ended.get(timeout=30)

    def last(self, name):
        return self.events[name][-1]


@pytest.fixture(scope="module")
def pipe(small_tinyworld):
    return load_pipeline("tinyworld", device="cpu")


@pytest.fixture
def make(pipe):
    made = []

    def make_engine(slots=4, queue_limit=100, tpm="tinyworld"):
        engine = PipelineEngine(pipe, tpm, slots=slots, queue_limit=queue_limit, defaults=call_defaults("tinyworld"))
        made.append(engine)
        return engine

    yield make_engine
    for engine in made:
        engine.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("tpdm-")]


@pytest.fixture
def client():
    return Client()


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def pixels(image):
    return np.asarray(image).astype(int)


def test_truncated_texts_are_in_the_warnings_of_the_image(make, client):
    engine, long, guided = make(), "red circle " * 40, {"guidance_scale": 2.0}
    client.send(engine, "short", ImageRequest("red circle", 0, **guided, negative_prompt="ring", num_inference_steps=2))
    client.send(engine, "long", ImageRequest(long, 0, num_inference_steps=2))
    client.send(
        engine, "negative", ImageRequest("red circle", 0, **guided, negative_prompt=long, num_inference_steps=2)
    )
    client.wait(3)
    assert client.last("short").warnings == ()
    for name, field in (("long", "prompt"), ("negative", "negative_prompt")):
        assert client.last(name).warnings == tuple(
            f"{field}: {encoder} of the pipeline reads 32 tokens and ignores the rest"
            for encoder in ("tokenizer", "tokenizer_2")
        )


def test_an_image_is_the_same_alone_and_in_shared_batches(pipe, make, client):
    attached = attach(pipe, "tinyworld", defaults=call_defaults("tinyworld"))
    engine, rng, asked = make(slots=5), random.Random(0), {}
    for name in range(24):
        request = ImageRequest(rng.choice(PROMPTS), rng.randrange(8), num_inference_steps=rng.choice([None, None, 5]))
        asked[name] = request
        client.send(engine, name, request)
        time.sleep(rng.choice([0.0, 0.0, 0.02]))
    client.wait(len(asked))
    for name, request in asked.items():
        done = client.last(name)
        assert isinstance(done, ImageDone)
        events = client.events[name][:-1]
        assert [event.step for event in events] == list(range(1, done.steps + 1))
        assert (1.0, *[event.time for event in events]) == done.times
        if request.num_inference_steps is None:
            alone = attached([request.prompt], seeds=[request.seed])
            assert done.steps == alone.steps[0]
            np.testing.assert_allclose(done.times, alone.times[0], atol=2e-2)
            # Merged calls round otherwise, and the TPM reads features in half precision.
            assert np.abs(pixels(done.image) - pixels(alone.images[0])).max() <= 2
    status = engine.status()
    assert status.finished == len(asked)
    assert status.rows == status.image_steps == sum(client.last(name).steps for name in asked)
    assert status.calls < status.rows


def test_arguments_of_the_training_take_precedence_over_those_of_the_backbone(make, client):
    """A request takes precedence over both. With guidance, a step of an image has two rows."""
    policy, config = from_pretrained("tinyworld")
    policy.artifact = dataclasses.replace(config, call_defaults={**config.call_defaults, "guidance_scale": 3.0})
    engine, rows = make(slots=1, tpm=policy), []
    for options in ({}, {"guidance_scale": 1.0}, {"num_inference_steps": 3}):
        before = engine.status()
        client.send(engine, "one", ImageRequest(PROMPTS[0], 0, **options))
        client.wait()
        after = engine.status()
        rows.append((after.rows - before.rows) / (after.image_steps - before.image_steps))
    assert rows == [2, 1, 1]


def test_requests_with_many_different_values_form_one_group(make, client):
    """Requests whose calls can be merged form one group, however their size and guidance are given."""
    policy, config = from_pretrained("tinyworld")
    policy.artifact = dataclasses.replace(config, call_defaults={**config.call_defaults, "guidance_scale": 3.0})
    engine = make(slots=1, tpm=policy)
    key = client.send(engine, "slow", SLOW)
    until(lambda: client.events["slow"])
    sizes = [{}, {"width": 64, "height": 64}]
    guided = [{}, *({"guidance_scale": 2.0 + i / 1000} for i in range(6))]
    plain = [{"guidance_scale": 1.0}, {"guidance_scale": 0.5}, {"num_inference_steps": 2}]
    for kinds, name in ((guided, "guided"), (plain, "plain")):
        for i, options in enumerate(kinds):
            client.send(engine, f"{name}{i}", ImageRequest("red circle", 0, **options, **sizes[i % 2]))
    client.send(engine, "wide", ImageRequest("red circle", 0, width=96))
    assert engine._scheduler.groups == 3
    engine.cancel(key)
    client.wait(12)
    assert all(isinstance(client.last(name), ImageDone) for name in client.events if name != "slow")


def test_num_inference_steps_gives_the_image_of_the_stock_pipeline(pipe, make, client):
    client.send(make(slots=1), "one", ImageRequest(PROMPTS[0], 3, num_inference_steps=6))
    client.wait()
    stock = pipe(
        [PROMPTS[0]],
        num_inference_steps=6,
        generator=[torch.Generator().manual_seed(3)],
        **call_defaults("tinyworld"),
    )
    assert client.last("one").steps == 6
    assert np.array_equal(pixels(client.last("one").image), pixels(stock.images[0]))


def test_the_queue_is_bounded_and_gives_the_seconds_to_the_next_try(make, client):
    engine = make(slots=1, queue_limit=2)
    keys = [client.send(engine, name, SLOW) for name in "abc"]
    assert (engine.status().running, engine.status().waiting) == (1, 2)
    with pytest.raises(QueueFull) as refusal:
        client.send(engine, "d", SLOW)
    assert refusal.value.retry_after > 0
    assert all(engine.cancel(key) for key in keys)
    client.wait(3)
    client.send(engine, "e", ImageRequest("red circle", 0))
    client.wait()
    assert isinstance(client.last("e"), ImageDone)
    assert (engine.status().cancelled, engine.status().refused) == (3, 1)


def test_cancelling_ends_an_image_at_its_next_step(make, client):
    engine = make(slots=2)
    key = client.send(engine, "slow", SLOW)
    until(lambda: len(client.events["slow"]) > 2)
    assert engine.cancel(key)
    client.wait()
    assert isinstance(client.last("slow").error, RequestCancelled)
    until(lambda: engine.status().running == 0)
    assert not engine.cancel(key)
    assert not engine.cancel("never seen")


def test_timeouts_apply_to_waiting_and_running_requests(make, client):
    engine = make(slots=1)
    client.send(engine, "slow", ImageRequest("red circle", 0, num_inference_steps=2000, timeout=1.5))
    until(
        lambda: client.events["slow"]
    )  # it has the slot: prompts are encoded ahead, and the other request might be first
    client.send(engine, "waits", ImageRequest("red circle", 0, num_inference_steps=2000, timeout=0.1))
    client.wait(2)
    assert all(isinstance(client.last(name).error, DeadlineExceeded) for name in ("slow", "waits"))
    assert "1.5 seconds" in str(client.last("slow").error)
    assert [type(event) for event in client.events["waits"]] == [Failed]
    assert engine.status().expired == 2


def test_draining_finishes_accepted_requests_and_refuses_new_ones(make, client):
    engine = make(slots=2)
    for name in range(6):
        client.send(engine, name, ImageRequest(PROMPTS[name % 3], name))
    assert engine.drain(30)
    assert all(isinstance(client.last(name), ImageDone) for name in range(6))
    with pytest.raises(EngineStopped):
        client.send(engine, "late", SLOW)
    assert not engine.status().accepting


def test_closing_ends_the_remaining_requests(make, client):
    engine = make(slots=2)
    for name in range(5):
        client.send(engine, name, SLOW)
    until(lambda: sum(map(bool, client.events.values())) == 2)
    assert not engine.drain(0.01)
    engine.close()
    client.wait(5)
    assert all(isinstance(client.last(name).error, EngineStopped) for name in range(5))
    assert engine.status().failed == 5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"seed": -1}, "seed is -1. It must be at least 0"),
        ({"seed": 2**63}, "at most 9223372036854775807"),
        ({"width": 0}, "width is 0. It must be at least 1"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"true_cfg_scale": float("inf")}, "true_cfg_scale is inf"),
        ({"num_inference_steps": 10**9}, "at most 10000"),
        ({"num_inference_steps": 3, "max_steps": 4}, "max_steps and num_inference_steps exclude"),
        ({"quality": 0.5, "num_inference_steps": 4}, "quality and num_inference_steps exclude"),
        ({"gamma": 0.9, "quality": 0.5}, "gamma and quality exclude"),
        ({"timeout": 0.0}, "timeout is 0.0"),
    ],
)
def test_a_request_with_a_wrong_value_cannot_be_made(options, sentence):
    with pytest.raises(RequestRefused, match=sentence) as refusal:
        ImageRequest(**{"prompt": "red circle", "seed": 0, **options})
    assert refusal.value.field in options


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"gamma": 0.9}, "no dial|not gamma-conditioned|no quality setting"),
        ({"quality": 0.5}, "no dial|not gamma-conditioned|no quality setting"),
        ({"true_cfg_scale": 2.0}, "true_cfg_scale"),
        ({"negative_prompt": "ring", "guidance_scale": 1.0, "true_cfg_scale": 3.0}, "true_cfg_scale"),
    ],
)
def test_a_request_that_the_model_cannot_serve_is_refused_at_submission(make, client, options, sentence):
    engine = make()
    with pytest.raises(RequestRefused, match=sentence):
        client.send(engine, "bad", ImageRequest(**{"prompt": "red circle", "seed": 0, **options}))
    assert engine.status().refused == 1
    assert not client.events["bad"]


def test_gamma_reaches_a_gamma_conditioned_tpm(pipe, make, client):
    shape = TPMConfig(160, 160, channels=8, grid=2, gamma_range=(0.9, 0.99), storage="fp32")
    tpm = TimePredictionModule(shape).eval()
    torch.nn.init.normal_(tpm.fc1.weight)
    attached = attach(pipe, tpm, defaults=call_defaults("tinyworld"))
    engine = make(tpm=tpm)
    for gamma in (0.9, 0.95, 0.99):
        client.send(engine, gamma, ImageRequest("red circle", 0, gamma=gamma))
    client.wait(3)
    for gamma in (0.9, 0.95, 0.99):
        alone = attached(["red circle"], seeds=[0], gamma=gamma)
        assert client.last(gamma).steps == alone.steps[0]
        np.testing.assert_allclose(client.last(gamma).times, alone.times[0], atol=1e-4)
    assert len({client.last(gamma).times for gamma in (0.9, 0.95, 0.99)}) == 3
    with pytest.raises(RequestRefused, match=r"trained for 0\.9 to 0\.99"):
        client.send(engine, "out", ImageRequest("red circle", 0, gamma=0.5))


def test_previews_come_in_order_before_the_image(make, client):
    engine = make(slots=2)
    for name in range(3):
        client.send(
            engine, name, ImageRequest(PROMPTS[2], 5, num_inference_steps=40, previews="every" if name < 2 else 0)
        )
    client.wait(3)
    for name in range(3):
        *steps, done = client.events[name]
        assert [event.step for event in steps] == list(range(1, 41))
        assert isinstance(done, ImageDone)
        previews = [event.preview for event in steps if event.preview is not None]
        assert bool(previews) == (name < 2)
        assert all(preview.size == (64, 64) for preview in previews)


def test_a_size_that_the_pipeline_cannot_make_is_refused(make, client):
    client.send(make(), "bad", ImageRequest("red circle", 0, width=65))
    client.wait()
    assert isinstance(client.last("bad").error, RequestRefused)
    assert "divisible" in str(client.last("bad").error)


def test_a_value_error_inside_the_pipeline_is_not_a_refusal(pipe, make, client, caplog):
    def fail(*args):
        raise ValueError("a file of ours is damaged")

    engine = make()
    for part in (pipe.text_encoder, pipe.vae.decoder):
        handle = part.register_forward_pre_hook(fail)
        client.send(engine, "bad", ImageRequest("red circle", 0, max_steps=1))
        client.wait()
        handle.remove()
        assert type(client.last("bad").error) is ValueError
    assert caplog.text.count("failed: ValueError") == 2


@pytest.mark.parametrize(
    ("grid", "good", "words"), [((2, 2), 32, "4 x 4 tokens. This TPM is trained for 2 x 2"), (None, 64, None)]
)
def test_a_size_that_the_tpm_does_not_accept_is_refused_at_submission(make, client, grid, good, words):
    engine = make(tpm=TimePredictionModule(TPMConfig(160, 160, channels=8, layout="release", token_grid=grid)).eval())
    client.send(engine, "good", ImageRequest("red circle", 0, width=good, height=good, max_steps=2))
    client.send(engine, "fixed", ImageRequest("red circle", 0, width=48, height=48, num_inference_steps=2))
    client.wait(2)
    assert isinstance(client.last("good"), ImageDone)
    assert isinstance(client.last("fixed"), ImageDone)
    with pytest.raises(RequestRefused, match="3 x 2 tokens"):
        client.send(engine, "bad", ImageRequest("red circle", 0, width=48, height=32))
    if words:
        with pytest.raises(RequestRefused, match=words):
            client.send(engine, "bad", ImageRequest("red circle", 0))


def test_without_a_tpm_the_pipelines_own_schedule_runs(make, client):
    engine = make(tpm=None)
    client.send(engine, "one", ImageRequest("red circle", 0))
    client.wait()
    assert client.last("one").steps == 28
    with pytest.raises(RequestRefused, match="without a TPM"):
        client.send(engine, "capped", ImageRequest("red circle", 0, max_steps=4))


def test_a_denoiser_error_fails_only_the_requests_of_its_batch(pipe, make, client):
    def fail(module, args, kwargs):
        if kwargs["hidden_states"].shape[-1] == 12:
            raise RuntimeError("out of memory")

    handle = pipe.transformer.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        engine = make()
        for name in range(6):
            width = 96 if name % 2 else None
            client.send(engine, name, ImageRequest("red circle", name, width=width))
        client.wait(6)
    finally:
        handle.remove()
    kinds = [type(client.last(name)) for name in range(6)]
    assert kinds == [ImageDone, Failed] * 3
    assert isinstance(client.last(1).error, BackboneError)


def test_the_error_of_an_event_keeps_no_tensors(pipe, make, client, monkeypatch):
    made = []

    def fail(*args, **options):
        tensor = torch.zeros(1000)
        made.append(weakref.ref(tensor))
        raise RuntimeError(f"no picture of {len(tensor)}")

    monkeypatch.setattr(pipe.image_processor, "postprocess", fail)
    client.send(make(), "one", ImageRequest("red circle", 0))
    client.wait()
    assert "no picture" in str(client.last("one").error)
    assert [ref() for ref in made] == [None]


def test_a_listener_that_raises_does_not_affect_other_requests(make, client, caplog):
    def raising(event):
        raise ZeroDivisionError

    engine = make()
    engine.submit(ImageRequest("red circle", 0), raising)
    client.send(engine, "good", ImageRequest("red circle", 1))
    client.wait()
    assert engine.drain(20)
    assert isinstance(client.last("good"), ImageDone)
    assert "ZeroDivisionError" in caplog.text


def test_many_threads_send_and_cancel_at_once(make):
    engine, clients = make(slots=4, queue_limit=1000), [Client() for _ in range(4)]

    def run(client, seed):
        rng = random.Random(seed)
        for name in range(15):
            key = client.send(engine, name, ImageRequest(rng.choice(PROMPTS), name, max_steps=4))
            if rng.random() < 0.4:
                time.sleep(rng.random() * 0.01)
                engine.cancel(key)
        client.wait(15)

    threads = [threading.Thread(target=run, args=(client, i)) for i, client in enumerate(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    until(lambda: engine.status().running == 0)
    for client in clients:
        assert client.ended.empty()  # no request has two last events
        for events in client.events.values():
            assert [isinstance(event, StepEvent) for event in events] == [True] * (len(events) - 1) + [False]
    status = engine.status()
    assert (status.waiting, status.finished + status.cancelled, status.failed) == (0, 60, 0)


@pytest.mark.slow
def test_nothing_of_a_request_is_kept(make, client):
    engine = make()

    def fifty():
        for name in range(50):
            client.send(engine, name, ImageRequest("red circle", name, max_steps=1))
        client.wait(50)
        client.events.clear()
        until(lambda: engine.status().running == 0)
        gc.collect()
        return len(gc.get_objects())

    fifty()
    counts = [fifty() for _ in range(4)]
    assert max(counts) - min(counts) < 200  # two objects for every request would be 300
