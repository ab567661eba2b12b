"""What a selection method may look at: the analysis, and a model to measure on where it needs one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mi_prun.analysis.analysis import Analysis
from mi_prun.model.block_model import BlockModel
from mi_prun.quality.evaluator import Evaluator, Loss, Memory
from mi_prun.selection.shrinkage import shrunk_cross_entropy
from mi_prun.settings import SELF

Criterion = Literal["ce", "kl"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
T = TypeVar("T")

# Of the ranking text, what every candidate may be measured on: a share, not under so many tokens, and not over half.
SCREENING_SHARE, SCREENING_TOKENS = 1 / 4, 8_192
MUCH = 1.25  # times its share
SCREENING_WINDOWS = 16
LEAST_SCREENING_TOKENS = 64  # in a window: a shorter one is mostly its own beginning


@dataclass
class Ledger:
    """What was run beyond the analysis. block_tokens: one block over one token, a backward counted as its forwards.

    paid: the names of what was derived and is counted.
    """

    block_tokens: float = 0.0
    paid: set[str] = field(default_factory=set)

    def first(self, name: str) -> bool:
        """Whether it is to be counted: what serves every number of blocks is paid for once."""
        new = name not in self.paid
        self.paid.add(name)
        return new


@dataclass(frozen=True)
class Context:
    """`open_model` loads the dense model; it is called only by a method that measures. wanted: the criterion,
    where it is not the one that goes with the text.
    """

    analysis: Analysis
    open_model: Callable[[], BlockModel]
    seed: int = 0
    wanted: Criterion | None = None
    extra: Ledger = field(default_factory=Ledger)
    memories: dict[str, Memory] = field(default_factory=dict)  # what was measured on each text; may be shared
    derived: dict[str, Any] = field(default_factory=dict)  # what serves every number of blocks; may be shared

    @property
    def num_blocks(self) -> int:
        return self.analysis.num_blocks

    @cached_property
    def model(self) -> BlockModel:
        return self.open_model()

    @cached_property
    def ranking(self) -> Evaluator:
        """Measures on the ranking text, which was kept out of the scoring."""
        return self._evaluator("ranking", torch.from_numpy(self.analysis.ranking).long())

    @cached_property
    def screening(self) -> Evaluator:
        """The beginning of the ranking text, in shorter windows where they are few: a part of it can then be taken."""
        windows = torch.from_numpy(self.analysis.ranking).long()
        first = windows[: screening_windows(windows)]
        return self._evaluator("screening", short_windows(first, bos=self.analysis.record.calibration.bos))

    @property
    def screening_share(self) -> float:
        """How much of the ranking text screens, over its usual share."""
        windows = torch.from_numpy(self.analysis.ranking)
        return screening_windows(windows) / (SCREENING_SHARE * len(windows))

    @property
    def short_text(self) -> bool:
        """Whether much more than its share of the ranking text has to screen, which costs more than its share."""
        return self.screening_share > MUCH

    @cached_property
    def confirming(self) -> Evaluator | None:
        """The rest of the ranking text, in its whole windows; None where there is one window only."""
        windows = torch.from_numpy(self.analysis.ranking).long()
        return self._evaluator("confirming", windows[screening_windows(windows) :]) if len(windows) > 1 else None

    @cached_property
    def held_out(self) -> Evaluator:
        """Measures on the held-out text; for the final figure only."""
        return self._evaluator("held out", torch.from_numpy(self.analysis.held_out).long())

    @property
    def criterion(self) -> Criterion:
        """The loss that candidates are compared by: the cross-entropy on the text; on text sampled from the dense model
        KL(dense || pruned), which is the same less a constant in expectation, and far less noisy.
        """
        if self.wanted is not None:
            return self.wanted
        return "kl" if self.analysis.record.calibration.source == SELF else "ce"

    def value(self, loss: Loss) -> float:
        """The criterion of a measured loss, in nats."""
        value: float = loss.kl_nats if self.criterion == "kl" else loss.ce_nats
        return value

    def fresh(self, wanted: Criterion | None = None) -> Context:
        """The same, with nothing spent; what was measured and derived is not done again, but it is paid for again."""
        return replace(self, open_model=lambda: self.model, extra=Ledger(), wanted=wanted or self.wanted)

    def derive(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gives, made once. Its cost is for the caller to count, where `extra.first` says so."""
        if name not in self.derived:
            self.derived[name] = make()
        found: T = self.derived[name]
        return found

    def values(self, by_window: NDArray[np.float64]) -> NDArray[np.float64]:
        """(sets,) what to compare sets by, from losses by window (sets, windows, 2): the criterion, less its noise."""
        values: NDArray[np.float64] = (
            by_window[..., 0].mean(1) if self.criterion == "kl" else shrunk_cross_entropy(by_window)
        )
        return values

    @property
    def passes(self) -> float:
        """What was evaluated so far to choose, in passes of the dense model over the ranking text."""
        made = [self.__dict__.get(name) for name in ("ranking", "screening", "confirming")]
        spent: float = sum(evaluator.block_tokens for evaluator in made if evaluator is not None)
        return (spent + self.extra.block_tokens) / (self.num_blocks * self.analysis.ranking.size)

    def _evaluator(self, text: str, windows: Tensor) -> Evaluator:
        return Evaluator(self.model, windows, memory=self.memories.setdefault(text, {}))


def screening_windows(ranking: Tensor) -> int:
    """How many of the windows (n, tokens) of the ranking text screen the candidates."""
    wanted = max(round(SCREENING_SHARE * len(ranking)), math.ceil(SCREENING_TOKENS / ranking.shape[1]))
    return min(wanted, (len(ranking) + 1) // 2)


def short_windows(windows: Tensor, *, bos: bool = False) -> Tensor:
    """Windows (n, tokens) cut in halves until there are SCREENING_WINDOWS of them, or they would become too short: the
    first piece of each window, then the second of each, so that a part of them is of as many passages as can be.
    bos: each begins with a token that is no text, and so does each piece: there are models that do not work without it.
    """
    head, text = windows[:, : int(bos)], windows[:, int(bos) :]
    pieces, length = 1, text.shape[1]
    while pieces * len(text) < SCREENING_WINDOWS and length >= 2 * LEAST_SCREENING_TOKENS:
        pieces, length = 2 * pieces, length // 2
    cut = torch.split(text[:, : pieces * length], length, dim=1)
    return torch.cat([head.repeat(pieces, 1), torch.cat(cut)], dim=1)
