"""Read request lengths out of a real trace, for vLLM's `timed_trace` data set.

Read are JSON lines with `input_length` and `output_length` (Mooncake's and Qwen's traces), and CSV tables with
`ContextTokens` and `GeneratedTokens` (Azure's LLM inference traces) or `Request tokens` and `Response tokens`
(BurstGPT). Only lengths are used: what was said is in none of them, and when it was said is the load's to decide.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.records.schema import Trace
from mi_prun.errors import UserError
from mi_prun.files import sha256_of, write_text
from mi_prun.json_lines import parse_json

COLUMNS = (
    ("input_length", "output_length"),
    ("ContextTokens", "GeneratedTokens"),
    ("Request tokens", "Response tokens"),
    ("input_tokens", "output_tokens"),
)
CHUNK_TOKENS = 16  # of the prompt for each hash id: vLLM's default


@dataclass(frozen=True)
class Request:
    """A request of a trace, by its lengths in tokens."""

    input_tokens: int
    output_tokens: int


def read_trace(path: Path, context: int | None) -> tuple[Trace, list[Request], int]:
    """Return the trace, its requests that fit in `context` tokens, and how many do not fit.

    Failed requests, which have no output, are left out. Raises UserError for a file that is no trace, or of which no
    request fits.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # a byte order mark is no part of a name
            rows = list(_json_rows(path, file) if path.suffix in (".jsonl", ".json") else csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read --trace {path}: {getattr(error, 'strerror', None) or error}") from error
    requests = [_request(path, number, row) for number, row in enumerate(rows, 1)]
    whole = [request for request in requests if request.input_tokens > 0 and request.output_tokens > 0]
    fitting = [r for r in whole if context is None or r.input_tokens + r.output_tokens <= context]
    if not fitting:
        limit = "" if context is None else f" with at most {context} tokens, the context the model is served with"
        raise UserError(f"--trace {path} has no request{limit}")
    return Trace(name=path.name, sha256=sha256_of(path), requests=len(fitting)), fitting, len(whole) - len(fitting)


def _json_rows(path: Path, lines: Iterable[str]) -> Iterable[Mapping[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = parse_json(line, f"--trace {path}, line {number}")
        if not isinstance(row, dict):
            raise UserError(f"--trace {path}, line {number} is not a JSON object")
        yield row


def _request(path: Path, number: int, row: Mapping[str, Any]) -> Request:
    names = next((pair for pair in COLUMNS if pair[0] in row and pair[1] in row), None)
    if names is None:
        known = "; ".join(" and ".join(pair) for pair in COLUMNS)
        raise UserError(f"--trace {path}, request {number} has none of the pairs of columns {known}")
    try:
        return Request(*(int(float(row[name])) for name in names))
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"--trace {path}, request {number}: lengths must be numbers of tokens") from error


def write_timed_trace(path: Path, requests: list[Request], count: int, seed: int) -> None:
    """Write `count` requests, drawn by `seed`, as vLLM reads them. No two prompts of any seed share a chunk."""
    draw = random.Random(seed)
    chosen = draw.sample(requests, count) if count <= len(requests) else draw.choices(requests, k=count)
    lines, chunk = [], seed << 32
    for request in chosen:
        chunks = -(-request.input_tokens // CHUNK_TOKENS)
        line = {
            "timestamp": 0,
            "input_length": request.input_tokens,
            "output_length": request.output_tokens,
            "hash_ids": list(range(chunk, chunk + chunks)),
        }
        lines.append(json.dumps(line) + "\n")
        chunk += chunks
    write_text(path, "".join(lines))
