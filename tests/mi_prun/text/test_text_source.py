"""Text by name: files of each kind, and what is refused in one line."""

from __future__ import annotations

import codecs
import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from mi_prun.errors import UserError
from mi_prun.files import sha256_of
from mi_prun.text import text_source as text_source_module
from mi_prun.text.text_source import text_digest, text_source

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


SHIPS = "Elbe\n\n\nWeser: drei Schiffe, 3 €"


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("end", ["", "\n", "\n \n\n\n\n\n\n"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_line_breaks_and_a_byte_order_mark_are_no_text(
    tmp_path: Path, line_break: str, mark: bytes, end: str, suffix: str
) -> None:
    data = mark + (SHIPS + end).replace("\n", line_break).encode()
    path = tmp_path / f"ships.txt{suffix}"
    path.write_bytes(gzip.compress(data) if suffix else data)
    assert [text for text in map(str.strip, text_source(str(path)).open()) if text] == SHIPS.split("\n\n\n")
    rows = "".join(json.dumps({"text": text}) + "\n" for text in SHIPS.split("\n\n\n"))
    path = tmp_path / f"ships.jsonl{suffix}"
    data = mark + (rows + end).replace("\n", line_break).encode()
    path.write_bytes(gzip.compress(data) if suffix else data)
    assert list(text_source(str(path)).open()) == SHIPS.split("\n\n\n")


@pytest.mark.parametrize("name", ["ships.txt", "ships.jsonl", "ships.txt.gz", "ships.jsonl.xz"])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("ships\n".encode("utf-16"), "begins with the byte order mark of UTF-16"),
        ("ships\n".encode("utf-32"), "begins with the byte order mark of UTF-32; .* -f UTF-32"),
        (codecs.BOM_UTF16_BE + "ships\n".encode("utf-16-be"), "begins with the byte order mark of UTF-16BE"),
        (b"{}\n" * 9 + b'"caf\xe9"\n', "line 10 is not valid UTF-8 .* byte 5"),
    ],
)
def test_text_of_another_encoding_is_refused_with_the_way_out(
    tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(data))
    with pytest.raises(UserError, match=said) as error:
        list(text_source(str(tmp_path / name)).open())
    assert "iconv" in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_utf_16_without_a_mark_is_refused(tmp_path: Path, encoding: str) -> None:
    """It is valid UTF-8, every other character of it NUL."""
    for name, text in (("ships.txt", "ships " * 99), ("ships.jsonl", '{"text": "ships"}\n' * 9)):
        (tmp_path / name).write_bytes(text.encode(encoding))
        with pytest.raises(UserError, match="full of NUL characters"):
            list(text_source(str(tmp_path / name)).open())


def test_a_nul_among_much_text_is_text(tmp_path: Path) -> None:
    (tmp_path / "ships.txt").write_text("ships " * 99 + "\0")
    assert list(text_source(str(tmp_path / "ships.txt")).open()) == ["ships " * 99 + "\0"]


def test_one_giant_line(tmp_path: Path) -> None:
    """A text without a break comes in pieces, and a row whole; nothing is lost."""
    text = "ships €" * 500_000
    (tmp_path / "ships.txt").write_text(text)
    pieces = list(text_source(str(tmp_path / "ships.txt")).open())
    assert len(pieces) > 1
    assert "".join(pieces) == text
    (tmp_path / "ships.jsonl").write_text(json.dumps({"text": text}))
    assert list(text_source(str(tmp_path / "ships.jsonl")).open()) == [text]


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"text": ' + "[" * 100_000, '{"text": "a"} {"text": "b"}', "{'text': 1}"]
)
def test_a_line_that_is_no_json_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "ships.jsonl").write_text('{"text": "a"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=r"ships\.jsonl cannot be read: line 3 is not JSON"):
        list(text_source(str(tmp_path / "ships.jsonl")).open())


def test_parquet_that_holds_bytes_for_text_is_refused(tmp_path: Path) -> None:
    """A column that says it is text and is not valid UTF-8, and one of bytes."""
    offsets, data = np.array([0, 1, 3], np.int32), b"a\xff\xfe"
    text = pyarrow.StringArray.from_buffers(2, pyarrow.py_buffer(offsets), pyarrow.py_buffer(data))
    pyarrow.parquet.write_table(pyarrow.table({"text": text, "raw": [b"a", b"b"]}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="row 2, field 'text' cannot be read"):
        list(text_source(str(tmp_path / "rows.parquet")).open())
    with pytest.raises(UserError, match="row 1, field 'raw' holds a value of type bytes, not text"):
        list(text_source(f"{tmp_path / 'rows.parquet'}:raw").open())


def test_columns_of_parquet_that_are_not_plain(tmp_path: Path) -> None:
    """Categories of text are text; a dot in a name is a part of it; a struct is no text."""
    table = pyarrow.table(
        {
            "kind": pyarrow.array(["one", "two"]).dictionary_encode(),
            "in.side": [1, 2],
            "struct": [{"text": "a"}, {"text": "b"}],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    source = str(tmp_path / "rows.parquet")
    assert list(text_source(source).open()) == ["one", "two"]
    with pytest.raises(UserError, match="row 1, field 'struct' holds an object"):
        list(text_source(f"{source}:struct").open())
    with pytest.raises(UserError, match=r"row 1, field 'in\.side' holds a number"):
        list(text_source(f"{source}:in.side").open())
    with pytest.raises(UserError, match=r"no field 'struct\.text'; there are kind, in\.side, struct"):
        list(text_source(f"{source}:struct.text").open())


def test_two_columns_of_parquet_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    columns = [pyarrow.array(["one"]), pyarrow.array([1]), pyarrow.array([2])]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=["text", "n", "n"]), path)
    assert list(text_source(str(path)).open()) == ["one"]
    with pytest.raises(UserError, match="2 fields are named 'n'; rename all but one"):
        list(text_source(f"{path}:n").open())


def test_a_time_zone_that_there_is_not(tmp_path: Path) -> None:
    times = pyarrow.array([1], pyarrow.timestamp("s", "Nowhere/At-All"))
    pyarrow.parquet.write_table(pyarrow.table({"when": times, "text": ["one"]}), tmp_path / "rows.parquet")
    assert list(text_source(str(tmp_path / "rows.parquet")).open()) == ["one"]
    with pytest.raises(UserError, match=r"row 1, field 'when' cannot be read: .*Nowhere/At-All"):
        list(text_source(f"{tmp_path / 'rows.parquet'}:when").open())


def test_a_field_with_a_colon_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a:b": "one", "c": "two"}')
    assert list(text_source(f"{tmp_path / 'rows.jsonl'}:a:b").open()) == ["one"]


@pytest.mark.parametrize("name", ["x" * 5_000, "a\0b"])
def test_a_name_that_no_file_can_have(name: str) -> None:
    with pytest.raises(UserError) as error:
        text_source(name)
    assert len(str(error.value)) < 6_000


def test_a_file_is_digested_once_and_again_where_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one")
    read: list[Path] = []
    monkeypatch.setattr(text_source_module, "sha256_of", lambda path, advance: read.append(path) or sha256_of(path))
    first = text_digest(str(tmp_path / "a.txt"))
    assert text_digest(str(tmp_path / "a.txt")) == first
    assert len(read) == 1
    (tmp_path / "a.txt").write_text("other")
    assert text_digest(str(tmp_path / "a.txt")) != first
    assert len(read) == 2
