"""What a model loses without some of its blocks: KL(dense || pruned) and cross-entropy, for many block sets at once.

Sets that begin alike share their first states. The sets of one call are walked as a trie (at each block: run it or skip
it), so each distinct prefix is run once. Windows come in batches; only one batch's states are in memory at a time.
Losses are kept by window: a set may be measured on a few windows first, and on the rest only if it deserves it.

The cost is counted in block-tokens: one block run over one token. Evaluators of the same text may share a memory. Each
counts what it asked for as if it had been alone: a method's cost does not depend on what others measured before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel

Dropped = tuple[int, ...]
# For each set (measured windows, 2): KL and cross-entropy, summed over a window's predicted tokens, in nats.
Memory = dict[Dropped, NDArray[np.float64]]

# Most bytes of float32 logits at a time: they stay in a processor's cache, or fill an accelerator.
ROW_BYTES = {"cpu": 4 * 2**20}
ACCELERATOR_ROW_BYTES = 256 * 2**20
# Of logits made at once, however large the vocabulary: a product with fewer rows is bound by reading the unembedding.
LEAST_ROWS = 128
STATE_BYTES = 2 * 2**30  # most bytes of final states at a time
MOST_NATS = 700  # a token: the perplexity of more is no float64
BATCH_TOKENS = 4_096
# A narrow model runs more tokens at once on an accelerator, up to these bytes of one state: else it is often idle.
ACCELERATOR_BATCH_BYTES, MOST_BATCH_TOKENS = 64 * 2**20, 32_768


class NotFiniteError(UserError):
    """A loss that is not finite, or over MOST_NATS: the model is broken, or broken without these blocks."""


@dataclass(frozen=True)
class Loss:
    """Mean losses over the predicted tokens, in nats. kl_nats: KL(dense || pruned). ce_nats: the cross-entropy."""

    kl_nats: float
    ce_nats: float


class Evaluator:
    """A measurer of block sets on fixed windows (windows, window_tokens); it remembers what it measured.

    batch_tokens: tokens run at once; None fits the device. memory: that of an evaluator of the same model and windows.
    """

    def __init__(
        self, model: BlockModel, windows: Tensor, *, batch_tokens: int | None = None, memory: Memory | None = None
    ) -> None:
        self.model = model
        self.windows = windows
        self.batch = max(1, (batch_tokens or tokens_at_once(model)) // windows.shape[1])
        self.block_tokens = 0
        self.memory: Memory = {} if memory is None else memory
        self._asked: dict[Dropped, int] = {}  # for each set, how many windows are paid for

    @property
    def predicted_tokens(self) -> int:
        """How many tokens of the windows are predicted: all but each window's first."""
        return self.windows.shape[0] * (self.windows.shape[1] - 1)

    @property
    def passes(self) -> float:
        """The cost so far, in passes of the dense model over these windows."""
        return self.block_tokens / (self.model.num_blocks * self.windows.numel())

    def measure(
        self,
        sets: Iterable[Dropped],
        advance: Callable[[float], None] | None = None,
        *,
        windows: int | None = None,
        may_break: bool = False,
    ) -> list[Loss]:
        """Return the loss of each set, in order, over the first `windows` windows (None: all).

        The empty set is the dense model: its KL is 0. may_break: as in `by_window`.
        """
        by_window = self.by_window(sets, advance, windows=windows, may_break=may_break)
        kl, ce = (by_window.mean(1) / (self.windows.shape[1] - 1)).T
        return [Loss(max(0.0, float(a)), float(b)) for a, b in zip(kl, ce, strict=True)]

    def by_window(
        self,
        sets: Iterable[Dropped],
        advance: Callable[[float], None] | None = None,
        *,
        windows: int | None = None,
        may_break: bool = False,
    ) -> NDArray[np.float64]:
        """Return (sets, windows, 2): KL and cross-entropy, nats summed over each window's predicted tokens.

        may_break: a set that breaks the model has infinite losses; else it raises NotFiniteError, as a dense model that
        is broken itself always does.
        """
        wanted = list(sets)
        last = len(self.windows) if windows is None else windows
        if not 1 <= last <= len(self.windows):
            raise ValueError(f"there are {len(self.windows)} windows, asked for {last}")
        group = max(1, STATE_BYTES // (self.windows[: self.batch].numel() * self.model.hidden_size * 4) - 1)
        for first, new in _behind(wanted, self._asked, last):
            for start in range(0, len(new), group):  # each group runs the dense model, and what its sets share, again
                self.count([(), *new[start : start + group]], last - first)
            self._asked |= dict.fromkeys(new, last)
        known = {dropped: len(self.memory.get(dropped, ())) for dropped in wanted}
        for first, new in _behind(wanted, known, last):
            for start in range(0, len(new), group):
                self._measure(new[start : start + group], first, last, advance)
        losses = np.stack([self.memory[dropped][:last] for dropped in wanted])
        broken = ~np.isfinite(losses).all((1, 2))
        # A broken dense model breaks the KL of every set: it is run again only where all are broken.
        if broken.any() and not (may_break and (not broken.all() or self.sound(slice(last)))):
            raise self.not_finite(wanted[int(broken.argmax())], windows=slice(last))
        return losses

    def count(self, sets: Sequence[Dropped], windows: int) -> None:
        """Add the cost of running `sets` over so many windows."""
        self.block_tokens += block_runs(sets, self.model.num_blocks) * windows * self.windows.shape[1]

    @torch.inference_mode()
    def _measure(self, sets: Sequence[Dropped], first: int, last: int, advance: Callable[[float], None] | None) -> None:
        """Measure `sets` on the windows first..last-1; the windows before `first` are known."""
        losses = np.zeros((len(sets), last - first, 2))
        length = self.windows.shape[1] - 1
        done = 0
        for tokens in torch.split(self.windows[first:last], self.batch):
            # On the device: reading each row from it would wait for each.
            rows = torch.zeros(2, len(sets), len(tokens) * length, dtype=torch.float64, device=self.model.device)
            at = 0
            for log_p, target, pruned in self.log_probabilities(tokens, sets):
                p = log_p.exp()
                negative_entropy = torch.linalg.vecdot(p, log_p)
                place = slice(at, at + len(target))
                for i, log_q in enumerate(pruned):
                    # The same product twice: where nothing changed the difference is exactly 0.
                    rows[0, i, place] = (negative_entropy - torch.linalg.vecdot(p, log_q)).double()
                    rows[1, i, place] = -log_q.gather(1, target[:, None])[:, 0]
                at += len(target)
            by_window = rows.view(2, len(sets), len(tokens), length).sum(-1)
            losses[:, done : done + len(tokens)] = by_window.permute(1, 2, 0).cpu().numpy()
            done += len(tokens)
            if advance is not None:
                advance(tokens.numel() * len(sets))
        for i, dropped in enumerate(sets):
            losses[i][~(abs(losses[i]) < MOST_NATS * length)] = np.inf  # NaN too
            before = self.memory.get(dropped)
            self.memory[dropped] = losses[i] if before is None else np.concatenate([before, losses[i]])

    @torch.inference_mode()
    def sound(self, windows: slice) -> bool:
        """Return whether the dense model gives finite log-probabilities on these windows."""
        of_dense = (
            log_p
            for tokens in torch.split(self.windows[windows], self.batch)
            for log_p, _, _ in self.log_probabilities(tokens, [])
        )
        return all(bool(log_p.isfinite().all()) for log_p in of_dense)

    def not_finite(self, dropped: Dropped, windows: slice) -> NotFiniteError:
        """Return the error for a set whose losses are NaN or Inf. It says whether the dense model itself is broken."""
        which = f"without blocks {list(dropped)}" if self.sound(windows) else "itself"
        return NotFiniteError(
            f"the model {which} gives logits that are not finite, or loses over {MOST_NATS} nats a token; `--method "
            "mi-prun --rerank 0 --no-quality` measures none"
        )

    @torch.inference_mode()
    def log_probabilities(
        self, tokens: Tensor, sets: Sequence[Dropped], row_bytes: int | None = None, least_rows: int = LEAST_ROWS
    ) -> Iterator[tuple[Tensor, Tensor, Iterator[Tensor]]]:
        """Yield log-probabilities for one batch (batch, tokens), chunk by chunk of its predicting positions.

        Each chunk gives the dense model's log-probabilities (rows, vocabulary), the next tokens (rows,), and each set's
        log-probabilities, made as they are asked for. row_bytes, least_rows: size of one set's logits in a chunk.
        """
        finals = self.final_states(tokens, [(), *sets])
        for i, final in enumerate(finals):  # one by one: it is a copy
            finals[i] = final[:, :-1].flatten(0, 1)  # the last token of a window predicts nothing
        dense, *pruned = finals  # (batch * (tokens - 1), d)
        targets = tokens[:, 1:].flatten().to(dense.device)
        size = logit_rows(dense.device, self.model.vocab_size, row_bytes, least_rows)

        def log_softmax(state: Tensor) -> Tensor:
            # Each row is a sequence of its own: a model with learned positions has no more of them than a window.
            return torch.log_softmax(self.model.logits(state[:, None])[:, 0].float(), dim=-1)

        for start in range(0, len(targets), size):
            place = slice(start, start + size)
            log_p = log_softmax(dense[place])
            # The empty set is the dense model: its logits are there already.
            others = (
                log_softmax(state[place]) if dropped else log_p for dropped, state in zip(sets, pruned, strict=True)
            )
            yield log_p, targets[place], others

    def final_states(self, tokens: Tensor, sets: Sequence[Dropped]) -> list[Tensor]:
        """Return boundary state L of each set for one batch (batch, tokens): the trie walk."""
        finals = dict(self._walk(0, self.model.embed(tokens), dict(enumerate(sets))))
        return [finals[member] for member in range(len(sets))]

    def _walk(self, first: int, hidden: Tensor, members: Mapping[int, Dropped]) -> Iterator[tuple[int, Tensor]]:
        """Run the blocks from `first` on; a state is kept for each block skipped on the way, not for each run."""
        for block in range(first, self.model.num_blocks):
            if skip := {member: dropped for member, dropped in members.items() if block in dropped}:
                yield from self._walk(block + 1, hidden, skip)
            members = {member: dropped for member, dropped in members.items() if block not in dropped}
            if not members:
                return
            hidden = self.model.run(block, hidden)
        for member in members:
            yield member, hidden


def logit_rows(
    device: torch.device, vocab_size: int, row_bytes: int | None = None, least_rows: int = LEAST_ROWS
) -> int:
    """Return how many positions' float32 logits to have at a time. row_bytes: all of them take; None: by the device."""
    return max(least_rows, (row_bytes or ROW_BYTES.get(device.type, ACCELERATOR_ROW_BYTES)) // (4 * vocab_size))


def tokens_at_once(model: BlockModel) -> int:
    """Return how many tokens fit the model's device well."""
    if model.device.type == "cpu":
        return BATCH_TOKENS
    return max(BATCH_TOKENS, min(MOST_BATCH_TOKENS, ACCELERATOR_BATCH_BYTES // (4 * model.hidden_size)))


def block_runs(sets: Iterable[Dropped], num_blocks: int) -> int:
    """Return how many blocks are run for `sets` together: the distinct prefixes that go on with a kept block."""
    distinct = set(sets)
    return sum(
        len({tuple(b for b in dropped if b < block) for dropped in distinct if block not in dropped})
        for block in range(num_blocks)
    )


def _behind(sets: Iterable[Dropped], windows: Mapping[Dropped, int], last: int) -> list[tuple[int, list[Dropped]]]:
    """Group the sets that have less than `last` windows by how many they have; sorted."""
    have = {dropped: windows.get(dropped, 0) for dropped in sets}
    return [
        (first, sorted(dropped for dropped, count in have.items() if count == first))
        for first in sorted({count for count in have.values() if count < last})
    ]
