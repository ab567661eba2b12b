"""A few prompts continued by each model, with the same seed: what figures do not show, read side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.endpoint import Endpoint
from bench.task_record import Continuation
from mi_prun.errors import UserError

PROMPTS = (
    "The old man opened the door and",
    "The most important thing about water is that",
    "Dear Sir,\n\nI have read your letter with great interest, and",
    "Question: Why is the sky dark at night?\nAnswer:",
)


@dataclass(frozen=True)
class Sampling:
    """max_tokens: of a continuation, at most. temperature: 0 is greedy."""

    prompts: tuple[str, ...] = PROMPTS
    max_tokens: int = 64
    temperature: float = 0.7
    seed: int = 0


def read_prompts(path: Path) -> tuple[str, ...]:
    """One a line; empty lines are left out."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    found = tuple(line for line in map(str.strip, lines) if line)
    if not found:
        raise UserError(f"--prompts {path} has no prompt; write one a line")
    return found


def continuations(endpoint: Endpoint, sampling: Sampling) -> tuple[Continuation, ...]:
    """Of each prompt, in order."""
    return tuple(
        Continuation(
            prompt=prompt,
            text=endpoint.complete(
                prompt, max_tokens=sampling.max_tokens, temperature=sampling.temperature, seed=sampling.seed
            ),
        )
        for prompt in sampling.prompts
    )
