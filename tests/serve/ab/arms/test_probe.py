"""Whether an arm is well is asked for ever, whatever a probe meets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve.ab.arms.arm import Arm
from serve.ab.arms.probe import watch
from serve.ab.config import ArmConfig, Health


class Answered:
    status = 200

    def close(self) -> None:
        pass


class Failing:
    """In place of the client: fails in ways that it should not, then answers."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.asked = 0

    async def send(self, *asked: Any) -> Answered:
        self.asked += 1
        if self.asked <= self.failures:
            raise UnicodeError("label empty or too long")
        return Answered()


def test_a_probe_that_fails_unforeseen_is_said_and_the_next_one_comes(caplog: pytest.LogCaptureFixture) -> None:
    arm = Arm("dense", ArmConfig(url="http://h"), Health(probe_s=0.001, failures=3))
    upstream = Failing(10)
    states: list[bool] = []

    async def run() -> None:
        task = asyncio.create_task(watch(arm, upstream))  # type: ignore[arg-type]
        while upstream.asked < 12:
            await asyncio.sleep(0.001)
            states.append(arm.healthy)
        task.cancel()

    with caplog.at_level("ERROR"):
        asyncio.run(asyncio.wait_for(run(), 20))
    assert not all(states)
    assert arm.healthy
    assert len(caplog.records) == 3  # until it was known to be down
    assert "the probe of arm dense failed in a way that was not foreseen" in caplog.text
