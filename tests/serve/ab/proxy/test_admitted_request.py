"""Who is let in and what for; what an arm is sent, what is counted, and who is to blame for a status."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.ab.api.app import create_app
from serve.ab.arms.arm import Arm
from serve.ab.config import ArmConfig, Health
from serve.ab.experiment.experiment import Assignment
from serve.ab.proxy.admitted_request import AdmittedRequest, Blame
from serve.ab.proxy.deadline import Deadline
from serve.ab.proxy.parsed_request import parse_request
from serve.ab.proxy.security import Keys

BODY = b'{"model": "m", "prompt": "packed"}'
KEY = {"authorization": "Bearer client-key-1"}


def arm(name: str = "dense", key: str | None = None, **config: Any) -> Arm:
    made = Arm(name, ArmConfig(url=f"http://{name}", **config), Health())
    made.key = key
    return made


def admitted(path: str = "/v1/completions", reason: Any = "split", client_key: bytes | None = None) -> AdmittedRequest:
    async def make() -> AdmittedRequest:
        parsed = parse_request(path, b'{"model": "m"}', ["m"], {})
        assignment = Assignment(("dense", "pruned"), reason, "")
        return AdmittedRequest(Deadline(), parsed, assignment, [(b"x-a", b"1")], client_key, None)  # type: ignore[arg-type]

    return asyncio.run(make())


@pytest.mark.parametrize(
    ("key", "client_key", "sent"),
    [
        (None, None, None),
        (None, b"Bearer own", b"Bearer own"),
        ("arms", None, b"Bearer arms"),
        ("arms", b"Bearer own", b"Bearer arms"),
    ],
)
def test_an_arms_own_key_goes_before_the_clients(key: str | None, client_key: bytes | None, sent: bytes | None) -> None:
    headers, body = admitted(client_key=client_key).for_arm(arm(key=key))
    assert dict(headers).get(b"authorization") == sent
    assert dict(headers)[b"x-a"] == b"1"
    assert body == b'{"model": "m"}'


def test_an_arm_of_another_name_is_asked_by_it() -> None:
    assert admitted().for_arm(arm(upstream_model="its-own"))[1] == b'{"model": "its-own"}'


@pytest.mark.parametrize(
    ("path", "reason", "name", "at", "counted"),
    [
        ("/v1/completions", "split", "dense", "split", True),
        ("/v1/completions", "sticky", "dense", "sticky", True),
        ("/v1/completions", "split", "pruned", "failover", False),
        ("/v1/completions", "explicit", "dense", "explicit", False),
        ("/v1/completions", "paused", "dense", "paused", False),
        ("/tokenize", "split", "dense", "split", False),
    ],
)
def test_what_counts(path: str, reason: str, name: str, at: str, counted: bool) -> None:
    request = admitted(path, reason)
    assert (request.reason_at(arm(name)), request.counted_at(arm(name))) == (at, counted)


@pytest.mark.parametrize(
    ("status", "ours", "theirs"),
    [
        (200, Blame.NOBODY, Blame.NOBODY),
        (400, Blame.NOBODY, Blame.NOBODY),
        (401, Blame.ARM, Blame.UNCLEAR),
        (403, Blame.ARM, Blame.UNCLEAR),
        (404, Blame.UNCLEAR, Blame.UNCLEAR),
        (405, Blame.UNCLEAR, Blame.UNCLEAR),
        (408, Blame.ARM, Blame.ARM),
        (422, Blame.NOBODY, Blame.NOBODY),
        (429, Blame.ARM, Blame.UNCLEAR),
        (500, Blame.ARM, Blame.ARM),
        (503, Blame.ARM, Blame.ARM),
    ],
)
def test_blame(status: int, ours: Blame, theirs: Blame) -> None:
    """With the proxy's key, and with the client's own."""
    assert admitted(client_key=b"Bearer own").blame(arm(key="arms"), status) is ours
    assert admitted().blame(arm(), status) is ours
    assert admitted(client_key=b"Bearer own").blame(arm(), status) is theirs


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
    guarded.service.access_log.flush()
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


PACKED = {
    "gzip": gzip.compress(BODY),
    "X-GZIP": gzip.compress(BODY[:9]) + gzip.compress(BODY[9:]),
    "deflate": zlib.compress(BODY),
    " deflate": zlib.compress(BODY)[2:-4],  # without a frame, as some clients have it
    "identity": BODY,
}


@pytest.mark.parametrize("encoding", PACKED)
def test_a_packed_body_is_unpacked(guarded: Any, encoding: str) -> None:
    assert guarded.ask(headers={**KEY, "content-encoding": encoding}, raw=PACKED[encoding]).status == 200
    (sent,) = guarded.upstream.sent
    assert sent.body == {"model": "its-own-name", "prompt": "packed"}
    assert b"content-encoding" not in sent.headers


@pytest.mark.parametrize(
    ("encoding", "body", "status", "said"),
    [
        ("br", BODY, 415, "must be gzip or deflate"),
        ("gzip, gzip", BODY, 415, "must be gzip or deflate"),
        ("gzip", BODY, 400, "cannot be unpacked"),
        ("gzip", gzip.compress(BODY)[:-1], 400, "cannot be unpacked"),
        ("gzip", gzip.compress(BODY) + b"x", 400, "cannot be unpacked"),
        ("deflate", b"\xff\xff\xff", 400, "cannot be unpacked"),
        ("gzip", gzip.compress(b"x" * 10**7)[:1900], 413, "unpacks to more than 2,000 bytes"),
        ("deflate", zlib.compress(b"x" * 10**6), 413, "unpacks to more than 2,000 bytes"),
        ("gzip", gzip.compress(b"x" * 1500) * 2, 413, "unpacks to more than 2,000 bytes"),
    ],
)
def test_what_is_not_unpacked(guarded: Any, encoding: str, body: bytes, status: int, said: str) -> None:
    response = guarded.ask(headers={**KEY, "content-encoding": encoding}, raw=body)
    assert (response.status, said in response.error["message"]) == (status, True)
    assert guarded.upstream.asked == []


def test_an_engines_other_names_are_asked_for_as_they_are(proxied: Callable[..., Any]) -> None:
    proxy = proxied(model_aliases=["gpt-x", "gpt-y"], keys=Keys(admin_key="an-admin-key"))
    proxy.say("dense", b"{}")
    proxy.say("pruned", b"{}")
    operator = {"authorization": "Bearer an-admin-key"}
    for headers, asked, sent in (
        ({}, "gpt-x", "gpt-x"),
        ({}, "m", "m"),
        (operator, "gpt-y@pruned", "gpt-y"),
        (operator, "m@pruned", "m"),
    ):
        assert proxy.ask(headers=headers, model=asked).status == 200
        assert proxy.upstream.sent[-1].body["model"] == sent
    response = proxy.ask(model="gpt-z")
    assert (response.status, response.error["message"]) == (
        404,
        'The model "gpt-z" does not exist; it is m or gpt-x or gpt-y',
    )


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
