"""The identity of an arm's model: figures that were collected of one say nothing of the next one of the same name."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from mi_prun.checkpoint.manifest import MANIFEST_NAME, is_pruned
from mi_prun.errors import UserError
from mi_prun.files import sha256_of
from mi_prun.model.identity import config_digest, structure_digest
from mi_prun.model.model_folder import open_model, read_config
from serve.ab.arms.supervisor import adapter_file_of
from serve.ab.config import ArmConfig


def digest_of(arm: ArmConfig) -> str:
    """Return a digest of an arm: where it is, its flags, its plan and adapter, and the content of a model folder.

    What changes behind a URL or a hub id is not seen.
    """
    target: tuple[object, ...] = (arm.url, arm.upstream_model, arm.model, arm.plan and sha256_of(arm.plan), arm.flags)
    if (adapter := adapter_file_of(arm)) is not None and adapter.is_file():
        target += (sha256_of(adapter),)
    content = _content(Path(arm.model)) if arm.model and Path(arm.model).is_dir() else []
    return sha256(json.dumps([target, content]).encode()).hexdigest()


def _content(folder: Path) -> list[str]:
    """Return digests of a model's content. A pruned one's manifest has those of all files; else tensors are sampled."""
    if is_pruned(folder):
        return [sha256_of(folder / MANIFEST_NAME)]
    if not any(folder.glob("*.safetensors")):  # `--load-format dummy` makes them up
        return [config_digest(read_config(folder))]
    model = open_model(folder)
    try:
        identity = model.identity
    except UserError:  # a family that only vLLM knows
        return [
            config_digest(model.config),
            structure_digest({name: info for name, (_, info) in model.tensors.items()}),
        ]
    return [identity.config_sha256, identity.weights_sha256]
