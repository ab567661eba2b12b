"""Checks that the dense model behind a virtual folder is the one it was made of, whoever started the engine.

By config, index and headers, in each process that loads: no tensor is read for it. `mi-prun-serve` has looked at a part
of each kept tensor before.
"""

from __future__ import annotations

from pathlib import Path

from mi_prun.checkpoint.checkpoint import kept_tensors, own_head, ties_head
from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.checkpoint.manifest import MANIFEST_NAME, ConfigEntry, Manifest
from mi_prun.errors import UserError
from mi_prun.model.identity import config_digest, structure_digest
from mi_prun.model.model_folder import open_model, read_config


def checked_base(virtual: Path, entry: ConfigEntry) -> Path:
    """Return the dense model's folder that a virtual folder points to; a hub id is fetched as far as it is kept.

    Raises UserError where `entry` is not what the manifest says, or the dense model has another config or a kept tensor
    of another name, dtype or shape.
    """
    manifest = read_manifest(virtual)
    check_entry(virtual, entry, manifest)
    dense = open_model(entry.base, entry.kept)
    if config_digest(dense.config) != manifest.plan.dense.config_sha256:
        differing = "config"
    else:
        kept = {copy.name: copy.info for copy in kept_tensors(dense, manifest.plan)}
        differing = "" if manifest.structure_sha256 in (None, structure_digest(kept)) else "tensors"
    if not differing and own_head(dense.tensors) and ties_head(read_config(virtual)):
        raise UserError(
            f"{virtual}: {entry.base} has an unembedding of its own, and config.json ties it to the embedding, as "
            "older releases wrote it; apply again"
        )
    if differing:
        raise UserError(
            f"{virtual} was made of another model than {entry.base} is now (its {differing} differ); apply again"
        )
    return dense.path


def check_entry(folder: Path, entry: ConfigEntry | None, manifest: Manifest) -> ConfigEntry:
    """Return our entry of the config. Raises UserError where somebody changed it."""
    if entry is None or (entry.kept, entry.weights) != (manifest.plan.kept, manifest.weights):
        raise UserError(
            f"{folder}: the mi_prun entry of config.json and {MANIFEST_NAME} do not say the same; apply again"
        )
    return entry


def check_unhealed_draft(named: str, manifest: Manifest) -> None:
    """Refuse a healed model as a draft, which shares the served model's own blocks.

    named: what the draft is, in the message.
    """
    if manifest.healing is not None:
        raise UserError(
            f"{named} is healed ({manifest.healing.method}); a draft shares the served model's own blocks, "
            "so what healing learned would be left out: name the plan, or the pruned folder that was healed"
        )
