"""JSON lines: whole ones are read, a last one that is cut short is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.records.json_lines import parse_json, read_whole_lines
from mi_prun.errors import UserError


def test_whole_lines_in_order(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_whole_lines(path) == []
    path.write_bytes(b"")
    assert read_whole_lines(path) == []
    path.write_bytes(b'{"a": 1}\n\n{"b": 2}\n')
    assert read_whole_lines(path) == [b'{"a": 1}', b"", b'{"b": 2}']


@pytest.mark.parametrize("end", [b"{", b'{"b": 2}', b"7"])
def test_a_last_line_without_its_newline_is_refused(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + end)
    with pytest.raises(UserError, match=r"rows\.jsonl: the last line is cut short; remove it"):
        read_whole_lines(path)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_whole_lines(tmp_path)
    for line in (b"not json", b"", b"\xff", b"[" * 100_000):
        with pytest.raises(UserError, match=r"^rows\.jsonl, line 3 is not JSON: "):
            parse_json(line, "rows.jsonl, line 3")
    assert parse_json('{"a": 1}', "x") == {"a": 1}
