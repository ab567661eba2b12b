"""Headers that go on: end-to-end ones; not those of one connection, nor what is the proxy's own business."""

from __future__ import annotations

from collections.abc import Iterable

RawHeaders = Iterable[tuple[bytes, bytes]]

ARM = b"x-mi-prun-arm"
REASON = b"x-mi-prun-reason"
ANTHROPIC_KEY = b"x-api-key"  # where Anthropic's clients put the key
OWN_PREFIX = b"x-mi-prun-"
CORS_PREFIX = b"access-control-"  # who may read an answer in a browser is the proxy's to say

HOP_BY_HOP = frozenset(  # RFC 9110, 7.6.1
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
# Its own connection and key; unpacked answers only, since they are looked at; cookies are for the proxy's own page.
NOT_UPSTREAM = HOP_BY_HOP | frozenset(
    (
        b"host",
        b"content-length",
        b"content-encoding",
        b"authorization",
        ANTHROPIC_KEY,
        b"accept-encoding",
        b"expect",
        b"cookie",
    )
)
NOT_DOWNSTREAM = HOP_BY_HOP | {b"date", b"server", b"set-cookie"}


def for_upstream(headers: RawHeaders, key: str | None) -> list[tuple[bytes, bytes]]:
    """Return the headers for an arm. key: what the arm is asked with; None where we have none."""
    headers = list(headers)
    dropped = NOT_UPSTREAM | _named_by_connection(headers)
    kept = [(name, value) for name, value in headers if name not in dropped and not name.startswith(OWN_PREFIX)]
    kept.append((b"accept-encoding", b"identity"))
    if key is not None:
        kept.append((b"authorization", f"Bearer {key}".encode()))
    return kept


def for_client(headers: RawHeaders, arm: str, reason: str) -> list[tuple[bytes, bytes]]:
    """Return the headers for a client: the answer's, then which arm it was and why."""
    headers = [(name.lower(), value) for name, value in headers]
    dropped = NOT_DOWNSTREAM | _named_by_connection(headers)
    not_its_own = (OWN_PREFIX, CORS_PREFIX)
    kept = [(name, value) for name, value in headers if name not in dropped and not name.startswith(not_its_own)]
    return [*kept, (ARM, arm.encode()), (REASON, reason.encode())]


def value_of(headers: RawHeaders, name: bytes) -> bytes | None:
    """Return the first value of a header, or None; names are in lower case."""
    return next((value for other, value in headers if other == name), None)


def is_event_stream(headers: RawHeaders) -> bool:
    """Return whether an answer with these headers is a stream of events; names are in lower case."""
    return media_type(headers) == b"text/event-stream"


def media_type(headers: RawHeaders) -> bytes:
    """Return the content type in lower case, without its parameters; b"" where there is none."""
    return (value_of(headers, b"content-type") or b"").partition(b";")[0].strip().lower()


def is_packed(headers: RawHeaders) -> bool:
    """Return whether an answer with these headers (lower case) is compressed; `identity` was asked for."""
    encodings = [value.strip().lower() for name, value in headers if name == b"content-encoding"]
    return any(encoding not in (b"", b"identity") for encoding in encodings)


def _named_by_connection(headers: RawHeaders) -> set[bytes]:
    return {word.strip().lower() for name, value in headers if name == b"connection" for word in value.split(b",")}
