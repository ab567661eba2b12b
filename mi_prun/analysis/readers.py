"""What reads a boundary state: the norm in front of each block, and the one in front of the head.

A pre-norm block takes nothing of a state but `norm(h)`: the state over its own length, each dimension times a weight.
So dimensions of which the weight is small do not count, however large they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mi_prun.model.block_model import BlockModel

PROBE_TOKENS = 2
CENTRED = 1e-3  # of what a norm gives for alternating signs: below it, what it gives for equal entries is rounding


@dataclass(frozen=True)
class Readers:
    """The norms that read boundary states 0..L. Reader i is in front of block i, reader L in front of the head.

    scale: (L+1, d) float32, the weight of each dimension; ones where nothing normalises. centred: (L+1,) bool, whether
    the mean over dimensions is taken off first (LayerNorm).
    """

    scale: Tensor
    centred: Tensor

    @classmethod
    def plain(cls, count: int, hidden: int) -> Readers:
        """Return `count` readers that weigh every dimension alike."""
        return cls(torch.ones(count, hidden), torch.zeros(count, dtype=torch.bool))

    @classmethod
    def joined(cls, readers: Sequence[Readers]) -> Readers:
        """Put readers together, in their order."""
        return cls(torch.cat([one.scale for one in readers]), torch.cat([one.centred for one in readers]))

    def readings(self, reader: int, states: Tensor) -> Tensor:
        """Return what a reader takes of `states` (..., d): vectors of length 1."""
        if self.centred[reader]:
            states = states - states.mean(-1, keepdim=True)
        return nn.functional.normalize(states * self.scale[reader].to(states), dim=-1)


def readers_of(model: BlockModel) -> Readers:
    """Find the readers of a whole model."""
    blocks = [block_reader(model, block) for block in range(model.num_blocks)]
    return Readers.joined([*blocks, head_reader(model)])


@torch.inference_mode()
def block_reader(model: BlockModel, block: int) -> Readers:
    """Find what reads the input of a block: the norms inside it that are called with this very state."""
    hidden = model.embed(torch.zeros(1, PROBE_TOKENS, dtype=torch.long))
    return _reader(model, model.blocks[block].modules(), hidden, lambda: model.run(block, hidden))


@torch.inference_mode()
def head_reader(model: BlockModel) -> Readers:
    """Find what reads the last boundary state."""
    inside = set(model.blocks.modules())
    outside = [module for module in model.model.modules() if module not in inside]
    hidden = torch.ones(1, PROBE_TOKENS, model.hidden_size, dtype=model.dtype, device=model.device)
    return _reader(model, outside, hidden, lambda: model.logits(hidden))


def _reader(model: BlockModel, modules: Iterable[nn.Module], hidden: Tensor, run: Callable[[], Any]) -> Readers:
    with _called_with(modules, hidden) as norms:
        run()
    if not norms:
        return Readers.plain(1, model.hidden_size)
    scales, centred = zip(*(_probed(norm, hidden) for norm in norms), strict=True)
    # Blocks whose attention and MLP run side by side may have a norm for each.
    return Readers(torch.stack(scales).square().mean(0).sqrt()[None], torch.tensor([any(centred)]))


@contextlib.contextmanager
def _called_with(modules: Iterable[nn.Module], hidden: Tensor) -> Iterator[list[nn.Module]]:
    """Yield a list that fills with the norms that are called with `hidden` itself."""
    called: list[nn.Module] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if given is not None and given.data_ptr() == hidden.data_ptr() and given.shape == hidden.shape:
            called.append(module)

    norms = [module for module in modules if "norm" in type(module).__name__.lower()]
    handles = [norm.register_forward_pre_hook(note, with_kwargs=True) for norm in norms]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


def _probed(norm: nn.Module, like: Tensor) -> tuple[Tensor, bool]:
    """Return a norm's weights (d,) and whether it takes the mean off. Neither a bias nor `1 + weight` matters."""
    size = like.shape[-1]

    def odd(vector: Tensor) -> Tensor:
        probe = vector.to(like)[None, None]
        both: Tensor = (norm(probe) - norm(-probe)).float()[0, 0] / 2
        return both

    signs = torch.ones(size, device=like.device)
    signs[1::2] = -1
    of_signs, of_equal = odd(signs), odd(torch.ones(size, device=like.device))
    centred = bool(of_equal.abs().max() <= CENTRED * of_signs.abs().max())
    return (of_signs * signs).abs().cpu(), centred
