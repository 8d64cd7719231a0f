"""Images at different times in one batch: many runs of one attached pipeline, whose denoiser calls merge.

Each run is the stock pipeline with one image, in the caller's thread: a shallow copy with its own scheduler and a
stand-in for the denoiser. Whenever an image is done its place goes to the next run, whatever time that one is at.
Encoding and decoding happen beside the denoiser calls, of several images in one call each.
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
from tpdm.pipelines.compatibility import check_pipe, check_shared
from tpdm.pipelines.probe import default_times
from tpdm.pipelines.registry import find_denoiser, find_entry
from tpdm.policies.tpm import TimePredictionModule
from tpdm.sampling.batching.collate import CallSigner
from tpdm.sampling.batching.denoiser import DenoiserBatcher
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
    """One step of a run of one image.

    Attributes:
        index: of the step, from 1.
        t: where it landed.
        estimate: () -> latents of the finished image as the model sees it now, fp32, in the pipeline's layout.
    """

    index: int
    t: float
    estimate: Callable[[], Tensor]


class BatchedPipeline:
    """Runs of one pipeline that share its network.

    Args:
        pipe: that ``attach`` accepts, on its device; left as it is.
        places: images in flight at once.
        in_order: places go to runs in the order of ``run``, and calls wait until each of them is taken: the same
            runs give the same bits, which a rollout wants and a server does not.

    Raises:
        BackboneError: the pipeline cannot be driven, or keeps things between its steps that runs cannot share.
    """

    def __init__(self, pipe: Any, places: int, in_order: bool = False) -> None:
        check_pipe(pipe)
        check_shared(pipe)
        self.pipe = pipe
        self._copied = clone_pipeline(pipe)
        together = 1 if in_order else places  # who meets at a desk is a matter of luck, and so would be the last bits
        self.texts = TextEncoderBatcher(pipe, together)
        self.decoder = VaeDecoderBatcher(pipe.vae, together) if supports_batched_decoding(pipe) else None
        # For what no desk does: pipelines that encode in a way of their own, decoders that change their dtype.
        self.encoding, self.decoding = FifoLock(), FifoLock()
        self.meeting = DenoiserBatcher(find_denoiser(pipe), places, in_order)

    def run(
        self,
        on_place: Callable[[], None] = lambda: None,
        on_step_end: Callable[[StepInfo], None] = lambda landing: None,
    ) -> BatchedRun:
        """A run to be called once, from a thread of the caller's.

        Args:
            on_place: called when the image gets its place, from any thread; must return at once.
            on_landing: called after every step, from the run's thread; the others wait for it.
        """
        return BatchedRun(self, on_place, on_step_end)

    def own_times(self, steps: int, arguments: Mapping[str, Any]) -> list[float]:
        """``default_times`` of the pipeline, without its network."""
        denoiser = find_denoiser(self.pipe)
        sample = find_entry(denoiser).sample

        def zeros(call: dict[str, Any]) -> DenoiserOutput:
            value = call[sample]
            return DenoiserOutput(
                ([torch.zeros_like(x) for x in value] if isinstance(value, list) else value * 0,), None
            )

        pipe = self.pipe_for()
        pipe.scheduler = copy.deepcopy(pipe.scheduler)
        set_denoiser(pipe, denoiser, make_denoiser_proxy(denoiser, zeros))
        with self.encoding_by_turns():
            return default_times(pipe, steps, arguments)

    def pipe_for(
        self, text: Reservation | None = None, picture: Callable[[], Reservation | None] = lambda: None
    ) -> Any:
        """A copy of the pipeline whose texts and latents go to the desks.

        Args:
            text, picture: what the others wait for, withdrawn when it has been asked; None if they wait for nothing.
        """
        mine = clone_pipeline(self._copied)
        if self.texts.knows:
            vars(mine)["encode_prompt"] = self.texts.at(mine, text)
        if self.decoder is not None:
            vars(mine)["vae"] = self.decoder.at(picture)
        return mine

    def encoding_by_turns(self) -> AbstractContextManager[None]:
        """Held from the start of a run to its first call."""
        return nullcontext() if self.texts.knows else self.encoding

    def close(self, error: BaseException) -> None:
        """Fails all runs at their next step with ``error``; takes the hooks off."""
        self.meeting.close(error)


class BatchedRun:
    """One run; made by ``BatchedPipeline.run``."""

    def __init__(
        self,
        shared: BatchedPipeline,
        on_place: Callable[[], None],
        on_step_end: Callable[[StepInfo], None],
    ) -> None:
        self._shared, self._on_landing = shared, on_step_end
        self._seat = shared.meeting.seat(on_place)
        self._reader = CallSigner(find_entry(find_denoiser(shared.pipe)))
        self._locks = ExitStack()
        self._cohort: PolicyBatchMember | None = None
        self._picture: Reservation | None = None

    def __call__(self, attached: AdaptivePipeline, **arguments: Any) -> AdaptiveOutput:
        """Makes the image.

        Args:
            attached: of the shared pipe (``attach``), with any policy.
            arguments: as ``AdaptivePipeline`` takes them, for one image.
        """
        shared = self._shared
        denoiser, text = find_denoiser(shared.pipe), shared.texts.expect()
        with self._locks:
            self._locks.callback(text.release_reservation)
            self._locks.enter_context(shared.encoding_by_turns())
            try:
                pipe = shared.pipe_for(text, lambda: self._picture)
                set_denoiser(pipe, denoiser, make_denoiser_proxy(denoiser, self._ask))
                policy = self._deciding_together(attached.policy)
                mine = replace(attached, pipe=pipe, policy=policy, watch=lambda s: RecordingSolver(s, self._landed))
                return mine(**arguments)
            finally:
                self._leave()

    def stop(self, error: BaseException) -> None:
        """Makes the run raise ``error`` at its next step; from any thread."""
        self._seat.stop(error)

    def _ask(self, arguments: dict[str, Any]) -> DenoiserOutput:
        self._locks.close()  # the text is encoded: the next run may begin
        self._resign()
        answer, self._cohort = self._seat.ask(self._reader.read(arguments))
        return answer

    def _deciding_together(self, policy: Policy) -> Policy:
        if not isinstance(policy, TimePredictionModule):
            return policy

        def propose(observation: Observation, seeds: Sequence[int] | None) -> Decision:
            cohort, self._cohort = self._cohort, None
            assert cohort is not None  # a step follows a call
            return cohort.propose(policy, observation, seeds)

        mine = shallow_clone(policy)
        vars(mine).update(propose=propose)
        return mine

    def _resign(self) -> None:
        cohort, self._cohort = self._cohort, None
        if cohort is not None:
            cohort.skip()

    def _leave(self) -> None:
        self._resign()
        self._seat.leave()

    def _begin_decoding(self) -> None:
        if self._shared.decoder is None:
            self._locks.enter_context(self._shared.decoding)
        else:
            self._picture = self._shared.decoder.expect()
            self._locks.callback(self._picture.release_reservation)

    def _landed(self, landing: StepInfo) -> None:
        if landing.t == 0:
            self._leave()
        self._on_landing(landing)
        if landing.t == 0:
            self._begin_decoding()


class RecordingSolver:
    """A solver that keeps the latents of one image in fp32, whatever the pipeline's dtype, and says where it lands.

    The pipeline sees them rounded to its own dtype. Where it changes them between steps, its change counts.
    """

    def __init__(self, solver: Solver, on_step_end: Callable[[StepInfo], None]) -> None:
        self._solver, self._on_landing, self._steps = solver, on_step_end, 0

    def init(self, x: Tensor) -> Any:
        """The state: the latents in fp32, and that of the solver."""
        return x.float(), self._solver.init(x.float())

    def step(
        self, x: Tensor, v: Tensor, t_B: Tensor, t_next_B: Tensor, state: Any, active_B: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """As the solver steps."""
        exact, inner = state
        exact = torch.where(exact.to(x.dtype) == x, exact, x.float())
        wide = v.float()
        x_next, inner = self._solver.step(exact, wide, t_B, t_next_B, inner, active_B)
        self._steps += 1

        def estimate() -> Tensor:
            # One step of the solver without its history, all the way.
            return self._solver.step(exact, wide, t_B, torch.zeros_like(t_B), self._solver.init(exact))[0]

        self._on_landing(StepInfo(self._steps, max(t_next_B.tolist()), estimate))
        return x_next.to(v.dtype), (x_next, inner)
