"""Have each model continue a few prompts with the same seed: read side by side they show what figures do not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.records.task_schema import Continuation
from bench.tasks.task_settings import PROMPTS, Sampling
from mi_prun.errors import UserError

if TYPE_CHECKING:
    from bench.engines.endpoint import Endpoint


def sampling_of(max_tokens: int, temperature: float, seed: int, prompts: tuple[str, ...] | None) -> Sampling | None:
    """Return the sampling that the options say; None where no token is asked for. Raises UserError."""
    if max_tokens < 0:
        raise UserError(f"--generate must be at least 0 tokens, got {max_tokens}")
    if not 0 <= temperature <= 2:  # what the API takes
        raise UserError(f"--temperature must be in [0, 2], got {temperature:g}")
    return Sampling(prompts or PROMPTS, max_tokens, temperature, seed) if max_tokens else None


def read_prompts(path: Path) -> tuple[str, ...]:
    """Read prompts from a file, one a line; empty lines are left out. Raises UserError where there is none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # a byte order mark is no part of a prompt
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    prompts = tuple(line for line in map(str.strip, lines) if line)
    if not prompts:
        raise UserError(f"--prompts {path} has no prompt; write one a line")
    return prompts


def continuations(endpoint: Endpoint, sampling: Sampling) -> tuple[Continuation, ...]:
    """Return the continuation of each prompt, in order."""
    return tuple(
        Continuation(
            prompt=prompt,
            text=endpoint.complete(
                prompt, max_tokens=sampling.max_tokens, temperature=sampling.temperature, seed=sampling.seed
            ),
        )
        for prompt in sampling.prompts
    )
