"""What a folder says of itself before an engine is started."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.checkpoint.healing import ADAPTER_NAME, Healed, Healing
from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model, read_config
from mi_prun.plan.plan import Plan
from mi_prun.recovery.adapter import Adapter, read_adapter, write_adapter
from serve.served_model import ServedModel, drafted_model, planned_model, served_model


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


def test_a_dense_folder_and_a_hub_id_are_not_pruned(reference: Path, hub: Any) -> None:
    """What the hub does not give is left to vLLM, as a dense model is: no weights are fetched for it here."""
    assert served_model(str(reference)).describe() == {"pruned": False, "model": str(reference)}
    hub.models["owner/name"] = reference
    for name in ("owner/name", "owner/other"):
        assert served_model(name) == ServedModel(name, name)
    assert not any(file.endswith(".safetensors") for file in hub.asked)


@pytest.mark.parametrize("revision", [None, "main", "commit"])
def test_a_pruned_model_of_the_hub_is_described_and_served_as_a_folder(
    pruned: Path, hub: Any, revision: str | None
) -> None:
    hub.models["owner/pruned"] = pruned
    commit = hub.commit("owner/pruned")
    served = served_model("owner/pruned", revision=commit if revision == "commit" else revision)
    assert served.describe() == served_model(str(pruned)).describe() | {"model": "owner/pruned"}
    assert Path(served.folder).name == commit
    assert served_model(served.folder).manifest == served.manifest  # whole


def test_a_pruned_model_of_the_hub_that_is_not_whole(pruned_copy: Path, hub: Any) -> None:
    hub.models["owner/pruned"] = pruned_copy
    (pruned_copy / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is named in .* but missing"):
        served_model("owner/pruned")


@pytest.mark.parametrize("name", ["./nothing", "nothing", "nothing/", "a/b/c", "~/a"])
def test_neither_a_folder_nor_a_hub_id(name: str) -> None:
    with pytest.raises(UserError, match="no such folder, and not a hub id"):
        served_model(name)


def test_a_commit_is_named_in_vllms_way() -> None:
    with pytest.raises(UserError, match="vLLM takes a commit by --revision"):
        served_model(f"owner/name@{'0' * 40}")


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
    with pytest.raises(UserError, match=r"model\.safetensors has [0-9]+ bytes, mi_prun\.json says"):
        served_model(str(pruned_copy))


def test_a_missing_tokenizer(pruned_copy: Path) -> None:
    (pruned_copy / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is named in .* but missing"):
        served_model(str(pruned_copy))


RewriteHeader = Callable[[Path, Callable[[dict[str, Any]], None]], None]


def transpose(header: dict[str, Any]) -> None:
    header["model.layers.4.mlp.gate_proj.weight"]["shape"].reverse()


def rename(header: dict[str, Any]) -> None:
    header["model.layers.4.mlp.gate_proj.WEIGHT"] = header.pop("model.layers.4.mlp.gate_proj.weight")


@pytest.mark.parametrize("change", [transpose, rename])
def test_a_tensor_of_the_wrong_shape_or_name(
    pruned_copy: Path, rewrite_header: RewriteHeader, change: Callable[[dict[str, Any]], None]
) -> None:
    rewrite_header(pruned_copy / "model.safetensors", change)
    with pytest.raises(UserError, match="a tensor's name, dtype or shape is not as it was written"):
        served_model(str(pruned_copy))


def test_a_config_with_another_number_of_blocks(pruned_copy: Path) -> None:
    change_config(pruned_copy, num_hidden_layers=8)
    with pytest.raises(UserError, match=r"config\.json has 8 blocks, the plan keeps 9"):
        served_model(str(pruned_copy))


def test_a_pruned_folder_that_lost_its_manifest(pruned_copy: Path) -> None:
    (pruned_copy / "mi_prun.json").unlink()
    with pytest.raises(UserError, match=r"a pruned checkpoint without its mi_prun\.json"):
        served_model(str(pruned_copy))


def change_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


@pytest.fixture
def dense_copy(reference: Path, tmp_path: Path) -> Path:
    """To be spoilt."""
    return Path(shutil.copytree(reference, tmp_path / "dense"))


@pytest.fixture
def virtual(prune: Callable[..., Path], dense_copy: Path, tmp_path: Path) -> Path:
    return prune(dense_copy, tmp_path / "virtual", [2], virtual=True)


def test_a_virtual_folder_is_described(virtual: Path) -> None:
    said = served_model(str(virtual))
    assert said.describe()["weights"] == "virtual"
    assert said.describe()["dropped_blocks"] == [2]
    assert said.needs_loader
    assert said.folder == str(virtual)


def test_the_dense_model_behind_a_virtual_folder_has_other_weights(virtual: Path, dense_copy: Path) -> None:
    shard = dense_copy / "model.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"its dense model cannot be used: .* is another model \(its weights differ\)"):
        served_model(str(virtual))


def test_the_dense_model_behind_a_virtual_folder_has_another_config(virtual: Path, dense_copy: Path) -> None:
    change_config(dense_copy, rms_norm_eps=1e-5)
    with pytest.raises(UserError, match=r"is another model \(its config differ\)"):
        served_model(str(virtual))


@pytest.mark.parametrize("change", [transpose, rename])
def test_the_dense_model_behind_a_virtual_folder_has_a_tensor_of_another_shape_or_name(
    virtual: Path, dense_copy: Path, rewrite_header: RewriteHeader, change: Callable[[dict[str, Any]], None]
) -> None:
    rewrite_header(dense_copy / "model.safetensors", change)
    with pytest.raises(UserError, match=r"is another model \(its weights differ\)"):
        served_model(str(virtual))


def test_the_dense_model_behind_a_virtual_folder_is_gone(virtual: Path, dense_copy: Path) -> None:
    shutil.rmtree(dense_copy)
    with pytest.raises(UserError, match=r"its dense model cannot be used: .*no such folder"):
        served_model(str(virtual))


def test_a_virtual_folder_whose_config_was_changed(virtual: Path) -> None:
    change_config(virtual, rope_parameters={"rope_theta": 1.0, "rope_type": "default"})
    with pytest.raises(UserError, match="config field 'rope_parameters' is not what the kept blocks of"):
        served_model(str(virtual))


def test_a_virtual_folder_whose_kept_list_does_not_fit(virtual: Path) -> None:
    config = json.loads((virtual / "config.json").read_text())
    change_config(virtual, mi_prun=config["mi_prun"] | {"kept": "all"})
    with pytest.raises(UserError, match=r"the mi_prun entry of config\.json, kept: "):
        served_model(str(virtual))


@pytest.fixture
def plan(pruned: Path, tmp_path: Path) -> Path:
    read_manifest(pruned).plan.write(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def test_a_dense_model_and_a_plan(reference: Path, plan: Path, tmp_path: Path) -> None:
    served = planned_model(str(reference), plan, tmp_path)
    assert served.describe()["dropped_blocks"] == [2, 3, 7]
    assert served.reference == str(reference)
    assert sorted(file.suffix for file in Path(served.folder).iterdir() if file.stat().st_size > 1_000_000) == []
    assert served_model(served.folder).describe()["weights"] == "virtual"  # as whole as one that `apply` wrote


@pytest.mark.parametrize("of", ["plan", "pruned"])
def test_a_dense_model_and_its_draft(reference: Path, pruned: Path, plan: Path, tmp_path: Path, of: str) -> None:
    served = drafted_model(str(reference), plan if of == "plan" else pruned, 4, tmp_path)
    assert served.describe() == {
        "pruned": False,
        "model": str(reference),
        "draft": {
            "block_indices": "0-based",
            "dropped_blocks": [2, 3, 7],
            "kept_blocks": [0, 1, 4, 5, 6, 8, 9, 10, 11],
            "block_ratio": 0.25,
            "tokens": 4,
        },
    }
    assert served.draft is not None
    assert served.draft.speculative_config["num_speculative_tokens"] == 4


@pytest.mark.parametrize("pinned", [False, True])
def test_a_draft_and_a_model_of_the_hub_are_one_commit(
    dense_copy: Path, plan: Path, hub: Any, tmp_path: Path, pinned: bool
) -> None:
    """vLLM gets the folder that the draft's weights are shared out of, with all weights, though the branch moves on."""
    hub.models["owner/dense"] = dense_copy
    commit = hub.commit("owner/dense")
    name = f"owner/dense@{commit}" if pinned else "owner/dense"
    (tmp_path / "first").mkdir()
    served = drafted_model(name, plan, None, tmp_path / "first")
    folder = Path(served.folder)
    assert (served.reference, folder.name) == (name, commit)
    assert served.draft is not None
    assert read_config(served.draft.folder)["mi_prun"]["base"] == str(folder.resolve())
    assert (folder / "model.safetensors").is_file()
    change_config(dense_copy, rms_norm_eps=1e-5)
    (tmp_path / "second").mkdir()
    if pinned:
        assert drafted_model(name, plan, None, tmp_path / "second").folder == served.folder
    else:
        with pytest.raises(UserError, match="is another model"):
            drafted_model(name, plan, None, tmp_path / "second")


def test_a_plan_for_another_model(dense_copy: Path, plan: Path, pruned: Path, tmp_path: Path) -> None:
    change_config(dense_copy, rms_norm_eps=1e-5)
    with pytest.raises(UserError, match=r"the plan was made for .* is another model"):
        planned_model(str(dense_copy), plan, tmp_path)
    with pytest.raises(UserError, match=r"the plan was made for .* is another model"):
        drafted_model(str(dense_copy), pruned, 3, tmp_path)


def test_a_plan_for_a_pruned_model(pruned: Path, plan: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is itself a pruned model; --plan needs the dense one"):
        planned_model(str(pruned), plan, tmp_path)


def test_what_is_no_draft(reference: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        drafted_model(str(reference), tmp_path / "nothing", 3, tmp_path)
    with pytest.raises(UserError, match="not a pruned checkpoint"):
        drafted_model(str(reference), reference, 3, tmp_path)


def test_a_healed_folder_does_not_draft(reference: Path, plan: Path, tmp_path: Path) -> None:
    healing = Healing(method="fit", text="self", tokens=0, fit_tokens=8, seconds=1.0, seed=0)
    dense, read = open_model(reference), Plan.read(plan)
    write_checkpoint(dense, read, tmp_path / "healed", virtual=True, healed=Healed(healing))
    with pytest.raises(UserError, match=r"--draft .*healed is healed \(fit\); a draft shares the served model's own"):
        drafted_model(str(reference), tmp_path / "healed", None, tmp_path / "scratch")


def test_a_config_is_enough_for_dummy_weights(tmp_path: Path, reference: Path) -> None:
    (tmp_path / "config.json").write_bytes((reference / "config.json").read_bytes())
    assert served_model(str(tmp_path), dummy=True).folder == str(tmp_path)
    with pytest.raises(UserError, match="has no weights"):
        served_model(str(tmp_path))


def test_a_plan_with_an_adapter_is_a_healed_model(reference: Path, plan: Path, tmp_path: Path) -> None:
    healing = Healing(method="fit", text="books", tokens=0, fit_tokens=512, seconds=1.0, seed=0)
    name = "model.layers.0.mlp.down_proj.weight"
    write_adapter(tmp_path / "adapter", Adapter({name: torch.zeros(256, 640)}, {}, {}), Plan.read(plan), healing)
    served = planned_model(str(reference), plan, tmp_path, adapter=tmp_path / "adapter")
    assert served.describe()["healing"]["method"] == "fit"
    assert served_model(served.folder).manifest == served.manifest  # it is whole
    assert read_adapter(Path(served.folder) / ADAPTER_NAME, Plan.read(plan)).names == {name}


def test_a_file_that_is_no_adapter(reference: Path, plan: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not an adapter"):
        planned_model(str(reference), plan, tmp_path, adapter=reference / "model.safetensors")
