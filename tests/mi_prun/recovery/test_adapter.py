from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.checkpoint.healing import Healing
from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model
from mi_prun.plan.plan import kept_blocks
from mi_prun.recovery.adapter import NOT_SAID, Adapter, healed_by, merged_by, read_adapter, write_adapter
from mi_prun.recovery.heal import heal_folder


def test_dense_model_plan_and_adapter_are_the_healed_folder(pruned_reference, reference, tmp_path, heal_settings):
    manifest = heal_folder(pruned_reference, tmp_path / "healed", heal_settings, adapter=tmp_path / "adapter")
    adapter = read_adapter(tmp_path / "adapter", manifest.plan)
    dense, healed = load_file(reference / "model.safetensors"), load_file(tmp_path / "healed" / "model.safetensors")
    for new, old in enumerate(manifest.plan.kept):
        for name in (name for name in dense if name.startswith(f"model.layers.{old}.")):
            wanted = healed[name.replace(f".{old}.", f".{new}.", 1)]
            assert torch.equal(adapter.merged(name, dense[name]), wanted), name
    size = (tmp_path / "adapter").stat().st_size
    assert size < (tmp_path / "healed" / "model.safetensors").stat().st_size / 10


def test_an_adapter_of_another_plan_or_model_or_no_adapter(pruned_reference, reference, tmp_path, heal_settings):
    fit = replace(heal_settings, train="none", tokens=None, fit_tokens=1_024)
    plan = heal_folder(pruned_reference, tmp_path / "healed", fit, adapter=tmp_path / "adapter").plan
    other = plan.model_copy(update={"dropped": (4, 5), "kept": kept_blocks(12, (4, 5))})
    with pytest.raises(UserError, match=r"without blocks \[4, 5, 8\], and the plan drops \[4, 5\]"):
        read_adapter(tmp_path / "adapter", other)
    dense = plan.dense.model_copy(update={"weights_sha256": "0"})
    with pytest.raises(UserError, match="was made for another dense model"):
        read_adapter(tmp_path / "adapter", plan.model_copy(update={"dense": dense}))
    with pytest.raises(UserError, match="is not an adapter"):
        read_adapter(reference / "model.safetensors", plan)
    with pytest.raises(UserError, match="no such file"):
        read_adapter(tmp_path / "nowhere", plan)
    assert open_model(tmp_path / "healed").num_blocks == 9
    assert read_manifest(tmp_path / "healed").healing.method == "fit"


def test_a_transposed_matrix_gets_the_transposed_change():
    a, b = torch.randn(2, 3), torch.randn(5, 2)
    adapter = Adapter({}, {"w": a}, {"w": b}, scaling=2.0, transposed=("w",))
    assert torch.allclose(adapter.merged("w", torch.zeros(3, 5)), 2 * (b @ a).T)


def test_lora_without_its_other_half(tmp_path, pruned_reference):
    plan = read_manifest(pruned_reference).plan
    healing = Healing(method="lora", text="", tokens=0, fit_tokens=0, seconds=0, seed=0).model_dump_json()
    metadata = {
        "format": "mi_prun adapter 1", "dense_weights_sha256": plan.dense.weights_sha256, "dropped": "[4, 5, 8]",
        "scaling": "1.0", "transposed": "[]", "healing": healing,
    }  # fmt: skip
    save_file({"lora_A/w": torch.ones(2, 2)}, tmp_path / "adapter", metadata)
    with pytest.raises(UserError, match="not whole"):
        read_adapter(tmp_path / "adapter", plan)


def test_what_does_not_fit_the_dense_model_is_one_line(tmp_path, reference, pruned_reference):
    plan, dense = read_manifest(pruned_reference).plan, open_model(reference)
    name = "model.layers.3.mlp.down_proj.weight"
    rows, columns = dense.tensors[name][1].shape
    a, b = torch.zeros(2, columns), torch.zeros(rows, 2)
    file, out = tmp_path / "adapter", tmp_path / "out"
    write_adapter(file, Adapter({}, {name: a}, {name: b}), plan, NOT_SAID)
    with merged_by(file, read_adapter(file, plan), plan, dense, out):
        pass
    for made, said in (
        (Adapter({"model.layers.3.w": a}, {}, {}), "changes model.layers.3.w, which"),
        (Adapter({name: a}, {}, {}), rf"has {name} as \(2, {columns}\)"),
        (Adapter({}, {name: a.T}, {name: b}), "do not go together"),
        (Adapter({}, {name: a[:, 1:]}, {name: b}), rf"has {name} as \({rows}, {columns - 1}\)"),
    ):
        write_adapter(file, made, plan, NOT_SAID)
        learned = read_adapter(file, plan)
        with pytest.raises(UserError, match=said), merged_by(file, learned, plan, dense, out):
            pass
        with pytest.raises(UserError, match=said):
            healed_by(file, learned, dense)
    with (
        pytest.raises(UserError, match="lies in the dense model's folder"),
        merged_by(file, learned, plan, dense, reference / "x"),
    ):
        pass
    assert list(tmp_path.iterdir()) == [file]


def test_a_dense_model_run_in_fewer_bits_is_healed_from_its_files(prune, random_model, tmp_path, heal_settings):
    """As on an accelerator: the folder that is written is the dense model's files with the adapter merged."""
    dense = open_model(random_model("llama"))
    assert {info.dtype for _, info in dense.tensors.values()} == {"F32"}
    plan = read_manifest(prune(dense.path, tmp_path / "pruned", [2])).plan
    settings = replace(heal_settings, dtype="bfloat16", train_dtype=None, fit=False, tokens=256)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mi_prun.recovery.heal.check_helps", lambda healing: None)  # random weights: nothing helps
        patch.setattr("mi_prun.recovery.training_state.Progress.helped", True)
        heal_folder(tmp_path / "pruned", tmp_path / "healed", settings, adapter=tmp_path / "adapter")
    learned = read_adapter(tmp_path / "adapter", plan)
    with merged_by(tmp_path / "adapter", learned, plan, dense, tmp_path / "merged") as merged:
        write_checkpoint(dense, plan, tmp_path / "merged", healed=merged)
    written, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("healed", "merged"))
    assert written.keys() == wanted.keys()
    for name, tensor in written.items():
        assert torch.equal(tensor, wanted[name]), name
