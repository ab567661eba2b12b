"""Read files of JSON lines: one record a line, each ended by a newline.

A line is appended in one write, newline included (`mi_prun.files.append_line`). A last line without a newline was
therefore cut short, by a full disk or a copy. It is refused: the next record would be appended to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mi_prun.errors import UserError


def read_whole_lines(path: Path) -> list[bytes]:
    """Return the lines of a file, in order; none where there is no such file.

    Raises UserError for a file that cannot be read and for a last line that is cut short.
    """
    if not path.exists():
        return []
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if data and not data.endswith(b"\n"):
        raise UserError(f"{path}: the last line is cut short; remove it")
    return data.splitlines()


def parse_json(line: str | bytes, where: str) -> Any:
    """Return what a line holds. Raises UserError that begins with `where` for what is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error
