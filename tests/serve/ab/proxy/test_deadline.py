"""Waits that are ended from outside: what ends them, and where it is felt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from serve.ab.arms.arm import Arm
from serve.ab.config import ArmConfig, Health, Limits
from serve.ab.proxy.deadline import Abort, AbortedError, Deadline, Deadlines, Phase

LIMITS = Limits(request_s=1.0, first_byte_s=2.0, idle_s=3.0, send_s=4.0)


def waiting(
    before: Callable[[Deadline], Any], after: Callable[[Deadline], Any] = lambda deadline: None
) -> Abort | None:
    """What ended a wait; `before` it and `after` it began, something was done. None where nothing ended it."""

    async def run() -> Abort | None:
        deadline = Deadline()
        before(deadline)
        asyncio.get_running_loop().call_soon(after, deadline)
        try:
            with deadline.interruptible():
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        except AbortedError as aborted:
            assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
            return aborted.why
        return None

    return asyncio.run(run())


def nothing(deadline: Deadline) -> None:
    pass


def test_a_wait_is_ended_before_it_begins_or_meanwhile() -> None:
    assert waiting(nothing) is None
    assert waiting(lambda deadline: deadline.abort(Abort.IDLE_TIMEOUT)) is Abort.IDLE_TIMEOUT
    assert waiting(nothing, lambda deadline: deadline.abort(Abort.IDLE_TIMEOUT)) is Abort.IDLE_TIMEOUT


def test_the_first_reason_counts_but_that_a_client_left_always() -> None:
    def twice(first: Abort, second: Abort) -> Callable[[Deadline], None]:
        def abort(deadline: Deadline) -> None:
            deadline.abort(first)
            deadline.abort(second)

        return abort

    assert waiting(nothing, twice(Abort.ARM_DOWN, Abort.IDLE_TIMEOUT)) is Abort.ARM_DOWN
    assert waiting(nothing, twice(Abort.ARM_DOWN, Abort.CLIENT_GONE)) is Abort.CLIENT_GONE
    assert waiting(twice(Abort.CLIENT_GONE, Abort.ARM_DOWN)) is Abort.CLIENT_GONE


@pytest.mark.parametrize(("why", "again"), [(Abort.CLIENT_GONE, True), (Abort.FIRST_BYTE_TIMEOUT, False)])
def test_a_client_that_left_stays_away_and_anything_else_is_over_with_the_wait(why: Abort, again: bool) -> None:
    def once(deadline: Deadline) -> None:
        deadline.abort(why)
        with pytest.raises(AbortedError), deadline.interruptible():
            pass

    assert waiting(once) is (why if again else None)


def test_the_servers_own_end_is_no_abort() -> None:
    async def run() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def wait() -> None:
        with Deadline().interruptible():
            await asyncio.Event().wait()

    asyncio.run(run())


@pytest.mark.parametrize("well", [True, False])
def test_an_arm_that_goes_down_is_left_where_there_is_another(well: bool) -> None:
    other = Arm("pruned", ArmConfig(url="http://h"), Health())
    if not well:
        other.went_down()

    def down(deadline: Deadline) -> None:
        deadline.alternatives = [other]
        deadline.arm_down()

    assert waiting(nothing, down) is (Abort.ARM_DOWN if well else None)


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


@pytest.mark.parametrize(
    ("phase", "limit_s", "why"),
    [
        (Phase.REQUEST, 1.0, Abort.REQUEST_TIMEOUT),
        (Phase.FIRST_BYTE, 2.0, Abort.FIRST_BYTE_TIMEOUT),
        (Phase.IDLE, 3.0, Abort.IDLE_TIMEOUT),
        (Phase.SEND, 4.0, Abort.SEND_TIMEOUT),
    ],
)
def test_each_phase_has_its_own_limit(phase: Phase, limit_s: float, why: Abort) -> None:
    async def test() -> None:
        deadlines, deadline = Deadlines(LIMITS), Deadline()
        deadlines.open.add(deadline)
        deadline.wait_for(phase)
        deadlines.sweep(deadline.since_s + limit_s - 0.01)
        with deadline.interruptible():
            pass
        deadlines.sweep(deadline.since_s + limit_s + 0.01)
        with pytest.raises(AbortedError) as aborted, deadline.interruptible():
            pass
        assert aborted.value.why is why

    in_loop(test)
