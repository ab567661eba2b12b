"""An engine as a replica. The engine is a fake one, its process is real; `make ray` has real engines under Ray."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from mi_prun.errors import UserError
from serve.ab.arms import supervisor
from serve.ab.config import ADMIN_KEY_VARIABLE, Config, read_config
from serve.ab.on_ray.engine_replica import EngineReplica
from serve.ab.wire.upstream import UpstreamError

FAKE_ENGINE = Path(__file__).parents[1] / "fake_engine.py"
JSON = (b"content-type", b"application/json")
BODY = b'{"model": "m", "prompt": "It was", "stream": true, "fake": {"tokens": 3, "token_s": 0.05}}'


def config_of(*flags: str) -> Config:
    arms = {"dense": {"model": "o/n", "flags": flags}, "fleet": {"url": "http://h", "api_key_env": "FLEET_KEY"}}
    return read_config(None, {"arms": arms, "model_name": "m"})


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineReplica]:
    monkeypatch.setattr(supervisor, "SERVE", (sys.executable, str(FAKE_ENGINE)))
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, "the-key-of-the-proxy")
    monkeypatch.setenv("FLEET_KEY", "the-key-of-another-arm")
    made = EngineReplica(config_of("--name", "m"), "dense")
    yield made
    made.stop()


def engine_of(replica: EngineReplica) -> psutil.Process:
    """Other tests of this process may have fake engines too; the port is this one's alone."""
    port = str(urlsplit(replica._engine.url).port)
    (engine,) = [child for child in psutil.Process().children() if port in child.cmdline()]
    return engine


async def whole(replica: EngineReplica, method: str, path: str, body: bytes | None = None) -> list[Any]:
    return [part async for part in replica.ask(method, path, [JSON, (b"authorization", b"Bearer another")], body)]


def test_an_answer_is_its_head_then_its_parts(replica: EngineReplica) -> None:
    head, *parts = asyncio.run(whole(replica, "POST", "/v1/completions", BODY))
    assert head[0] == 200
    assert (b"content-type", b"text/event-stream; charset=utf-8") in head[1]
    assert len(parts) >= 3
    assert b"".join(parts).endswith(b"data: [DONE]\n\n")


def test_the_engine_has_a_key_of_its_own_and_no_other(replica: EngineReplica) -> None:
    environment = engine_of(replica).environ()
    assert (environment[ADMIN_KEY_VARIABLE], environment["FLEET_KEY"]) == ("", "")
    assert len(environment["VLLM_API_KEY"]) >= 24
    head, *_ = asyncio.run(whole(replica, "GET", "/v1/models"))
    assert head[0] == 200


def test_a_replica_is_unhealthy_once_its_engine_is_lost(replica: EngineReplica) -> None:
    asyncio.run(replica.check_health())
    engine = engine_of(replica)
    os.kill(engine.pid, signal.SIGKILL)
    os.waitid(os.P_PID, engine.pid, os.WEXITED | os.WNOWAIT)  # all its threads have ended, and it is left to be reaped
    with pytest.raises(UpstreamError):
        asyncio.run(whole(replica, "GET", "/health"))
    with pytest.raises(UserError, match="the engine of arm dense is lost: it ended with status -9"):
        asyncio.run(replica.check_health())


def test_the_engine_ends_with_its_replica(replica: EngineReplica) -> None:
    engine = engine_of(replica)
    replica.stop()
    replica.stop()
    assert not engine.is_running()


def test_an_engine_that_does_not_start_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "SERVE", (sys.executable, "-c", "raise SystemExit('error: no such model')"))
    with pytest.raises(UserError, match="error: no such model") as refused:
        EngineReplica(config_of(), "dense")
    assert "\n" not in str(refused.value)
