"""One call of a pipeline that a policy drives: nobody else uses its network meanwhile, and the pipe is given back.

During such a call the pipe has another scheduler, and its denoiser has hooks. So calls of one denoiser wait for each
other, and a stock call from another thread, which would meet both, is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from tpdm.core.errors import BackboneError
from tpdm.core.stepper import Stepper
from tpdm.core.types import Features
from tpdm.pipelines.active_rows import ActiveRows, dependent_calls
from tpdm.pipelines.compatibility import PipelineSpec
from tpdm.pipelines.feature_hooks import FeatureHooks
from tpdm.pipelines.scheduler import AdaptiveScheduler


class _Lock:
    """Of one denoiser; knows which thread holds it."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.thread: int | None = None


_LOCKS: WeakKeyDictionary[nn.Module, _Lock] = WeakKeyDictionary()
_LOCKS_CHANGE = threading.Lock()


@contextmanager
def driven(
    pipe: Any,
    spec: PipelineSpec,
    make_stepper: Callable[[str | torch.device | None], Stepper],
    make_taps: Callable[[], FeatureHooks] | None,
    guided: bool,
) -> Iterator[tuple[AdaptiveScheduler, ActiveRows]]:
    """Scheduler and hooks of one call; the pipe gets its own scheduler back whatever happens.

    Waits while another thread drives the denoiser.

    Args:
        pipe: the pipeline.
        spec: what is resolved of the pipeline.
        make_stepper: (device) -> a stepper at its start.
        make_taps: () -> taps on the denoiser; None where the policy reads no features.
        guided: whether a call of the denoiser may hold an unconditional row beside the conditional one.

    Raises:
        BackboneError: this thread drives the denoiser already, the scheduler was replaced during the call, or the
            denoiser failed once images had left the call.
    """
    denoiser = spec.denoiser
    with _alone(denoiser), ExitStack() as stack:
        taps = None if make_taps is None else stack.enter_context(make_taps())

        def read_features(stepper: Stepper) -> Features | None:
            return None if taps is None else taps.features(len(stepper.active_rows))

        def read_active() -> tuple[int, list[int]]:
            return len(scheduler.stepper.steps), scheduler.stepper.active_rows

        own = pipe.scheduler
        scheduler = AdaptiveScheduler.driving(make_stepper, read_features, spec.time_mapping, own)
        rows = stack.enter_context(ActiveRows(denoiser, read_active, guided))
        stack.callback(setattr, pipe, "scheduler", own)
        pipe.scheduler = scheduler
        try:
            yield scheduler, rows
        except (RuntimeError, IndexError, ValueError) as error:
            if not rows.failed_cut or isinstance(error, torch.OutOfMemoryError | BackboneError):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise dependent_calls(denoiser, f"an error ({reason})") from error
        if pipe.scheduler is not scheduler:
            raise BackboneError(
                f"got a {type(pipe.scheduler).__name__} put into the pipeline during the call, expected the scheduler "
                "to stay: replace it between two calls."
            )


@contextmanager
def _alone(denoiser: nn.Module) -> Iterator[None]:
    """Waits for other threads that drive this network.

    Raises:
        BackboneError: this thread drives it already.
    """
    with _LOCKS_CHANGE:
        lock = _LOCKS.setdefault(denoiser, _Lock())
    if lock.thread == threading.get_ident():
        raise BackboneError(
            f"got a call of a pipeline whose {type(denoiser).__name__} makes other images in the same thread, expected "
            "one call after the other: do not call it from a callback."
        )
    with lock.mutex:
        lock.thread = threading.get_ident()
        try:
            yield
        finally:
            lock.thread = None
