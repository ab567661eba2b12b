"""Measure what `mi-prun-ab` costs: latency it adds on a fast fake engine, throughput it keeps on a real one, a long
run.

    python -m bench.studies.ab_cost latency -o bench/published/ab [--litellm .../bin/litellm]
    python -m bench.studies.ab_cost vllm --shape qwen2.5-0.5b-32k -o bench/published/ab
    python -m bench.studies.ab_cost soak -o bench/published/ab        # 200 streaming clients for 60 s

The targets take turns within a run, so that only what is between them differs. What is added is the difference of the
same percentile of all answers of a run: asked directly, and through the proxy. LiteLLM's proxy needs an environment of
its own; the option names its command. Under `chrt --rr 1` other work on the machine does not show, and the record says
that it ran so. The last line is the record, JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from bench.engines.device import Device
from bench.engines.engine import running
from bench.load.driver import load_generator
from bench.load.prompt_files import Prompts
from bench.load.stream_client import Timings, load
from bench.load.workloads import CUSTOM, TOOL
from bench.models.shape import open_shape, shape_flags, write_shape
from bench.records.machine import commit, this_machine, versions
from bench.records.schema import Workload
from mi_prun.architecture.architecture import num_blocks
from mi_prun.console import run_command
from mi_prun.errors import UserError
from mi_prun.files import append_line
from mi_prun.process_group import ProcessGroup, free_port

MODEL = "fast"
BODY = json.dumps({"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "Say a word."}]}).encode()
AB = (sys.executable, "-P", "-m", "serve.ab.cli")
LITELLM_CONFIG = """
model_list:
  - model_name: fast
    litellm_params: {{model: openai/fast, api_base: "http://127.0.0.1:{port}/v1", api_key: none}}
general_settings: {{master_key: sk-bench}}
litellm_settings: {{telemetry: false}}
"""
WARM_UP_S = 3.0
RECORDS = {"latency": "latency.jsonl", "vllm": "vllm.jsonl", "soak": "soak.jsonl"}


@contextlib.contextmanager
def fast_engine(folder: Path, tokens: int, token_ms: float, aligned: bool) -> Iterator[int]:
    """Start the fast engine and yield its port."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "bench.engines.fast_engine", "--port", str(port), "--tokens", str(tokens)]
    command += ["--token-ms", str(token_ms), *(["--aligned"] if aligned else [])]
    with ProcessGroup(command, folder / f"engine-{port}.log") as group:
        group.wait_ready(f"http://127.0.0.1:{port}/health", timeout_seconds=30)
        yield port


@contextlib.contextmanager
def proxy(folder: Path, arms: Sequence[str], *flags: str) -> Iterator[tuple[int, ProcessGroup]]:
    """Start `mi-prun-ab` and yield its port and process. arms: NAME=URL, evenly split."""
    port = free_port()
    words = [word for arm in arms for word in ("--arm", arm)]
    split = ",".join(f"{arm.partition('=')[0]}=1" for arm in arms)
    files = ["--state", str(folder / f"{port}.sqlite"), "--access-log", str(folder / f"{port}.jsonl")]
    command = [*AB, *words, "--split", split, "--port", str(port), *files, *flags]
    with ProcessGroup(command, folder / f"ab-{port}.log") as group:
        group.wait_ready(f"http://127.0.0.1:{port}/health", timeout_seconds=60)
        yield port, group


@contextlib.contextmanager
def litellm(folder: Path, command: str, engine: int) -> Iterator[int]:
    """Start LiteLLM's proxy before an engine and yield its port."""
    port = free_port()
    config = folder / "litellm.yaml"
    config.write_text(LITELLM_CONFIG.format(port=engine))
    words = [command, "--config", str(config), "--port", str(port), "--host", "127.0.0.1", "--num_workers", "1"]
    with ProcessGroup(words, folder / "litellm.log", {"LITELLM_LOG": "ERROR", "NO_DOCS": "True"}) as group:
        group.wait_ready(f"http://127.0.0.1:{port}/health/liveliness", timeout_seconds=180)
        yield port


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the 99th percentile and the mean in milliseconds. values: seconds."""
    cut = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50_ms": round(1e3 * cut[49], 3), "p99_ms": round(1e3 * cut[98], 3), "mean_ms": _mean_ms(values)}


def _mean_ms(values: Sequence[float]) -> float:
    return round(1e3 * statistics.fmean(values), 3)


def _version_of(command: str) -> str:
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=False, timeout=120)
    number = re.search(r"\d+\.\d+[\w.]*", done.stdout)
    return number[0] if number else "unknown"


def latency(given: argparse.Namespace) -> dict[str, Any]:
    """Measure the latency that is added to whole answers and to first tokens."""
    before = round(psutil.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory(prefix="mi-prun-ab-cost-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        engine = stack.enter_context(fast_engine(folder, given.tokens, given.token_ms, given.aligned))
        url = f"http://127.0.0.1:{engine}"
        flags = ("--model-name", MODEL)
        ab, _ = stack.enter_context(proxy(folder, [f"dense={url}", f"pruned={url}"], *flags))
        targets = {"direct": engine, "mi-prun-ab": ab}
        if given.litellm:
            targets["litellm"] = stack.enter_context(litellm(folder, given.litellm, engine))
        by_target = _take_turns(targets, given)
    direct = by_target["direct"]
    results: dict[str, Any] = {}
    for target, timings in by_target.items():
        result: dict[str, Any] = {"answers": len(timings.e2e_s), "failed": timings.failed}
        for what in ("ttft", "e2e"):
            here, base = (percentiles(getattr(one, f"{what}_s")) for one in (timings, direct))
            result[what] = here
            if target != "direct":
                result[f"added_{what}"] = {part: round(here[part] - base[part], 3) for part in here}
        results[target] = result
        print(f"{target}: {json.dumps(result)}")
    return {
        "clients": given.clients,
        "tokens": given.tokens,
        "token_ms": given.token_ms,
        "aligned": given.aligned,
        "rounds": given.rounds,
        "round_s": given.round_s,
        "litellm_version": _version_of(given.litellm) if given.litellm else None,
        "load_average_before": before,
        "targets": results,
    }


def _take_turns(targets: dict[str, int], given: argparse.Namespace) -> dict[str, Timings]:
    import uvloop

    by_target = {target: Timings() for target in targets}
    for port in targets.values():
        uvloop.run(load(port, BODY, 4, WARM_UP_S))
    for number in range(given.rounds):
        for target, port in targets.items():
            round_ = uvloop.run(load(port, BODY, given.clients, given.round_s))
            by_target[target].ttft_s += round_.ttft_s
            by_target[target].e2e_s += round_.e2e_s
            by_target[target].failed += round_.failed
            print(f"round {number + 1}, {target}: {json.dumps(percentiles(round_.e2e_s))}", file=sys.stderr)
    return by_target


def vllm(given: argparse.Namespace) -> dict[str, Any]:
    """Measure output tokens/s by vLLM's own serving benchmark: directly, and through the proxy, in turns."""
    asked = Workload(
        tool=TOOL,
        preset=CUSTOM,
        input_tokens=64,
        output_tokens=64,
        prompts=given.prompts,
        concurrency=given.clients,
        rate_per_s=None,
        warmups=4,
        seed=0,
    )
    flags = ["--enforce-eager", "--max-model-len", "256", "--uvicorn-log-level", "warning", *given.serve_flags.split()]
    with tempfile.TemporaryDirectory(prefix="mi-prun-ab-cost-") as name, contextlib.ExitStack() as stack:
        model = given.model
        if given.shape:
            config, folder = open_shape(given.shape), Path(name) / "shape"
            write_shape(config, range(num_blocks(config)), folder)
            model, flags = str(folder), [*flags, *shape_flags(folder)]
        engine = stack.enter_context(running(model, flags))
        words = ("--model-name", model)
        with proxy(Path(name), [f"dense={engine.base_url}"], *words) as (port, group):
            proxied_engine = replace(engine, base_url=f"http://127.0.0.1:{port}", group=group)
            targets = {"direct": engine, "mi-prun-ab": proxied_engine}
            rates: dict[str, list[float]] = {target: [] for target in targets}
            generator = stack.enter_context(load_generator(Device(), Prompts([], {})))
            for at in targets.values():
                generator.warm_up(at, asked)
            for number in range(given.rounds):
                for target, at in sorted(targets.items(), reverse=bool(number % 2)):
                    # Each round has prompts of its own for each target: the engine is one, and caches prefixes.
                    turn = 2 * number + (target == "direct")
                    rates[target].append(generator.round(at, asked, turn).output_tokens_per_s)
                    print(f"round {number + 1}, {target}: {rates[target][-1]:.1f} tokens/s", file=sys.stderr)
    direct, proxied = (statistics.median(rates[target]) for target in ("direct", "mi-prun-ab"))
    pairs = [ours / theirs for ours, theirs in zip(rates["mi-prun-ab"], rates["direct"], strict=True)]
    return {
        "model": given.shape or given.model,
        "load": asked.model_dump(),
        "round_output_tokens_per_s": rates,
        "ratio": round(proxied / direct, 4),
        "ratio_by_round": [round(pair, 4) for pair in pairs],
    }


def soak(given: argparse.Namespace) -> dict[str, Any]:
    """Count errors, and read the proxy's memory every second, at the beginning, half way and at the end."""
    with tempfile.TemporaryDirectory(prefix="mi-prun-ab-cost-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        engine = stack.enter_context(fast_engine(folder, given.tokens, given.token_ms, given.aligned))
        url = f"http://127.0.0.1:{engine}"
        arms = [f"dense={url}", f"pruned={url}"]
        port, group = stack.enter_context(proxy(folder, arms, "--model-name", MODEL))
        timings, rss = asyncio.run(_watched(port, group, given))
    half = len(rss) // 2
    return {
        "clients": given.clients,
        "seconds": given.round_s,
        "tokens": given.tokens,
        "token_ms": given.token_ms,
        "answers": len(timings.e2e_s),
        "failed": timings.failed,
        "rss_mib": {"begin": rss[0], "half": rss[half], "end": rss[-1]},
        "growth_in_second_half_mib": round(rss[-1] - rss[half], 2),
    }


async def _watched(port: int, group: ProcessGroup, given: argparse.Namespace) -> tuple[Timings, list[float]]:
    process = psutil.Process(group.process.pid)
    rss: list[float] = []
    asked = asyncio.create_task(load(port, BODY, given.clients, given.round_s))
    while not asked.done():
        await asyncio.sleep(1)
        rss.append(round(process.memory_info().rss / 2**20, 2))
    return await asked, rss


def main() -> None:
    """Run the command and exit with its status."""
    sys.exit(run_command(command))


def command() -> None:
    """Parse the options, measure, and append the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(RECORDS))
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder; a record is appended")
    parser.add_argument("--clients", type=int, help="at a time (default: 64; soak: 200; vllm: 16)")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--token-ms", type=float, default=20.0)
    parser.add_argument("--aligned", action="store_true", help="all streams get their tokens at the same moments")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round-s", type=float, help="seconds of a round (default: 10; soak: 60)")
    parser.add_argument("--litellm", metavar="COMMAND", help="of an environment that has litellm[proxy]")
    served = parser.add_mutually_exclusive_group()
    served.add_argument("--model", default="bench/reference", help="of vllm: what it serves")
    served.add_argument("--shape", help="in its place: a name or a config.json; its weights mean nothing")
    parser.add_argument("--prompts", type=int, default=64, help="of a round on vLLM")
    parser.add_argument("--serve-flags", default="")
    given = parser.parse_args()
    given.clients = given.clients or {"latency": 64, "soak": 200, "vllm": 16}[given.what]
    given.round_s = given.round_s or {"latency": 10.0, "soak": 60.0, "vllm": 0.0}[given.what]
    if not given.output.is_dir():
        raise UserError(f"--output {given.output}: no such folder; make it first")
    started = time.monotonic()
    measured = {"latency": latency, "vllm": vllm, "soak": soak}[given.what](given)
    record = {
        "schema_version": 1,
        "run": uuid.uuid4().hex[:12],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "what": given.what,
        **measured,
        "real_time": os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR),
        "wall_s": round(time.monotonic() - started, 1),
        "machine": this_machine().model_dump(),
        "versions": versions(),
        "commit": commit(),
    }
    line = json.dumps(record)
    append_line(given.output / RECORDS[given.what], line)
    print(line)


if __name__ == "__main__":
    main()
