"""Measure what the loader costs: a pruned folder by vLLM's own load format and by ours, and the same blocks virtually.

    python -m bench.studies.loader_cost -o bench/published/loader/cpu.json

One process does everything in turn, A B C A B C: another load on the machine meets all of them alike. Load is vLLM's
whole `load_model` (the model built, its weights read and processed), with the files in the page cache (warm) or evicted
from it (cold). Generate is the same prompts to two engines on the same folder. The record has every round, the medians,
and the median of the rounds' ratios. On a noisy machine read that one, by processor time where other loads take turns.
The model is random: a Llama shape, 0.4 GB.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from bench.records.machine import commit, this_machine, versions
from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.files import write_text
from mi_prun.model.model_folder import open_model
from mi_prun.plan.plan import Plan, kept_blocks

SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 8192,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
DROPPED = (3, 6, 9, 12)
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # One thread: of two that are bound to cores each waits for the other, whatever else that one's core is given to do.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
ENGINE: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "dtype": "bfloat16",
    "enforce_eager": True,
    "max_model_len": 256,
    "enable_prefix_caching": False,
}
GPU_MEMORY_SHARE = 0.2  # engines stand side by side
PROMPTS, PROMPT_TOKENS, OUTPUT_TOKENS = 8, 64, 16

Seconds = tuple[float, float]  # of the clock, and of this process's processors: other loads do not enter the second
Variants = Mapping[str, Callable[[], Seconds]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5, help="of generating; loads are done three times as often")
    own = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory(prefix="mi-prun-loader-cost-") as folder:
        written, virtual = make_folders(Path(folder))
        measured = {
            "generate": measure_speed(written, own.rounds),
            "load_warm": measure_load(written, virtual, 3 * own.rounds, cold=False),
            "load_cold": measure_load(written, virtual, 3 * own.rounds, cold=True),
        }
        record = {
            "what": "vLLM's own load format against mi_prun, on one materialised folder; a virtual folder against it",
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "shape": SHAPE,
            "threads": 1,
            "dropped": list(DROPPED),
            "output_tokens_of_generate": PROMPTS * OUTPUT_TOKENS,
            "kept_bytes": open_model(written).weight_bytes,
            **measured,
            "machine": this_machine().model_dump(),
            "versions": versions(),
            "commit": commit(),
        }
    own.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(own.output, json.dumps(record, indent=2) + "\n")
    print(
        json.dumps(
            {
                name: {clock: by_clock["median_ratio"] for clock, by_clock in figures.items()}
                for name, figures in measured.items()
            }
        )
    )


def make_folders(folder: Path) -> tuple[Path, Path]:
    """Make a random model without some blocks: written, and virtual."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE), dtype=torch.bfloat16).save_pretrained(
        folder / "dense"
    )
    dense = open_model(folder / "dense")
    identity = dense.identity
    kept = kept_blocks(identity.num_blocks, DROPPED)
    plan = Plan(dense=identity, dropped=DROPPED, kept=kept, method="by-hand")
    for name in ("written", "virtual"):
        write_checkpoint(dense, plan, folder / name, virtual=name == "virtual")
    return folder / "written", folder / "virtual"


def engine_options() -> dict[str, Any]:
    """Return the engine's options. On a GPU vLLM would take nearly all of it for one engine."""
    import torch

    return ENGINE | ({"gpu_memory_utilization": GPU_MEMORY_SHARE} if torch.cuda.is_available() else {})


def in_turn(variants: Variants, rounds: int) -> dict[str, Any]:
    """Run each variant once a round, after one round that is not counted. Ratios are of seconds: less is faster."""
    for variant in variants.values():
        variant()
    timings: dict[str, list[Seconds]] = {name: [] for name in variants}
    for number in range(rounds):
        # The order turns, so that none is always behind the same one.
        names = list(variants)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            timings[name].append(variants[name]())
    result: dict[str, Any] = {}
    for place, clock in enumerate(("wall_s", "processor_s")):
        seconds = {name: [round(pair[place], 4) for pair in pairs] for name, pairs in timings.items()}
        result[clock] = {
            "rounds": seconds,
            "median": {name: round(median(values), 4) for name, values in seconds.items()},
            "median_ratio": {
                f"{name} / {base}": round(median(a / b for a, b in zip(seconds[name], seconds[base], strict=True)), 4)
                for base, name in zip(list(variants)[:-1], list(variants)[1:], strict=True)
            },
        }
    return result


def timed(work: Callable[[], object]) -> Seconds:
    """Return how long `work` takes, by the clock and by this process's processors."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def measure_speed(written: Path, rounds: int) -> dict[str, Any]:
    """Time two engines side by side in this process, asked in turn."""
    from vllm import LLM, SamplingParams

    sampling = SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0, ignore_eos=True, detokenize=False)
    prompts = [
        {"prompt_token_ids": [(7 * place + 13 * row) % 8_000 for place in range(PROMPT_TOKENS)]}
        for row in range(PROMPTS)
    ]
    engines = {name: LLM(str(written), load_format=name, **engine_options()) for name in ("auto", "mi_prun")}

    def ask(engine: Any) -> Callable[[], Seconds]:
        return lambda: timed(lambda: engine.generate(prompts, sampling, use_tqdm=False))

    result = in_turn({name: ask(engine) for name, engine in engines.items()}, rounds)
    engines.clear()
    gc.collect()
    return result


def measure_load(written: Path, virtual: Path, rounds: int, *, cold: bool) -> dict[str, Any]:
    """Time `load_model`. The process group that vLLM needs is there from the engines before."""

    def load(folder: Path, load_format: str) -> Callable[[], Seconds]:
        def once() -> Seconds:
            from vllm.config import set_current_vllm_config
            from vllm.engine.arg_utils import EngineArgs
            from vllm.model_executor.model_loader import get_model

            config = EngineArgs(model=str(folder), load_format=load_format, **engine_options()).create_engine_config()
            if cold:
                evict(written.parent)
            with set_current_vllm_config(config), one_process():
                seconds = timed(lambda: get_model(vllm_config=config))
            gc.collect()
            return seconds

        return once

    variants = {
        "auto": load(written, "auto"),
        "mi_prun": load(written, "mi_prun"),
        "virtual": load(virtual, "mi_prun"),
    }
    return in_turn(variants, rounds)


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """Make vLLM's groups of ranks, of this process alone, unless they are there."""
    from vllm.distributed import parallel_state

    if not parallel_state.model_parallel_is_initialized():
        with tempfile.NamedTemporaryFile() as file:
            parallel_state.init_distributed_environment(1, 0, f"file://{file.name}-init", 0, "gloo")
            parallel_state.ensure_model_parallel_initialized(1, 1)
    yield


def evict(folder: Path) -> None:
    """Have the next read of each file of weights go to the disk."""
    for file in folder.rglob("*.safetensors"):
        with file.open("rb") as source:
            os.fsync(source.fileno())
            os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
