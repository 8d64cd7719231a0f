"""What an ``ImageRequest`` means to a pipeline: its policy and the arguments of the call, or why it is refused."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from tpdm.core.errors import BackboneError, ConfigError
from tpdm.data.truncation import count_over_long
from tpdm.pipelines.attach import AdaptivePipeline, attach
from tpdm.pipelines.guidance import Guidance
from tpdm.pipelines.truncation import readers
from tpdm.policies.conditioned import condition_policy
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.sampling.batching.batch_key import batch_key, token_grid
from tpdm.sampling.batching.pipeline import BatchedPipeline
from tpdm.serving.engine.interface import ImageRequest, RequestRefused

MOST_STEPS = 10_000  # of a fixed schedule, which is made in full before the first step

SCHEDULES_KEPT = 64  # fixed schedules, one for each number of steps and size


class RequestReader:
    """Turns requests into calls of one pipeline; keeps the fixed schedules that were asked for.

    Args:
        shared: the pipeline.
        trained: the same with its TPM; None where there is none.
        defaults: arguments of the pipeline's call where the request says nothing.
    """

    def __init__(self, shared: BatchedPipeline, trained: AdaptivePipeline | None, defaults: Mapping[str, Any]) -> None:
        self._shared, self._trained, self._defaults = shared, trained, defaults
        self._parameters = inspect.signature(shared.pipe.__call__).parameters
        self._guidance = Guidance.of(shared.pipe)
        self._fixed: dict[Hashable, AdaptivePipeline] = {}

    def check(self, request: ImageRequest) -> None:
        """Refuses what can be told without computing anything.

        Raises:
            RequestRefused: it can never be served.
        """
        if not request.prompt.strip():
            raise RequestRefused("got an empty prompt, expected some words; say what the picture shows.")
        for name, least in (("seed", 0), ("width", 1), ("height", 1), ("max_steps", 1), ("fixed_steps", 1)):
            value = getattr(request, name)
            if value is not None and value < least:
                raise RequestRefused(f"got {name} {value}, expected at least {least}; give a larger one.")
        if (request.fixed_steps or 0) > MOST_STEPS:
            raise RequestRefused(f"got fixed_steps {request.fixed_steps}, expected at most {MOST_STEPS}; give fewer.")
        if request.seed >= 2**63:
            raise RequestRefused(f"got seed {request.seed}, expected one below 2^63; give a smaller one.")
        for name in ("guidance_scale", "true_cfg_scale"):
            scale = getattr(request, name)
            if scale is not None and not 0 <= scale < float("inf"):
                raise RequestRefused(f"got {name} {scale}, expected a number from 0 on.")
        if request.timeout is not None and not request.timeout > 0:
            raise RequestRefused(f"got timeout {request.timeout}, expected some seconds; give a positive number.")
        if request.fixed_steps is not None and request.max_steps is not None:
            raise RequestRefused("got max_steps with fixed_steps, expected one of them; leave max_steps out.")
        if request.max_steps is not None and self._trained is None:
            raise RequestRefused("got max_steps, expected fixed_steps, for this server has no TPM; give fixed_steps.")
        for name in self._said(request):
            if name not in self._parameters:
                raise RequestRefused(f"got {name}, which {type(self._shared.pipe).__name__} has not; leave it out.")
        self.warnings(request)
        self._check_dial(request)
        self._check_grid(request)

    def warnings(self, request: ImageRequest) -> tuple[str, ...]:
        """A sentence on a negative prompt that has no effect at the scale of the request.

        Raises:
            RequestRefused: a scale or a negative prompt that the pipeline does not use.
        """
        try:
            warning = self._guidance.check(self._arguments(request), self._said(request))
        except BackboneError as error:
            raise RequestRefused(str(error)) from error
        return () if warning is None else (warning,)

    def group(self, request: ImageRequest) -> Hashable:
        """Requests of other groups cannot share a denoiser call."""
        return batch_key(self._shared.pipe, self._arguments(request))

    def read(self, request: ImageRequest) -> tuple[AdaptivePipeline, dict[str, Any]]:
        """The pipeline with the policy of this request, and the arguments of its call."""
        arguments: dict[str, Any] = {**self._said(request), "seeds": [request.seed]}
        if request.fixed_steps is not None or self._trained is None:
            return self._with_fixed(request), arguments
        if request.max_steps is not None:
            arguments["max_steps"] = request.max_steps
        return self._trained, arguments | _dial(request)

    def _arguments(self, request: ImageRequest) -> dict[str, Any]:
        """Of the pipeline's call, with all defaults but its own."""
        trained = self._trained if request.fixed_steps is None else None
        return {**(self._defaults if trained is None else trained.defaults), **self._said(request)}

    def _said(self, request: ImageRequest) -> dict[str, Any]:
        """What the request says, under the pipeline's names.

        Raises:
            RequestRefused: both scales of guidance, where they are the same.
        """
        try:
            named = self._guidance.named(request.guidance_scale, request.true_cfg_scale)
        except ConfigError as error:
            raise RequestRefused(str(error)) from error
        said = {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "width": request.width,
            "height": request.height,
        }
        texts_and_sizes = {name: value for name, value in said.items() if value is not None}
        return {**self._guidance.against(named), **texts_and_sizes, **named}

    def _check_dial(self, request: ImageRequest) -> None:
        if not _dial(request):
            return
        if self._trained is None or request.fixed_steps is not None:
            raise RequestRefused(f"got {min(_dial(request))} for a fixed schedule, expected a TPM; leave it out.")
        try:
            condition_policy(self._trained.policy, 1, request.gamma, request.quality)
        except ConfigError as error:
            raise RequestRefused(str(error)) from error

    def _check_grid(self, request: ImageRequest) -> None:
        """A TPM of the release layout reads one grid of tokens, or even ones: it would fail after the first step."""
        policy = None if self._trained is None or request.fixed_steps is not None else self._trained.policy
        if not isinstance(policy, TimePredictionModule) or policy.shape.layout != "release":
            return
        grid = token_grid(self._shared.pipe, self._arguments(request))
        read = policy.shape.token_grid
        if grid is None or (tuple(read) == grid if read else not any(side % 2 for side in grid)):
            return
        expected = f"{read[1]} x {read[0]}, for which this TPM was trained" if read else "even numbers"
        raise RequestRefused(
            f"got a size of {grid[1]} x {grid[0]} tokens, expected {expected}; give such a size, or fixed_steps."
        )

    def _with_fixed(self, request: ImageRequest) -> AdaptivePipeline:
        steps = request.fixed_steps or self._parameters["num_inference_steps"].default
        key = (steps, request.width, request.height)
        fixed = self._fixed.get(key)
        if fixed is None:
            sizes = {name: value for name, value in (("width", request.width), ("height", request.height)) if value}
            times = FixedSchedule(self._shared.own_times(steps, {**self._defaults, **sizes}))
            fixed = attach(self._shared.pipe, times, max_steps=times.steps, defaults=self._defaults)
            if len(self._fixed) >= SCHEDULES_KEPT:
                self._fixed.clear()
            self._fixed[key] = fixed
        return fixed


def _dial(request: ImageRequest) -> dict[str, float]:
    values = {"gamma": request.gamma, "quality": request.quality}
    return {name: value for name, value in values.items() if value is not None}


class OverLongTexts:
    """Counts tokens with tokenizers of its own: those of transformers cannot be asked by two threads at once.

    Args:
        pipe: whose text encoders read.
        arguments: of its call.
    """

    def __init__(self, pipe: Any, arguments: Mapping[str, Any]) -> None:
        self._readers = [replace(one, tokenizer=copy.deepcopy(one.tokenizer)) for one in readers(pipe, arguments)]
        self._mutex = threading.Lock()

    def warnings(self, request: ImageRequest) -> tuple[str, ...]:
        """One sentence for each text and each encoder that does not read all of it; none of them quotes the text."""
        found = []
        for field, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt or "")):
            for reader in self._readers:
                with self._mutex:
                    longer = count_over_long(reader.tokenizer, reader.tokens, [text])
                if longer:
                    found.append(f"{field}: {reader.name} reads {reader.tokens} tokens and does not see the rest")
        return tuple(found)
