"""The table of families. A new one is a row here and a tiny model in `tests/mi_prun/architecture/test_families.py`.

Where a family has blocks of different kinds, transformers' *and* vLLM's modelling code show what tells them apart:

- a list with one entry a block: slice it
- the length of a prefix: count again
- a list of indices: renumber them
- an interval: write the list out
- the index itself: refuse
"""

from __future__ import annotations

from mi_prun.architecture import config_rules as rules
from mi_prun.architecture.config_rules import LINEAR, SLIDING, every
from mi_prun.architecture.family import Family

MOE_FIELDS = ("decoder_sparse_step", "mlp_only_layers")

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM"),
        Family("mistral", "MistralForCausalLM"),
        Family(
            "qwen2",
            "Qwen2ForCausalLM",
            attention_kinds=rules.window_suffix,
            rules=(rules.window_layers(rules.window_suffix),),
            known_fields=("max_window_layers",),
        ),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            attention_kinds=rules.window_suffix,
            rules=(rules.window_layers(rules.window_suffix),),
            known_fields=("max_window_layers",),
        ),
        Family("phi3", "Phi3ForCausalLM"),
        Family("gemma2", "Gemma2ForCausalLM", attention_kinds=every(2, SLIDING)),
        Family(
            "gemma3_text",
            "Gemma3ForCausalLM",
            attention_kinds=every("sliding_window_pattern", SLIDING, default=6),
            removed_fields=("sliding_window_pattern", "_sliding_window_pattern"),
        ),
        Family(
            "gemma3",
            "Gemma3ForConditionalGeneration",
            block_prefix="model.language_model.layers",
            tensor_prefixes=("language_model.model.layers",),
            text="gemma3_text",
        ),
        Family("olmo2", "Olmo2ForCausalLM"),
        Family("olmo3", "Olmo3ForCausalLM", attention_kinds=every(4, SLIDING)),
        Family("granite", "GraniteForCausalLM", slice_fields=("layer_types", "layer_rope_theta")),
        Family(
            "smollm3",
            "SmolLM3ForCausalLM",
            attention_kinds=rules.smollm3_kinds,
            rules=(rules.slice_rope_flags,),
            removed_fields=("no_rope_layer_interval",),
            known_fields=("no_rope_layers", "max_window_layers"),
        ),
        Family(
            "cohere2",
            "Cohere2ForCausalLM",
            attention_kinds=every("sliding_window_pattern", SLIDING, default=4),
            # The last two repeat the pattern in the hub's configs, and no engine reads them.
            removed_fields=(
                "sliding_window_pattern",
                "_sliding_window_pattern",
                "layer_switch",
                "order_of_interleaved_layers",
            ),
        ),
        Family("gpt_neox", "GPTNeoXForCausalLM", block_prefix="gpt_neox.layers"),
        Family(
            "gpt2",
            "GPT2LMHeadModel",
            block_prefix="transformer.h",
            tensor_prefixes=("h",),
            count_fields=("n_layer", "num_hidden_layers"),
            rules=(rules.inverse_layer_scale,),
            known_fields=("scale_attn_by_inverse_layer_idx",),
            learned_positions=True,
        ),
        Family(
            "opt",
            "OPTForCausalLM",
            block_prefix="model.decoder.layers",
            tensor_prefixes=("decoder.layers",),
            learned_positions=True,
        ),
        Family(
            "falcon",
            "FalconForCausalLM",
            block_prefix="transformer.h",
            count_fields=("num_hidden_layers", "n_layer"),
            returns_tuple=True,
        ),
        Family("mixtral", "MixtralForCausalLM"),
        Family(
            "qwen2_moe",
            "Qwen2MoeForCausalLM",
            attention_kinds=rules.window_prefix_alternate,
            mlp_kinds=rules.sparse_mlps,
            rules=(rules.window_layers(rules.window_prefix_alternate), rules.sparse_step),
            known_fields=(*MOE_FIELDS, "max_window_layers"),
        ),
        Family(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            mlp_kinds=rules.sparse_mlps,
            rules=(rules.sparse_step,),
            known_fields=(*MOE_FIELDS, "max_window_layers"),
        ),
        Family(
            "qwen3_next",
            "Qwen3NextForCausalLM",
            attention_kinds=every("full_attention_interval", LINEAR, default=4),
            mlp_kinds=rules.sparse_mlps,
            rules=(rules.sparse_step,),
            removed_fields=("full_attention_interval",),
            known_fields=MOE_FIELDS,
        ),
        Family(
            "deepseek_v2",
            "DeepseekV2ForCausalLM",
            mlp_kinds=rules.dense_prefix(0),
            rules=(rules.count_dense_prefix(0),),
            known_fields=("first_k_dense_replace", "moe_layer_freq"),
        ),
        Family(
            "deepseek_v3",
            "DeepseekV3ForCausalLM",
            mlp_kinds=rules.dense_prefix(3),
            rules=(rules.count_dense_prefix(3),),
            known_fields=("first_k_dense_replace", "moe_layer_freq", "num_nextn_predict_layers", "num_mtp_layers"),
            extra_blocks=rules.mtp_blocks,
        ),
        Family("gpt_oss", "GptOssForCausalLM", attention_kinds=every(2, SLIDING), rules=(rules.parity,)),
        Family(
            "granitemoehybrid",
            "GraniteMoeHybridForCausalLM",
            slice_fields=("layer_types", "layers_block_type"),
            attention_kinds=rules.all_alike(LINEAR),
        ),
        Family(
            "nemotron_h",
            "NemotronHForCausalLM",
            tensor_prefixes=("backbone.layers",),
            count_fields=(),
            count=rules.nemotron_count,
            slice_fields=("layers_block_type", "layer_types"),
            attention_kinds=rules.nemotron_kinds,
            rules=(rules.nemotron_pattern,),
            known_fields=(
                "hybrid_override_pattern",
                "num_nextn_predict_layers",
                "mtp_layers_block_type",
                "mtp_hybrid_override_pattern",
            ),
        ),
        Family(
            "exaone4",
            "Exaone4ForCausalLM",
            attention_kinds=rules.exaone4_kinds,
            rules=(rules.keeps_sliding,),
            known_fields=("sliding_window_pattern",),
        ),
        Family(
            "llama4_text",
            "Llama4ForCausalLM",
            attention_kinds=rules.llama4_kinds,
            rules=(rules.llama4_experts, rules.slice_rope_flags),
            removed_fields=("no_rope_layer_interval",),
            known_fields=("no_rope_layers", "interleave_moe_layer_step", "moe_layers"),
        ),
    )
}

BY_INDEX = "ties a block's kind to its index: dropping blocks would change the kept ones"
REFUSED: dict[str, str] = {
    "jamba": f"config fields 'attn_layer_period' and 'expert_layer_period' {BY_INDEX}",
    "zamba2": "some blocks share one set of weights ('num_mem_blocks', 'hybrid_layer_ids') in turns by their index",
    "llama4": "only the text model (llama4_text) is known, not the one with images",
    "zamba": "some blocks share one set of weights in turns by their index",
    "bailing_moe_linear": f"config field 'layer_group_size' {BY_INDEX}",
    "bailing_hybrid": f"config field 'layer_group_size' {BY_INDEX}",
    **dict.fromkeys(
        ("gemma3n", "gemma3n_text", "gemma4", "gemma4_text"),
        "late blocks read the keys and values of earlier ones ('num_kv_shared_layers'), and one tensor holds the "
        "per-layer embeddings of all blocks",
    ),
    **dict.fromkeys(
        ("qwen3_vl", "qwen3_vl_moe", "qwen3_vl_text"),
        "'deepstack_visual_indexes' adds visual features after blocks told by their index",
    ),
}
