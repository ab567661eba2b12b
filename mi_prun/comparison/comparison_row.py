"""A choice of a method that was measured: a row of a comparison."""

from __future__ import annotations

from typing import Literal

from mi_prun.artefact import Record
from mi_prun.quality.evaluator import Dropped

COMPUTED = ("block_ratio", "passes")  # columns that follow from a row's fields


class MethodSpec(Record):
    """`NAME` or `NAME:N`, N the sets that are compared by their measured loss; None: as many as the method wants."""

    name: str
    rerank: int | None

    @property
    def label(self) -> str:
        return self.name if self.rerank is None else f"{self.name}:{self.rerank}"


class Row(Record):
    """One choice. analysis: fingerprint of the analysis it was made from; a row of another one is not shown.

    selection_passes, analysis_passes: blocks x tokens evaluated for the choice, and by the one pass where the method
    uses it, over those of one pass of the dense model over the ranking text. seconds: of the choice, on this machine,
    less what earlier rows of the same run had measured already and the model's loading. parameter_ratio: the share of
    the dense model's parameters that go. The last two: None where an older release did not say it.
    """

    schema_version: Literal[1] = 1
    analysis: str
    method: str
    rerank: int | None
    seed: int
    num_blocks: int
    dropped: Dropped
    candidates: int
    selection_passes: float
    analysis_passes: float
    seconds: float
    dense_perplexity: float
    perplexity: float
    kl_nats_per_token: float
    objective_nats: float
    objective_gap_nats: float
    parameter_ratio: float | None = None
    tool_version: str | None = None

    @property
    def label(self) -> str:
        return MethodSpec(name=self.method, rerank=self.rerank).label

    @property
    def passes(self) -> float:
        return self.selection_passes + self.analysis_passes

    @property
    def block_ratio(self) -> float:
        return len(self.dropped) / self.num_blocks

    def columns(self) -> dict[str, object]:
        """The fields, and what follows from them."""
        return self.model_dump() | {name: getattr(self, name) for name in COMPUTED}

    @property
    def key(self) -> tuple[str, str, int, int]:
        return (self.analysis, self.label, self.seed, len(self.dropped))
