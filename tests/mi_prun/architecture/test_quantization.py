from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mi_prun.architecture.architecture import reduce_config
from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.checkpoint.inspection import verify
from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model

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
        (  # no names of modules
            {"source": "models/Llama-3.1[8B]", "made": "W4A16 (g=128)"},
            {"source": "models/Llama-3.1[8B]", "made": "W4A16 (g=128)"},
        ),
        (  # what stands before the blocks left out
            {"modules_to_not_convert": ["layers.2.mlp", "layers.3.mlp.gate", "vision.layers.3.mlp", "mylayers.3"]},
            {"modules_to_not_convert": ["layers.2.mlp.gate", "vision.layers.3.mlp", "mylayers.3"]},
        ),
        (  # MXFP4 of GPT-OSS
            {"modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens"]},
            {"modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens"]},
        ),
        (  # of experts, of other towers; any number of a block; calibration text
            {"ignore": ["re:.*mlp.experts.[0-9]+.gate_proj$", r"re:.*experts\.(\d+)\..*", r"re:.*layers\.\d*\.mlp"]},
            {"ignore": ["re:.*mlp.experts.[0-9]+.gate_proj$", r"re:.*experts\.(\d+)\..*", r"re:.*layers\.\d*\.mlp"]},
        ),
        (
            {
                "ignore": [
                    r"re:model\.visual\.blocks\.\d+\..*",
                    "visual.blocks.0.attn*",
                    "mtp.0*",
                    "re:.*merger.mlp.(0|2)",
                ]
            },
            {
                "ignore": [
                    r"re:model\.visual\.blocks\.\d+\..*",
                    "visual.blocks.0.attn*",
                    "mtp.0*",
                    "re:.*merger.mlp.(0|2)",
                ]
            },
        ),
        (
            {"ignore": [r"re:.*layers\.2\b.*", r"re:.*layers\.3\b.*"], "dataset": ["Is GPT-4 good (or 3)?"]},
            {"ignore": [r"re:.*layers\.2\b.*"], "dataset": ["Is GPT-4 good (or 3)?"]},
        ),
        (  # numbers in words, of experts, and in what says who made it
            {
                "ignore": [r"re:.*w[13]$", r"re:.*experts\.\d+\.w2", "re:.*fc1.*"],
                "meta": {"by": "gptqmodel:1.4.0+cu121"},
            },
            {
                "ignore": [r"re:.*w[13]$", r"re:.*experts\.\d+\.w2", "re:.*fc1.*"],
                "meta": {"by": "gptqmodel:1.4.0+cu121"},
            },
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
        r"+:.*\.18\..*gate.*",  # as GPTQModel's documentation has them
        r".*\.1\..*",
        r"+:.*\.(?:1[0-5])\..*",
        r"re:.*layers\.1\d\..*",
        r"re:.*layers\.\d\..*",
        r"re:.*layers\.\d\d\..*",
        "re:.*layers[.]9[.].*",
        r"re:.*\.\d\.mlp",
    ],
)
def test_a_pattern_about_several_blocks_is_refused(pattern):
    with pytest.raises(UserError, match=r"about blocks by their number.*prune first, then quantise"):
        reduced({"ignore": [pattern]})


def test_another_tower_keeps_its_numbers():
    text = {"model_type": "gemma3_text", "num_hidden_layers": 4}
    config = {"model_type": "gemma3", "text_config": text}

    def ignored(name: str) -> list[str]:
        return reduce_config(config | {"quantization_config": {"ignore": [name]}}, [0, 2])["quantization_config"][
            "ignore"
        ]

    assert ignored("vision_tower.encoder.layers.2.mlp") == ["vision_tower.encoder.layers.2.mlp"]
    assert ignored("language_model.model.layers.2.mlp") == ["language_model.model.layers.1.mlp"]
    assert ignored("model.language_model.layers.1.mlp") == []
    assert ignored(r"re:.*language_model.*layers\.2\.mlp") == [r"re:.*language_model.*layers\.1\.mlp"]
    assert ignored("language_model.layers.2.mlp") == ["language_model.layers.1.mlp"]
    assert ignored("re:.*vision_tower.*") == ["re:.*vision_tower.*"]
    with pytest.raises(UserError, match=r"'layers\.2\.mlp' without its tower"):
        ignored("layers.2.mlp")
    for pattern in (r"re:.*layers\.2\.mlp", r"re:vision.*layers\.2\."):
        with pytest.raises(UserError, match="about blocks by their number"):
            ignored(pattern)


@pytest.mark.parametrize("names", [["qweight", "qzeros", "scales", "g_idx"], ["qweight", "qzeros", "scales"]])
def test_packed_layouts_of_gptq_and_awq_travel(tiny, make_plan, tmp_path, names):
    dense = tiny("llama")
    tensors = {name: t for name, t in load_file(dense / "model.safetensors").items() if "up_proj" not in name}
    for block in range(6):
        for name in names:
            tensors[f"model.layers.{block}.mlp.up_proj.{name}"] = torch.arange(block, block + 4, dtype=torch.int32)
    save_file(tensors, dense / "model.safetensors", {"format": "pt"})
    write_checkpoint(open_model(dense), make_plan(dense, (0, 2)), tmp_path / "pruned")
    written = load_file(tmp_path / "pruned/model.safetensors")
    for new, old in enumerate((1, 3, 4, 5)):
        for name in names:
            assert written[f"model.layers.{new}.mlp.up_proj.{name}"].tolist() == list(range(old, old + 4))
    assert sum("up_proj" in name for name in written) == 4 * len(names)


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
    written = {}
    for file in (tmp_path / "pruned").glob("*.safetensors"):
        written |= load_file(file)
    for new, old in enumerate((1, 3, 4, 5)):
        name = f"model.layers.{new}.mlp.up_proj.weight"
        assert written[name].dtype == torch.float8_e4m3fn
        assert torch.equal(
            written[name].view(torch.uint8), tensors[f"model.layers.{old}.mlp.up_proj.weight"].view(torch.uint8)
        )
        assert written[f"{name}_scale"].item() == old + 0.5
    written = json.loads((tmp_path / "pruned/config.json").read_text())["quantization_config"]
    assert written["modules_to_not_convert"] == ["lm_head", "model.layers.3.mlp.gate"]
    verify(tmp_path / "pruned")


def test_names_of_what_is_stored_behind_the_blocks_stay_behind_them() -> None:
    config = {"model_type": "deepseek_v3", "num_hidden_layers": 6, "num_nextn_predict_layers": 1}
    names = ["model.layers.6.eh_proj", "model.layers.5.mlp.gate"]
    patterns = {"re:.*layers\\.6\\.eh_proj": {"bits": 8}}
    quantization = {"quant_method": "fp8", "modules_to_not_convert": names, "dynamic": patterns}
    written = reduce_config({**config, "quantization_config": quantization}, (0, 1, 2, 3, 5), assume_uniform=True)
    assert written["quantization_config"]["modules_to_not_convert"] == [
        "model.layers.5.eh_proj",
        "model.layers.4.mlp.gate",
    ]
    assert list(written["quantization_config"]["dynamic"]) == ["re:.*layers\\.5\\.eh_proj"]


@pytest.mark.parametrize("kind", ["int", "float"])
def test_a_pruned_w8a8_checkpoint_of_compressed_tensors_loads(
    tiny, quantise, make_plan, assert_same_as_skipping, tmp_path, kind
):
    """Block 4 has a module that is not quantised: were its name not to follow it to block 2, loading would go wrong."""
    pytest.importorskip("compressed_tensors")
    dense = tiny("llama")
    quantise(dense, kind, ["model.layers.4.mlp.down_proj"])
    write_checkpoint(open_model(dense), make_plan(dense, (0, 2)), tmp_path / "pruned")
    assert_same_as_skipping(dense, tmp_path / "pruned", (0, 2))
    ignored = json.loads((tmp_path / "pruned/config.json").read_text())["quantization_config"]["ignore"]
    assert ignored == ["lm_head", "model.layers.2.mlp.down_proj"]
    verify(tmp_path / "pruned")


@pytest.mark.long  # each time: test_loader starts stock vLLM on a written FP8 checkpoint
@pytest.mark.engine
@pytest.mark.parametrize(("kind", "tolerance"), [("float", 1e-4), ("int", 0.3)])
def test_a_pruned_w8a8_checkpoint_of_compressed_tensors_runs_on_stock_vllm(
    tiny, quantise, make_plan, assert_stock_vllm_says_the_same, tmp_path, kind, tolerance
):
    """FP8 by default; int8, where vLLM rounds activations in its own way, with MI_PRUN_ALL_FAMILIES=1."""
    if kind == "int" and not os.environ.get("MI_PRUN_ALL_FAMILIES"):
        pytest.skip("MI_PRUN_ALL_FAMILIES=1 tries int8 on vLLM too")
    if kind == "int" and torch.cpu._is_amx_tile_supported():
        pytest.skip("vLLM's int8 kernel on a CPU with AMX takes no float32")
    dense = tiny("llama", hidden_size=128, head_dim=32, intermediate_size=128)
    quantise(dense, kind, ["model.layers.4.mlp.down_proj"])
    write_checkpoint(open_model(dense), make_plan(dense, (0, 2)), tmp_path / "pruned")
    assert_stock_vllm_says_the_same(dense, tmp_path / "pruned", (0, 2), tolerance=tolerance)


@pytest.mark.engine
def test_the_documented_way_to_quantise_a_pruned_checkpoint(
    reference, make_plan, assert_stock_vllm_says_the_same, tmp_path
):
    """The Python of docs/reference/quantization.md, run as it stands by an interpreter that has llm-compressor."""
    program = os.environ.get("MI_PRUN_LLM_COMPRESSOR")
    if not program:
        pytest.skip("MI_PRUN_LLM_COMPRESSOR names no interpreter that has llm-compressor")
    text = (Path(__file__).parents[3] / "docs/reference/quantization.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    write_checkpoint(open_model(reference), make_plan(reference, (3, 4, 8)), tmp_path / "pruned")
    subprocess.run([program, "-c", code], cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": ""})
    written = load_file(tmp_path / "quantised/model.safetensors")
    assert written["model.layers.8.mlp.up_proj.weight"].dtype == torch.float8_e4m3fn
    assert_stock_vllm_says_the_same(reference, tmp_path / "quantised", (3, 4, 8), tolerance=1.0)


@pytest.mark.parametrize("kind", ["int", "float"])
def test_pruning_and_quantising_change_places(tiny, quantise, make_plan, tmp_path, kind):
    """Quantised then pruned, and pruned then quantised, give the same bytes."""
    first, second = tiny("llama", folder="first"), tiny("llama", folder="second")
    quantise(first, kind, ["model.layers.4.mlp.down_proj"])
    write_checkpoint(open_model(first), make_plan(first, (0, 2)), tmp_path / "one")
    write_checkpoint(open_model(second), make_plan(second, (0, 2)), tmp_path / "two")
    quantise(tmp_path / "two", kind, ["model.layers.2.mlp.down_proj"])
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name].view(torch.uint8), two[name].view(torch.uint8)) for name in one)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two")]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]


def test_a_quantisation_that_only_its_own_file_describes_is_refused(tiny, make_plan, tmp_path):
    dense = tiny("llama")
    (dense / "hf_quant_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"describes its quantisation in hf_quant_config\.json only"):
        write_checkpoint(open_model(dense), make_plan(dense, (1,)), tmp_path / "pruned")
