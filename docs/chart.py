"""Draw the README's picture from published records: what dropping blocks gains, and what it costs.

    python docs/chart.py -o docs/gain-and-loss.svg

The left half reads a sweep's folder (speed). The right half reads the selection study's records of one model and text.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

from bench.records.results import read_results
from bench.studies.selection_group import Group
from bench.studies.selection_report import read_groups

INK, GREY, BLUE, ORANGE = "#1f2328", "#8c959f", "#0969da", "#bc4c00"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mi-prun",
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": INK,
    "ytick.color": INK,
}
# Methods of the right half, as the study labels them, and their words.
METHODS = {
    "hybrid": "MI-PRUN, default",
    "greedy-loss:0": "greedy search (SLEB)",
    "bi:0": "cosine (ShortGPT)",
    "mi-prun:0": "MI only, as published",
    "tail-but-last:0": "last blocks",
}


def draw_speed(axes: Any, folder: Path, model: str) -> None:
    """Draw tokens/s over the dense model's, one bar for each ratio, at one request in flight."""
    run = read_results(folder).runs[0]
    points = run.under(run.main)
    dense = points[0]
    labels = [f"{point.arm.blocks.block_ratio:.0%} dropped" if point is not dense else "dense" for point in points]
    speeds = [point.speed.output_tokens_per_s for point in points]
    bars = axes.barh(labels, speeds, color=[GREY] + [BLUE] * (len(points) - 1), height=0.62)
    for bar, point, speed in zip(bars, points, speeds, strict=True):
        ratio = "" if point is dense else f"  {point.paired.output_tokens_per_s.ratio:.2f}x"
        axes.text(speed, bar.get_y() + bar.get_height() / 2, f" {speed:.0f}{ratio}", va="center")
    finish(axes, f"Gained: tokens/s\n{model}", max(speeds) * 1.3)


def draw_quality(axes: Any, group: Group, k: int, model: str) -> None:
    """Draw perplexity without k blocks, one bar for each method, and what each method costs in forward passes."""
    rows = [("dense", group.dense_perplexity, None)]
    for label, words in METHODS.items():
        cell = group.cells[label, k]
        mean = sum(group.perplexity(row) for row in cell) / len(cell)
        rows.append((words, mean, group.passes(label, k)))
    values = [value for _, value, _ in rows]
    colours = [GREY, BLUE] + [ORANGE] * (len(rows) - 2)
    bars = axes.barh([words for words, _, _ in rows], values, color=colours, height=0.62)
    for bar, (_, value, passes) in zip(bars, rows, strict=True):
        cost = "" if passes is None else f"  ({passes:.0f} passes)" if passes >= 1 else "  (under 1 pass)"
        axes.text(value, bar.get_y() + bar.get_height() / 2, f" {value:.1f}{cost}", va="center")
    finish(
        axes,
        f"Lost: perplexity without {k} of {group.num_blocks} blocks (cost of choosing)\n{model}",
        max(values) * 1.45,
    )


def finish(axes: Any, title: str, limit: float) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlim(0, limit)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", type=Path, default=Path("bench/published/sweep/llama-3.1-8b"))
    parser.add_argument("--speed-words", default="Llama-3.1-8B's shape on one H100, 1 request in flight")
    parser.add_argument("--quality", type=Path, default=Path("bench/published/selection"))
    parser.add_argument("--quality-model", default="wiki-24")
    parser.add_argument("--quality-text", default="wiki")
    parser.add_argument("--quality-words", default="a 24-block Qwen3 trained for this project, Wikipedia")
    parser.add_argument("-k", type=int, default=6, help="blocks dropped in the right half")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    groups = read_groups(options.quality)
    group = next(g for g in groups if (g.model, g.text) == (options.quality_model, options.quality_text))
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11.6, 3.1), width_ratios=(1, 1.35), facecolor="white")
        draw_speed(left, options.speed, options.speed_words)
        draw_quality(right, group, options.k, options.quality_words)
        figure.tight_layout(w_pad=3)
        figure.savefig(options.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
