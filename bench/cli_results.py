"""The commands of `mi-prun-bench` that ask models questions or read results: tasks, report, compare, recommend."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bench.options import Results, ServeFlags, TasksFrom, flags_of, show_tasks, task_settings
from bench.records.task_schema import TOLERANCE_MEAN_NATS
from bench.tasks.generations import sampling_of
from bench.tasks.task_settings import Sampling
from bench.tasks.task_table import DEFAULT
from mi_prun.errors import UserError

SAMPLING = Sampling()


def report(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="a folder that `sweep`, `run` or `tasks` wrote to")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="where to write; default: RESULTS")] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI", help="log what is there to this MLflow server or store, too")
    ] = None,
) -> None:
    """Turn records into report.html (one file, no network), report.md and report.csv.

    Example: mi-prun-bench report results/
    """
    from bench.reports.report import write_report

    paths = write_report(results, output or results)
    for path in paths:
        print(path)
    if mlflow is not None:
        from bench.records.results import read_results
        from bench.reports.mlflow_log import log_results

        print(f"{log_results(read_results(results), mlflow)} runs logged to {mlflow}")
    print(json.dumps({"report": [str(path) for path in paths]}))


def tasks(
    output: Results,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="the dense model and pruned folders, served in turn"),
    ] = None,
    names: Annotated[
        str, typer.Option("--tasks", help="like arc_easy,boolq; an unknown one lists those there are; default: seven")
    ] = DEFAULT,
    tasks_from: TasksFrom = None,
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
    from bench.tasks.generations import read_prompts
    from bench.tasks.tasks import run_tasks

    settings = replace(
        task_settings(names, tasks_from, limit),
        concurrency=concurrency,
        logprob_tolerance_nats=logprob_tolerance if logprob_check else None,
        sampling=sampling_of(generate, temperature, seed, read_prompts(prompts) if prompts else None),
        serve_flags=flags_of(serve_flags),
    )
    records = run_tasks(models or [], url or [], output, settings)
    show_tasks(records)
    print(json.dumps({"run": records[0].run, "records": len(records)}))


def compare(
    a: Annotated[
        str, typer.Argument(metavar="A", help="a results folder (its newest run), or FOLDER@RUN, FOLDER@COMMIT")
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="the same of the other run; changes are B's against A's")],
    anyway: Annotated[bool, typer.Option("--anyway", help="speed and memory too, across machines and engines")] = False,
    every: Annotated[bool, typer.Option("--all", help="show what is within noise too")] = False,
) -> None:
    """What changed between two runs beyond noise, point by point, with 95 % intervals.

    Example: mi-prun-bench compare results/@4d1f results/
    """
    from bench.records.results import read_side
    from bench.reports.compare import compare as against

    found = against(read_side(a), read_side(b), anyway=anyway)
    for note in found.notes:
        print(f"note: {note}")
    for change in found.changes if every else found.beyond_noise:
        print(change.line())
    print(found.summary())
    print(json.dumps({"compared": len(found.changes), "changes": [each.model_dump() for each in found.beyond_noise]}))


def recommend(
    results: Annotated[str, typer.Argument(metavar="RESULTS", help="a results folder, or FOLDER@RUN, FOLDER@COMMIT")],
    max_ppl_increase: Annotated[
        str | None, typer.Option(metavar="10%", help="perplexity may rise by this share of the dense model's")
    ] = None,
    min_speedup: Annotated[
        float | None, typer.Option(metavar="1.25", help="output tokens/s over the dense model's, at least")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="24GiB", help="of the device; weights may take 90 % of it")
    ] = None,
) -> None:
    """The ratio to take within limits, and why. Exit status: 0 with one that fits, 1 where none does, 2 for an error.

    Example: mi-prun-bench recommend results/ --max-ppl-increase 10% --memory 24GiB
    """
    from bench.records.results import read_side
    from bench.reports.recommend import parse_limits
    from bench.reports.recommend import recommend as within

    limits = parse_limits(max_ppl_increase, min_speedup, memory)
    side = read_side(results, (lambda run: run.judged) if limits.ppl_increase is not None else (lambda run: True))
    if side.run is None:
        raise UserError(f"{results} has tasks only; nothing was measured under load")
    if side.others:
        print(f"note: of run {side.run.name}, {side.run.dense.dense.name}; beside it: {', '.join(side.others)}")
    found = within(side.run, limits, side.tasks)
    print(found.line())
    print(found.model_dump_json())
    if not found.fits:
        raise typer.Exit(1)
