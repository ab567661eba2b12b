"""Records: what is written is read back, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from bench.record_v1 import RECORDS_NAME, BenchRecord, append_record, read_records
from mi_prun.errors import UserError


def test_what_is_appended_is_read_back_in_order(tmp_path: Path, one_run: list[BenchRecord]) -> None:
    for record in one_run:
        append_record(tmp_path, record)
    before = (tmp_path / RECORDS_NAME).read_bytes()
    assert read_records(tmp_path) == one_run
    append_record(tmp_path, one_run[0])
    assert (tmp_path / RECORDS_NAME).read_bytes().startswith(before)  # appended, never rewritten
    assert read_records(tmp_path) == [*one_run, one_run[0]]


def changed(record: BenchRecord, **fields: object) -> str:
    return json.dumps(json.loads(record.model_dump_json()) | fields) + "\n"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"schema_version": 2}, r"line 2 has schema version 2; this release reads 1"),
        ({"schema_version": None}, r"schema version None"),
        ({"startup_s": "soon"}, r"field startup_s: "),
        ({"arm": "draft"}, r"field arm: "),
        ({"mood": "good"}, r"field mood: "),
        ({"memory": {"weight_bytes": 1}}, r"field memory.kv_tokens: "),
    ],
)
def test_a_record_that_is_not_ours_is_refused_with_its_line(
    tmp_path: Path, record: Callable[..., BenchRecord], fields: dict[str, object], said: str
) -> None:
    append_record(tmp_path, record())
    with (tmp_path / RECORDS_NAME).open("a") as file:
        file.write(changed(record(), **fields))
    with pytest.raises(UserError, match=said):
        read_records(tmp_path)


@pytest.mark.parametrize("text", ["[1, 2]\n", "not json\n", "\n", "7\n", "[" * 100_000 + "\n", "\xff\n"])
def test_lines_that_are_no_records(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORDS_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="line 1"):
        read_records(tmp_path)


def test_a_line_cut_short_is_said(tmp_path: Path, record: Callable[..., BenchRecord]) -> None:
    append_record(tmp_path, record())
    path = tmp_path / RECORDS_NAME
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="last line is cut short"):
        read_records(tmp_path)


def test_a_folder_without_records(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no records.jsonl; make some with `mi-prun-bench run`"):
        read_records(tmp_path)


def test_figures_are_finite(record: Callable[..., BenchRecord]) -> None:
    with pytest.raises(ValidationError, match="finite"):
        record(startup_s=float("nan"))
