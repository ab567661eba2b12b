"""Load on a running engine, by vLLM's own serving benchmark; several rounds, medians."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.engine import Engine
from bench.prompts import Rounds
from bench.record import Latency, Load, Speed
from mi_prun.errors import UserError
from mi_prun.process_group import ProcessGroup

LATENCIES = ("ttft", "tpot", "itl", "e2el")


def drive(engine: Engine, model: str, load: Load, rounds: int, prompts: Rounds | None = None) -> Speed:
    """Run the load `rounds` times on a server that is ready. Raises UserError where a request fails.

    prompts: of the warm-up, then of each round; None: random tokens.
    """
    with tempfile.TemporaryDirectory(prefix="mi-prun-load-") as folder:
        out, log = Path(folder) / "out.json", Path(folder) / "load.log"
        command = [sys.executable, "-m", "bench.vllm_load", "--warmups", str(load.warmups), "--rounds", str(rounds)]
        for number, texts in enumerate(prompts or ()):
            lines = (json.dumps({"prompt": text}) + "\n" for text in texts)
            (Path(folder) / f"{number}.jsonl").write_text("".join(lines))
        command += ["--prompts", folder] if prompts is not None else []
        command += ["--out", str(out), "--", *_arguments(engine, model, load, random=prompts is None)]
        with ProcessGroup(command, log) as group:
            while (status := group.process.poll()) is None:
                if engine.group.process.poll() is not None:
                    raise UserError(f"the engine of {model} ended under load: {engine.group.last_lines()}")
                time.sleep(0.2)
            if status != 0 or not out.is_file():
                raise UserError(f"the load on {model} ended with status {status}: {group.last_lines()}")
        return speed_of(json.loads(out.read_text()))


def _arguments(engine: Engine, model: str, load: Load, *, random: bool) -> list[str]:
    options: dict[str, Any] = {
        "backend": "openai",
        "base-url": engine.base_url,
        "model": model,
        "tokenizer": model,
        "endpoint": "/v1/completions",
        "dataset-name": load.dataset if random else "custom",
        **(
            {"random-input-len": load.input_tokens, "random-output-len": load.output_tokens}
            if random
            else {"custom-output-len": load.output_tokens}
        ),
        "num-prompts": load.prompts,
        "max-concurrency": load.concurrency,
        "seed": load.seed,
        "percentile-metrics": ",".join(LATENCIES),
        "metric-percentiles": "50,99",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    if load.temperature is not None:
        words += ["--temperature", str(load.temperature)]
    if not random:
        words += ["--disable-shuffle", "--skip-chat-template"]
    # Every answer has the same length, so that dense and pruned do the same work whatever they say.
    return [*words, "--ignore-eos", "--disable-tqdm"]


def speed_of(rounds: Sequence[dict[str, Any]]) -> Speed:
    """Medians over the rounds of what vLLM's benchmark reports."""

    def middle(name: str) -> float:
        return float(median(result[name] for result in rounds))

    def latency(name: str) -> Latency:
        return Latency(
            mean_ms=middle(f"mean_{name}_ms"), p50_ms=middle(f"median_{name}_ms"), p99_ms=middle(f"p99_{name}_ms")
        )

    throughput = [float(result["output_throughput"]) for result in rounds]
    return Speed(
        output_tokens_per_s=median(throughput),
        round_output_tokens_per_s=tuple(throughput),
        requests_per_s=middle("request_throughput"),
        ttft=latency("ttft"),
        tpot=latency("tpot"),
        itl=latency("itl"),
        e2e=latency("e2el"),
        completed=sum(int(result["completed"]) for result in rounds),
    )
