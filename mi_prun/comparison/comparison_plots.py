"""The pictures of a comparison: quality against ratio for each method, and the heat map of segment costs, as SVG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mi_prun.comparison.comparison_row import Row
from mi_prun.figure import new_figure, svg_of

# Okabe and Ito's palette, told apart by colour-blind readers; the marker says it a second time.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "os^Dv<>PX*"
FAR_OFF = 2.0  # over the best at the same number of blocks


def quality_svg(rows: Sequence[Row]) -> str:
    """Draw perplexity over dense, a line for each method, the best first. A line far off ends at the picture's edge."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    figure, axes = new_figure(8.6, 4.6)
    values = {(row.label, len(row.dropped)): row.perplexity / row.dense_perplexity for row in rows}
    best = {k: min(value for (_, other), value in values.items() if other == k) for _, k in values}
    order = sorted(dict.fromkeys(row.label for row in rows), key=lambda label: _last(values, label))
    for number, label in enumerate(order):
        points = sorted(
            (len(r.dropped) / r.num_blocks, r.perplexity / r.dense_perplexity) for r in rows if r.label == label
        )
        axes.plot(
            *zip(*points, strict=True),
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            ls="-" if number < len(COLOURS) else "--",
            lw=1.3,
            ms=5,
            label=label,
        )
    axes.axhline(1, color="#777777", lw=1, ls=(0, (2, 3)))
    axes.set_yscale("log")
    shown = [value for (_, k), value in values.items() if value <= FAR_OFF * best[k]]
    axes.set_ylim(0.97 * min(1.0, *shown), 1.05 * max(1.0, *shown))
    axes.yaxis.set_major_locator(MaxNLocator(7))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.set_xlabel("share of blocks dropped")
    axes.set_ylabel("perplexity, x dense (down: better)")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return svg_of(figure)


def _last(values: dict[tuple[str, int], float], label: str) -> float:
    """Return the method's figure at its largest number of blocks."""
    return values[label, max(k for name, k in values if name == label)]


def segments_svg(cost_nats: NDArray[np.float64]) -> str:
    """Draw cost[i, j] of dropping blocks i..j-1 as a heat map: the first dropped block down, the last one across."""
    figure, axes = new_figure(5.6, 4.8)
    shown = np.where(np.triu(np.ones_like(cost_nats), 1) > 0, cost_nats, np.nan)[:-1, 1:]
    image = axes.imshow(shown, cmap="cividis", origin="upper")
    axes.set_xlabel("last dropped block (0-based)")
    axes.set_ylabel("first dropped block (0-based)")
    figure.colorbar(image, ax=axes, label="segment cost, nats of mutual information")
    return svg_of(figure)
