"""The header of a safetensors file: where each tensor's bytes lie. No byte of a tensor is read here.

The format (safetensors documentation): 8 bytes little-endian header length N, N bytes of JSON
`{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}`, then the data section, which
the tensors cover without gap or overlap. Everything is checked before anything is allocated by a size it claims.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mi_prun.errors import UserError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself

BITS_OF_DTYPE = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a shard. `begin` and `end` are byte offsets from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Shard:
    """The header of one safetensors file. `tensors` is in the order of the bytes."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return sum(info.num_bytes for info in self.tensors.values())


def read_shard(path: Path) -> Shard:
    """Read and check a header. Raises UserError if the file is not a whole and honest safetensors file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # else megabytes are read ahead
            head = file.read(8)
            if len(head) < 8:
                raise UserError(f"{path}: {size} bytes are too few for a safetensors file; it is truncated")
            (length,) = struct.unpack("<Q", head)
            if length > MAX_HEADER_BYTES or 8 + length > size:
                raise UserError(
                    f"{path}: header claims {length} bytes of a file of {size}; truncated or not safetensors"
                )
            text = file.read(length)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the safetensors header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise UserError(f"{path}: the safetensors header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) and _encodable(key + value) for key, value in metadata.items()
    ):
        raise UserError(f"{path}: __metadata__ of the safetensors header is not a map of strings")
    start = 8 + length
    infos = sorted(
        (_tensor(path, name, entry, start) for name, entry in header.items()), key=lambda t: (t.begin, t.end)
    )
    position = start
    for info in infos:
        if info.begin != position:
            raise UserError(f"{path}: tensor {info.name!r} overlaps another or leaves a gap; the header is wrong")
        position = info.end
    if position != size:
        what = "truncated" if size < position else "longer than its header says"
        raise UserError(f"{path}: {size} bytes, but the header describes {position}; the file is {what}")
    return Shard(path, {info.name: info for info in infos}, metadata)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key stands twice")
    return entries


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


def _encodable(text: str) -> bool:
    """Return False for half a surrogate pair, which JSON can spell but no other file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tensor(path: Path, name: str, entry: object, start: int) -> TensorInfo:
    if not _encodable(name):
        raise UserError(f"{path}: tensor {name!r}: the name is not valid Unicode")

    def whole(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63

    if not isinstance(entry, dict):
        raise UserError(f"{path}: tensor {name!r}: the header entry is not an object")
    if entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise UserError(f"{path}: tensor {name!r}: the header entry has the fields {', '.join(entry)!r}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS_OF_DTYPE:
        raise UserError(f"{path}: tensor {name!r}: unknown dtype {dtype!r}")
    if not isinstance(shape, list) or not all(map(whole, shape)):
        raise UserError(f"{path}: tensor {name!r}: shape {shape!r} is not a list of whole numbers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(whole, offsets)) or offsets[0] > offsets[1]:
        raise UserError(f"{path}: tensor {name!r}: data_offsets {offsets!r} are not [begin, end]")
    bits = math.prod(shape) * BITS_OF_DTYPE[dtype]
    if bits % 8 or bits // 8 != offsets[1] - offsets[0]:
        raise UserError(f"{path}: tensor {name!r}: {dtype} {shape} does not fill data_offsets {offsets}")
    return TensorInfo(name, dtype, tuple(shape), start + offsets[0], start + offsets[1])
