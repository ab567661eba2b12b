"""Which headers go on, in both directions."""

from __future__ import annotations

import pytest

from serve.ab.wire.headers import for_client, for_upstream, is_event_stream, is_packed

CLIENT = [
    (b"host", b"proxy"),
    (b"connection", b"close, X-Private"),
    (b"x-private", b"1"),
    (b"keep-alive", b"timeout=5"),
    (b"te", b"trailers"),
    (b"transfer-encoding", b"chunked"),
    (b"upgrade", b"h2c"),
    (b"authorization", b"Bearer client-key"),
    (b"cookie", b"a=b"),
    (b"content-length", b"3"),
    (b"accept-encoding", b"gzip"),
    (b"content-encoding", b"gzip"),
    (b"x-mi-prun-arm", b"dense"),
    (b"traceparent", b"00-1-2-01"),
    (b"tracestate", b"a=b"),
    (b"x-request-id", b"\xe9"),
]


def test_only_end_to_end_headers_reach_an_arm() -> None:
    sent = dict(for_upstream(CLIENT, "engine-key"))
    assert sent == {
        b"accept-encoding": b"identity",
        b"authorization": b"Bearer engine-key",
        b"traceparent": b"00-1-2-01",
        b"tracestate": b"a=b",
        b"x-request-id": b"\xe9",
    }
    assert b"authorization" not in dict(for_upstream(CLIENT, None))


def test_an_arm_cannot_speak_for_the_proxy() -> None:
    sent = for_client(
        [
            (b"Content-Type", b"text/plain"),
            (b"X-MI-PRUN-Arm", b"spoofed"),
            (b"Connection", b"x-hop"),
            (b"X-Hop", b"1"),
            (b"Set-Cookie", b"a=b"),
            (b"Transfer-Encoding", b"chunked"),
            (b"Server", b"uvicorn"),
            (b"Access-Control-Allow-Origin", b"*"),
        ],
        "dense",
        "split",
    )
    assert sent == [(b"content-type", b"text/plain"), (b"x-mi-prun-arm", b"dense"), (b"x-mi-prun-reason", b"split")]


@pytest.mark.parametrize(
    ("value", "streamed"),
    [
        (b"text/event-stream", True),
        (b"Text/Event-Stream;charset=UTF-8", True),
        (b" text/event-stream ; charset=utf-8", True),
        (b"text/event-stream-like", False),
        (b"application/json", False),
        (b"", False),
    ],
)
def test_a_media_type_has_no_case(value: bytes, streamed: bool) -> None:
    assert is_event_stream([(b"content-type", value)]) is streamed


@pytest.mark.parametrize(
    ("values", "packed"),
    [
        ([], False),
        ([b""], False),
        ([b"Identity "], False),
        ([b"gzip"], True),
        ([b"identity", b"br"], True),
        ([b"identity, gzip"], True),
    ],
)
def test_any_encoding_but_identity_packs(values: list[bytes], packed: bool) -> None:
    assert is_packed([(b"content-encoding", value) for value in values]) is packed
