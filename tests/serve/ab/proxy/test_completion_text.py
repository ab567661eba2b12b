"""The text of a completion, read from an answer that was kept whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serve.ab.proxy.completion_text import CompletionText, read_completion


def test_tools_that_are_called_are_said_too() -> None:
    """Streamed or whole, with the same text."""

    def chunk(**delta: Any) -> bytes:
        return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"

    def called(name: str | None, arguments: str | None) -> dict[str, Any]:
        return {"index": 0, "id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}

    streamed = read_completion(
        chunk(role="assistant", content="Wait. ")
        + chunk(tool_calls=[called("weather", None)])
        + chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"city": '}}])
        + chunk(tool_calls=[{"index": 0, "function": {"arguments": '"Rome"}'}}])
        + b"data: [DONE]\n\n",
        streamed=True,
    )
    message = {"content": "Wait. ", "tool_calls": [called("weather", '{"city": "Rome"}')]}
    whole = read_completion(json.dumps({"choices": [{"index": 0, "message": message}]}).encode(), streamed=False)
    assert streamed.text == whole.text == 'Wait. weather{"city": "Rome"}'
    old = {"content": None, "function_call": {"name": "weather", "arguments": "{}"}}
    assert read_completion(json.dumps({"choices": [{"message": old}]}).encode(), streamed=False).text == "weather{}"


def test_answers_are_read_streamed_and_whole() -> None:
    chat = (
        b'data: {"choices":[{"index":0,"delta":{"content":"a"},"logprobs":{"content":[{"token":"a","logprob":-1}]}}]}'
    )
    other = b'data: {"choices":[{"index":1,"delta":{"content":"zzz"}}]}'
    read = read_completion(chat + b"\n\n" + other + b"\n\ndata: [DONE]\n\n", streamed=True)
    assert (read.text, read.tokens, read.logprobs) == ("a", ["a"], [-1.0])
    whole = b'{"choices":[{"index":0,"text":"ab","logprobs":{"tokens":["a","b"],"token_logprobs":[null,-2]}}]}'
    assert read_completion(whole, streamed=False) == CompletionText("ab", ["a", "b"], [0.0, -2.0])
    with pytest.raises(ValueError, match="error"):
        read_completion(b'{"error": {"message": "no"}}', streamed=False)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize("field", [b"data: ", b"data:"])
def test_every_form_of_an_event_stream_is_read(field: bytes, end: bytes) -> None:
    """With comments, and without the last mark too."""
    chunks = [json.dumps({"choices": [{"index": 0, "text": word}]}).encode() for word in ("a", " b")]
    body = b": ping" + end + b"".join(field + chunk + end for chunk in chunks)
    assert read_completion(body, streamed=True).text == "a b"


@pytest.mark.parametrize(
    "body", [b"[]", b'{"error": {"code": 502}}', b'{"id": "x", "error": {"code": 502}, "choices": []}']
)
@pytest.mark.parametrize("streamed", [True, False])
def test_an_error_is_no_completion(body: bytes, streamed: bool) -> None:
    with pytest.raises(ValueError, match="error"):
        read_completion(b"data: " + body + b"\n\n" if streamed else body, streamed)
