"""How far two answers agree, and how likely one arm finds what the other said."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve.ab.proxy.completion_text import CompletionText
from serve.ab.verdict.event import LARGEST_NATS

WORD = re.compile(r"\s*\S+|\s+$")


# Sends a body to a path of the shadow arm and returns its JSON; None where the arm has no such path, or refuses.
Ask = Callable[[str, Mapping[str, Any]], Awaitable[Any]]


@dataclass(frozen=True)
class Agreement:
    """Two answers beside each other. same: leading tokens that are equal. compared: tokens of the longer answer."""

    same: int
    compared: int

    @property
    def share(self) -> float:
        """Return the share of tokens that are the same, in [0, 1]; 1 for two empty answers."""
        return self.same / self.compared if self.compared else 1.0


def agreement(one: Sequence[object], other: Sequence[object]) -> Agreement:
    """Count the leading items that two sequences share."""
    same = next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    return Agreement(min(len(one), len(other)) if same is None else same, max(len(one), len(other)))


async def token_agreement(primary: CompletionText, shadow: CompletionText, ask: Ask) -> Agreement:
    """Compare tokens that came with log-probabilities; else those of the arm's own tokenizer; else words."""
    if primary.tokens and shadow.tokens:
        return agreement(primary.tokens, shadow.tokens)
    ids = [await tokenize(completion.text, ask) for completion in (primary, shadow)]
    if ids[0] is not None and ids[1] is not None:
        return agreement(ids[0], ids[1])
    return agreement(WORD.findall(primary.text), WORD.findall(shadow.text))


async def tokenize(text: str, ask: Ask) -> list[int] | None:
    """Return the tokens of a text as the arm cuts it; None where it does not say."""
    if not text:
        return []
    return _ids(await ask("/tokenize", {"prompt": text, "add_special_tokens": False}))


async def logprob_difference_nats(
    request: Mapping[str, Any], primary: CompletionText, shadow: CompletionText, ask: Ask
) -> tuple[float, int] | None:
    """Return the mean over the primary's tokens of `log p_shadow - log p_primary`, and their number.

    None without any tokens, or where it is no finite number of a sensible size.

    The shadow arm scores the primary's own tokens (vLLM's `prompt_logprobs`). An engine that cannot is compared over
    the tokens that both said before they parted, which is all that can be known then.
    """
    if not primary.logprobs:
        return None
    scored = await _scores(request, primary, ask)
    if scored is None:
        same = agreement(primary.tokens, shadow.tokens).same
        scored = list(zip(shadow.logprobs[:same], primary.logprobs[:same], strict=True))
    if not scored:
        return None
    nats = sum(theirs - ours for theirs, ours in scored) / len(scored)
    return (nats, len(scored)) if abs(nats) <= LARGEST_NATS else None  # NaN is not, either


async def _scores(request: Mapping[str, Any], primary: CompletionText, ask: Ask) -> list[tuple[float, float]] | None:
    """Return (shadow's, primary's) log-probability of each of the primary's tokens, in nats; None where unknown."""
    if (ids := await _prompt_and_answer_ids(request, primary, ask)) is None:
        return None
    prompt, answer = ids
    scored = await ask(
        "/v1/completions", {"prompt": [*prompt, *answer], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    )
    try:
        places = scored["choices"][0]["prompt_logprobs"][len(prompt) :]
        entries = [place[str(token)] for place, token in zip(places, answer, strict=True)]
        pairs = [
            (float(entry["logprob"]), ours)
            for entry, token, ours in zip(entries, primary.tokens, primary.logprobs, strict=False)
            if entry.get("decoded_token") == token
        ]
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    # A text may be cut into other tokens than it was made of; a few letters of several tokens each do not matter.
    return pairs if 2 * len(pairs) > len(entries) else None


async def _prompt_and_answer_ids(
    request: Mapping[str, Any], primary: CompletionText, ask: Ask
) -> tuple[list[int], list[int]] | None:
    prompt = await _prompt_ids(request, ask)
    answer = await tokenize(primary.text, ask)
    if not prompt or not answer:
        return None
    text = request.get("prompt")
    if not _as_many(answer, primary) and isinstance(text, str):
        # A tokenizer may begin a text in its own way: cut it with what stands before it.
        both = _ids(await ask("/tokenize", {"prompt": text + primary.text}))
        if both is not None and both[: len(prompt)] == prompt:
            answer = both[len(prompt) :]
    return (prompt, answer) if _as_many(answer, primary) else None


def _as_many(answer: Sequence[int], primary: CompletionText) -> bool:
    """Return whether there is an id for each token. The token that ended the answer is not in its text."""
    return len(answer) in (len(primary.tokens), len(primary.tokens) - 1)


async def _prompt_ids(request: Mapping[str, Any], ask: Ask) -> list[int] | None:
    """Return the prompt's tokens as the engine cuts it."""
    prompt = request.get("prompt")
    if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        return list(prompt)
    if isinstance(prompt, str):
        return _ids(await ask("/tokenize", {"prompt": prompt}))
    if isinstance(messages := request.get("messages"), list):
        same = ("tools", "chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
        return _ids(
            await ask("/tokenize", {"messages": messages, **{name: request[name] for name in same if name in request}})
        )
    return None


def _ids(answer: Any) -> list[int] | None:
    tokens = answer.get("tokens") if isinstance(answer, dict) else None
    return tokens if isinstance(tokens, list) else None
