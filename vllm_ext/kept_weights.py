"""The tensors of a pruned model, out of the folder that has them, under their new names.

A tensor of a dropped block is skipped by its name, before a byte of it is read. A file that holds no wanted tensor is
not opened. The names follow `mi_prun.architecture.architecture.renamed`, as those of the checkpoint writer do. Tensors
are read whole, in the order of their bytes; the next ones are asked for ahead of their turn. Where some are dropped the
files are not mapped into memory: the kernel would read ahead into what lies beside the kept ones, several megabytes.
"""

from __future__ import annotations

import io
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from mi_prun.architecture.architecture import Config, check_kept, family_of, num_blocks, renamed
from mi_prun.errors import UserError
from mi_prun.model.shard import TensorInfo, read_shard
from mi_prun.model.weight_files import SINGLE_NAME, read_weight_map
from mi_prun.recovery.adapter import Adapter

TORCH_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip

AHEAD_BYTES = 64 << 20  # on their way from the disk while a tensor is worked on

Wanted = Callable[[str], bool]
"""Return whether this process needs a tensor, by its name in the pruned model."""


@dataclass
class LoadProgress:
    """Progress of a load. last: the name and shape of the tensor that was handed out last, for errors."""

    tensors: int = 0
    tensors_skipped: int = 0
    bytes: int = 0
    files: list[str] = field(default_factory=list)
    files_skipped: list[str] = field(default_factory=list)
    last: str = ""

    def __str__(self) -> str:
        return (
            f"read {self.tensors} of {self.tensors + self.tensors_skipped} tensors, {self.bytes:,} bytes, "
            f"from {len(self.files)} of {len(self.files) + len(self.files_skipped)} files"
        )


def kept_weights(
    folder: Path,
    config: Config,
    kept: Sequence[int] | None,
    reading: LoadProgress,
    wanted: Wanted = lambda name: True,
    *,
    mapped: bool = False,
    healed: Adapter | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name in the pruned model, tensor on CPU) of each wanted tensor in `folder`, whose config.json is `config`.

    kept: the blocks of `folder` that the pruned model has (ascending, 0-based); None where the folder has only those.
    mapped: map the files into memory, as vLLM's own loader does; for a folder of which everything is wanted.
    healed: what healing learned, merged into each tensor as it is read.
    Raises UserError where `kept` does not fit the config, or a file is missing, broken or lacks a tensor.
    """
    family, count = family_of(config), num_blocks(config)
    blocks = range(count) if kept is None else kept
    check_kept(blocks, count)

    def new_name(name: str) -> str | None:
        renumbered = renamed(name, family, blocks, num_blocks=count)
        return renumbered if renumbered is not None and wanted(renumbered) else None

    buffers = Buffers()
    for file, names in _files(folder).items():
        if not any(map(new_name, names)):
            reading.tensors_skipped += len(names)
            reading.files_skipped.append(file)
            continue
        reading.files.append(file)
        shard = read_shard(folder / file)
        if absent := sorted(set(names) - shard.tensors.keys()):
            raise UserError(f"model {folder}: the index says {absent[0]!r} lies in {file}, but it does not")
        with shard.path.open("rb", buffering=0) as source, safe_open(shard.path, framework="pt") as library:
            os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
            new_names = {info.name: new for info in shard.tensors.values() if (new := new_name(info.name)) is not None}
            reading.tensors_skipped += len(shard.tensors) - len(new_names)
            for info in _fetched_ahead(source, [shard.tensors[name] for name in new_names]):
                new = new_names[info.name]
                reading.last = f"{new!r} of shape {list(info.shape)}"
                reading.tensors += 1
                reading.bytes += info.num_bytes
                # The library knows the dtypes that are packed below a byte, or newer than the table.
                dtype = None if mapped else TORCH_DTYPES.get(info.dtype)
                tensor = (
                    library.get_tensor(info.name) if dtype is None else _read(source, shard.path, info, dtype, buffers)
                )
                yield new, tensor if healed is None else healed.merged(info.name, tensor)


def _fetched_ahead(source: io.FileIO, infos: Sequence[TensorInfo]) -> Iterator[TensorInfo]:
    """Yield the tensors in turn, while the kernel fetches those after them from the disk: theirs and no other bytes."""
    asked = iter(infos)
    ahead = 0
    for info in infos:
        while ahead < AHEAD_BYTES and (later := next(asked, None)) is not None:
            os.posix_fadvise(source.fileno(), later.begin, later.num_bytes, os.POSIX_FADV_WILLNEED)
            ahead += later.num_bytes
        yield info
        ahead -= info.num_bytes


class Buffers:
    """Memory that is used again as soon as no tensor lies in it: fresh pages cost as much as the reading."""

    KEPT = 3  # the caller holds the tensor before this one, and perhaps one more

    def __init__(self) -> None:
        self._arrays: list[tuple[NDArray[np.uint8], weakref.ref[NDArray[np.uint8]]]] = []  # and who has it

    def take(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return an array of so many bytes. A tensor made of it keeps it, so that it is not handed out again before."""
        for i, (array, user) in enumerate(self._arrays):
            if len(array) >= num_bytes and user() is None:
                given = array[:num_bytes]
                self._arrays[i] = array, weakref.ref(given)
                return given
        array = np.empty(num_bytes, dtype=np.uint8)
        given = array[:]
        self._arrays = sorted([*self._arrays, (array, weakref.ref(given))], key=lambda one: len(one[0]))[-self.KEPT :]
        return given


def _read(source: io.FileIO, path: Path, info: TensorInfo, dtype: torch.dtype, buffers: Buffers) -> torch.Tensor:
    data = buffers.take(info.num_bytes)
    view: memoryview[int] = data.data
    done = 0
    try:
        source.seek(info.begin)
        while done < info.num_bytes:
            count = source.readinto(view[done:])
            if not count:
                raise UserError(f"cannot read {path}: it ends inside tensor {info.name!r}")
            done += count
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return torch.from_numpy(data).view(dtype).view(info.shape)


def _files(folder: Path) -> dict[str, list[str]]:
    """Map each file to its tensors' names: by the index, or by the header where there is only one file."""
    weight_map = read_weight_map(folder)
    if weight_map is None:
        if not (folder / SINGLE_NAME).is_file():
            raise UserError(f"model {folder} has no weights ({SINGLE_NAME} or an index)")
        return {SINGLE_NAME: list(read_shard(folder / SINGLE_NAME).tensors)}
    files: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        files.setdefault(file, []).append(name)
    return dict(sorted(files.items()))
