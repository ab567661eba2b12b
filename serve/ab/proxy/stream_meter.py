"""What is learnt of an answer while it passes: when its parts came, how many, why it ended. Nothing of it is kept.

The figures are found in the bytes: inside a JSON string a quotation mark is escaped, so that `"finish_reason":"stop"`
with bare ones is never a part of what a model said.
"""

from __future__ import annotations

import re

FINISH = re.compile(rb'"finish_reason"\s*:\s*"([a-z_]{1,32})"')
COMPLETION = re.compile(rb'"completion_tokens"\s*:\s*(\d{1,12})')
PROMPT = re.compile(rb'"prompt_tokens"\s*:\s*(\d{1,12})')
# An event of a chat that says who will speak, and nothing yet: some engines send it before the first token is there.
NOTHING_SAID = re.compile(rb'"delta"\s*:\s*\{(?:\s*"\w{1,32}"\s*:\s*(?:"assistant"|""|null)\s*,?){1,8}\}')
EVENT_END = re.compile(rb"\r?\n\r?\n")
SEEN_BEFORE = 256  # bytes of the last part that are looked at again: a figure may be cut in two
LONGEST_EVENT = 2**20
MOST_GAPS = 4096
DONE = b"data: [DONE]"
ERROR = b'data: {"error"'


class Reading:
    """`feed` each part as it comes, with the time since the arm was asked; it gives what may be sent on.

    Of an event stream only whole events are sent on, so that an error can be said between two of them.
    """

    def __init__(self, streamed: bool) -> None:
        self.streamed = streamed
        self.ttft_s: float | None = None
        self.itl_s: list[float] = []
        self.events = 0
        self.finish_reason: str | None = None
        self.input_tokens: int | None = None
        self.done = False
        self.failed = False  # the engine said so itself, by an event in the stream
        self._output_tokens: int | None = None
        self._last_s = 0.0
        self._before = b""
        self._held = b""

    def feed(self, part: bytes, at_s: float) -> bytes:
        if not self.streamed:
            if self.ttft_s is None:
                self.ttft_s = at_s
            self._look(part)
            return part
        if self._held:
            part, self._held = self._held + part, b""
        if not part.endswith(b"\n\n"):
            part = self._hold(part)
            if not part:
                return part
        said = without_comments(part) if part.startswith(b":") or b"\n:" in part else part
        if not said:
            return part
        events = said.count(b"\n\n") + said.count(b"\r\n\r\n")
        if self.ttft_s is None and b'"role"' in said and len(NOTHING_SAID.findall(said)) >= events:
            self._look(part)
            return part
        self.events += events
        if self.ttft_s is None:
            self.ttft_s = at_s
        elif not _has_event(part, DONE) and len(self.itl_s) < MOST_GAPS:
            self.itl_s.append(at_s - self._last_s)
        self._last_s = at_s
        self._look(part)
        return part

    @property
    def output_tokens(self) -> int | None:
        """As the engine counts them, else the stream's events but the last mark."""
        if self._output_tokens is not None or not self.streamed:
            return self._output_tokens
        return max(self.events - self.done, 0)

    def left(self) -> bytes:
        """What was held back, at the end of the stream."""
        held, self._held = self._held, b""
        return held

    def _hold(self, part: bytes) -> bytes:
        end = max(part.rfind(b"\n\n") + 2, part.rfind(b"\r\n\r\n") + 4 if b"\r\n\r\n" in part else 0)
        if end < 2:
            end = 0
        if len(part) - end > LONGEST_EVENT:
            return part  # no event stream that we know: it goes on as it is
        self._held = part[end:]
        return part[:end]

    def _look(self, part: bytes) -> None:
        seen = self._before + part if self._before else part
        if self.streamed:
            self.failed = self.failed or _has_event(part, ERROR)
            self.done = self.done or _has_event(part, DONE)
        if b"finish_reason" in seen or b"_tokens" in seen:
            for found in FINISH.finditer(seen):
                self.finish_reason = found[1].decode()
            for found in COMPLETION.finditer(seen):
                self._output_tokens = int(found[1])
            for found in PROMPT.finditer(seen):
                self.input_tokens = int(found[1])
        if not self.streamed:
            self._before = seen[-SEEN_BEFORE:]


def without_comments(events: bytes) -> bytes:
    """The events that say something: a block of lines that begin with a colon only keeps a connection open."""
    blocks = EVENT_END.split(events)
    said = [block for block in blocks if any(line and not line.startswith(b":") for line in block.splitlines())]
    return b"".join(block + b"\n\n" for block in said)


def _has_event(events: bytes, mark: bytes) -> bool:
    """At the start of a line: inside a JSON string a line end is escaped, so that no model's words pass for one."""
    return events.startswith(mark) or b"\n" + mark in events
