"""Attached pipelines, TPMs, outputs and errors can be copied and sent to another process.

``copy.deepcopy`` and ``pickle`` of an attached pipeline were raw TypeErrors.
https://github.com/huggingface/diffusers/issues/3327
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.families import FAMILIES, tiny_pipe
from tpdm.core import types
from tpdm.core.errors import NonFiniteError, TpdmError
from tpdm.pipelines.attach import attach
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.serving.engine.interface import QueueFull


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


WAYS = (copy.deepcopy, copy.copy, pickled)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["SD3", "SD1.5"])
def test_a_copy_makes_the_same_images(way: Callable[[Any], Any], name: str) -> None:
    family = FAMILIES[name]
    fast = attach(tiny_pipe(name), FixedSchedule([1.0, 0.5, 0.0]), defaults={"guidance_scale": 3.0})
    twin = way(fast)
    first, second = (x(**family.text(2), **family.arguments(), seeds=[0, 1], record=True) for x in (fast, twin))
    assert torch.equal(first.images, second.images)
    again = way(second)
    assert (again.steps, again.times) == (first.steps, first.times)


@pytest.mark.parametrize("way", WAYS)
def test_a_tpm_is_copied_with_its_settings(way: Callable[[Any], Any]) -> None:
    policy = TimePredictionModule(TPMConfig(6, 5, channels=8, grid=2), seed=3)
    twin = way(policy)
    assert twin.shape == policy.shape
    assert all(torch.equal(v, policy.state_dict()[k]) for k, v in twin.state_dict().items())


@pytest.mark.parametrize(
    "error",
    [
        *(cls("got it") for cls in vars(types).values() if isinstance(cls, type) and cls.__base__ is TpdmError),
        NonFiniteError("got NaN", 3),
        QueueFull("full", 2.5),
    ],
)
def test_an_error_keeps_its_attributes(error: TpdmError) -> None:
    """Pools of processes send errors back by pickle."""
    for way in WAYS:
        twin = way(error)
        assert (type(twin), str(twin), vars(twin)) == (type(error), str(error), vars(error))
