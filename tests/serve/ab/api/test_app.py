"""What clients write in other ways than routes have it: slashes, HEAD, and browsers of other origins."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.ab.api.app import create_app
from serve.ab.config import Config
from serve.ab.proxy.security import Keys

PAGE = "https://page.example.org"


@pytest.fixture
def ask(tmp_path: Path) -> Any:
    """`ask("GET", "/health", **request)`: an answer of the application, whose one arm cannot be reached."""
    apps: dict[tuple[str, ...], Any] = {}

    def make(*cors_origins: str) -> Any:
        if cors_origins not in apps:
            config = {
                "arms": {"dense": {"url": "http://127.0.0.1:9"}},
                "model_name": "m",
                "model_aliases": ["alias"],
                "state": tmp_path / f"state-{len(apps)}",
                "access_log": tmp_path / "log",
                "cors_origins": cors_origins,
            }
            apps[cors_origins] = create_app(Config.model_validate(config), keys=Keys())
        return apps[cors_origins]

    def ask(method: str, path: str, cors: tuple[str, ...] = (), **request: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(make(*cors))
            async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
                return await client.request(method, path, **request)

        return asyncio.run(run())

    return ask


@pytest.mark.parametrize(("name", "status"), [("m", 200), ("alias", 200), ("m@dense", 404), ("no/such", 404)])
def test_a_model_by_its_name(ask: Any, name: str, status: int) -> None:
    """OpenAI's client asks so; a hub id has a slash in it."""
    answer = ask("GET", f"/v1/models/{name}")
    assert answer.status_code == status
    if status == 200:
        assert answer.json()["id"] == name
    else:
        assert answer.json()["error"]["code"] == "model_not_found"


def test_anthropics_header_counts_on_every_path(tmp_path: Path) -> None:
    config = {"arms": {"dense": {"url": "http://127.0.0.1:9"}}, "model_name": "m", "state": tmp_path / "state"}
    app = create_app(Config.model_validate(config), keys=Keys(["a-key-of-a-client"]))

    async def status(**headers: str) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://proxy") as client:
            return (await client.get("/v1/models", headers=headers)).status_code

    said = [status(), status(**{"x-api-key": "a-key-of-a-client"}), status(**{"x-api-key": "another-key"})]
    assert [asyncio.run(one) for one in said] == [401, 200, 401]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/completions/", 502),
        ("POST", "/v1/chat/completions//", 502),
        ("GET", "/v1/models/", 200),
        ("GET", "/health/", 200),
        ("GET", "/admin/experiment/", 403),
        ("GET", "/", 200),
        ("POST", "//v1/completions", 404),
    ],
)
def test_a_slash_at_the_end_is_none(ask: Any, method: str, path: str, status: int) -> None:
    """A redirect would lose the body of many clients' requests."""
    answer = ask(method, path, json={"model": "m"})
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("path", "status"), [("/health", 200), ("/v1/models", 200), ("/metrics", 200), ("/", 200), ("/v1/completions", 405)]
)
def test_head_is_what_get_says(ask: Any, path: str, status: int) -> None:
    head, get = ask("HEAD", path), ask("GET", path)
    assert (head.status_code, get.status_code) == (status, status)
    assert head.headers["content-type"] == get.headers["content-type"]


def test_all_names_are_listed(ask: Any) -> None:
    assert [model["id"] for model in ask("GET", "/v1/models").json()["data"]] == ["m", "alias"]


def preflight(ask: Any, path: str, origin: str, *cors: str) -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    answer: httpx.Response = ask("OPTIONS", path, cors, headers=headers)
    return answer


def test_a_browser_of_another_origin_is_let_in_by_the_list(ask: Any) -> None:
    answer = preflight(ask, "/v1/chat/completions", PAGE, PAGE)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    assert "authorization" in answer.headers["access-control-allow-headers"]
    answer = ask("POST", "/v1/chat/completions", (PAGE,), json={"model": "m"}, headers={"origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "x-mi-prun-arm" in answer.headers["access-control-expose-headers"]
    assert "origin" in answer.headers["vary"].lower()
    assert ask("GET", "/v1/models", ("*",), headers={"origin": PAGE}).headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("path", "cors"),
    [
        ("/v1/chat/completions", ()),
        ("/v1/chat/completions", ("https://other.example.org",)),
        ("/admin/experiment", (PAGE,)),
    ],
)
def test_nobody_else_is(ask: Any, path: str, cors: tuple[str, ...]) -> None:
    """Off by default; and no page of another origin is an operator's."""
    assert "access-control-allow-origin" not in preflight(ask, path, PAGE, *cors).headers
    assert "access-control-allow-origin" not in ask("GET", path, cors, headers={"origin": PAGE}).headers
