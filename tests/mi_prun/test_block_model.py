"""A model taken apart at its blocks says what the whole one says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mi_prun.block_model import BlockModel, context_tokens, load_block_model, load_tokenizer, pick_device, pick_dtype
from mi_prun.errors import UserError
from mi_prun.model import open_model

TOKENS = torch.randint(0, 97, (2, 20), generator=torch.Generator().manual_seed(1))


def load(path: Path) -> BlockModel:
    return load_block_model(open_model(path), device=torch.device("cpu"), dtype=torch.float32)


@torch.inference_mode()
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gpt_neox"])
def test_embed_run_and_logits_are_the_model(tiny: Callable[..., Path], model_type: str) -> None:
    model = load(tiny(model_type))
    for tokens in (TOKENS, TOKENS[:1, :7]):  # another shape is another mask
        wanted = model.model(input_ids=tokens, use_cache=False).logits
        hidden = model.embed(tokens)
        for block in range(model.num_blocks):
            hidden = model.run(block, hidden)
        assert torch.allclose(model.logits(hidden), wanted, atol=1e-5)


@torch.inference_mode()
def test_blocks_left_out_come_back(
    tiny: Callable[..., Path], logits_without: Callable[..., tuple[torch.Tensor, torch.Tensor]]
) -> None:
    path = tiny("llama")
    model = load(path)
    tokens, wanted = logits_without(path, [1, 4], "model.layers")
    _, dense = logits_without(path, [], "model.layers")
    with model.without([1, 4]) as pruned:
        assert torch.allclose(pruned(input_ids=tokens, use_cache=False).logits, wanted, atol=1e-5)
    assert torch.allclose(model.model(input_ids=tokens, use_cache=False).logits, dense, atol=1e-5)

    def fail() -> None:
        with model.without([0]):
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - our own
        fail()
    assert torch.allclose(model.model(input_ids=tokens, use_cache=False).logits, dense, atol=1e-5)


def test_sizes_are_the_configs(tiny: Callable[..., Path]) -> None:
    path = tiny("llama")
    model = load(path)
    assert (model.num_blocks, model.hidden_size, model.vocab_size) == (6, 32, 97)
    assert context_tokens(open_model(path)) == 64
    assert context_tokens(open_model(path), cap=16) == 16


def test_devices_and_dtypes_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match="--device 'abacus' cannot be used here"):
        pick_device("abacus")
    with pytest.raises(UserError, match="--dtype must be one of float32"):
        pick_dtype(torch.device("cpu"), "int8")
    assert pick_dtype(torch.device("cpu")) is torch.float32
    assert pick_dtype(torch.device("cuda")) is torch.bfloat16


def test_a_folder_without_a_tokenizer_is_refused(tiny: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="has no usable tokenizer"):
        load_tokenizer(open_model(tiny("llama")))


def test_weights_that_the_files_lack_are_not_made_up(tiny: Callable[..., Path]) -> None:
    """transformers fills them in at random, other ones each time."""
    path = tiny("llama")
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 tensors of its architecture, such as model\.layers\.2\.mlp\.up_proj"):
        load(path)


def test_a_quantisation_that_transformers_reads_past_is_refused(tiny: Callable[..., Path]) -> None:
    path = tiny("llama")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "modelopt"}}))
    with pytest.raises(UserError, match=r"does not know the quantisation 'modelopt', .*prune first"):
        load(path)
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": {"some": 4}}))
    with pytest.raises(UserError, match="quantization_config cannot be read: "):
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
