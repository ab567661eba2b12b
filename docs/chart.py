"""Draw the README's picture from published records: what dropping blocks gains, and what it costs.

    python docs/chart.py -o docs/gain-and-loss.svg

The left half reads a sweep's folder (speed). The right half reads the records of healing one model.
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
from bench.studies.heal_study import read_records

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
SETS = {(12, 13, 14): "a tenth", tuple(range(13, 19)): "a fifth"}  # of SmolLM2's blocks


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


def draw_quality(axes: Any, records: Path, case: str, text: str, model: str) -> None:
    """Draw perplexity without each set of blocks, before and after a healing: the newest record of each set."""
    newest = {tuple(r["dropped"]): r for r in read_records(records) if r["case"] == case and "judged" in r}
    judged = {blocks: newest[blocks]["judged"][text] for blocks in sorted(newest, key=len) if blocks in SETS}
    rows = [("dense", next(iter(judged.values()))["dense"], GREY)]
    for blocks, perplexity in judged.items():
        rows += [(f"without {SETS[blocks]}", perplexity["pruned"], ORANGE), ("healed", perplexity["healed"], BLUE)]
    bars = axes.barh(range(len(rows)), [value for _, value, _ in rows], color=[c for *_, c in rows], height=0.62)
    axes.set_yticks(range(len(rows)), [words for words, *_ in rows])
    for bar, (words, value, _) in zip(bars, rows, strict=True):
        ratio = "" if words == "dense" else f"  {value / rows[0][1]:.2f}x"
        axes.text(value, bar.get_y() + bar.get_height() / 2, f" {value:.1f}{ratio}", va="center")
    finish(axes, f"Lost: perplexity on WikiText-2, and after ten minutes of healing\n{model}", 1.3 * rows[-2][1])


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
    parser.add_argument("--quality", type=Path, default=Path("bench/published/recovery/smollm2.jsonl"))
    parser.add_argument("--quality-case", default="all:10min")
    parser.add_argument("--quality-text", default="wiki.test.raw")
    parser.add_argument("--quality-words", default="SmolLM2-135M-Instruct, 30 blocks, healed on two cores of a CPU")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11.6, 3.1), width_ratios=(1, 1.35), facecolor="white")
        draw_speed(left, options.speed, options.speed_words)
        draw_quality(right, options.quality, options.quality_case, options.quality_text, options.quality_words)
        figure.tight_layout(w_pad=3)
        figure.savefig(options.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
