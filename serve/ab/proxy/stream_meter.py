"""A meter of an answer while it passes: when its parts came, how many tokens, why it ended. Nothing of it is kept."""

from __future__ import annotations

import json
import re
from typing import Any

from serve.ab.proxy.stream_dialect import INPUT, OUTPUT, Dialect
from serve.ab.wire.sse import ERROR_EVENT, EventStream, ServerSentEvent, events_of

# Inside a JSON string a quotation mark is escaped: a model's own words never match these.
FINISH = re.compile(rb'"finish_reason"\s*:\s*"([a-z_]{1,32})"')
COMPLETION = re.compile(rb'"completion_tokens"\s*:\s*(\d{1,12})')
PROMPT = re.compile(rb'"prompt_tokens"\s*:\s*(\d{1,12})')
NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')  # usage alone, or what a gateway says of the prompt
CHOICES = b'"choices"'
ERROR = b'"error"'
ROLE = b'"role"'
DONE = b"[DONE]"
SEEN_BEFORE = 256  # bytes of the last part that are looked at again: a figure may be cut in two
LONGEST_JUDGED = 2**18  # bytes of an answer that is no stream, within which an error is looked for
MOST_GAPS = 4096


class StreamMeter:
    """A meter that is fed each part of an answer as it comes, and returns what may be sent on.

    Of an event stream only whole events are sent on, so that an error can be said between two of them. ttft_s: None
    until a token came. itl_s: gaps between the parts of a stream that have events in them. done: the stream's last mark
    came. failed: the engine itself said that it failed, in an event or in a body, or it said nothing at all. packed:
    the answer is compressed, so that only its times are known. dialect: of an answer whose events have names; None for
    OpenAI's completions.
    """

    def __init__(self, streamed: bool, *, packed: bool = False, dialect: Dialect | None = None) -> None:
        self.streamed = streamed
        self._dialect = dialect
        self._marks = 0  # events that are no part of the answer
        self.packed = packed
        self.ttft_s: float | None = None
        self.itl_s: list[float] = []
        self.events = 0
        self.finish_reason: str | None = None
        self.input_tokens: int | None = None
        self.done = False
        self.failed = False
        self._output_tokens: int | None = None
        self._last_s = 0.0
        self._stream = EventStream()
        self._body = Body()

    def feed(self, part: bytes, at_s: float) -> bytes:
        """Return what of the stream may be sent on now. at_s: seconds since the arm was asked."""
        if not self.streamed:
            if self.ttft_s is None:
                self.ttft_s = at_s
            if not self.packed:
                self._read_figures(self._body.feed(part))
            return part
        onward, events = self._stream.feed(part)
        said = False
        for event in events:
            said = self._read_event(event) or said
        if not said:
            return onward
        if self.ttft_s is None:
            self.ttft_s = at_s
        elif not self.done and len(self.itl_s) < MOST_GAPS:
            self.itl_s.append(at_s - self._last_s)
        self._last_s = at_s
        return onward

    def end(self) -> bytes:
        """Return what was held back, at the end of the answer."""
        if not self.streamed:
            self.failed = not self.packed and self._body.is_error()
            return b""
        rest = self._stream.rest()
        if rest:  # an event without its blank line: to a client it is none, but the engine said it
            for event in events_of(rest + b"\n\n"):
                self._read_event(event)
        self.failed = self.failed or (self.events == 0 and not self.done)
        return rest

    @property
    def output_tokens(self) -> int | None:
        """Tokens as the engine counts them; else the stream's events, without its last mark."""
        return self.stream_events if not self.usage else self._output_tokens

    @property
    def usage(self) -> bool:
        """Return whether the tokens are as the engine counts them, and not the stream's events."""
        return self._output_tokens is not None or not self.streamed

    @property
    def stream_events(self) -> int:
        """Events with a part of the answer; 0 where it is no stream."""
        return max(self.events - self._marks, 0)

    def _read_event(self, event: ServerSentEvent) -> bool:
        """Return whether it says anything: an event that only names the speaker comes before the first token."""
        data = event.data
        if self._dialect is not None:
            return self._read_named(event, self._dialect)
        if data.strip() == DONE:
            self.done = True
            self._marks += 1
        elif event.kind == ERROR_EVENT or (ERROR in data and is_error(_read_json(data))):
            self.failed = True
        self._read_figures(data)
        if not data or NO_CHOICES.search(data) or (data.startswith(b"{") and CHOICES not in data):
            return False
        if self.ttft_s is None and self.events == 0 and ROLE in data and _only_names_the_speaker(_read_json(data)):
            return False
        self.events += 1
        return True

    def _read_named(self, event: ServerSentEvent, dialect: Dialect) -> bool:
        """Return whether the event has text in it."""
        name = dialect.name_of(event)
        if name.endswith(dialect.token):
            self.events += 1
            return True
        self.done = self.done or name in dialect.done
        self.failed = self.failed or name in dialect.failed
        if name in dialect.figures:
            self._read_figures(event.data)
        elif not name and ERROR in event.data and is_error(_read_json(event.data)):
            self.failed = True  # a gateway's own
        return False

    def _read_figures(self, data: bytes) -> None:
        if self._dialect is not None:
            self._read_named_figures(data, self._dialect)
            return
        if b"finish_reason" in data:
            for match in FINISH.finditer(data):
                self.finish_reason = match[1].decode()
        if b"_tokens" in data:
            for match in COMPLETION.finditer(data):
                self._output_tokens = int(match[1])
            for match in PROMPT.finditer(data):
                self.input_tokens = int(match[1])

    def _read_named_figures(self, data: bytes, dialect: Dialect) -> None:
        for match in dialect.finish.finditer(data):
            said = (match[1] or b"").decode()
            self.finish_reason = dialect.reasons.get(said, said)
        for match in OUTPUT.finditer(data):
            self._output_tokens = int(match[1])
        for match in INPUT.finditer(data):
            self.input_tokens = int(match[1])


class Body:
    """An answer that is no stream, as far as it is kept until its end."""

    def __init__(self) -> None:
        self._kept = b""
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, part: bytes) -> bytes:
        """Return the part, behind the end of the one before."""
        seen = self._kept + part if self._kept else part
        self._kept = seen[-SEEN_BEFORE:]
        self._size += len(part)
        if self._size <= LONGEST_JUDGED:
            self._parts.append(part)
        else:
            self._parts.clear()
        return seen

    def is_error(self) -> bool:
        """Return whether the body is an error in place of an answer, or nothing. A long one is taken for an answer."""
        body = b"".join(self._parts)
        if self._size == 0:
            return True
        return ERROR in body and is_error(_read_json(body))


def is_error(message: Any) -> bool:
    """Return whether a chunk or a body says that the engine failed, beside other fields or alone."""
    if not isinstance(message, dict):
        return False
    if message.get("error") or message.get("object") == "error":
        return True
    choices = message.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and (choice.get("finish_reason") == "error" or choice.get("error"))
        for choice in choices
    )


def _only_names_the_speaker(message: Any) -> bool:
    """Return whether a chunk only says who will speak: some engines send it before the first token."""
    choices = message.get("choices") if isinstance(message, dict) else None
    if not isinstance(choices, list) or not choices:
        return False
    deltas = [choice.get("delta") if isinstance(choice, dict) else None for choice in choices]
    return all(
        isinstance(delta, dict) and all(name == "role" or not value for name, value in delta.items())
        for delta in deltas
    )


def _read_json(data: bytes) -> Any:
    """Return what the JSON says; None where it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
