"""Points out of rounds: start-ups, memory, and whether a bound holds."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bench.records.schema import PointRecord, RoundRecord
from bench.sweeps.aggregate import memory_of, same_batches, start_up_of

Point = Callable[..., PointRecord]


def a_round(point: PointRecord, **fields: Any) -> RoundRecord:
    values: dict[str, Any] = {
        "run": "r",
        "settings_sha256": "0",
        "session": "s",
        "time": point.time,
        "arm": point.arm.label,
        "load": point.load,
        "number": 0,
        "figures": point.speed.rounds[0],
        "startup_s": 10.0,
        "load_s": 1.0,
        "engine_weight_bytes": None,
        "kv_tokens": 800,
        "peak_device_bytes": None,
        "peak_rss_bytes": 5,
        "acceptance": None,
    }
    return RoundRecord(**(values | fields))


def test_rounds_on_one_engine_tell_of_one_start(point: Point) -> None:
    rounds = [a_round(point(), startup_s=seconds) for seconds in (10.0, 10.0, 20.0)]
    start_up = start_up_of(rounds)
    assert (start_up.starts, start_up.startup_s, start_up.load_s) == (2, 15.0, 1.0)
    assert start_up_of([a_round(point(), load_s=None)]).load_s is None


def test_peaks_are_over_all_rounds_and_the_rest_is_the_last_ones(point: Point) -> None:
    rounds = [a_round(point(), peak_rss_bytes=9, peak_device_bytes=7), a_round(point(), kv_tokens=400)]
    memory = memory_of(SimpleNamespace(weight_bytes=3), point().load, rounds)  # type: ignore[arg-type]
    assert (memory.weight_bytes, memory.peak_rss_bytes, memory.peak_device_bytes) == (3, 9, 7)
    assert (memory.kv_tokens, memory.length_tokens, memory.max_concurrency) == (400, 192, pytest.approx(400 / 192))
    assert memory_of(SimpleNamespace(weight_bytes=3), point().load, [a_round(point())]).peak_device_bytes is None  # type: ignore[arg-type]


def test_steps_are_alike_where_all_arms_hold_what_is_in_flight(point: Point) -> None:
    load = point().load  # 4 in flight of 192 tokens
    enough, short = [a_round(point(), kv_tokens=768)], [a_round(point(), kv_tokens=767)]
    assert same_batches(load, enough, enough)
    assert not same_batches(load, enough, short)
    opened = load.model_copy(update={"concurrency": None, "rate_per_s": 2.0})
    kept_up, piled_up, unknown = (
        [a_round(point(), figures=point().speed.rounds[0].model_copy(update={"backlog_growth": growth}), kv_tokens=767)]
        for growth in (0.0, 0.5, None)
    )
    assert same_batches(opened, kept_up, kept_up)
    assert not same_batches(opened, kept_up, piled_up)
    assert not same_batches(opened, unknown, kept_up)  # too few requests to tell
