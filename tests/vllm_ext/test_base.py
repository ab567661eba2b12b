"""The dense model behind a virtual folder, as the loader checks it whoever started the engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mi_prun.checkpoint.manifest import ConfigEntry, read_config_entry
from mi_prun.errors import UserError
from mi_prun.model.model_folder import read_config
from vllm_ext.base import checked_base


@pytest.fixture
def dense(tiny: Callable[..., Path]) -> Path:
    return tiny("llama", tie_word_embeddings=False)


@pytest.fixture
def virtual(dense: Path, prune: Callable[..., Path], tmp_path: Path) -> Path:
    return prune(dense, tmp_path / "virtual", (1, 2, 5), virtual=True)


def entry_in(folder: Path) -> ConfigEntry:
    entry = read_config_entry(read_config(folder)["mi_prun"], origin=str(folder))
    assert entry is not None
    return entry


def test_the_model_it_was_made_of(dense: Path, virtual: Path) -> None:
    assert checked_base(virtual, entry_in(virtual)) == dense


def test_a_head_of_its_own_that_the_config_denies(
    tiny: Callable[..., Path], prune: Callable[..., Path], tmp_path: Path
) -> None:
    """As a fine-tuned model has it. vLLM goes by the config where a folder has no weights to look into."""
    dense = tiny("llama", tie_word_embeddings=False)
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    virtual = prune(dense, tmp_path / "virtual", (1, 2, 5), virtual=True)
    assert read_config(virtual)["tie_word_embeddings"] is False
    assert checked_base(virtual, entry_in(virtual)) == dense
    old = read_config(virtual) | {"tie_word_embeddings": True}  # as older releases wrote it
    (virtual / "config.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"has an unembedding of its own, and config\.json ties it .*; apply again"):
        checked_base(virtual, entry_in(virtual))


def test_another_config(dense: Path, virtual: Path) -> None:
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(UserError, match=r"was made of another model than .* is now \(its config differ\)"):
        checked_base(virtual, entry_in(virtual))


@pytest.mark.parametrize(("block", "refused"), [(3, True), (2, False)])
def test_a_tensor_of_another_shape(
    dense: Path, virtual: Path, rewrite_header: Callable[..., None], block: int, refused: bool
) -> None:
    """Of a block that is dropped nothing counts."""
    name = f"model.layers.{block}.mlp.up_proj.weight"
    rewrite_header(dense / "model.safetensors", lambda header: header[name]["shape"].reverse())
    if not refused:
        assert checked_base(virtual, entry_in(virtual)) == dense
        return
    with pytest.raises(UserError, match=r"was made of another model than .* is now \(its tensors differ\)"):
        checked_base(virtual, entry_in(virtual))


@pytest.mark.parametrize("change", [{"kept": (0, 3, 5)}, {"weights": "materialized"}])
def test_a_config_that_is_not_as_the_manifest_says(virtual: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"the mi_prun entry of config\.json and mi_prun\.json do not say the same"):
        checked_base(virtual, entry_in(virtual).model_copy(update=change))


def test_a_folder_without_its_manifest(virtual: Path) -> None:
    entry = entry_in(virtual)
    (virtual / "mi_prun.json").unlink()
    with pytest.raises(UserError, match=r"is not a pruned checkpoint \(no mi_prun\.json\)"):
        checked_base(virtual, entry)
