"""``driven``: one call of a pipeline under a policy, with exclusive use of its denoiser.

During the call the pipe has another scheduler and its denoiser has hooks. So driven calls of one denoiser wait for each
other. A stock call from another thread is refused.
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
from tpdm.core.file_errors import first_line
from tpdm.core.stepper import Stepper
from tpdm.core.types import Features
from tpdm.pipelines.active_rows import ActiveRows, dependent_calls
from tpdm.pipelines.compatibility import PipelineSpec
from tpdm.pipelines.feature_hooks import FeatureHooks
from tpdm.pipelines.scheduler import AdaptiveScheduler


class _Lock:
    """Lock of one denoiser, with the thread that holds it."""

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
    make_hooks: Callable[[], FeatureHooks] | None,
    guided: bool,
) -> Iterator[tuple[AdaptiveScheduler, ActiveRows]]:
    """Sets the scheduler and the hooks of one call, and always restores the pipe's own scheduler.

    Waits while another thread drives the denoiser.

    Args:
        pipe: The pipeline.
        spec: Spec of the pipeline.
        make_stepper: (device) -> new stepper.
        make_hooks: () -> feature hooks on the denoiser. None if the policy reads no features.
        guided: Whether a call of the denoiser may contain unconditional rows in addition to conditional ones.

    Raises:
        BackboneError: This thread already drives the denoiser, the scheduler was replaced during the call, or the
            denoiser failed after images had left the call.
    """
    denoiser = spec.denoiser
    with _exclusive(denoiser), ExitStack() as stack:
        hooks = None if make_hooks is None else stack.enter_context(make_hooks())

        def read_features(stepper: Stepper) -> Features | None:
            return None if hooks is None else hooks.features(len(stepper.active_rows))

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
            if not rows.failed_cut or isinstance(error, torch.OutOfMemoryError):
                raise
            raise dependent_calls(denoiser, f"an error ({first_line(error)})") from error
        if pipe.scheduler is not scheduler:
            raise BackboneError(
                f"A {type(pipe.scheduler).__name__} was put into the pipeline during the call. The scheduler must stay "
                "the same. Replace it between two calls."
            )


@contextmanager
def _exclusive(denoiser: nn.Module) -> Iterator[None]:
    """Waits for other threads that drive this network.

    Raises:
        BackboneError: This thread already drives it.
    """
    with _LOCKS_CHANGE:
        lock = _LOCKS.setdefault(denoiser, _Lock())
    if lock.thread == threading.get_ident():
        raise BackboneError(
            f"The pipeline was called while the same thread generates images with its {type(denoiser).__name__}. Calls "
            "must follow each other. Do not call it from a callback."
        )
    with lock.mutex:
        lock.thread = threading.get_ident()
        try:
            yield
        finally:
            lock.thread = None
