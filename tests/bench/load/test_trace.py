"""Traces: the public formats are read, what is none is refused, and no two prompts share a chunk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.load.trace import Request, read_trace, write_timed_trace
from mi_prun.errors import UserError


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mooncake.jsonl", '{"timestamp": 0, "input_length": 40, "output_length": 5, "hash_ids": [1]}\n\n'),
        ("azure.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,40,5\n"),
        ("burst.csv", "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,GPT-4,40,5,45,API\n"),
        ("own.jsonl", '{"input_tokens": 40, "output_tokens": 5.0}\n'),
    ],
)
def test_the_formats_that_are_read(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    for mark in ("", "\ufeff"):  # as Excel and some editors write it
        path.write_text(mark + text)
        trace, requests, too_long = read_trace(path, 45)
        assert requests == [Request(40, 5)]
        assert (trace.name, trace.requests, too_long) == (name, 1, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no request with at most 45 tokens"),
        ("not json\n", "line 1 is not JSON"),
        ("[1]\n", "line 1 is not a JSON object"),
        ('{"prompt": "x"}\n', "request 1 has none of the pairs of columns input_length and output_length; Context"),
        ('{"input_length": "many", "output_length": 1}\n', "request 1: lengths must be numbers"),
        ('{"input_length": 41, "output_length": 5}\n', "has no request with at most 45 tokens, the context"),
        ('{"input_length": 1e999, "output_length": 5}\n', "request 1: lengths must be numbers"),
    ],
)
def test_what_is_no_trace(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_trace(path, 45)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read --trace .*absent\.csv: No such file"):
        read_trace(tmp_path / "absent.csv", None)


def test_requests_are_drawn_by_the_seed_and_share_no_prompt(tmp_path: Path) -> None:
    requests = [Request(n, n + 1) for n in range(1, 41)]
    drawn = []
    for seed in (1, 1, 2):
        write_timed_trace(tmp_path / "out.jsonl", requests, 8, seed)
        drawn.append([json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()])
    assert drawn[0] == drawn[1] != drawn[2]
    chunks = [chunk for rows in (drawn[0], drawn[2]) for row in rows for chunk in row["hash_ids"]]
    assert len(chunks) == len(set(chunks))
    for row in drawn[0]:
        assert Request(row["input_length"], row["output_length"]) in requests
        assert len(row["hash_ids"]) == -(-row["input_length"] // 16)
    write_timed_trace(tmp_path / "out.jsonl", requests[:3], 8, 0)  # fewer than are asked for: some twice
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 8
