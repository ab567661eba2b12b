"""Make the tables of the report, as text: what HTML and Markdown both show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.records.flat_rows import FlatRow, row_of
from bench.records.results import Run
from bench.records.schema import Latency, PointRecord, Roofline
from bench.records.task_schema import TaskRecord
from bench.records.task_summary import MeanRow, TaskRow, model_key
from mi_prun.planning.draft_gain import expected_length, expected_speedup

MIB = 2**20
NOT_MEASURED, NONE = "not measured", "–"
LATENCIES = (("TTFT", "ttft", ",.1f"), ("TPOT", "tpot", ",.2f"), ("ITL", "itl", ",.2f"), ("End to end", "e2e", ",.0f"))


@dataclass(frozen=True)
class Cell:
    """A cell of a table. Under its text, smaller, stand the lines of `more`. strong: the figure that decides."""

    text: str
    more: str = ""
    strong: bool = False

    def plain(self) -> str:
        """Return the cell's text in one line."""
        return f"{self.text} {self.more}".strip()


@dataclass(frozen=True)
class Table:
    """A table. head: names and units of the columns. rows: as many cells each; the first names the row."""

    title: str
    head: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def markdown(self) -> list[str]:
        """Return the table as lines of Markdown."""
        names = [f"{name}, {unit}" if unit else name for name, unit in self.head]
        lines = [f"### {self.title}", "", f"| {' | '.join(map(_in_table, names))} |", f"|{' ---: |' * len(names)}"]
        lines += [f"| {' | '.join(_in_table(cell.plain()) for cell in row)} |" for row in self.rows]
        return [*lines, "", *([self.note, ""] if self.note else [])]


def _in_table(text: str) -> str:
    """Escape a text for a table: a bar would end the cell, a tag would be taken for HTML."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


@dataclass(frozen=True)
class Column:
    """A column of the main table."""

    name: str
    unit: str
    cell: Callable[[FlatRow], Cell]


def interval(low: float | None, high: float | None, form: str = ".2f") -> str:
    """Write an interval; empty where there is none."""
    return "" if low is None or high is None else f"[{low:{form}}, {high:{form}}]"


def at_most(bound: float | None) -> str:
    """Write a bound; empty where there is none."""
    return "" if bound is None else f"at most {bound:.2f}"


def lines_of(*words: str) -> str:
    """Join words that are not empty, one a line."""
    return "\n".join(filter(None, words))


def number(value: float | None, form: str, missing: str = NOT_MEASURED) -> str:
    """Format a value, or say that it is missing."""
    return missing if value is None else format(value, form)


def _pair(p50: float, p99: float, form: str) -> Cell:
    return Cell(f"{p50:{form}} / {p99:{form}}")


def _dropped(row: FlatRow) -> str:
    return lines_of(_dropped_blocks(row.dropped), f"healed by {row.healing}" if row.healing else "")


def _dropped_blocks(dropped: Sequence[int]) -> str:
    count = len(dropped)
    return f"{count} block{'s' * (count > 1)} dropped" if count else ""


def _speed(row: FlatRow) -> Cell:
    return Cell(
        f"{row.x_output_tokens_per_s:.2f}", lines_of(interval(row.x_low, row.x_high), at_most(row.x_bound)), strong=True
    )


def _output(row: FlatRow) -> Cell:
    spread = f"{row.min_output_tokens_per_s:,.1f}–{row.max_output_tokens_per_s:,.1f}" if row.rounds > 1 else ""
    return Cell(f"{row.output_tokens_per_s:,.1f}", spread)


def _weights(row: FlatRow) -> Cell:
    engine = "" if row.engine_weight_bytes is None else f"{row.engine_weight_bytes / MIB:,.1f} loaded"
    return Cell(f"{row.weight_bytes / MIB:,.1f}", lines_of(f"{row.x_weight_bytes:.2f}×", engine))


def _perplexity(row: FlatRow) -> Cell:
    change = f"× {row.x_perplexity:.2f}" if row.x_perplexity and row.dropped else ""
    if row.kind == "draft":
        return Cell("as dense")
    return Cell(number(row.perplexity, ",.2f"), change)


COLUMNS = (
    Column("Model", "", lambda row: Cell(row.arm, _dropped(row))),
    Column("Perplexity", "× dense", _perplexity),
    Column("KL to dense", "nats/token", lambda row: Cell(number(row.kl_nats_per_token, ".4f", NONE))),
    Column("Speed", "× dense", _speed),
    Column("Output", "tokens/s", _output),
    Column("TTFT", "p50 / p99, ms", lambda row: _pair(row.ttft_p50_ms, row.ttft_p99_ms, ",.1f")),
    Column("TPOT", "p50 / p99, ms", lambda row: _pair(row.tpot_p50_ms, row.tpot_p99_ms, ",.2f")),
    Column("End to end", "p50 / p99, ms", lambda row: _pair(row.e2e_p50_ms, row.e2e_p99_ms, ",.0f")),
    Column("Weights", "MiB", _weights),
    Column("KV cache", "tokens", lambda row: Cell(f"{row.kv_tokens:,}", f"{row.x_kv_tokens:.2f}×")),
    Column("Peak RSS", "MiB", lambda row: Cell(f"{row.peak_rss_bytes / MIB:,.0f}")),
    Column("Start-up", "s", lambda row: Cell(f"{row.startup_s:.0f}", _loading(row))),
)
AFTER_KV = next(place for place, column in enumerate(COLUMNS, 1) if column.name == "KV cache")
DEVICE = Column("Peak device", "MiB", lambda row: Cell(f"{(row.peak_device_bytes or 0) / MIB:,.0f}"))
ENERGY = Column("Energy", "J/round", lambda row: Cell(number(row.energy_j, ",.0f")))


def _loading(row: FlatRow) -> str:
    return f"{row.load_s:.1f} loading" if row.load_s is not None else ""


def main_table(run: Run) -> Table:
    """Show every model under the main load."""
    rows = [row_of(point, run.dense) for point in run.under(run.main)]
    fit = Column("Requests that fit", _of_length(rows), lambda row: Cell(f"{row.max_concurrency:,.1f}"))
    columns = [
        *COLUMNS[:AFTER_KV],
        fit,
        *COLUMNS[AFTER_KV:],
        *([DEVICE] if any(row.peak_device_bytes is not None for row in rows) else []),
        *([ENERGY] if any(row.energy_j is not None for row in rows) else []),
    ]
    return Table(
        f"Every model, {run.main.label}",
        tuple((column.name, column.unit) for column in columns),
        tuple(tuple(column.cell(row) for column in columns) for row in rows),
        f"{_length(run.main.input_tokens)} tokens in, {_length(run.main.output_tokens)} out. Speed: 95 % interval, and "
        "what the dropped bytes and FLOPs allow at most. Output: the median of the rounds, and their least and most.",
    )


def _of_length(rows: Sequence[FlatRow]) -> str:
    return f"of {rows[0].length_tokens:,} tokens"


def _length(tokens: float) -> str:
    return f"{tokens:,.0f}" if tokens == int(tokens) else f"{tokens:,.1f} (mean)"


def loads_table(run: Run) -> Table | None:
    """Show the speed-up of every model under every load; None where there is one load only."""
    if len(run.loads) < 2:
        return None
    arms = [arm for arm in run.arms if arm.kind != "dense"]
    rows = []
    for load in run.loads:
        dense = next((point for point in run.under(load) if point.arm.kind == "dense"), None)
        if dense is None:
            continue
        cells = [Cell(load.label), Cell(f"{dense.speed.output_tokens_per_s:,.1f}", _piles_up(dense))]
        cells += [_against(run.point(arm, load)) for arm in arms]
        rows.append(tuple(cells))
    head = (("Load", ""), ("dense", "tokens/s"), *((arm.label, "× dense") for arm in arms))
    note = (
        "Output tokens/s over the dense model's, 95 % intervals, and what the dropped bytes and FLOPs allow at most. "
        "At a rate that both keep up with they are the same. Saturated: requests pile up as long as they come."
    )
    return Table("Speed under every load", head, tuple(rows), note)


def _against(point: PointRecord | None) -> Cell:
    if point is None or point.paired is None:
        return Cell(NONE)
    speedup = point.paired.output_tokens_per_s
    return Cell(
        f"{speedup.ratio:.2f}", lines_of(interval(speedup.low, speedup.high), at_most(point.bound), _piles_up(point))
    )


def _piles_up(point: PointRecord) -> str:
    return "saturated" if point.saturated else ""


def percentile_tables(run: Run) -> list[Table]:
    """Return a table for each load: a row for each model, its latencies as medians of the rounds' own percentiles."""
    tables = []
    for load in run.loads:
        rows = tuple(
            (
                Cell(point.arm.label),
                *(_percentiles(getattr(point.speed, name), form) for _, name, form in LATENCIES),
            )
            for point in run.under(load)
        )
        head = (("Model", ""), *((title, "p50 / p90 / p99, ms") for title, _, _ in LATENCIES))
        tables.append(Table(f"Latency, {load.label}", head, rows))
    return tables


def _percentiles(latency: Latency, form: str) -> Cell:
    return Cell(" / ".join(format(value, form) for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms)))


def rooflines(run: Run) -> list[tuple[PointRecord, Roofline]]:
    """Return the bounds of every point that shows a phase, phase by phase, batch by batch, in the order of the arms."""
    pairs = [(point, roof) for point in run.points for roof in point.roofline]
    arms = [arm.label for arm in run.arms]
    return sorted(pairs, key=lambda pair: (pair[1].phase != "prefill", pair[1].batch, arms.index(pair[0].arm.label)))


def roofline_table(run: Run) -> Table | None:
    """Show what was reached of each bound: a row for each phase and batch, a column for each model."""
    by_phase: dict[tuple[str, int, str], dict[str, Roofline]] = {}
    for point, roof in rooflines(run):
        by_phase.setdefault((roof.phase, roof.batch, point.load.preset), {})[point.arm.label] = roof
    if not by_phase:
        return None
    labels = [arm.label for arm in run.arms if any(arm.label in roofs for roofs in by_phase.values())]
    rows = [
        (Cell(f"{phase}, batch {batch}", preset), *(_reached(roofs.get(label)) for label in labels))
        for (phase, batch, preset), roofs in by_phase.items()
    ]
    note = (
        "The speed-up over its bound; under it both. Bound: the larger of dense bytes over pruned bytes and dense "
        "FLOPs over pruned FLOPs of a step."
    )
    head = (("Phase", ""), *((label, "of its bound") for label in labels))
    return Table("Speed-up beside what the dropped bytes and FLOPs allow", head, tuple(rows), note)


def _reached(roof: Roofline | None) -> Cell:
    if roof is None:
        return Cell(NONE)
    return Cell(f"{roof.efficiency:.1%}", f"{roof.speedup.ratio:.3f} of {roof.bound:.3f}")


def drafts_table(run: Run) -> Table | None:
    """Show the arms whose answers are the dense model's, drafted by the kept blocks, in every closed loop; None where
    there is none. Below what was measured stands what the plan predicted, where it was made for a draft.
    """
    loads = [load for load in run.loads if load.concurrency]
    points = [(load, point) for load in loads for point in run.under(load) if point.arm.kind == "draft"]
    rows = tuple(
        (Cell(point.arm.label, _dropped_blocks(point.arm.blocks.dropped)), Cell(load.label), *_drafted(point))
        for load, point in points
    )
    head = (
        ("Draft", ""),
        ("Load", ""),
        ("Drafted", "tokens at a time"),
        ("Accepted", "share"),
        ("Yield", "tokens a pass"),
        ("Speed", "× dense, 95 %"),
    )
    note = (
        "Predicted: by the acceptance and the cost of a step that the plan measured, for one request at a time, "
        "without an engine's own work."
    )
    predicted = any(any(_predicted(point)) for _, point in points)
    return Table("As a draft", head, rows, note if predicted else "") if rows else None


def _drafted(point: PointRecord) -> tuple[Cell, ...]:
    accepted, speed = point.acceptance, _against(point)
    rate, length, speedup = _predicted(point)
    return (
        Cell(number(point.arm.draft_tokens, "d")),
        Cell(number(accepted.rate if accepted else None, ".1%"), rate),
        Cell(number(accepted.length if accepted else None, ".2f"), length),
        Cell(speed.text, lines_of(speed.more, speedup)),
    )


def _predicted(point: PointRecord) -> tuple[str, str, str]:
    """What the plan predicted of share accepted, yield and speed-up, for as many tokens as were drafted at a time."""
    said = point.selection.settings if point.selection else {}
    acceptance, cost, tokens = said.get("acceptance_greedy"), said.get("relative_cost"), point.arm.draft_tokens
    if not isinstance(acceptance, float) or not isinstance(cost, float) or tokens is None:
        return "", "", ""
    length = expected_length(acceptance, tokens)
    return (
        f"predicted {(length - 1) / tokens:.1%}",
        f"predicted {length:.2f}",
        f"predicted {expected_speedup(acceptance, cost, tokens):.2f}",
    )


def tasks_table(rows: Sequence[TaskRow], means: Sequence[MeanRow]) -> Table | None:
    """Show a row for each model, a column for each task; the paired difference stands under the score."""
    if not rows:
        return None
    by_model: dict[object, dict[str, TaskRow]] = {}
    for row in rows:
        by_model.setdefault(model_key(row.record), {})[row.record.score.task] = row
    names = list(dict.fromkeys(row.record.score.task for row in rows))
    first = {name: next(row.record.score for row in rows if row.record.score.task == name) for name in names}
    mean_of = {mean.arm.identity: mean for mean in means}
    lines = []
    for by_task in by_model.values():
        arm = next(iter(by_task.values())).record.arm
        cells = [Cell(arm.label), *(_score(by_task.get(name), first[name].items) for name in names)]
        if means:
            cells.append(_mean(mean_of.get(arm.identity), len(names)))
        lines.append(tuple(cells))
    head = [
        ("Model", ""),
        *((name, f"{first[name].metric}, n={first[name].items:,}") for name in names),
        *([("Mean", "")] if means else []),
    ]
    note = (
        "Right answers, %; under them the difference to dense in points, item by item, with its 95 % interval (Bonett "
        "and Price). Bold: beyond noise. Flips: items that turned right or wrong against dense, "
        "even where as many are right."
    )
    return Table("Tasks", tuple(head), tuple(lines), note)


def _score(row: TaskRow | None, items: int) -> Cell:
    """Return the cell of a score. items: what the head of the column says; another number is said here."""
    if row is None:
        return Cell(NONE)
    text, difference, score = f"{100 * row.record.score.score:.1f}", row.difference, row.record.score
    if difference is None:
        other = "" if score.items == items else f"n={score.items:,}"
        return Cell(text, lines_of(other, "" if row.record.arm.kind == "dense" else "no pairs"))
    flips = f"{difference.flips} flips, {difference.flips / difference.items:.0%}"
    return Cell(text, lines_of(difference.points(), flips), strong=difference.beyond_noise)


def _mean(mean: MeanRow | None, tasks: int) -> Cell:
    """Return the cell of a mean. tasks: all columns; a mean of fewer of them says so: it stands beside other means."""
    if mean is None:
        return Cell(NONE)
    text, few = f"{100 * mean.score:.1f}", "" if mean.tasks == tasks else f"of {mean.tasks} tasks"
    if mean.difference is None:
        return Cell(text, few)
    middle, low, high = (100 * value for value in mean.difference)
    return Cell(text, lines_of(f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]", few), strong=low > 0 or high < 0)


def other_scores(records: Sequence[TaskRecord]) -> list[str]:
    """Say what lm-eval gives beside the metric that is compared."""
    lines = []
    for record in records:
        others = {name: value for name, value in record.score.scores.items() if name != record.score.metric}
        if others:
            words = ", ".join(f"{name} {value:.4g}" for name, value in others.items())
            lines.append(f"{record.arm.label}, {record.score.task}: {words}")
    return lines
