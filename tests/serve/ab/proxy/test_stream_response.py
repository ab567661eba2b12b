"""An answer on its way to the client: passed on as it comes, and ended so that the client can tell."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from serve.ab.wire.upstream import UpstreamError

ERROR = b'data: {"error": {"message": "arm dense failed: '
DONE = b"data: [DONE]\n\n"


def chunk(word: str, **more: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "text": word}], **more}).encode() + b"\n\n"


@pytest.fixture
def dense(proxied: Callable[..., Any]) -> Any:
    """The proxy, whose one arm has a circuit that never opens."""
    return proxied(arms={"dense": {"url": "http://dense"}}, health={"failures": 1000})


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_is_passed_on_byte_for_byte(dense: Any, event_stream: Any, path: str) -> None:
    parts = [chunk("a"), chunk("b")[:9], chunk("b")[9:], DONE]
    dense.say("dense", *parts, **event_stream())
    response = dense.ask(path, stream=True)
    assert response.parts == [chunk("a"), chunk("b"), DONE, b""]
    assert response.whole
    (event,) = dense.events
    assert (event.outcome, event.output_tokens, event.streamed, event.counted) == ("ok", 2, True, True)
    assert len(event.itl_s) == 1


def test_each_part_is_sent_before_the_next_one_is_read(dense: Any, client_class: Any, event_stream: Any) -> None:
    """Backpressure: an engine whose client does not take a part is not asked for another one."""
    read: list[int] = []

    def part(number: int) -> Callable[[], Any]:
        async def come() -> bytes:
            read.append(number)
            return chunk(str(number))

        return come

    async def run() -> None:
        dense.say("dense", *(part(number) for number in range(4)), **event_stream())
        client = client_class(b'{"stream": true}')
        client.takes.clear()
        task = dense.start(client)
        for _ in range(50):
            await asyncio.sleep(0)
        assert read == [0]
        client.takes.set()
        await task

    asyncio.run(run())
    assert read == [0, 1, 2, 3]


def test_a_stream_that_breaks_ends_with_an_error_event(dense: Any, event_stream: Any) -> None:
    dense.say("dense", chunk("a"), chunk("b")[:9], UpstreamError("the connection was lost"), **event_stream())
    response = dense.ask(stream=True)
    assert response.parts[0] == chunk("a")
    assert response.parts[1].startswith(ERROR + b"the connection was lost")
    assert response.parts[1].endswith(b"\n\n")
    assert response.whole
    assert json.loads(response.parts[1].removeprefix(b"data: "))["error"] == {
        "message": "arm dense failed: the connection was lost",
        "type": "upstream_error",
        "code": "arm_failed",
        "param": None,
    }
    assert dense.outcomes() == [("dense", 200, "disconnected")]


def test_a_stream_with_a_length_ends_with_an_error_event_too(dense: Any, event_stream: Any) -> None:
    """A gateway may know the length: what is said of a failure comes on top of it."""
    said = event_stream()
    said["headers"] = (*said["headers"], (b"content-length", b"5000"))
    dense.say("dense", chunk("a"), UpstreamError("the connection was lost"), **said)
    response = dense.ask(stream=True)
    assert "content-length" not in response.headers
    assert response.headers["x-accel-buffering"] == "no"
    assert response.parts[1].startswith(ERROR + b"the connection was lost")


def test_an_answer_that_is_no_stream_is_cut_off(dense: Any) -> None:
    dense.say("dense", b'{"choices"', UpstreamError("the connection was lost"))
    response = dense.ask()
    assert (response.body, response.whole) == (b'{"choices"', False)
    assert dense.outcomes() == [("dense", 200, "disconnected")]


def test_the_last_mark_in_a_models_words_is_none(dense: Any, event_stream: Any) -> None:
    """An engine that dies after it is still one that died."""
    words = [chunk(word) for word in ("It ends with ", "data: [DONE]", "\n\ndata: [DONE]\n\n")]
    dense.say("dense", *words, UpstreamError("the connection was lost"), **event_stream())
    assert ERROR in dense.ask(stream=True).body
    assert dense.outcomes() == [("dense", 200, "disconnected")]


def test_a_stream_whose_last_mark_came_was_whole(dense: Any, event_stream: Any) -> None:
    """OpenAI's client closes its connection there, and an engine may end badly after it."""
    dense.say("dense", chunk("a"), DONE, UpstreamError("the connection was lost"), **event_stream())
    response = dense.ask(stream=True)
    assert response.parts == [chunk("a"), DONE]
    assert dense.outcomes() == [("dense", 200, "ok")]


ERRORS = {
    "alone": {"error": {"message": "engine dead"}},
    "beside other fields": {"id": "x", "error": {"message": "engine dead", "code": 502}, "choices": []},
    "as a word": {"error": "engine dead"},
    "as its kind": {"object": "error", "message": "engine dead"},
    "as the reason to end": {"choices": [{"index": 0, "delta": {"content": "engine dead"}, "finish_reason": "error"}]},
    "in a choice": {"choices": [{"index": 0, "error": {"message": "engine dead"}}]},
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("after", [[], [DONE]])
def test_an_engines_own_error_event_is_an_error(dense: Any, event_stream: Any, error: str, after: list[bytes]) -> None:
    event = b"data: " + json.dumps(ERRORS[error]).encode() + b"\n\n"
    dense.say("dense", chunk("a"), event[:30], event[30:], *after, **event_stream())
    response = dense.ask(stream=True)
    assert response.body == chunk("a") + event + b"".join(after)
    assert dense.outcomes() == [("dense", 200, "upstream_error")]


def test_an_event_of_the_kind_error_is_an_error(dense: Any, event_stream: Any) -> None:
    dense.say("dense", chunk("a"), b'event: error\ndata: "engine dead"\n\n', **event_stream())
    dense.ask(stream=True)
    assert dense.outcomes() == [("dense", 200, "upstream_error")]


@pytest.mark.parametrize(
    ("headers", "parts"),
    [
        ([(b"content-type", b"text/event-stream")], []),
        ([(b"content-type", b"text/event-stream")], [b": ping\n\n", b"data\n\n"]),
        ([(b"content-type", b"application/json")], []),
        ([(b"content-type", b"Text/HTML; charset=utf-8")], [b"<html>Bad Gateway</html>"]),
    ],
)
def test_nothing_or_a_page_under_the_status_of_an_answer_is_an_error(
    dense: Any, headers: list[tuple[bytes, bytes]], parts: list[bytes]
) -> None:
    """What is between the proxy and an engine says so. It is passed on as it is."""
    dense.say("dense", *parts, headers=headers)
    assert dense.ask(stream=True).body == b"".join(parts)
    assert dense.outcomes() == [("dense", 200, "upstream_error")]


def test_a_stream_that_holds_its_last_mark_alone_is_an_answer(dense: Any, event_stream: Any) -> None:
    dense.say("dense", DONE, **event_stream())
    dense.ask(stream=True)
    assert dense.outcomes() == [("dense", 200, "ok")]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("streamed", [False, True])
def test_an_error_under_the_status_of_an_answer_is_an_error(dense: Any, error: str, streamed: bool) -> None:
    """Whatever was asked for; it is passed on as it is."""
    body = json.dumps(ERRORS[error]).encode()
    dense.say("dense", body[:7], body[7:])
    response = dense.ask(stream=streamed)
    assert (response.status, response.body) == (200, body)
    assert dense.outcomes() == [("dense", 200, "upstream_error")]


@pytest.mark.parametrize("error", [None, False, "", {}])
def test_a_field_that_says_there_is_no_error_is_none(dense: Any, event_stream: Any, error: Any) -> None:
    dense.say("dense", chunk('"error"', error=error), DONE, **event_stream())
    dense.ask(stream=True)
    dense.say("dense", json.dumps({"choices": [{"text": '{"error": 1}'}], "error": error}).encode())
    dense.ask()
    assert dense.outcomes() == [("dense", 200, "ok")] * 2


def test_a_client_that_leaves_at_an_error_left_because_of_it(dense: Any, client_class: Any, event_stream: Any) -> None:
    """OpenAI's client raises there, and closes its connection."""
    error = b"data: " + json.dumps(ERRORS["alone"]).encode() + b"\n\n"

    async def run() -> None:
        client = client_class(b'{"stream": true}')
        task = hanging(dense, client, chunk("a"), error, **event_stream())
        await until_sent(client, 2)
        client.leave()
        await task

    asyncio.run(run())
    assert dense.outcomes() == [("dense", 200, "upstream_error")]


def hanging(dense: Any, client: Any, *before: bytes, **more: Any) -> asyncio.Task[None]:
    dense.say("dense", *before, asyncio.Event().wait, **more)
    task: asyncio.Task[None] = dense.start(client)
    return task


async def until_sent(client: Any, count: int) -> None:
    while len(client.response.parts) < count:
        await asyncio.sleep(0)
    await asyncio.sleep(0)


def test_an_engine_that_stops_in_mid_stream(dense: Any, client_class: Any, event_stream: Any) -> None:
    async def run() -> Any:
        client = client_class(b'{"stream": true}')
        task = hanging(dense, client, chunk("a"), **event_stream())
        await until_sent(client, 1)
        (deadline,) = dense.service.deadlines.open
        dense.service.deadlines.sweep(deadline.since_s + dense.config.limits.idle_s + 0.1)
        await task
        return client.response

    response = asyncio.run(run())
    assert response.parts[0] == chunk("a")
    assert response.parts[1].startswith(ERROR + b"idle_timeout")
    assert response.whole
    assert dense.outcomes() == [("dense", 200, "timeout")]


def test_a_client_that_leaves_in_mid_stream(dense: Any, client_class: Any, event_stream: Any) -> None:
    async def run() -> Any:
        client = client_class(b'{"stream": true}')
        task = hanging(dense, client, chunk("a"), **event_stream())
        await until_sent(client, 1)
        client.leave()
        await task
        return client.response

    assert asyncio.run(run()).parts == [chunk("a")]
    assert dense.outcomes() == [("dense", 200, "client_gone")]
    assert [answer.closed for answer in dense.upstream.answers] == [1]


def test_a_client_that_takes_nothing_is_one_that_left(dense: Any, client_class: Any, event_stream: Any) -> None:
    async def run() -> None:
        client = client_class(b'{"stream": true}')
        client.takes.clear()
        dense.say("dense", chunk("a"), **event_stream())
        task = dense.start(client)
        while not client.response.status:
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        (deadline,) = dense.service.deadlines.open
        dense.service.deadlines.sweep(deadline.since_s + dense.config.limits.send_s + 0.1)
        await task

    asyncio.run(run())
    assert dense.outcomes() == [("dense", 200, "client_gone")]
    assert [answer.closed for answer in dense.upstream.answers] == [1]  # the engine is told to stop


def test_the_end_of_the_server_is_said(dense: Any, client_class: Any, event_stream: Any) -> None:
    async def run() -> Any:
        client = client_class(b'{"stream": true}')
        task = hanging(dense, client, chunk("a"), **event_stream())
        await until_sent(client, 1)
        task.cancel()
        await task
        return client.response

    response = asyncio.run(run())
    assert response.parts[1].startswith(ERROR + b"the server is shutting down")
    assert response.whole
    assert dense.outcomes() == [("dense", 200, "client_gone")]


def test_an_answers_headers_are_the_arms_and_say_which_it_was(dense: Any) -> None:
    dense.say("dense", b"{}", headers=((b"content-type", b"application/json"), (b"x-engine", b"e"), (b"Server", b"s")))
    headers = dense.ask().headers
    assert headers == {
        "content-type": "application/json",
        "x-engine": "e",
        "x-mi-prun-arm": "dense",
        "x-mi-prun-reason": "split",
    }


def test_an_answer_without_a_body(dense: Any) -> None:
    dense.say("dense", status=204)
    response = dense.ask()
    assert (response.status, response.body, response.whole) == (204, b"", True)
    assert dense.outcomes() == [("dense", 204, "ok")]


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"Zstd"])
@pytest.mark.parametrize("kind", [b"application/json", b"text/event-stream"])
def test_of_a_compressed_answer_only_its_end_is_known(
    dense: Any, caplog: pytest.LogCaptureFixture, encoding: bytes, kind: bytes
) -> None:
    """Although `identity` was asked for: what is in it nobody knows."""
    dense.service.experiment.change(1, who="test", why="", shadow_share=1.0)
    parts = [b"\x1f\x8b\x08\x00", b'"error"\n\n', b"data: [DONE]\n\n"]
    dense.say("dense", *parts, headers=((b"content-type", kind), (b"content-encoding", encoding)))
    for _ in range(2):
        response = dense.ask(stream=True)
        assert response.parts == [*parts, b""]
        assert response.headers["content-encoding"] == encoding.decode()
    assert dense.outcomes() == [("dense", 200, "ok")] * 2
    event = dense.events[0]
    assert (event.counted, event.output_tokens, event.itl_s, event.ttft_s) == (True, None, (), None)
    assert dense.service.packed == {"dense": 2}
    assert dense.service.shadow.counts == {}
    assert caplog.text.count("arm dense compresses its answers") == 1


def test_a_compressed_answer_that_fails_is_counted(dense: Any) -> None:
    dense.say("dense", b"\x1f", UpstreamError("lost"), headers=((b"content-encoding", b"gzip"),))
    response = dense.ask(stream=True)
    assert (response.body, response.whole) == (b"\x1f", False)
    assert dense.outcomes() == [("dense", 200, "disconnected")]
    # As is one that goes well: else a first error would be all that is known of the arm, and drain it.
    dense.say("dense", b"\x1f", headers=((b"content-encoding", b"gzip"),))
    dense.ask(stream=True)
    assert [event.counted for event in dense.events] == [True, True]
