"""Families that no rule names: proved on a tiny model or refused, and the proof in what is written."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch

from mi_prun.architecture import unlisted
from mi_prun.architecture.architecture import FAMILIES, check_config, family_of, proof_of, reduce_config
from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.checkpoint.inspection import describe, read_manifest, verify
from mi_prun.checkpoint.manifest import MANIFEST_NAME, Manifest
from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model
from mi_prun.plan.plan import Plan
from mi_prun.proving import prover
from mi_prun.proving.prover import TOLERANCE, drops

# As a model of the hub has them, at its own widths, but with few blocks.
HUB: dict[str, dict[str, Any]] = {
    "starcoder2": {
        "architectures": ["Starcoder2ForCausalLM"],
        "hidden_size": 3072, "intermediate_size": 12288, "num_attention_heads": 24, "num_key_value_heads": 2,
        "num_hidden_layers": 4, "max_position_embeddings": 16384, "mlp_type": "default", "norm_type": "layer_norm",
        "norm_epsilon": 1e-5, "rope_theta": 999999.44, "sliding_window": 4096, "use_bias": True, "vocab_size": 49152,
        "bos_token_id": 0, "eos_token_id": 0,
    },
    "stablelm": {
        "architectures": ["StableLmForCausalLM"],
        "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 32,
        "num_hidden_layers": 4, "partial_rotary_factor": 0.25, "layer_norm_eps": 1e-5, "use_qkv_bias": True,
        "vocab_size": 100352, "bos_token_id": 100257, "eos_token_id": 100257,
    },
    "glm4": {
        "architectures": ["Glm4ForCausalLM"],
        "attention_bias": False, "head_dim": 128, "hidden_size": 4096, "intermediate_size": 13696,
        "num_attention_heads": 32, "num_hidden_layers": 4, "num_key_value_heads": 2, "partial_rotary_factor": 0.5,
        "vocab_size": 151552, "pad_token_id": 151329, "eos_token_id": [151329, 151336, 151338],
    },
    "ministral": {
        "architectures": ["MinistralForCausalLM"],
        "head_dim": 128, "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32,
        "num_key_value_heads": 8, "num_hidden_layers": 5, "sliding_window": 32768, "vocab_size": 131072,
        "layer_types": ["full_attention", *["sliding_attention"] * 3, "full_attention"],
    },
    "hunyuan_v1_dense": {
        "architectures": ["HunYuanDenseV1ForCausalLM"],
        "attention_head_dim": 128, "cla_share_factor": 2, "class_num": 0, "dense_list": [4096, 0], "head_dim": 128,
        "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 4,
        "num_key_value_heads": 8, "use_qk_norm": True, "use_cla": False, "vocab_size": 128167, "pad_token_id": 127961,
        "eos_token_id": 127960, "bos_token_id": 127958,
        "rope_scaling": {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0,
                         "mscale_all_dim": 1.0, "type": "dynamic"},
    },
    "seed_oss": {
        "architectures": ["SeedOssForCausalLM"],
        "attention_bias": True, "attention_out_bias": False, "head_dim": 128, "hidden_size": 5120,
        "intermediate_size": 27648, "num_attention_heads": 80, "num_hidden_layers": 4, "num_key_value_heads": 8,
        "residual_dropout": 0.1, "rope_theta": 1e7, "vocab_size": 155136, "pad_token_id": 1, "bos_token_id": 0,
        "eos_token_id": 2,
    },
    "bloom": {
        "architectures": ["BloomForCausalLM"],
        "apply_residual_connection_post_layernorm": False, "hidden_dropout": 0.0, "n_embed": 1024, "n_inner": None,
        "n_layer": 4, "num_attention_heads": 16, "offset_alibi": 100, "pretraining_tp": 1, "seq_length": 2048,
        "vocab_size": 250880, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
    },
}  # fmt: skip
# A folder of each, small enough to write.
TINY: dict[str, dict[str, Any]] = {
    "starcoder2": {"sliding_window": 4},
    "stablelm": {"partial_rotary_factor": 0.5},
    "glm4": {"head_dim": 8, "partial_rotary_factor": 0.5},
    "ministral": {
        "head_dim": 8,
        "sliding_window": 4,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
    },
    "hunyuan_v1_dense": {"head_dim": 8},
    "seed_oss": {"head_dim": 8},
    "bloom": {"n_layer": 4},
}
BLOCKS = {"num_hidden_layers": 4}


def hub_config(model_type: str, **fields: Any) -> dict[str, Any]:
    return {"model_type": model_type, **HUB[model_type], **fields}


@pytest.mark.parametrize("model_type", HUB)
def test_a_config_of_the_hub_is_proved(model_type):
    config = hub_config(model_type)
    proof = proof_of(config)
    assert proof is not None
    assert proof.largest_difference <= TOLERANCE == proof.tolerance
    assert proof.model_class == config["architectures"][0]
    assert {block for one in proof.dropped for block in one} == set(range(proof.num_blocks))
    check_config(config)
    kinds = config.get("layer_types")
    assert reduce_config(config, [0, 3]).get("layer_types") == (kinds and [kinds[0], kinds[3]])


def test_an_odd_field_is_one_line():
    with pytest.raises(UserError, match=r"starcoder2.*its sizes cannot be read"):
        proof_of(hub_config("starcoder2", x={"partial_rotary_factor": "half"}))


@pytest.mark.parametrize("model_type", TINY)
def test_what_is_written_equals_dense_without_those_blocks(
    tiny, make_plan, assert_same_as_skipping, tmp_path, model_type
):
    dense = tiny(model_type, **BLOCKS | TINY[model_type])
    write_checkpoint(open_model(dense), make_plan(dense, (0, 2)), tmp_path / "pruned")
    family = open_model(dense).family
    assert_same_as_skipping(dense, tmp_path / "pruned", (0, 2), family.block_prefix)


# Heads of 32 are the smallest that vLLM's CPU attention has. Its windows are one token longer than transformers'.
WIDE = {"hidden_size": 128, "sliding_window": 64}


@pytest.mark.engine
@pytest.mark.parametrize("model_type", TINY)
def test_stock_vllm_says_the_same(tiny, make_plan, assert_stock_vllm_says_the_same, tmp_path, model_type):
    if not os.environ.get("MI_PRUN_ALL_FAMILIES"):
        pytest.skip("MI_PRUN_ALL_FAMILIES=1 tries every family on vLLM")
    head = {"head_dim": 32} if "head_dim" in TINY[model_type] else {}
    dense = tiny(model_type, **BLOCKS | TINY[model_type] | WIDE | head)
    write_checkpoint(open_model(dense), make_plan(dense, (0, 2)), tmp_path / "pruned")
    # Of the dense BLOOM, too, vLLM's own GELU gives log-probabilities that are 5e-4 apart.
    tolerance = 1e-3 if model_type == "bloom" else 1e-4
    blocks = open_model(dense).family.block_prefix
    assert_stock_vllm_says_the_same(dense, tmp_path / "pruned", (0, 2), blocks, tolerance=tolerance)


def test_the_proof_is_in_the_plan_and_in_the_manifest(tiny, make_plan, tmp_path):
    dense = tiny("starcoder2", **TINY["starcoder2"])
    plan = make_plan(dense, (1, 4))
    plan.write(tmp_path / "plan.json")
    assert (stored := Plan.read(tmp_path / "plan.json").dense.proof) == proof_of(open_model(dense).config)
    assert (1, 4) not in stored.dropped
    write_checkpoint(open_model(dense), plan, tmp_path / "pruned")
    proof = read_manifest(tmp_path / "pruned").proof
    assert proof.model_class == "Starcoder2ForCausalLM"
    assert proof.tiny_fields["hidden_size"] == 64
    assert proof.dropped == (*stored.dropped, (1, 4))  # the plan's own blocks, too
    verify(tmp_path / "pruned")
    assert "proof        no rule names this family; proved on a tiny Starcoder2For" in describe(tmp_path / "pruned")
    assert "proof        no rule names this family" in describe(tmp_path / "plan.json")
    assert "## Proof" in (tmp_path / "pruned/README.md").read_text()


def test_a_manifest_without_a_proof_is_read(tiny, make_plan, tmp_path):
    """An older release wrote none; for a family that a rule names there is none."""
    dense = tiny("llama")
    write_checkpoint(open_model(dense), make_plan(dense, (1,)), tmp_path / "pruned")
    path = tmp_path / "pruned" / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    assert manifest.pop("proof") is None
    assert manifest["plan"]["dense"].pop("proof") is None
    path.write_text(json.dumps(manifest))
    assert Manifest.read(path).proof is None
    assert "proof" not in describe(tmp_path / "pruned")
    verify(tmp_path / "pruned")


def test_a_family_is_proved_once(monkeypatch):
    config = hub_config("stablelm", num_hidden_layers=3)
    family_of(config)
    monkeypatch.setattr(prover, "_trial", lambda *args: pytest.fail("proved again"))
    assert family_of(dict(config)) == family_of(config | {"hidden_size": 4096, "transformers_version": "4.40.0"})
    monkeypatch.setattr(unlisted, "_prover", None)
    with pytest.raises(UserError, match="named by no rule, and nothing can prove it here"):
        family_of(config)


def test_a_proof_leaves_the_random_numbers_and_the_dtype_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3, dtype=torch.float64)
    torch.manual_seed(5)
    torch.set_default_dtype(torch.bfloat16)
    try:
        proof_of(hub_config("seed_oss", num_hidden_layers=2))
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(3, dtype=torch.float64), wanted)


def test_names_of_the_base_model_alone(tiny, make_plan, assert_same_as_skipping, tmp_path):
    """BLOOM's checkpoints of the hub are such: `h.0.mlp`, not `transformer.h.0.mlp`."""
    from safetensors.torch import load_file, save_file

    dense = tiny("bloom", **BLOCKS | TINY["bloom"])
    tensors = load_file(dense / "model.safetensors")
    save_file({name.removeprefix("transformer."): tensors[name] for name in tensors}, dense / "model.safetensors")
    write_checkpoint(open_model(dense), make_plan(dense, (1, 2)), tmp_path / "pruned")
    assert_same_as_skipping(dense, tmp_path / "pruned", (1, 2), "transformer.h")


GLM4_MOE = {
    "model_type": "glm4_moe", "num_hidden_layers": 4, "first_k_dense_replace": 1, "hidden_size": 4096,
    "num_attention_heads": 32, "num_key_value_heads": 8, "n_routed_experts": 128, "num_experts_per_tok": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        # The first blocks have no experts, by a number that is not counted again.
        (GLM4_MOE, "tiny Glm4MoeForCausalLM failed: without block 0, it differs by .* with the same blocks bypassed"),
        # The blocks scale themselves by how many there are, or by their index.
        ({"model_type": "diffllama", "num_hidden_layers": 4}, "without block 0, it differs by"),
        ({"model_type": "bert", "num_hidden_layers": 4}, "earlier positions see later tokens"),
        ({"model_type": "bart", "num_hidden_layers": 4}, "BartForCausalLM has 0 lists of 4 modules, not one"),
        ({"model_type": "bamba", "num_hidden_layers": 4}, "it cannot be run block by block: not enough values"),
        ({"model_type": "martian"}, "has no causal language model of that type"),
        ({"model_type": "t5", "num_hidden_layers": 4}, "has no causal language model of that type"),
        (hub_config("glm4", vision_config={"depth": 4}), "it has a 'vision_config'; only models of text alone"),
        (hub_config("glm4", architectures=["Glm4ForSequenceClassification"]), "only Glm4ForCausalLM is"),
        (
            hub_config("glm4", auto_map={"AutoModelForCausalLM": "modeling.MyGlm"}),
            "'auto_map' names remote code .'modeling.MyGlm'.",
        ),
        ({"model_type": "bloom"}, "'n_layer' must say how many blocks there are, got None"),
        (hub_config("glm4", num_hidden_layers=0), "'num_hidden_layers' must be a whole number from 1 to 10000, got 0"),
        (hub_config("glm4", num_hidden_layers="4"), "a glm4 config cannot be loaded by transformers"),
    ],
)
def test_what_is_refused(config, reason):
    for _ in range(2):  # the second time out of the memory
        with pytest.raises(UserError, match=reason) as error:
            family_of(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"gates": [1, 2, 3, 4]}, "'gates' lists 4 values"),
        ({"moe_layer_freq": 2}, "'moe_layer_freq' .2. may depend on a block's index"),
    ],
)
def test_the_guard_of_fields_stays(fields, reason):
    with pytest.raises(UserError, match=reason):
        reduce_config(hub_config("glm4", **fields), [0, 1])


def test_code_of_the_folder_is_not_run(tiny, tmp_path):
    dense = tiny("glm4", **TINY["glm4"])
    config = json.loads((dense / "config.json").read_text())
    (dense / "modeling_x.py").write_text("raise SystemExit('ran')")
    config |= {"model_type": "x", "auto_map": {"AutoModelForCausalLM": "modeling_x.X", "AutoConfig": "modeling_x.C"}}
    (dense / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="model_type 'x' is not supported: no rule names it"):
        _ = open_model(dense).family


@pytest.fixture
def by_index(monkeypatch):
    """A model whose every third block attends otherwise, by its index: no field of the config says so."""
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    class ByIndexConfig(LlamaConfig):
        model_type = "by_index"

    class ByIndexForCausalLM(LlamaForCausalLM):
        config_class = ByIndexConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for block, layer in enumerate(self.model.layers):
                if block % 3 == 2:
                    layer.self_attn.scaling *= 4

    from transformers import CONFIG_MAPPING

    AutoConfig.register("by_index", ByIndexConfig)
    AutoModelForCausalLM.register(ByIndexConfig, ByIndexForCausalLM)
    yield {"model_type": "by_index", "num_hidden_layers": 6}
    CONFIG_MAPPING._extra_content.pop("by_index")
    AutoModelForCausalLM._model_mapping._extra_content.pop(ByIndexConfig)


def test_a_block_that_depends_on_its_index_is_refused_before_anything_is_written(by_index, tmp_path, tiny):
    dense = tiny("llama")
    config = json.loads((dense / "config.json").read_text())
    del config["architectures"]
    (dense / "config.json").write_text(json.dumps(config | by_index))
    with pytest.raises(UserError, match=r"'by_index' is not supported.*without block 0, it differs by"):
        _ = open_model(dense).identity


def test_what_only_the_plan_s_own_blocks_show(monkeypatch, tiny, make_plan, tmp_path):
    """The blocks of the plan are tried too, before anything is written."""
    dense = tiny("seed_oss", **TINY["seed_oss"])
    plan = make_plan(dense, (2, 4, 5))
    real = prover._Trial.difference

    def difference(self: Any, dropped: Any) -> float:
        if tuple(dropped) == (2, 4, 5):
            self._refuse("only these differ")
        return real(self, dropped)

    monkeypatch.setattr(prover._Trial, "difference", difference)
    with pytest.raises(UserError, match="only these differ"):
        write_checkpoint(open_model(dense), plan, tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 64])
def test_each_kind_and_each_place_is_dropped(count):
    kinds = ["a" if block % 4 else "b" for block in range(count)]
    sets = drops(kinds)
    assert all(0 < len(one) < count for one in sets)
    assert len(set(sets)) == len(sets)
    if count > 1:
        assert {kinds[one[0]] for one in sets if len(one) == 1} == set(kinds)
        assert {(0,), (count - 1,)} <= set(sets)
        assert {block for one in sets for block in one} == set(range(count))


def test_a_stack_of_one_block_loses_none():
    assert proof_of(hub_config("stablelm", num_hidden_layers=1)).dropped == ()


def test_named_families_keep_their_rule():
    for model_type in FAMILIES:
        assert proof_of({"model_type": model_type}) is None
