"""Measure what the one pass costs: its time over a plain forward's, planning for 80 blocks, memory with streamed
blocks.

    python -m bench.studies.analysis_cost   # CPU: 24 blocks of hidden 896; CUDA: Llama-3.1-8B
    python -m bench.studies.analysis_cost --stream-gigabytes 4   # the memory of --stream-blocks too

Weights and tokens are random. The pass is all that `analyze` does after text and model are there: hooks, projections,
cosines, every segment's mutual information, angles. The plain forward is the same model's, on the same tokens, dtype
and batches; both compute one position's logits. They take turns. The last line is JSON, with the medians and their
ratio.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.records.machine import commit, this_machine, versions
from bench.studies.writer import HIDDEN, VOCABULARY, block_shapes, config_of
from mi_prun.analysis.boundaries import collect, pair_angles, sample_tokens
from mi_prun.analysis.estimators import make_estimator, projection_for
from mi_prun.analysis.mutual_information import segment_costs
from mi_prun.console import run_command
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import pick_device, pick_dtype
from mi_prun.selection.fast_block_select import fast_block_select
from mi_prun.selection.objective import best_sets
from mi_prun.settings import AnalyzeSettings

# Fields of a Llama config, and how many tokens are run.
SHAPES: dict[str, tuple[dict[str, int], int, int]] = {
    "cpu": (
        {
            "hidden_size": 896,
            "intermediate_size": 4_864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 32_000,
        },
        4_096,
        512,
    ),
    "cuda": (
        {
            "hidden_size": 4_096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128_256,
        },
        65_536,
        2_048,
    ),
}
PLAN_BLOCKS = 80

STREAM = """
import json, sys
from pathlib import Path
import torch, transformers, safetensors.torch
from mi_prun.analysis.analyze import analyze
from mi_prun.model.model_folder import open_model
from mi_prun.settings import AnalyzeSettings
def peak_rss_mb():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
import mi_prun.analysis.streamed_model
transformers.AutoModelForCausalLM, transformers.AutoTokenizer, transformers.LlamaForCausalLM
before = peak_rss_mb()
dense, text, out, window, tokens = sys.argv[1:]
settings = AnalyzeSettings(
    sources=(text,), window_tokens=int(window), scoring_tokens=int(tokens), stream_blocks=True, device="cpu"
)
analyze(open_model(dense), Path(out), settings)
print(json.dumps({"interpreter_rss_mb": before, "peak_rss_mb": peak_rss_mb()}))
"""


def random_model(fields: dict[str, int], device: torch.device, dtype: torch.dtype) -> BlockModel:
    """Make a Llama model with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("llama", tie_word_embeddings=True, **fields)
    with device:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return BlockModel(model, "model.layers")


def the_pass(model: BlockModel, windows: Tensor, batch_tokens: int) -> dict[str, float]:
    """Do what `analyze` does once text and model are there, with its own defaults. Return the seconds of its parts."""
    settings = AnalyzeSettings()
    estimator = make_estimator(settings.estimator)
    ends = [time.perf_counter()]
    sample = sample_tokens(windows, estimator.max_tokens, settings.seed)
    ends.append(time.perf_counter())
    seen = collect(
        model,
        windows,
        sample=sample,
        projection=projection_for(estimator, settings.projection),
        seed=settings.seed,
        batch_tokens=batch_tokens,
    )
    ends.append(time.perf_counter())
    seen = seen.to(model.device)
    segment_costs(estimator.of(seen, settings.seed))
    ends.append(time.perf_counter())
    pair_angles(seen.projections)
    ends.append(time.perf_counter())
    parts = ("sample", "forward with hooks", "mutual information", "angles")
    return {part: end - begun for part, begun, end in zip(parts, ends[:-1], ends[1:], strict=True)}


@torch.inference_mode()
def plain_forward(model: BlockModel, windows: Tensor, batch_tokens: int) -> None:
    """Run the model over the windows, without hooks."""
    for tokens in torch.split(windows, max(1, batch_tokens // windows.shape[1])):
        model.model(input_ids=tokens.to(model.device), use_cache=False, logits_to_keep=1)


def seconds(work: Callable[[], None], device: torch.device) -> float:
    """Return how long `work` takes, with what it queued on the device."""
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def pass_cost(rounds: int, batch_tokens: int) -> dict[str, Any]:
    """Time the pass and a plain forward in turn."""
    device = pick_device()
    dtype = pick_dtype(device)
    fields, tokens, window = SHAPES[device.type]
    model = random_model(fields, device, dtype)
    windows = torch.randint(0, fields["vocab_size"], (tokens // window, window))
    ours, plain, parts = [], [], []
    for number in range(rounds + 1):  # the first is not counted
        pair = (
            seconds(lambda: parts.append(the_pass(model, windows, batch_tokens)), device),
            seconds(lambda: plain_forward(model, windows, batch_tokens), device),
        )
        print(f"round {number}: pass {pair[0]:.2f} s, plain forward {pair[1]:.2f} s", file=sys.stderr, flush=True)
        if number:
            ours.append(pair[0])
            plain.append(pair[1])
    return {
        "shape": fields,
        "tokens": tokens,
        "window_tokens": window,
        "batch_tokens": batch_tokens,
        "dtype": str(dtype).removeprefix("torch."),
        "pass_seconds": ours,
        "plain_forward_seconds": plain,
        "median_seconds_of_parts": {part: statistics.median(p[part] for p in parts[1:]) for part in parts[0]},
        "pass_over_plain_forward": statistics.median(ours) / statistics.median(plain),
        "pass_over_plain_forward_pairs": [a / b for a, b in zip(ours, plain, strict=True)],
    }


def plan_cost() -> dict[str, Any]:
    """Time Fast-Block-Select for every k of 80 blocks on random costs, beside the exact minimum of J."""
    cost = np.triu(np.random.default_rng(0).random((PLAN_BLOCKS + 1, PLAN_BLOCKS + 1)), 1).cumsum(1)
    taken, gaps = [], []
    for k in range(1, PLAN_BLOCKS):
        begun = time.perf_counter()
        search = fast_block_select(cost, k)
        best = best_sets(cost, k)[0][0]
        taken.append((time.perf_counter() - begun) * 1e3)
        gaps.append(search.objectives[-1] - best)
    return {"blocks": PLAN_BLOCKS, "median_ms": statistics.median(taken), "most_ms": max(taken), "most_gap": max(gaps)}


def stream_memory(gigabytes: float) -> dict[str, Any]:
    """Measure the peak memory of an analysis with one block at a time, in a process of its own, on a random bf16
    checkpoint.
    """
    from safetensors.torch import save_file

    reference = Path(__file__).parents[1] / "reference"
    with tempfile.TemporaryDirectory() as name:
        dense = Path(name) / "dense"
        dense.mkdir()
        block_bytes = sum(2 * int(np.prod(shape)) for shape in block_shapes(0).values())
        blocks = max(2, round(gigabytes * 1e9 / block_bytes))
        parts = [{"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}]
        parts += [block_shapes(block) for block in range(blocks)]
        generator = torch.Generator().manual_seed(0)
        weight_map: dict[str, str] = {}
        for number, shapes in enumerate(parts):
            file = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
            tensors = {
                key: (
                    torch.randn(shape, generator=generator) * 0.02 if len(shape) > 1 else torch.ones(shape)
                ).bfloat16()
                for key, shape in shapes.items()
            }
            save_file(tensors, dense / file, {"format": "pt"})
            weight_map |= dict.fromkeys(tensors, file)
        (dense / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (dense / "config.json").write_text(json.dumps(config_of(blocks)))
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(reference / file, dense / file)
        text = Path(name) / "text.txt"
        text.write_text(
            " ".join(f"In the year {n} there were {n * n % 97} ships in the harbour." for n in range(1_000))
        )
        window, tokens = 256, 2_048
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", STREAM, str(dense), str(text), str(Path(name) / "a"), str(window), str(tokens)],
            check=True,
            capture_output=True,
            text=True,
        )
        memory: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return {
            "checkpoint_bytes": sum(file.stat().st_size for file in dense.glob("*.safetensors")),
            "blocks": blocks,
            "block_bytes": block_bytes,
            "tokens": tokens,
            "seconds": time.perf_counter() - begun,
            **memory,
            "over_interpreter_mb": memory["peak_rss_mb"] - memory["interpreter_rss_mb"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-tokens", type=int, default=4_096)
    parser.add_argument("--stream-gigabytes", type=float, help="measure --stream-blocks on a checkpoint of this size")
    options = parser.parse_args()

    def run() -> None:
        record: dict[str, Any] = {
            "bench": "analysis_cost",
            "date_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": this_machine().model_dump(),
            "versions": versions(),
            "commit": commit(),
            "plan": plan_cost(),
        }
        if options.stream_gigabytes:
            record["stream"] = stream_memory(options.stream_gigabytes)
        if options.rounds:
            record["pass"] = pass_cost(options.rounds, options.batch_tokens)
        print(json.dumps(record))

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
