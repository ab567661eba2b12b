"""Fake engines and the proxy before them, each a process of its own."""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mi_prun.process_group import ProcessGroup, free_port
from serve.ab.verdict.event import Event, ShadowComparison

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")
ADMIN_KEY = "admin-key-of-the-tests"
MODEL = "the-model"


def call(
    url: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None
) -> tuple[int, dict[str, str], Any]:
    """Status, headers (lower case) and JSON of an answer, whatever its status."""
    data = None if body is None else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data=data, headers=sent, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, answer_headers, text = answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        status, answer_headers, text = error.code, error.headers, error.read()
    return status, {name.lower(): value for name, value in answer_headers.items()}, json.loads(text) if text else None


class Fake:
    """A fake engine's process."""

    def __init__(self, log: Path, name: str, port: int, *flags: str) -> None:
        self.log = log
        self.name = name
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, str(FAKE_ENGINE), "--port", str(port), "--name", MODEL, *flags]
        self.group = ProcessGroup(command, log)

    def wait_ready(self) -> None:
        self.group.wait_ready(f"{self.url}/health", timeout_seconds=30)

    def seen(self) -> dict[str, Any]:
        seen: dict[str, Any] = call(f"{self.url}/fake/seen")[2]
        return seen

    def set(self, **defaults: Any) -> None:
        call(f"{self.url}/fake/set", defaults)

    def signal(self, signum: int) -> None:
        os.kill(self.group.process.pid, signum)

    def stop(self) -> None:
        self.signal_if_alive(signal.SIGCONT)
        self.group.stop(2.0)

    def signal_if_alive(self, signum: int) -> None:
        if self.group.process.poll() is None:
            self.signal(signum)


class Proxy:
    """`mi-prun-ab` before some arms."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        port: int | None = None,
        env: dict[str, str] | None = None,
        runner: Path | None = None,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.log = folder / f"proxy-{self.port}.log"
        self.access_log = folder / "access.jsonl"
        command = [
            sys.executable,
            *([str(runner)] if runner else ["-m", "serve.ab.cli"]),
            "--port",
            str(self.port),
        ]
        if "--state" not in flags:
            command += ["--state", str(folder / "ab.sqlite")]
        if "--access-log" not in flags:
            command += ["--access-log", str(self.access_log)]
        command += flags  # last: they may end in a -- and an engine's own
        self.group = ProcessGroup(command, self.log, {"MI_PRUN_AB_ADMIN_KEY": ADMIN_KEY, **(env or {})})

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        self.group.wait_ready(f"{self.url}/health", timeout_seconds=timeout_s)

    def ask(self, headers: dict[str, str] | None = None, path: str = "/v1/completions", **body: Any) -> Any:
        """Status, headers and JSON of a completion."""
        return call(f"{self.url}{path}", {"model": MODEL, "prompt": "It was", **body}, headers)

    def call(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None
    ) -> tuple[int, dict[str, str], Any]:
        return call(f"{self.url}{path}", body, headers, method)

    def experiment(self, **change: Any) -> Any:
        """Of the admin route: read, or changed."""
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        status, _, experiment = call(f"{self.url}/admin/experiment", None, headers)
        if not change:
            return experiment
        body = {"version": experiment["state"]["version"], **change}
        status, _, experiment = call(f"{self.url}/admin/experiment", body, headers, "PUT")
        assert status == 200, experiment
        return experiment

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.access_log.read_text().splitlines()]


@pytest.fixture
def start_fakes(tmp_path: Path) -> Iterator[Callable[..., list[Fake]]]:
    """`start_fakes("dense", "pruned")`: fake engines of the test's own, ready."""
    started: list[Fake] = []

    def start(*names: str, flags: tuple[str, ...] = ()) -> list[Fake]:
        made = [Fake(tmp_path / f"{name}.log", name, free_port(), *flags) for name in names]
        started.extend(made)
        for fake in made:
            fake.wait_ready()
        return made

    yield start
    for fake in started:
        fake.stop()


@pytest.fixture
def start_proxy(tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    """`start_proxy(fakes, *flags)`: the proxy before them, ready."""
    started: list[Proxy] = []

    def start(fakes: list[Fake], *flags: str, ready: bool = True, **more: Any) -> Proxy:
        arms = [word for fake in fakes for word in ("--arm", f"{fake.name}={fake.url}")]
        proxy = Proxy(tmp_path, *arms, "--model-name", MODEL, *flags, **more)
        started.append(proxy)
        if ready:
            proxy.wait_ready()
        return proxy

    yield start
    for proxy in started:
        proxy.group.stop()


@pytest.fixture(scope="session")
def shared_fakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Fake]]:
    """Two engines that no test may harm; they do not say the same."""
    folder = tmp_path_factory.mktemp("fakes")
    fakes = [
        Fake(folder / "dense.log", "dense", free_port()),
        Fake(folder / "pruned.log", "pruned", free_port(), "--seed", "3"),
    ]
    for fake in fakes:
        fake.wait_ready()
    yield fakes
    for fake in fakes:
        fake.stop()


@pytest.fixture(scope="session")
def proxy(shared_fakes: list[Fake], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Before the two, evenly split, and so it shall stay."""
    arms = [word for fake in shared_fakes for word in ("--arm", f"{fake.name}={fake.url}")]
    started = Proxy(tmp_path_factory.mktemp("proxy"), *arms, "--model-name", MODEL, "--split", "dense=50,pruned=50")
    started.wait_ready()
    yield started
    started.group.stop()


@pytest.fixture(scope="session")
def admin() -> dict[str, str]:
    return {"Authorization": f"Bearer {ADMIN_KEY}"}


class Clock:
    """A clock that the test sets, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def observed() -> Callable[..., Event]:
    """`observed("pruned", ttft_s=0.1)`: a counted, streamed answer of that arm, 20 tokens in 0.3 s, or what is said."""

    def make(arm: str = "dense", **fields: Any) -> Event:
        whole: dict[str, Any] = {
            "time": 1000.0,
            "arm": arm,
            "assigned_arm": arm,
            "reason": "split",
            "counted": True,
            "key_hash": "",
            "path": "/v1/completions",
            "streamed": True,
            "status": 200,
            "outcome": "ok",
            "ttft_s": 0.1,
            "itl_s": (0.01,) * 19,
            "e2e_s": 0.3,
            "input_tokens": 5,
            "output_tokens": 20,
            "finish_reason": "stop",
        }
        return Event(**(whole | fields))

    return make


@pytest.fixture(scope="session")
def compared() -> Callable[..., ShadowComparison]:
    """`compared(0.7)`: a request to the dense arm, mirrored to the pruned one, and the agreement."""

    def make(agreement: float | None = 0.7, **fields: Any) -> ShadowComparison:
        whole: dict[str, Any] = {
            "time": 1000.0,
            "primary_arm": "dense",
            "shadow_arm": "pruned",
            "streamed": True,
            "agreement": agreement,
            "same_tokens": 7,
            "compared_tokens": 10,
            "logprob_difference_nats": None,
            "shadow_ttft_s": 0.1,
            "shadow_e2e_s": 0.3,
            "error": None,
        }
        return ShadowComparison(**(whole | fields))

    return make


@pytest.fixture(scope="session")
def proxy_class() -> type[Proxy]:
    return Proxy


@pytest.fixture(scope="session")
def fake_engine() -> Path:
    return FAKE_ENGINE


@pytest.fixture(scope="session")
def fake_class() -> type[Fake]:
    return Fake
