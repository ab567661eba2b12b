"""A healed virtual folder, whoever started the engine: it is never served without what healing learned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.checkpoint.healing import ADAPTER_NAME
from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model
from mi_prun.recovery.adapter import NOT_SAID, Adapter, healed_by, read_adapter, write_adapter
from vllm_ext import loader
from vllm_ext.base import check_unhealed_draft

NAME = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def plain(tiny: Callable[..., Path], prune: Callable[..., Path], tmp_path: Path) -> Path:
    return prune(tiny("llama"), tmp_path / "plain", (2,), virtual=True)


@pytest.fixture
def healed(plain: Path, tmp_path: Path) -> Path:
    plan = read_manifest(plain).plan
    dense = open_model(plan.dense.name)
    own = load_file(dense.path / "model.safetensors")[NAME] + 1
    write_adapter(tmp_path / "adapter", Adapter({NAME: own}, {}, {}), plan, NOT_SAID)
    out = tmp_path / "healed"
    learned = read_adapter(tmp_path / "adapter", plan)
    write_checkpoint(dense, plan, out, virtual=True, healed=healed_by(tmp_path / "adapter", learned, dense))
    return out


def test_what_healing_learned_is_read_or_the_folder_is_refused(plain: Path, healed: Path) -> None:
    assert loader.adapter_of(plain) is None
    adapter = loader.adapter_of(healed)
    assert adapter is not None
    assert torch.equal(adapter.own[NAME], load_file(healed / ADAPTER_NAME)[f"own/{NAME}"])
    (healed / ADAPTER_NAME).unlink()
    with pytest.raises(UserError, match=f"{ADAPTER_NAME}: no such file"):
        loader.adapter_of(healed)


def test_of_a_hub_id_what_healing_learned_is_fetched_too(healed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def fetch(reference: str, weights: tuple[str, ...], *, revision: str | None) -> Path:
        asked.append(weights)
        return healed

    monkeypatch.setattr(loader, "fetch", fetch)
    assert loader.folder_of(SimpleNamespace(model="owner/healed", revision=None)) == healed
    assert asked == [(ADAPTER_NAME,)]


def test_it_is_no_draft(plain: Path, healed: Path) -> None:
    check_unhealed_draft("draft plain", read_manifest(plain))
    with pytest.raises(UserError, match="a draft shares the served model's own blocks"):
        check_unhealed_draft("draft healed", read_manifest(healed))
