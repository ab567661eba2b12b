"""What is learnt of answers whose events have names: /v1/responses and /v1/messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serve.ab.proxy.stream_dialect import dialect_of
from serve.ab.proxy.stream_meter import StreamMeter

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"


def event(name: str, **data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()


def response(status: str, **fields: Any) -> dict[str, Any]:
    return {"id": "resp_1", "status": status, "error": None, "incomplete_details": None, "usage": None, **fields}


USAGE = {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 5, "total_tokens": 14}
# As vLLM 0.32 says them.
STREAMS = {
    RESPONSES: [
        event("response.created", response=response("in_progress")),
        event("response.in_progress", response=response("in_progress")),
        event("response.output_item.added", item={"type": "message", "status": "in_progress", "content": []}),
        event("response.content_part.added", part={"type": "output_text", "text": ""}),
        event("response.output_text.delta", delta='It "output_tokens": 99'),
        event("response.output_text.delta", delta=" was"),
        event("response.output_text.done", text="It was"),
        event(
            "response.incomplete",
            response=response("incomplete", incomplete_details={"reason": "max_output_tokens"}, usage=USAGE),
        ),
    ],
    MESSAGES: [
        event("message_start", message={"stop_reason": None, "usage": {"input_tokens": 9, "output_tokens": 0}}),
        event("content_block_start", content_block={"type": "text", "text": ""}),
        event("content_block_delta", delta={"type": "text_delta", "text": 'It "output_tokens": 99'}),
        event("content_block_delta", delta={"type": "text_delta", "text": " was"}),
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": "max_tokens"}, usage={"input_tokens": 9, "output_tokens": 5}),
        event("message_stop"),
    ],
}
WHOLE: dict[str, dict[str, Any]] = {
    RESPONSES: response("completed", output=[{"type": "message", "status": "completed"}], usage=USAGE),
    MESSAGES: {"type": "message", "content": [], "stop_reason": "end_turn", "usage": USAGE},
}


def meter(path: str, streamed: bool = True) -> StreamMeter:
    return StreamMeter(streamed, dialect=dialect_of(path))


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("named", [True, False])
def test_a_stream_is_passed_on_and_measured(path: str, named: bool) -> None:
    """named: the stream has `event` fields; else the data alone say what each event is."""
    one = meter(path)
    parts = [part if named else part.partition(b"\n")[2] for part in STREAMS[path]]
    assert b"".join(one.feed(part, float(at)) for at, part in enumerate(parts)) == b"".join(parts)
    assert one.end() == b""
    first = next(at for at, part in enumerate(parts) if b"It " in part)
    assert (one.ttft_s, one.itl_s) == (float(first), [1.0])  # what opens the answer is no token
    assert (one.input_tokens, one.output_tokens, one.finish_reason) == (9, 5, "length")
    assert one.done
    assert not one.failed


@pytest.mark.parametrize("path", STREAMS)
def test_a_stream_that_breaks_off_has_its_tokens_counted(path: str) -> None:
    one = meter(path)
    for part in STREAMS[path][:6]:
        one.feed(part, 1.0)
    assert (one.output_tokens or 0) == (2 if path == RESPONSES else 5)
    assert not one.done


@pytest.mark.parametrize("path", WHOLE)
def test_a_whole_answer(path: str) -> None:
    one = meter(path, streamed=False)
    one.feed(json.dumps(WHOLE[path]).encode(), 1.0)
    one.end()
    assert (one.input_tokens, one.output_tokens, one.finish_reason, one.failed) == (9, 5, "stop", False)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (RESPONSES, event("response.failed", response=response("failed", error={"code": "server_error"}))),
        (RESPONSES, event("error", code="server_error", message="out of memory")),
        (MESSAGES, event("error", error={"type": "internal_error", "message": "out of memory"})),
        (MESSAGES, b'data: {"error": {"message": "a gateway\'s own"}}\n\n'),
    ],
)
def test_an_error_inside(path: str, said: bytes) -> None:
    one = meter(path)
    for part in (*STREAMS[path][:4], said):
        one.feed(part, 1.0)
    assert one.failed


@pytest.mark.parametrize("path", WHOLE)
def test_an_error_in_place_of_an_answer(path: str) -> None:
    one = meter(path, streamed=False)
    one.feed(b'{"type": "error", "error": {"type": "x", "message": "out of memory"}}', 1.0)
    one.end()
    assert one.failed


def test_other_paths_have_none() -> None:
    assert dialect_of("/v1/chat/completions") is None
    assert dialect_of("/tokenize") is None
