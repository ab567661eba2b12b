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
from mi_prun.settings import SELF, PlanSettings
from mi_prun.text.recall import repeating

Criterion = Literal["ce", "kl"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
T = TypeVar("T")

# The part of the ranking text that every candidate may be measured on: at least so many tokens, at most half of it.
SCREENING_SHARE, SCREENING_TOKENS = 1 / 4, 8_192
MUCH = 1.25  # over its usual share
SCREENING_WINDOWS = 16
LEAST_SCREENING_TOKENS = 256  # in a window; in a shorter one what a set makes of a long context is not seen


@dataclass
class Ledger:
    """A count of what was run beyond the analysis and the evaluators.

    block_tokens: one for each block run over one token; a backward counts as two forwards. paid: the names of what was
    derived and is counted. compared: whether anything was compared by the criterion.
    """

    block_tokens: float = 0.0
    paid: set[str] = field(default_factory=set)
    compared: bool = False

    def first(self, name: str) -> bool:
        """Return whether `name` is to be counted now: what serves every number of blocks is paid for once."""
        new = name not in self.paid
        self.paid.add(name)
        return new


@dataclass(frozen=True)
class Context:
    """All that a method chooses by, and the count of what it spends.

    open_model: loads the dense model; only a method that measures calls it. wanted: the criterion, where it is not the
    one that goes with the text. recall: the share of each window that repeats its beginning, where candidates are
    measured.
    """

    analysis: Analysis
    open_model: Callable[[], BlockModel]
    seed: int = 0
    wanted: Criterion | None = None
    recall: float = PlanSettings.recall
    extra: Ledger = field(default_factory=Ledger)
    memories: dict[str, Memory] = field(default_factory=dict)  # losses on each text; may be shared
    derived: dict[str, Any] = field(default_factory=dict)  # results that serve every k; may be shared

    @property
    def num_blocks(self) -> int:
        """L, the number of blocks."""
        return self.analysis.num_blocks

    @cached_property
    def model(self) -> BlockModel:
        """The dense model, loaded at the first use."""
        return self.open_model()

    @cached_property
    def ranking(self) -> Evaluator:
        """An evaluator on the ranking text, which was kept out of the scoring."""
        return self._evaluator("ranking", torch.from_numpy(self.analysis.ranking).long())

    @cached_property
    def screening(self) -> Evaluator:
        """An evaluator on the beginning of the ranking text, with recall. Few windows are cut shorter, for a part to
        be taken.
        """
        windows = torch.from_numpy(self.analysis.ranking).long()
        first = windows[: screening_windows(windows)]
        short = short_windows(first, bos=self.analysis.record.calibration.bos)
        return self._evaluator("screening", self._recalling(short))

    @property
    def screening_share(self) -> float:
        """The share of the ranking text that screens, over the usual share."""
        windows = torch.from_numpy(self.analysis.ranking)
        return screening_windows(windows) / (SCREENING_SHARE * len(windows))

    @property
    def short_text(self) -> bool:
        """Return whether much more than the usual share of the ranking text has to screen, which costs more."""
        return self.screening_share > MUCH

    @cached_property
    def confirming(self) -> Evaluator | None:
        """An evaluator on the rest of the ranking text, in whole windows, with recall; None where there is one window
        only.
        """
        windows = torch.from_numpy(self.analysis.ranking).long()
        if len(windows) < 2:
            return None
        return self._evaluator("confirming", self._recalling(windows[screening_windows(windows) :]))

    @cached_property
    def held_out(self) -> Evaluator:
        """An evaluator on the held-out text; for the final figure only."""
        return self._evaluator("held out", torch.from_numpy(self.analysis.held_out).long())

    @property
    def criterion(self) -> Criterion:
        """The loss that candidates are compared by: the cross-entropy, or KL(dense || pruned) on sampled text.

        On text sampled from the dense model KL is in expectation the cross-entropy less a constant, and far less noisy.
        """
        if self.wanted is not None:
            return self.wanted
        return "kl" if self.analysis.record.calibration.source == SELF else "ce"

    def value(self, loss: Loss) -> float:
        """Return the criterion of a measured loss, in nats."""
        self.extra.compared = True
        value: float = loss.kl_nats if self.criterion == "kl" else loss.ce_nats
        return value

    def fresh(self, wanted: Criterion | None = None) -> Context:
        """Return a copy with nothing spent: cached measurements are used again, but charged again."""
        return replace(self, open_model=lambda: self.model, extra=Ledger(), wanted=wanted or self.wanted)

    def derive(self, name: str, make: Callable[[], T]) -> T:
        """Return what `make` gives; it is made once. The caller counts its cost, where `extra.first` says so."""
        if name not in self.derived:
            self.derived[name] = make()
        result: T = self.derived[name]
        return result

    def values(self, by_window: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (sets,) to compare sets by: the criterion less its noise; of a set that breaks the model, infinity.

        by_window: losses (sets, windows, 2).
        """
        self.extra.compared = True
        sound = np.isfinite(by_window).all((1, 2))
        values = np.full(len(by_window), np.inf)
        kept = by_window[sound]
        values[sound] = kept[..., 0].mean(1) if self.criterion == "kl" else shrunk_cross_entropy(kept)
        return values

    @property
    def measured_with(self) -> dict[str, str | float]:
        """The criterion and the recall that this context has measured with; neither where it has not."""
        measured: dict[str, str | float] = {}
        if self.extra.compared:
            measured["criterion"] = self.criterion
        if "screening" in self.__dict__:  # what is measured on the rest was measured there first
            measured["recall"] = self.recall
        return measured

    @property
    def passes(self) -> float:
        """The cost of choosing so far, in passes of the dense model over the ranking text."""
        made = [self.__dict__.get(name) for name in ("ranking", "screening", "confirming")]
        spent: float = sum(evaluator.block_tokens for evaluator in made if evaluator is not None)
        return (spent + self.extra.block_tokens) / (self.num_blocks * self.analysis.ranking.size)

    def _recalling(self, windows: Tensor) -> Tensor:
        return repeating(windows, self.recall, bos=self.analysis.record.calibration.bos)

    def _evaluator(self, text: str, windows: Tensor) -> Evaluator:
        return Evaluator(self.model, windows, memory=self.memories.setdefault(text, {}))


def screening_windows(ranking: Tensor) -> int:
    """Return how many of the windows (n, tokens) of the ranking text screen the candidates."""
    wanted = max(round(SCREENING_SHARE * len(ranking)), math.ceil(SCREENING_TOKENS / ranking.shape[1]))
    return min(wanted, (len(ranking) + 1) // 2)


def short_windows(windows: Tensor, *, bos: bool = False) -> Tensor:
    """Cut windows (n, tokens) in halves until there are SCREENING_WINDOWS of them, or they would become too short.

    The first piece of each window comes first, then the second of each: so a part of them has as many passages as it
    can. bos: each window begins with a token that is no text; each piece then does too, as some models need it.
    """
    head, text = windows[:, : int(bos)], windows[:, int(bos) :]
    pieces, length = 1, text.shape[1]
    while pieces * len(text) < SCREENING_WINDOWS and length // 2 + int(bos) >= LEAST_SCREENING_TOKENS:
        pieces, length = 2 * pieces, length // 2
    cut = torch.split(text[:, : pieces * length], length, dim=1)
    return torch.cat([head.repeat(pieces, 1), torch.cat(cut)], dim=1)
