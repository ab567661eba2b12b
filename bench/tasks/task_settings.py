"""Settings of tasks and sampled continuations, and their defaults. They live here only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bench.records.task_schema import TOLERANCE_MEAN_NATS
from bench.tasks.task_table import Task

PROMPTS = (
    "The old man opened the door and",
    "The most important thing about water is that",
    "Dear Sir,\n\nI have read your letter with great interest, and",
    "Question: Why is the sky dark at night?\nAnswer:",
)


@dataclass(frozen=True)
class Sampling:
    """How prompts are continued. max_tokens: of a continuation, at most. temperature: 0 is greedy."""

    prompts: tuple[str, ...] = PROMPTS
    max_tokens: int = 64
    temperature: float = 0.7
    seed: int = 0


@dataclass(frozen=True)
class TaskSettings:
    """What models are asked.

    tasks_from: a folder of items; None takes them from the hub. missing: files that a default task lacks there. limit:
    items of each task; None for all. logprob_tolerance_nats: None leaves the check out. sampling: None leaves
    continuations out.
    """

    tasks: tuple[Task, ...]
    tasks_from: Path | None = None
    missing: tuple[str, ...] = ()
    limit: int | None = None
    concurrency: int = 8
    logprob_tolerance_nats: float | None = TOLERANCE_MEAN_NATS
    sampling: Sampling | None = field(default_factory=Sampling)
    serve_flags: tuple[str, ...] = ()
