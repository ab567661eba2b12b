"""Several processes that share one analysis or one healing: `torchrun --nproc-per-node N -m mi_prun analyze ...`.

Each rank runs its share of the windows through its own copy of the model; rank 0 puts the shares together and writes.
What travels (projections, gradients of adapters) lies in CPU memory, so the transport is gloo, on GPUs too. Blocks that
are sharded (FSDP, in a healing) travel between GPUs by NCCL. `accelerate launch --multi_gpu` sets the
same variables as torchrun, on a CPU too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor

from mi_prun.errors import UserError, first_line

T = TypeVar("T")

FSDP = "ACCELERATE_USE_FSDP"
LOADS_ON_FIRST = "FSDP_CPU_RAM_EFFICIENT_LOADING"  # transformers then leaves other ranks' weights as memory was
REFUSED = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM", "FSDP_OFFLOAD_PARAMS")
ONE_OF_SEVERAL = ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR")  # the latter where more than one process is asked for
PATIENCE = timedelta(hours=24)  # ranks wait for each other while one samples text or loads a model from a slow disk


@dataclass(frozen=True)
class Ranks:
    """This process among `size` processes. A process on its own is rank 0 of 1.

    sharded: each process holds a share of the model's blocks, so all of them run the model, or none.
    """

    rank: int = 0
    size: int = 1
    sharded: bool = False

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, windows: Tensor) -> Tensor:
        """Return this rank's windows. Shares are contiguous: in the order of ranks they are `windows` again."""
        return torch.tensor_split(windows, self.size)[self.rank]

    def from_first(self, make: Callable[[], T], *, runs_model: bool = False) -> T:
        """Call `make` on rank 0 and return the result on all ranks. Where it runs a sharded model, all ranks call it.

        If it raises UserError there, all ranks raise it: none waits for a rank that ended.
        """
        box = [_tried(make) if self.first or (runs_model and self.sharded) else None]
        if self.size > 1:
            torch.distributed.broadcast_object_list(box)
        if isinstance(box[0], UserError):
            raise box[0]
        if box[0] is None:
            raise ValueError("rank 0 has nothing to give")
        return box[0]

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Give all ranks the values that rank 0 has."""
        if self.size == 1:
            return
        with torch.no_grad():
            for tensor in tensors:
                given = tensor.detach().float().cpu()  # gloo does not take every dtype
                torch.distributed.broadcast(given, 0)
                tensor.copy_(given)

    def least(self, value: int) -> int:
        """Return the least value of all ranks."""
        if self.size == 1:
            return value
        box = torch.tensor(value)
        torch.distributed.all_reduce(box, torch.distributed.ReduceOp.MIN)
        return int(box)

    def to_first(self, make: Callable[[], T]) -> list[T]:
        """Call `make` on each rank. Rank 0 gets the results in the order of ranks, the others get nothing.

        If one rank raises UserError, that rank and rank 0 raise it, after all ranks have come here.
        """
        if self.size == 1:
            return [make()]
        mine = _tried(make)
        box: list[T | UserError | None] = [None] * self.size
        torch.distributed.gather_object(mine, box if self.first else None)
        results: list[T] = []
        for result in box if self.first else [mine]:
            if isinstance(result, UserError):
                raise result
            if result is not None:
                results.append(result)
        return results if self.first else []


ALONE = Ranks()


def _tried(make: Callable[[], T]) -> T | UserError:
    try:
        return make()
    except UserError as error:
        return error


def world_size() -> int:
    """Return the number of processes that torchrun started; 1 without torchrun.

    Raises UserError where accelerate was asked for several and started this one alone.
    """
    if "WORLD_SIZE" not in os.environ and all(name in os.environ for name in ONE_OF_SEVERAL):
        raise UserError(
            "accelerate launch was asked for several processes and started one, as it finds fewer than two GPUs; add "
            "--multi_gpu, which serves CPUs too, or start with torchrun"
        )
    text = os.environ.get("WORLD_SIZE", "1")
    if not (text.isdecimal() and int(text) >= 1):
        raise UserError(f"environment variable WORLD_SIZE must be a whole number of at least 1, got {text!r}")
    return int(text)


def local_device(name: str | None) -> str | None:
    """Return the device of this process. With several processes and no name each takes a GPU of its own."""
    local = os.environ.get("LOCAL_RANK", "")
    if name in (None, "cuda") and world_size() > 1 and local.isdecimal() and torch.cuda.is_available():
        return f"cuda:{int(local) % torch.cuda.device_count()}"
    return name


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")


@contextlib.contextmanager
def joined(*, may_shard: bool = False) -> Iterator[Ranks]:
    """Join the processes that torchrun started; without torchrun, this one on its own.

    may_shard: the caller can share the model's blocks over the processes, where accelerate says so (FSDP).
    """
    if world_size() == 1:
        yield Ranks()
        return
    for name in REFUSED if may_shard else (*REFUSED, FSDP):
        if _is_set(name):
            raise UserError(
                f"{name} is set: that is not supported here; leave it out of accelerate's configuration, so that each "
                "process holds the whole model" + (", or take FSDP" if may_shard else "")
            )
    sharded = _is_set(FSDP)
    if sharded:
        os.environ[LOADS_ON_FIRST] = "false"
    backend = "cpu:gloo,cuda:nccl" if sharded and torch.cuda.is_available() else "gloo"
    try:
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"WORLD_SIZE is set, but no group of processes comes up ({first_line(error)}); start them with torchrun"
        ) from error
    try:
        yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), sharded)
    finally:
        torch.distributed.destroy_process_group()
