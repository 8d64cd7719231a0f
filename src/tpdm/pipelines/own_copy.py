"""Copies of a pipeline that share its parts, for calls at the same time."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any


def own_copy(pipe: Any) -> Any:
    """The same parts in a pipeline of its own: what a call notes down on it is seen by no other call.

    Args:
        pipe: left as it is. Copies of a copy are made in no time, for it knows its device.
    """
    mine = copy.copy(pipe)
    cls: Any = type(pipe)
    if "_on_device" not in vars(mine):
        mine.__class__ = _on_one_device(cls)
        vars(mine)["_on_device"] = pipe.device
        mine.set_progress_bar_config(disable=True)
    return mine


@cache
def _on_one_device(cls: Any) -> Any:
    """The pipeline class, which knows its device.

    diffusers looks for hooks of offloading in every module of every part, six times in a call: 4 ms for tinyworld, in
    which no other run can do anything. Offloaded pipelines are refused before.
    """
    known = property(lambda self: vars(self)["_on_device"])
    return type(cls.__name__, (cls,), {"_execution_device": known, "device": known, "__module__": cls.__module__})
