"""Draw the pictures of the report, as SVG that takes its colours from the page (light, dark, print).

The palette is Okabe and Ito's, which colour-blind readers can tell apart. Shape and text say everything a second time.
"""

from __future__ import annotations

import functools
import html
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from bench.records.comparable import same_text
from bench.records.flat_rows import perplexity_of, row_of
from bench.records.results import Run
from bench.records.schema import MeasuredArm, PointRecord, Workload
from bench.records.task_summary import TaskRow
from bench.reports.report_tables import rooflines
from mi_prun.figure import new_figure, svg_of
from mi_prun.plan.block_map import svg_lines

# Each is replaced by a variable of the page's style sheet.
INK, DENSE = "#123456", "#d55e00"
SERIES = ("#0072b2", "#009e73", "#e69f00", "#cc79a7", "#7f7f7f", "#56b4e9")
VARIABLES = {INK: "currentColor", DENSE: "var(--dense)"} | {c: f"var(--s{i})" for i, c in enumerate(SERIES)}
MARKERS = ("o", "^", "D", "v", "P", "X")
MIB, GIB = 2**20, 2**30
WIDTH = 5.8  # inches, of a picture that fills half a page
SHORT_LABEL = 24  # characters: three of them stand in a line of the legend
DASHED = (0, (2, 3))


@dataclass(frozen=True)
class Look:
    """A colour and a marker."""

    colour: str
    marker: str


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Give each name a colour and a marker. There are six of each; no two pairs are alike up to 36 names."""
    return {
        name: Look(SERIES[i % len(SERIES)], MARKERS[(i + i // len(SERIES)) % len(MARKERS)])
        for i, name in enumerate(names)
    }


def share(ratio: float) -> str:
    """Write a share as 12.5%, 25% or 8.33%."""
    return f"{100 * ratio:.3g}%"


def speed_arms(run: Run) -> list[MeasuredArm]:
    """Return one arm of each kind and number of dropped blocks: which blocks they are makes no difference to speed."""
    return list({(arm.kind, len(arm.blocks.dropped)): arm for arm in reversed(run.arms)}.values())[::-1]


def arm_looks(arms: Sequence[MeasuredArm]) -> dict[str, Look]:
    """Give each arm a look. The dense model is a square of its own colour."""
    others = looks([arm.label for arm in arms if arm.kind != "dense"])
    return {arm.label: others.get(arm.label, Look(DENSE, "s")) for arm in arms}


Drawing = TypeVar("Drawing", bound=Callable[..., str])


def styled(draw: Drawing) -> Drawing:
    """Have a drawing use the page's colours and plain labels.

    It is in force from the first text to the last: matplotlib makes ticks as late as it draws.
    """

    @functools.wraps(draw)
    def wrapped(*args: Any) -> str:
        from matplotlib import rc_context

        style: dict[str, Any] = {f"{part}.color": INK for part in ("text", "xtick", "ytick")}
        style |= {"axes.labelcolor": INK, "axes.edgecolor": INK, "font.size": 11}
        style |= {"svg.fonttype": "none", "text.parse_math": False}
        with rc_context(style):
            return draw(*args)

    return cast("Drawing", wrapped)


@styled
def pareto_svg(run: Run) -> str:
    """Draw quality against speed, both over the dense model's. Each ratio is a point; its whiskers are the 95 %
    interval.

    There is a line for each method, and one for it healed; an arrow leads from a pruned model to the same one healed.
    The text is empty where nothing measured quality.
    """
    shown = [p for p in run.under(run.main) if p.arm.kind == "pruned" and p.paired and perplexity_of(p)]
    if not shown:
        return ""
    figure, axes = new_figure(WIDTH, 4.2)
    axes.axhline(1, color=INK, alpha=0.3, lw=1, ls=DASHED)
    axes.axvline(1, color=INK, alpha=0.3, lw=1, ls=DASHED)
    axes.plot(1, 1, color=DENSE, marker="s", ms=9, zorder=4, ls="")
    axes.annotate("dense", (1, 1), xytext=(0, 10), textcoords="offset points", ha="center", weight="bold", color=INK)
    lines = line_names([point.arm for point in shown])
    names = list(dict.fromkeys(lines.values()))
    for place, (name, look) in enumerate(looks(names).items()):
        own = [point for point in shown if lines[point.arm.label] == name]
        rows = [row_of(point, run.dense) for point in own]
        x = [row.x_output_tokens_per_s for row in rows]
        y = [row.x_perplexity or 0.0 for row in rows]
        axes.plot([1, *x], [1, *y], color=look.colour, lw=1.4, alpha=0.45, zorder=2)
        for row, px, py in zip(rows, x, y, strict=True):
            if row.x_low is not None and row.x_high is not None:
                axes.plot([row.x_low, row.x_high], [py, py], color=look.colour, lw=1.6, alpha=0.7, zorder=2)
            if place < 2:  # above the first method's marks, below the second's; the ratios of more are the same
                away = {"xytext": (0, -11), "va": "top"} if place else {"xytext": (0, 9)}
                axes.annotate(share(row.block_ratio), (px, py), textcoords="offset points", ha="center",
                              weight="bold", color=INK, **away)  # fmt: skip
        axes.plot(x, y, color=look.colour, marker=look.marker, ms=8, ls="", zorder=3, label=name)
    for start, end in healings(shown, run.dense):
        arrow = {"arrowstyle": "->", "color": INK, "alpha": 0.55, "lw": 1.1, "shrinkA": 5, "shrinkB": 5}
        axes.annotate("", xy=end, xytext=start, arrowprops=arrow, zorder=2)
    if len(names) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize=10)
    axes.set_xlabel("output tokens/s, × dense  (right: faster)")
    axes.set_ylabel("perplexity, × dense  (down: better)")
    axes.margins(x=0.12, y=0.18)
    return _svg(figure, "Perplexity against output tokens per second, both relative to the dense model", run.name)


def line_names(arms: Sequence[MeasuredArm]) -> dict[str, str]:
    """Return what each arm's line is called, by its label: its method.

    Where several models of a method drop as many blocks, as those of two of its specs do, the folder is named beside
    it, but for what a sweep's folder says of the blocks and the weights.
    """
    held = Counter((arm.method, len(arm.blocks.dropped)) for arm in arms)
    several = {arm.blocks.method for arm in arms if held[arm.method, len(arm.blocks.dropped)] > 1}

    def name(arm: MeasuredArm) -> str:
        end = rf"-{len(arm.blocks.dropped)}(-[0-9a-f]{{8}})?(-healed-[0-9a-f]+)?-{arm.weights}$"
        return f"{arm.method}, {re.sub(end, '', Path(arm.model).name)}"

    return {arm.label: name(arm) if arm.blocks.method in several else arm.method for arm in arms}


def healings(
    points: Sequence[PointRecord], dense: PointRecord
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Return where each healed model's arrow begins and ends: speed and perplexity over dense, pruned and healed.

    There is none where the pruned model was judged on other text: the arrow would show a change that nobody measured.
    """

    def place(point: PointRecord) -> tuple[float, float]:
        row = row_of(point, dense)
        return row.x_output_tokens_per_s, row.x_perplexity or 0.0

    pruned = {point.arm.blocks.dropped: point for point in points if point.arm.healing is None}
    return [
        (place(pruned[point.arm.blocks.dropped]), place(point))
        for point in points
        if point.arm.healing is not None
        and point.arm.blocks.dropped in pruned
        and same_text(point, pruned[point.arm.blocks.dropped])
    ]


def curve_groups(run: Run) -> list[list[Workload]]:
    """Group loads that differ only in how many requests there are at a time. Two or more make a curve."""
    groups: dict[tuple[object, ...], list[Workload]] = {}
    for load in run.loads:
        key = (load.preset, load.concurrency is None, load.input_tokens, load.output_tokens)
        groups.setdefault(key, []).append(load)
    return [
        sorted(group, key=lambda load: load.concurrency or load.rate_per_s or 0.0)
        for group in groups.values()
        if len(group) > 1
    ]


@styled
def curves_svg(run: Run, group: Sequence[Workload]) -> str:
    """Draw latency against throughput: TTFT and TPOT, p50; a line for each model, a point for each load."""
    figure, panels = new_figure(2 * WIDTH, 3.6, columns=2)
    arms = speed_arms(run)
    styles = arm_looks(arms)
    for axes, name, title in zip(panels, ("ttft", "tpot"), ("TTFT p50, ms", "TPOT p50, ms"), strict=True):
        for arm in arms:
            points = [point for load in group if (point := run.point(arm, load)) is not None]
            x = [point.speed.output_tokens_per_s for point in points]
            y = [getattr(point.speed, name).p50_ms for point in points]
            look = styles[arm.label]
            axes.plot(x, y, color=look.colour, marker=look.marker, ms=6.5, lw=1.5, label=arm.label)
            if arm.kind == "dense":
                for point, px, py in zip(points, x, y, strict=True):
                    axes.annotate(_many(point), (px, py), xytext=(0, 9), textcoords="offset points", ha="center",
                                  fontsize=9, color=INK)  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.margins(x=0.08, y=0.16)
        _plain_ticks(axes)
        axes.set_xlabel("output tokens/s  (right: more)")
        axes.set_ylabel(f"{title}  (down: better)")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=6, frameon=False, labelcolor=INK, fontsize=10)
    how = "in flight" if group[0].concurrency else "arriving at a rate"
    return _svg(figure, f"Latency against throughput, {group[0].preset}, requests {how}", run.name)


def _many(point: PointRecord) -> str:
    load = point.load
    return f"{load.concurrency} in flight" if load.concurrency else f"{load.rate_per_s:.3g}/s"


def _plain_ticks(axes: Any) -> None:
    """Label axes with numbers, not powers of ten: ranges here are of a decade or two. A long range gets few, to keep
    apart.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        subs = (1.0, 2.0, 5.0) if high > 8 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
        axis.set_major_locator(LogLocator(subs=subs, numticks=8))
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.set_minor_formatter(NullFormatter())


@styled
def memory_svg(run: Run) -> str:
    """Draw weights, KV cache and the peak of all engine processes, a bar for each model."""
    points = run.under(run.main)
    dense = run.dense.memory
    on_device = all(point.memory.peak_device_bytes for point in points)
    peak = [p.memory.peak_device_bytes or 0 if on_device else p.memory.peak_rss_bytes for p in points]
    columns: list[tuple[str, list[float], float]] = [
        ("weights, MiB", [p.memory.weight_bytes / MIB for p in points], dense.weight_bytes / MIB),
        ("KV cache, tokens", [float(p.memory.kv_tokens) for p in points], float(dense.kv_tokens)),
        (f"peak {'device' if on_device else 'RSS'}, GiB", [value / GIB for value in peak], peak[0] / GIB),
    ]
    figure, panels = new_figure(2 * WIDTH, 0.7 + 0.38 * len(points), columns=3)
    for axes, (title, values, base) in zip(panels, columns, strict=True):
        colours = [DENSE if point.arm.kind == "dense" else SERIES[0] for point in points]
        bars = axes.barh(range(len(points)), values, color=colours, height=0.62)
        texts = [f"{_figures(value)}  ({value / base:.2f}×)" for value in values]
        axes.bar_label(bars, texts, padding=4, color=INK, fontsize=10)
        axes.set_yticks(range(len(points)), [p.arm.label for p in points] if axes is panels[0] else [""] * len(points))
        axes.invert_yaxis()
        axes.set_xlim(0, max(values) * 1.6)
        axes.set_xticks([])
        axes.set_title(title, loc="left", fontsize=11, color=INK)
        axes.tick_params(axis="y", length=0)
        axes.spines["bottom"].set_visible(False)
    return _svg(figure, "Weights, KV cache and peak memory of each model", run.name)


def _figures(value: float) -> str:
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


@styled
def roofline_svg(run: Run) -> str:
    """Draw what was reached of each bound: a panel for each phase and batch, a line for each model. Empty without
    bounds.
    """
    shown = {arm.label for arm in speed_arms(run)}
    pairs = [pair for pair in rooflines(run) if pair[0].arm.label in shown]
    panels = list(dict.fromkeys((point.load.preset, roof.phase, roof.batch) for point, roof in pairs))
    if not panels:
        return ""
    rows = -(-len(panels) // 2)
    lines = max(sum((p.load.preset, r.phase, r.batch) == panel for p, r in pairs) for panel in panels)
    figure, grid = new_figure(2 * WIDTH, rows * (1.0 + 0.36 * lines), columns=2, rows=rows)
    for axes, panel in zip(grid, panels, strict=False):
        own = [(p, r) for p, r in pairs if (p.load.preset, r.phase, r.batch) == panel]
        for y, (_, roof) in enumerate(own):
            gain = roof.speedup
            axes.plot([1, roof.bound], [y, y], color=INK, alpha=0.18, lw=7, solid_capstyle="butt")
            axes.plot(roof.bound, y, color=INK, marker="|", ms=17, mew=2)
            if gain.low is not None and gain.high is not None:
                axes.plot([gain.low, gain.high], [y, y], color=SERIES[0], lw=1.8)
            axes.plot(gain.ratio, y, color=SERIES[0], marker="o", ms=7)
            axes.annotate(f"{roof.efficiency:.0%}", (max(roof.bound, gain.ratio, gain.high or 0), y), xytext=(9, 0),
                          textcoords="offset points", va="center", color=INK, fontsize=10)  # fmt: skip
        axes.axvline(1, color=INK, alpha=0.3, lw=1, ls=DASHED)
        axes.set_yticks(range(len(own)), [p.arm.label for p, _ in own])
        axes.set_ylim(len(own) - 0.4, -0.6)
        axes.margins(x=0.16)
        preset, phase, batch = panel
        axes.set_title(f"{phase}, batch {batch} ({preset})", loc="left", fontsize=11, color=INK)
        axes.set_xlabel("times faster than dense")
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return _svg(figure, "Speed-up reached beside its bound, by phase", run.name)


@styled
def tasks_svg(rows: Sequence[TaskRow], run: str) -> str:
    """Draw differences to the dense model in points, with intervals: a group for each task, a mark for each model."""
    shown = [row for row in rows if row.difference is not None]
    if not shown:
        return ""
    labels = list(dict.fromkeys(row.record.arm.label for row in shown))
    tasks = list(dict.fromkeys(row.record.score.task for row in shown))
    styles = looks(labels)
    figure, axes = new_figure(WIDTH, 1.3 + len(tasks) * (0.2 + 0.17 * len(labels)))
    axes.axvline(0, color=INK, alpha=0.4, lw=1, ls=DASHED)
    for row in shown:
        difference, look = row.difference, styles[row.record.arm.label]
        assert difference is not None
        place = labels.index(row.record.arm.label)
        y = tasks.index(row.record.score.task) + (place - (len(labels) - 1) / 2) * 0.8 / max(2, len(labels))
        axes.plot([100 * difference.low, 100 * difference.high], [y, y], color=look.colour, lw=1.6)
        axes.plot(100 * difference.mean, y, color=look.colour, marker=look.marker, ms=6, ls="")
    for label in labels:
        axes.plot([], [], color=styles[label].colour, marker=styles[label].marker, lw=1.6, label=label)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_xlabel("right answers, points to dense  (right: better)")
    columns = 3 if max(map(len, labels)) <= SHORT_LABEL else 1
    axes.legend(
        frameon=False, labelcolor=INK, fontsize=9.5, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=columns
    )
    return _svg(figure, "Difference of right answers to the dense model, by task", run)


def _svg(figure: Any, title: str, run: str) -> str:
    """Return a figure as SVG for a page: no prologue, no fixed size, the page's colours, a name for screen readers.

    Ids are kept only where they are referred to, and differ between pictures: several stand in one page.
    """
    text = svg_of(figure, salt=f"{title} {run}", transparent=True)
    body = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", body)
    head, _, rest = body.partition(">")
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", f"{head}>{rest}")
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, variable)
    return body.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def block_map_svg(arms: Sequence[MeasuredArm]) -> str:
    """Draw a line for each model, a cell for each of the dense model's blocks: filled is kept, crossed is dropped."""
    models = [(arm.label, arm.blocks.dropped) for arm in arms]
    return svg_lines(arms[0].blocks.num_blocks, models, kept="var(--s0)", dropped="var(--dense)")
