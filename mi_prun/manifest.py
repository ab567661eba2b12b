"""mi_prun.json, beside the weights of a pruned checkpoint: what it is, from what, and the digest of each file.

`config.json` carries a short `mi_prun` entry beside it (`config_entry`), which every vLLM process sees.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from mi_prun.artefact import Artefact, Record
from mi_prun.plan import Plan
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
    assume_uniform: config fields that are not known passed, on the user's word that all blocks are alike.
    """

    schema_name: ClassVar[str] = "manifest"

    plan: Plan
    weights: Weights
    weight_bytes: int
    dense_weight_bytes: int
    files: dict[str, FileDigest]
    block_kinds: tuple[str, ...] = ()
    assume_uniform: bool = False
    tool_version: str = __version__


def config_entry(plan: Plan, weights: Weights, base: str) -> dict[str, Any]:
    """The `mi_prun` entry of a pruned config.json."""
    return {"base": base, "dropped": list(plan.dropped), "kept": list(plan.kept), "weights": weights}


def is_pruned(folder: Path) -> bool:
    return (folder / MANIFEST_NAME).is_file()
