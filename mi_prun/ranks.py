"""Several processes that share one analysis: `torchrun --nproc-per-node N -m mi_prun analyze ...`.

Each rank runs its share of the calibration windows through its own copy of the model; rank 0 puts the shares together,
in the order of the windows, and writes. What travels are projections in CPU memory, so the transport is gloo, on GPUs
too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor

from mi_prun.errors import UserError

T = TypeVar("T")

PATIENCE = timedelta(hours=24)  # ranks wait for each other while one samples text or loads a model from a slow disk


@dataclass(frozen=True)
class Ranks:
    """This process among `size`; a process on its own is rank 0 of 1."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, windows: Tensor) -> Tensor:
        """This rank's windows: shares are contiguous, so that in the order of ranks they are `windows` again."""
        return torch.tensor_split(windows, self.size)[self.rank]

    def from_first(self, value: T | None) -> T:
        """What rank 0 has, for all."""
        box = [value]
        if self.size > 1:
            torch.distributed.broadcast_object_list(box)
        if box[0] is None:
            raise ValueError("rank 0 has nothing to give")
        return box[0]

    def to_first(self, value: T) -> list[T]:
        """What all have, in the order of ranks, for rank 0; nothing for the others."""
        if self.size == 1:
            return [value]
        box: list[T | None] = [None] * self.size
        torch.distributed.gather_object(value, box if self.first else None)
        return [found for found in box if found is not None]


def world_size() -> int:
    """As torchrun says it; 1 without it."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not (text.isdecimal() and int(text) >= 1):
        raise UserError(f"environment variable WORLD_SIZE must be a whole number of at least 1, got {text!r}")
    return int(text)


def local_device(name: str | None) -> str | None:
    """The device of this process: with several on a machine and none named, each takes a GPU of its own."""
    local = os.environ.get("LOCAL_RANK", "")
    if name in (None, "cuda") and world_size() > 1 and local.isdecimal() and torch.cuda.is_available():
        return f"cuda:{int(local) % torch.cuda.device_count()}"
    return name


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun started, or this one on its own."""
    if world_size() == 1:
        yield Ranks()
        return
    torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        torch.distributed.destroy_process_group()
