"""A guard against config fields that may be tied to single blocks and that a family does not know: they are refused."""

from __future__ import annotations

import re
from typing import Any

from mi_prun.architecture.family import Config, Family
from mi_prun.errors import UserError

# Words in the names of fields that depend on a block's index.
INDEX_WORDS = re.compile(
    r"(?:^|_)(?:layers?|blocks?|freq|frequency|interval|period|offset|pattern|step|stride|idxs?|index|indexes|indices)(?=_|$)"
)
# Fields with such words that describe no single block in any family.
HARMLESS = frozenset({
    "layer_norm_eps", "layer_norm_epsilon", "layer_norm_bias", "layer_norm_type", "layer_norm_elementwise_affine",
    "rms_norm_after_layer", "do_layer_norm_before", "num_hidden_layers", "num_layers", "n_layer", "n_layers",
    "layer_types", "layers_block_type", "layer_dropout", "time_step_limit", "time_step_min", "time_step_max",
    "time_step_floor", "time_step_rank", "block_size", "image_token_index", "video_token_index", "pad_token_index",
    "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "rope_local_base_freq", "attn_logit_softcapping",
    "n_layer_norm", "offset_alibi",
})  # fmt: skip
NOT_PER_BLOCK = frozenset({
    "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "keys_to_ignore_at_inference", "rope_parameters",
    "rope_scaling", "quantization_config", "id2label", "label2id", "task_specific_params", "mi_prun", "text_config",
    "vision_config", "audio_config", "auto_map", "time_step_limit", "suppress_tokens", "bad_words_ids",
})  # fmt: skip


def check_fields(config: Config, family: Family, count: int) -> None:
    """Raise UserError for the first field that may be per block and is not known for the family."""
    known = {*family.slice_fields, *family.removed_fields, *family.known_fields, *family.count_fields}
    for field, value in config.items():
        if field in known:
            continue
        if field not in NOT_PER_BLOCK and _lists_blocks(value, count):
            raise UserError(
                f"config field {field!r} lists {count} values, as many as there are blocks, and is not known for "
                f"{family.model_type}; if it says nothing of single blocks, --assume-uniform"
            )
        if field not in NOT_PER_BLOCK and _keyed_by_number(value):
            raise UserError(
                f"config field {field!r} has numbers for keys, which may be blocks, and is not known for "
                f"{family.model_type}; if they are not, --assume-uniform"
            )
        if field not in HARMLESS | NOT_PER_BLOCK and INDEX_WORDS.search(field) and not _means_nothing(value):
            raise UserError(
                f"config field {field!r} ({value!r}) may depend on a block's index and is not known for "
                f"{family.model_type}; if all blocks are alike, --assume-uniform"
            )


def _lists_blocks(value: Any, count: int) -> bool:
    if isinstance(value, list):
        return len(value) == count or any(_lists_blocks(inner, count) for inner in value)
    return isinstance(value, dict) and any(_lists_blocks(inner, count) for inner in value.values())


def _keyed_by_number(value: Any) -> bool:
    return isinstance(value, dict) and (
        any(key.isdecimal() for key in value) or any(_keyed_by_number(inner) for inner in value.values())
    )


def _means_nothing(value: Any) -> bool:
    return value is None or value is False or value in (0, "", [], {})
