"""Which headers go on, in both directions."""

from __future__ import annotations

from serve.ab.wire.headers import for_client, for_upstream

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
