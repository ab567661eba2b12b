"""What a selection method may look at: the analysis, and a model to measure on where it needs one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from mi_prun.analysis import Analysis
from mi_prun.block_model import BlockModel
from mi_prun.evaluator import Evaluator
from mi_prun.selection.objective import Dropped


@dataclass(frozen=True)
class Selection:
    """dropped: the choice. forward_passes: blocks x tokens evaluated for it, over those of one pass of the dense model
    over the ranking text; nothing for what the analysis already knew.
    """

    dropped: Dropped
    forward_passes: float = 0.0


@dataclass(frozen=True)
class Context:
    """`open_model` loads the dense model; it is called at most once, and only by a method that measures."""

    analysis: Analysis
    open_model: Callable[[], BlockModel]
    seed: int = 0

    @property
    def num_blocks(self) -> int:
        return self.analysis.num_blocks

    @cached_property
    def model(self) -> BlockModel:
        return self.open_model()

    @cached_property
    def ranking(self) -> Evaluator:
        """Measures on the ranking text."""
        return Evaluator(self.model, torch.from_numpy(self.analysis.ranking).long())

    @cached_property
    def held_out(self) -> Evaluator:
        """Measures on the held-out text; for the final figure only."""
        return Evaluator(self.model, torch.from_numpy(self.analysis.held_out).long())
