from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mi_prun.architecture import reduce_config
from mi_prun.checkpoint import write_checkpoint
from mi_prun.errors import UserError
from mi_prun.inspection import verify
from mi_prun.model import open_model

CONFIG = {"model_type": "llama", "num_hidden_layers": 12}
KEPT = [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11]  # without 2


def reduced(quantization: object) -> object:
    return reduce_config(CONFIG | {"quantization_config": quantization}, KEPT)["quantization_config"]


@pytest.mark.parametrize(
    ("dense", "pruned"),
    [
        (  # compressed-tensors
            {"ignore": ["lm_head", "model.layers.1.mlp.gate", "model.layers.2.mlp.gate", "model.layers.10.mlp.gate"]},
            {"ignore": ["lm_head", "model.layers.1.mlp.gate", "model.layers.9.mlp.gate"]},
        ),
        (
            {"config_groups": {"group_0": {"targets": ["Linear", r"re:.*layers\.\d+\.mlp.*", "re:.*self_attn.*"]}}},
            {"config_groups": {"group_0": {"targets": ["Linear", r"re:.*layers\.\d+\.mlp.*", "re:.*self_attn.*"]}}},
        ),
        (
            {"ignore": [r"re:model\.layers\.3\..*", r"re:.*layers\.2\.mlp", "re:.*lm_head"]},
            {"ignore": [r"re:model\.layers\.2\..*", "re:.*lm_head"]},
        ),
        (  # FP8 of transformers, AWQ
            {"modules_to_not_convert": ["model.layers.11.self_attn.q_proj", "lm_head", "model.layers.2", "gate"]},
            {"modules_to_not_convert": ["model.layers.10.self_attn.q_proj", "lm_head", "gate"]},
        ),
        ({"modules_to_not_convert": None, "bits": 4}, {"modules_to_not_convert": None, "bits": 4}),
        (  # MXFP4 of GPT-OSS
            {"modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens"]},
            {"modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens"]},
        ),
        (  # GPTQ
            {"dynamic": {r"-:model\.layers\.2\.mlp": {}, r"+:model\.layers\.4\.mlp": {"bits": 8}, r"-:.*\.v_proj": {}}},
            {"dynamic": {r"+:model\.layers\.3\.mlp": {"bits": 8}, r"-:.*\.v_proj": {}}},
        ),
        (  # AutoRound
            {"extra_config": {"model.layers.2.mlp.up_proj": {"bits": 16}, "model.layers.3.mlp.up_proj": {"bits": 16}}},
            {"extra_config": {"model.layers.2.mlp.up_proj": {"bits": 16}}},
        ),
    ],
)
def test_names_of_blocks_follow_their_blocks(dense, pruned):
    before = json.dumps(dense)
    assert reduced(dense) == pruned
    assert json.dumps(dense) == before


@pytest.mark.parametrize(
    "pattern",
    [
        r"re:model\.layers\.(1|2)\..*",
        r"re:model\.layers\.[0-3]\..*",
        "re:.*layers.1[0-9].mlp",
        "model.layers.3*",
        r"-:layers\.\d{2}\.mlp",
        r"re:layers\.1\..*|layers\.2\..*",
    ],
)
def test_a_pattern_about_several_blocks_is_refused(pattern):
    with pytest.raises(UserError, match=r"about blocks by their number.*prune first, then quantise"):
        reduced({"ignore": [pattern]})


def test_scales_travel_with_their_weights(tiny, make_plan, tmp_path):
    dense = tiny("llama", dtype=torch.bfloat16)
    tensors = {}
    for name, tensor in load_file(dense / "model.safetensors").items():
        if "proj" in name:
            tensors[name] = tensor.to(torch.float8_e4m3fn)
            tensors[f"{name}_scale"] = torch.tensor([int(name.split(".")[2]) + 0.5])
        else:
            tensors[name] = tensor
    save_file(tensors, dense / "model.safetensors", {"format": "pt"})
    config = json.loads((dense / "config.json").read_text())
    quantization = {"quant_method": "fp8", "modules_to_not_convert": ["lm_head", "model.layers.5.mlp.gate"]}
    (dense / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    write_checkpoint(open_model(dense), make_plan(dense, (0, 2)), tmp_path / "pruned", max_shard_bytes=9_000)
    found = {}
    for file in (tmp_path / "pruned").glob("*.safetensors"):
        found |= load_file(file)
    for new, old in enumerate((1, 3, 4, 5)):
        name = f"model.layers.{new}.mlp.up_proj.weight"
        assert found[name].dtype == torch.float8_e4m3fn
        assert torch.equal(
            found[name].view(torch.uint8), tensors[f"model.layers.{old}.mlp.up_proj.weight"].view(torch.uint8)
        )
        assert found[f"{name}_scale"].item() == old + 0.5
    written = json.loads((tmp_path / "pruned/config.json").read_text())["quantization_config"]
    assert written["modules_to_not_convert"] == ["lm_head", "model.layers.3.mlp.gate"]
    verify(tmp_path / "pruned")


def test_a_quantisation_that_only_its_own_file_describes_is_refused(tiny, make_plan, tmp_path):
    dense = tiny("llama")
    (dense / "hf_quant_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"describes its quantisation in hf_quant_config\.json only"):
        write_checkpoint(open_model(dense), make_plan(dense, (1,)), tmp_path / "pruned")
