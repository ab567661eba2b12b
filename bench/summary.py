"""A run as rows: each model beside its dense one, as ratios of figures from the same run."""

from __future__ import annotations

from collections.abc import Sequence

from bench.record_v1 import BenchRecord
from mi_prun.artefact import Record
from mi_prun.errors import UserError


class Row(Record):
    """x_: the figure over the dense model's. x_low, x_high: tokens/s of the slowest and the fastest round, likewise.

    Latencies are medians over the rounds, in milliseconds.
    """

    model: str
    dropped: tuple[int, ...]
    block_ratio: float
    parameter_ratio: float
    method: str | None
    output_tokens_per_s: float
    x_output_tokens_per_s: float
    x_low: float
    x_high: float
    requests_per_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_p50_ms: float
    tpot_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    e2e_p50_ms: float
    e2e_p99_ms: float
    weight_bytes: int
    x_weight_bytes: float
    kv_tokens: int
    x_kv_tokens: float
    peak_rss_bytes: int
    startup_s: float
    perplexity: float | None
    x_perplexity: float | None
    kl_nats_per_token: float | None

    def line(self) -> str:
        """For a terminal."""
        quality = "" if self.perplexity is None else f", perplexity {self.perplexity:.2f}"
        kl = "" if not self.kl_nats_per_token else f" (KL {self.kl_nats_per_token:.4f} nats/token)"
        return (
            f"{self.block_ratio:6.1%} of blocks dropped: {self.output_tokens_per_s:8.1f} tokens/s "
            f"({self.x_output_tokens_per_s:.2f}x), TTFT {self.ttft_p50_ms:.1f} ms, TPOT {self.tpot_p50_ms:.2f} ms, "
            f"{self.weight_bytes / 2**20:,.1f} MiB ({self.x_weight_bytes:.2f}x), {self.kv_tokens:,} KV tokens "
            f"({self.x_kv_tokens:.2f}x){quality}{kl}"
        )


def summary(records: Sequence[BenchRecord]) -> list[Row]:
    """Rows of one run, by ratio, dense first. Raises UserError where the run has no dense model to compare with."""
    dense = next((record for record in records if record.arm == "dense"), None)
    if dense is None:
        raise UserError(f"run {records[0].run} has no record of its dense model (it was interrupted); run it again")
    return [_row(record, dense, records) for record in sorted(records, key=lambda record: len(record.blocks.dropped))]


def _row(record: BenchRecord, dense: BenchRecord, records: Sequence[BenchRecord]) -> Row:
    perplexity = _perplexity(record, records)
    dense_perplexity = _perplexity(dense, records)
    speed, memory = record.speed, record.memory
    return Row(
        model=record.model,
        dropped=record.blocks.dropped,
        block_ratio=record.blocks.block_ratio,
        parameter_ratio=record.blocks.parameter_ratio,
        method=record.blocks.method,
        output_tokens_per_s=speed.output_tokens_per_s,
        x_output_tokens_per_s=speed.output_tokens_per_s / dense.speed.output_tokens_per_s,
        x_low=min(speed.round_output_tokens_per_s) / dense.speed.output_tokens_per_s,
        x_high=max(speed.round_output_tokens_per_s) / dense.speed.output_tokens_per_s,
        requests_per_s=speed.requests_per_s,
        ttft_p50_ms=speed.ttft.p50_ms,
        ttft_p99_ms=speed.ttft.p99_ms,
        tpot_p50_ms=speed.tpot.p50_ms,
        tpot_p99_ms=speed.tpot.p99_ms,
        itl_p50_ms=speed.itl.p50_ms,
        itl_p99_ms=speed.itl.p99_ms,
        e2e_p50_ms=speed.e2e.p50_ms,
        e2e_p99_ms=speed.e2e.p99_ms,
        weight_bytes=memory.weight_bytes,
        x_weight_bytes=memory.weight_bytes / dense.memory.weight_bytes,
        kv_tokens=memory.kv_tokens,
        x_kv_tokens=memory.kv_tokens / dense.memory.kv_tokens,
        peak_rss_bytes=memory.peak_rss_bytes,
        startup_s=record.startup_s,
        perplexity=perplexity,
        x_perplexity=perplexity / dense_perplexity if perplexity and dense_perplexity else None,
        kl_nats_per_token=_kl(record),
    )


def _kl(record: BenchRecord) -> float | None:
    if record.arm == "dense":
        return 0.0
    return record.quality.kl_nats_per_token if record.quality else None


def _perplexity(record: BenchRecord, records: Sequence[BenchRecord]) -> float | None:
    """The dense model's own figure is the one that its pruned models were compared with."""
    if record.arm == "pruned":
        return record.quality.pruned_perplexity if record.quality else None
    return next((other.quality.dense_perplexity for other in records if other.quality), None)
