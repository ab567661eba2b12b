"""What is kept of a measurement: one JSON line for each model of a run, appended, never rewritten."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from mi_prun.artefact import Record
from mi_prun.errors import UserError
from mi_prun.files import one_line_os_errors
from mi_prun.plan import Quality

RECORDS_NAME = "records.jsonl"
SCHEMA_VERSION = 1


class Latency(Record):
    """Milliseconds; medians over the rounds of each round's figure."""

    mean_ms: float
    p50_ms: float
    p99_ms: float


class Speed(Record):
    """spread: (max - min) / median of the rounds' output tokens/s."""

    output_tokens_per_s: float
    requests_per_s: float
    ttft: Latency
    tpot: Latency
    itl: Latency
    e2e: Latency
    completed: int
    failed: int
    rounds: int
    spread: float


class Load(Record):
    """What was asked of the engine. Lengths in tokens; concurrency: requests in flight at most."""

    tool: str
    dataset: str
    input_tokens: int
    output_tokens: int
    prompts: int
    concurrency: int
    warmups: int
    seed: int


class Memory(Record):
    """weight_bytes: of the safetensors headers. kv_tokens: as the engine says. peak_rss_bytes: all engine processes."""

    weight_bytes: int
    kv_tokens: int
    peak_rss_bytes: int


class Machine(Record):
    cpu: str
    cores: int
    memory_bytes: int
    gpu: str | None
    system: str


class Blocks(Record):
    """Of the model measured, 0-based; nothing dropped for the dense one."""

    num_blocks: int
    dropped: tuple[int, ...]
    block_ratio: float
    parameter_ratio: float
    method: str | None


class BenchRecord(Record):
    """One model of one run. run: the same for all models that were measured side by side."""

    schema_version: Literal[1] = 1
    run: str
    time: str
    arm: Literal["dense", "pruned"]
    model: str
    dense_model: str
    dense_weights_sha256: str
    blocks: Blocks
    load: Load
    speed: Speed
    memory: Memory
    startup_s: float
    quality: Quality | None
    machine: Machine
    versions: dict[str, str]
    commit: str | None
    serve_flags: tuple[str, ...]


def append_record(folder: Path, record: BenchRecord) -> None:
    """One whole line, on the disk before this returns."""
    path = folder / RECORDS_NAME
    with one_line_os_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(record.model_dump_json() + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_records(folder: Path) -> list[BenchRecord]:
    """All records of a results folder, in the order they were made; a line that is not ours is refused."""
    path = folder / RECORDS_NAME
    if not path.is_file():
        raise UserError(f"{folder} has no {RECORDS_NAME}; make some with `mi-prun-bench run`")
    return list(_parse(path, path.read_text(encoding="utf-8").splitlines()))


def _parse(path: Path, lines: Iterable[str]) -> Iterable[BenchRecord]:
    for number, line in enumerate(lines, 1):
        try:
            data = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}") from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{path}, line {number} has schema version {version!r}; this release reads {SCHEMA_VERSION}"
            )
        try:
            yield BenchRecord.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"{path}, line {number}: field {where}: {first['msg']}") from error
