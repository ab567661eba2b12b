"""`mi-prun-bench report`: records become one self-contained HTML page, Markdown and CSV.

Runs are not mixed: a table and its ratios come from one run; the newest run stands first.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bench.plots import block_map_svg, memory_svg, quality_speed_svg
from bench.record_v1 import BenchRecord, read_records
from bench.summary import Row, summary
from mi_prun.errors import UserError
from mi_prun.files import one_line_os_errors, write_text

TEMPLATES = Path(__file__).parent / "templates"
MIB = 2**20
# Below this a step of the engine costs more than reading the weights: 200 MiB take 10 ms at a CPU's 20 GB/s, and a
# step's own work takes a few.
OVERHEAD_BYTES = 200 * MIB
# Of the ratios that cost at most this much perplexity, the largest is in the headline.
HEADLINE_PERPLEXITY = 1.25


@dataclass(frozen=True)
class Column:
    """A column of the tables. cell: its text for a row."""

    name: str
    unit: str
    cell: Callable[[Row], str]


def _measured(value: float | None, form: str) -> str:
    return "not measured" if value is None else format(value, form)


def _pair(p50: float, p99: float, form: str) -> str:
    return f"{p50:{form}} / {p99:{form}}"


COLUMNS = (
    Column(
        "Blocks", "dropped", lambda row: f"{len(row.dropped)} ({row.block_ratio:.1%})" if row.dropped else "0, dense"
    ),
    Column("Params", "dropped", lambda row: f"{row.parameter_ratio:.1%}"),
    Column("Perplexity", "", lambda row: _measured(row.perplexity, ",.2f")),
    Column("KL to dense", "nats/token", lambda row: _measured(row.kl_nats_per_token, ".4f")),
    Column("Output", "tokens/s", lambda row: f"{row.output_tokens_per_s:,.1f}"),
    Column("Speed", "× dense", lambda row: f"{row.x_output_tokens_per_s:.2f}"),
    Column("TTFT", "p50 / p99, ms", lambda row: _pair(row.ttft_p50_ms, row.ttft_p99_ms, ".1f")),
    Column("TPOT", "p50 / p99, ms", lambda row: _pair(row.tpot_p50_ms, row.tpot_p99_ms, ".2f")),
    Column("ITL", "p50 / p99, ms", lambda row: _pair(row.itl_p50_ms, row.itl_p99_ms, ".2f")),
    Column("End to end", "p50 / p99, ms", lambda row: _pair(row.e2e_p50_ms, row.e2e_p99_ms, ",.0f")),
    Column("Weights", "MiB", lambda row: f"{row.weight_bytes / MIB:,.1f}"),
    Column("KV cache", "tokens", lambda row: f"{row.kv_tokens:,}"),
    Column("Peak RSS", "MiB", lambda row: f"{row.peak_rss_bytes / MIB:,.0f}"),
    Column("Start-up", "s", lambda row: f"{row.startup_s:.0f}"),
)


@dataclass(frozen=True)
class Run:
    """What the templates show of one run. footers: name and text."""

    name: str
    time: str
    dense_model: str
    rows: list[Row]
    headline: str
    note: str | None
    plot: str
    memory: str
    block_map: str
    footers: list[tuple[str, str]]


def write_report(results: Path, out: Path) -> list[Path]:
    """Write report.html, report.md and report.csv; returns their paths."""
    records = read_records(results)
    if not records:
        raise UserError(f"{results} holds no record yet; make some with `mi-prun-bench run`")
    runs = [whole for name in dict.fromkeys(r.run for r in reversed(records)) if (whole := _run(name, records))]
    if not runs:
        raise UserError(f"{results} holds no run with its dense model (all were interrupted); run again")
    written = {"report.html": html(runs), "report.md": markdown(runs), "report.csv": comma_separated(runs)}
    with one_line_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, text in written.items():
            write_text(out / name, text)
    return [out / name for name in written]


def _run(name: str, records: Sequence[BenchRecord]) -> Run | None:
    own = [record for record in records if record.run == name]
    dense = next((record for record in own if record.arm == "dense"), None)
    if dense is None:
        return None
    rows = summary(own)
    return Run(
        name=name,
        time=datetime.fromisoformat(dense.time).strftime("%Y-%m-%d %H:%M UTC"),
        dense_model=Path(dense.dense_model).name if Path(dense.dense_model).is_absolute() else dense.dense_model,
        rows=rows,
        headline=headline(rows),
        note=overhead_note(rows),
        plot=quality_speed_svg(rows, name),
        memory=memory_svg(rows, name),
        block_map=block_map_svg(rows, dense.blocks.num_blocks),
        footers=footers(dense, own),
    )


def footers(dense: BenchRecord, records: Sequence[BenchRecord]) -> list[tuple[str, str]]:
    """Load, quality protocol, memory, method, machine and versions: what the figures depend on."""
    load, machine = dense.load, dense.machine
    asked = (
        f"{load.tool}, {load.dataset} prompts: {load.input_tokens} tokens in, {load.output_tokens} out, "
        f"{load.prompts} requests a round, {load.concurrency} in flight; medians of {dense.speed.rounds} rounds after "
        f"{load.warmups} warm-up requests; seeds from {load.seed}, another each round, the same for each model. "
        "ITL is between chunks as a client sees them: tokens that come together are 0 ms apart"
    )
    methods = sorted({record.blocks.method for record in records if record.blocks.method})
    return [
        ("Load", asked),
        ("Server", f"mi-prun-serve {' '.join(dense.serve_flags)}".strip()),
        (
            "Quality",
            "; ".join(dict.fromkeys(_protocol(record) for record in records if record.quality)) or "not measured",
        ),
        ("Memory", "weights by the safetensors headers; KV cache as the engine says; RSS summed over its processes"),
        ("Selection", ", ".join(methods) or "nothing pruned"),
        (
            "Machine",
            f"{machine.cpu}, {machine.cores} cores, {machine.memory_bytes / 2**30:.0f} GiB; "
            f"{machine.gpu or 'no GPU'}; {machine.system}",
        ),
        ("Versions", ", ".join(f"{package} {number}" for package, number in dense.versions.items())),
        ("Run", f"{dense.run}, {dense.time}, commit {dense.commit or 'unknown'}"),
    ]


def _protocol(record: BenchRecord) -> str:
    quality = record.quality
    assert quality is not None
    on = "the dense model with blocks skipped" if record.quality_measured_on == "plan" else "the written checkpoint"
    return f"{quality.text}: {quality.predicted_tokens:,} predicted tokens, {quality.protocol}; measured on {on}"


def headline(rows: Sequence[Row]) -> str:
    """The largest ratio that costs at most a quarter of perplexity, else the smallest: what was gained and lost."""
    pruned = [row for row in rows if row.dropped]
    if not pruned:
        return "Only the dense model was measured."
    fair = [row for row in pruned if row.x_perplexity and row.x_perplexity <= HEADLINE_PERPLEXITY]
    row = max(fair, key=lambda r: len(r.dropped)) if fair else pruned[0]
    dense = next(r for r in rows if not r.dropped)
    words = (
        f"{row.block_ratio:.0%} of blocks gone: {row.x_output_tokens_per_s:.2f}× tokens/s, "
        f"{row.x_weight_bytes:.2f}× weight bytes, {row.x_kv_tokens:.2f}× KV tokens"
    )
    if row.perplexity is not None and dense.perplexity is not None:
        words += f", perplexity {dense.perplexity:.1f} → {row.perplexity:.1f}"
    return words


def overhead_note(rows: Sequence[Row]) -> str | None:
    """A model of a few megabytes is bound by the engine's work per step, not by its blocks: say so."""
    dense = next(row for row in rows if not row.dropped)
    if dense.weight_bytes > OVERHEAD_BYTES:
        return None
    return (
        f"The dense model has only {dense.weight_bytes / MIB:.0f} MiB of weights: the engine's own work per step sets "
        "its speed. Speed and latency here say nothing about larger models; quality, weight bytes and KV tokens are "
        "what they are."
    )


def markdown(runs: Sequence[Run]) -> str:
    names = [f"{column.name}, {column.unit}" if column.unit else column.name for column in COLUMNS]
    parts = ["# Dense against pruned", ""]
    for run in runs:
        parts += [f"## {run.dense_model}, {run.time}", "", f"**{run.headline}**", ""]
        if run.note:
            parts += [run.note, ""]
        parts += [f"| {' | '.join(names)} |", f"|{' ---: |' * len(names)}"]
        parts += [f"| {' | '.join(column.cell(row) for column in COLUMNS)} |" for row in run.rows]
        parts += ["", "Dropped blocks (0-based):", ""]
        parts += [f"- {row.block_ratio:.1%}: {', '.join(map(str, row.dropped))}" for row in run.rows if row.dropped]
        parts += ["", *(f"- {name}: {text}" for name, text in run.footers), ""]
    return "\n".join(parts)


def comma_separated(runs: Sequence[Run]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["run", *Row.model_fields], lineterminator="\n")
    writer.writeheader()
    for run in runs:
        for row in run.rows:
            writer.writerow({"run": run.name, **row.model_dump(), "dropped": " ".join(map(str, row.dropped))})
    return out.getvalue()


def html(runs: Sequence[Run]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.j2").render(runs=runs, columns=COLUMNS)
