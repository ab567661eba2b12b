"""How an answer says its tokens, its end and its figures, by the path that was asked.

OpenAI's completions have chunks that are alike and a last mark, `[DONE]`. The other two kinds name each event:

- /v1/responses: `response.output_text.delta` and other deltas; at the end `response.completed`, `.incomplete` or
  `.failed`.
- /v1/messages: `content_block_delta`; `message_stop` at the end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from serve.ab.proxy.parsed_request import MESSAGES, RESPONSES
from serve.ab.wire.sse import ERROR_EVENT, ServerSentEvent

# Inside a JSON string a quotation mark is escaped: a model's own words never match these.
INPUT = re.compile(rb'"input_tokens"\s*:\s*(\d{1,12})')
OUTPUT = re.compile(rb'"output_tokens"\s*:\s*(\d{1,12})')
TYPE = re.compile(rb'"type"\s*:\s*"([a-z_.]{1,64})"')


@dataclass(frozen=True)
class Dialect:
    """A kind of answer whose events have names.

    token: the end of the name of an event with text in it. figures: names of the events that hold figures. done: names
    of the last event. failed: names of events by which the engine says that it failed. finish: finds why the answer
    ended. reasons: the same in the words of OpenAI's completions.
    """

    token: bytes
    figures: frozenset[bytes]
    done: frozenset[bytes]
    failed: frozenset[bytes]
    finish: re.Pattern[bytes]
    reasons: Mapping[str, str]

    def name_of(self, event: ServerSentEvent) -> bytes:
        """Return an event's name: the field `event`, else the first `type` of its data."""
        if event.kind:
            return event.kind
        found = TYPE.search(event.data)
        return found[1] if found else b""


ENDS = frozenset((b"response.completed", b"response.incomplete", b"response.failed"))
DIALECTS: dict[str, Dialect] = {
    RESPONSES: Dialect(
        token=b".delta",
        figures=ENDS,
        done=ENDS,
        failed=frozenset((ERROR_EVENT, b"response.failed")),
        # Items inside have a status too. Only an answer that is cut short has a reason for it.
        finish=re.compile(rb'"incomplete_details"\s*:\s*(?:\{\s*"reason"\s*:\s*"([a-z_]{1,32})"|null)'),
        reasons={"": "stop", "max_output_tokens": "length", "content_filter": "content_filter"},
    ),
    MESSAGES: Dialect(
        token=b"content_block_delta",
        figures=frozenset((b"message_start", b"message_delta")),
        done=frozenset((b"message_stop",)),
        failed=frozenset((ERROR_EVENT,)),
        finish=re.compile(rb'"stop_reason"\s*:\s*"([a-z_]{1,32})"'),
        reasons={"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"},
    ),
}


def dialect_of(path: str) -> Dialect | None:
    """Return the dialect of a path; None for OpenAI's completions and what is no generation."""
    return DIALECTS.get(path)
