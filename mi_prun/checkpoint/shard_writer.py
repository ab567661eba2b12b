"""Safetensors shards written as a stream: bytes go from file to file as they are, and are hashed on the way.

- A buffer is read, then written and hashed at the same time in two threads: hashlib and the system calls release the
  interpreter's lock.
- The kernel is told to start bringing what was written to the disk, so that the fsync at the end has little to do.
- Several shards are written side by side: one SHA-256 is slower than a fast disk.

No tensor is decoded. Memory stays at a few buffers, whatever the size of a tensor.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from mi_prun.checkpoint.manifest import FileDigest
from mi_prun.errors import UserError
from mi_prun.model.shard import BITS_OF_DTYPE, TensorInfo

BUFFER_BYTES = 1 << 20
BUFFERS = 8
WRITERS = 4
FLUSH_BYTES = 32 << 20
HEADER_ALIGNMENT = 8

Advance = Callable[[float], None]

_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)


@dataclass(frozen=True)
class TensorCopy:
    """A tensor to write under `name`, whose bytes lie in `source` from `info.begin` to `info.end`."""

    name: str
    source: Path
    info: TensorInfo


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: its file name, and its tensors in the order of the bytes."""

    file: str
    copies: tuple[TensorCopy, ...]

    @property
    def num_bytes(self) -> int:
        return sum(copy.info.num_bytes for copy in self.copies)

    def header(self, metadata: dict[str, str]) -> bytes:
        """Return the 8 bytes of length and the JSON, padded so that the data begins at a multiple of 8."""
        entries: dict[str, object] = {"__metadata__": metadata} if metadata else {}
        position = 0
        for copy in self.copies:
            end = position + copy.info.num_bytes
            entries[copy.name] = {
                "dtype": copy.info.dtype,
                "shape": list(copy.info.shape),
                "data_offsets": [position, end],
            }
            position = end
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % HEADER_ALIGNMENT)
        return len(text).to_bytes(8, "little") + text


def plan_shards(copies: Sequence[TensorCopy], max_shard_bytes: int) -> list[ShardPlan]:
    """Fill shards in the order given, each up to `max_shard_bytes` of tensors. A larger tensor gets its own shard.

    Within a shard wide dtypes come first, so that every tensor begins at a multiple of its element size.
    """
    groups: list[list[TensorCopy]] = [[]]
    filled = 0
    for copy in copies:
        if groups[-1] and filled + copy.info.num_bytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(copy)
        filled += copy.info.num_bytes
    for group in groups:
        group.sort(key=lambda copy: -BITS_OF_DTYPE[copy.info.dtype])  # stable
    if len(groups) == 1:
        return [ShardPlan("model.safetensors", tuple(groups[0]))]
    return [
        ShardPlan(f"model-{number:05d}-of-{len(groups):05d}.safetensors", tuple(group))
        for number, group in enumerate(groups, 1)
    ]


def write_shards(
    folder: Path, shards: Sequence[ShardPlan], metadata: dict[str, str], advance: Advance
) -> dict[str, FileDigest]:
    """Write and fsync every shard, and return size and sha256 of each file. `advance` is told the bytes written."""
    stop = Event()
    with ThreadPoolExecutor(min(WRITERS, os.cpu_count() or 1, len(shards))) as writers:
        try:
            futures = {
                shard.file: writers.submit(_write_shard, folder / shard.file, shard, metadata, advance, stop)
                for shard in shards
            }
            for future in as_completed(futures.values()):
                future.result()
        except BaseException:  # an interrupt, too, ends the other writers
            stop.set()
            writers.shutdown(wait=True, cancel_futures=True)
            raise
    return {file: future.result() for file, future in futures.items()}


def _write_shard(path: Path, shard: ShardPlan, metadata: dict[str, str], advance: Advance, stop: Event) -> FileDigest:
    digest = hashlib.sha256()
    head = shard.header(metadata)
    digest.update(head)
    buffers = [memoryview(bytearray(BUFFER_BYTES)) for _ in range(BUFFERS)]
    hashed: list[Future[None] | None] = [None] * BUFFERS
    turn = 0
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with ThreadPoolExecutor(1) as hashing:
        try:
            _write_all(out, memoryview(head))
            written = flushed = len(head)
            for source, begin, end in _extents(shard.copies):
                with source.open("rb", buffering=0) as file:
                    file.seek(begin)
                    position = begin
                    while position < end and not stop.is_set():
                        if (busy := hashed[turn]) is not None:
                            busy.result()
                        count = file.readinto(buffers[turn][: end - position])
                        if not count:
                            raise UserError(f"{source} ended at byte {position}: it was changed while it was read")
                        data = buffers[turn][:count]
                        hashed[turn] = hashing.submit(digest.update, data)
                        _write_all(out, data)
                        turn = (turn + 1) % BUFFERS
                        position += count
                        written += count
                        if written - flushed >= FLUSH_BYTES:
                            _start_flush(out, flushed, written - flushed)
                            flushed = written
                        advance(count)
            if not stop.is_set():
                os.fsync(out)
        finally:
            os.close(out)
    return FileDigest(num_bytes=len(head) + shard.num_bytes, sha256=digest.hexdigest())


def _start_flush(out: int, begin: int, count: int) -> None:
    """Start writing a range to the disk, without waiting for it (Linux). fsync alone is as safe, but slower."""
    if _sync_file_range is not None:
        _sync_file_range(out, ctypes.c_int64(begin), ctypes.c_int64(count), ctypes.c_uint(2))  # SYNC_FILE_RANGE_WRITE


def _extents(copies: Sequence[TensorCopy]) -> Iterator[tuple[Path, int, int]]:
    """Yield (file, begin, end) of the bytes to copy. Neighbours are joined: small tensors do not cost a call each."""
    run: tuple[Path, int, int] | None = None
    for copy in copies:
        if run and run[0] == copy.source and run[2] == copy.info.begin:
            run = (run[0], run[1], copy.info.end)
            continue
        if run:
            yield run
        run = (copy.source, copy.info.begin, copy.info.end)
    if run:
        yield run


def _write_all(out: int, data: memoryview) -> None:
    while data:
        data = data[os.write(out, data) :]
