"""Calibration text by name: a local file, or a data set of the hub. Documents come as an iterator of strings.

notes.txt  notes.txt.xz  notes.txt.gz     the file, UTF-8; documents are separated by three newlines
rows.jsonl  rows.parquet                   field `text`, else `messages`, else the only one with strings;
                                           rows.jsonl:FIELD names another
wikitext  alpaca  c4                       short names, see HUB
NAME:CONFIG:SPLIT:FIELD                    any data set that `datasets` loads; CONFIG may be empty

What a value of a row becomes is one rule for all of them: `row_text.py`.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mi_prun.console import progress
from mi_prun.errors import LONGEST_SHOWN, UserError, first_line
from mi_prun.files import check_name, sha256_of
from mi_prun.text.row_text import FILE, Row, row_texts, text_field

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
NUL_SHARE = 0.1  # of the characters: UTF-16 without a byte order mark looks so
FILE_AND_FIELD = re.compile(r"(?P<file>.*?\.(?:jsonl|parquet)(?:\.xz|\.gz)?):(?P<field>.*)", re.DOTALL)
MARKS = {"UTF-32": codecs.BOM_UTF32_LE, "UTF-16": codecs.BOM_UTF16_LE, "UTF-16BE": codecs.BOM_UTF16_BE}
CONVERT = "; convert it first, like `iconv -f UTF-16 -t UTF-8`"


@dataclass(frozen=True)
class TextSource:
    """A text that can be read.

    name: short, for records and messages; it says no folder of the machine. open: begins a new reading of its
    documents. local: whether it is a file.
    """

    name: str
    open: Callable[[], Iterator[str]]
    local: bool = True


def text_source(source: str, *, seed: int = 0, tokenizer: Any = None) -> TextSource:
    """Resolve the name of a text. tokenizer: whose chat template writes chat turns (`row_text.py`).

    Raises UserError for what is neither a file nor the name of a data set.
    """
    path, field = path_and_field(source)
    if path.is_file():
        return _file(path, field, tokenizer)
    if path.suffix in (*TEXT_SUFFIXES, *ROW_SUFFIXES, *COMPRESSED):
        raise UserError(f"calibration text {source}: no such file")
    return _hub(HUB.get(source, source), seed, tokenizer)


SHOWN_BYTES = 2**30
KNOWN_DIGESTS: dict[tuple[str, int, int, int], str] = {}  # of this process


def path_and_field(source: str) -> tuple[Path, str | None]:
    """Split `rows.jsonl:FIELD` into the file and the field; of another source the path it would have, and None."""
    path = Path(source)
    check_name(path, "calibration text")
    try:
        named = None if path.exists() else FILE_AND_FIELD.fullmatch(source)
    except (OSError, ValueError) as error:
        raise UserError(f"calibration text {source[:LONGEST_SHOWN]!r} cannot be looked for: {error}") from error
    return (Path(named["file"]), named["field"]) if named else (path, None)


def text_digest(source: str) -> str:
    """Return what tells one text from another: a file's content, wherever it lies, and the field; else the name."""
    path, field = path_and_field(source)
    try:
        return f"{_file_digest(path, path.stat())} {field or ''}" if path.is_file() else source
    except OSError as error:
        raise UserError(f"calibration text {source}: cannot be read: {error.strerror}") from error


def _file_digest(path: Path, found: os.stat_result) -> str:
    """Return a file's digest. One that is as it was is read once: a text may have 50 GB."""
    key = (str(path.resolve()), found.st_ino, found.st_size, found.st_mtime_ns)
    if key not in KNOWN_DIGESTS:
        with progress(f"reading {path.name}", found.st_size, "bytes", shown=found.st_size > SHOWN_BYTES) as advance:
            KNOWN_DIGESTS[key] = sha256_of(path, advance)
    return KNOWN_DIGESTS[key]


def _file(path: Path, field: str | None, tokenizer: Any) -> TextSource:
    kind = _kind(path)
    origin = f"{FILE}{path}"
    if kind == ".jsonl":
        return TextSource(path.name, lambda: row_texts(origin, json_rows(path, origin), field, tokenizer))
    if kind == ".parquet":
        return TextSource(path.name, lambda: _parquet(path, origin, field, tokenizer))
    if kind in TEXT_SUFFIXES:
        return TextSource(path.name, lambda: _documents(path, origin))
    raise UserError(f"{origin}: files are {', '.join((*TEXT_SUFFIXES, *ROW_SUFFIXES))}, got {kind!r}")


def _kind(path: Path) -> str:
    """The suffix; of a compressed file the one before it."""
    return path.suffixes[-2] if path.suffix in COMPRESSED and len(path.suffixes) > 1 else path.suffix


def _open(path: Path) -> IO[bytes]:
    openers: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open}
    opened: IO[bytes] = openers.get(path.suffix, open)(path, "rb")
    return opened


def _open_text(path: Path) -> IO[str]:
    """UTF-8, a byte order mark left out, every kind of line break as a newline."""
    return io.TextIOWrapper(_open(path), encoding="utf-8-sig")


def _documents(path: Path, origin: str) -> Iterator[str]:
    """Documents of a text file, read piece by piece."""
    try:
        with _open_text(path) as file:
            rest = ""
            while piece := file.read(READ_CHARACTERS):
                _check_nul(piece, origin)
                *whole, rest = (rest + piece).split(DOCUMENT_BREAK)
                yield from whole
                if len(rest) > READ_CHARACTERS:
                    yield rest
                    rest = ""
            yield rest
    except UnicodeDecodeError as error:
        raise _not_utf8(path, origin) from error
    except UNREADABLE as error:
        raise UserError(f"{origin} cannot be read: {error}") from error


def json_rows(path: Path, origin: str) -> Iterator[tuple[str, Row]]:
    """Yield the place, like `line 3`, and the object of each line of a file that is not blank.

    origin: what the rows are of, for messages. Raises UserError for a line that is no JSON object or no UTF-8.
    """
    number = 0
    try:
        with _open_text(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                _check_nul(line, origin)
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(f"{origin}: line {number} is not a JSON object")
                yield f"line {number}", row
    except UnicodeDecodeError as error:
        raise _not_utf8(path, origin) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin} cannot be read: line {number} is not JSON: {error}") from error
    except UNREADABLE as error:
        raise UserError(f"{origin} cannot be read: {error}") from error


def _check_nul(text: str, origin: str) -> None:
    """Refuse UTF-16 without a byte order mark: most of it is valid UTF-8, every other character NUL."""
    if text.count("\0") > NUL_SHARE * len(text):
        raise UserError(f"{origin} cannot be read as UTF-8 text: it is full of NUL characters{CONVERT}")


def _not_utf8(path: Path, origin: str) -> UserError:
    """The error for a file that is not UTF-8: it names the first line that is not."""
    said = "it is not valid UTF-8"
    with contextlib.suppress(*UNREADABLE), _open(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1 and (mark := next((name for name, mark in MARKS.items() if line.startswith(mark)), None)):
                return UserError(
                    f"{origin} cannot be read as UTF-8 text: it begins with the byte order mark of {mark}"
                    f"{CONVERT.replace('UTF-16', mark)}"
                )
            try:
                line.decode()
            except UnicodeDecodeError as error:
                said = f"line {number} is not valid UTF-8 ({error.reason} at its byte {error.start + 1})"
                break
    return UserError(f"{origin} cannot be read as UTF-8 text: {said}{CONVERT}")


def _parquet(path: Path, origin: str, field: str | None, tokenizer: Any) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        schema = file.schema_arrow
        if field is None:
            kinds = zip(schema.names, schema.types, strict=True)
            field = text_field({name: "" if _is_text(kind) else 0 for name, kind in kinds}, origin)
        if field not in schema.names:
            raise UserError(f"{origin}: no field {field!r}; there are {', '.join(schema.names)}")
        if schema.names.count(field) > 1:
            raise UserError(f"{origin}: {schema.names.count(field)} fields are named {field!r}; rename all but one")
        yield from row_texts(origin, _parquet_rows(file, field, origin), field, tokenizer)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{origin} cannot be read: {first_line(error)}") from error


def _parquet_rows(file: Any, field: str, origin: str) -> Iterator[tuple[str, Row]]:
    number = 0
    for batch in file.iter_batches(columns=[field], batch_size=1_000):
        for value in batch.column(0):
            number += 1
            try:
                read = value.as_py()
            except Exception as error:  # bytes that are no UTF-8, a time or a time zone that there is not
                raise UserError(
                    f"{origin}: row {number}, field {field!r} cannot be read: {first_line(error)}"
                ) from error
            yield f"row {number}", {field: read}


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _hub(source: str, seed: int, tokenizer: Any) -> TextSource:
    parts = source.split(":")
    if len(parts) != 4 or not parts[0] or not parts[2] or not parts[3]:
        raise UserError(
            f"calibration text {source!r} is neither a file nor one of {', '.join(HUB)}, self, "
            "or name:config:split:field"
        )
    name, config, split, field = parts
    return TextSource(
        source,
        lambda: row_texts(f"data set {name}", _hub_rows(name, config or None, split, seed), field, tokenizer),
        local=False,
    )


def _hub_rows(name: str, config: str | None, split: str, seed: int) -> Iterator[tuple[str, Row]]:
    """Rows of a data set, streamed (c4 is not downloaded whole), in an order drawn by the seed within a buffer."""
    from datasets import load_dataset

    try:
        rows = load_dataset(name, config, split=split, streaming=True).shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
        for number, row in enumerate(rows, 1):
            yield f"row {number} (as shuffled by seed {seed})", row
    except Exception as error:  # the network's errors have no common class: OSError, httpx.TransportError
        said = first_line(error)
        if said.startswith("Config name is missing"):  # what there is stands in the next line
            said = f"{' '.join(str(error).split())} (name:CONFIG:split:field)"
        raise UserError(
            f"data set {name} cannot be had: {said}; give a local .txt, .jsonl or .parquet file, or `self`"
        ) from error
