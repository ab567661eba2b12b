from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_prun.architecture.architecture import (
    FAMILIES,
    block_of,
    check_config,
    check_reducible,
    num_blocks,
    reduce_config,
    renamed,
)
from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.checkpoint.inspection import describe, verify
from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model

LLAMA = FAMILIES["llama"]


@given(
    st.sets(st.integers(0, 60), min_size=1), st.integers(0, 99), st.sampled_from(["w", "mlp.experts.3.up_proj.weight"])
)
def test_kept_blocks_are_numbered_in_their_order(kept, block, rest):
    order = sorted(kept)
    name = renamed(f"model.layers.{block}.{rest}", LLAMA, order)
    if block in kept:
        assert name == f"model.layers.{order.index(block)}.{rest}"
    else:
        assert name is None


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.norm.weight",
        "vision_tower.model.layers.3.w",
        "xmodel.layers.3.w",
        "model.layers.x.w",
        "model.layers.03.w",
        "model.layers.-1.w",
        "model.layers.1234567.w",
        "model_layers.3.w",
        "modelxlayers.3.w",
    ],
)
def test_what_is_no_block_keeps_its_name(name):
    assert block_of(name, LLAMA) is None
    assert renamed(name, LLAMA, (0,)) == name


def test_other_prefixes_of_a_family():
    assert renamed("h.5.attn.c_attn.weight", FAMILIES["gpt2"], (0, 5)) == "h.1.attn.c_attn.weight"
    assert renamed("backbone.layers.5.norm.weight", FAMILIES["nemotron_h"], (0, 5)) == "backbone.layers.1.norm.weight"
    assert block_of("language_model.model.layers.2.w", FAMILIES["gemma3"]) == 2
    assert block_of("vision_tower.encoder.layers.2.w", FAMILIES["gemma3"]) is None


@pytest.mark.parametrize("kept", [[], [1, 0], [0, 0], [-1], [4]])
def test_kept_blocks_that_make_no_sense(kept):
    with pytest.raises(UserError, match="kept"):
        reduce_config({"model_type": "llama", "num_hidden_layers": 4}, kept)


@pytest.mark.parametrize("count", [0, -1, True, None, "4", 4.0, 10_001, 2**40])
def test_a_count_of_blocks_that_makes_no_sense(count):
    with pytest.raises(UserError, match="'num_hidden_layers' must be"):
        num_blocks({"model_type": "llama", "num_hidden_layers": count})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gates", [1, 2, 3, 4]),
        ("nested", {"inner": [1, 2, 3, 4]}),
        ("rows", [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ("overrides", {"3": {"heads": 2}}),
        ("attn_layer_period", 8),
        ("cross_attention_interval", 2),
        ("global_attn_every_n_layers", 3),
        ("sliding_window_pattern", "LLLG"),
        ("skip_layers", [1]),
        ("use_block_gates", True),
        ("full_attn_idxs", [2]),
        ("moe_layer_start_index", 1),
    ],
)
def test_an_unknown_field_that_may_be_per_block_is_refused_by_name(field, value):
    config = {"model_type": "llama", "num_hidden_layers": 4, field: value}
    with pytest.raises(UserError, match=rf"config field '{field}' .*--assume-uniform"):
        reduce_config(config, [0, 1])
    assert reduce_config(config, [0, 1], assume_uniform=True) == config | {"num_hidden_layers": 2}
    assert reduce_config(config, [0, 1, 2, 3]) == config


@pytest.mark.parametrize(
    ("model_type", "field"),
    [("llama", "layer_types"), ("mistral", "layer_types"), ("granite", "layer_types"), ("granite", "layer_rope_theta")],
)
def test_lists_that_only_vllm_reads_are_sliced(model_type, field):
    config = {"model_type": model_type, "num_hidden_layers": 4, field: ["a", "b", "c", "d"]}
    assert reduce_config(config, [0, 3]) == config | {"num_hidden_layers": 2, field: ["a", "d"]}


def test_assume_uniform_is_recorded(tiny, make_plan, tmp_path):
    dense = tiny("llama")
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(config | {"extra_layer_period": 2}))
    with pytest.raises(UserError, match=r"'extra_layer_period' .2. may depend on a block's index"):
        write_checkpoint(open_model(dense), make_plan(dense, (1,)), tmp_path / "pruned")
    manifest = write_checkpoint(open_model(dense), make_plan(dense, (1,)), tmp_path / "pruned", assume_uniform=True)
    assert manifest.assume_uniform
    assert "by --assume-uniform" in describe(tmp_path / "pruned")
    verify(tmp_path / "pruned")


# Fields of configs on the hub that transformers' class does not write any more.
HUB = {
    "llama": {"pretraining_tp": 1, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "rope_type": "llama3"}},
    "qwen2": {"max_window_layers": 28, "sliding_window": 131072, "use_sliding_window": False, "use_mrope": False},
    "phi3": {
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 6, "long_factor": [1.0] * 6},
        "embd_pdrop": 0.0,
    },
    "deepseek_v3": {"moe_layer_freq": 1, "num_nextn_predict_layers": 1, "ep_size": 1, "aux_loss_alpha": 0.001},
    "cohere2": {"layer_switch": 4, "order_of_interleaved_layers": "local_attn_first", "use_embedding_sharing": True},
    "opt": {"_remove_final_layer_norm": False, "do_layer_norm_before": True, "layerdrop": 0.0, "prefix": "</s>"},
    "gpt2": {
        "n_ctx": 1024,
        "summary_type": "cls_index",
        "task_specific_params": {"text-generation": {"max_length": 50}},
    },
    "smollm3": {"max_window_layers": 28, "no_rope_layer_interval": 4},
    "nemotron_h": {"time_step_limit": [0.0, float("inf")], "time_step_min": 0.001, "layer_norm_epsilon": 1e-05},
    "falcon": {"apply_residual_connection_post_layernorm": False, "parallel_attn": True},
}


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_fields_that_a_family_really_has_pass(model_type):
    from transformers import AutoConfig

    config = json.loads(AutoConfig.for_model(model_type).to_json_string(use_diff=False)) | HUB.get(model_type, {})
    check_config(config)


SINGLE = [(block,) for block in range(6)]


def test_what_no_block_can_be_dropped_from_is_said_for_all(small):
    check_reducible({"model_type": "llama", **small}, SINGLE, ("tail", "angular"))
    check_reducible({"model_type": "gpt_oss", "num_hidden_layers": 6}, SINGLE)  # the last one can
    with pytest.raises(
        UserError,
        match=r"name the blocks .*, or take tail, angular",
    ):
        check_reducible({"model_type": "gpt_oss", "num_hidden_layers": 6}, SINGLE, ("tail", "angular"))
    with pytest.raises(UserError, match="scale_attn_by_inverse_layer_idx"):
        check_reducible({"model_type": "gpt2", "n_layer": 4, "scale_attn_by_inverse_layer_idx": True}, SINGLE[:4])
    pattern = {"quant_method": "gptq", "bits": 4, "dynamic": {r"+:.*\.(?:1[0-5])\..*": {"bits": 8}}}
    with pytest.raises(UserError, match="prune first, then quantise"):
        check_reducible({"model_type": "llama", **small, "quantization_config": pattern}, SINGLE)
