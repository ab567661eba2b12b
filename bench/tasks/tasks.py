"""`mi-prun-bench tasks`: ask each model in turn lm-eval's tasks, and a few continuations, through its endpoint.

Everything is opened and checked before the first engine is started. A record is on the disk as soon as its task is
done.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.engines.endpoint import Endpoint, open_endpoint
from bench.engines.engine import EngineProcess, running
from bench.engines.flags import check_flags
from bench.models.measured_model import (
    MeasuredModel,
    MeasuredModels,
    context_of,
    open_measured_model,
    told_apart,
)
from bench.records.journal import ResultsFolder, results_folder
from bench.records.machine import commit, environment, this_machine, versions
from bench.records.schema import DenseModel, Provenance
from bench.records.task_schema import GenerationRecord, Origin, TaskRecord
from bench.records.task_summary import model_key
from bench.tasks.generations import continuations
from bench.tasks.harness import Spec, check_installed, scores
from bench.tasks.logprob_check import check_logprobs, direct_logprobs
from bench.tasks.task_settings import Sampling, TaskSettings
from bench.tasks.task_table import TASKS, Task, check_local, check_on_hub
from mi_prun.console import say
from mi_prun.errors import UserError
from mi_prun.files import sha256_of
from mi_prun.model.model_folder import read_config, resolve
from mi_prun.settings import check_seed

ASSUMED_CONTEXT = 2048  # where neither the server nor the config says


@dataclass(frozen=True)
class Asked:
    """A model that will be asked. endpoint: where it is served already; None: it will be served here."""

    model: MeasuredModel
    dense: DenseModel
    folder: Path
    endpoint: Endpoint | None

    @property
    def name(self) -> str:
        """The model as the user named it."""
        return self.model.arm.model


def run_tasks(models: Sequence[str], urls: Sequence[str], out: Path, settings: TaskSettings) -> list[TaskRecord]:
    """Return a record of each task of each model, in that order.

    Raises UserError before anything is started for a setting, a file, a model or an endpoint that will not do.
    """
    check_tasks(settings)
    if urls and settings.serve_flags:
        raise UserError("--serve-flags do not go with --url: the server runs already; leave them out")
    asked = open_asked(models, urls)
    with results_folder(out, "asks everything anew") as folder:
        return ask(asked, folder, settings)


def check_tasks(settings: TaskSettings) -> None:
    """Refuse settings and local files that will not do. Raises UserError."""
    check_installed()
    for option, value in (("--task-limit", settings.limit), ("--concurrency", settings.concurrency)):
        if value is not None and value < 1:
            raise UserError(f"{option} must be at least 1, got {value}")
    check_flags(settings.serve_flags)
    if settings.sampling is not None:
        check_seed(settings.sampling.seed)
    tolerance = settings.logprob_tolerance_nats
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise UserError(f"--logprob-tolerance must be a number of at least 0 nats, got {tolerance:g}")
    if settings.tasks_from is not None:
        check_local(settings.tasks, settings.tasks_from)
    else:
        check_on_hub(settings.tasks)


def ask(
    asked: Sequence[Asked], folder: ResultsFolder, settings: TaskSettings, *, again: bool = True
) -> list[TaskRecord]:
    """Ask each model in turn, and return its records. Without `again`, what the folder holds is not asked once more."""
    if settings.missing:
        say(f"left out, as {settings.tasks_from} lacks them: {', '.join(settings.missing)}")
    known = [] if again else list(folder.tasks)
    said = [] if again else list(folder.generations)
    asking, records = _Asking(uuid.uuid4().hex[:12], folder, settings), []
    keys = {task.name: asking.key(task.name) for task in settings.tasks}
    for one in asked:
        done = {r.score.task: r for r in known if asking.same(r, one, keys.get(r.score.task))}
        generated = any(asking.same(record, one, asking.key(None)) for record in said)
        left = replace(
            settings,
            tasks=tuple(task for task in settings.tasks if task.name not in done),
            sampling=None if generated else settings.sampling,
        )
        if left.tasks or left.sampling:
            done |= {record.score.task: record for record in _ask(one, replace(asking, settings=left))}
        records += [done[task.name] for task in settings.tasks]
    return records


def _provenance() -> dict[str, Any]:
    return {
        "machine": this_machine(),
        "versions": {**versions(), "lm-eval": version("lm_eval")},
        "commit": commit(),
        "environment": environment(),
    }


@dataclass(frozen=True)
class _Asking:
    """What all models of a run have in common. run: its name."""

    run: str
    folder: ResultsFolder
    settings: TaskSettings
    provenance: dict[str, Any] = field(default_factory=_provenance)

    def key(self, task: str | None) -> str:
        """Return the digest of all that a task's answers depend on beside the model. None: of the continuations."""
        settings = self.settings
        asked: dict[str, Any] = {"task": task, "flags": settings.serve_flags}
        if task is None:
            asked["sampling"] = settings.sampling and asdict(settings.sampling)
        else:
            file = TASKS[task].file
            items = sha256_of(settings.tasks_from / file) if settings.tasks_from and file else "hub"
            asked |= {"limit": settings.limit, "items": items}
        text = json.dumps([asked, self.provenance], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def same(self, record: Origin, asked: Asked, key: str | None) -> bool:
        """Tell whether the record is of that model, asked in that way."""
        model = asked.dense.weights_sha256, *asked.model.arm.identity
        return record.provenance.settings_sha256 == key and not record.endpoint and model_key(record) == model

    def origin(self, asked: Asked, endpoint: Endpoint, context: int, task: str | None) -> dict[str, Any]:
        """Return the fields of `task_schema.Origin`."""
        arm, settings = asked.model.arm, self.settings
        return {
            "run": self.run,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "dense": asked.dense,
            "arm": arm.model_copy(update={"model": endpoint.model}) if asked.endpoint else arm,
            "context_tokens": context,
            "endpoint": asked.endpoint is not None,
            "provenance": Provenance(
                **self.provenance,
                serve_flags=settings.serve_flags,
                seed=settings.sampling.seed if settings.sampling else 0,
                settings_sha256=self.key(task),
                engines_alive="alone",
            ),
        }


def open_asked(models: Sequence[str], urls: Sequence[str]) -> list[Asked]:
    """Open models to serve, or endpoints. With both, the n-th model names what the n-th endpoint serves.

    Raises UserError for what is neither, and for an endpoint that serves another model than named.
    """
    if not models and not urls:
        raise UserError("name a MODEL, or an endpoint that serves one with --url")
    if urls and models and len(urls) != len(models):
        raise UserError(f"{len(models)} models and {len(urls)} --url: with both, each endpoint needs its model")
    if not urls:
        return _told_apart([_asked(name, None) for name in models])
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
    return _told_apart(asked)


def served_in_turn(models: MeasuredModels) -> list[Asked]:
    """Return the dense model and the pruned ones, to be served here. Drafts answer as the dense model does."""
    assert models.folder is not None  # a shape is asked nothing
    return [
        Asked(model, models.dense, models.folder.path if model.arm.kind == "dense" else Path(model.arm.model), None)
        for model in models.all
        if model.arm.kind != "draft"
    ]


def _told_apart(asked: Sequence[Asked]) -> list[Asked]:
    """Give each pruned model a label of its own: reports and comparisons of runs go by the label.

    Raises UserError for a model that is named twice.
    """
    names = [one.name for one in asked]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{twice} is named twice; leave one out")
    labelled = told_apart([one.model for one in asked])
    return [replace(one, model=model) for one, model in zip(asked, labelled, strict=True)]


def _asked(name: str, endpoint: Endpoint | None) -> Asked:
    dense, model = open_measured_model(name)
    return Asked(model, dense, resolve(name), endpoint)


def _check_same(endpoint: Endpoint, asked: Asked) -> None:
    """Refuse an endpoint that says it serves another model. Raises UserError."""
    said = endpoint.pruning()
    if said is None:
        return
    theirs, ours = tuple(said.get("dropped_blocks", ())), asked.model.arm.blocks.dropped
    weights = said.get("dense", {}).get("weights_sha256", asked.dense.weights_sha256)
    if (theirs, weights) != (ours, asked.dense.weights_sha256):
        raise UserError(
            f"{endpoint.url} serves a model without blocks {list(theirs)}, {asked.name} lacks {list(ours)} of "
            f"{asked.dense.name}; name the model that is served"
        )
    healed = "healing" in said
    if healed != (asked.model.arm.healing is not None):
        names = ("a healed model", "one that is not")
        raise UserError(
            f"{endpoint.url} serves {names[not healed]}, {asked.name} is {names[healed]}; name the model that is served"
        )


@contextlib.contextmanager
def _served(asked: Asked, flags: Sequence[str]) -> Iterator[tuple[Endpoint, EngineProcess | None]]:
    if asked.endpoint is not None:
        yield asked.endpoint, None
        return
    say(f"{asked.model.arm.label} ({asked.name}): starting")
    with running(asked.name, flags) as engine:
        yield open_endpoint(engine.base_url), engine


def context_asked_of(endpoint: Endpoint, folder: Path) -> int:
    """Return the tokens of prompt and answer that a task may use: as the server says, else the config."""
    return endpoint.context_tokens or context_of(read_config(folder)) or ASSUMED_CONTEXT


def _ask(asked: Asked, asking: _Asking) -> Iterator[TaskRecord]:
    label, name, settings = asked.model.arm.label, asked.name, asking.settings
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
        context = context_asked_of(endpoint, asked.folder)
        check_context(settings.tasks, name, context)
        if settings.sampling is not None:
            origin = asking.origin(asked, endpoint, context, None)
            asking.folder.add_generation(_generated(endpoint, origin, settings.sampling))
        if not settings.tasks:
            return

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
            origin = asking.origin(asked, endpoint, context, score.task)
            record = TaskRecord(**origin, limit=settings.limit, logprobs=check, score=score)
            asking.folder.add_task(record)
            say(f"{label}: {score.task} {score.metric} {score.score:.1%} of {score.items} items")
            yield record


def check_context(tasks: Sequence[Task], name: str, context: int) -> None:
    """Refuse a task that needs a longer context than the model is served with. Raises UserError."""
    for task in tasks:
        if task.min_context > context:
            raise UserError(
                f"task {task.name} needs a context of {task.min_context} tokens, {name} is served with {context}; "
                "raise --max-model-len in --serve-flags, or leave the task out"
            )


def _generated(endpoint: Endpoint, origin: dict[str, Any], sampling: Sampling) -> GenerationRecord:
    return GenerationRecord(
        **origin,
        temperature=sampling.temperature,
        seed=sampling.seed,
        max_tokens=sampling.max_tokens,
        continuations=continuations(endpoint, sampling),
    )
