"""mi_prun.json, beside the weights of a pruned checkpoint: what it is, from what, and the digest of each file.

`config.json` carries a short `mi_prun` entry beside it (`config_entry`), which every vLLM process sees.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from mi_prun.artefact import Artefact, Record
from mi_prun.plan import Plan

MANIFEST_NAME = "mi_prun.json"

Weights = Literal["materialized", "virtual"]


class FileDigest(Record):
    num_bytes: int
    sha256: str


class Manifest(Artefact):
    """`files` names every file of the folder but the manifest itself."""

    schema_name: ClassVar[str] = "manifest"

    plan: Plan
    weights: Weights
    weight_bytes: int
    dense_weight_bytes: int
    files: dict[str, FileDigest]


def config_entry(plan: Plan, weights: Weights, base: str) -> dict[str, Any]:
    """The `mi_prun` entry of a pruned config.json."""
    return {"base": base, "dropped": list(plan.dropped), "kept": list(plan.kept), "weights": weights}


def is_pruned(folder: Path) -> bool:
    return (folder / MANIFEST_NAME).is_file()
