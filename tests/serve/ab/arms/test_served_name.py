"""The model's name, asked of the first arm where nobody says it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from mi_prun.errors import UserError
from serve.ab.arms.served_name import with_model_name
from serve.ab.config import Config


@pytest.fixture
def engine() -> Iterator[Callable[..., str]]:
    """`engine(status, answer, key)`: the URL of one that says so."""
    servers: list[HTTPServer] = []

    def start(status: int, answer: Any, key: str = "") -> str:
        class Engine(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.path == "/v1/models" and (not key or self.headers["authorization"] == f"Bearer {key}")
                self.send_response(status if known else 401)
                self.end_headers()
                self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

            def log_message(self, *said: Any) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Engine))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def config(url: str, **arm: Any) -> Config:
    return Config.model_validate({"arms": {"dense": {"url": url, **arm}, "pruned": {"url": "http://h"}}})


def listed(*names: str) -> dict[str, Any]:
    adapters = [{"id": "an-adapter", "parent": names[0]}] if names else []
    return {"object": "list", "data": [{"id": name, "parent": None} for name in names] + adapters}


def test_the_one_name_that_is_served(engine: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter is none. Nothing else of the config changes."""
    monkeypatch.setenv("ENGINE_KEY", "its-key")
    before = config(engine(200, listed("owner/model"), "its-key") + "/", api_key_env="ENGINE_KEY")
    assert before.model_name == ""
    after = with_model_name(before)
    assert after.model_name == "owner/model"
    assert after.model_dump() == {**before.model_dump(), "model_name": "owner/model"}


def test_a_name_that_is_said_is_kept_and_nobody_is_asked() -> None:
    named = Config.model_validate({"arms": {"dense": {"url": "http://127.0.0.1:9"}}, "model_name": "m"})
    assert with_model_name(named) is named


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (200, listed("a", "b"), "arm dense serves 2 (a, b) at"),
        (200, listed(), "arm dense serves 0 (none) at"),
        (401, {}, "(status 401); say it by --model-name"),
        (200, b"<html>", "its answer is no list of models"),
        (200, {"data": [7]}, "its answer is no list of models"),
        (200, {"data": [{"id": 7}]}, "its answer is no list of models"),
        (200, listed("a name"), "printable ASCII without spaces"),
    ],
)
def test_a_clear_refusal_otherwise(engine: Callable[..., str], status: int, answer: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        with_model_name(config(engine(status, answer)))
    assert said in str(error.value)
    assert "model_name" in str(error.value)


def test_nobody_answers() -> None:
    with pytest.raises(UserError, match="model_name is missing, and arm dense does not say it"):
        with_model_name(config("http://127.0.0.1:9"))
