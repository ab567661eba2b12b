"""A checkpoint that has weights of its own, for what does not read virtual folders."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_folder(folder: str) -> Iterator[str]:
    """Yield a checkpoint that has weights: the folder, or a whole one that is made of a virtual healed one.

    Raises UserError where the dense model of a virtual one is not there or is another one.
    """
    from mi_prun.checkpoint.checkpoint import write_checkpoint
    from mi_prun.checkpoint.healing import ADAPTER_NAME
    from mi_prun.checkpoint.inspection import read_manifest
    from mi_prun.checkpoint.manifest import is_pruned, read_config_entry
    from mi_prun.model.model_folder import read_config
    from mi_prun.plan.plan import open_dense
    from mi_prun.recovery.adapter import merged_by, read_adapter

    manifest = read_manifest(Path(folder)) if is_pruned(Path(folder)) else None
    entry = read_config_entry(read_config(Path(folder)).get("mi_prun"), origin=folder)
    if manifest is None or entry is None or manifest.weights != "virtual":
        yield folder
        return
    dense = open_dense(entry.base, manifest.plan)
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        file = Path(folder) / ADAPTER_NAME
        with merged_by(file, read_adapter(file, manifest.plan), manifest.plan, dense, whole) as healed:
            uniform = manifest.assume_uniform
            write_checkpoint(dense, manifest.plan, whole, healed=healed, assume_uniform=uniform)
        yield str(whole)
