"""Drive load on running engines, by vLLM's own serving benchmark (`worker.py`)."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.engines.device import Device
from bench.engines.engine import SAMPLE_SECONDS, EngineProcess
from bench.load.prompt_files import Prompts
from bench.records.schema import Latency, Round, Workload
from mi_prun.errors import UserError
from mi_prun.process_group import ProcessGroup, local_addresses_direct

LATENCIES = ("ttft", "tpot", "itl", "e2el")
WARMUP_SEED = 999  # of a load's thousand seeds; rounds take those from the first on
LOOK_SECONDS = 0.02


class LoadGenerator:
    """A process that loads one engine at a time. It starts with the first load, and ends with `stack`."""

    def __init__(self, folder: Path, device: Device, prompts: Prompts, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._device = device
        self._prompts = prompts
        self._stack = stack
        self._started: ProcessGroup | None = None
        self._jobs = 0

    @property
    def _group(self) -> ProcessGroup:
        if self._started is None:
            command = [sys.executable, "-P", "-m", "bench.load.worker"]
            # vLLM makes the prompts of a trace from Python's own hash: the same ones in each run.
            env = {"PYTHONHASHSEED": "0", **local_addresses_direct()}
            group = ProcessGroup(command, self._folder / "load.log", env, stdin=subprocess.PIPE)
            self._started = self._stack.enter_context(group)
            group.sample_seconds = SAMPLE_SECONDS
        return self._started

    def warm_up(self, engine: EngineProcess, load: Workload) -> None:
        """Send requests that are not counted."""
        if load.warmups:
            self._run(engine, load.model_copy(update={"prompts": load.warmups}), load.seed + WARMUP_SEED)

    def round(self, engine: EngineProcess, load: Workload, number: int) -> Round:
        """Run round `number` of a load, and return its figures.

        Its prompts are the same on every engine, and no other round's: else the prefix cache would answer. Raises
        UserError where a request fails, or the engine ends.
        """
        before = self._device.energy_j()
        result = self._run(engine, load, load.seed + number)
        after = self._device.energy_j()
        return round_of(load, result, None if before is None or after is None else after - before)

    def _run(self, engine: EngineProcess, load: Workload, seed: int) -> dict[str, Any]:
        self._jobs += 1
        out = self._folder / f"result-{self._jobs}.json"
        words = arguments(engine, load, seed)
        if load.trace is not None or load.text is not None:
            path = self._folder / f"prompts-{seed}.jsonl"
            self._prompts.write(path, load, seed)
            words += ["--dataset-path", str(path)]
        job = json.dumps({"arguments": words, "out": str(out)}) + "\n"
        pipe = self._group.process.stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: said below
            pipe.write(job.encode())
            pipe.flush()
        while not out.is_file():
            if engine.group.process.poll() is not None:
                raise UserError(f"the engine of {engine.model} ended under load: {engine.group.last_lines()}")
            if (status := self._group.process.poll()) is not None:
                raise UserError(f"the load on {engine.model} ended with status {status}: {self._group.last_lines()}")
            time.sleep(LOOK_SECONDS)
        result: dict[str, Any] = json.loads(out.read_text())
        return result


@contextlib.contextmanager
def load_generator(device: Device, prompts: Prompts) -> Iterator[LoadGenerator]:
    """Yield a load generator; its process ends with the block. prompts: of the loads that bring their own."""
    with tempfile.TemporaryDirectory(prefix="mi-prun-load-") as name, contextlib.ExitStack() as stack:
        yield LoadGenerator(Path(name), device, prompts, stack)


def arguments(engine: EngineProcess, load: Workload, seed: int) -> list[str]:
    """Return the command-line arguments of vLLM's benchmark for one round."""
    options: dict[str, Any] = {
        "backend": "openai",
        "base-url": engine.base_url,
        "model": engine.model,
        "tokenizer": engine.tokenizer,
        "endpoint": "/v1/completions",
        "num-prompts": load.prompts,
        "seed": seed,
        "temperature": 0,
        "percentile-metrics": ",".join(LATENCIES),
        "metric-percentiles": "50,90,99",
    }
    if load.concurrency is not None:
        options["max-concurrency"] = load.concurrency
    else:
        options["request-rate"] = load.rate_per_s
    into, out = round(load.input_tokens), round(load.output_tokens)
    switches: list[str] = []
    if load.trace is not None:
        options["dataset-name"] = "timed_trace"
        switches = ["--no-self-timed"]  # its lengths; the times are the load's own
    elif load.text is not None:
        options |= {"dataset-name": "custom", "custom-output-len": out}
        switches = ["--disable-shuffle", "--skip-chat-template"]
    else:
        options |= {"dataset-name": "random", "random-input-len": into, "random-output-len": out}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    # Every answer has the length asked for, so that dense and pruned do the same work whatever they say. Detailed: with
    # the times of every request, and what those that failed were told.
    return [*words, *switches, "--ignore-eos", "--save-detailed", "--disable-tqdm"]


def round_of(load: Workload, result: dict[str, Any], energy_j: float | None) -> Round:
    """Turn what vLLM's benchmark reports into a round. In a closed loop nothing piles up."""

    def latency(name: str) -> Latency:
        return Latency(
            mean_ms=float(result[f"mean_{name}_ms"]),
            p50_ms=float(result[f"median_{name}_ms"]),
            p90_ms=float(result[f"p90_{name}_ms"]),
            p99_ms=float(result[f"p99_{name}_ms"]),
        )

    return Round(
        output_tokens_per_s=float(result["output_throughput"]),
        total_tokens_per_s=float(result["total_token_throughput"]),
        requests_per_s=float(result["request_throughput"]),
        duration_s=float(result["duration"]),
        completed=int(result["completed"]),
        ttft=latency("ttft"),
        tpot=latency("tpot"),
        itl=latency("itl"),
        e2e=latency("e2el"),
        energy_j=energy_j,
        backlog_growth=result.get("backlog_growth") if load.rate_per_s is not None else None,
    )
