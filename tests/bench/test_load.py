"""What vLLM's benchmark reports, read; and what it may not hide."""

from __future__ import annotations

from typing import Any

import pytest

from bench.load import speed_of
from bench.vllm_load import check, plain


def result(throughput: float, **fields: Any) -> dict[str, Any]:
    """As `vllm bench serve` makes it, but for the fields that nobody reads."""
    values: dict[str, Any] = {
        "completed": 16,
        "failed": 0,
        "request_throughput": throughput / 64,
        "output_throughput": throughput,
    }
    for number, name in enumerate(("ttft", "tpot", "itl", "e2el")):
        values |= {f"mean_{name}_ms": 10.0 + number, f"median_{name}_ms": throughput / 10 + number}
        values |= {f"p50_{name}_ms": -1.0, f"p99_{name}_ms": 90.0 + number, f"std_{name}_ms": -1.0}
    return values | fields


def test_medians_over_the_rounds() -> None:
    speed = speed_of([result(400.0), result(640.0), result(500.0)])
    assert speed.output_tokens_per_s == 500.0
    assert speed.round_output_tokens_per_s == (400.0, 640.0, 500.0)
    assert (speed.rounds, speed.completed) == (3, 48)
    assert speed.requests_per_s == pytest.approx(500 / 64)
    assert (speed.ttft.mean_ms, speed.ttft.p50_ms, speed.ttft.p99_ms) == (10.0, 50.0, 90.0)
    assert [latency.p50_ms for latency in (speed.tpot, speed.itl, speed.e2e)] == [51.0, 52.0, 53.0]


def test_requests_that_fail_end_the_load() -> None:
    check(result(1.0))
    with pytest.raises(SystemExit, match="error: 2 of 18 requests failed: ValueError: too long"):
        check(result(1.0, failed=2, errors=["", "Traceback\n  ...\nValueError: too long\n"]))


def test_only_figures_are_kept() -> None:
    assert plain({"duration": 1.5, "ttfts": [0.1], "completed": 3, "model_id": "m", "start_times": (1,)}) == {
        "duration": 1.5,
        "completed": 3,
        "model_id": "m",
    }
