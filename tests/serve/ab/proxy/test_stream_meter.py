"""What is learnt of an answer while it passes, however the network cuts it."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.ab.proxy.stream_meter import StreamMeter
from serve.ab.wire.sse import LONGEST_EVENT

WORDS = ["It", " was", ' "finish_reason":"stop" ', "\n\n", "data: [DONE]", '{"completion_tokens": 99}', "é"]


def event(word: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": word}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


STREAM = b"".join(
    [
        *(event(word) for word in WORDS),
        event("", "length"),
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":7,"total_tokens":10}}\n\n',
        b"data: [DONE]\n\n",
    ]
)
WHOLE = json.dumps(
    {
        "choices": [{"message": {"content": "".join(WORDS)}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 7},
    }
).encode()


def cut(body: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(edges) if a < b]


@given(st.lists(st.integers(0, 10_000), max_size=30))
def test_a_stream_goes_on_byte_for_byte_in_whole_events(places: list[int]) -> None:
    meter = StreamMeter(streamed=True)
    sent = [meter.feed(part, float(at)) for at, part in enumerate(cut(STREAM, places))]
    assert all(part.endswith(b"\n\n") for part in sent if part)
    assert b"".join(sent) + meter.end() == STREAM
    assert (meter.finish_reason, meter.input_tokens, meter.output_tokens) == ("length", 3, 7)
    assert meter.done


@given(st.lists(st.integers(0, 10_000), max_size=10))
def test_a_whole_answer_goes_on_as_it_comes(places: list[int]) -> None:
    meter = StreamMeter(streamed=False)
    parts = cut(WHOLE, places)
    assert [meter.feed(part, 1.5) for part in parts] == parts
    assert (meter.finish_reason, meter.input_tokens, meter.output_tokens) == ("stop", 3, 7)
    assert meter.ttft_s == 1.5


def test_times_are_of_events_and_the_last_mark_is_none() -> None:
    meter = StreamMeter(streamed=True)
    for at, part in [(1.0, event("a")), (1.5, event("b")[:9]), (2.0, event("b")[9:]), (4.0, b"data: [DONE]\n\n")]:
        meter.feed(part, at)
    assert (meter.ttft_s, meter.itl_s, meter.output_tokens) == (1.0, [1.0], 2)


@pytest.mark.parametrize(
    "delta", ['{"role":"assistant","content":""}', '{"role": "assistant", "content": null, "refusal": null}']
)
def test_who_will_speak_is_no_token(delta: str) -> None:
    def opening(delta: str) -> bytes:
        return f'data: {{"choices": [{{"index": 0, "delta": {delta}, "finish_reason": null}}]}}\n\n'.encode()

    meter = StreamMeter(streamed=True)
    assert meter.feed(opening(delta), 1.0) == opening(delta)
    meter.feed(event("a"), 3.0)
    meter.feed(event("b"), 3.5)
    assert (meter.ttft_s, meter.itl_s, meter.output_tokens) == (3.0, [0.5], 2)
    together = StreamMeter(streamed=True)
    together.feed(opening(delta) + event("a"), 2.0)
    assert together.ttft_s == 2.0
    speaks = StreamMeter(streamed=True)
    speaks.feed(opening('{"role":"assistant","content":"a"}'), 1.5)
    assert speaks.ttft_s == 1.5


@pytest.mark.parametrize(
    "said",
    [
        b'data: {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}\n\n',
        b'data: {"id":"x","choices" : [ ],"usage":null}\n\n',
        b'event: ping\ndata: {"type": "ping"}\n\n',
        b"data\n\n",
        b"id: 7\nretry: 10\n\n",
    ],
)
def test_an_event_without_choices_is_no_token(said: bytes) -> None:
    """What a gateway says of the prompt, or to keep the connection open; before the first token and between two."""
    meter = StreamMeter(streamed=True)
    for at, part in [(1.0, said), (3.0, event("a")), (3.2, said), (3.5, event("b")), (9.0, said)]:
        assert meter.feed(part, at) == part
    assert (meter.ttft_s, meter.itl_s, meter.output_tokens, meter.usage) == (3.0, [0.5], 2, False)


def test_usage_is_told_from_a_count_of_events() -> None:
    """Two events of seven tokens: a client that asked for usage, and one that did not."""
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":7}}\n\n'
    for end, tokens in ((usage, 7), (b"", 2)):
        meter = StreamMeter(streamed=True)
        meter.feed(event("It was a") + event(" dark night") + end + b"data: [DONE]\n\n", 1.0)
        assert (meter.output_tokens, meter.usage, meter.stream_events) == (tokens, bool(end), 2)


@pytest.mark.parametrize(
    ("last", "figures"),
    [
        (b'data: {"error": {"message": "dead"}}', (1, None, True, False)),
        (b'data: {"choices":[],"usage":{"completion_tokens":7}}\n', (7, None, False, False)),
        (b"data: [DONE]", (1, None, False, True)),
        (event("", "stop")[:-1], (2, "stop", False, False)),
        (b"data: {", (1, None, False, False)),
    ],
)
def test_a_last_event_without_its_blank_line_is_read(last: bytes, figures: tuple[object, ...]) -> None:
    """To a client it is none, but the engine said it: an error above all."""
    meter = StreamMeter(streamed=True)
    first = event("a")
    assert meter.feed(first + last, 1.0) + meter.end() == first + last
    assert (meter.output_tokens, meter.finish_reason, meter.failed, meter.done)[1:] == figures[1:]
    if last != b"data: {":
        assert meter.output_tokens == figures[0]


def test_llama_cpps_field_of_errors() -> None:
    meter = StreamMeter(streamed=True)
    meter.feed(event("a") + b'error: {"code":500,"message":"no slot","type":"server_error"}\n\n', 1.0)
    assert meter.failed


@given(st.integers(0, 10_000))
def test_the_last_mark_in_a_models_words_is_none(place: int) -> None:
    said = event("data: [DONE]") + event('data: {"error": 1}') + event("\n\ndata: [DONE]\n\n")
    meter = StreamMeter(streamed=True)
    for part in cut(said, [place]):
        meter.feed(part, 1.0)
    assert (meter.done, meter.failed, meter.output_tokens) == (False, False, 3)
    meter.feed(b"data: [DONE]\n\n", 2.0)
    assert (meter.done, meter.output_tokens) == (True, 3)


def test_lines_may_end_in_two_signs() -> None:
    meter = StreamMeter(streamed=True)
    assert meter.feed(b"data: 1\r\n\r\ndata: 2", 0.0) == b"data: 1\r\n\r\n"
    assert meter.feed(b"\r\n\r\n", 0.0) == b"data: 2\r\n\r\n"
    assert meter.output_tokens == 2


def test_what_has_no_end_is_not_held_for_ever() -> None:
    meter = StreamMeter(streamed=True)
    part = b"x" * (LONGEST_EVENT + 1)
    assert meter.feed(part, 0.0) == part
    assert meter.end() == b""


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_a_comment_that_keeps_the_connection_open_is_no_token(end: bytes) -> None:
    meter = StreamMeter(streamed=True)
    assert meter.feed(b": ping" + end, 0.5) == b": ping" + end
    assert meter.ttft_s is None
    meter.feed(event("a"), 10.0)
    meter.feed(b": ping" + end + event("b"), 11.0)  # with words behind it
    meter.feed(b": one" + end + b": two" + end, 12.0)
    meter.feed(b": of the event's own\n" + event("c"), 13.0)
    meter.feed(b"data: [DONE]\n\n", 14.0)
    assert (meter.ttft_s, meter.itl_s, meter.output_tokens) == (10.0, [1.0, 2.0], 3)
    assert meter.done
