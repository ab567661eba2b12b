"""Calibration text by name: a local file, or a data set of the hub. Documents come as an iterator of strings.

notes.txt  notes.txt.xz  notes.txt.gz     the file; documents are separated by three newlines
rows.jsonl  rows.parquet                   field `text`, or the only field that holds strings; rows.jsonl:FIELD
wikitext  alpaca  c4                       short names, see HUB
NAME:CONFIG:SPLIT:FIELD                    any data set that `datasets` loads; CONFIG may be empty
"""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mi_prun.errors import UserError, first_line
from mi_prun.files import sha256_of

HUB = {
    "wikitext": "Salesforce/wikitext:wikitext-2-raw-v1:train:text",
    "alpaca": "tatsu-lab/alpaca::train:text",
    "c4": "allenai/c4:en:train:text",
}
TEXT_SUFFIXES = (".txt", ".md", ".raw", ".tokens", ".text")
ROW_SUFFIXES = (".jsonl", ".parquet")
COMPRESSED = (".xz", ".gz")
DOCUMENT_BREAK = "\n\n\n"
UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error)  # a compressed file that was cut off, or is none
READ_CHARACTERS = 1 << 20
SHUFFLE_BUFFER = 1_000


@dataclass(frozen=True)
class TextSource:
    """name: short, for records and messages; no folder of the machine it was read on. open: a fresh iterator. local: a
    file.
    """

    name: str
    open: Callable[[], Iterator[str]]
    local: bool = True


def text_source(source: str, *, seed: int = 0) -> TextSource:
    """Resolve a source; raises UserError for one that is neither a file nor the name of a data set."""
    path, field = path_and_field(source)
    if path.is_file():
        return _file(path, field)
    if path.suffix in (*TEXT_SUFFIXES, *ROW_SUFFIXES, *COMPRESSED):
        raise UserError(f"calibration text {source}: no such file")
    return _hub(HUB.get(source, source), seed)


def path_and_field(source: str) -> tuple[Path, str | None]:
    """The file that a source names, if it names one, and the field: `rows.jsonl:FIELD`."""
    path = Path(source)
    if not path.exists() and ":" in source:
        head, _, field = source.rpartition(":")
        if _kind(Path(head)) in ROW_SUFFIXES:
            return Path(head), field
    return path, None


def text_digest(source: str) -> str:
    """What tells one text from another: of a file its content, wherever it lies, and the field; else the name."""
    path, field = path_and_field(source)
    return f"{sha256_of(path)} {field or ''}" if path.is_file() else source


def _file(path: Path, field: str | None) -> TextSource:
    kind = _kind(path)
    if kind == ".jsonl":
        return TextSource(path.name, lambda: _json_lines(path, field))
    if kind == ".parquet":
        return TextSource(path.name, lambda: _parquet(path, field))
    if kind in TEXT_SUFFIXES:
        return TextSource(path.name, lambda: _documents(path))
    raise UserError(f"calibration text {path}: files are {', '.join((*TEXT_SUFFIXES, *ROW_SUFFIXES))}, got {kind!r}")


def _kind(path: Path) -> str:
    """The suffix, that of what was compressed where it is."""
    return path.suffixes[-2] if path.suffix in COMPRESSED and len(path.suffixes) > 1 else path.suffix


def _open(path: Path) -> IO[str]:
    openers: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open}
    opened: IO[str] = openers.get(path.suffix, open)(path, "rt", encoding="utf-8")
    return opened


def _documents(path: Path) -> Iterator[str]:
    """Documents of a text file, read piece by piece."""
    try:
        with _open(path) as file:
            rest = ""
            while piece := file.read(READ_CHARACTERS):
                *whole, rest = (rest + piece).split(DOCUMENT_BREAK)
                yield from whole
                if len(rest) > READ_CHARACTERS:
                    yield rest
                    rest = ""
            yield rest
    except (*UNREADABLE, UnicodeDecodeError) as error:
        raise UserError(f"calibration text {path} cannot be read as UTF-8 text: {error}") from error


def _json_lines(path: Path, field: str | None) -> Iterator[str]:
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(f"calibration text {path}: line {number} is not a JSON object")
                field = field or _text_field(row, str(path))
                if not isinstance(row.get(field), str):
                    raise UserError(f"calibration text {path}: line {number} has no text in field {field!r}")
                yield row[field]
    except (*UNREADABLE, ValueError) as error:
        raise UserError(f"calibration text {path} cannot be read: {error}") from error


def _parquet(path: Path, field: str | None) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if field is None:
            strings = {name: "" for name in names if _is_text(file.schema_arrow.field(name).type)}
            field = _text_field(strings, str(path))
        if field not in names:
            raise UserError(f"calibration text {path}: no field {field!r}; there are {', '.join(names)}")
        for batch in file.iter_batches(columns=[field], batch_size=1_000):
            yield from (text for text in batch.column(0).to_pylist() if isinstance(text, str))
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"calibration text {path} cannot be read: {error}") from error


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _text_field(row: dict[str, Any], origin: str) -> str:
    if isinstance(row.get("text"), str):
        return "text"
    strings = [name for name, value in row.items() if isinstance(value, str)]
    if len(strings) != 1:
        found = ", ".join(strings) or "none"
        raise UserError(f"calibration text {origin}: which field is the text? ({found}); name it: {origin}:FIELD")
    return strings[0]


def _hub(source: str, seed: int) -> TextSource:
    parts = source.split(":")
    if len(parts) != 4 or not parts[0] or not parts[2] or not parts[3]:
        raise UserError(
            f"calibration text {source!r} is neither a file nor one of {', '.join(HUB)}, self, "
            "or name:config:split:field"
        )
    name, config, split, field = parts
    return TextSource(source, lambda: _rows(name, config or None, split, field, seed), local=False)


def _rows(name: str, config: str | None, split: str, field: str, seed: int) -> Iterator[str]:
    """Rows of a data set, streamed (c4 is not downloaded whole), in an order drawn by the seed within a buffer."""
    from datasets import load_dataset

    try:
        rows = load_dataset(name, config, split=split, streaming=True).shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
        for row in rows:
            if field not in row:
                raise UserError(f"data set {name}: no field {field!r}; there are {', '.join(row)}")
            yield str(row[field])
    except UserError:
        raise
    except Exception as error:  # the network's errors have no common class: OSError, httpx.TransportError
        raise UserError(
            f"data set {name} cannot be had: {first_line(error)}; give a local .txt, .jsonl or .parquet file, or `self`"
        ) from error
