"""What the proxy reads of a body, and how it refuses one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serve.ab.proxy.parsed_request import LONGEST_NAME, MOST_BRACKETS, ParsedRequest, RefusalError, parse_request

ARMS = {"dense": None, "pruned": None}


def parsed(body: bytes, path: str = "/v1/completions") -> ParsedRequest:
    return parse_request(path, body, ["m", "alias"], ARMS)


def refusal(body: bytes) -> RefusalError:
    with pytest.raises(RefusalError) as refused:
        parsed(body)
    return refused.value


@pytest.mark.parametrize(
    ("fields", "streamed", "user", "arm"),
    [
        ({}, False, None, None),
        ({"model": None, "stream": None, "user": None}, False, None, None),
        ({"model": "m", "stream": True, "user": "ann"}, True, "ann", None),
        ({"model": "m@pruned", "stream": False}, False, None, "pruned"),
    ],
)
def test_what_is_read(fields: dict[str, Any], streamed: bool, user: str | None, arm: str | None) -> None:
    request = parsed(json.dumps(fields).encode())
    assert (request.streamed, request.user, request.arm) == (streamed, user, arm)


@pytest.mark.parametrize(("path", "generation"), [("/v1/completions", True), ("/tokenize", False)])
def test_only_generations_are(path: str, generation: bool) -> None:
    assert parsed(b"{}", path).generation is generation


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "the body is not JSON"),
        (b"\xff", 400, "the body is not JSON"),
        (b"", 400, "the body is not JSON"),
        (b'{"a": ' * 5000, 400, "the body is not JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b'{"model": 7}', 400, "model must be a string"),
        (b'{"stream": "yes"}', 400, "stream must be true or false"),
        (b'{"user": 7}', 400, "user must be a string"),
        (b'{"model": "other"}', 404, 'The model "other" does not exist; it is m or alias'),
        (b'{"model": "m@none"}', 404, "does not exist"),
        (b'{"model": "other@dense"}', 404, "does not exist"),
    ],
)
def test_refusals(body: bytes, status: int, said: str) -> None:
    refused = refusal(body)
    assert (refused.status, said in refused.message) == (status, True)
    assert json.loads(refused.body())["error"]["message"] == refused.message


def test_a_long_name_is_not_said_back_whole() -> None:
    assert len(refusal(json.dumps({"model": "x" * 10_000}).encode()).message) < LONGEST_NAME + 100


def test_the_body_goes_on_as_it_came_or_with_another_models_name() -> None:
    body = b'{"model":  "m", "x": 1}'
    assert parsed(body).body_for("m") == parsed(body).body_for(None) == body
    assert json.loads(parsed(body).body_for("its-own")) == {"model": "its-own", "x": 1}
    assert parsed(b'{"x": 1}').body_for("its-own") == b'{"x": 1}'  # an engine takes its own where none is named
    with pytest.raises(RefusalError, match="cannot be written with another model's name"):
        parsed(b'{"model": "m", "x": NaN}').body_for("its-own")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": list(range(100_000, 1_100_000))},
        {"prompt": [[1] * 500] * 2048},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 50}]}] * 10_000},
        {"tools": [{"type": "function", "function": {"parameters": {"properties": {"a": {"enum": [{}] * 50}}}}}] * 128},
        {"prompt": json.dumps([{"id": place, "name": "a name", "at": [1.5, 2.5]} for place in range(60_000)])},
    ],
    ids=["token ids", "batch", "chat", "tools", "JSON as a prompt"],
)
def test_large_requests_are_read(fields: dict[str, Any]) -> None:
    assert parsed(json.dumps(fields).encode()).fields == fields


@pytest.mark.parametrize("item", [b"[]", b"{}", b'{"":[]}'])
def test_a_body_of_very_many_lists_or_objects_is_refused_unread(item: bytes) -> None:
    """They take a hundred times the memory of what was sent, compressed."""
    body = b'{"prompt": [' + b",".join([item] * MOST_BRACKETS) + b"]"  # not JSON, which nobody finds out
    refused = refusal(body)
    assert (refused.status, refused.code) == (413, "body_limit")
    assert refused.message == "the body has more than 262,144 [ and {"
