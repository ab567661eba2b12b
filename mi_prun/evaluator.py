"""What a model loses without some of its blocks: KL(dense || pruned) and cross-entropy, for many block sets at once.

Sets that begin alike share their first states: the sets of one call are walked as a trie (at each block: run it or skip
it), so each distinct prefix is run once. Windows come in batches; only one batch's states are alive at a time. The cost
is counted in block-tokens: one block run over one token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mi_prun.block_model import BlockModel
from mi_prun.errors import UserError

Dropped = tuple[int, ...]

ROW_BYTES = 256 * 2**20  # of float32 logits alive at a time
STATE_BYTES = 2 * 2**30  # of final states alive at a time


@dataclass(frozen=True)
class Loss:
    """Means over the predicted tokens, in nats. `kl_nats` is KL(dense || pruned), `ce_nats` the cross-entropy."""

    kl_nats: float
    ce_nats: float


class Evaluator:
    """Measures block sets on fixed windows (windows, window_tokens); results are remembered.

    batch_tokens: tokens run at once.
    """

    def __init__(self, model: BlockModel, windows: Tensor, *, batch_tokens: int = 4096) -> None:
        self.model = model
        self.windows = windows
        self.batch = max(1, batch_tokens // windows.shape[1])
        self.block_tokens = 0
        self._known: dict[Dropped, Loss] = {}

    @property
    def predicted_tokens(self) -> int:
        return self.windows.shape[0] * (self.windows.shape[1] - 1)

    @property
    def passes(self) -> float:
        """Cost so far, in passes of the dense model over these windows."""
        return self.block_tokens / (self.model.num_blocks * self.windows.numel())

    def measure(self, sets: Iterable[Dropped], advance: Callable[[float], None] | None = None) -> list[Loss]:
        """Loss of each set, in order. The empty set is the dense model: its KL is 0."""
        wanted = list(sets)
        new = sorted({dropped for dropped in wanted if dropped not in self._known})
        if new:
            states = self.windows[: self.batch].numel() * self.model.hidden_size * 4
            group = max(1, STATE_BYTES // states - 1)
            for start in range(0, len(new), group):
                self._measure(new[start : start + group], advance)
        return [self._known[dropped] for dropped in wanted]

    @torch.inference_mode()
    def _measure(self, sets: Sequence[Dropped], advance: Callable[[float], None] | None) -> None:
        kl = torch.zeros(len(sets), dtype=torch.float64)
        ce = torch.zeros(len(sets), dtype=torch.float64)
        for tokens in torch.split(self.windows, self.batch):
            finals = self.final_states(tokens, [(), *sets])
            # (sets + 1, batch * (tokens - 1), d): the last token predicts nothing
            rows = torch.stack([final[:, :-1].flatten(0, 1) for final in finals])
            targets = tokens[:, 1:].flatten().to(rows.device)
            for chunk, target in self._chunks(rows, targets):
                dense, *pruned = chunk.unbind(0)
                log_p = torch.log_softmax(self.model.logits(dense[None])[0].float(), dim=-1)
                p = log_p.exp()
                for i, state in enumerate(pruned):
                    # The empty set is the dense model: its logits are there already.
                    log_q = torch.log_softmax(self.model.logits(state[None])[0].float(), dim=-1) if sets[i] else log_p
                    kl[i] += float((p * (log_p - log_q)).sum(dtype=torch.float64))
                    ce[i] -= float(log_q.gather(1, target[:, None]).sum(dtype=torch.float64))
            if advance is not None:
                advance(tokens.numel() * len(sets))
        for i, dropped in enumerate(sets):
            loss = Loss(max(0.0, float(kl[i]) / self.predicted_tokens), float(ce[i]) / self.predicted_tokens)
            if not (torch.isfinite(kl[i]) and torch.isfinite(ce[i])):
                raise UserError(f"the model without blocks {list(dropped)} gives logits that are not finite")
            self._known[dropped] = loss

    def _chunks(self, rows: Tensor, targets: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        size = max(16, ROW_BYTES // (4 * self.model.vocab_size))
        return zip(torch.split(rows, size, dim=1), torch.split(targets, size), strict=True)

    def final_states(self, tokens: Tensor, sets: Sequence[Dropped]) -> list[Tensor]:
        """Boundary state L of each set for one batch (batch, tokens): the trie walk."""
        finals: list[Tensor | None] = [None] * len(sets)
        last = self.model.num_blocks

        def walk(block: int, hidden: Tensor, members: list[int]) -> None:
            if block == last:
                for member in members:
                    finals[member] = hidden
                return
            skip = [member for member in members if block in sets[member]]
            if skip:
                walk(block + 1, hidden, skip)
            keep = [member for member in members if block not in sets[member]]
            if keep:
                self.block_tokens += tokens.numel()
                walk(block + 1, self.model.run(block, hidden), keep)

        walk(0, self.model.embed(tokens), list(range(len(sets))))
        return [final for final in finals if final is not None]
