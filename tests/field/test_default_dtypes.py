"""``torch.set_default_dtype`` and ``set_default_device`` of a notebook or a library change nothing.

Stock pipelines work with them. With tpdm every call ended in "index_copy_(): self and source expected to have the same
dtype", and a TPM could not be loaded. Seen in https://github.com/pytorch/pytorch/issues/138015.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

from tests.support.families import FAMILIES, tiny_pipe
from tests.support.gaussian_problem import SHAPE as GAUSSIAN
from tests.support.gaussian_problem import GaussianSampler, prompts
from tests.support.policies import LookingPolicy
from tests.support.tiny_runs import tiny_pipeline, tiny_recipe
from tpdm.config.recipe import OptimizerConfig, RlConfig
from tpdm.core.io import read_metrics
from tpdm.pipelines.attach import attach
from tpdm.pipelines.loading.load import call_defaults, load_pipeline
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.pretrained import load_policy
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig
from tpdm.rewards.loading import load_reward
from tpdm.sampling.base import SampleRequest
from tpdm.serving.engine.engine import PipelineEngine
from tpdm.serving.engine.interface import ImageDone, ImageRequest, StepEvent
from tpdm.training.policy_update import make_optimizer, update_policy
from tpdm.training.rollout import make_rollout_buffer
from tpdm.training.train import train

# The stock pipeline fails there as well.
BY_TRANSFORMERS_4 = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5"), reason="transformers 4 makes CLIP's mask in the default dtype"
)
DTYPES = (torch.bfloat16, torch.float16, torch.float64)
# Families whose own pipelines run where the default device holds no numbers.
SAY_THEIR_DEVICE = ("SD3", "Qwen-Image", "Sana", "SD1.5")


@contextmanager
def default(dtype: torch.dtype = torch.float32, device: str | None = None) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


@cache
def call_of(name: str) -> dict[str, Any]:
    """Arguments for two images, with tensors of the user."""
    return {**FAMILIES[name].text(2), **FAMILIES[name].arguments(), "seeds": [3, 4]}


@cache
def widths(name: str) -> tuple[int, int]:
    policy = LookingPolicy()
    attach(tiny_pipe(name), policy, max_steps=1)(**call_of(name))
    seen = policy.seen[0]
    return seen.first_BDHW.shape[1], seen.temb_BE.shape[1]


def sampling(name: str) -> list[Any]:
    """All outputs of a call, with a fixed schedule and with a TPM that is built under the default."""
    policy = TimePredictionModule(
        TPMConfig(*widths(name), channels=8, grid=2, velocity_change=True, gamma_range=(0.9, 0.99))
    )
    fixed = attach(tiny_pipe(name), FixedSchedule([1.0, 0.3, 0.0]), solver="dpmpp_2m")(**call_of(name))
    decided = attach(tiny_pipe(name), policy, max_steps=3)(**call_of(name), gamma=0.95, sample=True, record=True)
    steps = [step for trajectory in decided.trajectories or [] for step in trajectory.steps]
    kept = [value for step in steps for value in dataclasses.astuple(step.observation)]
    said = [(step.action, step.logp, step.counts) for step in steps]
    return [fixed.images, fixed.times, decided.images, decided.times, said, kept]


def assert_same(found: Any, expected: Any) -> None:
    """To the bit, and of the same dtype."""
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.device) == (expected.dtype, expected.device)
        assert torch.equal(found, expected)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_sampling_does_not_depend_on_the_default_dtype(name):
    expected = sampling(name)
    for dtype in DTYPES[: 1 if "v-prediction" in name else 3]:  # the other prediction is another line of the solver
        with default(dtype):
            assert_same(sampling(name), expected)


@pytest.mark.parametrize("name", SAY_THEIR_DEVICE)
def test_sampling_under_another_default_device(name):
    expected = sampling(name)
    with default(device="meta"):
        assert_same(sampling(name), expected)


def learned() -> list[Any]:
    """One update with every term of its loss, and the numbers that it measured."""
    policy, reference = TimePredictionModule(GAUSSIAN), TimePredictionModule(GAUSSIAN, seed=9)
    rl = RlConfig(epochs=2, kl_weight=0.1, entropy_weight=0.1)
    policy.calibrate(replay().observation)
    optimizer = make_optimizer(policy, OptimizerConfig(lr=1e-3))
    stats = update_policy(policy, optimizer, replay(), advantages(), rl, 1.0, reference)
    return [dataclasses.astuple(stats), *(p.detach() for p in policy.parameters()), *policy.buffers()]


@cache
def replay() -> Any:
    request = SampleRequest([p.text for p in prompts(6)], range(6), range(6), record=True)
    generated = GaussianSampler(TimePredictionModule(GAUSSIAN))(request)
    return make_rollout_buffer(generated.trajectories or [])


@cache
def advantages() -> torch.Tensor:
    return torch.linspace(-1, 1, 6, dtype=torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_update_does_not_depend_on_the_default_dtype(dtype):
    expected = learned()
    with default(dtype):
        assert_same(learned(), expected)


@cache
def shipped_pipe() -> Any:
    return load_pipeline("tinyworld", device="cpu")


def shipped_reward(images_B3HW: torch.Tensor) -> list[Any]:
    return [load_reward("tinyworld").score(images_B3HW, ["red circle top", "blue ring"])]


def shipped_engine(images_B3HW: torch.Tensor) -> list[Any]:
    """A request to a server's engine, whose threads have the defaults of the process."""
    engine = PipelineEngine(shipped_pipe(), "tinyworld", slots=1, queue_limit=4, defaults=call_defaults("tinyworld"))
    events: SimpleQueue[Any] = SimpleQueue()
    engine.submit(ImageRequest("red circle top", 0, previews=True), events.put)
    while isinstance(event := events.get(timeout=60), StepEvent):
        pass
    engine.close()
    assert isinstance(event, ImageDone), event
    return [np.asarray(event.image).tolist(), event.times]


def shipped_weights(images_B3HW: torch.Tensor) -> list[Any]:
    pipe = load_pipeline("tinyworld", device="cpu")
    parts = (pipe.transformer, pipe.vae, pipe.text_encoder, load_policy("tinyworld"))
    return [tensor for part in parts for tensor in part.state_dict().values()]


@BY_TRANSFORMERS_4
@pytest.mark.parametrize(
    ("run", "dtypes"), [(shipped_reward, DTYPES), (shipped_engine, DTYPES[:1]), (shipped_weights, DTYPES[:1])]
)
def test_the_shipped_model_does_not_depend_on_the_default_dtype(
    run: Callable[[torch.Tensor], list[Any]], dtypes: tuple[torch.dtype, ...]
):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = run(images)
    for dtype in dtypes:
        with default(dtype):
            assert_same(run(images), expected)


@BY_TRANSFORMERS_4
def test_a_whole_run_does_not_depend_on_the_default_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tpdm.training.initialization.CALIBRATION_PROMPTS", 2)
    pipe = tiny_pipeline(tmp_path)
    small: dict[str, dict[str, Any]] = {
        "sampling": {"max_steps": 3},
        "rl": {"updates": 1, "prompts_per_update": 2},
        "validation": {"prompts": 2, "samples_per_prompt": 1},
        "reward": {"name": "python:tests.support.tiny_runs:brightness"},
    }
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        folder = tmp_path / str(dtype)
        with default(dtype):
            train(tiny_recipe(pipe, folder, **small))
            policy = load_policy(folder / "last")  # loaded under that default as well
        rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in read_metrics(folder / "metrics.jsonl")]
        found.append([rows, *(p.detach() for p in policy.parameters()), *policy.buffers()])
    assert_same(found[1], found[0])
