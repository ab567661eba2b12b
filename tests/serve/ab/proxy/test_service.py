"""What is told of an attempt that ended, and what a listener that fails may harm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
WHOLE = json.dumps(
    {"choices": [{"text": "a", "finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 8}}
).encode()


def lines(proxy: Any, folder: Path) -> list[dict[str, Any]]:
    proxy.service.access_log.flush()
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def test_an_attempt_is_told_and_logged(proxied: Callable[..., Any], tmp_path: Path) -> None:
    proxy = proxied()
    proxy.say("dense", WHOLE)
    headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "x-mi-prun-sticky": "ann"}
    proxy.ask(headers=headers, prompt="secret words")
    (event,) = proxy.events
    assert (event.arm, event.reason, event.counted, event.outcome) == ("dense", "sticky", True, "ok")
    assert (event.input_tokens, event.output_tokens, event.finish_reason) == (3, 8, "stop")
    assert 0.0 <= event.ttft_s <= event.e2e_s
    (line,) = lines(proxy, tmp_path)
    assert (line["arm"], line["trace"], line["key_hash"]) == ("dense", TRACE, event.key_hash)
    assert (line["input_tokens"], line["output_tokens"], line["finish_reason"]) == (3, 8, "stop")
    assert "secret words" not in json.dumps(line)
    assert "ann" not in json.dumps(line)


def test_prompts_are_logged_where_that_is_asked_for(proxied: Callable[..., Any], tmp_path: Path) -> None:
    proxy = proxied(log_prompts=True)
    proxy.say("dense", WHOLE)
    proxy.ask(prompt="kept words")
    assert lines(proxy, tmp_path)[0]["prompt"] == "kept words"


def test_a_refusal_is_counted_and_logged(proxied: Callable[..., Any], tmp_path: Path) -> None:
    proxy = proxied()
    proxy.ask(raw=b"[]")
    proxy.ask(model="other")
    assert proxy.service.refusals == {400: 1, 404: 1}
    assert [(line["outcome"], line["status"]) for line in lines(proxy, tmp_path)] == [
        ("refused", 400),
        ("refused", 404),
    ]
    assert proxy.events == []


def test_a_listener_that_fails_harms_nothing(proxied: Callable[..., Any]) -> None:
    def broken(event: object) -> None:
        raise RuntimeError

    proxy = proxied()
    proxy.service.listeners.insert(0, broken)
    proxy.say("dense", WHOLE)
    assert proxy.ask().status == 200
    assert proxy.service.listener_failures == 1
    assert len(proxy.events) == 1
