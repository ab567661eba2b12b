"""The `mi-prun-bench` command: parse the options and call what does the work."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from bench.cli_results import compare, diff, recommend, report, tasks
from bench.options import (
    Again,
    Concurrency,
    DenseOption,
    Engines,
    InputTokens,
    OldMaterialise,
    OldPruned,
    OutputTokens,
    Prompts,
    QualityText,
    Results,
    Rounds,
    Seed,
    ServeFlags,
    TaskLimit,
    TasksFrom,
    Text,
    comma,
    concurrency_of,
    heal_settings,
    measure_settings,
    names,
    rates_of,
    run_workloads,
    show_tasks,
    task_settings,
)
from bench.records.schema import PointRecord
from bench.settings import AUTO, PRESETS, RUN_WORKLOADS, WorkloadSettings
from bench.sweeps.sweep_settings import SweepSettings
from bench.training.train_settings import TrainSettings
from mi_prun.console import new_app, run_app
from mi_prun.errors import UserError
from mi_prun.options import Calibration
from mi_prun.settings import AnalyzeSettings
from mi_prun.sizes import parse_tokens

SWEEP = SweepSettings()
LOADS = SWEEP.measure.loads
SWEEP_CONCURRENCY, RUN_CONCURRENCY = comma(LOADS.concurrency), comma(RUN_WORKLOADS.concurrency)
TRAIN = TrainSettings()

app = new_app("Measure dense against pruned models: speed, latency, memory, quality.")


@app.callback()
def root() -> None:
    """Measure dense against pruned models: speed, latency, memory, quality."""


@app.command()
def sweep(
    output: Results,
    dense: Annotated[str | None, typer.Option(help="the dense model: a folder or a hub id")] = None,
    shape: Annotated[
        str | None, typer.Option(help="in place of --dense: a config.json or a shape's name; dummy weights, no quality")
    ] = None,
    ratios: Annotated[str, typer.Option(help="shares of the blocks to drop; 0 is the dense model")] = SWEEP.ratios,
    methods: Annotated[str, typer.Option(help="see `mi-prun methods`; NAME:N measures N sets")] = SWEEP.methods,
    presets: Annotated[str, typer.Option(help=f"lengths: {', '.join(PRESETS)}")] = ",".join(LOADS.presets),
    input_tokens: InputTokens = None,
    output_tokens: OutputTokens = None,
    trace: Annotated[
        Path | None, typer.Option(help="a file of request lengths (JSONL or CSV), added to --presets")
    ] = None,
    text: Text = None,
    concurrency: Concurrency = SWEEP_CONCURRENCY,
    rates: Annotated[str, typer.Option(help="requests/s, open loops like .5,1,2; auto: up to saturation; none")] = AUTO,
    prompts: Prompts = None,
    rounds: Rounds = LOADS.rounds,
    seed: Annotated[
        int, typer.Option(help="seed of the prompts, the calibration text, the choice and the healing")
    ] = LOADS.seed,
    virtual: Annotated[
        bool, typer.Option("--virtual/--no-virtual", help="checkpoints without weights of their own, or whole ones")
    ] = not SWEEP.materialise,
    draft: Annotated[bool, typer.Option("--draft", help="the dense model drafted by each pruned one, too")] = False,
    calibration: Calibration = None,
    tokens: Annotated[
        int, typer.Option(parser=parse_tokens, metavar="16k", help="tokens of --calibration that are scored")
    ] = SWEEP.analyze.scoring_tokens,
    quality_text: QualityText = None,
    heal: Annotated[
        str | None, typer.Option(metavar="10min", help="each pruned model healed, too: `fit`, 10min, 1h, 500k tokens")
    ] = None,
    heal_text: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT[=WEIGHT]", help="text to heal on; may be repeated; default: --calibration's"),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="NAME,...|default", help="lm-eval tasks to run on each model at the end")
    ] = None,
    tasks_from: TasksFrom = None,
    task_limit: TaskLimit = None,
    engines: Engines = AUTO,
    serve_flags: ServeFlags = "",
    again: Again = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done, and how long it takes")] = False,
    old_materialise: OldMaterialise = False,
) -> None:
    """Measure every ratio and method beside the dense model: speed, memory, quality. A killed sweep goes on.

    Example: mi-prun-bench sweep --dense meta-llama/Llama-3.1-8B --ratios 0,.125,.25,.375,.5 -o results/
    """
    from bench.sweeps import sweep as sweeping
    from bench.sweeps.dry_run import describe

    if (dense is None) == (shape is None):
        raise UserError("give exactly one of --dense MODEL and --shape NAME")
    if tasks is None and (tasks_from is not None or task_limit is not None):
        raise UserError("--tasks-from and --task-limit go with --tasks; add --tasks default")
    if heal is None and heal_text:
        raise UserError("--heal-text goes with --heal; add --heal 10min")
    if task_limit is not None and task_limit < 1:
        raise UserError(f"--task-limit must be at least 1, got {task_limit}")
    loads = WorkloadSettings(
        presets=names(presets),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        trace=trace,
        text=text,
        concurrency=concurrency_of(concurrency),
        rates=rates_of(rates),
        prompts=prompts,
        rounds=rounds,
        seed=seed,
    )
    sources = tuple(calibration or SWEEP.analyze.sources)
    settings = SweepSettings(
        ratios=ratios,
        methods=methods,
        materialise=not virtual,
        draft=draft,
        quality_text=quality_text,
        tasks=task_settings(tasks, tasks_from, task_limit) if tasks is not None else None,
        analyze=AnalyzeSettings(sources=sources, scoring_tokens=tokens, seed=seed),
        heal=heal_settings(heal, heal_text or sources, seed) if heal is not None else None,
        measure=measure_settings(loads, engines, serve_flags, again),
    )
    if dry_run:
        prepared = (
            sweeping.prepare_sweep(dense, settings) if dense else sweeping.prepare_shape(str(shape), output, settings)
        )
        for each in describe(prepared, settings):
            print(each)
        return
    if dense:
        points, answers = sweeping.sweep(dense, output, settings)
        show_tasks(answers)
        show(points)
    else:
        show(sweeping.sweep_shape(str(shape), output, settings))


@app.command()
def run(
    dense: DenseOption,
    output: Results,
    pruned: Annotated[
        list[str] | None, typer.Argument(metavar="PRUNED...", help="folders that `mi-prun apply` wrote")
    ] = None,
    input_tokens: InputTokens = RUN_WORKLOADS.input_tokens,
    output_tokens: OutputTokens = RUN_WORKLOADS.output_tokens,
    prompts: Prompts = RUN_WORKLOADS.prompts,
    concurrency: Concurrency = RUN_CONCURRENCY,
    rounds: Rounds = RUN_WORKLOADS.rounds,
    seed: Seed = RUN_WORKLOADS.seed,
    quality_text: QualityText = None,
    engines: Engines = AUTO,
    serve_flags: ServeFlags = "",
    again: Again = False,
    old_pruned: OldPruned = None,
) -> None:
    """Measure pruned folders that are there beside their dense model.

    Example: mi-prun-bench run --dense meta-llama/Llama-3.1-8B p12/ p25/ -o results/
    """
    from bench.sweeps.run import run as measure

    if not pruned:
        raise UserError("PRUNED is missing: name at least one folder that `mi-prun apply` wrote")
    loads = run_workloads(input_tokens, output_tokens, prompts, concurrency, rounds, seed)
    settings = measure_settings(loads, engines, serve_flags, again)
    show(measure(dense, pruned, output, settings, quality_text=quality_text))


@app.command()
def draft(
    dense: DenseOption,
    drafts: Annotated[list[Path], typer.Argument(metavar="DRAFT...", help="plan.json files, or pruned folders")],
    output: Results,
    text: Text = None,
    prompts_from: Annotated[
        Path | None,
        typer.Option(help="in place of --text: JSON lines, a prompt each; chats go through the chat template"),
    ] = None,
    draft_tokens: Annotated[
        int | None, typer.Option(help="drafted at a time; default: what the plan says, or mi-prun-serve's own")
    ] = None,
    input_tokens: Annotated[
        int | None, typer.Option(help=f"tokens in a prompt of --text; default: {RUN_WORKLOADS.input_tokens}")
    ] = None,
    output_tokens: OutputTokens = RUN_WORKLOADS.output_tokens,
    prompts: Prompts = RUN_WORKLOADS.prompts,
    concurrency: Concurrency = RUN_CONCURRENCY,
    rounds: Rounds = RUN_WORKLOADS.rounds,
    seed: Seed = RUN_WORKLOADS.seed,
    engines: Engines = AUTO,
    serve_flags: ServeFlags = "",
    again: Again = False,
) -> None:
    """Serve the dense model alone, then with each draft: acceptance rate, accepted length and speed.

    Example: mi-prun-bench draft --dense meta-llama/Llama-3.1-8B p25.json p50.json --text wikitext -o results/
    """
    from bench.sweeps.run import run_drafts

    if (text is None) == (prompts_from is None):
        raise UserError(
            "give exactly one of --text TEXT and --prompts-from FILE: random tokens cannot be predicted by a draft"
        )
    if prompts_from is not None and input_tokens is not None:
        raise UserError(
            "--input-tokens does not go with --prompts-from: its prompts keep their own lengths; leave it out"
        )
    input_tokens = input_tokens if input_tokens is not None else RUN_WORKLOADS.input_tokens
    loads = run_workloads(input_tokens, output_tokens, prompts, concurrency, rounds, seed, text, prompts_from)
    settings = measure_settings(loads, engines, serve_flags, again)
    show(run_drafts(dense, drafts, output, settings, draft_tokens))


for command in (report, tasks, diff, recommend):
    app.command()(command)
app.command(hidden=True, context_settings={"ignore_unknown_options": True})(compare)


@app.command()
def perplexity(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a model folder, or a hub id")],
    text: Annotated[str, typer.Option(help="a file or data set, as `mi-prun analyze --calibration` takes it")],
    tokens: Annotated[
        int, typer.Option(parser=parse_tokens, metavar="64k", help="tokens that are predicted, about")
    ] = 65_536,
    window: Annotated[int | None, typer.Option(help="tokens in a window; default: the model's context, capped")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda; default: CUDA where there is one")] = None,
) -> None:
    """Measure the perplexity of one model on a text.

    Example: mi-prun-bench perplexity bench/reference --text held-out.txt
    """
    from bench.quality.perplexity import measure_perplexity

    measured = measure_perplexity(model, text, tokens=tokens, window_tokens=window, device=device)
    print(
        f"perplexity {measured.perplexity:.2f} on {measured.text}: {measured.predicted_tokens:,} tokens, "
        f"{measured.protocol}"
    )
    print(measured.model_dump_json())


@app.command()
def train(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help=".txt, .jsonl or .parquet, .xz and .gz too")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the model folder to write")],
    family: Annotated[str, typer.Option(help="llama or qwen3")] = TRAIN.family,
    blocks: Annotated[int, typer.Option(help="transformer blocks")] = TRAIN.blocks,
    hidden: Annotated[int, typer.Option(help="width of a boundary state")] = TRAIN.hidden,
    heads: Annotated[int, typer.Option(help="attention heads; half as many hold keys and values")] = TRAIN.heads,
    vocabulary: Annotated[int, typer.Option(help="entries of the byte-level BPE tokenizer")] = TRAIN.vocabulary,
    context: Annotated[int, typer.Option(help="tokens in a window")] = TRAIN.context,
    tokens: Annotated[
        int, typer.Option(parser=parse_tokens, metavar="10M", help="tokens to see in all")
    ] = TRAIN.tokens,
    batch_tokens: Annotated[int, typer.Option(help="tokens in a step")] = TRAIN.batch_tokens,
    learning_rate: Annotated[
        float, typer.Option(help="highest learning rate, after the warm-up")
    ] = TRAIN.learning_rate,
    seed: Annotated[int, typer.Option(help="seed of the weights and of the order of the text")] = TRAIN.seed,
    device: Annotated[str | None, typer.Option(help="cpu, cuda; default: CUDA where there is one")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the output, whole, if it exists")] = False,
) -> None:
    """Train a small model from text; the same command goes on where an interrupted one stopped.

    Example: mi-prun-bench train books.txt -o model/ --blocks 12 --tokens 11000000
    """
    from bench.training.train import train as run_training

    if not math.isfinite(learning_rate):
        raise UserError(f"--learning-rate must be in (0, 1), got {learning_rate}")
    settings = TrainSettings(
        family=family,
        blocks=blocks,
        hidden=hidden,
        heads=heads,
        vocabulary=vocabulary,
        context=context,
        tokens=tokens,
        batch_tokens=batch_tokens,
        learning_rate=learning_rate,
        seed=seed,
    )
    trained = run_training(texts, output, settings, device=device, force=force)
    print(f"{output}: perplexity {trained.perplexity:.2f} on {trained.held_out_tokens:,} held-out tokens")
    print(trained.model_dump_json())


def show(points: Sequence[PointRecord]) -> None:
    """Print a line for each point; the last line is JSON."""
    from bench.sweeps.aggregate import line

    for point in points:
        print(line(point))
    print(json.dumps({"run": points[0].run, "points": len(points)}))


def main() -> None:
    """Run the command and exit with its status."""
    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
