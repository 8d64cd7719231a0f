"""Models that come with the package, found by name: the one table through which the rest of tpdm reaches them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

BUILTINS = {"tinyworld": "tpdm.tinyworld.builtin"}


class Builtin(Protocol):
    """What the module of a built-in model offers.

    Attributes:
        WEIGHTS: folder with ``pipeline/``, ``reward/`` and ``tpm/``.
        CALL_DEFAULTS: arguments of the pipeline's call where the caller gives none.
    """

    WEIGHTS: Path
    CALL_DEFAULTS: Mapping[str, Any]

    def make_captions(self, count: int) -> list[str]:
        """``count`` different prompts; a longer list begins with a shorter one."""
        ...


def find_builtin(name: str | Path) -> Builtin | None:
    """The built-in model of that name, or None.

    Example:
        >>> find_builtin("tinyworld").CALL_DEFAULTS["guidance_scale"]
        1.0
        >>> find_builtin("some/model") is None
        True
    """
    module = BUILTINS.get(str(name))
    return None if module is None else cast("Builtin", import_module(module))
