"""plan.json: which blocks of which dense model go, chosen how, and what it cost on held-out text."""

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
    """Perplexity and KL(dense || pruned) on text that was not used to choose, with the protocol that gave them."""

    text: str
    protocol: str
    window_tokens: int
    windows: int
    predicted_tokens: int
    dense_perplexity: float
    pruned_perplexity: float
    kl_nats_per_token: float


class Objective(Record):
    """J of the chosen set, the least J that any set of as many blocks has (dynamic programme), and J of what
    Fast-Block-Select takes as published (None: of an older release's plan), in nats.
    """

    chosen_nats: float
    optimum_nats: float
    optimum_dropped: tuple[int, ...]
    fbs_nats: float | None = None

    @property
    def gap_nats(self) -> float:
        return self.chosen_nats - self.optimum_nats

    def beside(self) -> str:
        """What the chosen set's J is to be compared with, in words."""
        fbs = "" if self.fbs_nats is None else f"Fast-Block-Select's {self.fbs_nats:.4g}, "
        return f"{fbs}least possible {self.optimum_nats:.4g}"


class Plan(Artefact):
    """Block indices are 0-based and ascending; `dropped` and `kept` together are all blocks of `dense`.

    forward_passes: what the choice cost beyond the analysis: blocks x tokens evaluated, over the blocks x tokens of one
    pass of the dense model over the ranking text; a backward counts as two forwards.
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
        """Refuse a model that is not the one the plan was made for."""
        if not self.dense.same_model(dense):
            which = "config" if self.dense.config_sha256 != dense.config_sha256 else "weights"
            self._refuse(dense.name, which)

    def check_belongs_to_folder(self, dense: ModelFolder) -> None:
        """The same, of a folder, by its kept blocks: nothing is read of the others.

        By all of them where an older release made the plan.
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
    """The dense model of a plan; of a hub id only the files that hold tensors of kept blocks are fetched.

    All of them where an older release made the plan: it does not tell the model by its kept blocks alone.
    """
    return open_model(reference, plan.kept if plan.dense.parts else None)


def kept_blocks(num_blocks: int, dropped: Sequence[int]) -> tuple[int, ...]:
    gone = set(dropped)
    return tuple(block for block in range(num_blocks) if block not in gone)
