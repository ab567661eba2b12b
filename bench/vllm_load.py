"""vLLM's own serving benchmark, reached in Python: the `vllm` command line does not run with every build.

    python -m bench.vllm_load --warmups 4 --rounds 3 --out results.json -- --base-url URL --model M ...

A process of its own, so that the load has no part in the memory of whoever measures. The rounds run in one process:
vLLM is imported once. Each round has a seed of its own, the same for every model: were the prompts of two rounds the
same, the engine's prefix cache would answer the second.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--warmups", type=int, required=True, help="requests before the first round, not counted")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--prompts", type=Path, help="a folder with N.jsonl for each round, 0.jsonl for the warm-up")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    own = parser.parse_args()
    arguments = own.rest[1:] if own.rest[:1] == ["--"] else own.rest

    from vllm.benchmarks.serve import add_cli_args
    from vllm.benchmarks.serve import main as run_benchmark
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    benchmark = FlexibleArgumentParser()
    add_cli_args(benchmark)
    args = benchmark.parse_args(arguments)
    args.ready_check_timeout_sec = 0  # the server is ready; the check would put the first prompt into the prefix cache
    results: list[dict[str, Any]] = []
    for number in range(own.rounds + 1):
        this = copy.deepcopy(args)
        this.seed = args.seed + number
        if own.prompts:
            this.dataset_path = str(own.prompts / f"{number}.jsonl")
        if number == 0:
            this.num_prompts = own.warmups
        if this.num_prompts:
            result = run_benchmark(this)
            check(result)
            results.append(plain(result))
    own.out.write_text(json.dumps(results[-own.rounds :]))


def check(result: dict[str, Any]) -> None:
    """Requests that fail make a fast engine out of a broken one."""
    if failed := int(result["failed"]):
        said = next((error for error in result.get("errors", ()) if error), "no reason given").strip().splitlines()
        raise SystemExit(f"error: {failed} of {failed + int(result['completed'])} requests failed: {said[-1]}")


def plain(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a result; lists of every request are left out."""
    return {name: value for name, value in result.items() if isinstance(value, int | float | str)}


if __name__ == "__main__":
    main()
