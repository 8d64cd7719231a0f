"""One look for all plots: sizes, colors that every eye can tell apart, and the way to a data URI."""

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

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/); no plot tells things apart by color alone.
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
    """``draw(axes)`` on a white figure, as a data URI; the same data give the same bytes.

    No global state of matplotlib is touched: neither pyplot nor the caller's settings.
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
    """Bytes as an address that needs no request."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def column(rows: Rows, key: str) -> NDArray[np.float64]:
    """One number per row."""
    return np.asarray([row[key] for row in rows], dtype=np.float64)
