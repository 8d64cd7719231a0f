"""Style of all plots: sizes and accessible colors. Plots are rendered as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

Rows = Sequence[Mapping[str, Any]]

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/); no plot relies on color only.
LEARNED, FIXED = "#d55e00", "#0072b2"
OTHERS = ("#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
MARKERS = ("s", "^", "v", "P", "X")
INK, FAINT = "#222222", "#8a8a8a"

_RC = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 9.5,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "tpdm",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def render(
    draw: Callable[[Any], None],
    xlabel: str,
    ylabel: str,
    size: tuple[float, float] = (5.0, 3.4),
    file_format: str = "svg",
) -> str:
    """Draw a plot and return it as a data URI. The same data give the same bytes.

    The function does not use pyplot and does not change global settings of matplotlib.

    Args:
        draw: Function that draws on matplotlib axes.
        xlabel: Label of the horizontal axis.
        ylabel: Label of the vertical axis.
        size: Width and height in inches.
        file_format: ``svg`` or ``png``.
    """
    with rc_context(_RC):
        figure = Figure(figsize=size, facecolor="white")
        axes = figure.add_subplot()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        draw(axes)
        buffer = io.BytesIO()
        metadata = {"Date": None} if file_format == "svg" else None
        figure.savefig(buffer, format=file_format, dpi=160, metadata=metadata)
    return data_uri(buffer.getvalue(), {"svg": "image/svg+xml", "png": "image/png"}[file_format])


def data_uri(content: bytes, kind: str) -> str:
    """Return the content as a data URI.

    Example:
        >>> data_uri(b"abc", "text/plain")
        'data:text/plain;base64,YWJj'
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def column(rows: Rows, key: str) -> NDArray[np.float64]:
    """Return the value of each row as an array."""
    return np.asarray([row[key] for row in rows], dtype=np.float64)
