"""A model on `mi-prun-serve`, as a user starts it: a process group, driven over HTTP."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from mi_prun.errors import UserError
from mi_prun.process_group import ProcessGroup, free_port

SERVE = (sys.executable, "-m", "serve.cli")
STARTUP_SECONDS = 900.0


@dataclass(frozen=True)
class Engine:
    """startup_s: from the start of the process to the first 200 of /health."""

    base_url: str
    startup_s: float
    group: ProcessGroup

    def kv_tokens(self) -> int:
        """Tokens the KV cache holds, as the engine says."""
        with urllib.request.urlopen(f"{self.base_url}/metrics", timeout=30) as answer:
            return kv_tokens(answer.read().decode())


def kv_tokens(metrics: str) -> int:
    """Read the KV cache's size off a Prometheus page of vLLM."""
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name != "vllm:cache_config_info":
                continue
            if (tokens := sample.labels.get("kv_cache_size_tokens", "")).isdecimal():
                return int(tokens)
            blocks, size = sample.labels.get("num_gpu_blocks", ""), sample.labels.get("block_size", "")
            if blocks.isdecimal() and size.isdecimal():
                return int(blocks) * int(size)
    raise UserError("the engine's /metrics does not say how large its KV cache is (vllm:cache_config_info)")


@contextlib.contextmanager
def running(model: str, flags: Sequence[str] = ()) -> Iterator[Engine]:
    """Start `mi-prun-serve --model MODEL`, wait until it is ready; no process of it is left at the end."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="mi-prun-bench-") as folder:
        command = [*SERVE, "--model", model, "--port", str(port), *flags]
        with ProcessGroup(command, Path(folder) / "engine.log") as group:
            base_url = f"http://127.0.0.1:{port}"
            try:
                startup_s = group.wait_ready(f"{base_url}/health", timeout_seconds=STARTUP_SECONDS)
            except UserError as error:
                raise UserError(f"the engine for {model} did not start: {error}") from error
            yield Engine(base_url, startup_s, group)
