"""Health and the circuit: when an arm is sent requests, and when not."""

from __future__ import annotations

from typing import Any

import pytest

from serve.ab.arms.arm import Arm, Breaker
from serve.ab.config import ArmConfig, Health
from serve.ab.verdict.event import Outcome

HEALTH = Health(failures=3, cool_down_s=5.0, cool_down_max_s=15.0)


@pytest.fixture
def breaker(clock: Any) -> Breaker:
    return Breaker(HEALTH, clock)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.start()
        breaker.failed()


def test_it_opens_after_failures_in_a_row(breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.succeeded()
    fail(breaker, 2)
    assert breaker.allows()
    fail(breaker, 1)
    assert not breaker.allows()
    assert breaker.state == "open"


def test_one_trial_at_a_time_then_closed(breaker: Breaker, clock: Any) -> None:
    fail(breaker, 3)
    clock.now = 5.0
    assert breaker.allows()
    breaker.start()
    assert not breaker.allows()
    breaker.succeeded()
    assert breaker.state == "closed"
    assert breaker.allows()


def test_a_failed_trial_doubles_the_time_up_to_a_bound(breaker: Breaker, clock: Any) -> None:
    fail(breaker, 3)
    for wait in (5.0, 10.0, 15.0, 15.0):
        clock.now += wait - 0.1
        assert not breaker.allows()
        clock.now += 0.1
        assert breaker.allows()
        fail(breaker, 1)


def test_a_trial_whose_client_left_decides_nothing(breaker: Breaker, clock: Any) -> None:
    fail(breaker, 3)
    clock.now = 5.0
    assert breaker.allows()
    breaker.start()
    breaker.undecided()
    assert breaker.state == "half_open"
    assert breaker.allows()


def test_an_arm_is_down_after_missed_probes_and_tells_those_who_wait() -> None:
    class Waiting:
        told = False

        def arm_down(self) -> None:
            self.told = True

    arm = Arm("dense", ArmConfig(url="http://h"), HEALTH)
    waiting = Waiting()
    arm.waiting.add(waiting)
    arm.probed("no answer")
    arm.probed("no answer")
    assert (arm.available, waiting.told) == (True, False)
    arm.probed("no answer")
    assert (arm.available, waiting.told) == (False, True)
    arm.probed(None)
    assert arm.available


def test_an_engine_that_is_not_up_is_not_available() -> None:
    arm = Arm("dense", ArmConfig(model="o/m"), HEALTH)
    assert not arm.available
    arm.came_up("http://127.0.0.1:1", "key")
    assert arm.available


@pytest.mark.parametrize(
    ("outcome", "status", "opens"),
    [
        ("client_error", 400, False),
        ("client_gone", 0, False),
        ("disconnected", 200, True),
        ("upstream_error", 401, True),
    ],
)
def test_what_counts_against_an_arm(outcome: Outcome, status: int, opens: bool) -> None:
    arm = Arm("dense", ArmConfig(url="http://h"), HEALTH)
    for _ in range(3):
        arm.request_started()
        arm.request_ended(outcome, status)
    assert (arm.breaker.state == "open") == opens


@pytest.mark.parametrize(("status", "opens"), [(400, False), (404, True)])
def test_a_refusal_that_any_server_gives_speaks_for_no_arm(status: int, opens: bool) -> None:
    """An engine that has read a request and finds it wrong is alive; who knows no such path may be anybody."""
    arm = Arm("dense", ArmConfig(url="http://h"), HEALTH)
    outcomes: list[tuple[Outcome, int]] = [("timeout", 0), ("timeout", 0), ("client_error", status), ("timeout", 0)]
    for outcome, code in outcomes:
        arm.request_started()
        arm.request_ended(outcome, code)
    assert (arm.breaker.state == "open") == opens


def test_every_change_of_health_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    arm = Arm("dense", ArmConfig(url="http://h"), HEALTH)
    with caplog.at_level("INFO"):
        for fault in (None, "status 401", "status 401", None, *["status 403"] * 9, None, None):
            arm.probed(fault)
            assert arm.fault == fault
        for outcome in ("ok", "timeout", "timeout", "timeout", "timeout", "ok"):
            arm.request_started()
            arm.request_ended(outcome, 0)  # type: ignore[arg-type]
    hint = "; another path to ask is set by health_path"
    assert [record.getMessage() for record in caplog.records] == [
        f"arm dense is down, it gets no more requests: status 403{hint}",
        "arm dense is well again",
        "arm dense gets no requests for 5 s, 3 in a row failed; the last one: timeout, status 0",
        "arm dense gets requests again",
    ]
