"""A pruned copy of the bundled model, English text, and settings for a healing of seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch

from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import open_model
from mi_prun.recovery.shared_weights import SharedWeights
from mi_prun.settings import HealSettings

DROPPED = (4, 5, 8)


@pytest.fixture(scope="session")
def pruned_reference(tmp_path_factory: pytest.TempPathFactory, prune: Callable[..., Path], reference: Path) -> Path:
    """The bundled model without blocks 4, 5 and 8."""
    return prune(reference, tmp_path_factory.mktemp("pruned") / "pruned", DROPPED)


@pytest.fixture(scope="session")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English prose of many subjects: the reference manual that Python carries with it, 600 kB."""
    path = tmp_path_factory.mktemp("text") / "manual.txt"
    path.write_text("\n\n\n".join(topics.values()))
    return path


@pytest.fixture(scope="session")
def heal_settings(manual: Path, harbour: Path) -> HealSettings:
    """Just enough to be better than without; on a slow processor each thousand tokens is seconds."""
    return HealSettings(
        sources=(f"{manual}=3", str(harbour)), tokens=1_024, window_tokens=32, batch_tokens=256, forward_tokens=128,
        fit_tokens=1_024, gate_tokens=512, validation_tokens=256, rank=4, device="cpu", train_dtype="float32",
    )  # fmt: skip


@pytest.fixture(scope="session")
def more_settings(heal_settings: HealSettings) -> HealSettings:
    """Enough for one way of healing to be clearly better than another."""
    return replace(heal_settings, fit_tokens=2_048, gate_tokens=1_024, validation_tokens=256)


@pytest.fixture
def shared(tiny: Callable[..., Path]) -> Callable[..., SharedWeights]:
    """`shared(dropped, model_type, **config fields)`: a tiny random model as teacher and student."""

    def make(dropped: tuple[int, ...], model_type: str = "llama", **fields: object) -> SharedWeights:
        folder = open_model(tiny(model_type, **fields))
        model: BlockModel = load_on(folder, "cpu")
        return SharedWeights(model, dropped, folder.family.block_prefix)

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 97, (6, 16), generator=torch.Generator().manual_seed(5))
