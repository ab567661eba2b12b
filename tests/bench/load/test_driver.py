"""What vLLM's benchmark is asked and what it reports; and what it may not hide."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bench.load.driver import arguments, round_of
from bench.load.worker import check, plain
from bench.records.schema import PointRecord, Trace, Workload

Point = Callable[..., PointRecord]


def result(**fields: Any) -> dict[str, Any]:
    """As `vllm bench serve` makes it, but for the fields that nobody reads."""
    values: dict[str, Any] = {
        "completed": 16,
        "failed": 0,
        "duration": 4.0,
        "request_throughput": 4.0,
        "output_throughput": 256.0,
        "total_token_throughput": 768.0,
    }
    for number, name in enumerate(("ttft", "tpot", "itl", "e2el")):
        values |= {f"mean_{name}_ms": 10.0 + number, f"median_{name}_ms": 20.0 + number, f"p50_{name}_ms": -1.0}
        values |= {f"p90_{name}_ms": 80.0 + number, f"p99_{name}_ms": 90.0 + number, f"std_{name}_ms": -1.0}
    return values | fields


def test_a_round_in_our_terms(point: Point) -> None:
    made = round_of(point().load, result(backlog_growth=0.3), 12.5)
    assert (made.output_tokens_per_s, made.total_tokens_per_s, made.requests_per_s) == (256, 768, 4)
    assert (made.duration_s, made.completed, made.energy_j) == (4, 16, 12.5)
    assert (made.ttft.mean_ms, made.ttft.p50_ms, made.ttft.p90_ms, made.ttft.p99_ms) == (10, 20, 80, 90)
    assert [latency.p50_ms for latency in (made.tpot, made.itl, made.e2e)] == [21, 22, 23]
    assert made.backlog_growth is None  # so many in flight, and no more
    opened = point().load.model_copy(update={"concurrency": None, "rate_per_s": 2.5})
    assert round_of(opened, result(backlog_growth=0.3), None).backlog_growth == 0.3
    assert round_of(opened, result(), None).backlog_growth is None


def asked(load: Workload) -> dict[str, str]:
    engine: Any = SimpleNamespace(base_url="http://127.0.0.1:1", model="m", tokenizer="t")
    words = arguments(engine, load, 7)
    flags = [word for word in words if word.startswith("--")]
    return {flag: words[words.index(flag) + 1] if flag != flags[-1] else "" for flag in flags}


def test_a_closed_loop_an_open_one_and_a_trace(point: Point) -> None:
    load = point().load
    closed = asked(load)
    assert (closed["--max-concurrency"], closed["--dataset-name"], closed["--seed"]) == ("4", "random", "7")
    assert (closed["--random-input-len"], closed["--random-output-len"], closed["--num-prompts"]) == ("128", "64", "32")
    assert (closed["--model"], closed["--tokenizer"]) == ("m", "t")
    assert "--request-rate" not in closed
    opened = asked(load.model_copy(update={"concurrency": None, "rate_per_s": 2.5}))
    assert opened["--request-rate"] == "2.5"
    assert "--max-concurrency" not in opened
    traced = asked(load.model_copy(update={"trace": Trace(name="a.csv", sha256="0" * 64, requests=9)}))
    assert traced["--dataset-name"] == "timed_trace"
    assert "--no-self-timed" in traced
    assert "--random-input-len" not in traced
    texts = asked(load.model_copy(update={"text": "book.txt"}))
    assert (texts["--dataset-name"], texts["--custom-output-len"]) == ("custom", "64")
    assert "--disable-shuffle" in texts
    for each in (closed, opened, traced, texts):
        assert {"--ignore-eos", "--save-detailed"} <= set(each)


def test_requests_that_fail_end_the_load() -> None:
    check(result())
    with pytest.raises(SystemExit, match="error: 2 of 18 requests failed: ValueError: too long"):
        check(result(failed=2, errors=["", "Traceback\n  ...\nValueError: too long\n"]))


def test_only_figures_are_kept() -> None:
    assert plain({"duration": 1.5, "ttfts": [0.1], "completed": 3, "model_id": "m", "start_times": (1,)}) == {
        "duration": 1.5,
        "completed": 3,
        "model_id": "m",
    }
    starts = [float(n) for n in range(17)]
    # A third of them piles up: each takes half a second more than the one before.
    lists = {"start_times": starts, "ttfts": [n / 4 for n in starts], "itls": [[n / 8, n / 8] for n in starts]}
    assert plain({"duration": 1.5, **lists}) == {"duration": 1.5, "backlog_growth": pytest.approx(1 / 3, abs=0.05)}
