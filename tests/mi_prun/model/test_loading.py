"""Weights in memory: those of the resolved shards, whole and as they are meant, or a refusal in one line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mi_prun.analysis.streamed_model import StreamedModel
from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import lacks_bfloat16, load_block_model, pick_device, pick_dtype
from mi_prun.model.model_folder import open_model
from mi_prun.model.weight_files import INDEX_NAME

CHANGED = "model.layers.2.mlp.up_proj.weight"


def load(path: Path) -> BlockModel:
    return load_block_model(open_model(path), device=torch.device("cpu"), dtype=torch.float32)


def read_streamed(path: Path) -> None:
    streamed = StreamedModel(open_model(path), device=torch.device("cpu"), dtype=torch.float32)
    for block in range(6):
        streamed.load(block)


def test_devices_and_dtypes_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match="--device 'abacus' cannot be used here"):
        pick_device("abacus")
    with pytest.raises(UserError, match="--dtype must be one of float32"):
        pick_dtype(torch.device("cpu"), "int8")
    assert pick_dtype(torch.device("cpu")) is torch.float32
    assert pick_dtype(torch.device("cuda")) is torch.bfloat16


@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"]
)
def test_weights_that_the_files_lack_are_not_made_up_block_by_block(tiny: Callable[..., Path], name: str) -> None:
    path = tiny("llama")
    read_streamed(path)
    tensors = load_file(path / "model.safetensors")
    del tensors[name]
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    said = r"block [02] of model .* lacks [12] tensors of its architecture, such as "
    with pytest.raises(UserError, match=said + ("lm_head" if "embed" in name else re.escape(name))):
        read_streamed(path)


def test_weights_whose_scales_would_be_left_out_are_refused(tiny: Callable[..., Path]) -> None:
    path = tiny("llama")
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight_scale"] = torch.ones(1)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    for read in (load, read_streamed):
        with pytest.raises(UserError, match=r"reads its weights without model\.layers\.2\.mlp\.up_proj\.weight_scale"):
            read(path)


def test_weights_that_the_files_lack_are_not_made_up(tiny: Callable[..., Path]) -> None:
    """transformers fills them in at random, other ones each time."""
    path = tiny("llama")
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 tensors of its architecture, such as model\.layers\.2\.mlp"):
        load(path)


def test_a_quantisation_that_transformers_reads_past_is_refused(tiny: Callable[..., Path]) -> None:
    path = tiny("llama")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "modelopt"}}))
    for read in (load, read_streamed):
        with pytest.raises(UserError, match=r"does not know the quantisation 'modelopt', .*prune first"):
            read(path)
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": {"some": 4}}))
    with pytest.raises(UserError, match="quantization_config cannot be read: "):
        load(path)
    (path / "config.json").write_text(json.dumps(config | {"compression_config": {"quant_method": "fp8"}}))
    with pytest.raises(UserError, match="call it quantization_config"):
        load(path)
    (path / "config.json").write_text(json.dumps(config | {"hidden_size": "32"}))
    with pytest.raises(UserError, match=r"cannot be loaded by transformers: .*hidden_size"):
        load(path)
    (path / "config.json").write_text(json.dumps(config))
    (path / "hf_quant_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"describes its quantisation in hf_quant_config\.json only"):
        load(path)


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes"])
def test_a_package_that_is_missing_is_one_line(tiny: Callable[..., Path], method: str) -> None:
    """None of these packages is a dependency."""
    path = tiny("llama")
    config = json.loads((path / "config.json").read_text())
    quantization = {"quant_method": method, "bits": 4, "group_size": 128, "load_in_4bit": True}
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    with pytest.raises(UserError, match="cannot be loaded by transformers: ") as refused:
        load(path)
    assert "\n" not in str(refused.value)


def two_shards(path: Path) -> None:
    """Split `model.safetensors` of a folder in two, with an index."""
    tensors = load_file(path / "model.safetensors")
    names = sorted(tensors)
    homes: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, path / file, {"format": "pt"})
        homes |= dict.fromkeys(part, file)
    (path / "model.safetensors").unlink()
    (path / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": homes}))


def tensors_in(path: Path) -> dict[str, torch.Tensor]:
    files = sorted(path.glob("model*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def other_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder, one of them another."""
    tensors = tensors_in(path)
    return tensors | {CHANGED: tensors[CHANGED] * 2}


def single_file_beside(path: Path) -> None:
    save_file(other_weights(path), path / "model.safetensors", {"format": "pt"})


def consolidated_beside(path: Path) -> None:
    save_file(other_weights(path), path / "consolidated.safetensors", {"format": "pt"})
    save_file(other_weights(path), path / "consolidated.00.safetensors", {"format": "pt"})


def variant_beside(path: Path) -> None:
    save_file(other_weights(path), path / "model.fp16.safetensors", {"format": "pt"})
    homes = dict.fromkeys(other_weights(path), "model.fp16.safetensors")
    (path / "model.safetensors.index.fp16.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))


def adapter_beside(path: Path) -> None:
    """A whole one, which transformers puts on the model that it loads from the folder."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path)
    adapted: Any = get_peft_model(model, LoraConfig(target_modules=["up_proj"], init_lora_weights=False))
    adapted.save_pretrained(path)
    assert (path / "adapter_config.json").is_file()


def named_in_the_config(path: Path) -> None:
    save_file(other_weights(path), path / "other.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))


@pytest.mark.parametrize("sharded", [True, False])
@pytest.mark.parametrize(
    "add", [single_file_beside, consolidated_beside, variant_beside, adapter_beside, named_in_the_config]
)
def test_other_weights_in_the_folder_are_left_alone(
    tiny: Callable[..., Path], tmp_path: Path, add: Callable[[Path], None], sharded: bool
) -> None:
    """What is measured is what is digested, and that is what is written."""
    if add is adapter_beside:
        pytest.importorskip("peft")
    if add is single_file_beside and not sharded:
        pytest.skip("that is the model itself")
    dense = tiny("llama", tie_word_embeddings=False)
    if sharded:
        two_shards(dense)
    both = Path(shutil.copytree(dense, tmp_path / "both"))
    add(both)
    alone, beside = open_model(dense), open_model(both)
    assert beside.identity.weights_sha256 == alone.identity.weights_sha256
    wanted = tensors_in(dense)
    loaded = load(both).model.state_dict()
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in wanted.items())
    streamed = StreamedModel(beside, device=torch.device("cpu"), dtype=torch.float32).load(2)
    assert torch.equal(streamed.blocks[0].state_dict()["mlp.up_proj.weight"], wanted[CHANGED])


@pytest.mark.parametrize("model_type", ["llama", "opt"])
@pytest.mark.parametrize("padding", [97, 4_000, -98])
def test_a_padding_id_past_the_vocabulary_is_one_line(tiny: Callable[..., Path], model_type: str, padding: int) -> None:
    path = tiny(model_type, **({"ffn_dim": 48, "word_embed_proj_dim": 32} if model_type == "opt" else {}))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"pad_token_id": padding}))
    said = rf"pad_token_id {padding} of config\.json is past the vocabulary: the embedding has 97 rows \(0\.\.96\)"
    for read in (load, read_streamed):
        with pytest.raises(UserError, match=said) as refused:
            read(path)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"vocab_size": 98},
            r"tensor [a-z._]+\.weight has the shape \[97, 32\] in the files, and \[98, 32\] by config",
        ),
        ({"intermediate_size": 64}, r"tensor model\.layers\.0\.mlp\.down_proj\.weight has the shape \[32, 48\]"),
        ({"pad_token_id": "3"}, r"Validation error for field 'pad_token_id': TypeError: .*expected int"),
        ({"hidden_act": "nope"}, "KeyError: 'nope'"),
        ({"rope_parameters": {"rope_type": "nope", "rope_theta": 1e4}}, "KeyError: 'nope'"),
    ],
)
def test_a_config_that_does_not_fit_its_weights_or_itself(
    tiny: Callable[..., Path], fields: dict[str, Any], said: str
) -> None:
    """One line with the field or the tensor, and not a pointer to a report that nobody sees."""
    path = tiny("llama")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | fields))
    for read in (load, read_streamed):
        with pytest.raises(UserError, match=said) as refused:
            read(path)
        assert "\n" not in str(refused.value)


def test_a_field_of_another_kind_of_model(tiny: Callable[..., Path]) -> None:
    path = tiny("llama")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"text_config": {}}))
    with pytest.raises(UserError, match="a llama config has no field 'text_config'"):
        _ = open_model(path).hidden_size


def test_fields_that_contradict_each_other_only_when_the_model_runs(tiny: Callable[..., Path]) -> None:
    path = tiny("qwen2")
    config = json.loads((path / "config.json").read_text())
    sliding = {"layer_types": ["sliding_attention"] * 6, "sliding_window": None}
    (path / "config.json").write_text(json.dumps(config | sliding))
    for read in (load, read_streamed):
        with pytest.raises(UserError, match=r"cannot be run by transformers: .*sliding_window"):
            read(path)


def test_a_padding_id_that_the_model_has_no_use_for_is_no_fault(tiny: Callable[..., Path]) -> None:
    path = tiny("gpt_neox")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"pad_token_id": 97}))
    assert load(path).num_blocks == 6


@pytest.mark.parametrize(
    ("has", "lacks"),
    [
        ({}, False),
        ({"architecture": "aarch64"}, False),
        ({"architecture": "x86_64", "avx512_f": True}, False),
        ({"architecture": "x86_64", "avx512_f": False}, True),
    ],
)
def test_a_processor_without_a_fast_product_of_bfloat16_is_known(monkeypatch, has, lacks):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert lacks_bfloat16() is lacks
