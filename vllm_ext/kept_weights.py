"""The tensors of a pruned model, out of the folder that has them, under their new names.

A tensor of a dropped block is skipped by its name, before a byte of it is read; a file that holds no wanted tensor is
not opened. The names follow `mi_prun.architecture.renamed`, as those of the checkpoint writer do. The files are mapped
into memory, as vLLM's own loader does: the pages of a tensor are read when it is copied into the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from mi_prun.architecture import Config, check_kept, family_of, num_blocks, renamed
from mi_prun.errors import UserError
from mi_prun.model import SINGLE_NAME, read_weight_map

Wanted = Callable[[str], bool]
"""Whether this process needs a tensor, by its name in the pruned model."""


@dataclass
class Reading:
    """What has been read so far. last: the name and shape of the tensor handed out last, for errors."""

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
    folder: Path, config: Config, kept: Sequence[int] | None, reading: Reading, wanted: Wanted = lambda name: True
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in the pruned model, tensor on CPU) of each wanted tensor in `folder`, whose config.json is `config`.

    kept: the blocks of `folder` that the pruned model has (ascending, 0-based); None where the folder has only those.
    Raises UserError where `kept` does not fit the config, or a file is missing, broken or lacks a tensor.
    """
    family, count = family_of(config), num_blocks(config)
    blocks = range(count) if kept is None else kept
    check_kept(blocks, count)

    def new_name(name: str) -> str | None:
        found = renamed(name, family, blocks, num_blocks=count)
        return found if found is not None and wanted(found) else None

    for file, names in _files(folder).items():
        if not any(map(new_name, names)):
            reading.tensors_skipped += len(names)
            reading.files_skipped.append(file)
            continue
        reading.files.append(file)
        try:
            with safe_open(folder / file, framework="pt") as shard:
                for name in names:
                    new = new_name(name)
                    if new is None:
                        reading.tensors_skipped += 1
                        continue
                    tensor = shard.get_tensor(name)
                    reading.last = f"{new!r} of shape {list(tensor.shape)}"
                    reading.tensors += 1
                    reading.bytes += tensor.nbytes
                    yield new, tensor
        except (SafetensorError, OSError) as error:
            raise UserError(f"cannot read {folder / file}: {error}") from error


def _files(folder: Path) -> dict[str, list[str]]:
    """File -> names of its tensors, by the index; where there is only one file its header says the names."""
    weight_map = read_weight_map(folder)
    if weight_map is None:
        if not (folder / SINGLE_NAME).is_file():
            raise UserError(f"model {folder} has no weights ({SINGLE_NAME} or an index)")
        with safe_open(folder / SINGLE_NAME, framework="pt") as shard:
            return {SINGLE_NAME: list(shard.keys())}
    files: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        files.setdefault(file, []).append(name)
    return dict(sorted(files.items()))
