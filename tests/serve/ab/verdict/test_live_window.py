"""LiveWindow figures: buckets, quantiles within the histogram's bound, rates, and memory that does not grow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from serve.ab.verdict.event import Event, ShadowComparison
from serve.ab.verdict.live_window import LiveWindow

COMPARISON = ShadowComparison(0.0, "dense", "pruned", True, 0.5, 5, 10, None, None, None, None)


@pytest.fixture
def answer(observed: Callable[..., Event]) -> Event:
    """Ten tokens in 0.28 s, the first after 0.1 s."""
    return observed(itl_s=(0.02,) * 9, e2e_s=0.28, output_tokens=10)


@pytest.fixture
def live(clock: Any) -> LiveWindow:
    clock.now = 1000.0
    return LiveWindow(("dense", "pruned"), bucket_s=10, buckets=6, clock=clock)


def test_the_bucket_that_fills_is_in_the_last_minute_but_not_in_the_series(
    live: LiveWindow, clock: Any, answer: Event
) -> None:
    live(answer)
    clock.now += 5
    figures = live.figures()
    assert figures.series["dense"].requests == (0,) * 6
    assert figures.now["dense"].requests == 1
    assert figures.now["dense"].requests_per_s == pytest.approx(1 / 5)
    clock.now += 5
    series = live.figures().series["dense"]
    assert (series.requests[-1], series.requests_per_s[-1], series.output_tokens_per_s[-1]) == (1, 0.1, 1.0)
    assert series.ttft_s_p50[-1] == pytest.approx(0.1, rel=0.03)
    assert series.itl_s_p99[-1] == pytest.approx(0.02, rel=0.03)
    assert series.answer_tokens_per_s_p50[-1] == pytest.approx(50, rel=0.03)
    assert series.ttft_s_p50[:-1] == (None,) * 5


def test_arms_do_not_mix_and_an_unknown_one_is_left_out(live: LiveWindow, answer: Event) -> None:
    live(replace(answer, arm="pruned"))
    live(replace(answer, arm="another"))
    now = live.figures().now
    assert {arm: figures.requests for arm, figures in now.items()} == {"dense": 0, "pruned": 1}
    assert now["dense"].ttft_s_p50 is None


def test_only_what_the_arm_is_to_blame_for_is_an_error(live: LiveWindow, answer: Event) -> None:
    for outcome in ("ok", "client_error", "client_gone", "upstream_error", "timeout", "disconnected"):
        live(replace(answer, outcome=outcome))
    now = live.figures().now["dense"]
    assert (now.requests, now.errors) == (6, 3)


def test_an_answer_that_was_not_streamed_has_no_ttft(live: LiveWindow, answer: Event) -> None:
    live(replace(answer, streamed=False, itl_s=()))
    now = live.figures().now["dense"]
    assert (now.ttft_s_p50, now.answer_tokens_per_s_p50) == (None, None)
    assert now.output_tokens_per_s > 0


def test_a_refusal_has_no_ttft(live: LiveWindow, answer: Event) -> None:
    """It is fast, and no answer."""
    for _ in range(9):
        live(replace(answer, status=400, outcome="client_error", ttft_s=0.002, itl_s=(), output_tokens=None))
    assert live.figures().now["dense"].ttft_s_p50 is None
    live(answer)
    now = live.figures().now["dense"]
    assert (now.requests, now.ttft_s_p50) == (10, pytest.approx(0.1, rel=0.03))


def test_old_buckets_go_and_memory_is_bounded(live: LiveWindow, clock: Any, answer: Event) -> None:
    for _ in range(50):
        live(answer)
        clock.now += 10
    assert len(live._ring) <= 7
    assert live.figures().series["dense"].requests == (1,) * 6
    clock.now += 1000
    assert sum(live.figures().series["dense"].requests) == 0


def test_times_are_those_of_the_buckets(live: LiveWindow, clock: Any) -> None:
    clock.now = 1234.0
    assert live.figures().time_s == (1170, 1180, 1190, 1200, 1210, 1220)


def test_shadow_comparisons_are_averaged_and_failed_ones_counted(live: LiveWindow) -> None:
    assert live.figures().shadow.agreement is None
    live(COMPARISON)
    live(replace(COMPARISON, agreement=1.0))
    live(replace(COMPARISON, agreement=None, error="timeout"))
    shadow = live.figures().shadow
    assert (shadow.compared, shadow.failed, shadow.agreement) == (2, 1, 0.75)


def test_a_clock_that_goes_back_leaves_nothing_behind(live: LiveWindow, clock: Any, answer: Event) -> None:
    clock.now = 10_000.0
    live(answer)
    clock.now = 1000.0
    live(answer)
    assert live.figures().now["dense"].requests == 1
    assert len(live._ring) == 1
