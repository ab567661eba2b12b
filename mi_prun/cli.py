"""The `mi-prun` command: parse, call, say what came out. Heavy imports happen inside the commands that need them."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mi_prun.console import new_app, run_app
from mi_prun.errors import UserError
from mi_prun.settings import AnalyzeSettings, PlanSettings
from mi_prun.version import __version__

if TYPE_CHECKING:
    from mi_prun.analysis import Analysis, AnalysisRecord
    from mi_prun.manifest import Manifest
    from mi_prun.model import ModelIdentity
    from mi_prun.plan import Plan

ANALYZE = AnalyzeSettings()
PLAN = PlanSettings()

app = new_app("Find the blocks an LLM can do without, and drop them. Block indices are 0-based everywhere.")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="a model folder, or a hub id (owner/name)")]
Output = Annotated[Path, typer.Option("--output", "-o", help="where to write; must not exist, or be empty")]
Force = Annotated[bool, typer.Option("--force", help="replace the output, whole, if it exists")]
Ratio = Annotated[float | None, typer.Option(help="share of the blocks to drop; k = round(ratio * L)")]
NumBlocks = Annotated[int | None, typer.Option(help="number of blocks to drop")]
ParamRatio = Annotated[float | None, typer.Option(help="share of the parameters that may go; takes the largest k")]
Drop = Annotated[str | None, typer.Option(help="the blocks to drop, by hand: 5,6,9 or 5-7 (0-based)")]
Calibration = Annotated[
    str,
    typer.Option(
        help="text: `self` (sampled from the model), a .txt, .jsonl or .parquet file, wikitext, alpaca, c4, "
        "or any hub data set as name:config:split:field"
    ),
]
Tokens = Annotated[int, typer.Option("--tokens", help="tokens that boundary states are taken from")]
Estimator = Annotated[str, typer.Option(help="of mutual information: gaussian, ksg or renyi")]
Projection = Annotated[int, typer.Option(help="dimensions each boundary state is projected to")]
Noise = Annotated[float, typer.Option(help="variance of the observation noise, in mean variances of a state")]
Window = Annotated[
    int | None, typer.Option("--window", help="tokens in a window; default: the model's context, capped")
]
Seed = Annotated[int, typer.Option(help="of sampling, projection and ties")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: CUDA where there is one")]
Method = Annotated[str, typer.Option(help="how blocks are chosen; see `mi-prun methods`")]
Rerank = Annotated[
    int | None,
    typer.Option(
        help="proposed sets that are compared by their measured loss; 0: take the first; default: the method's own"
    ),
]
NoQuality = Annotated[bool, typer.Option("--no-quality", help="do not measure the choice on held-out text")]
AssumeUniform = Annotated[
    bool,
    typer.Option(
        "--assume-uniform", help="let config fields pass that are not known and may differ from block to block"
    ),
]
For = Annotated[
    str | None,
    typer.Option(
        "--for", help="`draft`: to draft for the dense model; picks the ratio, unless one is given, and how many tokens"
    ),
]
Virtual = Annotated[bool, typer.Option("--virtual", help="write no weights: a folder that points to the dense model")]
ShardSize = Annotated[str, typer.Option("--max-shard-size", help="of the written weights: 5GB, 500MB")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if version:
        print(f"mi-prun {__version__}")
        raise typer.Exit


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
    force: Force = False,
) -> None:
    """One pass over calibration text; it serves every ratio.

    Example: mi-prun analyze meta-llama/Llama-3.1-8B --calibration wikitext -o analysis/
    """
    from mi_prun.analyze import analyze as run
    from mi_prun.model import open_model

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
    record = run(open_model(model), output, settings, force=force)
    say_analysis(record, output)


@app.command()
def plan(
    analysis: Annotated[Path, typer.Argument(metavar="ANALYSIS", help="a folder made by `mi-prun analyze`")],
    output: Output,
    ratio: Ratio = None,
    num_blocks: NumBlocks = None,
    param_ratio: ParamRatio = None,
    drop: Drop = None,
    method: Method = PLAN.method,
    rerank: Rerank = PLAN.rerank,
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
    from mi_prun.analysis import read_analysis
    from mi_prun.files import check_output

    check_output(output, force=force)
    settings = PlanSettings(method, rerank, not no_quality, model, seed, device)
    found = read_analysis(analysis)
    made = (
        make(found, settings, ratio, num_blocks, param_ratio, drop)
        if purpose is None
        else make_draft(found, settings, purpose, ratio, num_blocks, param_ratio, drop)
    )
    made.write(output)
    say_plan(made, output)


@app.command()
def apply(
    model: Model,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="a plan.json made by `mi-prun plan`")],
    output: Output,
    virtual: Virtual = False,
    assume_uniform: AssumeUniform = False,
    max_shard_size: ShardSize = "5GB",
    force: Force = False,
) -> None:
    """Write the checkpoint that has only the kept blocks.

    Example: mi-prun apply meta-llama/Llama-3.1-8B plan.json -o pruned/
    """
    from mi_prun.checkpoint import write_checkpoint
    from mi_prun.model import open_model
    from mi_prun.plan import Plan

    read = Plan.read(plan)
    manifest = write_checkpoint(
        open_model(model),
        read,
        output,
        virtual=virtual,
        max_shard_bytes=parse_size(max_shard_size),
        force=force,
        assume_uniform=assume_uniform,
    )
    say_checkpoint(manifest, output)


@app.command()
def prune(
    model: Model,
    output: Output,
    ratio: Ratio = None,
    num_blocks: NumBlocks = None,
    param_ratio: ParamRatio = None,
    drop: Drop = None,
    calibration: Calibration = ANALYZE.calibration,
    tokens: Tokens = ANALYZE.scoring_tokens,
    window: Window = None,
    estimator: Estimator = ANALYZE.estimator,
    projection: Projection = ANALYZE.projection,
    noise: Noise = ANALYZE.noise,
    method: Method = PLAN.method,
    rerank: Rerank = PLAN.rerank,
    no_quality: NoQuality = False,
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
    from mi_prun.analysis import read_analysis
    from mi_prun.analyze import analyze as run
    from mi_prun.architecture import check_config
    from mi_prun.checkpoint import write_checkpoint
    from mi_prun.files import check_output
    from mi_prun.model import identity_of, open_model
    from mi_prun.selection.methods import method_named

    check_output(output, force=force)
    shard_bytes = parse_size(max_shard_size)
    dense = open_model(model)
    # Refused before the long pass, not after.
    method_named(method)
    count_blocks(identity_of(dense), ratio, num_blocks, param_ratio, drop)
    if not assume_uniform:
        check_config(dense.config)
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
    with tempfile.TemporaryDirectory(prefix="mi-prun-") as folder:
        run(dense, Path(folder) / "analysis", analyze_settings)
        found = read_analysis(Path(folder) / "analysis")
    plan_settings = PlanSettings(method, rerank, not no_quality, model, seed, device)
    made = make(found, plan_settings, ratio, num_blocks, param_ratio, drop)
    manifest = write_checkpoint(
        dense,
        made,
        output,
        virtual=virtual,
        max_shard_bytes=shard_bytes,
        force=force,
        assume_uniform=assume_uniform,
    )
    say_plan(made, None)
    say_checkpoint(manifest, output)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="a pruned folder or a plan.json")],
    verify: Annotated[bool, typer.Option("--verify", help="read every byte and compare it with the manifest")] = False,
) -> None:
    """Say what was dropped, what it cost, and whether the folder is whole.

    Example: mi-prun inspect pruned/ --verify
    """
    from mi_prun import inspection

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


def make(
    analysis: Analysis,
    settings: PlanSettings,
    ratio: float | None,
    num_blocks: int | None,
    param_ratio: float | None,
    drop: str | None,
) -> Plan:
    """The plan that the options ask for."""
    from mi_prun.planning import make_context, make_plan, plan_by_hand

    wanted = count_blocks(analysis.record.dense, ratio, num_blocks, param_ratio, drop)
    context = make_context(analysis, settings)
    return (
        plan_by_hand(context, wanted, settings) if isinstance(wanted, tuple) else make_plan(context, wanted, settings)
    )


def make_draft(
    analysis: Analysis,
    settings: PlanSettings,
    purpose: str,
    ratio: float | None,
    num_blocks: int | None,
    param_ratio: float | None,
    drop: str | None,
) -> Plan:
    """The plan for a draft; says what was found of each ratio that was tried."""
    if purpose != "draft":
        raise UserError(f"--for must be draft, got {purpose!r}")
    if drop is not None:
        raise UserError("--for draft chooses the blocks itself; leave --drop out")
    from mi_prun.draft_choice import plan_draft

    given = any(value is not None for value in (ratio, num_blocks, param_ratio))
    wanted = count_blocks(analysis.record.dense, ratio, num_blocks, param_ratio, None) if given else ()
    made, choices = plan_draft(analysis, settings, [wanted] if isinstance(wanted, int) else ())
    for choice in choices:
        print(choice)
    return made


def count_blocks(
    dense: ModelIdentity, ratio: float | None, num_blocks: int | None, param_ratio: float | None, drop: str | None
) -> int | tuple[int, ...]:
    """The number of blocks to choose, or the blocks themselves where they are named."""
    from mi_prun.ratio import blocks_for_number, blocks_for_param_ratio, blocks_for_ratio, only_one, parse_blocks

    only_one({"--ratio": ratio, "--num-blocks": num_blocks, "--param-ratio": param_ratio, "--drop": drop})
    if ratio is not None:
        return blocks_for_ratio(ratio, dense.num_blocks)
    if num_blocks is not None:
        return blocks_for_number(num_blocks, dense.num_blocks)
    if param_ratio is not None:
        return blocks_for_param_ratio(param_ratio, dense)
    return parse_blocks(drop or "", dense.num_blocks)


def parse_size(text: str) -> int:
    """`5GB`, `500MB`, `10KB` or a number of bytes (powers of ten, as the hub counts)."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "B": 1}
    upper = text.strip().upper()
    unit = next((unit for unit in units if upper.endswith(unit)), "")
    number = upper.removesuffix(unit).strip()
    if not number.isdecimal() or int(number) == 0:
        raise UserError(f"--max-shard-size must be like 5GB or 500MB, got {text!r}")
    return int(number) * units.get(unit, 1)


def say_analysis(record: AnalysisRecord, output: Path) -> None:
    print(
        f"{output}: {record.dense.name}, {record.dense.num_blocks} blocks, {record.dense.num_parameters:,} parameters"
    )
    print(
        f"calibration: {record.calibration.source}, {record.seen_tokens:,} tokens seen (fingerprint "
        f"{record.calibration.fingerprint[:12]})"
    )
    print(
        f"segment costs: {record.estimator} mutual information of {record.projection} dimensions, "
        f"{record.estimated_tokens:,} tokens, {record.dpi_violations} violations of the data processing inequality"
    )


def say_plan(plan: Plan, output: Path | None) -> None:
    if output is not None:
        print(f"{output}: {plan.method} for {plan.dense.name}")
    blocks = f"{len(plan.dropped)} of {plan.dense.num_blocks} blocks ({plan.block_ratio:.1%})"
    parameters = f"{plan.parameters_dropped:,} parameters ({plan.parameter_ratio:.1%})"
    print(f"dropped blocks (0-based): {', '.join(map(str, plan.dropped))}: {blocks}, {parameters}")
    if plan.objective is not None:
        print(
            f"J: {plan.objective.chosen_nats:.4g} nats, least possible {plan.objective.optimum_nats:.4g} "
            f"(gap {plan.objective.gap_nats:.4g}); measured with {plan.forward_passes:.1f} forward passes"
        )
    if plan.quality is not None:
        quality = plan.quality
        print(
            f"perplexity {quality.dense_perplexity:.2f} -> {quality.pruned_perplexity:.2f}, KL(dense || pruned) "
            f"{quality.kl_nats_per_token:.4f} nats/token on {quality.text}: {quality.predicted_tokens:,} tokens, "
            f"{quality.protocol}"
        )


def say_checkpoint(manifest: Manifest, output: Path) -> None:
    print(
        f"{output}: {manifest.weights}, {manifest.weight_bytes / 2**20:,.1f} MiB of weights, "
        f"dense {manifest.dense_weight_bytes / 2**20:,.1f} MiB"
    )


def main() -> None:
    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
