"""What a model said, read from an answer that was kept whole: the first choice's text, tokens and log-probabilities.

A tool that it calls is said too: the name and the arguments count as text, in the order in which they came.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Spoken:
    """tokens, logprobs: as many of each, in nats; empty where none were asked for. A token as the engine writes it."""

    text: str = ""
    tokens: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def read_answer(body: bytes, streamed: bool) -> Spoken:
    """Of /v1/chat/completions or /v1/completions. Raises ValueError where it is no such answer."""
    spoken = Spoken()
    for part in _events(body) if streamed else [json.loads(body)]:
        if not isinstance(part, dict) or part.get("error"):
            raise ValueError("the answer is an error")
        for choice in part.get("choices") or []:
            if choice.get("index", 0) == 0:
                _add(spoken, choice)
    return spoken


def _events(body: bytes) -> Iterator[Any]:
    for line in body.splitlines():
        if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
            yield json.loads(data)


def _add(spoken: Spoken, choice: Mapping[str, Any]) -> None:
    said = choice.get("delta") or choice.get("message")
    if isinstance(said, dict):
        words = [said.get(name) for name in ("reasoning", "reasoning_content", "content")]
        calls = [said.get("function_call"), *(call.get("function") for call in said.get("tool_calls") or [])]
        words += [call.get(part) for call in calls if call for part in ("name", "arguments")]
        spoken.text += "".join(word for word in words if isinstance(word, str))
    else:
        spoken.text += choice.get("text") or ""
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        return
    if "content" in logprobs:  # chat
        for entry in logprobs["content"] or []:
            spoken.tokens.append(entry["token"])
            spoken.logprobs.append(float(entry["logprob"]))
    elif logprobs.get("tokens"):
        spoken.tokens += logprobs["tokens"]
        # The first token of an echoed prompt has none.
        spoken.logprobs += [float(value) if value is not None else 0.0 for value in logprobs["token_logprobs"]]
