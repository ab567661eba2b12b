"""JSON-lines files of our own: one record a line, appended by `files.append_line`, read back here.

A line is appended in one write, line break included. A last line without one was therefore cut short, by a kill, a full
disk or a copy. `read_lines` leaves it out and says so; `read_whole_lines` refuses it, as the next record would be
appended to it. Any other fault is an error that names the file and the line.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from mi_prun.console import say
from mi_prun.errors import UserError
from mi_prun.files import new_file

Line = TypeVar("Line", bound=BaseModel)


def read_lines(path: Path, kind: type[Line], *, versions: Collection[int] | None = None) -> list[Line]:
    """Return the lines of `path` as records, in order; none where there is no such file.

    versions: the schema versions that can be read; None where `kind` itself says so.
    Raises UserError for a line that is not JSON, of another version, or not a `kind`.
    """
    data = _read(path)
    whole, cut = _split(data)
    if cut:
        say(f"{path}: the last line is cut short and is left out")
    return [_parse(f"{path}, line {number}", line, kind, versions) for number, line in enumerate(whole, 1)]


def read_whole_lines(path: Path) -> list[bytes]:
    """Return the lines of `path` as bytes, in order; none where there is no such file.

    Raises UserError for a file that cannot be read and for a last line that is cut short.
    """
    whole, cut = _split(_read(path))
    if cut:
        raise UserError(f"{path}: the last line is cut short; remove it")
    return whole


def parse_json(line: str | bytes, where: str) -> Any:
    """Return what a line holds. Raises UserError that begins with `where` for what is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error


def remove_cut_line(path: Path) -> None:
    """Remove a last line that was cut short, so that the next one is appended on a line of its own; say so."""
    data = _read(path)
    whole, cut = _split(data)
    if not cut:
        return
    say(f"{path}: the last line was cut short and is removed")
    with new_file(path) as partial:
        partial.write_bytes(b"".join(line + b"\n" for line in whole))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    """Whole lines without their line breaks, and what follows the last line break."""
    *whole, cut = data.split(b"\n")
    return whole, cut


def _parse(place: str, line: bytes, kind: type[Line], versions: Collection[int] | None) -> Line:
    try:
        if versions is not None:
            fields = from_json(line)
            version = fields.get("schema_version") if isinstance(fields, dict) else None
            if version not in versions:
                raise UserError(
                    f"{place} has schema version {version!r}; this release reads {' and '.join(map(str, versions))}: "
                    "move the file away"
                )
        return kind.model_validate_json(line, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"field {'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
        raise UserError(f"{place}: {where}{first['msg']}; move the file away") from error
    except ValueError as error:
        raise UserError(f"{place} is not JSON: {error}; move the file away") from error
