"""Turn points into flat rows, for tables and CSV: each model under each load, beside the dense model under the same
load.
"""

from __future__ import annotations

from typing import Any

from bench.records.results import Run
from bench.records.schema import Paired, Phase, PointRecord, Ratio
from mi_prun.artefact import Record


class FlatRow(Record):
    """A model under a load, beside the dense model under the same one.

    x_: how many times the dense model's figure. For speeds and latencies it is how many times faster, round by round;
    x_low, x_high: the 95 % interval of that. Latencies are medians over the rounds, in milliseconds; min_, max_: of the
    rounds.

    bound: what bytes and FLOPs allow at most; x_bound is that of the tokens/s. efficiency: what of it was reached.
    max_concurrency: requests of length_tokens that fit in the KV cache. healing: how the kept blocks were healed.
    """

    run: str
    dense_model: str
    arm: str
    kind: str
    method: str | None
    healing: str | None
    dropped: tuple[int, ...]
    block_ratio: float
    parameter_ratio: float
    load: str
    concurrency: int | None
    rate_per_s: float | None
    input_tokens: float
    output_tokens: float
    perplexity: float | None
    x_perplexity: float | None
    kl_nats_per_token: float | None
    output_tokens_per_s: float
    min_output_tokens_per_s: float
    max_output_tokens_per_s: float
    x_output_tokens_per_s: float
    x_low: float | None
    x_high: float | None
    x_bound: float | None
    rounds: int
    total_tokens_per_s: float
    requests_per_s: float
    saturated: bool
    ttft_p50_ms: float
    ttft_p90_ms: float
    ttft_p99_ms: float
    x_ttft: float
    tpot_p50_ms: float
    tpot_p90_ms: float
    tpot_p99_ms: float
    x_tpot: float | None
    itl_p50_ms: float
    itl_p90_ms: float
    itl_p99_ms: float
    e2e_p50_ms: float
    e2e_p90_ms: float
    e2e_p99_ms: float
    prefill_bound: float | None
    prefill_efficiency: float | None
    decode_bound: float | None
    decode_efficiency: float | None
    weight_bytes: int
    x_weight_bytes: float
    engine_weight_bytes: int | None
    kv_tokens: int
    x_kv_tokens: float
    length_tokens: int
    max_concurrency: float
    peak_device_bytes: int | None
    peak_rss_bytes: int
    startup_s: float
    load_s: float | None
    energy_j: float | None
    acceptance_rate: float | None
    acceptance_length: float | None


ONE = Ratio(ratio=1.0, low=None, high=None, pairs=0)


def rows_of(run: Run) -> list[FlatRow]:
    """Return the rows of a run, load by load, dense first in each."""
    rows = []
    for load in run.loads:
        points = run.under(load)
        dense = next((point for point in points if point.arm.kind == "dense"), None)
        rows += [row_of(point, dense) for point in points if dense is not None]
    return rows


def row_of(point: PointRecord, dense: PointRecord) -> FlatRow:
    """Return the row of a point. dense: the dense model's point under the same load."""
    speed, memory, paired = point.speed, point.memory, point.paired
    quality = point.quality
    throughput = paired.output_tokens_per_s if paired else ONE
    return FlatRow(
        run=point.run,
        dense_model=point.dense.name,
        arm=point.arm.label,
        kind=point.arm.kind,
        method=point.arm.blocks.method,
        healing=point.arm.healing.method if point.arm.healing else None,
        dropped=point.arm.blocks.dropped,
        block_ratio=point.arm.blocks.block_ratio,
        parameter_ratio=point.arm.blocks.parameter_ratio,
        load=point.load.label,
        concurrency=point.load.concurrency,
        rate_per_s=point.load.rate_per_s,
        input_tokens=point.load.input_tokens,
        output_tokens=point.load.output_tokens,
        perplexity=quality.pruned_perplexity if quality else None,
        # Over the dense model's on the same text: plans may be of several.
        x_perplexity=quality.pruned_perplexity / quality.dense_perplexity if quality else None,
        kl_nats_per_token=quality.kl_nats_per_token if quality else None,
        output_tokens_per_s=speed.output_tokens_per_s,
        min_output_tokens_per_s=min(each.output_tokens_per_s for each in speed.rounds),
        max_output_tokens_per_s=max(each.output_tokens_per_s for each in speed.rounds),
        x_output_tokens_per_s=throughput.ratio,
        x_low=throughput.low,
        x_high=throughput.high,
        x_bound=point.bound,
        rounds=len(speed.rounds),
        total_tokens_per_s=speed.total_tokens_per_s,
        requests_per_s=speed.requests_per_s,
        saturated=point.saturated,
        x_ttft=paired.ttft.ratio if paired else 1.0,
        x_tpot=_tpot(paired),
        **_latencies(point),
        **_roofs(point),
        weight_bytes=memory.weight_bytes,
        x_weight_bytes=memory.weight_bytes / dense.memory.weight_bytes,
        engine_weight_bytes=memory.engine_weight_bytes,
        kv_tokens=memory.kv_tokens,
        x_kv_tokens=memory.kv_tokens / dense.memory.kv_tokens,
        length_tokens=memory.length_tokens,
        max_concurrency=memory.max_concurrency,
        peak_device_bytes=memory.peak_device_bytes,
        peak_rss_bytes=memory.peak_rss_bytes,
        startup_s=point.start_up.startup_s,
        load_s=point.start_up.load_s,
        energy_j=speed.energy_j,
        acceptance_rate=point.acceptance.rate if point.acceptance else None,
        acceptance_length=point.acceptance.length if point.acceptance else None,
    )


def perplexity_of(point: PointRecord) -> float | None:
    """Return a point's perplexity. A draft has none of its own: it answers as the dense model does."""
    return point.quality.pruned_perplexity if point.quality else None


def _tpot(paired: Paired | None) -> float | None:
    if paired is None:
        return 1.0
    return paired.tpot.ratio if paired.tpot else None


def _latencies(point: PointRecord) -> dict[str, Any]:
    return {
        f"{name}_{percentile}_ms": getattr(getattr(point.speed, name), f"{percentile}_ms")
        for name in ("ttft", "tpot", "itl", "e2e")
        for percentile in ("p50", "p90", "p99")
    }


def _roofs(point: PointRecord) -> dict[str, Any]:
    phases: tuple[Phase, ...] = ("prefill", "decode")
    roofs = {roof.phase: roof for roof in point.roofline}
    bounds = {f"{phase}_bound": roofs[phase].bound if phase in roofs else None for phase in phases}
    return bounds | {f"{phase}_efficiency": roofs[phase].efficiency if phase in roofs else None for phase in phases}
