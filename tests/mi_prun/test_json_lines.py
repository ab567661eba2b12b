"""Records a line: what was appended is read back, a cut line is left out or refused, any other fault is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mi_prun.artefact import Record
from mi_prun.errors import UserError
from mi_prun.files import append_line
from mi_prun.json_lines import parse_json, read_lines, read_whole_lines, remove_cut_line


class Ship(Record):
    schema_version: int = 1
    name: str
    tonnes: float


SHIPS = [Ship(name="Elbe\u2028", tonnes=3.5), Ship(name="Weser", tonnes=4), Ship(name="Ems", tonnes=0.1)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    for ship in SHIPS:
        append_line(tmp_path / "ships.jsonl", ship.model_dump_json())
    return tmp_path / "ships.jsonl"


def test_what_was_appended_is_read_back(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_lines(path, Ship) == SHIPS
    remove_cut_line(path)
    assert read_lines(path, Ship) == SHIPS
    assert capsys.readouterr().err == ""


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none.jsonl", Ship) == []
    remove_cut_line(tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


def test_a_folder_in_its_place_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_lines(tmp_path, Ship)


def test_a_last_line_cut_anywhere_is_left_out_and_said(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for length in range(1, len(last)):  # also all of it but its line break
        path.write_bytes(whole[: len(whole) - len(last) + length])
        assert read_lines(path, Ship) == SHIPS[:2]
        assert capsys.readouterr().err == f"{path}: the last line is cut short and is left out\n"


def test_after_a_cut_line_is_removed_the_next_is_a_line_of_its_own(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_bytes(path.read_bytes()[:-5])
    remove_cut_line(path)
    assert "the last line was cut short and is removed" in capsys.readouterr().err
    append_line(path, SHIPS[2].model_dump_json())
    assert read_lines(path, Ship) == SHIPS
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"", "line 2"),
        (b"{", "line 2"),
        (b"\xff\xfe", "line 2"),
        (b"[" * 10_000, "line 2"),
        (b"[1]", "line 2"),
        (b'{"name": "Elbe"}', "line 2: field tonnes"),
        (b'{"name": "Elbe", "tonnes": "3"}', "line 2: field tonnes"),
        (b'{"name": "Elbe", "tonnes": 3, "masts": 2}', "line 2: field masts"),
    ],
)
@pytest.mark.parametrize("versions", [None, (1, 2)])
def test_a_fault_names_the_file_and_the_line(
    path: Path, line: bytes, said: str, versions: tuple[int, ...] | None
) -> None:
    first, _, last = path.read_bytes().splitlines(keepends=True)
    line = line.replace(b"{", b'{"schema_version": 1, ') if b"}" in line else line
    path.write_bytes(first + line + b"\n" + last)
    with pytest.raises(UserError, match=f"ships.jsonl, {said}") as error:
        read_lines(path, Ship, versions=versions)
    assert "\n" not in str(error.value)
    remove_cut_line(path)  # mends nothing else
    assert path.read_bytes() == first + line + b"\n" + last


def test_another_version_is_named(path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1 has schema version 1; this release reads 2 and 3: move the file away"):
        read_lines(path, Ship, versions=(2, 3))


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
