"""What a folder says of itself before an engine is started."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mi_prun.errors import UserError
from serve.served_model import served_model


def test_a_pruned_folder_is_described(pruned: Path) -> None:
    said = served_model(str(pruned)).describe()
    assert said["pruned"] is True
    assert said["dropped_blocks"] == [2, 3, 7]
    assert said["kept_blocks"] == [0, 1, 4, 5, 6, 8, 9, 10, 11]
    assert said["block_ratio"] == 0.25
    assert said["dense"]["num_blocks"] == 12
    assert 0 < said["parameter_ratio"] < 0.25
    assert said["weight_bytes"] < said["dense_weight_bytes"]
    json.dumps(said)


def test_a_dense_folder_and_a_hub_id_are_not_pruned(reference: Path) -> None:
    assert served_model(str(reference)).describe() == {"pruned": False, "model": str(reference)}
    assert served_model("owner/name").manifest is None


@pytest.mark.parametrize("name", ["./nothing", "nothing", "a/b/c"])
def test_neither_a_folder_nor_a_hub_id(name: str) -> None:
    with pytest.raises(UserError, match="no such folder, and not a hub id"):
        served_model(name)


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        served_model(str(tmp_path))


def test_config_and_manifest_that_disagree(pruned_copy: Path) -> None:
    config = json.loads((pruned_copy / "config.json").read_text())
    config["mi_prun"]["kept"] = [0, 1, 2]
    (pruned_copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="do not say the same"):
        served_model(str(pruned_copy))


def test_a_shard_of_another_size(pruned_copy: Path) -> None:
    shard = next(pruned_copy.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError):
        served_model(str(pruned_copy))


def test_a_missing_tokenizer(pruned_copy: Path) -> None:
    (pruned_copy / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is named in .* but missing"):
        served_model(str(pruned_copy))


def test_a_virtual_folder_is_refused_with_the_way_out(
    prune: Callable[..., Path], reference: Path, tmp_path: Path
) -> None:
    virtual = prune(reference, tmp_path / "virtual", [2], virtual=True)
    with pytest.raises(UserError, match=r"no weights of its own .* write them: mi-prun apply"):
        served_model(str(virtual))
