"""Text by name: files of each kind, and what is refused in one line."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mi_prun.errors import UserError
from mi_prun.text.text_source import text_source

TEXT = "one\n\n\ntwo\n\n\nthree"


@pytest.mark.parametrize("name", ["notes.txt", "notes.txt.gz", "notes.txt.xz"])
def test_documents_of_a_text_file_are_separated_by_three_newlines(tmp_path: Path, name: str) -> None:
    packed = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)(TEXT.encode())
    (tmp_path / name).write_bytes(packed)
    source = text_source(str(tmp_path / name))
    assert source.name == name
    assert list(source.open()) == list(source.open()) == ["one", "two", "three"]


def test_rows(tmp_path: Path) -> None:
    rows = [{"text": "a", "other": "x"}, {"text": "b", "other": "y"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.parquet"):
        assert list(text_source(str(tmp_path / name)).open()) == ["a", "b"]
        assert list(text_source(f"{tmp_path / name}:other").open()) == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("bad.txt", b"\xff\xfe\xff", "cannot be read as UTF-8"),
        ("bad.txt.xz", b"no archive", "cannot be read"),
        ("bad.jsonl", b"{", "cannot be read"),
        ("list.jsonl", b"[1]", "not a JSON object"),
        ("two.jsonl", b'{"a": "x", "b": "y"}', "which field is the text"),
        ("bad.parquet", b"no parquet", "cannot be read"),
        ("notes.pdf", b"x", "files are"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=said):
        list(text_source(str(tmp_path / name)).open())


@pytest.mark.parametrize(("name", "said"), [("nothing.txt", "no such file"), ("what", "neither a file nor one of")])
def test_neither_a_file_nor_a_data_set(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        text_source(name)


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view"])
def test_every_kind_of_text_in_parquet(tmp_path: Path, kind: str) -> None:
    """Polars and newer pandas write the latter two."""
    table = pyarrow.table({"text": pyarrow.array(["one", "two"], getattr(pyarrow, kind)()), "n": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert list(text_source(str(tmp_path / "rows.parquet")).open()) == ["one", "two"]


def test_the_field_of_a_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": "one", "b": "two"}\n'))
    with pytest.raises(UserError, match=r"name it: .*rows\.jsonl\.gz:FIELD"):
        list(text_source(str(path)).open())
    assert list(text_source(f"{path}:b").open()) == ["two"]


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl.xz", "notes.txt.gz"])
def test_a_compressed_file_that_was_cut_off(tmp_path: Path, name: str) -> None:
    pack = lzma.compress if name.endswith("xz") else gzip.compress
    rows = b"".join(b'{"text": "%d"}\n' % (number * 7919) for number in range(5_000))
    (tmp_path / name).write_bytes(pack(rows)[:-200])
    with pytest.raises(UserError, match="cannot be read"):
        list(text_source(str(tmp_path / name)).open())
