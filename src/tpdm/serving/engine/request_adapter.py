"""Adapts an ``ImageRequest`` to the pipeline: checks what depends on the model, and makes the call's arguments."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tpdm.core.errors import BackboneError, ConfigError
from tpdm.data.truncation import count_truncated_prompts
from tpdm.pipelines.attach import AdaptivePipeline, attach
from tpdm.pipelines.guidance import Guidance
from tpdm.pipelines.truncation import token_limits
from tpdm.policies.conditioned import condition_policy
from tpdm.policies.fixed import FixedSchedule
from tpdm.policies.tpm import TimePredictionModule
from tpdm.sampling.batching.batch_key import batch_key, token_grid
from tpdm.sampling.batching.pipeline import BatchedPipeline
from tpdm.serving.engine.interface import ImageRequest, RequestRefused

MAX_SCHEDULES = 64  # fixed schedules that are kept, one for each number of steps and size


@dataclass(frozen=True)
class ResolvedRequest:
    """A request that the model can serve, with what follows from its defaults. Computed once, at submission.

    Attributes:
        request: The request.
        arguments: Arguments of the pipeline call that the request sets.
        batch_key: Group of the request. Requests of other groups cannot share a denoiser batch.
        warnings: Sentences for the client about fields without effect.
    """

    request: ImageRequest
    arguments: Mapping[str, Any]
    batch_key: Hashable
    warnings: tuple[str, ...]


class RequestAdapter:
    """Turns requests into calls of one pipeline. Caches the fixed schedules of earlier requests.

    Args:
        shared: The pipeline.
        trained: The pipeline with its TPM. None if there is no TPM.
        defaults: Default arguments of the pipeline call.
    """

    def __init__(self, shared: BatchedPipeline, trained: AdaptivePipeline | None, defaults: Mapping[str, Any]) -> None:
        self._shared, self._trained, self._defaults = shared, trained, defaults
        self._parameters = inspect.signature(shared.pipe.__call__).parameters
        self._guidance = Guidance.of(shared.pipe)
        self._fixed: dict[Hashable, AdaptivePipeline] = {}

    def resolve(self, request: ImageRequest) -> ResolvedRequest:
        """Checks what depends on the model, without a call of its networks.

        Raises:
            RequestRefused: The model can never serve the request.
        """
        trained = self._trained if request.num_inference_steps is None else None
        if request.max_steps is not None and trained is None:
            raise RequestRefused("max_steps has no effect without a TPM. Use num_inference_steps instead.", "max_steps")
        arguments = self._own_arguments(request)
        for name in arguments:
            if name not in self._parameters:
                raise RequestRefused(f"{name} is no argument of {type(self._shared.pipe).__name__}. Leave it out.")
        merged = {**(self._defaults if trained is None else trained.defaults), **arguments}
        try:
            warning = self._guidance.check(merged, arguments)
        except BackboneError as error:
            raise RequestRefused(str(error)) from error
        _check_gamma(request, trained)
        self._check_token_grid(trained, merged)
        key = batch_key(self._shared.pipe, merged)
        return ResolvedRequest(request, arguments, key, () if warning is None else (warning,))

    def prepare(self, resolved: ResolvedRequest) -> tuple[AdaptivePipeline, dict[str, Any]]:
        """Returns the pipeline with the policy of a request, and the arguments of its call."""
        request = resolved.request
        arguments = {**resolved.arguments, "seeds": [request.seed]}
        if request.num_inference_steps is not None or self._trained is None:
            return self._with_fixed_schedule(request), arguments
        if request.max_steps is not None:
            arguments["max_steps"] = request.max_steps
        return self._trained, arguments | _gamma_arguments(request)

    def _own_arguments(self, request: ImageRequest) -> dict[str, Any]:
        """Arguments that the request sets, under the names of the pipeline."""
        try:
            scales = self._guidance.named(request.guidance_scale, request.true_cfg_scale)
        except ConfigError as error:
            raise RequestRefused(str(error)) from error
        fields = {name: getattr(request, name) for name in ("prompt", "negative_prompt", "width", "height")}
        given = {name: value for name, value in fields.items() if value is not None}
        return {**self._guidance.against(scales), **given, **scales}

    def _check_token_grid(self, trained: AdaptivePipeline | None, arguments: Mapping[str, Any]) -> None:
        """A TPM of the release layout accepts one token grid, or even ones. Others would fail after the first step."""
        policy = None if trained is None else trained.policy
        if not isinstance(policy, TimePredictionModule) or policy.shape.layout != "release":
            return
        grid = token_grid(self._shared.pipe, arguments)
        expected = policy.shape.token_grid
        if grid is None or (tuple(expected) == grid if expected else not any(side % 2 for side in grid)):
            return
        allowed = f"trained for {expected[1]} x {expected[0]} tokens" if expected else "for even numbers of tokens"
        raise RequestRefused(
            f"The size is {grid[1]} x {grid[0]} tokens. This TPM is {allowed}. Change the size or use "
            "num_inference_steps."
        )

    def _with_fixed_schedule(self, request: ImageRequest) -> AdaptivePipeline:
        steps = request.num_inference_steps or self._parameters["num_inference_steps"].default
        key = (steps, request.width, request.height)
        fixed = self._fixed.get(key)
        if fixed is None:
            sizes = {name: value for name, value in (("width", request.width), ("height", request.height)) if value}
            schedule = FixedSchedule(self._shared.own_times(steps, {**self._defaults, **sizes}))
            fixed = attach(self._shared.pipe, schedule, max_steps=schedule.steps, defaults=self._defaults)
            if len(self._fixed) >= MAX_SCHEDULES:
                self._fixed.clear()
            self._fixed[key] = fixed
        return fixed


def _check_gamma(request: ImageRequest, trained: AdaptivePipeline | None) -> None:
    names = _gamma_arguments(request)
    if not names:
        return
    if trained is None:
        raise RequestRefused(f"{min(names)} has no effect without a TPM. Leave it out.", min(names))
    try:
        condition_policy(trained.policy, 1, request.gamma, request.quality)
    except ConfigError as error:
        raise RequestRefused(str(error)) from error


def _gamma_arguments(request: ImageRequest) -> dict[str, float]:
    values = {"gamma": request.gamma, "quality": request.quality}
    return {name: value for name, value in values.items() if value is not None}


class TruncationChecker:
    """Reports texts that a text encoder truncates.

    It uses copies of the tokenizers, because those of transformers cannot be used by two threads at once.

    Args:
        pipe: Pipeline with the text encoders.
        arguments: Default arguments of its call.
    """

    def __init__(self, pipe: Any, arguments: Mapping[str, Any]) -> None:
        self._limits = [replace(one, tokenizer=copy.deepcopy(one.tokenizer)) for one in token_limits(pipe, arguments)]
        self._mutex = threading.Lock()

    def warnings(self, request: ImageRequest) -> tuple[str, ...]:
        """Returns one sentence for each text and each encoder that truncates it. The sentences do not quote it."""
        warnings = []
        for field, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt or "")):
            for limit in self._limits:
                with self._mutex:
                    truncated = count_truncated_prompts(limit.tokenizer, limit.tokens, [text])
                if truncated:
                    warnings.append(f"{field}: {limit.name} reads {limit.tokens} tokens and ignores the rest")
        return tuple(warnings)
