"""Make the sections of the report: a run with what its models were asked, or only the latter where there is no run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bench.records.comparable import differences, texts_of_quality
from bench.records.flat_rows import FlatRow, row_of
from bench.records.machine import machine_words
from bench.records.results import Results, Run
from bench.records.schema import FEW_ROUNDS, MeasuredArm, PointRecord, Provenance
from bench.records.task_schema import GenerationRecord, Origin, TaskRecord
from bench.records.task_summary import MeanRow, TaskRow, mean_rows, task_rows
from bench.reports.plots import (
    block_map_svg,
    curve_groups,
    curves_svg,
    memory_svg,
    pareto_svg,
    roofline_svg,
    share,
    tasks_svg,
)
from bench.reports.report_tables import (
    MIB,
    Table,
    drafts_table,
    loads_table,
    main_table,
    other_scores,
    percentile_tables,
    roofline_table,
    tasks_table,
)

# Below this a step of the engine costs more than reading the weights: 200 MiB take 10 ms at a CPU's 20 GB/s, and a
# step's own work takes a few.
OVERHEAD_BYTES = 200 * MIB
# Of the ratios that cost at most this much perplexity, the largest is in the headline.
HEADLINE_PERPLEXITY = 1.25
MEASURED_ON = {
    "plan": "the dense model with blocks skipped",
    "healing": "the model in memory, before and after healing",
}
BLOCKS_IN_HALF = 32  # as many can be told apart in a block map of half the page's width


@dataclass(frozen=True)
class Picture:
    """A picture of a section."""

    title: str
    svg: str
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Prompt:
    """A prompt with the answers to it. answers: the model's label, and what it wrote."""

    prompt: str
    answers: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Section:
    """What the templates show, in this order. arms: of the block map. footers: name and text."""

    title: str
    time: str
    about: str
    headline: str
    notes: tuple[str, ...]
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]
    arms: tuple[MeasuredArm, ...]
    prompts: tuple[Prompt, ...]
    footers: tuple[tuple[str, str], ...]


def sections(results: Results) -> list[Section]:
    """Return the sections, the newest run first. What a model was asked stands in its newest run, else on its own."""
    shown: list[Section] = []
    told: set[str | None] = set()
    for run in results.runs:
        key = run.dense.dense.weights_sha256
        again = key in told or key is None
        told.add(key)
        tasks, generations = ([], []) if again else (results.tasks_of(key), results.generations_of(key))
        shown.append(_section(run, tasks, generations))
    origins: list[Origin] = [*results.tasks, *results.generations]
    for key in dict.fromkeys(origin.dense.weights_sha256 for origin in reversed(origins)):
        if key not in told:
            shown.append(_section(None, results.tasks_of(key), results.generations_of(key)))
    return shown


def _section(run: Run | None, tasks: Sequence[TaskRecord], generations: Sequence[GenerationRecord]) -> Section:
    rows = task_rows(tasks)
    means = mean_rows(rows)
    newest: Origin | PointRecord = run.dense if run else [*generations, *tasks][-1]
    name = newest.dense.shape or newest.dense.name
    time = datetime.fromisoformat(newest.time).strftime("%Y-%m-%d %H:%M UTC")
    tables = [
        main_table(run) if run else None,
        tasks_table(rows, means),
        loads_table(run) if run else None,
        roofline_table(run) if run else None,
        drafts_table(run) if run else None,
        *(percentile_tables(run) if run else ()),
    ]
    arms = run.arms if run else _asked_arms(rows, generations)
    return Section(
        title=Path(name).name if Path(name).is_absolute() else name,
        time=time,
        about=f"Every ratio is to the dense model of the same run, {time}." if run else f"Asked {time}, not loaded.",
        headline=headline(run) if run else tasks_headline(means),
        notes=tuple(_notes(run, rows)),
        tables=tuple(table for table in tables if table is not None),
        pictures=tuple(picture for picture in _pictures(run, rows, newest.run) if picture.svg),
        arms=tuple(arms),
        prompts=tuple(_prompts(generations)),
        footers=(*(_run_footers(run) if run else ()), *_asked_footers(tasks, generations), *_origin(newest)),
    )


def _asked_arms(rows: Sequence[TaskRow], generations: Sequence[GenerationRecord]) -> list[MeasuredArm]:
    """Return the models that were asked, as the tasks' table calls them."""
    arms = {record.arm.identity: record.arm for record in generations}
    return list((arms | {row.record.arm.identity: row.record.arm for row in rows}).values())


def _pictures(run: Run | None, rows: Sequence[TaskRow], name: str) -> list[Picture]:
    pictures = []
    if run:
        caption = (
            "Square: dense, the origin of both axes. Other marks: share of blocks dropped. Whiskers: 95 % intervals. "
            + ("Arrows: from each pruned model to the same one healed. " if any(a.healing for a in run.arms) else "")
            + f"Load: {run.main.label}."
        )
        pictures.append(Picture("Quality against speed", pareto_svg(run), caption))
    caption = "Marks: the paired difference; whiskers: its 95 % interval. Left of the line is worse than dense."
    tasks = tasks_svg(rows, name)
    pictures.append(Picture("Tasks against dense", tasks, caption))
    if not run:
        return pictures
    beside = not tasks and run.dense.arm.blocks.num_blocks <= BLOCKS_IN_HALF
    if beside:
        pictures.append(_block_map(run, wide=False))
    for group in curve_groups(run):
        short, how = ("in flight",) * 2 if group[0].concurrency else ("a second", "a second, as they arrive")
        caption = f"Each mark is a number of requests {how}: left TTFT, right TPOT, medians."
        title = f"Latency against throughput: {group[0].preset}, requests {short}"
        pictures.append(Picture(title, curves_svg(run, group), caption, wide=True))
    caption = (
        "Grey bar, ending in a tick: what the dropped bytes and FLOPs allow at most. Circle and whiskers: what was "
        "reached, 95 % interval. Percentages: reached over allowed."
    )
    pictures.append(Picture("Roofline efficiency", roofline_svg(run), caption, wide=True))
    pictures.append(Picture("Memory", memory_svg(run), wide=True))
    return pictures if beside else [*pictures, _block_map(run, wide=True)]


def _block_map(run: Run, wide: bool) -> Picture:
    caption = "Blocks of the dense model, 0-based. Filled: kept. Crossed: dropped."
    return Picture("Block map", block_map_svg(run.arms), caption, wide)


def _prompts(generations: Sequence[GenerationRecord]) -> list[Prompt]:
    """Return the newest record of each model; models side by side under each prompt, fewest dropped blocks first."""
    newest = {record.arm.identity: record for record in generations}
    records = sorted(newest.values(), key=lambda record: (len(record.arm.blocks.dropped), bool(record.arm.healing)))
    texts: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        for continuation in record.continuations:
            texts.setdefault(continuation.prompt, []).append((record.arm.label, continuation.text.strip()))
    return [Prompt(prompt, tuple(answers)) for prompt, answers in texts.items()]


def headline(run: Run) -> str:
    """Say what was gained and lost: by the largest ratio that costs at most a quarter of perplexity, else by the
    smallest.
    """
    rows = [row_of(point, run.dense) for point in run.under(run.main)]
    pruned = [row for row in rows if row.kind == "pruned"]
    if not pruned:
        return "Only the dense model was measured." if len(rows) == 1 else _draft_headline(rows)
    fair = [row for row in pruned if row.x_perplexity and row.x_perplexity <= HEADLINE_PERPLEXITY]
    row = max(fair, key=lambda r: (len(r.dropped), -(r.perplexity or 0.0))) if fair else min(pruned, key=_least_lost)
    words = (
        f"{share(row.block_ratio)} of blocks gone{_healed(row)}: {_speed(row)}, {row.x_weight_bytes:.2f}× weight "
        f"bytes, {row.x_kv_tokens:.2f}× KV tokens"
    )
    if row.perplexity is not None and rows[0].perplexity is not None:
        words += f", perplexity {rows[0].perplexity:.1f} → {row.perplexity:.1f}"
    return words


def _least_lost(row: FlatRow) -> tuple[int, float]:
    return len(row.dropped), row.perplexity or math.inf


def _healed(row: FlatRow) -> str:
    return ", the others healed" if row.healing else ""


def _speed(row: FlatRow) -> str:
    """Say a speed-up with its interval, and whether that leaves out no change."""
    words = f"{row.x_output_tokens_per_s:.2f}× tokens/s"
    if row.x_low is None or row.x_high is None:
        return f"{words} (one round)"
    within = " (not beyond noise)" if row.x_low <= 1 <= row.x_high else ""
    return f"{words} [{row.x_low:.2f}, {row.x_high:.2f}]{within}"


def tasks_headline(means: Sequence[MeanRow]) -> str:
    """Say what the smallest of the models lost on all tasks."""
    pruned = [mean for mean in means if mean.difference is not None]
    if not pruned:
        return "Tasks and continuations; nothing was measured under load."
    middle, low, high = (100 * value for value in pruned[-1].difference or (0.0, 0.0, 0.0))
    return (
        f"{share(pruned[-1].arm.blocks.block_ratio)} of blocks gone"
        f"{', the others healed' if pruned[-1].arm.healing else ''}: {middle:+.1f} points of right answers "
        f"[{low:+.1f}, {high:+.1f}] on {pruned[-1].tasks} tasks"
    )


def _draft_headline(rows: Sequence[FlatRow]) -> str:
    best = max(rows[1:], key=lambda row: row.x_output_tokens_per_s)
    return f"{best.arm}: {_speed(best)}, the dense model's own answers"


def _notes(run: Run | None, rows: Sequence[TaskRow]) -> list[str]:
    notes = []
    if run is not None:
        weights = run.dense.memory.weight_bytes
        if run.dense.dense.shape:
            notes.append(
                f"The weights are random: {run.dense.dense.shape} is a shape, with which only speed and memory mean "
                "anything."
            )
        if weights <= OVERHEAD_BYTES:
            notes.append(
                f"The dense model has only {weights / MIB:.0f} MiB of weights: the engine's own work per step sets its "
                "speed. Speed and latency here say nothing about larger models; quality, weight bytes and KV tokens "
                "are what they are."
            )
        if wrong := [f"{p.arm.label}, {p.load.label}: {words}" for p in run.points for words in p.impossible]:
            notes.append(
                f"More than can be, so no measurement of the blocks: {'; '.join(wrong)}. Something else differs "
                "between the engines, such as where their memory lies; measure with --engines alone and more rounds."
            )
        if (rounds := len(run.dense.speed.rounds)) < FEW_ROUNDS:
            notes.append(f"Measured in {rounds} round{'s' * (rounds > 1)}: fewer than {FEW_ROUNDS} rounds tell little.")
        if (texts := texts_of_quality(p for p in run.under(run.main) if p.arm.kind == "pruned")) > 1:
            notes.append(
                f"Perplexity was measured on {texts} texts (Quality, below): it compares between models of one text "
                "only. An arrow is drawn where the pruned and the healed model share theirs."
            )
        if full := [load.label for load in run.loads if any(point.saturated for point in run.under(load))]:
            notes.append(f"Requests arrived faster than they were answered: {'; '.join(full)}.")
        elif any(point.speed.backlog_growth is not None for point in run.points):
            notes.append("No rate was too high for any model: higher --rates would show where they end.")
    elsewhere = {
        f"{row.record.arm.label}: {words}": None
        for row in rows
        if row.base is not None
        for words in differences(row.base.provenance, row.record.provenance)
    }
    if elsewhere:
        notes.append(
            "Some tasks were not asked under the dense model's conditions, which can turn answers too: "
            f"{'; '.join(elsewhere)}."
        )
    cut = [row.record for row in rows if row.record.score.truncated_items]
    if cut:
        names = ", ".join(dict.fromkeys(record.score.task for record in cut))
        most = max(record.score.truncated_items / record.score.items for record in cut)
        notes.append(f"The context cut off the beginning of up to {most:.0%} of a task's items: {names}.")
    return notes


def _run_footers(run: Run) -> list[tuple[str, str]]:
    """Say what the figures of a run depend on."""
    load, dense = run.main, run.dense
    given = dense.provenance
    loops = "; ".join(dict.fromkeys(load.label for load in run.loads))
    rounds = len(dense.speed.rounds)
    alive = "engines started anew each round" if given.engines_alive == "alone" else "engines side by side"
    asked = (
        f"{load.tool}: {loops}; {load.prompts} requests a round of the first, {load.warmups} before it not counted; "
        f"dense and pruned in turn, {rounds} rounds, {alive}; figures are medians over the rounds. ITL is between "
        "chunks as a client sees them"
    )
    traces = dict.fromkeys(
        f"{load.trace.name}, {load.trace.requests} requests, sha256 {load.trace.sha256[:12]}"
        for load in run.loads
        if load.trace
    )
    qualities = dict.fromkeys(_protocol(point) for point in run.under(run.main) if point.arm.kind == "pruned")
    return [
        ("Load", asked),
        *([("Trace", "; ".join(traces))] if traces else []),
        (
            "Speed",
            "ratios are geometric means over pairs of rounds, with Student's t intervals of the log ratios; never "
            "across runs",
        ),
        ("Quality", "; ".join(filter(None, qualities)) or "not measured"),
        ("Memory", "weights by the safetensors headers; KV cache as the engine says; RSS summed over its processes"),
        ("Selection", "; ".join(_selections(run)) or "nothing pruned"),
        *([("Healing", healed)] if (healed := "; ".join(_healings(run))) else []),
        *([("Sweep", asked_for)] if (asked_for := _settings(given.sweep)) else []),
        ("Server", f"mi-prun-serve {' '.join(given.serve_flags)}".strip() + _environment(given)),
    ]


def _selections(run: Run) -> Iterator[str]:
    """Yield each method, and what it chose by, among how many."""
    pruned = [point for point in run.under(run.main) if point.arm.blocks.dropped]
    for method in dict.fromkeys(point.arm.blocks.method for point in pruned):
        chosen = [p.selection.settings for p in pruned if p.selection and p.arm.blocks.method == method]
        counts = [count for settings in chosen if isinstance(count := settings.get("rerank"), int)]
        words = [str(method)]
        words += dict.fromkeys(
            f"calibration text {settings['calibration']}" for settings in chosen if "calibration" in settings
        )
        if counts:
            many = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
            words.append(f"{many} candidates compared by their loss" if max(counts) else "no candidates compared")
        words += dict.fromkeys(f"seed {settings['seed']}" for settings in chosen if "seed" in settings)
        yield ", ".join(words)


def _healings(run: Run) -> Iterator[str]:
    """Yield how each healed model was healed, and on what."""
    for arm in run.arms:
        if (by := arm.healing) is not None:
            fitted = f", {by.fit_tokens:,} of the closed form" if by.fit_tokens else ""
            yield f"{arm.label}: {by.method}, {by.tokens:,} tokens{fitted}, of {by.text}, seed {by.seed}"


def _settings(sweep: Mapping[str, object]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sweep.items() if value not in (None, False))


def _environment(given: Provenance) -> str:
    return "".join(f"; {name}={value}" for name, value in given.environment.items())


def _protocol(point: PointRecord) -> str:
    quality = point.quality
    if quality is None:
        return ""
    on = MEASURED_ON.get(point.quality_measured_on or "", "the written checkpoint")
    return f"{quality.text}: {quality.predicted_tokens:,} predicted tokens, {quality.protocol}; measured on {on}"


def _asked_footers(tasks: Sequence[TaskRecord], generations: Sequence[GenerationRecord]) -> list[tuple[str, str]]:
    footers = []
    if tasks:
        shots = dict.fromkeys(
            f"{record.score.task} {record.score.fewshot}-shot from {record.score.source}" for record in tasks
        )
        newest = tasks[-1]
        limit = f"the first {newest.limit} items" if newest.limit else "all items"
        words = (
            f"lm-eval {newest.provenance.versions.get('lm-eval', 'unknown')} through the served endpoint, its own "
            f"prompts and metrics, {limit}, context {newest.context_tokens:,} tokens: {', '.join(shots)}"
        )
        footers.append(("Tasks", words))
        if others := other_scores([row.record for row in task_rows(tasks)]):
            footers.append(("Other scores", "; ".join(others)))
        if checks := dict.fromkeys(
            f"{record.arm.label} {record.logprobs.mean_nats:.4f} (at most {record.logprobs.max_nats:.3f}; let pass up "
            f"to {record.logprobs.let_pass_nats:.3g})"
            for record in tasks
            if record.logprobs
        ):
            check = next(record.logprobs for record in tasks if record.logprobs)
            footers.append(
                (
                    "Log-probabilities",
                    f"the endpoint's against transformers' ({check.direct}), nats apart on the mean over "
                    f"{check.tokens} tokens: {', '.join(checks)}",
                )
            )
    if generations:
        sampled = generations[-1]
        footers.append(
            (
                "Continuations",
                f"temperature {sampled.temperature:g}, seed {sampled.seed}, {sampled.max_tokens} tokens at most",
            )
        )
    return footers


def _origin(newest: Origin | PointRecord) -> list[tuple[str, str]]:
    given = newest.provenance
    return [
        ("Machine", machine_words(given.machine)),
        ("Versions", ", ".join(f"{package} {number}" for package, number in given.versions.items())),
        ("Run", f"{newest.run}, {newest.time}, commit {given.commit or 'unknown'}, seed {given.seed}"),
    ]
