"""A row of a comparison: what one method chose, and the loss measured for it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mi_prun.artefact import Record
from mi_prun.quality.evaluator import Dropped

COMPUTED = ("block_ratio", "passes")  # columns that follow from a row's fields


class MethodSpec(Record):
    """A method as the user names it: `NAME` or `NAME:N`.

    rerank: N, how many sets are compared by their measured loss; None: as many as the method wants.
    """

    name: str
    rerank: int | None

    @property
    def label(self) -> str:
        return self.name if self.rerank is None else f"{self.name}:{self.rerank}"


class Row(Record):
    """One choice of one method, measured on the held-out text.

    analysis: fingerprint of the analysis it was made from; a row of another one is not shown.
    selection_passes: blocks x tokens evaluated for the choice, over those of one pass of the dense model over the
    ranking text. analysis_passes: the same for the analysis, 0 where the method does not use it.
    seconds: time of the choice on this machine, without the model's loading and what earlier rows had measured.
    parameter_ratio: share of the dense model's parameters that go. It and tool_version are None in rows of a release
    that did not record them.
    """

    schema_version: Literal[1] = 1
    analysis: str
    method: str
    rerank: int | None
    seed: int
    num_blocks: int = Field(gt=0)
    dropped: Dropped
    candidates: int
    selection_passes: float
    analysis_passes: float
    seconds: float
    dense_perplexity: float = Field(gt=0)
    perplexity: float = Field(gt=0)
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
        """Return the fields, and what follows from them."""
        return self.model_dump() | {name: getattr(self, name) for name in COMPUTED}

    @property
    def key(self) -> tuple[str, str, int, int]:
        return (self.analysis, self.label, self.seed, len(self.dropped))
