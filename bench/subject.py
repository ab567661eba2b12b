"""The models of a run: one dense, any number of pruned ones that were made from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.record import Blocks
from mi_prun.errors import UserError
from mi_prun.manifest import MANIFEST_NAME, Manifest, is_pruned
from mi_prun.model import ModelFolder, ModelIdentity, identity_of, open_model, read_config


@dataclass(frozen=True)
class Subject:
    """A model to measure. manifest: None for the dense one. folder: without shards where the weights are virtual."""

    folder: ModelFolder
    manifest: Manifest | None

    @property
    def title(self) -> str:
        return "dense" if self.manifest is None else f"{self.manifest.plan.block_ratio:.1%} dropped"

    @property
    def weight_bytes(self) -> int:
        """Of the tensors the model has, as the safetensors headers say."""
        return self.folder.weight_bytes if self.manifest is None else self.manifest.weight_bytes

    def blocks(self, dense: ModelIdentity) -> Blocks:
        plan = self.manifest.plan if self.manifest else None
        return Blocks(
            num_blocks=dense.num_blocks,
            dropped=plan.dropped if plan else (),
            block_ratio=plan.block_ratio if plan else 0.0,
            parameter_ratio=plan.parameter_ratio if plan else 0.0,
            method=plan.method if plan else None,
        )


def open_subjects(dense: str, pruned: Sequence[str]) -> tuple[ModelIdentity, list[Subject]]:
    """The dense model first. Raises UserError for what is no model, is named twice, or was made from another model."""
    if len(set(pruned)) < len(pruned):
        twice = next(name for name in pruned if pruned.count(name) > 1)
        raise UserError(f"--pruned {twice} is named twice")
    folder = open_model(dense)
    if is_pruned(folder.path):
        raise UserError(f"--dense {dense} is itself a pruned model; name the dense one")
    identity = identity_of(folder)
    return identity, [Subject(folder, None), *(_pruned(name, identity) for name in pruned)]


def _pruned(name: str, dense: ModelIdentity) -> Subject:
    path = Path(name)
    if not is_pruned(path):
        raise UserError(f"--pruned {name} is not a folder that `mi-prun apply` wrote ({MANIFEST_NAME} is missing)")
    manifest = Manifest.read(path / MANIFEST_NAME)
    manifest.plan.check_belongs_to(dense)
    if manifest.weights == "virtual":
        return Subject(ModelFolder(name, path, read_config(path), ()), manifest)
    folder = open_model(name)
    if folder.weight_bytes != manifest.weight_bytes:
        raise UserError(
            f"--pruned {name} has {folder.weight_bytes:,} bytes of weights, its {MANIFEST_NAME} says "
            f"{manifest.weight_bytes:,}; apply the plan again"
        )
    return Subject(folder, manifest)


def open_subject(name: str) -> tuple[ModelIdentity, Subject]:
    """A model, dense or pruned, and the identity of the dense one it is or comes from."""
    path = Path(name)
    if is_pruned(path):
        identity = Manifest.read(path / MANIFEST_NAME).plan.dense
        return identity, _pruned(name, identity)
    folder = open_model(name)
    return identity_of(folder), Subject(folder, None)
