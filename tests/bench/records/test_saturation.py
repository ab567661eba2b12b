"""Whether requests pile up, before simulated engines: one that answers in turn, and one that shares its speed."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from statistics import median

import pytest

from bench.load.workloads import open_prompts
from bench.records.saturation import PILES_UP, growth
from bench.settings import WorkloadSettings

Times = tuple[list[float], list[float]]


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """As vLLM's benchmark makes them: Poisson, stretched so that the last one comes at count / rate."""
    draw = random.Random(seed)
    times, now = [], 0.0
    for _ in range(count):
        now += draw.expovariate(rate)
        times.append(now)
    return [time * count / rate / now for time in times]


def in_turn(count: int, rate: float, seed: int, servers: int = 1) -> Times:
    """`servers` places, each answers in as many seconds: one request a second in all."""
    starts, free, seconds = arrivals(count, rate, seed), [0.0] * servers, []
    for start in starts:
        begun = max(start, heapq.heappop(free))
        heapq.heappush(free, begun + servers)
        seconds.append(begun + servers - start)
    return starts, seconds


def shared(count: int, rate: float, seed: int) -> Times:
    """All in flight share one request a second; one alone takes a tenth of a second at least."""
    starts, left, ends, now = arrivals(count, rate, seed), dict[int, float](), [0.0] * count, 0.0
    coming = list(enumerate(starts))[::-1]
    while coming or left:
        speed = min(10.0, 1.0 / max(1, len(left)))
        done = min(left.values(), default=float("inf")) / speed
        arrives = coming[-1][1] - now if coming else float("inf")
        step = min(done, arrives)
        now += step
        left = {number: rest - step * speed for number, rest in left.items()}
        for number in [number for number, rest in left.items() if rest <= 1e-9]:
            ends[number] = now
            del left[number]
        if arrives <= done and coming:
            left[coming.pop()[0]] = 1.0
    return starts, [end - start for start, end in zip(starts, ends, strict=True)]


def told(engine: Callable[..., Times], share: float, count: int, seed: int, **options: int) -> bool:
    """Over three rounds, as a point does."""
    rounds = [growth(*engine(count, share, 100 * seed + number, **options)) for number in range(3)]
    return median(piled_up for piled_up in rounds if piled_up is not None) > PILES_UP


@pytest.mark.parametrize(
    ("engine", "in_flight"), [(in_turn, 1), (shared, 1), (lambda *given: in_turn(*given, servers=64), 64)]
)
def test_an_engine_that_keeps_up_and_one_that_does_not(engine: Callable[..., Times], in_flight: int) -> None:
    """The rates and numbers of requests that a sweep takes; one request a second is all that the engine can give."""
    counts = open_prompts(WorkloadSettings(concurrency=(in_flight,), rates="auto"))
    for share, count in zip((0.25, 0.5, 0.75), counts, strict=False):
        assert sum(told(engine, share, count, seed) for seed in range(20)) <= 1, share
    assert all(told(engine, 2.0, counts[4], seed) for seed in range(20))


def test_requests_a_second_would_not_have_told() -> None:
    """After the last arrival come the answers: at a quarter of what it can give an engine falls short of the rate."""
    starts, seconds = in_turn(16, 16.0, 1, servers=64)  # 64 s each, so that 16 a second are sixteen times too many
    assert growth(starts, seconds) is not None
    starts, seconds = in_turn(64, 0.25, 1, servers=64)
    duration = max(start + took for start, took in zip(starts, seconds, strict=True))
    assert 64 / duration < 0.9 * 0.25
    piled_up = growth(starts, seconds)
    assert piled_up is not None
    assert piled_up < PILES_UP


def test_how_much_piles_up() -> None:
    for rate in (1.25, 2.0, 4.0):
        assert growth(*in_turn(2000, rate, 1)) == pytest.approx(1 - 1 / rate, abs=0.05)


def test_too_few_requests_tell_nothing() -> None:
    assert growth([float(n) for n in range(15)], [0.5] * 15) is None
    assert growth([1.0] * 20, [0.5] * 20) is None  # all at once
    assert growth([], []) is None
