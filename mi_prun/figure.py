"""Make matplotlib figures without a display, and turn them into SVG text."""

from __future__ import annotations

import io
from typing import Any


def new_figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """Return a figure and its axes: one, or a flat list. width, height: inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes if len(axes) > 1 else axes[0]


def svg_of(figure: Any, *, salt: str = "mi-prun", transparent: bool = False) -> str:
    """Return a figure as SVG, text as text. The same figure and salt give the same bytes; ids depend on the salt."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(out, format="svg", transparent=transparent, metadata={"Date": None})
    return out.getvalue()
