"""vLLM's own serving benchmark, reached in Python: the `vllm` command line does not run with every build.

    python -m bench.vllm_load --rounds 3 --out results.json -- --base-url http://127.0.0.1:8000 --model M ...

A process of its own, so that the load has no part in the memory of whoever measures. The rounds run in one process:
vLLM is imported once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    own = parser.parse_args()
    arguments = own.rest[1:] if own.rest[:1] == ["--"] else own.rest

    from vllm.benchmarks.serve import add_cli_args
    from vllm.benchmarks.serve import main as run_benchmark
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    benchmark = FlexibleArgumentParser()
    add_cli_args(benchmark)
    results: list[dict[str, Any]] = []
    for round_number in range(own.rounds):
        args = benchmark.parse_args(arguments)
        if round_number:
            args.num_warmups = 0
        results.append(plain(run_benchmark(args)))
    own.out.write_text(json.dumps(results))


def plain(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a result; lists of every request are left out."""
    return {name: value for name, value in result.items() if isinstance(value, int | float | str)}


if __name__ == "__main__":
    main()
