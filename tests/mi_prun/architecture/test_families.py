"""Each family, tiny and random, with blocks of different kinds where it has them: pruned and read by stock
transformers, it says what the dense model says without those blocks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mi_prun.architecture.architecture import FAMILIES, block_kinds, reduce_config
from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.checkpoint.inspection import verify
from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model

MOE: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MLA: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "n_group": 2,
    "topk_group": 1,
    "num_key_value_heads": 4,
}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
    "num_local_experts": 0,
    "shared_intermediate_size": 32,
}
NEMOTRON: dict[str, Any] = {
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "n_groups": 1,
    "chunk_size": 8,
    "head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
}
WINDOW = {"sliding_window": 4}

# (model_type, config fields, blocks to drop, what the reduced config must say)
CASES: list[tuple[str, dict[str, Any], tuple[int, ...], dict[str, Any]]] = [
    ("phi3", {"pad_token_id": 0}, (1, 4), {}),
    ("phi3", {"pad_token_id": 0, **WINDOW}, (0,), {}),
    ("gemma2", {**WINDOW, "head_dim": 8}, (0, 1, 3), {"layer_types": ["sliding_attention"] * 2 + ["full_attention"]}),
    ("gemma2", {**WINDOW, "head_dim": 8}, (1, 3, 5), {"layer_types": ["sliding_attention"] * 3}),
    ("gemma3_text", {**WINDOW, "head_dim": 8}, (0, 5), {"layer_types": ["sliding_attention"] * 4}),
    ("gemma3_text", {**WINDOW, "head_dim": 8}, (1, 2), {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]}),
    ("olmo2", {}, (2, 3), {}),
    ("olmo3", WINDOW, (0, 2), {"layer_types": ["sliding_attention", "full_attention"] + ["sliding_attention"] * 2}),
    ("olmo3", WINDOW, (3,), {"layer_types": ["sliding_attention"] * 5}),
    ("granite", {"embedding_multiplier": 2.0, "residual_multiplier": 0.5}, (0, 5), {}),
    ("smollm3", {}, (0, 1), {"no_rope_layers": [1, 0, 1, 1]}),
    (
        "smollm3",
        {"use_sliding_window": True, **WINDOW},
        (2, 4),
        {
            "no_rope_layers": [1, 1, 0, 1],
            "layer_types": ["full_attention"] * 2 + ["sliding_attention", "full_attention"],
        },
    ),
    ("cohere2", WINDOW, (1, 5), {"layer_types": ["sliding_attention"] * 2 + ["full_attention", "sliding_attention"]}),
    ("gpt_neox", {"rotary_pct": 0.5}, (1, 2), {}),
    ("gpt2", {"n_layer": 6, "n_embd": 32, "n_head": 4, "n_positions": 64}, (0, 4), {"n_layer": 4}),
    ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}, (3, 4), {}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, (2,), {}),
    ("falcon", {"alibi": True, "multi_query": True}, (0, 5), {}),
    ("mixtral", {"num_local_experts": 4}, (1, 4), {}),
    ("qwen2_moe", {**MOE, "decoder_sparse_step": 2}, (0, 3), {"decoder_sparse_step": 1, "mlp_only_layers": [1, 2]}),
    (
        "qwen2_moe",
        {**MOE, "mlp_only_layers": [1, 4], "use_sliding_window": True, **WINDOW, "max_window_layers": 3},
        (0, 3),
        {"mlp_only_layers": [0, 2], "layer_types": ["full_attention", "sliding_attention"] + ["full_attention"] * 2},
    ),
    ("qwen3_moe", {**MOE, "head_dim": 8, "decoder_sparse_step": 3}, (1, 2), {"mlp_only_layers": [0, 1, 2]}),
    ("qwen3_moe", {**MOE, "head_dim": 8, "mlp_only_layers": [0, 2]}, (0, 1), {"mlp_only_layers": [0]}),
    (
        "qwen3_next",
        {**MOE, **LINEAR, "head_dim": 8, "mlp_only_layers": [5]},
        (0, 4),
        {"layer_types": ["linear_attention"] * 2 + ["full_attention", "linear_attention"], "mlp_only_layers": [3]},
    ),
    ("deepseek_v2", {**MLA, "first_k_dense_replace": 2}, (0, 4), {"first_k_dense_replace": 1}),
    ("deepseek_v3", {**MLA, "first_k_dense_replace": 3}, (1, 2, 5), {"first_k_dense_replace": 1}),
    ("deepseek_v3", {**MLA, "first_k_dense_replace": 2}, (0, 1), {"first_k_dense_replace": 0}),
    (
        "gpt_oss",
        {"num_local_experts": 4, "head_dim": 8, **WINDOW},
        (1, 2),
        {"layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    (
        "granitemoehybrid",
        {**MAMBA, "layer_types": ["mamba", "attention", "mamba", "mamba", "attention", "mamba"]},
        (0, 4),
        {"layer_types": ["linear_attention", "full_attention"][::-1] + ["linear_attention"] * 2},
    ),
    (
        "nemotron_h",
        {**NEMOTRON, "hybrid_override_pattern": "M-*EM*"},
        (1, 4),
        {"layers_block_type": ["linear_attention", "full_attention", "moe", "full_attention"]},
    ),
    ("exaone4", {**WINDOW, "head_dim": 8}, (0, 3), {"layer_types": ["sliding_attention"] * 4}),
    (
        "llama4_text",
        {"intermediate_size_mlp": 48, "num_local_experts": 4, "head_dim": 8, "attention_chunk_size": 8},
        (0, 1),
        {"no_rope_layers": [1, 0, 1, 1], "moe_layers": [0, 1, 2, 3]},
    ),
]


@pytest.mark.parametrize(
    ("model_type", "fields", "dropped", "says"), CASES, ids=[f"{case[0]}-{case[2]}" for case in CASES]
)
def test_pruned_equals_dense_without_those_blocks(
    tiny, make_plan, assert_same_as_skipping, tmp_path, model_type, fields, dropped, says
):
    dense = tiny(model_type, **fields)
    write_checkpoint(open_model(dense), make_plan(dense, dropped), tmp_path / "pruned")
    config = json.loads((tmp_path / "pruned/config.json").read_text())
    assert {field: config.get(field) for field in says} == says
    assert_same_as_skipping(dense, tmp_path / "pruned", dropped, FAMILIES[model_type].block_prefix)
    verify(tmp_path / "pruned")


@pytest.mark.parametrize(("model_type", "fields", "dropped"), [case[:3] for case in {c[0]: c for c in CASES}.values()])
def test_the_analysis_runs_the_blocks_one_by_one(tiny, logits_without, model_type, fields, dropped):
    """What is scored is the model that is written: embed, each kept block, norm and head give the same logits."""
    import torch

    from mi_prun.model.loading import load_block_model

    dense = tiny(model_type, **fields)
    model = load_block_model(open_model(dense), device=torch.device("cpu"), dtype=torch.float32)
    tokens, wanted = logits_without(dense, dropped, FAMILIES[model_type].block_prefix)
    with torch.inference_mode():
        state = model.embed(tokens)
        for block in range(model.num_blocks):
            if block not in dropped:
                state = model.run(block, state)
        logits = model.logits(state)
    assert (torch.log_softmax(logits, -1) - torch.log_softmax(wanted, -1)).abs().max() < 1e-4


# Served by stock vLLM's CPU build with the log-probabilities of transformers' dense model without those blocks.
IN_VLLM = [
    "phi3", "gemma2", "gemma3_text", "olmo2", "olmo3", "granite", "smollm3", "cohere2", "gpt_neox", "gpt2", "opt",
    "falcon", "mixtral", "qwen2_moe", "deepseek_v2", "deepseek_v3", "granitemoehybrid", "nemotron_h",
    "exaone4", "llama4_text",
]  # fmt: skip
# transformers alone proves these: what vLLM 0.32's CPU build says to such a model, pruned or dense.
NOT_IN_VLLM = {
    "qwen3_moe": "NaN in most runs, the same log-probabilities in others; cause not found",
    "qwen3_next": "CPU GDN attention requires BF16",
    "gpt_oss": "no unquantised MoE backend for CPU",
}
# vLLM's CPU kernel of interleaved rotary embeddings is wrong for MLA; with vLLM's own flag PyTorch computes them.
ENGINE: dict[str, dict[str, Any]] = {
    model_type: {"compilation_config": {"custom_ops": ["-rotary_embedding"]}}
    for model_type in ("deepseek_v2", "deepseek_v3")
}
# What vLLM's CPU build needs beyond heads of 32, the smallest its attention has.
CPU_MLA = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}  # the only sizes
CPU_MOE = {"moe_intermediate_size": 32, "intermediate_size": 128}
CPU_CHANGES: dict[str, dict[str, Any]] = {
    # vLLM's window is one token longer than transformers', so none bites; rotary embeddings still tell kinds apart.
    "cohere2": {"sliding_window": 64},
    "gpt_neox": {"num_key_value_heads": 4},  # no field of this family, and vLLM reads it
    "gpt2": {"n_embd": 128},
    "opt": {"word_embed_proj_dim": 128},
    "llama4_text": {"attention_chunk_size": 8192},  # pages must divide it
    # transformers' class fixes one way to route, vLLM reads it from fields that every checkpoint of the hub has.
    "deepseek_v2": CPU_MLA | CPU_MOE | {"n_group": 1, "topk_method": "greedy"},
    "deepseek_v3": CPU_MLA | CPU_MOE | {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 32},
    # No experts: without a gate they need a GPU. transformers clamps time steps from below, vLLM does not.
    "nemotron_h": {
        "mamba_num_heads": 8,
        "mamba_head_dim": 32,
        "hybrid_override_pattern": "M-*-M*",
        "time_step_min": 1e-12,
    },
}


def larger(model_type: str, fields: dict[str, Any]) -> dict[str, Any]:
    """A model of that type at sizes that vLLM's CPU build has."""
    heads = {"head_dim": 32} if "head_dim" in fields else {}
    return fields | {"hidden_size": 128} | heads | CPU_CHANGES.get(model_type, {})


@pytest.mark.engine
@pytest.mark.long
@pytest.mark.parametrize("model_type", IN_VLLM)
def test_stock_vllm_says_the_same(tiny, make_plan, assert_stock_vllm_says_the_same, tmp_path, model_type):
    """One family, about 25 s; all with MI_PRUN_ALL_FAMILIES=1."""
    if model_type != "gemma2" and not os.environ.get("MI_PRUN_ALL_FAMILIES"):
        pytest.skip("MI_PRUN_ALL_FAMILIES=1 tries every family on vLLM")
    if model_type in ENGINE and torch.cpu._is_amx_tile_supported():
        pytest.skip("vLLM's kernel for MLA on a CPU with AMX takes no float32")
    _, fields, dropped, _ = next(case for case in CASES if case[0] == model_type)
    dense = tiny(model_type, **larger(model_type, fields))
    write_checkpoint(open_model(dense), make_plan(dense, dropped), tmp_path / "pruned")
    assert_stock_vllm_says_the_same(
        dense, tmp_path / "pruned", dropped, FAMILIES[model_type].block_prefix, **ENGINE.get(model_type, {})
    )


def test_every_family_is_tried():
    elsewhere = {"llama", "mistral", "qwen2", "qwen3", "gemma3"}  # test_checkpoint.py, and below
    assert FAMILIES.keys() == {case[0] for case in CASES} | elsewhere
    assert FAMILIES.keys() - elsewhere == {*IN_VLLM, *NOT_IN_VLLM}


VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def test_a_quantization_inside_a_nested_text_model_is_refused():
    """vLLM reads it there; its names of blocks would stay those of the dense model."""
    text = {"num_hidden_layers": 4, "quantization_config": {"ignore": ["model.language_model.layers.3.mlp.up_proj"]}}
    with pytest.raises(UserError, match="text_config has a quantization_config of its own"):
        reduce_config({"model_type": "gemma3", "text_config": text}, [0, 2, 3])


def test_a_nested_text_model_is_pruned_and_the_vision_tower_is_not_touched(
    tiny, make_plan, assert_same_as_skipping, tmp_path, small
):
    from safetensors import safe_open

    family = FAMILIES["gemma3"]
    text = {**small, **WINDOW, "head_dim": 8, "model_type": family.text}
    dense = tiny("gemma3", base={}, text_config=text, vision_config=VISION, image_token_index=96)
    write_checkpoint(open_model(dense), make_plan(dense, (0, 4)), tmp_path / "pruned")
    assert_same_as_skipping(dense, tmp_path / "pruned", (0, 4), family.block_prefix)
    config = json.loads((tmp_path / "pruned/config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == len(config["text_config"]["layer_types"]) == 4
    assert config["vision_config"]["num_hidden_layers"] == 6

    def vision(folder: Path) -> set[str]:
        with safe_open(folder / "model.safetensors", "np") as file:
            return {name for name in file.keys() if "vision" in name}  # noqa: SIM118 - not a dict

    assert vision(dense) == vision(tmp_path / "pruned") != set()
    verify(tmp_path / "pruned")


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 3}),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": 2}),
        ("gemma2", {}),
        ("gemma3_text", {}),
        ("gemma3_text", {"sliding_window_pattern": 3}),
        ("olmo3", {}),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 4}),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 4, "no_rope_layer_interval": 3}),
        ("cohere2", {}),
        ("cohere2", {"sliding_window_pattern": 2}),
        ("qwen2_moe", {"use_sliding_window": True, "max_window_layers": 4}),
        ("qwen3_next", {}),
        ("qwen3_next", {"full_attention_interval": 2}),
        ("gpt_oss", {}),
        ("granitemoehybrid", {}),
        ("nemotron_h", {}),
        ("nemotron_h", {"hybrid_override_pattern": "MM*-E"}),
        ("exaone4", {}),
        ("exaone4", {"sliding_window_pattern": 3}),
        ("llama4_text", {}),
        ("llama4_text", {"no_rope_layer_interval": 2}),
    ],
)
def test_where_the_list_is_absent_it_is_derived_as_transformers_does(model_type, fields):
    """Configs of the hub often lack it; the reduced one must write it out."""
    from transformers import AutoConfig

    config = {"model_type": model_type, **fields} | ({} if model_type == "nemotron_h" else {"num_hidden_layers": 8})
    dense = AutoConfig.for_model(**config).layer_types
    count = len(dense)
    family = FAMILIES[model_type]
    assert family.attention_kinds is not None
    assert family.attention_kinds(config, count) == dense
    for kept in (range(1, count), range(0, count, 2), (0, 1, count - 1)):
        try:
            reduced = reduce_config(config, list(kept))
        except UserError as error:
            assert model_type == "gpt_oss", error  # noqa: PT017 - the parity rule, tested elsewhere
            continue
        assert AutoConfig.for_model(**reduced).layer_types == [dense[block] for block in kept]
        assert reduced.get("no_rope_layers") == (
            [AutoConfig.for_model(**config).no_rope_layers[block] for block in kept]
            if "no_rope_layers" in family.known_fields
            else None
        )


@pytest.mark.parametrize(
    ("config", "kept", "reason"),
    [
        (
            {"model_type": "jamba", "attn_layer_period": 8},
            [0],
            "'attn_layer_period' .* ties a block's kind to its index",
        ),
        ({"model_type": "zamba2"}, [0], "share one set of weights"),
        ({"model_type": "bailing_moe_linear"}, [0], "'layer_group_size' ties a block's kind"),
        ({"model_type": "bailing_hybrid"}, [0], "'layer_group_size' ties a block's kind"),
        ({"model_type": "gemma3n"}, [0], "keys and values of earlier ones"),
        ({"model_type": "gemma3n_text"}, [0], "keys and values of earlier ones"),
        ({"model_type": "gemma4"}, [0], "keys and values of earlier ones"),
        ({"model_type": "gemma4_text"}, [0], "keys and values of earlier ones"),
        ({"model_type": "qwen3_vl"}, [0], "'deepstack_visual_indexes'"),
        (
            {"model_type": "llama4_text", "num_hidden_layers": 4, "interleave_moe_layer_step": 2},
            [0, 1],
            "'interleave_moe_layer_step' .2. ties a block's kind",
        ),
        ({"model_type": "llama4"}, [0], "only the text model .llama4_text. is known"),
        ({"model_type": "gemma3"}, [0], "'text_config' of a gemma3 config must be an object"),
        (
            {"model_type": "gemma3", "text_config": {"model_type": "qwen2", "num_hidden_layers": 4}},
            [0],
            "text_config has model_type 'qwen2'",
        ),
        ({"model_type": "exaone4", "num_hidden_layers": 4}, [3], "no sliding block would be kept"),
        (
            {"model_type": "gpt_oss", "num_hidden_layers": 4},
            [0, 2, 3],
            "block 2 .sliding_attention. would become block 1",
        ),
        ({"model_type": "gpt_oss", "num_hidden_layers": 4}, [1, 2, 3], "vLLM takes the kind from the parity"),
        (
            {"model_type": "gpt2", "n_layer": 4, "scale_attn_by_inverse_layer_idx": True},
            [0, 1],
            "'scale_attn_by_inverse_layer_idx' ties a block's attention",
        ),
        (
            {"model_type": "deepseek_v3", "num_hidden_layers": 4, "moe_layer_freq": 2},
            [0, 1],
            "'moe_layer_freq' .2. ties",
        ),
        (
            {"model_type": "nemotron_h", "hybrid_override_pattern": "M-*-", "intermediate_size": [1, 2]},
            [0, 1],
            "'intermediate_size' is a list",
        ),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "MX"}, [0], "must consist of"),
    ],
)
def test_what_would_be_written_wrong_is_refused(config, kept, reason):
    with pytest.raises(UserError, match=reason):
        reduce_config(config, kept)


def test_experts_and_blocks_of_multi_token_prediction_follow_the_last_block(tiny, make_plan, tmp_path):
    """DeepSeek-V3 stores the MTP block as one more; it stays behind the last kept one."""
    import torch
    from safetensors.torch import load_file, save_file

    dense = tiny("deepseek_v3", **MLA, first_k_dense_replace=1)
    tensors = load_file(dense / "model.safetensors")
    save_file(tensors | {"model.layers.6.eh_proj.weight": torch.ones(3)}, dense / "model.safetensors")
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    write_checkpoint(open_model(dense), make_plan(dense, (0, 2)), tmp_path / "pruned")
    tensors = load_file(tmp_path / "pruned/model.safetensors")
    assert "model.layers.4.eh_proj.weight" in tensors
    assert not any(name.startswith(("model.layers.5.", "model.layers.6.")) for name in tensors)
    verify(tmp_path / "pruned")


def test_kinds_for_people_to_read():
    config = {"model_type": "qwen3_next", "num_hidden_layers": 4, "decoder_sparse_step": 2}
    assert block_kinds(config) == [
        "linear_attention+mlp",
        "linear_attention+moe",
        "linear_attention+mlp",
        "full_attention+moe",
    ]
    assert block_kinds({"model_type": "deepseek_v3", "num_hidden_layers": 5}) == ["mlp"] * 3 + ["moe"] * 2
