"""Objects that are found by name: models that come with the package, and functions of the user."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

BUILTINS = {"tinyworld": "tpdm.tinyworld.builtin"}


class Builtin(Protocol):
    """What the module of a built-in model provides.

    Attributes:
        WEIGHTS: Folder with ``pipeline/``, ``reward/`` and ``tpm/``.
        CALL_DEFAULTS: Arguments of the pipeline call that apply if the caller gives none.
    """

    WEIGHTS: Path
    CALL_DEFAULTS: Mapping[str, Any]

    def make_captions(self, count: int) -> list[str]:
        """Return ``count`` different prompts. A longer list starts with the shorter one."""
        ...


def find_builtin(name: str | Path) -> Builtin | None:
    """Find a built-in model by name.

    Args:
        name: Name of a model, such as "tinyworld".

    Returns:
        Its module, or None if no built-in model has that name.

    Example:
        >>> find_builtin("tinyworld").CALL_DEFAULTS["guidance_scale"]
        1.0
        >>> find_builtin("some/model") is None
        True
    """
    module = BUILTINS.get(str(name))
    return None if module is None else cast("Builtin", importlib.import_module(module))


def import_function(place: str) -> Callable[..., Any]:
    """Import a function by name, also from the current folder.

    The import runs the module, so that the name must come from someone you trust.

    Args:
        place: "package.module:function".

    Raises:
        ValueError: The name has another form, the import fails, or the object is not callable. The message is a
            clause that follows "which".

    Example:
        >>> import_function("math:hypot")(3, 4)
        5.0
    """
    module, colon, attribute = place.partition(":")
    if not (module and colon and attribute):
        raise ValueError("is not package.module:function")
    # At the end of the path, so that a file here hides no installed module. A console script does not search the
    # current folder.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        importlib.invalidate_caches()
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot be imported ({type(error).__name__}: {reason})") from error
    if not callable(function):
        raise ValueError(f"is a {type(function).__name__} and not a function")
    return cast("Callable[..., Any]", function)
