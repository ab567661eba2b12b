"""A config of the same class at tiny widths. Every field about single blocks stays as it is.

The number of blocks stays, too: a list with one entry a block, the length of a prefix, an interval mean the same then.
Windows become shorter than the text of the proof, so that kinds of attention can be told apart.
"""

from __future__ import annotations

import re
from typing import Any, TypeGuard

from mi_prun.architecture.family import Config

HIDDEN, HEADS, HEAD, INNER, EXPERTS, LATENT = 64, 4, 16, 96, 4, 16
VOCABULARY = 97
POSITIONS = 128
WINDOW = 4

WIDTHS: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "n_embd", "n_embed", "d_model", "word_embed_proj_dim", "embedding_size"), HIDDEN),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), HEADS),
    **dict.fromkeys(("head_dim", "attention_head_dim", "kv_channels", "v_head_dim", "rotary_dim"), HEAD),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "d_ff", "block_ff_dim"), INNER),
    **dict.fromkeys(("intermediate_size_mlp", "moe_intermediate_size", "shared_intermediate_size"), INNER),
    **dict.fromkeys(("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"), INNER),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), LATENT),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim"), HEAD),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size"), 8),
    **dict.fromkeys(("mamba_n_groups",), 1),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_num_value_heads",), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    "vocab_size": VOCABULARY,
}  # fmt: skip
AT_MOST: dict[str, int] = {
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len"), POSITIONS),
    **dict.fromkeys(("max_target_positions", "max_sequence_length"), POSITIONS),
}
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "multi_query_group_num")
WINDOWS = re.compile(r"(?:^|_)(?:window|chunk)(?:_size)?\Z")
LEFT_OUT = (
    "quantization_config", "compression_config", "auto_map", "mi_prun", "dtype", "torch_dtype", "_name_or_path",
    "transformers_version",
)  # fmt: skip
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ROTARY_LISTS = ("short_factor", "long_factor")


def tiny_fields(config: Config, known: Any) -> dict[str, int | str | None]:
    """Return the fields that the tiny model has otherwise. known: transformers' object of the real config."""
    fields: dict[str, int | str | None] = {}
    for name, size in WIDTHS.items():
        if _count(known, name) is not None or _is_count(config.get(name)):
            fields[name] = size
    for name, size in AT_MOST.items():
        if (count := _count(known, name)) is not None:
            fields[name] = min(count, size)
    heads = _count(known, "num_attention_heads")
    for name in KEY_HEADS:
        if (count := _count(known, name)) is not None:
            fields[name] = HEADS if count == heads else 1 if count == 1 else 2
    for name in {*config, *vars(known)}:
        if WINDOWS.search(name) and (count := _count(known, name)) is not None:
            fields[name] = min(count, WINDOW)
    fields |= {name: token for name, token in TOKENS.items() if hasattr(known, name)}
    return dict(sorted(fields.items()))


def tiny_config(config: Config, fields: dict[str, int | str | None]) -> Config:
    """Return the config of the tiny model."""
    kept = {name: _rotary(value, config) for name, value in config.items() if name not in LEFT_OUT}
    return kept | fields


def _count(known: Any, name: str) -> int | None:
    value = getattr(known, name, None)
    return value if _is_count(value) else None


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _rotary(value: Any, config: Config) -> Any:
    """Cut lists with one entry for each pair of a head's dimensions; the factors of long contexts are such."""
    if not isinstance(value, dict):
        return value
    share = value.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    pairs = int(HEAD * share) // 2
    return {
        name: inner[:pairs] if name in ROTARY_LISTS and isinstance(inner, list) else _rotary(inner, config)
        for name, inner in value.items()
    }
