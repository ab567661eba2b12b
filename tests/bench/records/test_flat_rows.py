"""Flat rows: each figure of a point, and how many times the dense model's it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.records.flat_rows import perplexity_of, row_of, rows_of
from bench.records.results import Run
from bench.records.schema import DraftAcceptance, PointRecord, Speed

Point = Callable[..., PointRecord]


def test_a_pruned_model_beside_the_dense_one(point: Point) -> None:
    """Without 2 of 8 blocks: 1.25 times the speed, 0.75 of the weights, perplexity 70 of 50."""
    row = row_of(point((2, 3)), point())
    assert (row.run, row.dense_model, row.arm, row.kind, row.method) == (
        "run-1",
        "owner/dense",
        "hybrid 25.0%",
        "pruned",
        "hybrid",
    )
    assert (row.dropped, row.block_ratio, row.parameter_ratio) == ((2, 3), 0.25, pytest.approx(0.225))
    assert (row.load, row.concurrency, row.rate_per_s) == ("chat, 4 in flight", 4, None)
    assert (row.perplexity, row.x_perplexity, row.kl_nats_per_token) == (70, pytest.approx(1.4), pytest.approx(0.2))
    assert (row.x_output_tokens_per_s, row.x_low, row.x_high) == (1.25, 1.23, 1.27)
    assert row.x_bound == pytest.approx(4 / 3)
    # Rounds of 95, 100 and 110 tokens/s on the dense model.
    speeds = row.min_output_tokens_per_s, row.output_tokens_per_s, row.max_output_tokens_per_s
    assert speeds == pytest.approx((118.75, 125, 137.5))
    assert (row.rounds, row.total_tokens_per_s, row.requests_per_s) == (3, 375, pytest.approx(125 / 64))
    # Latencies of 800 ms over the rate, of the median round; x_ of latencies are how many times faster.
    for name in ("ttft", "tpot", "itl", "e2e"):
        latencies = [getattr(row, f"{name}_{share}_ms") for share in ("p50", "p90", "p99")]
        assert latencies == pytest.approx([6.4, 9.6, 12.8])
    assert (row.x_ttft, row.x_tpot) == (1.25, 1.25)
    assert (row.weight_bytes, row.x_weight_bytes) == (0.75 * 2**30, 0.75)
    assert (row.kv_tokens, row.x_kv_tokens) == (133_333, pytest.approx(4 / 3, rel=1e-5))
    assert (row.length_tokens, row.max_concurrency) == (192, pytest.approx(133_333 / 192))
    assert (row.decode_bound, row.decode_efficiency) == pytest.approx((4 / 3, 1.25 * 3 / 4))
    assert (row.prefill_bound, row.prefill_efficiency) == (None, None)  # this load does not show it
    assert (row.startup_s, row.load_s, row.saturated) == (25, 1.5, False)
    assert (row.energy_j, row.acceptance_rate, row.acceptance_length) == (None, None, None)


def test_the_dense_model_is_one_times_itself(point: Point) -> None:
    row = row_of(point(), point())
    ones = (row.x_output_tokens_per_s, row.x_ttft, row.x_tpot, row.x_perplexity, row.x_weight_bytes, row.x_kv_tokens)
    assert ones == (1,) * 6
    assert (row.x_low, row.x_high, row.x_bound, row.method, row.dropped) == (None, None, None, None, ())


def test_a_draft_has_what_was_accepted_and_no_perplexity(point: Point) -> None:
    acceptance = DraftAcceptance(drafts=10, drafted_tokens=40, accepted_tokens=30)
    draft = point((2, 3), kind="draft", quality=None, quality_measured_on=None, acceptance=acceptance)
    row = row_of(draft, point())
    assert (row.acceptance_rate, row.acceptance_length) == (0.75, 4)
    assert (row.perplexity, row.x_perplexity, perplexity_of(draft)) == (None, None, None)
    assert perplexity_of(point((3,))) == 60


def test_requests_of_one_token_have_no_time_per_token(point: Point) -> None:
    shown = point((3,))
    assert shown.paired is not None
    paired = shown.paired.model_copy(update={"tpot": None, "itl": None})
    row = row_of(shown.model_copy(update={"paired": paired}), point())
    assert (row.x_tpot, row.x_ttft) == (None, 1.125)


def test_energy_is_of_a_round(point: Point) -> None:
    rounds = tuple(
        each.model_copy(update={"energy_j": joules})
        for each, joules in zip(point().speed.rounds, (30.0, 10.0, 20.0), strict=True)
    )
    assert row_of(point(speed=Speed(rounds=rounds)), point()).energy_j == 20


def test_rows_stand_load_by_load_dense_first_beside_the_dense_model_of_their_load(point: Point) -> None:
    def under(concurrency: int, dropped: tuple[int, ...], kv_tokens: int) -> PointRecord:
        made = point(dropped)
        load = made.load.model_copy(update={"concurrency": concurrency})
        return made.model_copy(update={"load": load, "memory": made.memory.model_copy(update={"kv_tokens": kv_tokens})})

    points = (under(1, (3,), 200), under(1, (), 100), under(8, (3,), 200), under(8, (), 50), under(64, (3,), 200))
    rows = rows_of(Run("run-1", points))
    # Under the last load the dense model was not measured: there is nothing to put the other beside.
    assert [(row.concurrency, row.kind) for row in rows] == [(1, "dense"), (1, "pruned"), (8, "dense"), (8, "pruned")]
    assert [row.x_kv_tokens for row in rows] == [1, 2, 1, 4]
