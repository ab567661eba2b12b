"""Virtual checkpoints, for what reads weights of its own: the model that they point to, or a whole one made of them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mi_prun.checkpoint.manifest import Manifest


def virtual_parts(folder: str) -> tuple[Manifest, str] | None:
    """Return the manifest of a virtual checkpoint and the dense model that it points to; None for any other model."""
    from mi_prun.checkpoint.inspection import read_manifest
    from mi_prun.checkpoint.manifest import is_pruned, read_config_entry
    from mi_prun.model.model_folder import read_config

    path = Path(folder)
    manifest = read_manifest(path) if is_pruned(path) else None
    if manifest is None or manifest.weights != "virtual":
        return None
    entry = read_config_entry(read_config(path).get("mi_prun"), origin=folder)
    return None if entry is None else (manifest, entry.base)


@contextlib.contextmanager
def whole_folder(folder: str) -> Iterator[str]:
    """Yield a checkpoint that has weights: the folder, or a whole one that is made of a virtual healed one.

    Raises UserError where the dense model of a virtual one is not there or is another one.
    """
    from mi_prun.checkpoint.checkpoint import write_checkpoint
    from mi_prun.checkpoint.healing import ADAPTER_NAME
    from mi_prun.plan.plan import open_dense
    from mi_prun.recovery.adapter import merged_by, read_adapter

    parts = virtual_parts(folder)
    if parts is None:
        yield folder
        return
    manifest, base = parts
    dense = open_dense(base, manifest.plan)
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        file = Path(folder) / ADAPTER_NAME
        with merged_by(file, read_adapter(file, manifest.plan), manifest.plan, dense, whole) as healed:
            uniform = manifest.assume_uniform
            write_checkpoint(dense, manifest.plan, whole, healed=healed, assume_uniform=uniform)
        yield str(whole)
