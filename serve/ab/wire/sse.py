"""Server-sent events: one parser for every form that the HTML standard allows.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html (9.2.6).
- Lines end in LF, CR or CRLF. A blank line ends an event; one that the stream leaves without it does not count.
- A line that begins with a colon is a comment.
- A field may have one blank behind its colon. Several `data` lines are one text.

One thing is more than the standard has: llama.cpp says its errors in a field `error`, without data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

BLANK_LINE = re.compile(rb"(?:\n|\r\n|\r(?!\n))(?:\r\n|\n|\r)")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LONGEST_EVENT = 2**20
ERROR_EVENT = b"error"


class ServerSentEvent(NamedTuple):
    """An event with data. data: its lines, joined by LF. kind: the `event` field, b"" without one."""

    data: bytes
    kind: bytes = b""


class EventStream:
    """A stream that comes in parts. `feed` each part; it returns the bytes of whole events, and these events.

    The bytes of all parts and of `rest` are together the stream, unchanged. What may be sent on always ends between two
    events, so that an event of one's own can be put behind it.
    """

    def __init__(self) -> None:
        self._held = b""
        self._begun = False

    def feed(self, part: bytes) -> tuple[bytes, list[ServerSentEvent]]:
        """Return what may be sent on, and the events in it. A block larger than LONGEST_EVENT is not held back."""
        # The line end that was seen last may be the first half of a blank line. A CR at the end of the bytes so far may
        # be a whole line end or half of one: where it was taken for whole, its LF stands before the next event, which
        # is no more than an empty line there.
        search_from = max(0, len(self._held) - 3)
        stream = self._held + part if self._held else part
        events = []
        start = 0
        for end in _blank_line_ends(stream, search_from):
            event = self._parse(stream[start:end])
            if event is not None:
                events.append(event)
            start = end
        if len(stream) - start > LONGEST_EVENT:
            start = len(stream)  # no event stream that we know: it goes on as it is
        self._held = stream[start:]
        return (stream[:start] if start < len(stream) else stream), events

    def rest(self) -> bytes:
        """Return what was held back, at the end of the stream."""
        held, self._held = self._held, b""
        return held

    def _parse(self, block: bytes) -> ServerSentEvent | None:
        if not self._begun:
            self._begun = True
            block = block.removeprefix(BYTE_ORDER_MARK)
        data: list[bytes] = []
        kind = error = b""
        for line in block.splitlines():
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" "))
            elif name == b"event":
                kind = value.removeprefix(b" ")
            elif name == ERROR_EVENT:
                error = value.removeprefix(b" ")
        if data:
            return ServerSentEvent(b"\n".join(data), kind)
        return ServerSentEvent(error, ERROR_EVENT) if error else None


def _blank_line_ends(stream: bytes, start: int) -> Iterator[int]:
    """Yield where each blank line ends. Streams without a CR, which are nearly all, are searched the fast way."""
    if b"\r" in stream:
        yield from (blank.end() for blank in BLANK_LINE.finditer(stream, start))
        return
    while (place := stream.find(b"\n\n", start)) >= 0:
        start = place + 2
        yield start


def events_of(stream: bytes) -> list[ServerSentEvent]:
    """Return the events of a stream that is here whole."""
    return EventStream().feed(stream)[1]
