"""Find where a decode step's time goes: what a block costs, and what is there whatever the number of blocks.

    python -m bench.studies.step_cost --shape qwen2.5-0.5b-32k --blocks 24,18,12,6 -o bench/published/sweep/step.json

One process holds an engine for each number of blocks. They are asked in turn, in an order that turns with the rounds. A
step's time is that of an answer of STEPS + 1 tokens less that of an answer of one, over STEPS. A line through the
medians, `step = rest + blocks x block`, parts what dropping blocks can save from what it cannot. The bytes of a block
over its time are the rate at which weights are read. At that rate the head takes its share of `rest`; the remainder is
the engine's own: scheduling, sampling, preparing the inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.models.roofline import decode
from bench.models.shape import TOKENIZER, open_shape, spread, write_shape
from bench.models.weights import weights_of_config
from bench.records.machine import commit, this_machine, versions
from bench.studies.loader_cost import ENVIRONMENT
from mi_prun.architecture.architecture import num_blocks
from mi_prun.console import run_command
from mi_prun.errors import UserError
from mi_prun.files import write_text
from mi_prun.plan.plan import kept_blocks

STEPS, PROMPT_TOKENS = 32, 64


def measure(name: str, counts: list[int], rounds: int, dtype: str) -> dict[str, Any]:
    """Return the milliseconds of a decode step at batch 1 by number of blocks, by round, and the line through them."""
    config = open_shape(name)
    total = num_blocks(config)
    if wrong := [count for count in counts if not 1 <= count <= total]:
        raise UserError(f"--blocks: {name} has 1 to {total} blocks, got {wrong[0]}")
    from vllm import LLM, SamplingParams

    prompt = {"prompt_token_ids": list(range(1, PROMPT_TOKENS + 1))}
    kept = {count: kept_blocks(total, spread(total, total - count)) for count in counts}
    engines: dict[int, Any] = {}
    step_ms_by_round: dict[int, list[float]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory(prefix="mi-prun-step-cost-") as folder:
        for count in counts:
            home = Path(folder) / str(count)
            write_shape(config, kept[count], home)
            engines[count] = LLM(
                str(home),
                tokenizer=str(home / TOKENIZER),
                load_format="dummy",
                dtype=dtype,
                enforce_eager=True,
                max_model_len=256,
                enable_prefix_caching=False,
            )

        def seconds(count: int, tokens: int) -> float:
            sampling = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False)
            started = time.perf_counter()
            engines[count].generate([prompt], sampling, use_tqdm=False)
            return time.perf_counter() - started

        for number in range(rounds + 1):
            turn = number % len(counts)
            for count in counts[turn:] + counts[:turn]:
                one, many = seconds(count, 1), seconds(count, STEPS + 1)
                if number:  # the first round warms up
                    step_ms_by_round[count].append(1e3 * (many - one) / STEPS)
            print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    weights = weights_of_config(config)
    context = PROMPT_TOKENS + STEPS // 2
    bytes_of = {count: decode(weights.keep(kept[count]), 1, context).num_bytes for count in counts}
    return summary({count: median(values) for count, values in step_ms_by_round.items()}, bytes_of) | {
        "round_step_ms": {count: [round(value, 3) for value in values] for count, values in step_ms_by_round.items()}
    }


def summary(step_ms: dict[int, float], bytes_of: dict[int, int]) -> dict[str, Any]:
    """Fit the line through the steps by least squares over the numbers of blocks, and say what it tells."""
    counts = sorted(step_ms)
    block_ms, rest_ms = (float(value) for value in np.polyfit(counts, [step_ms[count] for count in counts], 1))
    block_bytes, rest_bytes = (float(value) for value in np.polyfit(counts, [bytes_of[count] for count in counts], 1))
    head_ms = rest_bytes * block_ms / block_bytes
    most, least = counts[-1], counts[-2]
    return {
        "step_ms": {count: round(step_ms[count], 3) for count in counts},
        "bytes": {count: bytes_of[count] for count in counts},
        "block_ms": round(block_ms, 4),
        "rest_ms": round(rest_ms, 3),
        "read_gb_per_s": round(block_bytes / block_ms / 1e6, 2),
        "rest_for_its_bytes_ms": round(head_ms, 3),
        "engine_ms": round(rest_ms - head_ms, 3),
        "speedup": {
            "of": [most, least],
            "measured": round(step_ms[most] / step_ms[least], 4),
            "by_the_line": round((rest_ms + most * block_ms) / (rest_ms + least * block_ms), 4),
            "bound": round(bytes_of[most] / bytes_of[least], 4),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen2.5-0.5b-32k")
    parser.add_argument("--blocks", default="24,18,12,6", help="at least two numbers of blocks")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()

    def run() -> None:
        try:
            counts = sorted({int(word) for word in given.blocks.split(",")}, reverse=True)
        except ValueError as error:
            raise UserError(f"--blocks {given.blocks!r} must be numbers, like 24,18,12") from error
        if len(counts) < 2:
            raise UserError(f"--blocks {given.blocks!r}: a line needs two numbers of blocks or more")
        os.environ.update(ENVIRONMENT)
        record = {
            "schema_version": 1,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "shape": given.shape,
            "dtype": given.dtype,
            "threads": 1,
            "prompt_tokens": PROMPT_TOKENS,
            "steps": STEPS,
            "rounds": given.rounds,
            **measure(given.shape, counts, given.rounds, given.dtype),
            "machine": this_machine().model_dump(),
            "versions": versions(),
            "commit": commit(),
        }
        given.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(given.output, json.dumps(record, indent=1) + "\n")
        print(json.dumps(record))

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
