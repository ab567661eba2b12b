"""What the tests of more than one package share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mi_prun.checkpoint import write_checkpoint
from mi_prun.model import identity_of, open_model
from mi_prun.plan import Plan, kept_blocks


@pytest.fixture(scope="session")
def prune() -> Callable[..., Path]:
    """`prune(dense, out, dropped)` writes the checkpoint that lacks those blocks."""

    def make(source: Path, out: Path, dropped: Sequence[int], *, virtual: bool = False) -> Path:
        folder = open_model(source)
        identity = identity_of(folder)
        kept = kept_blocks(identity.num_blocks, dropped)
        plan = Plan(dense=identity, dropped=tuple(dropped), kept=kept, method="by hand")
        write_checkpoint(folder, plan, out, virtual=virtual)
        return out

    return make
