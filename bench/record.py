"""What is kept of a measurement: one JSON line for each model of a run, appended, never rewritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from mi_prun.artefact import Record
from mi_prun.errors import UserError
from mi_prun.files import append_line
from mi_prun.plan import Quality

RECORDS_NAME = "records.jsonl"
SCHEMA_VERSION = 1

MeasuredOn = Literal["plan", "checkpoint"]


class Latency(Record):
    """Milliseconds; medians over the rounds of each round's figure."""

    mean_ms: float
    p50_ms: float
    p99_ms: float


class Speed(Record):
    """Medians over the rounds. round_output_tokens_per_s: of each round, in the order they were run."""

    output_tokens_per_s: float
    round_output_tokens_per_s: tuple[float, ...]
    requests_per_s: float
    ttft: Latency
    tpot: Latency
    itl: Latency
    e2e: Latency
    completed: int

    @property
    def rounds(self) -> int:
        return len(self.round_output_tokens_per_s)


class Load(Record):
    """What was asked of the engine. Lengths in tokens; concurrency: requests in flight at most.

    dataset: `random` tokens, or the text that the prompts are pieces of. temperature: None leaves it to the server.
    """

    tool: str
    dataset: str
    input_tokens: int
    output_tokens: int
    prompts: int
    concurrency: int
    warmups: int
    seed: int
    temperature: float | None = None


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
    """One model of one run.

    run: the same for all models that were measured side by side; ratios are taken within it, never across.
    quality_measured_on: the dense model with blocks skipped, as the plan did, or the checkpoint's own files.
    """

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
    quality_measured_on: MeasuredOn | None
    machine: Machine
    versions: dict[str, str]
    commit: str | None
    serve_flags: tuple[str, ...]


def append_record(folder: Path, record: Record, name: str = RECORDS_NAME) -> None:
    """A line more in the file `name` of a results folder."""
    append_line(folder / name, record.model_dump_json())


def read_records(folder: Path) -> list[BenchRecord]:
    """All records of a results folder, in the order they were made; a line that is not ours is refused."""
    path = folder / RECORDS_NAME
    if not path.is_file():
        raise UserError(f"{folder} has no {RECORDS_NAME}; make some with `mi-prun-bench run`")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if text and not text.endswith(b"\n"):
        raise UserError(f"{path}: the last line is cut short; remove it")
    return [_parse(path, number, line) for number, line in enumerate(text.splitlines(), 1)]


def _parse(path: Path, number: int, line: bytes) -> BenchRecord:
    where = f"{path}, line {number}"
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(f"{where} has schema version {version!r}; this release reads {SCHEMA_VERSION}")
    try:
        return BenchRecord.model_validate_json(line, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: field {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
