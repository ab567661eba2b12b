"""Mirrored requests: compared with the primary's, bounded, and never in its way."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from serve.ab.api.app import create_app
from serve.ab.config import Config
from serve.ab.proxy.security import Keys
from serve.ab.verdict.event import Event, ShadowComparison
from serve.ab.wire.upstream import UpstreamError


class Told:
    """What a listener is told by an application in a thread of this process."""

    def __init__(self, url: str, service: Any) -> None:
        self.url = url
        self.service = service
        self.comparisons: list[ShadowComparison] = []
        self.observations: list[Event] = []

    def __call__(self, said: Event | ShadowComparison) -> None:
        (self.comparisons if isinstance(said, ShadowComparison) else self.observations).append(said)  # type: ignore[arg-type]

    def wait(self, count: int) -> list[ShadowComparison]:
        self.until(lambda: len(self.comparisons) >= count)
        return self.comparisons

    def until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not true():
            assert time.monotonic() < deadline, f"{len(self.comparisons)} comparisons, {self.service.shadow.counts}"
            time.sleep(0.02)


@contextmanager
def serving(
    tmp_path: Path, fakes: list[Any], arms: dict[str, dict[str, Any]] | None = None, **shadow: Any
) -> Iterator[Told]:
    """arms: what is configured of some beside their URL."""
    import threading

    config = Config.model_validate(
        {
            "arms": {fake.name: {"url": fake.url, **(arms or {}).get(fake.name, {})} for fake in fakes},
            "model_name": "the-model",
            "state": tmp_path / "state",
            "access_log": tmp_path / "log",
            "shadow": {"share": 1.0, **shadow},
        }
    )
    app = create_app(config, keys=Keys())
    listener = socket.create_server(("127.0.0.1", 0))
    told = Told(f"http://127.0.0.1:{listener.getsockname()[1]}", app.state.ab)
    app.state.ab.listeners.append(told)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        assert thread.is_alive(), "it did not start"
        time.sleep(0.02)
    try:
        yield told
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def told(tmp_path: Path, shared_fakes: list[Any]) -> Iterator[Told]:
    with serving(tmp_path, shared_fakes) as listener:
        yield listener


def ask(told: Told, path: str = "/v1/completions", **body: Any) -> bytes:
    import urllib.request

    sent = json.dumps({"model": "the-model", "prompt": "x", "messages": [], **body}).encode()
    request = urllib.request.Request(told.url + path, sent, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_two_arms_are_compared(told: Told, shared_fakes: list[Any], path: str, stream: bool) -> None:
    """The same words on request; then the engines' own, which differ from the first one on."""
    ask(told, path, stream=stream, fake={"text": ["a", " b", " c"]})
    (same,) = told.wait(1)
    assert (same.agreement, same.error, same.streamed) == (1.0, None, stream)
    assert (same.primary_arm, same.shadow_arm) == ("dense", "pruned")
    assert same.compared_tokens == len("a b c")  # the fake's tokenizer makes bytes
    assert shared_fakes[1].seen()["last"]["body"]["stream"] is stream
    ask(told, path, stream=stream)
    other = told.wait(2)[1]
    assert other.agreement is not None
    assert other.agreement < 0.1
    assert other.logprob_difference_nats is None
    assert other.shadow_e2e_s is not None
    assert told.service.shadow.counts == {"compared": 2}


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_where_they_are_asked_for(told: Told, stream: bool) -> None:
    """An engine that cannot score a prompt is compared over what both said: here the same, with the same figures."""
    ask(told, stream=stream, logprobs=1, fake={"text": ["a", " b", " c"]})
    (comparison,) = told.wait(1)
    assert (comparison.same_tokens, comparison.compared_tokens) == (3, 3)
    assert comparison.logprob_difference_nats == 0.0


def test_its_errors_touch_only_a_counter(told: Told, shared_fakes: list[Any]) -> None:
    shared_fakes[1].set(status=500)
    try:
        for _ in range(5):
            assert json.loads(ask(told))["choices"][0]["text"]
        assert {comparison.error for comparison in told.wait(5)} == {"status_500"}
        assert told.service.shadow.counts == {"status_500": 5}
        assert told.service.arms["pruned"].breaker.state == "closed"
        assert [observation.arm for observation in told.observations] == ["dense"] * 5
    finally:
        shared_fakes[1].set()


def test_it_is_bounded_in_number_and_time(proxied: Callable[..., Any]) -> None:
    proxy = proxied(shadow={"share": 1.0, "in_flight": 2, "timeout_s": 0.2})
    proxy.say("dense", b'{"choices": []}')
    proxy.say("pruned", asyncio.Event().wait)

    async def run() -> None:
        for _ in range(5):
            response = await asyncio.gather(proxy.asked())
            assert response[0].status == 200
        assert proxy.service.shadow.counts == {"left_out": 3}
        await asyncio.gather(*proxy.service.shadow._tasks)

    asyncio.run(run())
    assert [comparison.error for comparison in proxy.comparisons] == ["timeout"] * 2
    assert proxy.service.shadow.counts == {"left_out": 3, "timeout": 2}
    assert all(answer.closed for answer in proxy.upstream.answers)


COMPLETION = b'{"choices": [{"text": "a b", "index": 0}]}'


@pytest.mark.parametrize(
    ("dense", "pruned", "error"),
    [
        ([COMPLETION], [COMPLETION], None),
        ([COMPLETION[:9], UpstreamError("it ended")], [COMPLETION], "primary_failed"),
        ([b"[]"], [COMPLETION], "primary_unreadable"),
        ([COMPLETION], [b"<html>"], "shadow_unreadable"),
        ([COMPLETION], [COMPLETION[:9], UpstreamError("it ended")], "unreachable"),
        ([COMPLETION], [RuntimeError("a fault of this code")], "internal"),
    ],
)
def test_only_two_whole_answers_are_compared(
    proxied: Callable[..., Any], dense: list[Any], pruned: list[Any], error: str | None
) -> None:
    proxy = proxied(shadow={"share": 1.0})
    proxy.say("dense", *dense)
    proxy.say("pruned", *pruned)

    async def run() -> None:
        await proxy.asked()
        await asyncio.gather(*proxy.service.shadow._tasks)

    asyncio.run(run())
    (comparison,) = proxy.comparisons
    assert (comparison.error, comparison.agreement is None) == (error, error is not None)
    assert proxy.service.shadow.counts == {error or "compared": 1}


def test_without_another_arm_nothing_is_mirrored(proxied: Callable[..., Any]) -> None:
    proxy = proxied(shadow={"share": 1.0})
    proxy.say("dense", COMPLETION)
    for _ in range(100):
        proxy.service.arms["pruned"].breaker.failed()
    assert not proxy.service.arms["pruned"].available
    proxy.ask()
    assert proxy.service.shadow.counts == {"no_arm": 1}
    assert proxy.comparisons == []


def test_long_answers_are_not_compared(tmp_path: Path, shared_fakes: list[Any]) -> None:
    with serving(tmp_path, shared_fakes, answer_bytes=3000) as told:
        assert len(ask(told, fake={"pad": 2000, "tokens": 4})) > 8000  # the client gets all of it
        assert told.wait(1)[0].error == "too_long"


def test_what_cannot_be_said_to_the_other_arm_is_not_mirrored_and_answered_all_the_same(
    tmp_path: Path, shared_fakes: list[Any]
) -> None:
    """A number that Python reads and JSON has no word for: it goes on as it came, but under no other model's name."""
    with serving(tmp_path, shared_fakes, {"pruned": {"upstream_model": "its-own-name"}}) as told:
        assert json.loads(ask(told, x=float("nan")))["choices"]
        told.until(lambda: bool(told.service.shadow.counts and told.observations))
        assert told.service.shadow.counts == {"not_sent": 1}
        assert [seen.outcome for seen in told.observations] == ["ok"]
        assert told.service.arms["dense"].in_flight == 0
        ask(told)
        assert told.wait(1)[0].error is None


def test_only_a_share_and_only_what_is_counted(tmp_path: Path, shared_fakes: list[Any]) -> None:
    with serving(tmp_path, shared_fakes, share=0.5) as told:
        for _ in range(60):
            ask(told, fake={"tokens": 1})
        told.until(lambda: len(told.observations) == 60 and not told.service.shadow._tasks)
        assert 10 <= len(told.comparisons) + told.service.shadow.counts["left_out"] <= 50
        before = sum(told.service.shadow.counts.values())
        for _ in range(20):
            ask(told, "/tokenize")
        change: Callable[..., Any] = told.service.experiment.change
        change(1, who="test", why="", paused=True)
        for _ in range(20):
            ask(told)
        told.until(lambda: len(told.observations) == 100 and not told.service.shadow._tasks)
        assert sum(told.service.shadow.counts.values()) <= before + 1
        assert [observation.counted for observation in told.observations] == [True] * 60 + [False] * 40


def test_a_listener_that_fails_harms_nothing(told: Told) -> None:
    def broken(said: object) -> None:
        raise RuntimeError

    told.service.listeners.insert(0, broken)
    assert ask(told)
    told.wait(1)
    assert told.service.listener_failures == 2
