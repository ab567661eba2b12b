"""The model a server is asked for: what its folder says of itself, checked before an engine is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mi_prun.errors import UserError
from mi_prun.inspection import read_manifest
from mi_prun.manifest import MANIFEST_NAME, Manifest, is_pruned
from mi_prun.model import open_model, read_config


@dataclass(frozen=True)
class ServedModel:
    """A folder or hub id, and its manifest where it is one of ours."""

    reference: str
    manifest: Manifest | None

    def describe(self) -> dict[str, Any]:
        """The answer of `GET /v1/pruning`."""
        if self.manifest is None:
            return {"pruned": False, "model": self.reference}
        plan = self.manifest.plan
        return {
            "pruned": True,
            "model": self.reference,
            "dense": plan.dense.model_dump(exclude={"block_parameters"}),
            "block_indices": "0-based",
            "dropped_blocks": list(plan.dropped),
            "kept_blocks": list(plan.kept),
            "block_ratio": plan.block_ratio,
            "parameter_ratio": plan.parameter_ratio,
            "method": plan.method,
            "settings": plan.settings,
            "quality": plan.quality.model_dump() if plan.quality else None,
            "weights": self.manifest.weights,
            "weight_bytes": self.manifest.weight_bytes,
            "dense_weight_bytes": self.manifest.dense_weight_bytes,
        }


def served_model(reference: str) -> ServedModel:
    """Check a model before it is served. A hub id is left to vLLM; a local folder must be whole."""
    folder = Path(reference)
    if not folder.exists():
        if reference.startswith((".", "/", "~")) or reference.count("/") != 1:
            raise UserError(f"model {reference}: no such folder, and not a hub id (owner/name)")
        return ServedModel(reference, None)
    if not is_pruned(folder):
        open_model(folder)
        return ServedModel(reference, None)
    manifest = read_manifest(folder)
    if manifest.weights == "virtual":
        raise UserError(
            f"{folder} has no weights of its own (virtual), and serving such a folder is not supported yet; "
            f"write them: mi-prun apply {manifest.plan.dense.name} plan.json -o OUT"
        )
    _check(folder, manifest)
    return ServedModel(reference, manifest)


def _check(folder: Path, manifest: Manifest) -> None:
    config = read_config(folder)
    entry = config.get("mi_prun")
    kept = list(manifest.plan.kept)
    if not isinstance(entry, dict) or entry.get("kept") != kept or entry.get("weights") != manifest.weights:
        raise UserError(
            f"{folder}: the mi_prun entry of config.json and {MANIFEST_NAME} do not say the same; apply again"
        )
    open_model(folder)
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{folder}: {name} is named in {MANIFEST_NAME} but missing; apply the plan again")
        if path.stat().st_size != digest.num_bytes and name.endswith(".safetensors"):
            raise UserError(
                f"{folder}: {name} has {path.stat().st_size} bytes, {MANIFEST_NAME} says {digest.num_bytes}"
            )
