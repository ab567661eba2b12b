"""What no well-behaved client sends, by raw sockets: smuggling, injection, heads and bodies without an end."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from mi_prun.process_group import free_port

BODY = json.dumps({"model": "the-model", "prompt": "x"}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)


def say(port: int, *parts: bytes, pause_s: float = 0.0, timeout_s: float = 20.0) -> bytes:
    """All that is answered until the other end closes, or nothing more comes: soon after what came, without a pause."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
            while part := connection.recv(65536):
                answer += part
                connection.settimeout(2.0 if not pause_s else timeout_s)
        except (TimeoutError, ConnectionError):
            pass
        return answer


def trickle(connection: socket.socket) -> None:
    """A head that goes on and on: all of it has so long, not each part of it."""
    for _ in range(200):
        connection.sendall(b"X-A: 1\r\n")
        time.sleep(0.1)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def seen(fakes: list[Any]) -> int:
    return sum(fake.seen()["seen"] for fake in fakes)


SMUGGLING = {
    "two lengths": HEAD + LENGTH + b"Content-Length: 0\r\n\r\n" + BODY,
    "the same length twice": HEAD + LENGTH + LENGTH + b"\r\n" + BODY,
    "a list of lengths": HEAD + b"Content-Length: 5, 5\r\n\r\n" + BODY,
    "length and chunks": HEAD + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + BODY,
    "chunks and length": HEAD + b"Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n0\r\n\r\n" + BODY,
    "chunks, then something else": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunks by another name": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "a signed length": HEAD + b"Content-Length: +5\r\n\r\n" + BODY,
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n" + BODY,
    "a hexadecimal length": HEAD + b"Content-Length: 0x10\r\n\r\n" + BODY,
    "a length without end": HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n" + BODY,
    "a space before the colon": HEAD + b"Content-Length : 5\r\n\r\n" + BODY,
    "a folded header": HEAD + LENGTH + b"X-A: 1\r\n Transfer-Encoding: chunked\r\n\r\n" + BODY,
    "a bare line end in a value": HEAD + LENGTH + b"X-A: 1\rTransfer-Encoding: chunked\r\n\r\n" + BODY,
    "a zero byte in a value": HEAD + LENGTH + b"X-A: a\x00b\r\n\r\n" + BODY,
    "a bad chunk size": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + BODY,
    "a chunk size without end": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 200 + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLING)
def test_it_is_refused_and_no_arm_sees_any_of_it(proxy: Any, shared_fakes: list[Any], name: str) -> None:
    before = seen(shared_fakes)
    answer = say(proxy.port, SMUGGLING[name])
    assert status_of(answer) == 400
    assert answer.count(b"HTTP/1.1") == 1  # nothing in it was taken for a second request
    assert seen(shared_fakes) == before


def test_a_request_inside_of_a_body_is_a_body(proxy: Any, shared_fakes: list[Any]) -> None:
    before = seen(shared_fakes)
    inner = HEAD + LENGTH + b"\r\n" + BODY
    answer = say(proxy.port, HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner)
    assert status_of(answer) == 400  # it is no JSON
    assert answer.count(b"HTTP/1.1") == 1
    assert seen(shared_fakes) == before


def test_chunks_are_put_together_and_sent_on_with_a_length(proxy: Any, shared_fakes: list[Any]) -> None:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:])) + b"0\r\n\r\n"
    answer = say(
        proxy.port, HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\nX-Mi-Prun-Sticky: a\r\n\r\n", chunks
    )
    assert status_of(answer) == 200
    arm = answer.split(b"x-mi-prun-arm: ")[1].split(b"\r\n")[0].decode()
    last = next(fake for fake in shared_fakes if fake.name == arm).seen()["last"]
    assert last["body"] == json.loads(BODY)
    assert last["headers"]["content-length"] == str(len(BODY))
    assert "transfer-encoding" not in last["headers"]


def test_two_requests_at_once_get_two_answers_in_order(proxy: Any) -> None:
    other = json.dumps({"model": "none"}).encode()
    second = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(other) + other
    answer = say(proxy.port, HEAD + LENGTH + b"\r\n" + BODY + second)
    assert [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 404]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://169.254.169.254/v1/completions", 200),  # only the path of it is looked at
        (b"//169.254.169.254/v1/completions", 404),
        (b"/v1/completions/../../metrics", 404),
        (b"/v1/completions%0d%0aX-A:%201", 404),
        (b"/v1/completions?url=http://169.254.169.254/", 200),
    ],
)
def test_no_target_leads_elsewhere(proxy: Any, shared_fakes: list[Any], target: bytes, status: int) -> None:
    before = seen(shared_fakes)
    answer = say(proxy.port, HEAD.replace(b"/v1/completions", target) + LENGTH + b"Connection: close\r\n\r\n" + BODY)
    assert status_of(answer) == status
    assert seen(shared_fakes) - before <= (status == 200)


def test_without_keys_a_name_that_was_rebound_to_this_machine_is_refused(proxy: Any, shared_fakes: list[Any]) -> None:
    before = seen(shared_fakes)
    for head in (HEAD, HEAD.replace(b"POST /v1/completions", b"GET /metrics")):
        answer = say(proxy.port, head.replace(b"localhost", b"rebound.example:8080") + LENGTH + b"\r\n" + BODY)
        assert status_of(answer) == 403
        assert answer.count(b"HTTP/1.1") == 1
        assert b"set API keys" in answer
    assert seen(shared_fakes) == before


def test_a_redirect_of_an_arm_is_not_followed(proxy: Any, shared_fakes: list[Any]) -> None:
    before = shared_fakes[1].seen()["seen"]
    answered = proxy.ask({"x-mi-prun-sticky": "a"}, fake={"redirect": f"{shared_fakes[1].url}/v1/completions"})
    assert (answered[0], "redirect (307), which is not followed" in answered[2]["error"]["message"]) == (502, True)
    assert shared_fakes[1].seen()["seen"] - before <= 1  # asked as an arm, not as where a redirect leads


def test_a_head_without_an_end(proxy: Any) -> None:
    assert status_of(say(proxy.port, HEAD + b"X-A: " + b"x" * 40_000)) == 431
    many = b"".join(b"X-%d: 1\r\n" % number for number in range(6_000))
    assert status_of(say(proxy.port, HEAD + LENGTH + many + b"\r\n" + BODY)) in (400, 431)


def test_a_body_without_an_end(proxy: Any) -> None:
    length = HEAD + b"Content-Length: 99999999999\r\n\r\n" + b"x" * 1000
    assert status_of(say(proxy.port, length)) == 413
    chunk = b"%x\r\n" % 2**16 + b"x" * 2**16 + b"\r\n"
    assert status_of(say(proxy.port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 129)) == 413
    put = b"PUT /admin/experiment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 2**17
    assert status_of(say(proxy.port, put)) == 413


@pytest.fixture(scope="module")
def impatient(fake_class: Any, proxy_class: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An engine and a proxy that waits for nobody for long. The last test here stops the engine."""
    folder = tmp_path_factory.mktemp("impatient")
    fake = fake_class(folder / "dense.log", "dense", free_port())
    fake.wait_ready()
    toml = folder / "ab.toml"
    toml.write_text("[limits]\nrequest_s = 0.8\nfirst_byte_s = 3\nidle_s = 2\nsend_s = 0.8\n")
    proxy = proxy_class(folder, "--arm", f"dense={fake.url}", "--model-name", "the-model", "--config", str(toml))
    proxy.wait_ready()
    yield fake, proxy
    proxy.group.stop()
    fake.stop()


def test_the_slow_are_not_waited_for(impatient: Any) -> None:
    """Clients, each in its own way. The engine's time limits are tested in one process, beside `Failover`."""
    _, proxy = impatient
    assert status_of(say(proxy.port, b"POST /v1/completions HTTP/1.1\r\n", pause_s=0.1)) == 408
    with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
        connection.sendall(HEAD)
        with pytest.raises(ConnectionError):
            trickle(connection)
    assert status_of(say(proxy.port, HEAD + LENGTH + b"\r\n" + BODY[:3], pause_s=0.1)) == 408
    # Offers a protocol that is not spoken here: it is answered in this one, and waited for no longer.
    upgrade = HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + LENGTH + b"\r\n"
    assert status_of(say(proxy.port, upgrade + BODY, timeout_s=3.0)) == 200
    assert status_of(say(proxy.port, upgrade + BODY[:3], pause_s=0.1)) == 408
    admin = b"PUT /admin/experiment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n{"
    assert status_of(say(proxy.port, admin, pause_s=0.1)) == 408


def test_a_client_that_takes_nothing_is_cut_off(impatient: Any) -> None:
    """Not only given up: its connection is closed, although it never takes what it was sent, and its request ends at
    the engine. On every route.
    """
    fake, proxy = impatient
    fake.set(metrics_pad=7_500_000)
    process = psutil.Process(proxy.group.process.pid)
    stream = json.dumps({"model": "the-model", "prompt": "x", "stream": True, "fake": {"pad": 10**6, "tokens": 99}})
    asked = [
        b"GET /metrics/dense HTTP/1.1\r\nHost: localhost\r\n\r\n",
        HEAD + b"Content-Length: %d\r\n\r\n" % len(stream) + stream.encode(),
    ]

    def connected(port: int) -> bool:
        return any(connection.raddr and connection.raddr.port == port for connection in process.net_connections("tcp"))

    for request in asked:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", proxy.port))
            port = connection.getsockname()[1]
            connection.sendall(request)
            connection.recv(1)
            assert connected(port)
            deadline = time.monotonic() + 20
            while connected(port):
                assert time.monotonic() < deadline, "it is still connected"
                time.sleep(0.1)
            connection.settimeout(20)
            size = 0
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(2**20):
                    size += len(part)
            assert size < 7_500_000  # what the kernels held; then the end
    assert fake.seen()["cancelled"] == 1
    assert proxy.ask()[0] == 200


def test_an_engine_that_stops_in_mid_stream_ends_with_an_error_event(impatient: Any) -> None:
    fake, proxy = impatient
    body = json.dumps({"model": "the-model", "prompt": "x", "stream": True, "fake": {"tokens": 6, "hang_after": 3}})
    head = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    answered = say(proxy.port, head, body.encode(), pause_s=0.1)
    assert psutil.Process(fake.group.process.pid).status() == psutil.STATUS_STOPPED
    assert answered.count(b'"choices"') == 3
    assert b'data: {"error": {"message": "arm dense failed: idle_timeout"' in answered
    assert answered.endswith(b"\r\n0\r\n\r\n")  # the end of the body, well-formed
