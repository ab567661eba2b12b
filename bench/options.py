"""Options that commands of `mi-prun-bench` share, what their texts say, and the old spellings that are refused."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

import typer

from bench.records.task_schema import TaskRecord
from bench.records.task_summary import mean_rows, task_rows
from bench.settings import AUTO, RUN_PROMPTS, RUN_WORKLOADS, Alive, MeasureSettings, WorkloadSettings
from bench.tasks.task_settings import TaskSettings
from bench.tasks.task_table import chosen_tasks
from mi_prun.errors import UserError
from mi_prun.settings import HealSettings

DenseOption = Annotated[str, typer.Option(help="the dense model: a folder or a hub id")]
Results = Annotated[Path, typer.Option("--output", "-o", help="results folder; records are appended")]
InputTokens = Annotated[int | None, typer.Option(help="tokens in a prompt; of a sweep: in place of --presets")]
OutputTokens = Annotated[int | None, typer.Option(help="tokens in an answer")]
Text = Annotated[str | None, typer.Option(help="prompts are pieces of it, as `mi-prun analyze --calibration` takes it")]
Prompts = Annotated[
    int | None, typer.Option(help="requests in a round; default: twice those in flight, at least 8 (run, draft: 32)")
]
Concurrency = Annotated[str, typer.Option(help="requests in flight at most: closed loops, like 1,8,64")]
Rounds = Annotated[int, typer.Option(help="rounds, dense and pruned in turn; fewer than 3 tell little")]
Seed = Annotated[int, typer.Option(help="seed of the prompts, and of the passages that quality is judged on")]
QualityText = Annotated[
    str | None, typer.Option(help="measure quality on this text instead; default: what the plan measured")
]
TasksFrom = Annotated[
    Path | None, typer.Option(help="a folder of JSON lines files (docs/how-to/tasks.md); default: the hub")
]
ServeFlags = Annotated[str, typer.Option(help="flags for mi-prun-serve, in one string")]
Engines = Annotated[
    str, typer.Option(help="alive side by side (together), started anew each round (alone), or what fits (auto)")
]
TaskLimit = Annotated[int | None, typer.Option("--task-limit", help="the first N items of each task; default: all")]
Again = Annotated[bool, typer.Option("--again", help="begin a new run where one of the same settings is there")]


def _refused(message: str) -> Callable[[object], None]:
    """Return a callback for an old option: it refuses the option in one line, which names the new way."""

    def refuse(value: object) -> None:
        if value:
            raise UserError(message)

    return refuse


OldLimit = Annotated[
    str | None,
    typer.Option("--limit", hidden=True, callback=_refused("--limit is called --task-limit, as it is in `sweep`")),
]
OldMaterialise = Annotated[
    bool,
    typer.Option(
        "--materialise",
        hidden=True,
        callback=_refused("--materialise is called --no-virtual, as `mi-prun apply` calls the other kind --virtual"),
    ),
]
OldPruned = Annotated[
    list[str] | None,
    typer.Option(
        "--pruned",
        hidden=True,
        callback=_refused("--pruned is gone; name the folders without it: run --dense MODEL p12/ p25/ -o results/"),
    ),
]


def measure_settings(loads: WorkloadSettings, engines: str, serve_flags: str, again: bool) -> MeasureSettings:
    """Return the settings that the options say. Raises UserError for a text that will not do."""
    return MeasureSettings(loads, flags_of(serve_flags), engines_alive(engines), again)


def run_workloads(
    input_tokens: int | None,
    output_tokens: int | None,
    prompts: int | None,
    concurrency: str,
    rounds: int,
    seed: int,
    text: str | None = None,
    prompts_from: Path | None = None,
) -> WorkloadSettings:
    """Return the loads of `run` and `draft`: one closed loop that takes minutes on a small machine."""
    in_flight = concurrency_of(concurrency)
    return replace(
        RUN_WORKLOADS,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        prompts=max(RUN_PROMPTS, 2 * max(in_flight)) if prompts is None else prompts,
        concurrency=in_flight,
        rounds=rounds,
        seed=seed,
        text=text,
        prompts_from=prompts_from,
    )


def heal_settings(length: str, sources: Sequence[str], seed: int) -> HealSettings:
    """Return the settings that the options say. Raises UserError for a length that is none."""
    from mi_prun.recovery.amount import parse_heal

    return parse_heal(length, HealSettings(sources=tuple(sources), seed=seed))


def task_settings(names: str, tasks_from: Path | None, limit: int | None) -> TaskSettings:
    """Return the settings that the options say. Raises UserError for an unknown task."""
    chosen, missing = chosen_tasks(names, tasks_from)
    return TaskSettings(tuple(chosen), tasks_from, tuple(missing), limit)


def show_tasks(records: Sequence[TaskRecord]) -> None:
    """Print a line for each task of each model, and for each model's mean."""
    rows = task_rows(records)
    for line in [*(row.line() for row in rows), *(row.line() for row in mean_rows(rows))]:
        print(line)


def comma(numbers: Sequence[int]) -> str:
    """Write numbers as an option takes them: `1,8,64`."""
    return ",".join(map(str, numbers))


def flags_of(text: str) -> tuple[str, ...]:
    """Split the text of --serve-flags as a shell does. Raises UserError."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f"--serve-flags {text!r}: {error}") from error


def engines_alive(text: str) -> Alive | None:
    """Parse --engines: None takes what fits. Raises UserError."""
    if text == AUTO:
        return None
    if text in get_args(Alive):
        return cast("Alive", text)
    raise UserError(f"--engines must be together, alone or {AUTO}, got {text!r}")


def names(text: str) -> tuple[str, ...]:
    """Split names at commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def concurrency_of(text: str) -> tuple[int, ...]:
    """Parse --concurrency: `1,8,64`. Raises UserError."""
    try:
        return tuple(dict.fromkeys(int(word) for word in text.split(",")))
    except ValueError as error:
        raise UserError(f"--concurrency {text!r} must be whole numbers, like 1,8,64") from error


def rates_of(text: str) -> tuple[float, ...] | Literal["auto"]:
    """Parse --rates: `auto`, `none`, or requests/s. Raises UserError."""
    if text == "auto":
        return "auto"
    try:
        return () if text == "none" else tuple(dict.fromkeys(float(word) for word in text.split(",")))
    except ValueError as error:
        raise UserError(f"--rates {text!r} must be requests/s like .5,1,2, or {AUTO}, or none") from error
