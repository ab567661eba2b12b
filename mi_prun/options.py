"""The options that commands of `mi-prun` share: names, help, and the defaults of `settings.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mi_prun.settings import AnalyzeSettings, HealSettings, PlanSettings
from mi_prun.sizes import parse_tokens

ANALYZE = AnalyzeSettings()
PLAN = PlanSettings()
Model = Annotated[str, typer.Argument(metavar="MODEL", help="a model folder, or a hub id (owner/name)")]
Output = Annotated[Path, typer.Option("--output", "-o", help="where to write; must not exist, or be empty")]
Force = Annotated[bool, typer.Option("--force", help="replace the output, whole, if it exists")]
Ratio = Annotated[float | None, typer.Option(help="share of the blocks to drop; k = round(ratio * L)")]
NumBlocks = Annotated[int | None, typer.Option(help="number of blocks to drop")]
ParamRatio = Annotated[float | None, typer.Option(help="share of the parameters that may go; takes the largest k")]
Drop = Annotated[str | None, typer.Option(help="the blocks to drop, by hand: 5,6,9 or 5-7 (0-based)")]
Calibration = Annotated[
    list[str] | None,
    typer.Option(
        "--calibration",
        metavar="TEXT[=WEIGHT]",
        help="text: a .txt, .jsonl or .parquet file, wikitext, alpaca, c4, any hub data set as "
        "name:config:split:field, or `self` (the default), sampled from the model; give it again for more texts",
    ),
]
Tokens = Annotated[
    int,
    typer.Option(
        "--tokens",
        parser=parse_tokens,
        metavar="16k",
        help="tokens that boundary states are taken from; 16 times as many serve to rank sets; for a large model on a "
        "CPU fewer do",
    ),
]
Window = Annotated[
    int | None, typer.Option("--window", help="tokens in a window; default: the model's context, capped")
]
Seed = Annotated[int, typer.Option(help="seed of sampling and ties")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: CUDA where there is one")]
Method = Annotated[str, typer.Option(help="how blocks are chosen; see `mi-prun methods`")]
Rerank = Annotated[
    int | None,
    typer.Option(
        help="proposed sets that are compared by their measured loss; 0: take the first; default: the method's own"
    ),
]
CriterionName = Annotated[
    str | None,
    typer.Option(
        "--criterion",
        help="the loss that sets are compared by: ce (on the text), kl (to the dense model); default: ce, but kl on "
        "text sampled from the model and with --max-kl",
    ),
]
Recall = Annotated[
    float,
    typer.Option(
        help="share of each window, at its end, that repeats its beginning while sets are compared; 0: perplexity "
        "alone decides. It counts where sets are re-ranked (hybrid, NAME with --rerank N), not for greedy-loss and "
        "exhaustive"
    ),
]
NoQuality = Annotated[bool, typer.Option("--no-quality", help="do not measure the choice on held-out text")]
MaxPplIncrease = Annotated[
    str | None,
    typer.Option(metavar="10%", help="drop as many blocks as raise perplexity by at most this (in place of a ratio)"),
]
MaxKl = Annotated[
    float | None,
    typer.Option(metavar="NATS", help="the most blocks whose KL(dense || pruned) a token is no more than this"),
]
StreamBlocks = Annotated[
    bool,
    typer.Option("--stream-blocks", help="have one block in memory at a time, for a model that does not fit"),
]
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
ShardSize = Annotated[
    str | None, typer.Option("--max-shard-size", help="size of a file of written weights: 5GB (the default), 500MB")
]
HEAL = HealSettings()
Healing = Annotated[
    str | None,
    typer.Option(
        "--heal", metavar="10min", help="make up for the dropped blocks: `fit`, 10min, 1h, or tokens: 500k, 1M"
    ),
]
HealTokens = Annotated[
    int | None, typer.Option("--tokens", parser=parse_tokens, metavar="1M", help="number of tokens to train on")
]
HealMinutes = Annotated[float | None, typer.Option(help="minutes that healing may take; default: 10")]
Fit = Annotated[bool, typer.Option("--fit", help="the closed form alone: no gradient, a minute or two on a CPU")]
NoFit = Annotated[bool, typer.Option("--no-fit", help="begin the training without the closed form")]
Train = Annotated[str, typer.Option(help="lora: adapters on all linear layers; all: the blocks whole")]
Rank = Annotated[int, typer.Option(help="rank of the LoRA adapters")]
LearningRate = Annotated[float | None, typer.Option(help="default: 1e-3 of lora, 3e-4 of all")]
BatchTokens = Annotated[
    int | None, typer.Option(help="tokens of one step of the optimizer; default: 512 on a CPU, 1,024 on a GPU")
]
HealWindow = Annotated[int, typer.Option("--window", help="tokens in a window")]
Temperature = Annotated[float, typer.Option(help="temperature of the teacher's and the student's distributions")]
CeShare = Annotated[float, typer.Option(help="share of the loss that is cross-entropy on the text itself, 0 to 1")]
TrainDtype = Annotated[
    str | None,
    typer.Option(help="float32 or bfloat16, of the training's products; default: what is faster here"),
]
CheckpointBlocks = Annotated[
    bool, typer.Option("--checkpoint-blocks", help="less memory, more time: run each block again in the backward pass")
]
ReadAdapter = Annotated[
    Path | None,
    typer.Option("--adapter", help="what `heal --adapter` wrote: merged here, or with --virtual as it is served"),
]
AdapterFile = Annotated[
    Path | None, typer.Option("--adapter", help="write what was learned into this file too, a few megabytes")
]
