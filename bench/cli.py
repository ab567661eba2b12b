"""The `mi-prun-bench` command."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.run import RunSettings
from bench.train_settings import TrainSettings
from mi_prun.console import new_app, run_app
from mi_prun.errors import UserError

DEFAULT = RunSettings()
TRAIN = TrainSettings()

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
def draft(
    dense: Annotated[str, typer.Option(help="the dense model: a folder or a hub id")],
    drafts: Annotated[list[Path], typer.Argument(metavar="DRAFT...", help="plan.json files, or pruned folders")],
    output: Annotated[Path, typer.Option("--output", "-o", help="results folder; records are appended")],
    text: Annotated[str, typer.Option(help="what prompts are pieces of: as `mi-prun analyze --calibration` takes it")],
    draft_tokens: Annotated[
        int | None, typer.Option(help="drafted at a time; default: what the plan says, or mi-prun-serve's own")
    ] = None,
    input_tokens: Annotated[int, typer.Option(help="tokens in a prompt")] = DEFAULT.input_tokens,
    output_tokens: Annotated[int, typer.Option(help="tokens in an answer")] = DEFAULT.output_tokens,
    prompts: Annotated[int, typer.Option(help="requests in a round")] = DEFAULT.prompts,
    concurrency: Annotated[int, typer.Option(help="requests in flight at most")] = DEFAULT.concurrency,
    rounds: Annotated[int, typer.Option(help="rounds; medians are recorded")] = DEFAULT.rounds,
    serve_flags: Annotated[str, typer.Option(help="flags for mi-prun-serve, in one string")] = "",
) -> None:
    """Serve the dense model alone, then with each draft: acceptance rate, accepted length and speed.

    Example: mi-prun-bench draft --dense meta-llama/Llama-3.1-8B p25.json p50.json --text wikitext -o results/
    """
    from bench.draft import run_drafts

    settings = RunSettings(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        prompts=prompts,
        concurrency=concurrency,
        rounds=rounds,
        serve_flags=tuple(shlex.split(serve_flags)),
    )
    records = run_drafts(dense, drafts, output, settings, text, draft_tokens)
    for record in records:
        print(record.line(records[0]))
    print(json.dumps({"run": records[0].run, "records": len(records)}))


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
    tokens: Annotated[int, typer.Option(help="tokens to see in all")] = TRAIN.tokens,
    batch_tokens: Annotated[int, typer.Option(help="tokens in a step")] = TRAIN.batch_tokens,
    learning_rate: Annotated[float, typer.Option(help="highest, after the warm-up")] = TRAIN.learning_rate,
    seed: Annotated[int, typer.Option(help="of the weights and the order of the text")] = TRAIN.seed,
    device: Annotated[str | None, typer.Option(help="cpu, cuda; default: CUDA where there is one")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the output, whole, if it exists")] = False,
) -> None:
    """Train a small model from text; the same command goes on where an interrupted one stopped.

    Example: mi-prun-bench train books.txt -o model/ --blocks 12 --tokens 11000000
    """
    from bench.train import train as run_training

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


def main() -> None:
    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
