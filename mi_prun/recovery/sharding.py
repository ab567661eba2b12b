"""Frozen blocks shared over the processes of a healing: each holds a part, and a block is put together as it runs.

PyTorch does it (FSDP2, `fully_shard`), block by block. Embedding, head, adapters and what the student has of its own
stay whole on each process.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mi_prun.model.block_model import BlockModel


def shard_blocks(model: BlockModel, device: torch.device, left_whole: Iterable[nn.Parameter]) -> None:
    """Leave this process its share of each block, and move the model to `device`. All processes call it.

    A block moves as it is shared, so that the device never holds the whole model. Nothing here needs a gradient yet.
    """
    if device.type == "cuda":  # blocks go to the current device, which is the first of all for every process
        torch.cuda.set_device(device)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    kept = set(left_whole)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
    model.model.to(device)


def is_shared(tensor: Tensor) -> bool:
    """Tell whether this process holds only a part of a tensor."""
    return isinstance(tensor, DTensor)


@torch.no_grad()
def overwrite(shared: Tensor, value: Tensor) -> None:
    """Put a whole tensor in a shared one's place: each process keeps its own part of it."""
    if not isinstance(shared, DTensor):
        raise TypeError("only a shared tensor is overwritten")
    given = value.to(shared.device, shared.dtype)
    shared.copy_(distribute_tensor(given, shared.device_mesh, shared.placements))
