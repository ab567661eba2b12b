"""Ratios are to the dense model of the same run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.record_v1 import BenchRecord
from bench.summary import summary
from mi_prun.errors import UserError


def test_ratios_to_dense(one_run: list[BenchRecord]) -> None:
    rows = summary(list(reversed(one_run)))
    assert [len(row.dropped) for row in rows] == [0, 1, 2, 4]
    assert [row.x_output_tokens_per_s for row in rows] == pytest.approx([1, 1.125, 1.25, 1.5])
    assert [row.x_weight_bytes for row in rows] == pytest.approx([1, 0.875, 0.75, 0.5])
    assert [row.x_kv_tokens for row in rows] == pytest.approx([1, 1.143, 1.333, 2])
    assert [row.perplexity for row in rows] == [50, 60, 70, 90]
    assert [row.x_perplexity for row in rows] == pytest.approx([1, 1.2, 1.4, 1.8])
    assert [row.kl_nats_per_token for row in rows] == pytest.approx([0, 0.1, 0.2, 0.4])
    assert (rows[3].x_low, rows[3].x_high) == pytest.approx((1.45, 1.6))


def test_without_quality_there_is_none(record: Callable[..., BenchRecord]) -> None:
    dense, pruned = summary([record(), record((1,), quality=False)])
    assert dense.perplexity is dense.x_perplexity is pruned.perplexity is pruned.kl_nats_per_token is None
    assert "perplexity" not in pruned.line()


def test_a_run_without_its_dense_model(record: Callable[..., BenchRecord]) -> None:
    with pytest.raises(UserError, match="no record of its dense model"):
        summary([record((1,))])


def test_a_row_in_a_terminal(one_run: list[BenchRecord]) -> None:
    line = summary(one_run)[2].line()
    assert "25.0% of blocks dropped:    125.0 tokens/s (1.25x)" in line
    assert "768.0 MiB (0.75x), 1,333 KV tokens (1.33x), perplexity 70.00 (KL 0.2000 nats/token)" in line
