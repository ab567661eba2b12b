"""Whether an arm is well is asked for ever, whatever a probe meets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve.ab.arms.arm import Arm
from serve.ab.arms.probe import fault, watch
from serve.ab.config import ArmConfig, Health
from serve.ab.wire.upstream import UpstreamError


class Answered:
    def __init__(self, status: int = 200) -> None:
        self.status = status

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


class Engine:
    """In place of the client: a status for each path; an error is raised."""

    def __init__(self, **statuses: Any) -> None:
        self.statuses = statuses
        self.asked: list[tuple[str, Any]] = []

    async def send(self, method: str, url: str, headers: Any) -> Answered:
        path = url.removeprefix("http://h/")
        self.asked.append((path, dict(headers)))
        status = self.statuses.get(path, self.statuses.get("other"))
        if status == "never":
            await asyncio.Event().wait()
        if isinstance(status, Exception):
            raise status
        return Answered(status)


MODELS = "v1/models"


@pytest.mark.parametrize(
    ("health", "models", "why"),
    [
        (200, 200, None),
        (204, 200, None),
        (401, 200, None),
        (403, 200, None),
        (404, 200, None),
        (405, 200, None),
        (501, 200, None),
        (503, 200, "GET /health answers with status 503"),
        (401, 401, "GET /health answers with status 401, GET /v1/models answers with status 401"),
        (404, 500, "GET /health answers with status 404, GET /v1/models answers with status 500"),
        (UpstreamError("it cannot be reached"), 200, "GET /health: it cannot be reached"),
        (404, UpstreamError("it cannot be reached"), "GET /v1/models: it cannot be reached"),
        ("never", 200, "GET /health is not answered within 0.05 s"),
    ],
)
def test_whether_an_arm_is_well(health: Any, models: Any, why: str | None) -> None:
    """A refusal of /health says nothing: a gateway guards it, or an engine has none."""
    arm = Arm("dense", ArmConfig(url="http://h"), Health(probe_timeout_s=0.05))
    arm.key = "its-key"
    engine = Engine(health=health, **{MODELS: models})
    assert asyncio.run(fault(arm, engine)) == why  # type: ignore[arg-type]
    assert all(headers == {b"authorization": b"Bearer its-key"} for _, headers in engine.asked)


@pytest.mark.parametrize(("status", "why"), [(200, None), (404, "GET /live?a=1 answers with status 404")])
def test_a_health_path_of_ones_own_is_asked_alone(status: int, why: str | None) -> None:
    arm = Arm("dense", ArmConfig(url="http://h", health_path="/live?a=1"), Health())
    engine = Engine(**{"live?a=1": status, "other": 200})
    assert asyncio.run(fault(arm, engine)) == why  # type: ignore[arg-type]
    assert [path for path, _ in engine.asked] == ["live?a=1"]
