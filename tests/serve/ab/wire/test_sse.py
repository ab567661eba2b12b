"""ServerSentEvent streams in every form that the standard allows, however the network cuts them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.ab.wire.sse import LONGEST_EVENT, EventStream, ServerSentEvent, events_of

MARK = b"\xef\xbb\xbf"
PIECES = [
    b"data",
    b"event",
    b"error",
    b"id",
    b":",
    b": ",
    b" ",
    b"x",
    b"[DONE]",
    b"\xc3\xa9",
    b"\r",
    b"\n",
    b"\r\n",
    MARK,
]
CUTS = st.lists(st.integers(0, 10_000), max_size=12)
TEXT = st.binary(max_size=9).map(lambda text: text.replace(b"\r", b"").replace(b"\n", b""))
EVENTS = st.lists(
    st.builds(ServerSentEvent, st.lists(TEXT, min_size=1, max_size=3).map(b"\n".join), st.sampled_from([b"", b"e"]))
)


def standard(stream: bytes) -> list[ServerSentEvent]:
    """The standard's own words, line by line; and llama.cpp's field `error`."""
    lines = stream.removeprefix(MARK).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]
    events, data, kind, error = [], [], b"", b""
    for line in lines:
        name, colon, value = line.partition(b":")
        if not line:
            if data:
                events.append(ServerSentEvent(b"\n".join(data), kind))
            elif error:  # llama.cpp's
                events.append(ServerSentEvent(error, b"error"))
            data, kind, error = [], b"", b""
        elif colon and not name:
            continue
        elif name == b"data":
            data.append(value[1:] if value.startswith(b" ") else value)
        elif name == b"event":
            kind = value[1:] if value.startswith(b" ") else value
        elif name == b"error":
            error = value[1:] if value.startswith(b" ") else value
    return events


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges) if a < b]


def read(parts: list[bytes]) -> tuple[bytes, list[ServerSentEvent]]:
    """What was sent on, and the events."""
    stream, onward, events = EventStream(), b"", []
    for part in parts:
        whole, more = stream.feed(part)
        onward += whole
        events += more
    return onward + stream.rest(), events


@settings.get_profile("fuzzed")
@given(st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join), CUTS)
def test_any_bytes_in_any_cuts_are_what_the_standard_says(stream: bytes, places: list[int]) -> None:
    assert read(cut(stream, places)) == (stream, standard(stream))


@settings.get_profile("fuzzed")
@given(
    EVENTS, st.sampled_from([b"\n", b"\r", b"\r\n"]), st.sampled_from([b"", b" "]), st.sampled_from([b"", MARK]), CUTS
)
def test_any_framing_gives_the_same_events(
    events: list[ServerSentEvent], end: bytes, blank: bytes, mark: bytes, places: list[int]
) -> None:
    """Line ends of three kinds, fields with and without a blank, comments between lines and between events."""
    stream = mark
    for event in events:
        stream += b": ping" + end + end
        for line in event.data.split(b"\n"):
            stream += b"data:" + (blank or b" " * line.startswith(b" ")) + line + end + b":" + end + b"id: 7" + end
        stream += (b"event:" + blank + event.kind + end if event.kind else b"") + end
    assert read(cut(stream, places)) == (stream, events)
    assert events_of(stream) == events


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_an_event_is_sent_on_as_soon_as_its_blank_line_is_here(end: bytes) -> None:
    stream = EventStream()
    first, second = b"data: 1" + end + end, b"data: 2" + end
    assert stream.feed(first + second) == (first, [ServerSentEvent(b"1")])
    onward, events = stream.feed(end)
    assert (onward, events) == (second + end, [ServerSentEvent(b"2")])


def test_a_line_feed_behind_a_carriage_return_belongs_to_it() -> None:
    stream = EventStream()
    assert stream.feed(b"data: 1\r\r") == (b"data: 1\r\r", [ServerSentEvent(b"1")])
    assert stream.feed(b"\ndata: 2\r")[1] == []
    assert stream.feed(b"\n")[1] == []
    assert stream.feed(b"\r")[1] == [ServerSentEvent(b"2")]


def test_an_event_that_the_stream_leaves_open_is_none() -> None:
    stream = EventStream()
    assert stream.feed(b"data: 1\n") == (b"", [])
    assert stream.rest() == b"data: 1\n"
    assert stream.rest() == b""


def test_what_has_no_end_is_not_held_for_ever() -> None:
    stream = EventStream()
    part = b"data: " + b"x" * LONGEST_EVENT
    assert stream.feed(part) == (part, [])
    assert stream.rest() == b""
    assert stream.feed(b"\n\ndata: 1\n\n")[1] == [ServerSentEvent(b"1")]
