"""The text of a completion, read from an answer that was kept whole: the first choice, its tokens, their probabilities.

A call of a tool is text too: its name and its arguments, in the order in which they came.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serve.ab.proxy.stream_meter import DONE, is_error
from serve.ab.wire.sse import events_of


@dataclass
class CompletionText:
    """What a model said. tokens, as the engine writes them, and logprobs, in nats: as many of each, or none."""

    text: str = ""
    tokens: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def read_completion(body: bytes, streamed: bool) -> CompletionText:
    """Return the text of an answer to /v1/chat/completions or /v1/completions.

    Raises ValueError where it is an error, or no JSON; LookupError, TypeError or AttributeError where its shape is
    another one.
    """
    completion = CompletionText()
    texts = [event.data for event in events_of(body) if event.data.strip() != DONE] if streamed else [body]
    for text in texts:
        chunk = json.loads(text)
        if not isinstance(chunk, dict) or is_error(chunk):
            raise ValueError("the answer is an error")
        for choice in chunk.get("choices") or []:
            if choice.get("index", 0) == 0:
                _add(completion, choice)
    return completion


def _add(completion: CompletionText, choice: Mapping[str, Any]) -> None:
    message = choice.get("delta") or choice.get("message")
    if isinstance(message, dict):
        words = [message.get(name) for name in ("reasoning", "reasoning_content", "content")]
        calls = [message.get("function_call"), *(call.get("function") for call in message.get("tool_calls") or [])]
        words += [call.get(part) for call in calls if call for part in ("name", "arguments")]
        completion.text += "".join(word for word in words if isinstance(word, str))
    else:
        completion.text += choice.get("text") or ""
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        return
    if "content" in logprobs:  # chat
        for entry in logprobs["content"] or []:
            completion.tokens.append(entry["token"])
            completion.logprobs.append(float(entry["logprob"]))
    elif logprobs.get("tokens"):
        completion.tokens += logprobs["tokens"]
        # The first token of an echoed prompt has none.
        completion.logprobs += [float(value) if value is not None else 0.0 for value in logprobs["token_logprobs"]]
