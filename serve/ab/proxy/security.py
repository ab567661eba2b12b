"""Keys: API keys for clients, an admin key for operators, compared in constant time."""

from __future__ import annotations

import hmac
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from fastapi import HTTPException, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mi_prun.errors import UserError
from serve.ab.config import ADMIN_KEY_VARIABLE, API_KEYS_VARIABLE, Config
from serve.ab.proxy.parsed_request import RefusalError
from serve.ab.wire.headers import ANTHROPIC_KEY, RawHeaders, value_of

SHORTEST_KEY = 8

Role = Literal["nobody", "client", "operator"]


@dataclass(frozen=True)
class Caller:
    """Somebody who asks. identity: what an API key sticks by; "" without one. It does not give the key away."""

    role: Role
    identity: str = ""


class Keys:
    """The keys of a server. Without API keys every caller is a client; without an admin key nobody is an operator."""

    def __init__(self, api_keys: Iterable[str] = (), admin_key: str | None = None) -> None:
        self._api = [_digest(key) for key in api_keys]
        self._admin = _digest(admin_key) if admin_key else None

    @property
    def open(self) -> bool:
        return not self._api

    @property
    def several(self) -> bool:
        return len(self._api) > 1

    @property
    def has_admin(self) -> bool:
        return self._admin is not None

    def caller(self, authorization: bytes | None) -> Caller:
        """Return who asks. authorization: the header's value. Every key is compared, in constant time."""
        given = _digest(_bearer(authorization))
        operator = self._admin is not None and hmac.compare_digest(given, self._admin)
        fits = [hmac.compare_digest(given, key) for key in self._api]
        if operator:
            return Caller("operator")
        if any(fits):
            return Caller("client", given.hex()[:16])
        return Caller("client" if self.open else "nobody")


def _digest(key: str | bytes) -> bytes:
    """Return a digest: of one length, so that a comparison does not tell how long a key is."""
    return sha256(key.encode("utf-8") if isinstance(key, str) else key).digest()


def _bearer(authorization: bytes | None) -> bytes:
    scheme, _, key = (authorization or b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def load_keys(config: Config) -> Keys:
    """Read keys from the files that the config names, else from the environment. Raises UserError, without a key."""
    if config.api_keys_file:
        api = _lines(config.api_keys_file)
        if not api:
            raise UserError(f"{config.api_keys_file} holds no API key: one on each line")
    else:
        said = os.environ.get(API_KEYS_VARIABLE, "")
        api = [key for key in said.split(",") if key]
        if said and not api:  # as of "$A,$B" with neither set: everyone would be a client
            raise UserError(f"{API_KEYS_VARIABLE} is set and holds no API key; name some, with commas, or unset it")
    if config.admin_key_file:
        lines = _lines(config.admin_key_file)
        if len(lines) != 1:
            raise UserError(f"{config.admin_key_file} must hold one admin key, got {len(lines)}")
        admin: str | None = lines[0]
    else:
        admin = os.environ.get(ADMIN_KEY_VARIABLE) or None
    for what, keys in (("API key", api), ("admin key", [admin] if admin else [])):
        if any(len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key for key in keys):
            raise UserError(f"an {what} must have at least {SHORTEST_KEY} printable ASCII characters and no space")
    if admin in api:
        raise UserError("the admin key must not be an API key too: every client would be an operator")
    return Keys(api, admin)


def _lines(path: Path) -> list[str]:
    try:
        return [line for raw in path.read_text(encoding="utf-8").splitlines() if (line := raw.strip())]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not text'}") from error


def authorization_of(headers: RawHeaders) -> bytes | None:
    """Return what says who asks: `Authorization`, else the header that Anthropic's clients put their key in."""
    said = value_of(headers, b"authorization")
    if said is None and (key := value_of(headers, ANTHROPIC_KEY)) is not None:
        return b"Bearer " + key
    return said


def caller_of(request: Request) -> Caller:
    """Return who asks a route."""
    keys: Keys = request.app.state.ab.keys
    return keys.caller(authorization_of(request.scope["headers"]))


def require_operator(request: Request) -> None:
    """Let operators in to a route: 403 where no admin key is set, 401 for any other key."""
    if not request.app.state.ab.keys.has_admin:
        raise HTTPException(403, "no admin key is set on this server: admin routes are closed")
    if caller_of(request).role != "operator":
        raise HTTPException(401, "the admin key is needed", {"WWW-Authenticate": "Bearer"})


def require_client(request: Request) -> None:
    """Let clients and operators in to a route, by an API key or the admin key, where keys are set."""
    if caller_of(request).role == "nobody":
        raise HTTPException(401, "an API key is needed", {"WWW-Authenticate": "Bearer"})


class OwnHosts:
    """An ASGI application for a loopback address without keys: it refuses the host names that are not its own.

    A page of any site could have its own name resolve to 127.0.0.1, and be a client in the browser of whoever opens it
    (DNS rebinding). origins: of pages that may be clients (`cors_origins`), whose host names are taken too.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._any = "*" in origins
        self._names = {urlsplit(origin).hostname for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._any or self._is_own(value_of(scope["headers"], b"host")):
            await self._app(scope, receive, send)
            return
        refusal = RefusalError(
            403,
            "without API keys only localhost and hosts of cors_origins are answered; let a proxy in front send Host: "
            "localhost, or set API keys",
            "permission_error",
            "host_name",
        )
        answer = Response(refusal.body(), refusal.status, {"Connection": "close"}, "application/json")
        await answer(scope, receive, send)

    def _is_own(self, said: bytes | None) -> bool:
        if not said:
            return True  # HTTP/1.0: no browser
        try:
            name = urlsplit(f"//{said.decode('latin-1')}").hostname
        except ValueError:
            return False
        return name is not None and (is_loopback(name) or name in self._names)


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
