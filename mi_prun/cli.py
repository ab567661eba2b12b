"""The `mi-prun` command: parse, call, print what came out. Heavy imports happen inside the commands that need them."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mi_prun.console import kept, new_app, run_app
from mi_prun.errors import UserError
from mi_prun.options import (
    ANALYZE,
    HEAL,
    PLAN,
    AdapterFile,
    AssumeUniform,
    BatchTokens,
    Calibration,
    CeShare,
    CheckpointBlocks,
    CriterionName,
    Device,
    Drop,
    Fit,
    For,
    Force,
    Healing,
    HealMinutes,
    HealTokens,
    HealWindow,
    LearningRate,
    MaxKl,
    MaxPplIncrease,
    Method,
    Model,
    NoFit,
    NoQuality,
    NumBlocks,
    Output,
    ParamRatio,
    Rank,
    Ratio,
    ReadAdapter,
    Recall,
    Rerank,
    Seed,
    ShardSize,
    StreamBlocks,
    Temperature,
    Tokens,
    Train,
    TrainDtype,
    Virtual,
    Window,
)
from mi_prun.settings import AnalyzeSettings, HealSettings, PlanSettings, WriteSettings
from mi_prun.sizes import parse_size
from mi_prun.version import __version__

DEFAULT_MINUTES = 10.0  # of `heal`
SHARED = ("analyze", "heal")  # by several processes

app = new_app("Find the blocks an LLM can do without, and drop them. Block indices are 0-based everywhere.")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="print the version")] = False
) -> None:
    if version:
        print(f"mi-prun {__version__}")
        raise typer.Exit
    if context.invoked_subcommand not in SHARED and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            f"mi-prun {context.invoked_subcommand} runs as one process; only {' and '.join(SHARED)} share their work: "
            "start it without torchrun or accelerate"
        )


@app.command("import")
def import_model(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="a GGUF file, of one part")],
    output: Output,
    force: Force = False,
) -> None:
    """Make a bfloat16 model folder of a GGUF file; every other command takes it.

    Example: mi-prun import SmolLM2-135M-Instruct.Q4_1.gguf -o smollm2/
    """
    from mi_prun import summary
    from mi_prun.importing.gguf_import import import_gguf

    summary.imported(import_gguf(file, output, force=force), output)


@app.command()
@kept("nothing was written")
def analyze(
    model: Model,
    output: Output,
    calibration: Calibration = None,
    tokens: Tokens = ANALYZE.scoring_tokens,
    window: Window = None,
    seed: Seed = ANALYZE.seed,
    device: Device = None,
    stream_blocks: StreamBlocks = False,
    force: Force = False,
) -> None:
    """Run one pass over calibration text. The result serves every ratio.

    Example: mi-prun analyze meta-llama/Llama-3.1-8B --calibration wikitext -o analysis/
    """
    from mi_prun import summary
    from mi_prun.analysis.analyze import analyze as run
    from mi_prun.model.model_folder import open_model

    settings = AnalyzeSettings(
        sources=tuple(calibration or ANALYZE.sources),
        scoring_tokens=tokens,
        window_tokens=window,
        seed=seed,
        device=device,
        stream_blocks=stream_blocks,
    )
    record = run(open_model(model), output, settings, force=force)
    if record is not None:  # the other ranks of torchrun have nothing to say
        summary.analysis(record, output)


@app.command()
@kept("nothing was written")
def plan(
    analysis: Annotated[Path, typer.Argument(metavar="ANALYSIS", help="a folder made by `mi-prun analyze`")],
    output: Output,
    ratio: Ratio = None,
    num_blocks: NumBlocks = None,
    param_ratio: ParamRatio = None,
    drop: Drop = None,
    max_ppl_increase: MaxPplIncrease = None,
    max_kl: MaxKl = None,
    method: Method = PLAN.method,
    rerank: Rerank = PLAN.rerank,
    criterion: CriterionName = PLAN.criterion,
    recall: Recall = PLAN.recall,
    purpose: For = None,
    no_quality: NoQuality = False,
    model: Annotated[str | None, typer.Option(help="the dense model, if it is not where the analysis found it")] = None,
    seed: Seed = ANALYZE.seed,
    device: Device = None,
    force: Force = False,
) -> None:
    """Choose the blocks to drop: milliseconds if nothing is measured, else as many passes as the candidates need.

    Example: mi-prun plan analysis/ --ratio 0.25 -o plan.json
    """
    from mi_prun import summary
    from mi_prun.analysis.analysis import read_analysis
    from mi_prun.files import check_output
    from mi_prun.plan.ratio import Amount
    from mi_prun.planning.draft_choice import draft_for
    from mi_prun.planning.planning import make_context, plan_for

    check_output(output, force=force, folder=False)
    settings = PlanSettings(method, rerank, not no_quality, model, seed, device, criterion, recall)
    analyzed = read_analysis(analysis)
    amount = Amount(ratio, num_blocks, param_ratio, drop, max_ppl_increase, max_kl)
    chosen = (
        plan_for(make_context(analyzed, settings), amount, settings)
        if purpose is None
        else draft_for(analyzed, settings, purpose, amount)
    )
    chosen.write(output)
    summary.plan(chosen, output)


def _write_settings(virtual: bool, max_shard_size: str | None, assume_uniform: bool) -> WriteSettings:
    """Refuse a size of what is not written."""
    if max_shard_size is None:
        return WriteSettings(virtual, assume_uniform=assume_uniform)
    if virtual:
        raise UserError("--virtual writes no weights: leave out --max-shard-size")
    return WriteSettings(virtual, parse_size(max_shard_size, "--max-shard-size", needs_unit=True), assume_uniform)


@app.command()
@kept("nothing was written")
def apply(
    model: Model,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="a plan.json made by `mi-prun plan`")],
    output: Output,
    virtual: Virtual = False,
    adapter: ReadAdapter = None,
    assume_uniform: AssumeUniform = False,
    max_shard_size: ShardSize = None,
    force: Force = False,
) -> None:
    """Write the checkpoint that has only the kept blocks.

    Example: mi-prun apply meta-llama/Llama-3.1-8B plan.json -o pruned/
    """
    from mi_prun import summary
    from mi_prun.checkpoint.checkpoint import write_checkpoint
    from mi_prun.files import check_output
    from mi_prun.plan.plan import Plan, open_dense

    check_output(output, force=force, inputs=(plan,) if adapter is None else (plan, adapter))  # before a fetch
    writing = _write_settings(virtual, max_shard_size, assume_uniform)
    chosen = Plan.read(plan)
    if adapter is not None:
        from mi_prun.recovery.adapter import healed_by, merged_by, read_adapter

        learned = read_adapter(adapter, chosen)  # before a model is fetched
    dense = open_dense(model, chosen)
    with contextlib.ExitStack() as stack:
        healed = None
        if adapter is not None:
            healed = (
                healed_by(adapter, learned, dense)
                if virtual
                else stack.enter_context(merged_by(adapter, learned, chosen, dense, output))
            )
        manifest = write_checkpoint(
            dense,
            chosen,
            output,
            virtual=virtual,
            healed=healed,
            max_shard_bytes=writing.max_shard_bytes,
            force=force,
            assume_uniform=assume_uniform,
        )
    summary.checkpoint(manifest, output)


@app.command()
@kept("nothing was written")
def prune(
    model: Model,
    output: Output,
    ratio: Ratio = None,
    num_blocks: NumBlocks = None,
    param_ratio: ParamRatio = None,
    drop: Drop = None,
    max_ppl_increase: MaxPplIncrease = None,
    max_kl: MaxKl = None,
    calibration: Calibration = None,
    tokens: Tokens = ANALYZE.scoring_tokens,
    window: Window = None,
    method: Method = PLAN.method,
    rerank: Rerank = PLAN.rerank,
    criterion: CriterionName = PLAN.criterion,
    recall: Recall = PLAN.recall,
    no_quality: NoQuality = False,
    heal: Healing = None,
    virtual: Virtual = False,
    assume_uniform: AssumeUniform = False,
    max_shard_size: ShardSize = None,
    seed: Seed = ANALYZE.seed,
    device: Device = None,
    force: Force = False,
) -> None:
    """Analyze, plan and apply in one step.

    Example: mi-prun prune meta-llama/Llama-3.1-8B --ratio 0.25 -o pruned/
    """
    from mi_prun import pipeline, summary
    from mi_prun.plan.ratio import Amount

    sources, healing = tuple(calibration or ANALYZE.sources), None
    if heal is not None:
        from mi_prun.recovery.amount import parse_heal

        healing = parse_heal(
            heal,
            HealSettings(sources=sources, window_tokens=window or HEAL.window_tokens, seed=seed, device=device),
        )
    pruned = pipeline.prune(
        model,
        output,
        Amount(ratio, num_blocks, param_ratio, drop, max_ppl_increase, max_kl),
        AnalyzeSettings(
            sources=sources,
            scoring_tokens=tokens,
            window_tokens=window,
            seed=seed,
            device=device,
        ),
        PlanSettings(method, rerank, not no_quality, None, seed, device, criterion, recall),
        _write_settings(virtual, max_shard_size, assume_uniform),
        heal=healing,
        force=force,
    )
    summary.plan(pruned.plan, None)
    (summary.checkpoint if healing is None else summary.healing)(pruned.manifest, output)


@app.command()
@kept("nothing was written")
def heal(
    pruned: Annotated[Path, typer.Argument(metavar="PRUNED", help="a folder made by `mi-prun prune` or `apply`")],
    output: Output,
    tokens: HealTokens = None,
    minutes: HealMinutes = None,
    fit: Fit = False,
    no_fit: NoFit = False,
    train: Train = HEAL.train,
    rank: Rank = HEAL.rank,
    learning_rate: LearningRate = None,
    calibration: Calibration = None,
    window: HealWindow = HEAL.window_tokens,
    batch_tokens: BatchTokens = None,
    temperature: Temperature = HEAL.temperature,
    ce_share: CeShare = HEAL.ce_share,
    checkpoint_blocks: CheckpointBlocks = False,
    stream_blocks: StreamBlocks = False,
    train_dtype: TrainDtype = None,
    adapter: AdapterFile = None,
    virtual: Virtual = False,
    model: Annotated[str | None, typer.Option(help="the dense model, if it is not where the pruned one says")] = None,
    seed: Seed = HEAL.seed,
    device: Device = None,
    force: Force = False,
) -> None:
    """Make up for the dropped blocks: the dense model teaches the kept ones, from one copy of the weights.

    Example: mi-prun heal pruned/ --minutes 10 --calibration wiki.txt --calibration books.txt -o healed/
    """
    from mi_prun import summary
    from mi_prun.recovery.heal import heal_folder

    if fit and (no_fit or tokens is not None or minutes is not None):
        raise UserError("--fit is the closed form alone: leave out --no-fit, --tokens and --minutes")
    if train == "none":
        raise UserError("--train must be lora or all; --fit is the closed form alone")
    given = {
        "--train": train != HEAL.train,
        "--rank": rank != HEAL.rank,
        "--learning-rate": learning_rate is not None,
        "--temperature": temperature != HEAL.temperature,
        "--ce-share": ce_share != HEAL.ce_share,
        "--checkpoint-blocks": checkpoint_blocks,
        "--train-dtype": train_dtype is not None,
    }
    if fit and (unused := [option for option, is_given in given.items() if is_given]):
        raise UserError(f"--fit trains nothing: leave out {', '.join(unused)}")
    if train == "all" and rank != HEAL.rank:
        raise UserError("--train all has no rank: leave out --rank, or take --train lora")
    if tokens is not None and minutes is not None:
        raise UserError("give --tokens or --minutes, not both")
    settings = HealSettings(
        sources=tuple(calibration or HEAL.sources),
        fit=not no_fit,
        train="none" if fit else train,
        tokens=tokens,
        minutes=None if fit or tokens is not None else (DEFAULT_MINUTES if minutes is None else minutes),
        rank=rank,
        learning_rate=learning_rate,
        batch_tokens=batch_tokens,
        forward_tokens=min(batch_tokens or HEAL.forward_tokens, HEAL.forward_tokens),
        window_tokens=window,
        temperature=temperature,
        ce_share=ce_share,
        checkpoint_blocks=checkpoint_blocks,
        stream_blocks=stream_blocks,
        train_dtype=train_dtype,
        seed=seed,
        device=device,
    )
    manifest = heal_folder(pruned, output, settings, model=model, adapter=adapter, virtual=virtual, force=force)
    if os.environ.get("RANK", "0") == "0":  # the other ranks of torchrun have nothing to say
        summary.healing(manifest, output)


@app.command()
def compare(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder; an interrupted comparison goes on in it")],
    ratios: Annotated[str, typer.Option(help="shares of the blocks to drop")] = ".1,.25,.4",
    methods: Annotated[
        str, typer.Option(help="see `mi-prun methods`; NAME:N compares N sets by their measured loss")
    ] = "hybrid,mi-prun:0,mi-prun:24,bi,angular,greedy-loss,tail-but-last,random",
    calibration: Calibration = None,
    tokens: Tokens = ANALYZE.scoring_tokens,
    window: Window = None,
    seed: Seed = ANALYZE.seed,
    device: Device = None,
) -> None:
    """Compare methods at each ratio on the same held-out text: tables, a plot, a heat map of segment costs.

    Example: mi-prun compare meta-llama/Llama-3.1-8B --ratios .1,.25,.4 --methods hybrid,bi,greedy-loss -o compared/
    """
    from mi_prun.comparison.comparison import compare_model, parse_methods
    from mi_prun.model.model_folder import open_model

    specs = parse_methods(methods)
    settings = AnalyzeSettings(
        sources=tuple(calibration or ANALYZE.sources),
        scoring_tokens=tokens,
        window_tokens=window,
        seed=seed,
        device=device,
    )
    print(compare_model(open_model(model), specs, ratios, settings, output))


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="a pruned folder or a plan.json")],
    verify: Annotated[bool, typer.Option("--verify", help="read every byte and compare it with the manifest")] = False,
) -> None:
    """Print what was dropped, what it cost, and whether the folder is whole.

    Example: mi-prun inspect pruned/ --verify
    """
    from mi_prun.checkpoint import inspection

    print(inspection.describe(path))
    if verify:
        inspection.verify(path)
        print("verified: every file is as it was written")


@app.command()
def methods() -> None:
    """List the selection methods."""
    from mi_prun.selection.methods import METHODS

    for name, method in METHODS.items():
        print(f"{name:14} {method.summary}")


def main() -> None:
    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
