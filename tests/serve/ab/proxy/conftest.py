"""The proxy in one process: its arms are objects in the tests' hands, its clients speak ASGI. Milliseconds a test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serve.ab.arms.arm import make_arms
from serve.ab.config import Config
from serve.ab.experiment.experiment import Experiment
from serve.ab.experiment.store import Store
from serve.ab.proxy.proxy import Proxy
from serve.ab.proxy.security import Keys
from serve.ab.proxy.service import Service
from serve.ab.verdict.event import Event, ShadowComparison
from serve.ab.wire.upstream import UpstreamError

JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream")
Part = bytes | BaseException | Callable[[], Awaitable[bytes]]


class FakeAnswer:
    """An arm's answer. A part is bytes; an error, which is raised; or a function, which is waited for."""

    def __init__(self, *parts: Part, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = (JSON,)) -> None:
        self.status = status
        self.headers = list(headers)
        self.closed = 0
        self._parts = list(parts)

    async def read(self) -> bytes:
        if not self._parts:
            return b""
        part = self._parts.pop(0)
        if isinstance(part, BaseException):
            raise part
        return part if isinstance(part, bytes) else await part()

    def close(self) -> None:
        self.closed += 1


@dataclass(frozen=True)
class Sent:
    """A request as an arm got it."""

    arm: str
    path: str
    headers: dict[bytes, bytes]
    body: dict[str, Any]


class FakeUpstream:
    """In place of the HTTP client. says[arm]: what the arm answers, made anew for each request; an error is raised."""

    def __init__(self) -> None:
        self.says: dict[str, Callable[[], Any]] = {}
        self.sent: list[Sent] = []
        self.answers: list[FakeAnswer] = []

    async def send(self, method: str, url: str, headers: Any, body: bytes | None = None) -> FakeAnswer:
        arm, _, path = url.removeprefix("http://").partition("/")
        self.sent.append(Sent(arm, f"/{path}", dict(headers), json.loads(body or b"{}")))
        answer = self.says[arm]()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if isinstance(answer, BaseException):
            raise answer
        self.answers.append(answer)
        return answer  # type: ignore[no-any-return]

    @property
    def asked(self) -> list[str]:
        """The arms, in the order in which they were asked."""
        return [sent.arm for sent in self.sent]


@dataclass
class Response:
    """An answer as a client gets it."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    whole: bool = False  # the end of the body came

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error

    @property
    def arm(self) -> tuple[str, str]:
        """Which one answered, and why."""
        return self.headers["x-mi-prun-arm"], self.headers["x-mi-prun-reason"]


class Client:
    """One request. `leave` it, or hold its answer back by `takes`."""

    def __init__(self, *body: bytes, endless: bool = False) -> None:
        self.response = Response()
        self._body = list(body)
        self._endless = endless
        self._left = asyncio.Event()
        self.takes = asyncio.Event()
        self.takes.set()

    def leave(self) -> None:
        self._left.set()

    async def receive(self) -> dict[str, Any]:
        if self._body:
            part = self._body.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._body) or self._endless}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.response.status = message["status"]
            self.response.headers = {name.decode(): value.decode("latin-1") for name, value in message["headers"]}
            return
        await self.takes.wait()
        assert not self.response.whole, "sent behind the end"
        self.response.parts.append(message["body"])
        self.response.whole = not message.get("more_body", False)


class Proxied:
    """The proxy before dense and pruned; everything goes to dense unless `config` says something else."""

    def __init__(self, folder: Path, keys: Keys | None = None, **config: Any) -> None:
        self.config = Config.model_validate(
            {
                "arms": {"dense": {"url": "http://dense"}, "pruned": {"url": "http://pruned"}},
                "model_name": "m",
                "state": folder / "state",
                "access_log": folder / "log",
                **config,
            }
        )
        arms = make_arms(self.config)
        self.store = Store(self.config.state)
        experiment = Experiment(self.config, self.store)
        self.service = Service(self.config, arms, keys or Keys(admin_key="an-admin-key"), self.store, experiment)
        self.upstream = FakeUpstream()
        self.service.upstream = self.upstream  # type: ignore[assignment]
        self.service.shadow._upstream = self.upstream  # type: ignore[assignment]
        self.events: list[Event] = []
        self.comparisons: list[ShadowComparison] = []
        self.service.listeners.append(self._listen)

    def _listen(self, event: Event | ShadowComparison) -> None:
        (self.comparisons if isinstance(event, ShadowComparison) else self.events).append(event)  # type: ignore[arg-type]

    def say(self, arm: str, *parts: Part, **more: Any) -> None:
        """What the arm answers from now on."""
        self.upstream.says[arm] = lambda: FakeAnswer(*parts, **more)

    def fail(self, arm: str, why: str = "it cannot be reached") -> None:
        self.upstream.says[arm] = lambda: UpstreamError(why)

    def outcomes(self) -> list[tuple[str, int, str]]:
        """Arm, status and outcome of each attempt, in the order in which they ended."""
        return [(event.arm, event.status, event.outcome) for event in self.events]

    def start(
        self, client: Client, path: str = "/v1/completions", headers: dict[str, str] | None = None
    ) -> asyncio.Task[None]:
        """Begin to answer."""
        sent = {"content-type": "application/json", **(headers or {})}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in sent.items()]
        scope = {"type": "http", "method": "POST", "path": path, "headers": raw}
        return asyncio.create_task(Proxy(self.service)(scope, client.receive, client.send))

    async def asked(
        self,
        path: str = "/v1/completions",
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
        **body: Any,
    ) -> Response:
        client = Client(json.dumps({"model": "m", "prompt": "x", **body}).encode() if raw is None else raw)
        await self.start(client, path, headers)
        in_flight = [arm.in_flight for arm in self.service.arms.values()]
        assert in_flight == [0] * len(in_flight)
        assert not self.service.deadlines.open
        return client.response

    def ask(self, *asked: Any, **body: Any) -> Response:
        """One request, answered."""
        response = asyncio.run(self.asked(*asked, **body))
        assert all(answer.closed for answer in self.upstream.answers)
        return response


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Callable[..., Proxied]]:
    """`proxied(**config)`: the proxy in this process."""
    made: list[Proxied] = []

    def make(**config: Any) -> Proxied:
        made.append(Proxied(tmp_path, **config))
        return made[-1]

    yield make
    for one in made:
        one.service.access_log.close()
        one.store.close()


@pytest.fixture(scope="session")
def client_class() -> type[Client]:
    return Client


@pytest.fixture(scope="session")
def answer_class() -> type[FakeAnswer]:
    return FakeAnswer


@pytest.fixture(scope="session")
def event_stream() -> Callable[..., dict[str, Any]]:
    """`proxied.say("dense", *parts, **event_stream())`: what marks an answer as a stream."""
    return lambda: {"headers": (EVENTS,)}
