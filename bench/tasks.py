"""`mi-prun-bench tasks`: lm-eval's tasks through served endpoints, and a few continuations, for each model in turn.

Everything is opened and checked before the first engine is started. A record is on the disk as soon as its task is
done.
"""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.endpoint import Endpoint, open_endpoint
from bench.engine import Engine, running
from bench.generations import Sampling, continuations
from bench.harness import Spec, check_installed, scores
from bench.logprob_check import check_logprobs, direct_logprobs
from bench.machine import commit, environment, this_machine, versions
from bench.measure import check_flags, check_results
from bench.record import Dense, Provenance, append_record
from bench.say import say
from bench.subject import Subject, context_of, open_subject
from bench.task_record import GENERATIONS_NAME, TASKS_NAME, TOLERANCE_MEAN_NATS, GenerationRecord, TaskRecord
from bench.task_table import Task, check_local
from mi_prun.errors import UserError
from mi_prun.model import read_config, resolve

ASSUMED_CONTEXT = 2048  # where neither the server nor the config says


@dataclass(frozen=True)
class TaskSettings:
    """limit: items of each task; None for all. tasks_from: None takes them from the hub.

    logprob_tolerance_nats: None leaves the check out. sampling: None leaves continuations out.
    """

    tasks: tuple[Task, ...]
    tasks_from: Path | None = None
    limit: int | None = None
    concurrency: int = 8
    logprob_tolerance_nats: float | None = TOLERANCE_MEAN_NATS
    sampling: Sampling | None = field(default_factory=Sampling)
    serve_flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A model that will be asked. endpoint: where it is served already; else it is served here."""

    subject: Subject
    dense: Dense
    folder: Path
    endpoint: Endpoint | None

    @property
    def name(self) -> str:
        return self.subject.arm.model


def run_tasks(models: Sequence[str], urls: Sequence[str], out: Path, settings: TaskSettings) -> list[TaskRecord]:
    """A record of each task of each model, in that order.

    Raises UserError before anything is started for a setting, a file, a model or an endpoint that will not do.
    """
    check_installed()
    _check_settings(settings)
    asked = open_asked(models, urls)
    check_results(out)
    run, records = uuid.uuid4().hex[:12], []
    for one in asked:
        records += list(_ask(one, run, out, settings))
    return records


def _check_settings(settings: TaskSettings) -> None:
    for name, value in (("limit", settings.limit), ("concurrency", settings.concurrency)):
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    check_flags(settings.serve_flags)
    if settings.tasks_from is not None:
        check_local(settings.tasks, settings.tasks_from)


def open_asked(models: Sequence[str], urls: Sequence[str]) -> list[Asked]:
    """Models to serve, or endpoints: with both, the n-th model names what the n-th endpoint serves."""
    if not models and not urls:
        raise UserError("name a MODEL, or an endpoint that serves one with --url")
    if urls and models and len(urls) != len(models):
        raise UserError(f"{len(models)} models and {len(urls)} --url: with both, each endpoint needs its model")
    if not urls:
        return [_asked(name, None) for name in models]
    asked = []
    for number, url in enumerate(urls):
        endpoint = open_endpoint(url)
        name = models[number] if models else endpoint.root
        try:
            asked.append(_asked(name, endpoint))
        except UserError as error:
            raise UserError(
                f"{url} serves {name}: {error}; name its folder or hub id: tasks MODEL --url {url}"
            ) from error
        _check_same(endpoint, asked[-1])
    return asked


def _asked(name: str, endpoint: Endpoint | None) -> Asked:
    dense, subject = open_subject(name)
    return Asked(subject, dense, resolve(name), endpoint)


def _check_same(endpoint: Endpoint, asked: Asked) -> None:
    """Where the server says what it serves, that is the model named."""
    said = endpoint.pruning()
    if said is None:
        return
    theirs, ours = tuple(said.get("dropped_blocks", ())), asked.subject.arm.blocks.dropped
    weights = said.get("dense", {}).get("weights_sha256", asked.dense.weights_sha256)
    if (theirs, weights) != (ours, asked.dense.weights_sha256):
        raise UserError(
            f"{endpoint.url} serves a model without blocks {list(theirs)}, {asked.name} lacks {list(ours)} of "
            f"{asked.dense.name}; name the model that is served"
        )


@contextlib.contextmanager
def _served(asked: Asked, flags: Sequence[str]) -> Iterator[tuple[Endpoint, Engine | None]]:
    if asked.endpoint is not None:
        yield asked.endpoint, None
        return
    say(f"{asked.subject.arm.label} ({asked.name}): starting")
    with running(asked.name, flags) as engine:
        yield open_endpoint(engine.base_url), engine


def _ask(asked: Asked, run: str, out: Path, settings: TaskSettings) -> Iterator[TaskRecord]:
    label, name = asked.subject.arm.label, asked.name
    direct = None
    if settings.logprob_tolerance_nats is not None:
        say(f"{label} ({name}): log-probabilities by transformers")
        # Beside an engine that the user started the device has no room.
        direct = direct_logprobs(name, "cpu" if asked.endpoint else None)
    with _served(asked, settings.serve_flags) as (endpoint, engine):
        check = None
        if direct is not None and settings.logprob_tolerance_nats is not None:
            check = check_logprobs(endpoint, direct, settings.logprob_tolerance_nats)
            say(f"{label}: log-probabilities agree, {check.mean_nats:.4f} nats apart on the mean")
        context = endpoint.context_tokens or context_of(read_config(asked.folder)) or ASSUMED_CONTEXT
        for task in settings.tasks:
            if task.min_context > context:
                raise UserError(
                    f"task {task.name} needs a context of {task.min_context} tokens, {name} is served with {context}; "
                    "raise --max-model-len in --serve-flags, or leave the task out"
                )
        origin = _origin(asked, endpoint, run, context, settings)
        if settings.sampling is not None:
            append_record(out, _generated(endpoint, origin, settings.sampling), GENERATIONS_NAME)

        def alive() -> None:
            if engine is not None and engine.group.process.poll() is not None:
                raise UserError(f"the engine of {name} ended: {engine.group.last_lines()}")

        spec = Spec(
            url=endpoint.url,
            model=endpoint.model,
            tokenizer=str(asked.folder),
            context_tokens=context,
            concurrency=settings.concurrency,
            tasks=tuple(task.name for task in settings.tasks),
            tasks_from=str(settings.tasks_from) if settings.tasks_from else None,
            limit=settings.limit,
        )
        for score in scores(endpoint, spec, alive):
            record = TaskRecord(**origin, limit=settings.limit, logprobs=check, score=score)
            append_record(out, record, TASKS_NAME)
            say(f"{label}: {score.task} {score.metric} {score.score:.1%} of {score.items} items")
            yield record


def _generated(endpoint: Endpoint, origin: dict[str, Any], sampling: Sampling) -> GenerationRecord:
    return GenerationRecord(
        **origin,
        temperature=sampling.temperature,
        seed=sampling.seed,
        max_tokens=sampling.max_tokens,
        continuations=continuations(endpoint, sampling),
    )


def _origin(asked: Asked, endpoint: Endpoint, run: str, context: int, settings: TaskSettings) -> dict[str, Any]:
    """The fields of `task_record.Origin`."""
    arm = asked.subject.arm
    return {
        "run": run,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "dense": asked.dense,
        "arm": arm.model_copy(update={"model": endpoint.model}) if asked.endpoint else arm,
        "context_tokens": context,
        "endpoint": asked.endpoint is not None,
        "provenance": Provenance(
            machine=this_machine(),
            versions={**versions(), "lm-eval": version("lm_eval")},
            commit=commit(),
            serve_flags=settings.serve_flags,
            environment=environment(),
            seed=settings.sampling.seed if settings.sampling else 0,
            settings_sha256=hashlib.sha256(repr(settings).encode()).hexdigest(),
            engines_alive="alone",
        ),
    }
