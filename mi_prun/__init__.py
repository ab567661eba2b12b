"""MI-PRUN's offline stage: a dense model becomes an analysis, a plan and a layer-dropped checkpoint.

Nothing here imports vLLM; torch and transformers are imported by the modules that need them, not by this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mi_prun.architecture.unlisted import set_prover
from mi_prun.version import __version__

if TYPE_CHECKING:
    from mi_prun.architecture.family import Config, Family
    from mi_prun.architecture.proof import Proof

__all__ = ["__version__"]


def _prove(config: Config, dropped: Sequence[int]) -> tuple[Family, Proof]:
    from mi_prun.proving.prover import prove

    return prove(config, dropped)


set_prover(_prove)
