"""Make points of rounds: medians, ratios to the dense model round by round, and what was reached of each bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import median

from bench.models.measured_model import MeasuredModel, plan_digest
from bench.models.roofline import bound, most, work
from bench.records.acceptance import acceptance_over
from bench.records.comparable import SAME_TEXT
from bench.records.paired import paired
from bench.records.schema import (
    DenseModel,
    MeasuredOn,
    Memory,
    Paired,
    Phase,
    PointRecord,
    Provenance,
    Ratio,
    Roofline,
    RoundRecord,
    Selection,
    Speed,
    StartUp,
    Workload,
)
from mi_prun.plan.plan import Quality

ANY_CONTEXT = 1 << 20


def points_of(
    run: str,
    dense: DenseModel,
    models: Sequence[MeasuredModel],
    load: Workload,
    rounds: dict[str, list[RoundRecord]],
    provenance: Provenance,
) -> list[PointRecord]:
    """Return one load's points, dense first. rounds: by the arm's label, in order."""
    first, base = models[0], rounds[models[0].arm.label]
    points = []
    for model in models:
        own = rounds[model.arm.label]
        ratios = paired([r.figures for r in own], [r.figures for r in base]) if model is not first else None
        speed = Speed(rounds=tuple(r.figures for r in own))
        bounded = ratios is not None and same_batches(load, own, base)
        quality, measured_on = model.quality, model.quality_measured_on
        if model is first:
            quality, measured_on = dense_quality(models)
        points.append(
            PointRecord(
                run=run,
                time=datetime.now(UTC).isoformat(timespec="seconds"),
                dense=dense,
                arm=model.arm,
                load=load,
                speed=speed,
                paired=ratios,
                roofline=rooflines(first, model, load, ratios) if ratios and bounded else (),
                memory=memory_of(model, load, own),
                start_up=start_up_of(own),
                quality=quality,
                quality_measured_on=measured_on,
                acceptance=acceptance_over([r.acceptance for r in own]),
                provenance=provenance,
                bound=bound_of(first, model, load) if bounded else None,
                selection=selection_of(model),
            )
        )
    return points


def dense_quality(models: Sequence[MeasuredModel]) -> tuple[Quality | None, MeasuredOn | None]:
    """Return the dense model's own quality: the one that its pruned models were compared with.

    None where they were compared on several texts.
    """
    measured = [(model.quality, model.quality_measured_on) for model in models[1:] if model.quality is not None]
    if not measured:
        return None, None
    quality, measured_on = measured[0]
    # Another machine's last digits are no other text.
    if any(
        not math.isclose(other.dense_perplexity, quality.dense_perplexity, rel_tol=SAME_TEXT) for other, _ in measured
    ):
        return None, None
    same = {"pruned_perplexity": quality.dense_perplexity, "kl_nats_per_token": 0.0}
    return quality.model_copy(update=same), measured_on


def same_batches(load: Workload, *arms: Sequence[RoundRecord]) -> bool:
    """Tell whether a step of each arm has as many requests: a bound is of the same step with fewer blocks.

    A model with less weight has more room for keys and values. Where the dense one cannot hold all that is in flight,
    the pruned one's steps are larger, and it gains more than its blocks. So too where requests pile up in an open
    loop, or are too few to tell.
    The longest request of a trace is not in the load: twice the mean stands for it.
    """
    if load.concurrency is None:
        speeds = [Speed(rounds=tuple(record.figures for record in rounds)) for rounds in arms]
        return not any(speed.piles_up or speed.backlog_growth is None for speed in speeds)
    length = load.input_tokens + load.output_tokens
    needed = load.concurrency * length * (1 if load.trace is None else 2)
    return needed <= min(record.kv_tokens for rounds in arms for record in rounds)


def rooflines(dense: MeasuredModel, pruned: MeasuredModel, load: Workload, ratios: Paired) -> tuple[Roofline, ...]:
    """Return the bounds that a load shows: prefill by TTFT with one request in flight, decode by TPOT in a closed loop.

    Under other loads the phases are mixed.
    """
    if dense.weights is None or pruned.weights is None or load.concurrency is None or load.trace is not None:
        return ()
    phases: list[tuple[Phase, int, Ratio | None]] = [
        ("prefill", round(load.input_tokens), ratios.ttft if load.concurrency == 1 else None),
        ("decode", round(load.input_tokens + load.output_tokens / 2), ratios.tpot),
    ]
    shown = []
    for phase, tokens, speedup in phases:
        if speedup is None:
            continue
        before = work(phase, dense.weights, load.concurrency, tokens)
        after = work(phase, pruned.weights, load.concurrency, tokens)
        shown.append(
            Roofline(
                phase=phase,
                batch=load.concurrency,
                tokens=tokens,
                dense_bytes=before.num_bytes,
                bytes=after.num_bytes,
                dense_flops=before.flops,
                flops=after.flops,
                bound=bound(before, after),
                speedup=speedup,
            )
        )
    return tuple(shown)


def bound_of(dense: MeasuredModel, pruned: MeasuredModel, load: Workload) -> float | None:
    """Bound the speed-up of tokens/s by the larger of the phases' bounds, alone and all in flight together.

    Where requests come as they like or differ in length, steps are of any kind. How long a trace's longest request is,
    is not in the load.
    """
    before, after = dense.weights, pruned.weights
    if before is None or after is None:
        return None
    into, out = round(load.input_tokens), round(load.output_tokens)
    if load.concurrency is None or load.trace is not None:
        return most(before, after, ANY_CONTEXT if load.trace is not None else into + out)
    phases: list[tuple[Phase, int]] = [("prefill", into), ("decode", into + out // 2)]
    return max(
        bound(work(phase, before, batch, tokens), work(phase, after, batch, tokens))
        for phase, tokens in phases
        for batch in (1, load.concurrency)
    )


def selection_of(model: MeasuredModel) -> Selection | None:
    """Say how a model's blocks were chosen; None for dense, and for a shape."""
    plan = model.plan
    return Selection(plan_sha256=plan_digest(plan), settings=plan.settings) if plan else None


def memory_of(model: MeasuredModel, load: Workload, rounds: Sequence[RoundRecord]) -> Memory:
    """Return what a model took under a load."""
    last = rounds[-1]
    length = round(load.input_tokens + load.output_tokens)
    device = [r.peak_device_bytes for r in rounds if r.peak_device_bytes is not None]
    return Memory(
        weight_bytes=model.weight_bytes,
        engine_weight_bytes=last.engine_weight_bytes,
        kv_tokens=last.kv_tokens,
        length_tokens=length,
        max_concurrency=last.kv_tokens / length,
        peak_device_bytes=max(device) if device else None,
        peak_rss_bytes=max(r.peak_rss_bytes for r in rounds),
    )


def start_up_of(rounds: Sequence[RoundRecord]) -> StartUp:
    """Return how long the engine took to start. Rounds on one engine tell of the same start."""
    starts = sorted({(r.startup_s, r.load_s) for r in rounds}, key=lambda start: start[0])
    loads = [load_s for _, load_s in starts if load_s is not None]
    return StartUp(
        starts=len(starts), startup_s=median(start for start, _ in starts), load_s=median(loads) if loads else None
    )


def line(point: PointRecord) -> str:
    """Return a point for a terminal."""
    speed, memory = point.speed, point.memory
    ratio = f"{point.paired.output_tokens_per_s.ratio:.2f}x" if point.paired else "1.00x"
    words = (
        f"{point.load.label}, {point.arm.label}: {speed.output_tokens_per_s:,.1f} tokens/s ({ratio}), "
        f"TTFT {speed.ttft.p50_ms:,.1f} ms, TPOT {speed.tpot.p50_ms:,.2f} ms, {memory.weight_bytes / 2**20:,.1f} MiB, "
        f"{memory.kv_tokens:,} KV tokens"
    )
    for roof in point.roofline:
        low, high = roof.speedup.low, roof.speedup.high
        interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
        words += (
            f"; {roof.phase} {roof.speedup.ratio:.3f}x{interval} of at most {roof.bound:.3f}x ({roof.efficiency:.1%})"
        )
        if low is not None and low > roof.bound:
            words += ", more than can be: the engines differ in more than their blocks (docs/reference/bench.md)"
    if point.quality is not None:
        words += f"; perplexity {point.quality.pruned_perplexity:.2f}"
    if point.acceptance is not None:
        words += f"; {point.acceptance.rate:.1%} accepted, {point.acceptance.length:.2f} tokens a pass"
    return words
