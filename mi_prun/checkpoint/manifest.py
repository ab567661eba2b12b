"""mi_prun.json, beside the weights of a pruned checkpoint: what it is, from what, and the digest of each file.

`config.json` carries a short `mi_prun` entry beside it (`config_entry`), which every vLLM process sees.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ValidationError

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
    """`files` names every file of the folder but the manifest itself.

    weight_bytes: of the tensors that the pruned model has, whether they lie in the folder or in the dense model's.
    block_kinds: the kind of each block of the dense model, e.g. `sliding_attention`.
    structure_sha256: of every tensor's name, dtype and shape in the pruned model (`model.structure_digest`).
    assume_uniform: config fields that are not known passed, on the user's word that all blocks are alike.
    healing: how the kept blocks were taught to make up for the dropped ones; None: the weights are the dense model's.
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
    healing: Healing | None = None
    tool_version: str = __version__


def config_entry(plan: Plan, weights: Weights, base: str) -> dict[str, Any]:
    """The `mi_prun` entry of a pruned config.json."""
    return {"base": base, "dropped": list(plan.dropped), "kept": list(plan.kept), "weights": weights}


class ConfigEntry(Record):
    """The same, read back. base: the dense model's folder or hub id; of a materialised checkpoint, only its name."""

    base: str
    dropped: tuple[int, ...]
    kept: tuple[int, ...]
    weights: Weights


def read_config_entry(entry: object, *, origin: str) -> ConfigEntry | None:
    """The `mi_prun` entry of a config.json that was read by whoever; None where there is none."""
    if entry is None:
        return None
    try:
        return ConfigEntry.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "as a whole"
        raise UserError(f"{origin}: the mi_prun entry of config.json, {where}: {first['msg']}; apply again") from error


def is_pruned(folder: Path) -> bool:
    return (folder / MANIFEST_NAME).is_file()
