"""`mi-prun-bench recommend`: say which ratio to take within limits on quality, speed and memory, and why; or that none
fits.

Where a loss is allowed, the fastest model within it is taken. Where only a speed or a memory is asked for, the model
that loses least is taken. The dense model is among the candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.records.comparable import texts_of_quality
from bench.records.flat_rows import FlatRow, row_of
from bench.records.results import Run
from bench.records.schema import MeasuredArm
from bench.records.task_schema import TaskRecord
from bench.records.task_summary import mean_rows, task_rows
from mi_prun.artefact import Record
from mi_prun.errors import UserError
from mi_prun.planning.limit import parse_limit
from mi_prun.sizes import parse_size

GIB = 2**30
# vLLM takes this share of a device by default; activations and the KV cache must fit into it beside the weights.
DEVICE_SHARE = 0.9


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


@dataclass(frozen=True)
class TradeoffLimits:
    """Limits of a model. ppl_increase: 0.1 is 10 % more perplexity. memory_bytes: of the device. None: no limit."""

    ppl_increase: float | None = None
    speedup: float | None = None
    memory_bytes: int | None = None

    def words(self) -> str:
        """Say the limits in words."""
        parts = []
        if self.ppl_increase is not None:
            parts.append(f"at most {_percent(self.ppl_increase)} more perplexity")
        if self.speedup is not None:
            parts.append(f"at least {self.speedup:g}x tokens/s")
        if self.memory_bytes is not None:
            parts.append(f"weights within {DEVICE_SHARE:.0%} of {self.memory_bytes / GIB:.4g} GiB")
        return ", ".join(parts)


class Recommendation(Record):
    """A model to take.

    fits: whether it is within the limits; else it is the nearest. dropped: its blocks, 0-based. healing: how it was
    healed; None where it was not.
    """

    fits: bool
    arm: str
    model: str
    block_ratio: float
    dropped: tuple[int, ...]
    healing: str | None
    load: str
    x_output_tokens_per_s: float
    x_low: float | None
    x_high: float | None
    perplexity: float | None
    x_perplexity: float | None
    weight_bytes: int
    x_kv_tokens: float
    why: str

    def line(self) -> str:
        """Return the recommendation for a terminal."""
        head = f"take {self.arm}" if self.fits else f"none fits; nearest is {self.arm}"
        return f"{head}: {self.why}"


def parse_limits(max_ppl_increase: str | None, min_speedup: float | None, memory: str | None) -> TradeoffLimits:
    """Parse the limits of the options. Raises UserError for a limit that is none, and where there is not one."""
    if max_ppl_increase is None and min_speedup is None and memory is None:
        raise UserError("give at least one of --max-ppl-increase 10%, --min-speedup 1.25 and --memory 24GiB")
    if min_speedup is not None and not (math.isfinite(min_speedup) and min_speedup > 0):
        raise UserError(f"--min-speedup must be over 0, got {min_speedup:g}")
    allowed = parse_limit(max_ppl_increase, None)
    return TradeoffLimits(
        allowed.value if allowed else None,
        min_speedup,
        parse_size(memory, "--memory", "24GiB or 500MB", needs_unit=True) if memory is not None else None,
    )


def recommend(run: Run, limits: TradeoffLimits, tasks: Sequence[TaskRecord] = ()) -> Recommendation:
    """Choose among the models under the run's main load. Drafts are left out: they are the dense model.

    tasks: what the models answered, to be told beside the rest; no limit is set on it.
    """
    points = [point for point in run.under(run.main) if point.arm.kind != "draft"]
    rows = [row_of(point, run.dense) for point in points]
    if limits.ppl_increase is not None and all(row.x_perplexity is None for row in rows if row.dropped):
        raise UserError(
            f"run {run.name} did not measure quality, which --max-ppl-increase needs; leave that limit out, or measure "
            "again with --quality-text TEXT"
        )
    fit = [row for row in rows if not misses(row, limits)]
    if fit:
        row = fastest(fit) if limits.ppl_increase is not None else least(fit)
        why = f"{reason(fit, limits)}: {figures(row, rows[0])}{doubt(row, limits)}"
    else:
        row = min(rows, key=lambda row: (sum(amount for _, amount in misses(row, limits)), row.x_perplexity or 0.0))
        missed = "; ".join(words for words, _ in misses(row, limits))
        why = f"{missed}; it has {figures(row, rows[0])}"
    taken = next(point.arm for point in points if point.arm.label == row.arm)
    why += healed(taken) + answers(taken, tasks)
    if (texts := texts_of_quality(point for point in points if point.arm.kind == "pruned")) > 1:
        why += f"; perplexities are of {texts} texts, which do not compare: give --quality-text to measure on one"
    return Recommendation(
        fits=bool(fit),
        arm=row.arm,
        model=taken.model,
        block_ratio=row.block_ratio,
        dropped=row.dropped,
        healing=row.healing,
        load=row.load,
        x_output_tokens_per_s=row.x_output_tokens_per_s,
        x_low=row.x_low,
        x_high=row.x_high,
        perplexity=row.perplexity,
        x_perplexity=row.x_perplexity,
        weight_bytes=row.weight_bytes,
        x_kv_tokens=row.x_kv_tokens,
        why=why,
    )


def misses(row: FlatRow, limits: TradeoffLimits) -> list[tuple[str, float]]:
    """Return each limit that the model is beyond: in words, and by how much of the limit."""
    missed = []
    if limits.ppl_increase is not None and row.dropped:
        if row.x_perplexity is None:
            missed.append(("its quality was not measured", math.inf))
        elif (increase := row.x_perplexity - 1) > limits.ppl_increase:
            over = (increase - limits.ppl_increase) / (1 + limits.ppl_increase)
            missed.append((f"perplexity {increase:+.1%}, {_percent(limits.ppl_increase)} allowed", over))
    if limits.speedup is not None and row.x_output_tokens_per_s < limits.speedup:
        speed = row.x_output_tokens_per_s
        missed.append((f"{speed:.2f}x tokens/s of {limits.speedup:g}x", (limits.speedup - speed) / limits.speedup))
    if limits.memory_bytes is not None and row.weight_bytes > (room := DEVICE_SHARE * limits.memory_bytes):
        words = f"weights of {row.weight_bytes / GIB:.2f} GiB, {room / GIB:.2f} GiB of room"
        missed.append((words, (row.weight_bytes - room) / room))
    return missed


def fastest(rows: Sequence[FlatRow]) -> FlatRow:
    """Return the fastest model; of those with its blocks, the one with the least loss: healing changes no speed, and
    what is measured between them is noise.
    """
    first = max(rows, key=lambda row: row.x_output_tokens_per_s)
    return least([row for row in rows if row.dropped == first.dropped])


def least(rows: Sequence[FlatRow]) -> FlatRow:
    """Return the model with the least loss: perplexity where it was measured, else the fewest blocks, healed ones
    first; the faster of equals.
    """
    if all(row.x_perplexity is not None or not row.dropped for row in rows):
        return min(rows, key=lambda row: (row.x_perplexity or 1.0, -row.x_output_tokens_per_s))
    return min(rows, key=lambda row: (len(row.dropped), row.healing is None, -row.x_output_tokens_per_s))


def reason(fit: Sequence[FlatRow], limits: TradeoffLimits) -> str:
    """Say why a model was taken."""
    how = "the fastest" if limits.ppl_increase is not None else "the least loss"
    return f"{how} of the {len(fit)} that fit ({limits.words()})"


def figures(row: FlatRow, dense: FlatRow) -> str:
    """Say a model's figures, beside the dense one's."""
    speed = f"{row.x_output_tokens_per_s:.2f}x tokens/s"
    if row.x_low is not None and row.x_high is not None:
        speed += f" [{row.x_low:.2f}, {row.x_high:.2f}]"
    words = [f"{speed} ({row.load})", f"{row.x_kv_tokens:.2f}x KV tokens", f"weights {row.weight_bytes / GIB:.3f} GiB"]
    if row.perplexity is not None and dense.perplexity is not None:
        words.append(f"perplexity {dense.perplexity:.2f} -> {row.perplexity:.2f}")
    return ", ".join(words)


def healed(arm: MeasuredArm) -> str:
    """Say how the model was healed, where it was."""
    return "" if arm.healing is None else f", healed by {arm.healing.method} on {arm.healing.text}"


def answers(arm: MeasuredArm, tasks: Sequence[TaskRecord]) -> str:
    """Say what the model lost on tasks, where it and the dense model answered several."""
    for mean in mean_rows(task_rows(tasks)):
        if mean.arm.kind == "pruned" and mean.arm.identity == arm.identity and mean.difference is not None:
            middle, low, high = (100 * value for value in mean.difference)
            return f", {middle:+.1f} [{low:+.1f}, {high:+.1f}] points on {mean.tasks} tasks"
    return ""


def doubt(row: FlatRow, limits: TradeoffLimits) -> str:
    """Say where the interval of the speed reaches below what was asked for, or below the dense model's."""
    asked = limits.speedup or 1.0
    if row.x_low is None or row.x_low >= asked:
        return ""
    return f"; its interval reaches below {asked:g}x: measure more rounds to be sure"
