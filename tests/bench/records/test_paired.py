"""Paired ratios: what drifts in both models of a pair is in neither's favour."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from bench.records.paired import paired, ratio_of
from bench.records.schema import PointRecord, Round

Point = Callable[..., PointRecord]


def test_a_drift_of_the_machine_cancels_out() -> None:
    measured = ratio_of([130, 65, 26], [100, 50, 20])
    assert (measured.ratio, measured.low, measured.high) == pytest.approx((1.3, 1.3, 1.3))
    assert measured.pairs == 3


def test_the_interval_is_students_of_the_log_ratios() -> None:
    measured = ratio_of([1.2, 1.3, 1.4], [1, 1, 1])
    logs = [math.log(value) for value in (1.2, 1.3, 1.4)]
    mean = sum(logs) / 3
    error = math.sqrt(sum((log - mean) ** 2 for log in logs) / 2 / 3)
    assert measured.low is not None
    assert measured.high is not None
    assert math.log(measured.ratio) == pytest.approx(mean)
    student = 4.302653  # t, 2 degrees of freedom, 97.5 %
    assert math.log(measured.high) - mean == pytest.approx(student * error, rel=1e-6)
    assert mean - math.log(measured.low) == pytest.approx(student * error, rel=1e-6)


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=12))
def test_the_interval_is_the_one_worked_out_by_hand(ratios: list[float]) -> None:
    """Records of earlier releases were made by this formula."""
    measured = ratio_of(ratios, [1.0] * len(ratios))
    logs = [math.log(value) for value in ratios]
    mean = sum(logs) / len(logs)
    deviation = math.sqrt(sum((log - mean) ** 2 for log in logs) / (len(logs) - 1))
    half = float(t.ppf(0.975, len(logs) - 1)) * deviation / math.sqrt(len(logs))
    assert measured.ratio == pytest.approx(math.exp(mean))
    assert (measured.low, measured.high) == pytest.approx((math.exp(mean - half), math.exp(mean + half)), rel=1e-7)


def test_one_pair_has_no_interval() -> None:
    measured = ratio_of([3], [2])
    assert (measured.ratio, measured.low, measured.high, measured.pairs) == (pytest.approx(1.5), None, None, 1)


def scaled(one: Round, factor: float) -> Round:
    """Every throughput times `factor`, every latency over it."""
    parts = {
        name: getattr(one, name) * factor for name in ("output_tokens_per_s", "total_tokens_per_s", "requests_per_s")
    }
    for name in ("ttft", "tpot", "itl", "e2e"):
        values = getattr(one, name).model_dump()
        parts[name] = getattr(one, name).model_copy(update={key: value / factor for key, value in values.items()})
    return one.model_copy(update=parts)


def test_above_one_is_faster_for_throughputs_and_latencies(point: Point) -> None:
    dense = point().speed.rounds
    measured = paired([scaled(one, 1.25) for one in dense], dense)
    for name in type(measured).model_fields:
        assert getattr(measured, name).ratio == pytest.approx(1.25), name


def test_answers_of_one_token_have_no_time_between_tokens(point: Point) -> None:
    none = {"tpot": point().speed.tpot.model_copy(update={"p50_ms": 0.0})}
    rounds = [one.model_copy(update=none) for one in point().speed.rounds]
    ratio = paired(rounds, rounds)
    assert ratio.tpot is None
    assert ratio.itl is not None
