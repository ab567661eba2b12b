"""Run vLLM's own serving benchmark in Python: the `vllm` command line does not run with every build.

    python -m bench.load.worker < jobs

A job is a line of JSON, `{"arguments": ["--base-url", URL, ...], "out": "result.json"}`. Its result appears at `out`,
whole. This is a process of its own, so that the load has no part in the memory of whoever measures. One process does
all jobs, so that vLLM is imported once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.records.saturation import growth
from mi_prun.files import write_text


def main() -> None:
    """Do the jobs that arrive on stdin, one after the other."""
    from vllm.benchmarks.serve import add_cli_args
    from vllm.benchmarks.serve import main as run_benchmark
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    benchmark = FlexibleArgumentParser()
    add_cli_args(benchmark)
    for line in sys.stdin:
        job = json.loads(line)
        args = benchmark.parse_args(job["arguments"])
        args.ready_check_timeout_sec = 0  # the server is ready; the check would be a request that nobody counts
        result = run_benchmark(args)
        check(result)
        write_text(Path(job["out"]), json.dumps(plain(result)))


def check(result: dict[str, Any]) -> None:
    """End the process where requests failed: they would make a fast engine out of a broken one."""
    if failed := int(result["failed"]):
        said = next((error for error in result.get("errors", ()) if error), "no reason given").strip().splitlines()
        raise SystemExit(f"error: {failed} of {failed + int(result['completed'])} requests failed: {said[-1]}")


def plain(result: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a result, and how much piled up by its lists of every request; the lists are left out."""
    seconds = [ttft + sum(itls) for ttft, itls in zip(result.get("ttfts", ()), result.get("itls", ()), strict=False)]
    piled_up = growth(result.get("start_times", ()), seconds)
    numbers = {name: value for name, value in result.items() if isinstance(value, int | float | str)}
    return numbers | ({} if piled_up is None else {"backlog_growth": piled_up})


if __name__ == "__main__":
    main()
