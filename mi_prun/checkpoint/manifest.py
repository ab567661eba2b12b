"""The manifest of a pruned checkpoint, `mi_prun.json`: what it was made of, and the digest of each file.

A short `mi_prun` entry stands in `config.json` too (`config_entry`): every vLLM process sees that one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import ValidationError, model_validator

from mi_prun.architecture.proof import Proof
from mi_prun.artefact import Artefact, Record
from mi_prun.checkpoint.healing import Healing
from mi_prun.errors import UserError
from mi_prun.plan.plan import Plan
from mi_prun.version import __version__

MANIFEST_NAME = "mi_prun.json"

Weights = Literal["materialized", "virtual"]


class FileDigest(Record):
    num_bytes: int
    sha256: str


class Manifest(Artefact):
    """The description of a pruned folder.

    files: every file of the folder but the manifest itself.
    weight_bytes: size of the pruned model's tensors, whether they lie in the folder or in the dense model's.
    block_kinds: the kind of each block of the dense model, e.g. `sliding_attention`.
    structure_sha256: `structure_digest` of the pruned model's tensors.
    assume_uniform: unknown config fields were let pass, because the user said that all blocks are alike.
    proof: what shows that these blocks can be dropped, where no rule names the family; None where a rule does, or an
    older release wrote it.
    healing: how the kept blocks were taught to make up for the dropped ones; None where they were not.
    """

    schema_name: ClassVar[str] = "manifest"

    plan: Plan
    weights: Weights
    weight_bytes: int
    dense_weight_bytes: int
    files: dict[str, FileDigest]
    block_kinds: tuple[str, ...] = ()
    structure_sha256: str | None = None
    assume_uniform: bool = False
    proof: Proof | None = None
    healing: Healing | None = None
    tool_version: str = __version__

    @model_validator(mode="after")
    def _a_kind_for_each_block(self) -> Self:
        if self.block_kinds and len(self.block_kinds) != self.plan.dense.num_blocks:
            raise ValueError(f"block_kinds has {len(self.block_kinds)} entries for {self.plan.dense.num_blocks} blocks")
        return self


def config_entry(plan: Plan, weights: Weights, base: str) -> dict[str, Any]:
    """Return the `mi_prun` entry of a pruned config.json."""
    return {"base": base, "dropped": list(plan.dropped), "kept": list(plan.kept), "weights": weights}


class ConfigEntry(Record):
    """The `mi_prun` entry of a config.json, read back.

    base: the dense model's folder or hub id; of a materialised checkpoint, only its name.
    """

    base: str
    dropped: tuple[int, ...]
    kept: tuple[int, ...]
    weights: Weights


def read_config_entry(entry: object, *, origin: str) -> ConfigEntry | None:
    """Check the `mi_prun` entry of a config.json; None if there is none. origin: names the folder in the error."""
    if entry is None:
        return None
    try:
        return ConfigEntry.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "as a whole"
        raise UserError(f"{origin}: the mi_prun entry of config.json, {where}: {first['msg']}; apply again") from error


def is_pruned(folder: Path) -> bool:
    """Return True if the folder has a manifest."""
    return (folder / MANIFEST_NAME).is_file()
