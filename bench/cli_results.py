"""The commands of `mi-prun-bench` that ask models questions or read results: tasks, report, compare, recommend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.generations import Sampling, sampling_of
from bench.options import Results, ServeFlags, flags_of
from bench.task_record import TOLERANCE_MEAN_NATS
from bench.task_table import ZEROSHOT

SAMPLING = Sampling()


def report(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="a folder that `sweep`, `run` or `tasks` wrote to")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="where to write; default: RESULTS")] = None,
) -> None:
    """Turn records into report.html (one file, no network), report.md and report.csv.

    Example: mi-prun-bench report results/
    """
    from bench.report import write_report

    paths = write_report(results, output or results)
    for path in paths:
        print(path)
    print(json.dumps({"report": [str(path) for path in paths]}))


def tasks(
    output: Results,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="the dense model and pruned folders, served in turn"),
    ] = None,
    names: Annotated[
        str, typer.Option("--tasks", help="comma-separated; an unknown one lists those there are")
    ] = ZEROSHOT,
    tasks_from: Annotated[
        Path | None, typer.Option(help="a folder of JSON lines files (docs/tasks.md); default: the hub")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="the first N items of each task; default: all")] = None,
    url: Annotated[
        list[str] | None, typer.Option(help="ask this running server instead; may be repeated; key: OPENAI_API_KEY")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="requests in flight at most")] = 8,
    logprob_check: Annotated[
        bool, typer.Option(help="first compare the server's log-probabilities with transformers'")
    ] = True,
    logprob_tolerance: Annotated[
        float, typer.Option(metavar="NATS", help="mean difference a token that is let pass")
    ] = TOLERANCE_MEAN_NATS,
    prompts: Annotated[
        Path | None, typer.Option(help="prompts to continue for the report, one a line; default: four of our own")
    ] = None,
    generate: Annotated[
        int, typer.Option(metavar="TOKENS", help="of each continuation; 0: none")
    ] = SAMPLING.max_tokens,
    temperature: Annotated[float, typer.Option(help="of the continuations; 0 is greedy")] = SAMPLING.temperature,
    seed: Annotated[int, typer.Option(help="of the continuations")] = SAMPLING.seed,
    serve_flags: ServeFlags = "",
) -> None:
    """lm-eval's tasks through a served endpoint, each item paired with the dense model's answer.

    Example: mi-prun-bench tasks meta-llama/Llama-3.1-8B p12/ p25/ --tasks arc_easy,boolq -o results/
    """
    from bench.generations import read_prompts
    from bench.task_summary import mean_rows, task_rows
    from bench.task_table import parse_tasks
    from bench.tasks import TaskSettings, run_tasks

    settings = TaskSettings(
        tasks=tuple(parse_tasks(names)),
        tasks_from=tasks_from,
        limit=limit,
        concurrency=concurrency,
        logprob_tolerance_nats=logprob_tolerance if logprob_check else None,
        sampling=sampling_of(generate, temperature, seed, read_prompts(prompts) if prompts else None),
        serve_flags=flags_of(serve_flags),
    )
    records = run_tasks(models or [], url or [], output, settings)
    rows = task_rows(records)
    for line in [*(row.line() for row in rows), *(row.line() for row in mean_rows(rows))]:
        print(line)
    print(json.dumps({"run": records[0].run, "records": len(records)}))


def compare() -> None:
    """x"""


def recommend() -> None:
    """x"""
