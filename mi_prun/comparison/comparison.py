"""`mi-prun compare`: methods x numbers of blocks, each choice measured on the same held-out text.

The output folder holds the analysis and the rows, as JSON lines. Each row is appended as soon as it is made, so a
killed run goes on from there. Derived from the rows are comparison.md, .csv, .json, quality.svg and segments.svg.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from pathlib import Path

from mi_prun.analysis.analysis import Analysis, read_analysis
from mi_prun.analysis.analyze import analyze, check_analyzable
from mi_prun.checkpoint.card import table
from mi_prun.comparison.comparison_plots import quality_svg, segments_svg
from mi_prun.comparison.comparison_row import COMPUTED, MethodSpec, Row
from mi_prun.console import kept, progress
from mi_prun.errors import UserError
from mi_prun.files import append_line, one_line_os_errors, write_text
from mi_prun.json_lines import read_lines, remove_cut_line
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import ModelFolder
from mi_prun.plan.ratio import parse_ratios
from mi_prun.planning.planning import make_context
from mi_prun.quality.quality import protocol
from mi_prun.selection.context import Context
from mi_prun.selection.methods import METHODS, check_rerank, choose, method_named
from mi_prun.settings import AnalyzeSettings, PlanSettings
from mi_prun.text.text_source import text_digest
from mi_prun.text.weighted_source import parse_sources
from mi_prun.version import __version__

ROWS_NAME = "rows.jsonl"


def parse_methods(text: str) -> list[MethodSpec]:
    """Parse `hybrid,mi-prun:0,bi`. A plain name takes the method's own number of sets.

    Raises UserError for a method or a number of sets that cannot be.
    """
    specs = []
    for word in text.split(","):
        name, colon, number = word.strip().partition(":")
        if colon and not number.isdecimal():
            raise UserError(f"--methods {text!r}: {word.strip()!r} must be NAME or NAME:N, N a whole number")
        method = method_named(name, f"--methods {text!r}: NAME")
        rerank = int(number) if colon else None if method.grows else method.rerank
        check_rerank(rerank, f"--methods {text!r}: N", name)
        specs.append(MethodSpec(name=name, rerank=rerank))
    return list(dict.fromkeys(specs))


def compare_model(
    dense: ModelFolder, specs: Sequence[MethodSpec], ratios: str, settings: AnalyzeSettings, out: Path
) -> str:
    """Compare methods on a model; return the table and the paths of what was written, as text.

    Everything is kept in the folder `out`. An analysis of the same model, text and settings that is there already is
    used again, and so are rows that this release made.
    """
    ks = parse_ratios(ratios, dense.num_blocks)
    check_analyzable(dense, settings)
    left_out = [reason for k in ks for spec in specs if (reason := too_many(spec, dense.num_blocks, k))]
    if len(left_out) == len(ks) * len(specs):
        raise UserError(f"nothing is left to compare: {'; '.join(left_out)}")
    with one_line_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    remove_cut_line(out / ROWS_NAME)
    known = [row for row in read_rows(out) if row.tool_version == __version__]
    base = PlanSettings(seed=settings.seed, device=settings.device)
    load = cache(lambda: load_on(dense, settings.device, settings.dtype))
    context = make_context(analysis_in(out, dense, settings, load), base, load, dense)
    with kept(f"the rows made so far are kept in {out}; the same command goes on from them"):
        rows = compare(
            context, specs, ks, known=known, keep=lambda row: append_line(out / ROWS_NAME, row.model_dump_json())
        )
    paths = write_comparison(context, rows, out, left_out)
    return markdown(context, rows, left_out) + "\n" + "\n".join(str(path) for path in paths)


def analysis_in(
    out: Path, dense: ModelFolder, settings: AnalyzeSettings, load: Callable[[], BlockModel] | None = None
) -> Analysis:
    """Return the analysis in `out`; make it where there is none of this model and text. load: see `analyze`."""
    text = {"sources": [(text_digest(source.name), source.weight) for source in parse_sources(settings.sources)]}
    asked = [dense.identity.model_dump(exclude={"name", "proof"}), asdict(settings) | text, __version__]
    folder = out / f"analysis-{sha256(json.dumps(asked).encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        analyze(dense, folder, settings, load=load)
    return read_analysis(folder)


def compare(
    context: Context,
    specs: Sequence[MethodSpec],
    ks: Sequence[int],
    *,
    known: Sequence[Row] = (),
    keep: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Return a row for each method and number of blocks.

    known: rows made before; they are taken as they are. keep: called with each new row.
    A method that has too many sets to measure at some k (exhaustive) has no row there.
    """
    made = {row.key: row for row in known}
    rows = []
    with progress("comparing", len(specs) * len(ks), "choices") as advance:
        for k in ks:
            for spec in specs:
                key = (context.analysis.record.fingerprint, spec.label, context.seed, k)
                if key not in made:
                    row = _row(context.fresh(), spec, k)
                    if row is not None:
                        made[key] = row
                        if keep is not None:
                            keep(row)
                if key in made:
                    rows.append(made[key])
                advance(1)
    return rows


def too_many(spec: MethodSpec, num_blocks: int, k: int) -> str | None:
    """Return why a method has no row at k; None where it has one."""
    from mi_prun.selection.baselines import EXHAUSTIVE_LIMIT

    sets = math.comb(num_blocks, k)
    if spec.name != "exhaustive" or sets <= EXHAUSTIVE_LIMIT:
        return None
    return f"{spec.label} at {k} of {num_blocks} blocks ({sets:,} sets, more than {EXHAUSTIVE_LIMIT:,})"


def _row(context: Context, spec: MethodSpec, k: int) -> Row | None:
    if too_many(spec, context.num_blocks, k):
        return None
    (dense,) = context.held_out.measure([()])  # loads the model where it was not needed yet: no part of the choice
    begun = time.perf_counter()
    choice = choose(context, spec.name, k, spec.rerank)
    seconds = time.perf_counter() - begun
    (pruned,) = context.held_out.measure([choice.dropped])
    analysis, identity = context.analysis, context.analysis.record.dense
    return Row(
        analysis=analysis.record.fingerprint,
        method=spec.name,
        rerank=spec.rerank,
        seed=context.seed,
        num_blocks=context.num_blocks,
        dropped=choice.dropped,
        candidates=choice.candidates,
        selection_passes=choice.forward_passes,
        analysis_passes=analysis.passes if METHODS[spec.name].needs_analysis else 0.0,
        seconds=seconds,
        dense_perplexity=math.exp(dense.ce_nats),
        perplexity=math.exp(pruned.ce_nats),
        kl_nats_per_token=pruned.kl_nats,
        objective_nats=choice.objective.chosen_nats,
        objective_gap_nats=choice.objective.gap_nats,
        parameter_ratio=sum(identity.block_parameters[block] for block in choice.dropped) / identity.num_parameters,
        tool_version=__version__,
    )


def read_rows(folder: Path) -> list[Row]:
    """Return the rows made so far."""
    return read_lines(folder / ROWS_NAME, Row)


def write_comparison(context: Context, rows: Sequence[Row], folder: Path, left_out: Sequence[str] = ()) -> list[Path]:
    """Write the tables and pictures of `rows`; return their paths."""
    texts = {
        "comparison.md": markdown(context, rows, left_out),
        "comparison.csv": csv_text(rows),
        "comparison.json": json.dumps([row.columns() for row in rows], indent=2) + "\n",
        "quality.svg": quality_svg(rows),
        "segments.svg": segments_svg(context.analysis.segment_cost_nats),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def markdown(context: Context, rows: Sequence[Row], left_out: Sequence[str] = ()) -> str:
    """Return a table, the best perplexity first for each number of blocks. left_out: methods without a row, and why."""
    record, calibration = context.analysis.record, context.analysis.record.calibration
    ranking_tokens = context.analysis.ranking.size  # a CPU ranks on less text than the analysis has
    cells = [
        (
            f"{len(row.dropped)} ({row.block_ratio:.1%})",
            "" if row.parameter_ratio is None else f"{row.parameter_ratio:.1%}",
            row.label,
            f"{row.perplexity:,.2f}",
            f"{row.perplexity / row.dense_perplexity:.3f}",
            f"{row.kl_nats_per_token:.4f}",
            f"{row.passes:.1f}",
            f"{row.seconds:.1f}",
            ", ".join(map(str, row.dropped)),
        )
        for row in sorted(rows, key=lambda row: (len(row.dropped), row.perplexity))
    ]
    header = (
        "blocks", "parameters", "method", "perplexity", "x dense", "KL, nats/token", "passes", "seconds",
        "dropped (0-based)",
    )  # fmt: skip
    dense = f"{rows[0].dense_perplexity:,.2f}" if rows else "not measured"
    return (
        f"# {record.dense.name}: methods compared\n\n"
        f"Text: {calibration.source}, held-out part of {calibration.held_out_tokens:,} tokens, "
        f"{protocol(calibration.window_tokens, calibration.bos)}; dense perplexity {dense}. `NAME:N`: N sets compared "
        "by their measured loss (0: none). Passes: blocks x tokens evaluated for the choice, the analysis included "
        f"where it is used, over those of one pass of the dense model over {ranking_tokens:,} tokens, as "
        "if the method had been alone. Seconds: what a method before it has measured is not measured again.\n\n"
        + table(header, cells)
        + (f"\n\nLeft out: {'; '.join(left_out)}." if left_out else "")
        + "\n"
    )


def csv_text(rows: Sequence[Row]) -> str:
    """Return the rows as CSV with a header."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*Row.model_fields, *COMPUTED])
    for row in rows:
        writer.writerow([" ".join(map(str, v)) if isinstance(v, tuple) else v for v in row.columns().values()])
    return out.getvalue()
