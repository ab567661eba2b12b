"""Keys: who is let in as what."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fastapi import Response
from starlette.types import Message, Receive, Scope, Send

from mi_prun.errors import UserError
from serve.ab.config import ArmConfig, Config
from serve.ab.proxy.security import Keys, OwnHosts, load_keys


@pytest.mark.parametrize(
    ("authorization", "role"),
    [
        (b"Bearer one-key-1", "client"),
        (b"bearer  two-key-2 ", "client"),
        (b"Bearer the-admin-key", "operator"),
        (b"Bearer one-key-", "nobody"),
        (b"Bearer ", "nobody"),
        (b"Basic one-key-1", "nobody"),
        (b"one-key-1", "nobody"),
        (b"Bearer \xff", "nobody"),
        (None, "nobody"),
    ],
)
def test_roles(authorization: bytes | None, role: str) -> None:
    assert Keys(["one-key-1", "two-key-2"], "the-admin-key").caller(authorization).role == role


def test_without_api_keys_everyone_is_a_client_and_nobody_an_operator() -> None:
    assert Keys().caller(None).role == "client"
    assert Keys().caller(b"Bearer ").role == "client"
    assert not Keys().has_admin


def test_an_identity_is_stable_and_not_the_key() -> None:
    keys = Keys(["one-key-1", "two-key-2"])
    one, two = (keys.caller(f"Bearer {key}".encode()).identity for key in ("one-key-1", "two-key-2"))
    assert one == Keys(["one-key-1"]).caller(b"Bearer one-key-1").identity
    assert one != two
    assert "one" not in one


def config(**fields: object) -> Config:
    return Config.model_validate({"arms": {"a": ArmConfig(url="http://h")}, "model_name": "m", **fields})


def test_keys_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MI_PRUN_AB_API_KEYS", "of-the-environment")
    (tmp_path / "keys").write_text("one-key-1\n\n two-key-2\n")
    (tmp_path / "admin").write_text("the-admin-key\n")
    keys = load_keys(config(api_keys_file=tmp_path / "keys", admin_key_file=tmp_path / "admin"))
    assert keys.caller(b"Bearer two-key-2").role == "client"
    assert keys.caller(b"Bearer the-admin-key").role == "operator"
    assert keys.caller(b"Bearer of-the-environment").role == "nobody"
    assert load_keys(config()).caller(b"Bearer of-the-environment").role == "client"


def test_a_variable_that_is_set_and_holds_no_key_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of "$A,$B", with neither set."""
    monkeypatch.setenv("MI_PRUN_AB_API_KEYS", ",")
    with pytest.raises(UserError, match="MI_PRUN_AB_API_KEYS is set and holds no API key"):
        load_keys(config())
    monkeypatch.setenv("MI_PRUN_AB_API_KEYS", "")
    assert load_keys(config()).open


@pytest.mark.parametrize(
    ("text", "said"), [("", "holds no API key"), ("short", "at least 8"), ("has a space", "at least 8")]
)
def test_files_that_hold_no_key(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UserError, match=said) as error:
        load_keys(config(api_keys_file=tmp_path / "keys"))
    assert not text or text not in str(error.value)
    with pytest.raises(UserError, match="cannot read"):
        load_keys(config(admin_key_file=tmp_path / "none"))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"localhost", 200),
        (b"LocalHost:8080", 200),
        (b"127.0.0.1:8080", 200),
        (b"127.9.9.9", 200),
        (b"[::1]:8080", 200),
        (b"chat.example.org", 200),
        (None, 200),  # HTTP/1.0
        (b"rebound.example:8080", 403),
        (b"127.0.0.1.rebound.example", 403),
        (b"localhost.rebound.example", 403),
        (b"10.0.0.1", 403),
        (b"[::1", 403),
        (b":8080", 403),
        (b"\xff", 403),
    ],
)
def test_a_rebound_name_is_refused(host: bytes | None, status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response("well")(scope, receive, send)

    def asked(origins: tuple[str, ...]) -> int:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "headers": [(b"host", host)] if host is not None else []}
        asyncio.run(OwnHosts(app, origins)(scope, None, send))  # type: ignore[arg-type]
        return int(sent[0]["status"])

    assert asked(("https://chat.example.org", "http://10.0.0.2:3000")) == status
    assert asked(("*",)) == 200
