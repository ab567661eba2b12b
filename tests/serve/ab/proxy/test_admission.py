"""Who is let in, what for and to which arm; in one process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.ab.api.app import create_app
from serve.ab.proxy.security import Keys

KEY = {"authorization": "Bearer client-key-1"}


@pytest.fixture
def guarded(proxied: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """With keys, small limits and an engine that is asked under another name; the other arm is down."""
    monkeypatch.setenv("ENGINE_KEY", "engine-key")
    proxy = proxied(
        arms={
            "dense": {"url": "http://dense", "api_key_env": "ENGINE_KEY", "upstream_model": "its-own-name"},
            "pruned": {"url": "http://pruned"},
        },
        keys=Keys(["client-key-1", "client-key-2"], "an-admin-key"),
        log_prompts=True,
        sticky=["api_key"],
        limits={"body_bytes": 2000, "concurrency": 2},
    )
    proxy.say("dense", b"{}")
    proxy.fail("pruned")
    return proxy


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer client-key-3"}, {"authorization": "client-key-1"}])
def test_who_has_no_key_is_not_let_in(guarded: Any, headers: dict[str, str]) -> None:
    response = guarded.ask(headers=headers)
    assert (response.status, response.headers["www-authenticate"]) == (401, "Bearer")
    assert response.headers["connection"] == "close"  # its body was not read
    assert guarded.upstream.asked == []


def test_an_engine_is_asked_by_its_own_key_and_name(guarded: Any) -> None:
    response = guarded.ask(headers=KEY, prompt="kept words")
    assert (response.status, response.headers["x-mi-prun-reason"]) == (200, "sticky")
    (sent,) = guarded.upstream.sent
    assert sent.body["model"] == "its-own-name"
    assert sent.headers[b"authorization"] == b"Bearer engine-key"
    guarded.service.access_log.flush(guarded.service.access_log.taken())
    assert "kept words" in guarded.config.access_log.read_text()


def test_a_body_that_is_too_large(guarded: Any) -> None:
    response = guarded.ask(headers=KEY, prompt="x" * 3000)
    assert (response.status, response.error["code"]) == (413, "body_limit")
    assert guarded.ask(headers={**KEY, "content-length": "3000"}).status == 413
    assert guarded.upstream.asked == []


def test_too_many_at_once(guarded: Any, client_class: Any) -> None:
    async def run() -> None:
        guarded.say("dense", asyncio.Event().wait)
        slow = [client_class(b"{}") for _ in range(2)]
        tasks = [guarded.start(client, headers=KEY) for client in slow]
        while len(guarded.upstream.sent) < 2:
            await asyncio.sleep(0)
        client = client_class(b"{}")
        await guarded.start(client, headers=KEY)
        assert client.response.status == 503
        assert client.response.error["code"] == "concurrency_limit"
        for client in slow:
            client.leave()
        await asyncio.gather(*tasks)
        guarded.say("dense", b"{}")
        client = client_class(b"{}")
        await guarded.start(client, headers=KEY)
        assert client.response.status == 200

    asyncio.run(run())


def test_a_request_that_does_not_come_in_time(guarded: Any, client_class: Any) -> None:
    async def run() -> Any:
        client = client_class(b"{", endless=True)
        task = guarded.start(client, headers=KEY)
        await asyncio.sleep(0)
        (deadline,) = guarded.service.deadlines.open
        guarded.service.deadlines.sweep(deadline.since_s + guarded.config.limits.request_s + 0.1)
        await task
        return client.response

    response = asyncio.run(run())
    assert (response.status, response.error["code"]) == (408, "request_timeout")
    assert response.headers["connection"] == "close"


def test_a_client_that_leaves_before_its_request_is_whole(guarded: Any, client_class: Any) -> None:
    async def run() -> Any:
        client = client_class(b"{", endless=True)
        task = guarded.start(client, headers=KEY)
        await asyncio.sleep(0)
        client.leave()
        await task
        return client.response

    assert asyncio.run(run()).status == 0
    assert guarded.upstream.asked == []
    assert guarded.service.refusals == {}


def test_admin_routes_need_the_admin_key(guarded: Any) -> None:
    config = guarded.config.model_copy(update={"state": Path(f"{guarded.config.state}-of-the-app")})
    app = create_app(config, guarded.service.arms, keys=guarded.service.keys)

    async def asked(headers: dict[str, str]) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://proxy") as client:
            return await client.get("/admin/experiment", headers=headers)

    assert asyncio.run(asked(KEY)).status_code == 401
    assert asyncio.run(asked({})).status_code == 401
    answer = asyncio.run(asked({"authorization": "Bearer an-admin-key"}))
    assert json.loads(answer.content)["state"]["version"] == 1
