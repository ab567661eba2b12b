"""The way of a request: let in, assigned, asked, passed on byte for byte."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from typing import Any

import pytest


def raw(url: str, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """Status and the body's very bytes."""
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=30)
    sent = {"Content-Type": "application/json", **(headers or {})}
    connection.request("POST", path, json.dumps(body), sent)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, text


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def test_an_answer_names_its_arm_and_why(proxy: Any) -> None:
    status, headers, answer = proxy.ask(max_tokens=3)
    assert status == 200
    assert headers["x-mi-prun-arm"] in ("dense", "pruned")
    assert headers["x-mi-prun-reason"] == "split"
    assert headers["x-engine"] == "the-model"
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("source", ["user", "header"])
def test_a_sticky_key_stays(proxy: Any, source: str) -> None:
    def arm_of(key: str) -> str:
        body, headers = ({"user": key}, {}) if source == "user" else ({}, {"x-mi-prun-sticky": key})
        _, answer_headers, _ = proxy.ask(headers, **body)
        assert answer_headers["x-mi-prun-reason"] == "sticky"
        return str(answer_headers["x-mi-prun-arm"])

    keys = [f"{source}-{number}" for number in range(12)]
    first = {key: arm_of(key) for key in keys}
    assert set(first.values()) == {"dense", "pruned"}
    assert {key: arm_of(key) for key in keys} == first


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_bytes_are_the_engines_own(
    proxy: Any, shared_fakes: list[Any], admin: dict[str, str], path: str, stream: bool, split: bool
) -> None:
    """split: the engine sends each event in two parts."""
    body = {"model": "the-model", "messages": [], "prompt": "x", "stream": stream, "logprobs": 1}
    body |= {"stream_options": {"include_usage": True}, "fake": {"tokens": 6, "split": split, "pad": 300}}
    for fake in shared_fakes:
        direct = raw(fake.url, path, body)
        assert direct[0] == 200
        assert raw(proxy.url, path, body, {**admin, "x-mi-prun-arm": fake.name}) == direct


@pytest.mark.parametrize("path", ["/v1/embeddings", "/tokenize", "/detokenize"])
def test_the_other_paths_go_through(proxy: Any, shared_fakes: list[Any], path: str) -> None:
    body = {"model": "the-model", "input": "x", "prompt": "x", "tokens": [65]}
    assert raw(proxy.url, path, body) == raw(shared_fakes[0].url, path, body)


def test_one_model_and_for_operators_its_arms(proxy: Any, admin: dict[str, str]) -> None:
    from openai import OpenAI

    def names(key: str) -> list[str]:
        return [model.id for model in OpenAI(base_url=f"{proxy.url}/v1", api_key=key).models.list().data]

    assert names("anything") == ["the-model"]
    assert names(admin["Authorization"].removeprefix("Bearer ")) == [
        "the-model",
        "the-model@dense",
        "the-model@pruned",
    ]


def test_an_operator_chooses_an_arm_by_name_or_header(
    proxy: Any, shared_fakes: list[Any], admin: dict[str, str]
) -> None:
    for fake in shared_fakes:
        for headers, model in (({}, f"the-model@{fake.name}"), ({"x-mi-prun-arm": fake.name}, "the-model")):
            _, answer_headers, answer = proxy.ask({**admin, **headers}, model=model)
            assert (answer_headers["x-mi-prun-arm"], answer_headers["x-mi-prun-reason"]) == (fake.name, "explicit")
            assert answer["model"] == "the-model"
        last = fake.seen()["last"]
        assert last["body"]["model"] == "the-model"
        assert "authorization" not in last["headers"]  # the admin key is nobody else's business
        assert not [name for name in last["headers"] if name.startswith("x-mi-prun")]


@pytest.mark.parametrize(
    ("headers", "body", "status", "said"),
    [
        ({}, {"model": "other"}, 404, 'The model "other" does not exist; it is the-model'),
        ({}, {"model": "the-model@none"}, 404, "does not exist"),
        ({}, {"model": "the-model@dense"}, 403, "only the admin key may choose an arm"),
        ({"x-mi-prun-arm": "dense"}, {}, 403, "only the admin key may choose an arm"),
        ({"Content-Type": "text/plain"}, {}, 415, "must be application/json"),
        ({}, {"model": 7}, 400, "model must be a string"),
        ({}, {"stream": "yes"}, 400, "stream must be true or false"),
        ({}, {"user": 7}, 400, "user must be a string"),
    ],
)
def test_refusals_are_openais(
    proxy: Any, headers: dict[str, str], body: dict[str, Any], status: int, said: str
) -> None:
    answer_status, answer_headers, answer = proxy.ask(headers, **body)
    assert (answer_status, said in answer["error"]["message"]) == (status, True)
    assert "x-mi-prun-arm" not in answer_headers


def test_an_operators_arm_that_is_none(proxy: Any, admin: dict[str, str]) -> None:
    assert proxy.ask({**admin, "x-mi-prun-arm": "none\x80"})[0] == 400
    both = proxy.ask({**admin, "x-mi-prun-arm": "dense"}, model="the-model@pruned")
    assert (both[0], "names arm pruned" in both[2]["error"]["message"]) == (400, True)


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"a": ' * 5000, b"\xff", b""])
def test_a_body_that_is_no_json_object(proxy: Any, body: bytes) -> None:
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=30)
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 400
    assert "error" in json.load(answer)


def test_headers_go_through_and_a_trace_is_in_the_log(
    proxy: Any, shared_fakes: list[Any], admin: dict[str, str]
) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    headers = {"traceparent": trace, "tracestate": "a=b", "x-mi-prun-arm": "dense", "x-request-id": "r1"}
    assert proxy.ask({**admin, **headers}, prompt="secret words")[0] == 200
    seen = shared_fakes[0].seen()["last"]["headers"]
    assert (seen["traceparent"], seen["tracestate"], seen["x-request-id"]) == (trace, "a=b", "r1")
    lines: list[Any] = []

    def logged() -> bool:
        lines[:] = [line for line in proxy.lines() if line.get("trace") == "4bf92f3577b34da6a3ce929d0e0e4736"]
        return bool(lines)

    wait_until(logged)
    assert (lines[0]["arm"], lines[0]["reason"], lines[0]["outcome"], lines[0]["counted"]) == (
        "dense",
        "explicit",
        "ok",
        False,
    )
    assert (lines[0]["input_tokens"], lines[0]["output_tokens"], lines[0]["finish_reason"]) == (3, 8, "stop")
    assert "secret words" not in proxy.access_log.read_text()


def test_an_engines_refusal_is_passed_on(proxy: Any) -> None:
    status, headers, answer = proxy.ask(fake={"status": 422})
    assert (status, answer["error"]["message"]) == (422, "as told")
    assert headers["x-mi-prun-reason"] == "split"


def test_a_client_that_leaves_cancels_its_request(proxy: Any, shared_fakes: list[Any], admin: dict[str, str]) -> None:
    """Before the first byte, and in mid-stream."""
    fake = shared_fakes[0]
    before = fake.seen()["cancelled"]
    for count, slow in enumerate(({"prefill_s": 60}, {"token_s": 60, "tokens": 3}), 1):
        connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=30)
        body = {"model": "the-model@dense", "prompt": "x", "stream": True, "fake": slow}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json", **admin})
        if "token_s" in slow:
            answer = connection.getresponse()
            assert answer.read1(10)
            answer.close()
        else:
            wait_until(lambda: fake.seen()["last"].get("body", {}).get("fake") == {"prefill_s": 60})
        connection.close()
        wait_until(lambda count=count: fake.seen()["cancelled"] == before + count)  # type: ignore[misc]


def test_the_openai_client_streams_and_does_not(proxy: Any) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=f"{proxy.url}/v1", api_key="anything")
    messages: Any = [{"role": "user", "content": "It was"}]
    whole = client.chat.completions.create(model="the-model", messages=messages, user="ann")
    stream = client.chat.completions.create(model="the-model", messages=messages, user="ann", stream=True)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert said == whole.choices[0].message.content
    assert said


def test_a_client_that_closes_at_the_last_mark_had_all_of_it(proxy: Any) -> None:
    """As OpenAI's does, before the body's own end; it is no client that left."""
    from openai import OpenAI

    trace = "5bf92f3577b34da6a3ce929d0e0e4736"
    client = OpenAI(base_url=f"{proxy.url}/v1", api_key="x", default_headers={"traceparent": f"00-{trace}-1-01"})
    stream = client.completions.create(model="the-model", prompt="x", stream=True, extra_body={"fake": {"end_s": 30}})
    assert len(list(stream)) == 8
    client.close()
    wait_until(lambda: any(line.get("trace") == trace for line in proxy.lines()))
    (line,) = [line for line in proxy.lines() if line.get("trace") == trace]
    assert (line["outcome"], line["output_tokens"], line["counted"]) == ("ok", 8, True)


def test_a_slow_reader_holds_the_engine_back(start_fakes: Callable[..., Any], start_proxy: Callable[..., Any]) -> None:
    """Backpressure: of an endless answer only as much is made as is read, and little of it is held by the proxy."""
    import psutil

    fakes = start_fakes("dense")
    proxy = start_proxy(fakes)
    process = psutil.Process(proxy.group.process.pid)
    proxy.ask()
    before = process.memory_info().rss
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=30)
    # 400 MB in all, and the client reads almost nothing of it.
    body = {"model": "the-model", "prompt": "x", "stream": True, "fake": {"tokens": 4000, "pad": 100_000}}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    assert connection.getresponse().read1(10)
    time.sleep(1.5)
    assert fakes[0].seen()["finished"] == 1  # the first one only
    assert process.memory_info().rss - before < 32e6
    connection.close()
    wait_until(lambda: fakes[0].seen()["cancelled"] == 1)
