"""A model taken apart at its blocks says what the whole one says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mi_prun.analysis.streamed_model import StreamedModel
from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import load_block_model, pick_device, pick_dtype
from mi_prun.model.model_folder import open_model

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
    assert open_model(path).context_tokens() == 64
    assert open_model(path).context_tokens(cap=16) == 16


def test_devices_and_dtypes_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match="--device 'abacus' cannot be used here"):
        pick_device("abacus")
    with pytest.raises(UserError, match="--dtype must be one of float32"):
        pick_dtype(torch.device("cpu"), "int8")
    assert pick_dtype(torch.device("cpu")) is torch.float32
    assert pick_dtype(torch.device("cuda")) is torch.bfloat16


def test_a_folder_without_a_tokenizer_is_refused(tiny: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="has no usable tokenizer"):
        _ = open_model(tiny("llama")).tokenizer


def test_the_cap_of_attention_scores_is_kept(tiny: Callable[..., Path]) -> None:
    """Of large scores: the fused attention of transformers does without the cap."""
    model = load(tiny("gemma2", head_dim=8, attn_logit_softcapping=0.01))
    tokens = torch.randint(0, 97, (1, 16), generator=torch.Generator().manual_seed(0))
    state = model.embed(tokens)
    capped = model.run(0, state)
    model.model.config.get_text_config().attn_logit_softcapping = None  # type: ignore[operator, union-attr]
    for block in model.blocks:
        block.self_attn.attn_logit_softcapping = None
    assert not torch.allclose(model.run(0, state), capped)


def read_streamed(path: Path) -> None:
    streamed = StreamedModel(open_model(path), device=torch.device("cpu"), dtype=torch.float32)
    for block in range(6):
        streamed.load(block)


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
