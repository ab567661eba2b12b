"""The `mi-prun` command: parse, call, say what came out. Heavy imports happen inside the commands that need them."""

from __future__ import annotations

import os
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from mi_prun.console import new_app, run_app
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
    Estimator,
    Fit,
    For,
    Force,
    Healing,
    HealMinutes,
    HealText,
    HealTokens,
    HealWindow,
    LearningRate,
    MaxKl,
    MaxPplIncrease,
    Method,
    Model,
    NoFit,
    Noise,
    NoQuality,
    NumBlocks,
    Output,
    ParamRatio,
    Projection,
    Rank,
    Ratio,
    ReadAdapter,
    Rerank,
    Seed,
    ShardSize,
    StreamBlocks,
    Temperature,
    Tokens,
    Train,
    Virtual,
    Window,
)
from mi_prun.settings import SELF, AnalyzeSettings, HealSettings, PlanSettings
from mi_prun.version import __version__

DEFAULT_MINUTES = 10.0  # of `heal`

app = new_app("Find the blocks an LLM can do without, and drop them. Block indices are 0-based everywhere.")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="print the version")] = False
) -> None:
    if version:
        print(f"mi-prun {__version__}")
        raise typer.Exit
    if context.invoked_subcommand != "analyze" and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(f"mi-prun {context.invoked_subcommand} runs as one process; only analyze shares its work")


@app.command()
def analyze(
    model: Model,
    output: Output,
    calibration: Calibration = ANALYZE.calibration,
    tokens: Tokens = ANALYZE.scoring_tokens,
    window: Window = None,
    estimator: Estimator = ANALYZE.estimator,
    projection: Projection = ANALYZE.projection,
    noise: Noise = ANALYZE.noise,
    seed: Seed = ANALYZE.seed,
    device: Device = None,
    stream_blocks: StreamBlocks = False,
    force: Force = False,
) -> None:
    """One pass over calibration text; it serves every ratio.

    Example: mi-prun analyze meta-llama/Llama-3.1-8B --calibration wikitext -o analysis/
    """
    from mi_prun import summary
    from mi_prun.analysis.analyze import analyze as run
    from mi_prun.model.model_folder import open_model

    settings = AnalyzeSettings(
        calibration=calibration,
        scoring_tokens=tokens,
        window_tokens=window,
        estimator=estimator,
        projection=projection,
        noise=noise,
        seed=seed,
        device=device,
        stream_blocks=stream_blocks,
    )
    record = run(open_model(model), output, settings, force=force)
    if record is not None:  # the other ranks of torchrun have nothing to say
        summary.analysis(record, output)


@app.command()
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
    purpose: For = None,
    no_quality: NoQuality = False,
    model: Annotated[str | None, typer.Option(help="the dense model, if it is not where the analysis found it")] = None,
    seed: Seed = ANALYZE.seed,
    device: Device = None,
    force: Force = False,
) -> None:
    """Choose the blocks of one ratio: milliseconds, or as many passes as the re-ranking makes.

    Example: mi-prun plan analysis/ --ratio 0.25 -o plan.json
    """
    from mi_prun import summary
    from mi_prun.analysis.analysis import read_analysis
    from mi_prun.files import check_output
    from mi_prun.plan.ratio import Amount
    from mi_prun.planning.draft_choice import draft_for
    from mi_prun.planning.planning import make_context, plan_for

    check_output(output, force=force, folder=False)
    settings = PlanSettings(method, rerank, not no_quality, model, seed, device, criterion)
    found = read_analysis(analysis)
    amount = Amount(ratio, num_blocks, param_ratio, drop, max_ppl_increase, max_kl)
    made = (
        plan_for(make_context(found, settings), amount, settings)
        if purpose is None
        else draft_for(found, settings, purpose, amount)
    )
    made.write(output)
    summary.plan(made, output)


@app.command()
def apply(
    model: Model,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="a plan.json made by `mi-prun plan`")],
    output: Output,
    virtual: Virtual = False,
    adapter: ReadAdapter = None,
    assume_uniform: AssumeUniform = False,
    max_shard_size: ShardSize = "5GB",
    force: Force = False,
) -> None:
    """Write the checkpoint that has only the kept blocks.

    Example: mi-prun apply meta-llama/Llama-3.1-8B plan.json -o pruned/
    """
    from mi_prun import summary
    from mi_prun.checkpoint.checkpoint import write_checkpoint
    from mi_prun.files import check_output
    from mi_prun.plan.plan import Plan, open_dense

    check_output(output, force=force)  # before a model is fetched
    shard_bytes = parse_size(max_shard_size)
    read = Plan.read(plan)
    healed = None
    if adapter is not None:
        from mi_prun.recovery.adapter import healed_by

        if not virtual:
            raise UserError("--adapter goes with --virtual; a folder with weights of its own is written by `heal`")
        healed = healed_by(adapter, read)
    manifest = write_checkpoint(
        open_dense(model, read),
        read,
        output,
        virtual=virtual,
        healed=healed,
        max_shard_bytes=shard_bytes,
        force=force,
        assume_uniform=assume_uniform,
    )
    summary.checkpoint(manifest, output)


@app.command()
def prune(
    model: Model,
    output: Output,
    ratio: Ratio = None,
    num_blocks: NumBlocks = None,
    param_ratio: ParamRatio = None,
    drop: Drop = None,
    max_ppl_increase: MaxPplIncrease = None,
    max_kl: MaxKl = None,
    calibration: Calibration = ANALYZE.calibration,
    tokens: Tokens = ANALYZE.scoring_tokens,
    window: Window = None,
    estimator: Estimator = ANALYZE.estimator,
    projection: Projection = ANALYZE.projection,
    noise: Noise = ANALYZE.noise,
    method: Method = PLAN.method,
    rerank: Rerank = PLAN.rerank,
    criterion: CriterionName = PLAN.criterion,
    no_quality: NoQuality = False,
    heal: Healing = None,
    virtual: Virtual = False,
    assume_uniform: AssumeUniform = False,
    max_shard_size: ShardSize = "5GB",
    seed: Seed = ANALYZE.seed,
    device: Device = None,
    force: Force = False,
) -> None:
    """Analyze, plan and apply in one step.

    Example: mi-prun prune meta-llama/Llama-3.1-8B --ratio 0.25 -o pruned/
    """
    from mi_prun import summary
    from mi_prun.analysis.analysis import read_analysis
    from mi_prun.analysis.analyze import analyze as run
    from mi_prun.architecture.architecture import check_config
    from mi_prun.checkpoint.checkpoint import check_apart, write_checkpoint
    from mi_prun.files import check_output
    from mi_prun.model.block_model import load_on
    from mi_prun.model.model_folder import check_quantization_beside, identity_of, open_model
    from mi_prun.plan.ratio import Amount
    from mi_prun.planning.limit import parse_limit
    from mi_prun.planning.planning import check_settings, make_context, plan_for
    from mi_prun.selection.methods import check_possible

    check_output(output, force=force)
    shard_bytes = parse_size(max_shard_size)
    healing = None
    if heal is not None:
        from mi_prun.recovery.amount import parse_heal

        healing = parse_heal(
            heal,
            HealSettings(sources=(calibration,), window_tokens=window or HEAL.window_tokens, seed=seed, device=device),
        )
        if virtual:
            raise UserError("--heal writes weights of its own: without --virtual")
    dense = open_model(model)
    # Refused before the long pass, not after.
    check_apart(dense.path, output)
    check_quantization_beside(dense)
    plan_settings = PlanSettings(method, rerank, not no_quality, model, seed, device, criterion)
    check_settings(plan_settings)
    amount = Amount(ratio, num_blocks, param_ratio, drop, max_ppl_increase, max_kl)
    wanted = amount.blocks(identity_of(dense))
    if wanted is None:
        parse_limit(max_ppl_increase, max_kl)
    if not assume_uniform:
        check_config(dense.config)
    check_possible(dense.config, method, wanted)
    analyze_settings = AnalyzeSettings(
        calibration=calibration,
        scoring_tokens=tokens,
        window_tokens=window,
        estimator=estimator,
        projection=projection,
        noise=noise,
        seed=seed,
        device=device,
    )
    load = cache(lambda: load_on(dense, device))  # for the pass and for what is measured
    with tempfile.TemporaryDirectory(prefix="mi-prun-") as folder:
        run(dense, Path(folder) / "analysis", analyze_settings, load=load)
        found = read_analysis(Path(folder) / "analysis")
    made = plan_for(make_context(found, plan_settings, load), amount, plan_settings)
    if healing is not None:
        from mi_prun.recovery.heal import heal as heal_model
        from mi_prun.recovery.healing_text import SampledText

        manifest = heal_model(
            dense,
            made,
            output,
            healing,
            load=load,
            sampled=SampledText.of(found) if calibration == SELF else None,
            max_shard_bytes=shard_bytes,
            force=force,
            assume_uniform=assume_uniform,
        )
        summary.plan(made, None)
        summary.healing(manifest, output)
        return
    load.cache_clear()  # writing reads the files
    manifest = write_checkpoint(
        dense,
        made,
        output,
        virtual=virtual,
        max_shard_bytes=shard_bytes,
        force=force,
        assume_uniform=assume_uniform,
    )
    summary.plan(made, None)
    summary.checkpoint(manifest, output)


@app.command()
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
    calibration: HealText = None,
    window: HealWindow = HEAL.window_tokens,
    batch_tokens: BatchTokens = HEAL.batch_tokens,
    temperature: Temperature = HEAL.temperature,
    ce_share: CeShare = HEAL.ce_share,
    checkpoint_blocks: CheckpointBlocks = False,
    adapter: AdapterFile = None,
    model: Annotated[str | None, typer.Option(help="the dense model, if it is not where the pruned one says")] = None,
    seed: Seed = HEAL.seed,
    device: Device = None,
    force: Force = False,
) -> None:
    """Make up for the dropped blocks: the dense model teaches the kept ones, from one copy of the weights.

    Example: mi-prun heal pruned/ --minutes 10 --calibration wiki.txt --calibration books.txt -o healed/
    """
    from mi_prun import summary
    from mi_prun.recovery.amount import parse_tokens
    from mi_prun.recovery.heal import heal_folder

    if fit and (no_fit or tokens is not None or minutes is not None):
        raise UserError("--fit is the closed form alone: without --no-fit, --tokens and --minutes")
    if train == "none":
        raise UserError("--train must be lora or all; --fit is the closed form alone")
    if tokens is not None and minutes is not None:
        raise UserError("give --tokens or --minutes, not both")
    count = None if tokens is None else parse_tokens(tokens)
    settings = HealSettings(
        sources=tuple(calibration or HEAL.sources),
        fit=not no_fit,
        train="none" if fit else train,
        tokens=count,
        minutes=None if fit or count is not None else (DEFAULT_MINUTES if minutes is None else minutes),
        rank=rank,
        learning_rate=learning_rate,
        batch_tokens=batch_tokens,
        forward_tokens=min(batch_tokens, HEAL.forward_tokens),
        window_tokens=window,
        temperature=temperature,
        ce_share=ce_share,
        checkpoint_blocks=checkpoint_blocks,
        seed=seed,
        device=device,
    )
    summary.healing(heal_folder(pruned, output, settings, model=model, adapter=adapter, force=force), output)


@app.command()
def compare(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder; an interrupted comparison goes on in it")],
    ratios: Annotated[str, typer.Option(help="shares of the blocks to drop")] = ".1,.25,.4",
    methods: Annotated[
        str, typer.Option(help="see `mi-prun methods`; NAME:N compares N sets by their measured loss")
    ] = "hybrid,mi-prun:0,mi-prun:24,bi,angular,greedy-loss,tail-but-last,random",
    calibration: Calibration = ANALYZE.calibration,
    tokens: Tokens = ANALYZE.scoring_tokens,
    window: Window = None,
    estimator: Estimator = ANALYZE.estimator,
    projection: Projection = ANALYZE.projection,
    noise: Noise = ANALYZE.noise,
    seed: Seed = ANALYZE.seed,
    device: Device = None,
) -> None:
    """Methods x ratios on the same held-out text: tables, a plot, and the heat map of segment costs.

    Example: mi-prun compare meta-llama/Llama-3.1-8B --ratios .1,.25,.4 --methods hybrid,bi,greedy-loss -o compared/
    """
    from mi_prun.comparison.comparison import compare_model, parse_methods
    from mi_prun.model.model_folder import open_model

    specs = parse_methods(methods)
    settings = AnalyzeSettings(
        calibration=calibration,
        scoring_tokens=tokens,
        window_tokens=window,
        estimator=estimator,
        projection=projection,
        noise=noise,
        seed=seed,
        device=device,
    )
    print(compare_model(open_model(model), specs, ratios, settings, output))


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="a pruned folder or a plan.json")],
    verify: Annotated[bool, typer.Option("--verify", help="read every byte and compare it with the manifest")] = False,
) -> None:
    """Say what was dropped, what it cost, and whether the folder is whole.

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


def parse_size(text: str) -> int:
    """`5GB`, `500MB`, `10KB` or a number of bytes (powers of ten, as the hub counts)."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "B": 1}
    upper = text.strip().upper()
    unit = next((unit for unit in units if upper.endswith(unit)), "")
    number = upper.removesuffix(unit).strip()
    if not number.isdecimal() or int(number) == 0:
        raise UserError(f"--max-shard-size must be like 5GB or 500MB, got {text!r}")
    return int(number) * units.get(unit, 1)


def main() -> None:
    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
