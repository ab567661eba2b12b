"""A GGUF file, by its header: metadata, and where each tensor's bytes lie. No byte of a tensor is read here.

The format (GGUF specification, versions 2 and 3, little-endian):

- `GGUF`, u32 version, u64 number of tensors, u64 number of metadata entries;
- the entries: key, u32 type, value;
- the tensors: name, u32 number of dimensions, u64 dimensions with the fastest first, u32 type, u64 offset;
- the data, aligned.

Everything is checked against the size of the file before anything is allocated by a number it claims. The readers in
use take a file at its word.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mi_prun.errors import UserError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_DIMENSIONS = 4
MOST_ENTRIES = 1 << 22  # of all arrays of the metadata; vocabularies have fewer than a million
DEFAULT_ALIGNMENT = 32
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
SPLIT_NAME = re.compile(r"-\d{5}-of-(?P<count>\d{5})\.gguf\Z")
PIECE_NAME = re.compile(r"\.gguf\.?(part)?[-_]?\d+\Z")

Scalar = str | int | float | bool
Value = Scalar | list[Scalar]


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a GGUF file. shape: as torch has it. kind: GGML's number of the way it is stored."""

    name: str
    shape: tuple[int, ...]
    kind: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """The header of one GGUF file."""

    path: Path
    num_bytes: int
    metadata: Mapping[str, Value]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        return self.text("general.architecture") or ""

    def text(self, key: str) -> str | None:
        """The value of a key that holds text; None where there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def whole(self, key: str) -> int | None:
        """The value of a key that holds a whole number; None where there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_gguf_header(path: Path, block_sizes: Mapping[int, tuple[int, int]]) -> GgufHeader:
    """Read and check a header. Raises UserError where the file is not one whole and honest GGUF file.

    block_sizes: of each way to store a tensor, by GGML's number: elements and bytes of a block.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the .gguf file in it")
    if (split := SPLIT_NAME.search(path.name)) and int(split["count"]) > 1:
        raise _split(path, int(split["count"]))
    if PIECE_NAME.search(path.name):
        whole = path.name[: path.name.index(".gguf") + len(".gguf")]
        raise UserError(f"{path} is a piece of a file; join the pieces first: cat {whole}.* > {whole}")
    try:
        with path.open("rb") as file, _mapped(path, file.fileno()) as data:
            return _read(path, data, block_sizes)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _mapped(path: Path, file: int) -> mmap.mmap:
    try:
        return mmap.mmap(file, 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # an empty file cannot be mapped
        raise UserError(f"{path} is empty") from error


def _read(path: Path, data: mmap.mmap, block_sizes: Mapping[int, tuple[int, int]]) -> GgufHeader:
    if data[: len(MAGIC)] != MAGIC:
        raise UserError(f"{path} does not begin with {MAGIC.decode()}: it is not a GGUF file")
    cursor = _Cursor(path, data)
    version, tensor_count, entry_count = cursor.numbers("IQQ")
    if version not in VERSIONS:
        raise UserError(f"{path} is of GGUF version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} are read")
    metadata: dict[str, Value] = {}
    for _ in range(entry_count):
        key = cursor.string()
        if key in metadata:
            raise UserError(f"{path}: the key {key!r} stands twice in the metadata")
        metadata[key] = cursor.value()
    header = GgufHeader(path, len(data), metadata, ())
    if (count := header.whole("split.count") or 1) > 1:
        raise _split(path, count)
    if not header.architecture:
        raise UserError(f"{path} does not say its general.architecture")
    tensors, extents = [], []
    for _ in range(tensor_count):
        tensor, offset, size = _tensor(cursor, block_sizes)
        tensors.append(tensor)
        extents.append((offset, offset + size, tensor.name))
    alignment = header.whole("general.alignment") or DEFAULT_ALIGNMENT
    if alignment < 1 or alignment & (alignment - 1):
        raise UserError(f"{path}: general.alignment must be a power of 2, got {alignment}")
    _check_extents(path, sorted(extents), -(-cursor.position // alignment) * alignment, alignment, len(data))
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise UserError(f"{path}: a tensor's name stands twice")
    return GgufHeader(path, len(data), metadata, tuple(tensors))


def _tensor(cursor: _Cursor, block_sizes: Mapping[int, tuple[int, int]]) -> tuple[GgufTensor, int, int]:
    """A tensor, its offset in the data section, and its bytes."""
    path, name = cursor.path, cursor.string()
    (dimensions,) = cursor.numbers("I")
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise UserError(f"{path}: tensor {name!r} has {dimensions} dimensions; 1 to {MOST_DIMENSIONS} can be")
    shape = cursor.numbers(f"{dimensions}Q")
    kind, offset = cursor.numbers("IQ")
    if kind not in block_sizes:
        raise UserError(f"{path}: tensor {name!r} is stored in a way (GGML type {kind}) that the gguf package lacks")
    elements, size = block_sizes[kind]
    if shape[0] % elements:
        raise UserError(f"{path}: tensor {name!r} has rows of {shape[0]} elements, but blocks of {elements}")
    tensor = GgufTensor(name, tuple(reversed(shape)), kind)
    return tensor, offset, tensor.num_elements // elements * size


def _check_extents(path: Path, extents: list[tuple[int, int, str]], start: int, alignment: int, size: int) -> None:
    """Tensors lie in the file, aligned, and share no byte."""
    if not extents:
        raise UserError(f"{path} holds no tensor")
    position = 0
    for begin, end, name in extents:
        if begin % alignment or begin < position:
            raise UserError(f"{path}: tensor {name!r} overlaps another or is not aligned; the header is wrong")
        if start + end > size:
            raise UserError(
                f"{path}: {size:,} bytes, but tensor {name!r} ends at byte {start + end:,}; the file is truncated or "
                "its header is wrong"
            )
        position = end


def _split(path: Path, count: int) -> UserError:
    return UserError(
        f"{path} is one of {count} files of a split model; merge them first with llama.cpp: llama-gguf-split --merge "
        "FIRST.gguf WHOLE.gguf"
    )


class _Cursor:
    """A place in the header that moves on with each read."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.position = len(MAGIC)
        self._data = data
        self._entries = 0

    def numbers(self, fields: str) -> tuple[int, ...]:
        layout = struct.Struct(f"<{fields}")
        return layout.unpack(self._take(layout.size))

    def string(self) -> str:
        (length,) = self.numbers("Q")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: the header holds a string that is not UTF-8") from error

    def value(self) -> Value:
        (kind,) = self.numbers("I")
        if kind != ARRAY:
            return self._scalar(kind)
        kind, count = self.numbers("IQ")
        self._check(count * struct.calcsize(f"<{SCALARS.get(kind, 'Q')}"))  # of strings: the lengths alone
        self._entries += count
        if self._entries > MOST_ENTRIES:
            raise UserError(
                f"{self.path}: the arrays of its metadata have {self._entries:,} entries or more; {MOST_ENTRIES:,} are "
                "the most that is read"
            )
        if kind in SCALARS:
            return list(self.numbers(f"{count}{SCALARS[kind]}"))
        return [self._scalar(kind) for _ in range(count)]

    def _scalar(self, kind: int) -> Scalar:
        if kind == STRING:
            return self.string()
        if kind not in SCALARS:
            raise UserError(f"{self.path}: the metadata holds a value of the unknown type {kind}")
        return self.numbers(SCALARS[kind])[0]

    def _take(self, size: int) -> bytes:
        self._check(size)
        begin, self.position = self.position, self.position + size
        return self._data[begin : self.position]

    def _check(self, size: int) -> None:
        if size > len(self._data) - self.position:
            raise UserError(
                f"{self.path}: the header says {size:,} more bytes at byte {self.position:,} of {len(self._data):,}; "
                "the file is truncated or its header is wrong"
            )
