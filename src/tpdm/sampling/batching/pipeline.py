"""Continuous batching: runs of one attached pipeline at different times share the batches of its denoiser.

Each run is the stock pipeline with one image, in a thread of its own. It uses a shallow copy of the pipeline with its
own scheduler and a proxy of the denoiser. When an image has made its last step, the next run gets its slot. Prompts
are encoded and latents are decoded in micro-batches, in parallel to the denoiser batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tpdm.core.solvers import Solver
from tpdm.core.types import Decision, Observation, Policy
from tpdm.pipelines.attach import AdaptiveOutput, AdaptivePipeline
from tpdm.pipelines.compatibility import check_not_offloaded, check_pipe
from tpdm.pipelines.probe import default_times
from tpdm.pipelines.registry import find_denoiser, find_entry
from tpdm.policies.tpm import TimePredictionModule
from tpdm.sampling.batching.collate import CallSigner
from tpdm.sampling.batching.denoiser import DenoiserBatcher, FifoScheduler, Slot, SlotScheduler
from tpdm.sampling.batching.micro_batcher import FifoLock, Reservation
from tpdm.sampling.batching.policy import PolicyBatchMember
from tpdm.sampling.batching.proxy import (
    DenoiserOutput,
    clone_pipeline,
    make_denoiser_proxy,
    set_denoiser,
    shallow_clone,
)
from tpdm.sampling.batching.text_encoder import TextEncoderBatcher
from tpdm.sampling.batching.vae_decoder import VaeDecoderBatcher, supports_batched_decoding


@dataclass(frozen=True)
class StepInfo:
    """One step of a run.

    Attributes:
        index: Number of the step, from 1.
        t: Time after the step, in [0, 1).
        estimate: () -> latents of the finished image as the model predicts it now, fp32, in the pipeline's layout.
    """

    index: int
    t: float
    estimate: Callable[[], Tensor]


class BatchedPipeline:
    """Runs of one pipeline that share its network.

    Args:
        pipe: Pipeline that ``attach`` accepts, on its device. It is not changed.
        num_slots: Maximum number of images in one denoiser batch, at least 1. Not used with a ``scheduler``.
        deterministic: Whether slots are granted in the order of ``run`` and each batch waits for all of them. The same
            runs then give the same bits, which rollouts need and a server does not.
        scheduler: Scheduler of the slots. The default grants them first come, first served.

    Raises:
        BackboneError: The pipeline cannot be driven, or keeps state between its steps that runs cannot share.
    """

    def __init__(
        self, pipe: Any, num_slots: int, deterministic: bool = False, scheduler: SlotScheduler | None = None
    ) -> None:
        check_pipe(pipe)
        check_not_offloaded(pipe)
        self.pipe = pipe
        self._copied = clone_pipeline(pipe)
        # Which runs share a micro-batch depends on timing, and so would the last bits of a deterministic run.
        batch_size = 1 if deterministic else num_slots
        self.text_encoder = TextEncoderBatcher(pipe, batch_size)
        self.vae_decoder = VaeDecoderBatcher(pipe.vae, batch_size) if supports_batched_decoding(pipe) else None
        # For pipelines with an encoding of their own, and for decoders that change their dtype.
        self.encoding, self.decoding = FifoLock(), FifoLock()
        self.denoiser = DenoiserBatcher(find_denoiser(pipe), deterministic)
        self._deterministic = deterministic
        self._scheduler = FifoScheduler(self.denoiser, num_slots) if scheduler is None else scheduler

    def run(self, on_step_end: Callable[[StepInfo], None] = lambda step: None, key: str = "") -> BatchedRun:
        """Returns a run. Call it once, from a thread of its own.

        Args:
            on_step_end: Called after every step, from the thread of the run. The other runs wait for it.
            key: Name of the run, for the scheduler.
        """
        slot = Slot(self.denoiser, self._scheduler, key)
        if self._deterministic:
            slot.request()
        return BatchedRun(self, slot, on_step_end)

    def own_times(self, steps: int, arguments: Mapping[str, Any]) -> list[float]:
        """Returns ``default_times`` of the pipeline without calling its network.

        Args:
            steps: Number of steps of the schedule, at least 1.
            arguments: Arguments of the pipeline call that its schedule depends on, such as the size.
        """
        denoiser = find_denoiser(self.pipe)
        sample = find_entry(denoiser).sample

        def zeros(call: dict[str, Any]) -> DenoiserOutput:
            value = call[sample]
            return DenoiserOutput(
                ([torch.zeros_like(x) for x in value] if isinstance(value, list) else value * 0,), None
            )

        pipe = self.clone_pipe()
        pipe.scheduler = copy.deepcopy(pipe.scheduler)
        set_denoiser(pipe, denoiser, make_denoiser_proxy(denoiser, zeros))
        with self.encoding_lock():
            return default_times(pipe, steps, arguments)

    def clone_pipe(
        self, text: Reservation | None = None, latents: Callable[[], Reservation | None] = lambda: None
    ) -> Any:
        """Returns a copy of the pipeline whose prompts and latents go to the micro-batchers.

        Args:
            text: Reservation at the text encoder, released by the first call. None waits for nobody.
            latents: Returns the reservation at the VAE decoder, released by the first call.
        """
        pipe = clone_pipeline(self._copied)
        if self.text_encoder.supported:
            vars(pipe)["encode_prompt"] = self.text_encoder.make_encode_prompt(pipe, text)
        if self.vae_decoder is not None:
            vars(pipe)["vae"] = self.vae_decoder.make_vae(latents)
        return pipe

    def encoding_lock(self) -> AbstractContextManager[None]:
        """Returns the lock that a run holds until its first denoiser call."""
        return nullcontext() if self.text_encoder.supported else self.encoding

    def close(self, error: BaseException) -> None:
        """Fails all runs with ``error`` at their next step and removes the hooks from the denoiser."""
        self.denoiser.close(error)


class BatchedRun:
    """Run of one image. Made by ``BatchedPipeline.run``.

    Attributes:
        slot: Its place in the denoiser batches.
    """

    def __init__(self, shared: BatchedPipeline, slot: Slot, on_step_end: Callable[[StepInfo], None]) -> None:
        self.slot = slot
        self._shared, self._on_step_end = shared, on_step_end
        self._signer = CallSigner(find_entry(find_denoiser(shared.pipe)))
        self._locks = ExitStack()
        self._member: PolicyBatchMember | None = None
        self._latents: Reservation | None = None

    def __call__(self, attached: AdaptivePipeline, **arguments: Any) -> AdaptiveOutput:
        """Makes the image.

        Args:
            attached: Result of ``attach`` on the shared pipeline, with any policy.
            arguments: Arguments of ``AdaptivePipeline.__call__`` for one image.
        """
        shared = self._shared
        denoiser, text = find_denoiser(shared.pipe), shared.text_encoder.reserve()
        with self._locks:
            self._locks.callback(text.release)
            self._locks.enter_context(shared.encoding_lock())
            try:
                pipe = shared.clone_pipe(text, lambda: self._latents)
                set_denoiser(pipe, denoiser, make_denoiser_proxy(denoiser, self._compute))
                policy = self._batched_policy(attached.policy)
                clone = replace(attached, pipe=pipe, policy=policy, watch=lambda s: RecordingSolver(s, self._end_step))
                return clone(**arguments)
            finally:
                self._skip_decision()
                self.slot.release()

    def abort(self, error: BaseException) -> None:
        """Makes the run raise ``error`` at its next step. May be called from any thread."""
        self.slot.abort(error)

    def _compute(self, arguments: dict[str, Any]) -> DenoiserOutput:
        self._locks.close()  # the prompt is encoded: the next run may begin
        self._skip_decision()
        output, self._member = self.slot.compute(self._signer.sign(arguments))
        return output

    def _batched_policy(self, policy: Policy) -> Policy:
        if not isinstance(policy, TimePredictionModule):
            return policy

        def propose(observation: Observation, seeds: Sequence[int] | None) -> Decision:
            member, self._member = self._member, None
            assert member is not None  # a step follows a call
            return member.propose(policy, observation, seeds)

        clone = shallow_clone(policy)
        vars(clone).update(propose=propose)
        return clone

    def _skip_decision(self) -> None:
        member, self._member = self._member, None
        if member is not None:
            member.skip()

    def _begin_decoding(self) -> None:
        if self._shared.vae_decoder is None:
            self._locks.enter_context(self._shared.decoding)
        else:
            self._latents = self._shared.vae_decoder.reserve()
            self._locks.callback(self._latents.release)

    def _end_step(self, step: StepInfo) -> None:
        if step.t == 0:
            self._skip_decision()
            self.slot.release(finished=True)
        self._on_step_end(step)
        if step.t == 0:
            self._begin_decoding()


class RecordingSolver:
    """Solver that keeps the latents of one image in fp32 and reports its steps.

    The pipeline gets the latents in its own dtype. If it changes them between steps, the solver uses the changed ones.

    Args:
        solver: Solver that makes the steps.
        on_step_end: Called after every step.
    """

    def __init__(self, solver: Solver, on_step_end: Callable[[StepInfo], None]) -> None:
        self._solver, self._on_step_end, self._steps = solver, on_step_end, 0

    def init(self, x: Tensor) -> Any:
        """Returns the state: the latents in fp32, and the state of the inner solver."""
        return x.float(), self._solver.init(x.float())

    def step(
        self, x: Tensor, v: Tensor, t_B: Tensor, t_next_B: Tensor, state: Any, active_B: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Makes one step of the inner solver in fp32. See ``Solver.step``."""
        exact, inner = state
        exact = torch.where(exact.to(x.dtype) == x, exact, x.float())
        velocity = v.float()
        x_next, inner = self._solver.step(exact, velocity, t_B, t_next_B, inner, active_B)
        self._steps += 1

        def estimate() -> Tensor:
            # One step down to t = 0, without the history of the solver.
            return self._solver.step(exact, velocity, t_B, torch.zeros_like(t_B), self._solver.init(exact))[0]

        self._on_step_end(StepInfo(self._steps, max(t_next_B.tolist()), estimate))
        return x_next.to(v.dtype), (x_next, inner)
