"""The one pass: hooks on the blocks see the boundary states of calibration windows, and keep those of sampled tokens.

What comes out for each boundary:
- the states of sampled tokens, whole or in a fixed random projection to p dimensions, (L+1, n, p);
- the states of each window's very first token, the attention sink, in the same way, (L+1, windows, p);
- the cosine of adjacent boundary states, mean over all tokens.

The first tokens of each window are left out of the other two: sinks carry activations a thousand times larger than the
rest.
Hooks are used in place of `output_hidden_states`: its last entry comes after the final norm, which would spoil the
last block's score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mi_prun.analysis.readers import Readers, readers_of
from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel, hooked_states

SKIP_TOKENS = 4


@dataclass(frozen=True)
class Boundaries:
    """What the pass gives.

    projections: (L+1, n, p) float32; where nothing is projected, p = d. first: (L+1, windows, p), of each window's
    first token. cosine: (L,) mean over all seen tokens of cos(h_i, h_{i+1}), on CPU. readers: what reads each boundary
    state.
    """

    projections: Tensor
    first: Tensor
    cosine: Tensor
    tokens: int
    readers: Readers

    def to(self, device: torch.device) -> Boundaries:
        """Return a copy on a device. What travels to another process is on the CPU."""
        return replace(self, projections=self.projections.to(device), first=self.first.to(device))


class Collector:
    """Takes boundary states as the pass goes, of whole-model and block-by-block passes alike.

    sample: (windows, window_tokens) bool, the tokens that are kept. projection: dimensions to project to; None keeps
    states whole. Nothing here waits for an accelerator. What is kept stays there, and `check` looks once a batch
    whether all was finite.
    """

    def __init__(
        self, num_blocks: int, hidden: int, projection: int | None, sample: Tensor, seed: int, device: torch.device
    ) -> None:
        self.num_blocks = num_blocks
        self.sample = sample
        self.directions: Tensor | None = None  # (d, p)
        if projection is not None:
            self.directions = random_orthonormal(hidden, projection, seed).to(device)
            self._rounded = self.directions.bfloat16()
        self.dims = hidden if self.directions is None else self.directions.shape[1]
        self.kept: list[list[Tensor]] = [[] for _ in range(num_blocks + 1)]
        self.kept_first: list[list[Tensor]] = [[] for _ in range(num_blocks + 1)]
        self.length_sums = torch.zeros(num_blocks + 1, dtype=torch.float64, device=device)  # finite where all are
        self.cosine = torch.zeros(num_blocks, dtype=torch.float64, device=device)
        self._places: tuple[int, Tensor] | None = None  # of the sampled tokens in the batch that begins there
        self._last: tuple[Tensor, Tensor] | None = None  # what the block before gave, and its lengths

    def see(self, boundary: int, state: Tensor, first_window: int) -> None:
        """Take a boundary state (batch, tokens, d) of the windows from `first_window` on."""
        if self._places is None or self._places[0] != first_window:
            chosen = self.sample[first_window : first_window + len(state)].flatten().nonzero()[:, 0]
            self._places = first_window, chosen.to(state.device)
        self.kept_first[boundary].append(self._projected(state[:, 0]))
        if self.directions is None:
            self.kept[boundary].append(state.flatten(0, 1)[self._places[1]].float())
        else:  # before the tokens are picked: picking from p dimensions moves little, from d a copy of the state
            self.kept[boundary].append(self._projected(state).flatten(0, 1)[self._places[1]])

    def _projected(self, state: Tensor) -> Tensor:
        """Return the projection (..., p) of states (..., d), float32."""
        if self.directions is None:
            return state.to(torch.float32, copy=True)  # a view would keep the whole state
        if state.dtype == torch.bfloat16:  # no float32 copy of the state; float16's sums could overflow
            return (state @ self._rounded).float()
        return state.float() @ self.directions

    def compare(self, block: int, before: Tensor, after: Tensor) -> None:
        """Add the cosine of adjacent boundary states (batch, tokens, d), which BI (ShortGPT) uses."""
        known = self._last[1] if self._last is not None and self._last[0] is before else None
        lengths = self._lengths(block, before) if known is None else known
        self._last = after, self._lengths(block + 1, after)
        # Not `cosine_similarity`: it makes several copies of the states, which costs more than reading them.
        a, b = before[:, SKIP_TOKENS:], after[:, SKIP_TOKENS:]
        if a.dtype == torch.bfloat16:  # products are rounded to it, their sums are not; float16's would overflow
            dot = (a * b).sum(-1, dtype=torch.float32)
        else:
            dot = torch.linalg.vecdot(a.float(), b.float())
        self.cosine[block] += (dot / (lengths * self._last[1]).clamp(min=1e-30)).sum(dtype=torch.float64)

    def check(self) -> None:
        """Refuse the first boundary whose state was not finite, and let go of the last state seen."""
        self._last = None
        if len(broken := (~torch.isfinite(self.length_sums)).nonzero()):
            boundary = int(broken[0])
            raise UserError(
                f"{made_by(boundary)} gives NaN or Inf (boundary state {boundary}); "
                "no analysis of this model is possible"
            )

    def _lengths(self, boundary: int, state: Tensor) -> Tensor:
        """Return Euclidean lengths (batch, tokens - SKIP_TOKENS), float32."""
        lengths: Tensor = torch.linalg.vector_norm(state, dim=-1, dtype=torch.float32)
        self.length_sums[boundary] += lengths.sum(dtype=torch.float64)  # of all tokens: the first ones overflow first
        return lengths[:, SKIP_TOKENS:]

    def result(self, windows: Tensor, readers: Readers) -> Boundaries:
        """Return what the pass over `windows` gave."""
        self.check()
        tokens, cosine = windows.shape[0] * (windows.shape[1] - SKIP_TOKENS), self.cosine.cpu()
        if not tokens:  # a rank without windows
            nothing = torch.zeros(self.num_blocks + 1, 0, self.dims)
            return Boundaries(nothing, nothing, cosine, 0, readers)
        kept, first = (torch.stack([torch.cat(some) for some in each]) for each in (self.kept, self.kept_first))
        return Boundaries(kept, first, cosine / tokens, tokens, readers)


def made_by(boundary: int) -> str:
    """Return the name of what gives a boundary state."""
    return "the embedding" if boundary == 0 else f"block {boundary - 1}"


def random_orthonormal(hidden: int, projection: int, seed: int) -> Tensor:
    """Return (d, p) with orthonormal columns, scaled so that squared lengths keep their expectation."""
    if projection < 1:
        raise UserError(f"projection must be at least 1, got {projection}")
    projection = min(projection, hidden)
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(hidden, projection, generator=generator, dtype=torch.float64))
    scaled: Tensor = q * r.diagonal().sign() * (hidden / projection) ** 0.5
    return scaled.float()


def sample_tokens(windows: Tensor, count: int, seed: int) -> Tensor:
    """Draw `count` tokens without replacement, none of a window's first ones: (windows, window_tokens) bool."""
    usable = torch.ones(windows.shape, dtype=torch.bool)
    usable[:, :SKIP_TOKENS] = False
    places = usable.flatten().nonzero()[:, 0]
    if not len(places):
        raise UserError(f"windows of {windows.shape[1]} tokens are too short: the first {SKIP_TOKENS} are left out")
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:count]
    sample = torch.zeros(windows.numel(), dtype=torch.bool)
    sample[places[order]] = True
    return sample.view_as(windows)


@torch.inference_mode()
def collect(
    model: BlockModel,
    windows: Tensor,
    *,
    sample: Tensor,
    projection: int | None,
    seed: int,
    batch_tokens: int = 4096,
    advance: Callable[[float], None] | None = None,
) -> Boundaries:
    """Run the whole model over `windows` (windows, window_tokens) once, with hooks on its blocks.

    sample: the tokens that are kept, drawn by `sample_tokens`. projection: None keeps them whole.
    """
    readers = readers_of(model)
    collector = Collector(model.num_blocks, model.hidden_size, projection, sample, seed, model.device)
    first = 0

    def hook(block: int) -> Callable[..., None]:
        def see(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before, after = hooked_states(args, kwargs, output)
            if block == 0:
                collector.see(0, before, first)
            collector.see(block + 1, after, first)
            collector.compare(block, before, after)

        return see

    handles = [block.register_forward_hook(hook(i), with_kwargs=True) for i, block in enumerate(model.blocks)]
    try:
        for first, tokens in batches(windows, batch_tokens):  # noqa: B007 - the hooks read it
            # The head is not needed: one position's logits keep the pass from spending time on it.
            model.model(input_ids=tokens.to(model.device), use_cache=False, logits_to_keep=1)
            collector.check()
            if advance is not None:
                advance(tokens.numel())
    finally:
        for handle in handles:
            handle.remove()
    return collector.result(windows, readers)


def batches(windows: Tensor, batch_tokens: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (first, windows from `first` on), at most `batch_tokens` tokens at once; nothing without windows."""
    size = max(1, batch_tokens // windows.shape[1])
    for first in range(0, len(windows), size):
        yield first, windows[first : first + size]


def merged(parts: Sequence[Boundaries]) -> Boundaries:
    """Merge parts into what one pass over all their windows, in this order, would have given."""
    tokens = sum(part.tokens for part in parts)
    cosine = torch.stack([part.cosine * part.tokens for part in parts]).sum(0) / tokens
    kept = torch.cat([part.projections for part in parts], dim=1)
    return Boundaries(kept, torch.cat([part.first for part in parts], dim=1), cosine, tokens, parts[0].readers)


def pair_angles(projections: Tensor) -> Tensor:
    """Return `arccos(cos(h_i, h_j)) / pi`, mean over tokens, (L+1, L+1). projections: (L+1, n, p), uncentred."""
    unit = torch.nn.functional.normalize(projections, dim=-1)
    count = len(unit)
    angles = torch.zeros(count, count, dtype=torch.float64, device=unit.device)
    for i in range(count):
        cosine = (unit[i] * unit[i + 1 :]).sum(-1).clamp(-1, 1)
        angles[i, i + 1 :] = torch.arccos(cosine).mean(-1).double() / torch.pi
    return angles.cpu()
