"""Several threads call one pipeline: every image is correct, and the pipe's own scheduler is restored.

Web servers call one pipeline from a pool of threads. Images were wrong without an error, and the pipe kept the
scheduler of tpdm.
https://github.com/huggingface/diffusers/issues/7851, https://github.com/QwenLM/Qwen-Image/issues/236
"""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tests.support.families import FAMILIES, tiny_pipe
from tpdm.core.errors import BackboneError
from tpdm.pipelines.attach import attach
from tpdm.policies.fixed import FixedSchedule

TIMES = FixedSchedule([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])


def call(**more: Any) -> dict[str, Any]:
    family = FAMILIES["SD3"]
    return {**family.text(1), **family.arguments(), **more}


def test_attached_calls_wait_for_each_other() -> None:
    """This includes calls of two policies, and of two pipes that share the denoiser."""
    pipe = copy.deepcopy(tiny_pipe("SD3"))
    own, other = pipe.scheduler, type(pipe)(**pipe.components)
    other.set_progress_bar_config(disable=True)
    attached = [attach(pipe, TIMES), attach(pipe, FixedSchedule([1.0, 0.3, 0.0])), attach(other, TIMES)]
    alone = [fast(**call(), seeds=[7]).images for fast in attached]
    with ThreadPoolExecutor(3) as pool:
        several = list(pool.map(lambda i: attached[i % 3](**call(), seeds=[7]).images, range(12)))
    assert all(torch.equal(image, alone[i % 3]) for i, image in enumerate(several))
    assert pipe.scheduler is own
    assert pipe.scheduler.config.shift == 3.0


class _Meeting:
    """A callback that holds an attached call after its first step."""

    def __init__(self) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()

    def __call__(self, pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        self.inside.set()
        assert self.go_on.wait(30)
        return {}


def test_a_stock_call_of_another_thread_is_refused_without_effect() -> None:
    pipe, meeting = copy.deepcopy(tiny_pipe("SD3")), _Meeting()
    own, fast = pipe.scheduler, attach(pipe, TIMES)
    alone = fast(**call(), seeds=[7]).images
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: fast(**call(callback_on_step_end=meeting), seeds=[7]).images)
        assert meeting.inside.wait(30)
        try:
            with pytest.raises(BackboneError, match="while another thread generates images with it"):
                pipe(**call(), num_inference_steps=2)
            assert attach(pipe, TIMES).solver == "euler"  # reads the pipe's own scheduler
        finally:
            meeting.go_on.set()
        assert torch.equal(running.result(), alone)
    assert pipe.scheduler is own


def test_a_call_from_a_callback_is_refused_instead_of_waiting_for_itself() -> None:
    pipe = copy.deepcopy(tiny_pipe("SD3"))
    fast, own = attach(pipe, TIMES), pipe.scheduler

    def again(*_: Any) -> dict[str, Any]:
        fast(**call(), seeds=[1])
        return {}

    with pytest.raises(BackboneError, match="Do not call it from a callback"):
        fast(**call(callback_on_step_end=again), seeds=[0])
    assert pipe.scheduler is own
    assert fast(**call(), seeds=[0]).steps == [5]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), RuntimeError("mine")])
def test_the_pipe_gets_its_scheduler_back_after_any_error(error: BaseException) -> None:
    pipe = copy.deepcopy(tiny_pipe("SD3"))
    own, hooks = pipe.scheduler, len(pipe.transformer._forward_pre_hooks)

    def fail(*_: Any) -> dict[str, Any]:
        raise error

    with pytest.raises(type(error)) as caught:
        attach(pipe, TIMES)(**call(callback_on_step_end=fail), seeds=[0])
    assert caught.value is error
    assert pipe.scheduler is own
    assert len(pipe.transformer._forward_pre_hooks) == hooks
