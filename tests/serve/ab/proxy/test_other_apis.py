"""/v1/responses and /v1/messages: answered where all arms have them, and refused in one clear error where one lacks
them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from serve.ab.proxy.security import Keys

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
BOTH = pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
MESSAGE = json.dumps(
    {"type": "message", "stop_reason": "end_turn", "usage": {"input_tokens": 9, "output_tokens": 5}}
).encode()


def without_prompt(one: Any) -> Any:
    """What an engine that has the path says to the proxy's question: something is missing."""
    return [sent for sent in one.upstream.sent if sent.body == {"model": "m"}]


def says(one: Any, arm: str, path_status: int, *parts: bytes, **more: Any) -> None:
    """The arm answers the question for the path with that status, and requests with the parts."""
    answer_class: Callable[..., Any] = more.pop("answer_class")

    def answer() -> Any:
        if one.upstream.sent[-1].body == {"model": "m"}:
            return answer_class(b"{}", status=path_status)
        return answer_class(*parts, **more)

    one.upstream.says[arm] = answer


@BOTH
def test_it_goes_through_where_all_arms_have_it(proxied: Any, answer_class: Any, path: str) -> None:
    one = proxied()
    for arm in ("dense", "pruned"):
        says(one, arm, 400, MESSAGE, answer_class=answer_class)
    for _ in range(2):
        response = one.ask(path, input="x")
        assert (response.status, response.body, response.arm) == (200, MESSAGE, ("dense", "split"))
    assert [sent.arm for sent in without_prompt(one)] == ["dense", "pruned"]  # once
    assert [(event.counted, event.output_tokens) for event in one.events] == [(True, 5)] * 2


@BOTH
@pytest.mark.parametrize("status", [404, 405, 501])
def test_an_arm_that_lacks_it(proxied: Any, answer_class: Any, path: str, status: int) -> None:
    one = proxied()
    says(one, "dense", 400, MESSAGE, answer_class=answer_class)
    says(one, "pruned", status, answer_class=answer_class)
    for _ in range(2):
        response = one.ask(path, input="x")
        assert response.status == 404
        assert response.error == {
            "message": f"the engine of arm pruned has no {path}; it is answered where all arms have it. Use "
            "/v1/chat/completions",
            "type": "NotFoundError",
            "param": None,
            "code": "path_not_in_all_arms",
        }
    assert not one.events  # nobody is charged
    assert len(one.upstream.sent) == 2
    one.say("dense", MESSAGE)
    assert one.ask().status == 200  # the other paths are as they were


def test_an_engine_that_comes_up_anew_is_asked_again(proxied: Any, answer_class: Any) -> None:
    one = proxied()
    says(one, "dense", 400, MESSAGE, answer_class=answer_class)
    says(one, "pruned", 404, answer_class=answer_class)
    assert one.ask(MESSAGES).status == 404
    one.service.arms["pruned"].came_up("http://pruned", None)
    says(one, "pruned", 400, answer_class=answer_class)
    assert one.ask(MESSAGES).status == 200


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_an_arm_that_does_not_say_is_no_reason_to_refuse(proxied: Any, answer_class: Any, status: int) -> None:
    one = proxied()
    says(one, "dense", 400, MESSAGE, answer_class=answer_class)
    says(one, "pruned", status, answer_class=answer_class)
    assert one.ask(MESSAGES).status == 200
    one.fail("pruned")
    assert one.ask(MESSAGES).status == 200
    assert "pruned" not in {event.arm for event in one.events}


def test_an_answer_that_one_arm_holds(proxied: Any) -> None:
    one = proxied()
    for field, value in (("previous_response_id", "resp_1"), ("background", True)):
        response = one.ask(RESPONSES, **{field: value})
        assert (response.status, response.error["code"]) == (400, "one_arm_only")
        assert response.error["message"].startswith(field)


def test_a_key_as_anthropic_s_clients_send_it(proxied: Any, answer_class: Any) -> None:
    one = proxied(keys=Keys(["a-client-key"], "an-admin-key"))
    for arm in ("dense", "pruned"):
        says(one, arm, 400, MESSAGE, answer_class=answer_class)
    assert one.ask(MESSAGES).status == 401
    assert one.ask(MESSAGES, {"x-api-key": "another-key"}).status == 401
    assert one.ask(MESSAGES, {"x-api-key": "a-client-key"}).status == 200
    assert not {b"x-api-key", b"authorization"} & one.upstream.sent[-1].headers.keys()


def test_an_open_proxy_passes_that_key_on(proxied: Any, answer_class: Any) -> None:
    one = proxied()
    for arm in ("dense", "pruned"):
        says(one, arm, 400, MESSAGE, answer_class=answer_class)
    assert one.ask(MESSAGES, {"x-api-key": "its-own-key"}).status == 200
    assert one.upstream.sent[-1].headers[b"authorization"] == b"Bearer its-own-key"
    assert b"x-api-key" not in one.upstream.sent[-1].headers


def test_metadata_is_a_sticky_key(proxied: Any, answer_class: Any) -> None:
    one = proxied()
    for arm in ("dense", "pruned"):
        says(one, arm, 400, MESSAGE, answer_class=answer_class)
    assert one.ask(MESSAGES, metadata={"user_id": "someone"}).arm == ("dense", "sticky")
    assert one.ask(RESPONSES, metadata={"user_id": "someone"}).arm == ("dense", "split")


@pytest.mark.parametrize(
    ("path", "ends"),
    [
        (
            MESSAGES,
            b'event: error\ndata: {"type": "error", "error": {"type": "api_error", "message": "arm dense failed: ',
        ),
        (RESPONSES, b'data: {"error": {"message": "arm dense failed: '),
    ],
)
def test_a_broken_stream_ends_in_an_error_of_its_kind(
    proxied: Any, answer_class: Any, event_stream: Any, path: str, ends: bytes
) -> None:
    from serve.ab.wire.upstream import UpstreamError

    one = proxied()
    says(one, "pruned", 400, answer_class=answer_class)
    begin = b'event: content_block_delta\ndata: {"type": "content_block_delta"}\n\n'
    says(one, "dense", 400, begin, UpstreamError("it broke off"), answer_class=answer_class, **event_stream())
    response = one.ask(path, stream=True)
    assert response.body.startswith(begin + ends)
    assert one.outcomes() == [("dense", 200, "disconnected")]


def test_it_is_not_mirrored(proxied: Any, answer_class: Any) -> None:
    """What the two arms say there is not compared."""
    one = proxied(shadow={"share": 1.0})
    for arm in ("dense", "pruned"):
        says(one, arm, 400, MESSAGE, answer_class=answer_class)

    async def run() -> None:
        await one.asked(MESSAGES)
        await one.service.shadow.close()

    asyncio.run(run())
    assert one.upstream.asked == ["dense", "pruned", "dense"]
    assert not one.comparisons
