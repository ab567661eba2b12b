"""Commands of `mi-prun-bench` that ask models questions or read results: tasks, report, diff, recommend."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bench.options import OldLimit, Results, ServeFlags, TaskLimit, TasksFrom, flags_of, show_tasks, task_settings
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
    from bench.records.results import read_results
    from bench.reports.report import write_pages

    records = read_results(results)
    paths = write_pages(records, output or results)
    for path in paths:
        print(path)
    if mlflow is not None:
        from bench.reports.mlflow_log import log_results

        print(f"{log_results(records, mlflow)} runs logged to {mlflow}")
    print(json.dumps({"report": [str(path) for path in paths]}))


def tasks(
    output: Results,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="the dense model and pruned folders, served in turn"),
    ] = None,
    names: Annotated[
        str,
        typer.Option("--tasks", help="tasks, like arc_easy,boolq; an unknown one lists them all; default: seven"),
    ] = DEFAULT,
    tasks_from: TasksFrom = None,
    task_limit: TaskLimit = None,
    url: Annotated[
        list[str] | None, typer.Option(help="ask this running server instead; may be repeated; key: OPENAI_API_KEY")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="requests in flight at most")] = 8,
    logprob_check: Annotated[
        bool, typer.Option(help="first compare the server's log-probabilities with transformers'")
    ] = True,
    logprob_tolerance: Annotated[
        float, typer.Option(metavar="NATS", help="largest mean difference per token that passes")
    ] = TOLERANCE_MEAN_NATS,
    prompts: Annotated[
        Path | None, typer.Option(help="prompts to continue for the report, one a line; default: four of our own")
    ] = None,
    generate: Annotated[
        int, typer.Option(metavar="TOKENS", help="tokens of each continuation; 0: no continuations")
    ] = SAMPLING.max_tokens,
    temperature: Annotated[
        float, typer.Option(help="temperature of continuations; 0 is greedy")
    ] = SAMPLING.temperature,
    seed: Annotated[int, typer.Option(help="seed of the continuations")] = SAMPLING.seed,
    serve_flags: ServeFlags = "",
    old_limit: OldLimit = None,
) -> None:
    """Ask models lm-eval's tasks through served endpoints; each item is paired with the dense model's answer.

    Example: mi-prun-bench tasks meta-llama/Llama-3.1-8B p12/ p25/ --tasks arc_easy,boolq -o results/
    """
    from bench.tasks.generations import read_prompts
    from bench.tasks.tasks import run_tasks

    settings = replace(
        task_settings(names, tasks_from, task_limit),
        concurrency=concurrency,
        logprob_tolerance_nats=logprob_tolerance if logprob_check else None,
        sampling=sampling_of(generate, temperature, seed, read_prompts(prompts) if prompts else None),
        serve_flags=flags_of(serve_flags),
    )
    records = run_tasks(models or [], url or [], output, settings)
    show_tasks(records)
    print(json.dumps({"run": records[0].run, "records": len(records)}))


def diff(
    a: Annotated[
        str, typer.Argument(metavar="A", help="a results folder (its newest run), or FOLDER@RUN, FOLDER@COMMIT")
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="the same of the other run; changes are B's against A's")],
    anyway: Annotated[bool, typer.Option("--anyway", help="speed and memory too, across machines and engines")] = False,
    every: Annotated[bool, typer.Option("--all", help="show what is within noise too")] = False,
) -> None:
    """Say what changed between two runs beyond noise, point by point, with 95 % intervals.

    Example: mi-prun-bench diff results/@4d1f results/
    """
    from bench.records.results import read_side
    from bench.reports.diff import diff as diff_runs

    run_diff = diff_runs(read_side(a), read_side(b), anyway=anyway)
    for note in run_diff.notes:
        print(f"note: {note}")
    beyond_noise = run_diff.beyond_noise
    for change in run_diff.changes if every else beyond_noise:
        print(change.line())
    print(run_diff.summary())
    print(json.dumps({"compared": len(run_diff.changes), "changes": [each.model_dump() for each in beyond_noise]}))


def compare(words: Annotated[list[str] | None, typer.Argument(metavar="A B")] = None) -> None:
    """Refuse the old name of `diff`: `mi-prun compare` compares methods, which is another thing."""
    asked = " ".join(words or ["A", "B"])
    raise UserError(f"`mi-prun-bench compare` is called `mi-prun-bench diff`; write: mi-prun-bench diff {asked}")


def recommend(
    results: Annotated[str, typer.Argument(metavar="RESULTS", help="a results folder, or FOLDER@RUN, FOLDER@COMMIT")],
    max_ppl_increase: Annotated[
        str | None, typer.Option(metavar="10%", help="perplexity may rise by this share of the dense model's")
    ] = None,
    min_speedup: Annotated[
        float | None, typer.Option(metavar="1.25", help="output tokens/s over the dense model's, at least")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="24GiB", help="memory of the device; weights may take 90 % of it")
    ] = None,
) -> None:
    """Say which ratio to take within limits, and why. Exit status: 0 for one that fits, 1 for none, 2 for an error.

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
    recommendation = within(side.run, limits, side.tasks)
    print(recommendation.line())
    print(recommendation.model_dump_json())
    if not recommendation.fits:
        raise typer.Exit(1)
