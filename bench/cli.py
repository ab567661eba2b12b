"""The `mi-prun-bench` command."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.run import RunSettings
from mi_prun.console import new_app, run_app
from mi_prun.errors import UserError

DEFAULT = RunSettings()

app = new_app("Measure dense against pruned models: speed, latency, memory, quality.")


@app.callback()
def root() -> None:
    """Measure dense against pruned models: speed, latency, memory, quality."""


@app.command()
def run(
    dense: Annotated[str, typer.Option(help="the dense model: a folder or a hub id")],
    output: Annotated[Path, typer.Option("--output", "-o", help="results folder; records are appended")],
    pruned: Annotated[
        list[str] | None, typer.Option(help="a folder that `mi-prun apply` wrote; may be repeated")
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar="[PRUNED]...", help="more pruned folders")] = None,
    input_tokens: Annotated[int, typer.Option(help="tokens in a prompt")] = DEFAULT.input_tokens,
    output_tokens: Annotated[int, typer.Option(help="tokens in an answer")] = DEFAULT.output_tokens,
    prompts: Annotated[int, typer.Option(help="requests in a round")] = DEFAULT.prompts,
    concurrency: Annotated[int, typer.Option(help="requests in flight at most")] = DEFAULT.concurrency,
    rounds: Annotated[int, typer.Option(help="rounds; medians are recorded")] = DEFAULT.rounds,
    seed: Annotated[int, typer.Option(help="of the prompts")] = DEFAULT.seed,
    quality_text: Annotated[
        str | None, typer.Option(help="measure each checkpoint on this text too; default: what its plan measured")
    ] = None,
    serve_flags: Annotated[str, typer.Option(help="flags for mi-prun-serve, in one string")] = "",
) -> None:
    """Serve each model in turn, load it, and append a record of each.

    Example: mi-prun-bench run --dense meta-llama/Llama-3.1-8B --pruned p12/ p25/ -o results/
    """
    from bench.run import run as measure
    from bench.summary import summary

    settings = RunSettings(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        prompts=prompts,
        concurrency=concurrency,
        rounds=rounds,
        seed=seed,
        quality_text=quality_text,
        serve_flags=tuple(shlex.split(serve_flags)),
    )
    folders = [*(pruned or []), *(more or [])]
    if not folders:
        raise UserError("--pruned is missing: name at least one folder that `mi-prun apply` wrote")
    records = measure(dense, folders, output, settings)
    rows = summary(records)
    for row in rows:
        print(row.line())
    print(json.dumps({"run": records[0].run, "models": [row.model_dump() for row in rows]}))


@app.command()
def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="a folder that `mi-prun-bench run` wrote to")],
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


@app.command()
def perplexity(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a model folder, or a hub id")],
    text: Annotated[str, typer.Option(help="a file or data set, as `mi-prun analyze --calibration` takes it")],
    tokens: Annotated[int, typer.Option(help="tokens that are predicted, about")] = 65_536,
    window: Annotated[int | None, typer.Option(help="tokens in a window; default: the model's context, capped")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda; default: CUDA where there is one")] = None,
) -> None:
    """Perplexity of one model on a text.

    Example: mi-prun-bench perplexity bench/reference --text held-out.txt
    """
    from bench.perplexity import measure_perplexity

    found = measure_perplexity(model, text, tokens=tokens, window_tokens=window, device=device)
    print(f"perplexity {found.perplexity:.2f} on {found.text}: {found.predicted_tokens:,} tokens, {found.protocol}")
    print(found.model_dump_json())


def main() -> None:
    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
