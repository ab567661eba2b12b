"""The pictures of the report, as SVG that takes its colours from the page (light, dark, print).

Okabe and Ito's palette, told apart by colour-blind readers; shape and text say everything a second time.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from typing import Any

from bench.summary import Row

# Each is replaced by a variable of the page's style sheet.
INK, BLUE, VERMILION = "#123456", "#0072b2", "#d55e00"
VARIABLES = {INK: "currentColor", BLUE: "var(--blue)", VERMILION: "var(--red)"}
CELL, GAP, LABEL, MAP_WIDTH = 22, 3, 60, 640
MIB = 2**20


def label_of(row: Row) -> str:
    return f"{row.block_ratio:.0%}" if row.dropped else "dense"


def quality_speed_svg(rows: Sequence[Row], run: str) -> str:
    """Quality against speed, both over the dense model's; each ratio a point, its whiskers the slowest and fastest
    round. Empty where nothing measured quality.
    """
    shown = [row for row in rows if row.x_perplexity is not None]
    if len(shown) < 2:
        return ""
    figure, axes = _figure(6.4, 4.2)
    x = [row.x_output_tokens_per_s for row in shown]
    y = [row.x_perplexity or 0.0 for row in shown]
    axes.axhline(1, color=INK, alpha=0.3, lw=1, ls=(0, (2, 3)))
    axes.axvline(1, color=INK, alpha=0.3, lw=1, ls=(0, (2, 3)))
    axes.plot(x, y, color=BLUE, lw=1.4, alpha=0.45, zorder=2)
    for row, px, py in zip(shown, x, y, strict=True):
        colour, marker = (BLUE, "o") if row.dropped else (VERMILION, "s")
        axes.plot([row.x_low, row.x_high], [py, py], color=colour, lw=1.6, alpha=0.7, zorder=2, solid_capstyle="butt")
        axes.plot(px, py, color=colour, marker=marker, ms=9, zorder=3)
        axes.annotate(
            label_of(row), (px, py), xytext=(0, 11), textcoords="offset points", ha="center", weight="bold", color=INK
        )
    axes.set_xlabel("output tokens/s, × dense  (right: faster)")
    axes.set_ylabel("perplexity, × dense  (down: better)")
    axes.margins(x=0.1, y=0.16)
    return _svg(figure, "Perplexity against output tokens per second, both relative to the dense model", run)


def memory_svg(rows: Sequence[Row], run: str) -> str:
    """Weights in MiB and KV cache in tokens, a bar for each model."""
    figure, (left, right) = _figure(6.4, 0.9 + 0.42 * len(rows), columns=2)
    labels = [label_of(row) for row in rows]
    colours = [BLUE if row.dropped else VERMILION for row in rows]
    columns = (
        (left, [row.weight_bytes / MIB for row in rows], [row.x_weight_bytes for row in rows], "weights, MiB"),
        (right, [float(row.kv_tokens) for row in rows], [row.x_kv_tokens for row in rows], "KV cache, tokens"),
    )
    for axes, values, ratios, title in columns:
        bars = axes.barh(range(len(rows)), values, color=colours, height=0.62)
        texts = [
            f"{value:,.{1 if value < 100 else 0}f}  ({ratio:.2f}×)" for value, ratio in zip(values, ratios, strict=True)
        ]
        axes.bar_label(bars, texts, padding=4, color=INK, fontsize=9.5)
        axes.set_yticks(range(len(rows)), labels if axes is left else [""] * len(rows))
        axes.invert_yaxis()
        axes.set_xlim(0, max(values) * 1.55)
        axes.set_xticks([])
        axes.set_title(title, loc="left", fontsize=11, color=INK)
        axes.tick_params(axis="y", length=0)
        axes.spines["bottom"].set_visible(False)
    return _svg(figure, "Weight MiB and KV cache tokens of each model", run)


def _style() -> Any:
    """In force while a figure is made and while it is drawn: matplotlib makes ticks late."""
    from matplotlib import rc_context

    style: dict[str, Any] = {f"{part}.color": INK for part in ("text", "xtick", "ytick")}
    style |= {"axes.labelcolor": INK, "axes.edgecolor": INK, "font.size": 11, "svg.fonttype": "none"}
    return rc_context(style)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns)
    for each in axes if columns > 1 else [axes]:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any, title: str, run: str) -> str:
    """Without XML prologue and fixed size, in the page's colours, text as text, with a name for screen readers.

    Ids are kept only where they are referred to, and differ between pictures: several stand in one page.
    """
    from matplotlib import rc_context

    out = io.StringIO()
    with _style(), rc_context({"svg.hashsalt": f"{title} {run}"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None})
    text = out.getvalue()
    body = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", body)
    head, _, rest = body.partition(">")
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", f"{head}>{rest}")
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, variable)
    return body.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def block_map_svg(rows: Sequence[Row], num_blocks: int) -> str:
    """A line for each model, a cell for each of the dense model's blocks: filled is kept, crossed is dropped.

    Deep models get narrower cells, down to what a cross can be seen in.
    """
    cell = max(8, min(CELL, (MAP_WIDTH - LABEL) // num_blocks - GAP))
    step, width = cell + GAP, LABEL + num_blocks * (cell + GAP)
    height, arm = (len(rows) + 1) * (CELL + GAP), cell * 0.27
    parts = [
        f'<svg role="img" aria-label="Which blocks are dropped at each ratio" viewBox="0 0 {width} {height}" '
        f'style="max-width:{width}px" xmlns="http://www.w3.org/2000/svg" font-size="12" fill="currentColor">'
    ]
    for line, row in enumerate(rows):
        y = line * (CELL + GAP)
        parts.append(f'<text x="0" y="{y + 16}">{label_of(row)}</text>')
        for block in range(num_blocks):
            x, gone = LABEL + block * step, block in row.dropped
            colour, fill = ("var(--red)", "none") if gone else ("var(--blue)", "var(--blue)")
            parts.append(
                f'<g stroke="{colour}"><title>block {block}: {"dropped" if gone else "kept"}</title>'
                f'<rect x="{x + 0.5}" y="{y + 0.5}" width="{cell - 1}" height="{CELL - 1}" rx="3" fill="{fill}"/>'
            )
            if gone:
                middle = (x + cell / 2, y + CELL / 2)
                parts.append(
                    f'<path d="M{middle[0] - arm:g} {middle[1] - arm:g}l{2 * arm:g} {2 * arm:g}'
                    f'm0 {-2 * arm:g}l{-2 * arm:g} {2 * arm:g}" stroke-width="1.8" fill="none"/>'
                )
            parts.append("</g>")
    every = 1 if cell >= 18 else 5
    y = len(rows) * (CELL + GAP) + 13
    parts += [
        f'<text x="{LABEL + block * step + cell / 2:g}" y="{y}" text-anchor="middle" font-size="11">{block}</text>'
        for block in range(0, num_blocks, every)
    ]
    return "".join([*parts, "</svg>"])
