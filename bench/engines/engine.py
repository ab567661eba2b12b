"""Start a model on `mi-prun-serve` as a user does: a process group that is driven over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from bench.engines.flags import flag_value
from mi_prun.errors import UserError
from mi_prun.model.hub import HUB_ID
from mi_prun.process_group import ProcessGroup, free_port, open_local

SERVE = (sys.executable, "-P", "-m", "serve.cli")
STARTUP_SECONDS = 3600.0  # of one that neither ends nor answers; a model of 800 GB is read for longer than 15 min
PORTS_TRIED = 3  # a port that was free a moment ago may be taken by the time the server binds it
SAMPLE_SECONDS = 2.0  # between looks at its memory, once it is ready
TAKEN = "cannot listen on"
LOAD_SECONDS = re.compile(r"Loading weights took ([\d.]+) seconds")
WEIGHT_GIB = re.compile(r"Model loading took ([\d.]+) GiB")


@dataclass(frozen=True)
class EngineProcess:
    """A running server of one model.

    startup_s: from the start of the process to the first 200 of /health. load_s: how long the weights took to read, and
    weight_bytes: what they take on the device, as the engine says; None where it does not.
    """

    model: str
    tokenizer: str
    base_url: str
    startup_s: float
    load_s: float | None
    weight_bytes: int | None
    group: ProcessGroup

    def kv_tokens(self) -> int:
        """Return how many tokens the KV cache holds, as the engine says."""
        return kv_tokens(self.metrics())

    def metrics(self) -> str:
        """Return the Prometheus page. Raises UserError with the end of the log where the engine no longer answers."""
        try:
            with open_local(f"{self.base_url}/metrics", 30.0) as answer:
                page: str = answer.read().decode()
                return page
        except (OSError, http.client.HTTPException) as error:
            said = self.group.last_lines()
            raise UserError(f"the engine of {self.model} does not answer at /metrics ({error}): {said}") from error


def kv_tokens(metrics: str) -> int:
    """Read how many tokens the KV cache holds off a Prometheus page of vLLM. Raises UserError where it is not said."""
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


def named(model: str, flags: Sequence[str]) -> list[str]:
    """Return the flags that name the model to `mi-prun-serve`. The commit of a hub id is a flag of its own for vLLM."""
    hub = HUB_ID.fullmatch(model)
    if not (hub and hub["commit"]) or Path(model).exists() or any(flag_value(flags, o) for o in ("--plan", "--draft")):
        return ["--model", model]
    return ["--model", hub["name"], "--revision", hub["commit"], "--served-model-name", model]


@contextlib.contextmanager
def running(model: str, flags: Sequence[str] = ()) -> Iterator[EngineProcess]:
    """Start `mi-prun-serve --model MODEL`, wait until it is ready, and yield it. No process of it is left at the end.

    Raises UserError with the last lines of its log where it does not start.
    """
    tokenizer = flag_value(flags, "--tokenizer") or model
    with tempfile.TemporaryDirectory(prefix="mi-prun-bench-") as folder, contextlib.ExitStack() as stack:
        log = Path(folder) / "engine.log"
        for left in reversed(range(PORTS_TRIED)):
            port = free_port()
            base_url = f"http://127.0.0.1:{port}"
            group = stack.enter_context(ProcessGroup([*SERVE, *named(model, flags), "--port", str(port), *flags], log))
            try:
                startup_s = group.wait_ready(f"{base_url}/health", timeout_seconds=STARTUP_SECONDS)
                break
            except UserError as error:
                if not left or TAKEN not in str(error):
                    raise UserError(f"the engine for {model} did not start: {error}") from error
                group.stop()
        group.sample_seconds = SAMPLE_SECONDS
        said = log.read_text(errors="replace")
        load_s = [float(seconds) for seconds in LOAD_SECONDS.findall(said)]
        gib = [float(seconds) for seconds in WEIGHT_GIB.findall(said)]
        yield EngineProcess(
            model,
            tokenizer,
            base_url,
            startup_s,
            max(load_s) if load_s else None,
            round(sum(gib) * 2**30) if gib else None,
            group,
        )
