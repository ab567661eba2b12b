"""The plan, plan.json: the blocks of a dense model that go, how they were chosen, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NoReturn

from pydantic import Field, model_validator

from mi_prun.artefact import Artefact, Record
from mi_prun.errors import UserError
from mi_prun.model.identity import ModelIdentity
from mi_prun.model.model_folder import ModelFolder, open_model
from mi_prun.version import __version__


class Quality(Record):
    """Perplexity and KL(dense || pruned) on text that was not used to choose, and the protocol that gave them."""

    text: str
    protocol: str
    window_tokens: int
    windows: int
    predicted_tokens: int
    dense_perplexity: float
    pruned_perplexity: float
    kl_nats_per_token: float


class Objective(Record):
    """J of the chosen set beside others of as many blocks, in nats.

    optimum_nats: the least J of any such set, by a dynamic programme.
    fbs_nats: J of the set that Fast-Block-Select takes as published; None in an older release's plan.
    """

    chosen_nats: float
    optimum_nats: float
    optimum_dropped: tuple[int, ...]
    fbs_nats: float | None = None

    @property
    def gap_nats(self) -> float:
        return self.chosen_nats - self.optimum_nats

    def beside(self) -> str:
        """Return in words what the chosen set's J is to be compared with."""
        fbs = "" if self.fbs_nats is None else f"Fast-Block-Select's {self.fbs_nats:.4g}, "
        return f"{fbs}least possible {self.optimum_nats:.4g}"


class Plan(Artefact):
    """The blocks of a dense model to drop and to keep. Indices are 0-based and ascending; together they are all blocks.

    forward_passes: what the choice cost beyond the analysis. It is the blocks x tokens evaluated, over those of one
    pass of the dense model over the ranking text. A backward counts as two forwards.
    """

    schema_name: ClassVar[str] = "plan"

    dense: ModelIdentity
    dropped: tuple[int, ...]
    kept: tuple[int, ...]
    method: str
    settings: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    objective: Objective | None = None
    forward_passes: float = 0.0
    quality: Quality | None = None
    tool_version: str = __version__

    @model_validator(mode="after")
    def _blocks(self) -> Plan:
        both = sorted((*self.dropped, *self.kept))
        if len(both) != self.dense.num_blocks or both != list(range(len(both))) or list(self.kept) != sorted(self.kept):
            raise ValueError(f"dropped and kept must split the blocks 0..{self.dense.num_blocks - 1} in two")
        if list(self.dropped) != sorted(self.dropped) or not self.kept:
            raise ValueError("dropped must be ascending, and at least one block kept")
        return self

    @property
    def block_ratio(self) -> float:
        return len(self.dropped) / self.dense.num_blocks

    @property
    def parameters_dropped(self) -> int:
        return sum(self.dense.block_parameters[block] for block in self.dropped)

    @property
    def parameter_ratio(self) -> float:
        return self.parameters_dropped / self.dense.num_parameters

    def check_belongs_to(self, dense: ModelIdentity) -> None:
        """Refuse an identity that is not that of the plan's dense model."""
        if not self.dense.same_model(dense):
            which = "config" if self.dense.config_sha256 != dense.config_sha256 else "weights"
            self._refuse(dense.name, which)

    def check_belongs_to_folder(self, dense: ModelFolder) -> None:
        """Refuse a folder that is not the plan's dense model. Only the kept blocks are read.

        All blocks are read if an older release made the plan.
        """
        if self.dense.parts is None:
            self.check_belongs_to(dense.identity)
        elif which := dense.differing_part(self.dense, self.kept):
            self._refuse(dense.name, which)

    def _refuse(self, name: str, which: str) -> NoReturn:
        raise UserError(
            f"the plan was made for {self.dense.name} and {name} is another model (its {which} differ); "
            "make a plan for this one"
        )


def open_dense(reference: str | Path, plan: Plan) -> ModelFolder:
    """Open the dense model of a plan. Of a hub id only the files that hold tensors of kept blocks are fetched.

    All files are fetched if an older release made the plan: it cannot tell the model by its kept blocks alone.
    """
    return open_model(reference, plan.kept if plan.dense.parts else None)


def kept_blocks(num_blocks: int, dropped: Sequence[int]) -> tuple[int, ...]:
    """Return the blocks that are not dropped, ascending."""
    gone = set(dropped)
    return tuple(block for block in range(num_blocks) if block not in gone)
