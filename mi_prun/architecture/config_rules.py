"""Rules for config fields that describe single blocks. Each function is a `Rule` or `Kinds`, or makes one.

Every default is the one that transformers' config class and vLLM use where the field is absent.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_prun.architecture.family import Config, Kinds, Rule, block_list, index_list, whole
from mi_prun.errors import UserError

FULL, SLIDING, LINEAR, CHUNKED = "full_attention", "sliding_attention", "linear_attention", "chunked_attention"
DENSE, MOE = "mlp", "moe"
PATTERN = {"M": LINEAR, "E": MOE, "*": FULL, "-": DENSE}  # NemotronH's letters


def every(interval: int | str, other: str, last: str = FULL, default: int = 0) -> Kinds:
    """Make kinds: every `interval`-th block is `last`, the rest `other`. A string names the interval's config field."""

    def kinds(config: Config, count: int) -> list[str]:
        step = whole(config, interval, default) if isinstance(interval, str) else interval
        if step < 1:
            raise UserError(f"config field {interval!r} must be at least 1, got {step}")
        return [last if (block + 1) % step == 0 else other for block in range(count)]

    return kinds


def all_alike(kind: str) -> Kinds:
    """Make kinds that are the same for every block."""
    return lambda config, count: [kind] * count


# Qwen2, Qwen3, Qwen2-MoE: a window over a prefix or a suffix of the blocks


def window_suffix(config: Config, count: int) -> list[str]:
    """Return the kinds of Qwen2 and Qwen3: with `use_sliding_window`, blocks from `max_window_layers` on slide."""
    slides = config.get("use_sliding_window") and config.get("sliding_window", 4096) is not None
    first = whole(config, "max_window_layers", 28) if slides else count
    return [SLIDING if block >= first else FULL for block in range(count)]


def window_prefix_alternate(config: Config, count: int) -> list[str]:
    """Return the kinds of Qwen2-MoE: with `use_sliding_window`, every other block below `max_window_layers` slides."""
    last = whole(config, "max_window_layers", 28) if config.get("use_sliding_window") else 0
    return [SLIDING if block % 2 == 0 and block < last else FULL for block in range(count)]


def window_layers(kinds_of: Kinds) -> Rule:
    """Make a rule: count the kept blocks below `max_window_layers`; without a sliding block switch the window off.

    transformers reads `layer_types`. vLLM does not: it applies the window to every block, and refuses a mixture of
    kinds unless `max_window_layers` equals the number of blocks. Where the two are equal, counting keeps them equal.
    """

    def rule(config: Config, kept: Sequence[int], count: int) -> Config:
        fields: Config = {}
        if config.get("max_window_layers") is not None or config.get("use_sliding_window"):
            limit = whole(config, "max_window_layers", 28)
            fields["max_window_layers"] = sum(1 for block in kept if block < limit)
        kinds = block_list(config, "layer_types", count) or kinds_of(config, count)
        if SLIDING in kinds and not any(kinds[block] == SLIDING for block in kept):
            fields["use_sliding_window"] = False
        return fields

    return rule


# Mixtures of experts


def sparse_mlps(config: Config, count: int) -> list[str]:
    """Return Qwen's MLPs: experts in every `decoder_sparse_step`-th block, except for those in `mlp_only_layers`."""
    step = whole(config, "decoder_sparse_step", 1)
    only = set(index_list(config, "mlp_only_layers"))
    return [DENSE if block in only or step == 0 or (block + 1) % step else MOE for block in range(count)]


def sparse_step(config: Config, kept: Sequence[int], count: int) -> Config:
    """Write the pattern of experts out: step 1, and the dense blocks by their new indices."""
    kinds = sparse_mlps(config, count)
    return {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [new for new, block in enumerate(kept) if kinds[block] == DENSE],
    }


def dense_prefix(default: int) -> Kinds:
    """Make DeepSeek's MLPs: the first `first_k_dense_replace` blocks are dense."""

    def kinds(config: Config, count: int) -> list[str]:
        first = whole(config, "first_k_dense_replace", default)
        return [DENSE if block < first else MOE for block in range(count)]

    return kinds


def count_dense_prefix(default: int) -> Rule:
    """Make DeepSeek's rule: count the dense blocks again."""

    def rule(config: Config, kept: Sequence[int], count: int) -> Config:
        if config.get("moe_layer_freq", 1) not in (1, None):
            raise UserError(
                f"config field 'moe_layer_freq' ({config['moe_layer_freq']!r}) ties a block's kind to its index: "
                "dropping blocks would change the kept ones; not supported"
            )
        first = whole(config, "first_k_dense_replace", default)
        return {"first_k_dense_replace": sum(1 for block in kept if block < first)}

    return rule


def mtp_blocks(config: Config) -> int:
    """Return how many blocks of multi-token prediction are stored after the last one, as if they were of the stack."""
    return whole(config, "num_nextn_predict_layers", 0)


# Rotary embeddings left out in some blocks


def rope_flags(config: Config, count: int) -> list[int]:
    """Return 1 for each block that uses rotary embeddings, else 0 (SmolLM3, Llama 4)."""
    given = block_list(config, "no_rope_layers", count) if config.get("no_rope_layers") else None
    interval = whole(config, "no_rope_layer_interval", 4)
    if given is None and interval < 1:
        raise UserError(f"config field 'no_rope_layer_interval' must be at least 1, got {interval}")
    return given or [int((block + 1) % interval != 0) for block in range(count)]


def slice_rope_flags(config: Config, kept: Sequence[int], count: int) -> Config:
    """Write out which kept blocks use rotary embeddings."""
    flags = rope_flags(config, count)
    return {"no_rope_layers": [flags[block] for block in kept]}


def smollm3_kinds(config: Config, count: int) -> list[str]:
    """Return the kinds of SmolLM3: with a window, blocks without rotary embeddings slide."""
    slides = bool(config.get("use_sliding_window")) and config.get("sliding_window") is not None
    return [SLIDING if slides and not flag else FULL for flag in rope_flags(config, count)]


def llama4_kinds(config: Config, count: int) -> list[str]:
    """Return the kinds of Llama 4: blocks with rotary embeddings attend in chunks."""
    return [CHUNKED if flag else FULL for flag in rope_flags(config, count)]


def llama4_experts(config: Config, kept: Sequence[int], count: int) -> Config:
    """Renumber Llama 4's experts where every block has them (Scout). Maverick has them by the index: refused."""
    step = whole(config, "interleave_moe_layer_step", 1)
    if step != 1:
        raise UserError(
            f"config field 'interleave_moe_layer_step' ({step}) ties a block's kind to its index: dropping blocks "
            "would change the kept ones; not supported"
        )
    if config.get("moe_layers") is None:
        return {}
    experts = set(index_list(config, "moe_layers"))
    if experts != set(range(count)):
        raise UserError("config field 'moe_layers' does not name every block, which vLLM does not read; not supported")
    return {"moe_layers": list(range(len(kept)))}


# Kinds told by something else than their field


def parity(config: Config, kept: Sequence[int], count: int) -> Config:
    """Refuse for GPT-OSS what transformers and vLLM read differently: `layer_types` here, there even blocks slide."""
    kinds = block_list(config, "layer_types", count) or every(2, SLIDING)(config, count)
    for new, block in enumerate(kept):
        if (kinds[block] == SLIDING) != (new % 2 == 0):
            raise UserError(
                f"gpt_oss: block {block} ({kinds[block]}) would become block {new}, and vLLM takes the kind from the "
                "parity of the index; drop blocks so that kinds still alternate, such as pairs of neighbours"
            )
    return {}


def keeps_sliding(config: Config, kept: Sequence[int], count: int) -> Config:
    """Refuse for Exaone 4 to drop every sliding block.

    In vLLM the sliding blocks alone have rotary embeddings, but where none slides all blocks have them.
    """
    kinds = block_list(config, "layer_types", count) or exaone4_kinds(config, count)
    if SLIDING in kinds and not any(kinds[block] == SLIDING for block in kept):
        raise UserError(
            "exaone4: no sliding block would be kept, and vLLM would then apply rotary embeddings in all blocks; "
            "keep one"
        )
    return {}


VLLM_ONLY = (parity, keeps_sliding)  # transformers reads the kinds from their field


def exaone4_kinds(config: Config, count: int) -> list[str]:
    """Return the kinds of Exaone 4: every `sliding_window_pattern`-th block sees everything, the rest slide."""
    pattern = config.get("sliding_window_pattern", 4)
    if config.get("sliding_window", 4096) is None:
        return [FULL] * count
    if not isinstance(pattern, int) or isinstance(pattern, bool) or pattern < 1:
        raise UserError(f"config field 'sliding_window_pattern' ({pattern!r}) needs 'layer_types' beside it")
    return every(pattern, SLIDING)(config, count)


def inverse_layer_scale(config: Config, kept: Sequence[int], count: int) -> Config:
    """Refuse GPT-2 with attention scaled by 1 / (index + 1), as Mistral's and some others have it."""
    if config.get("scale_attn_by_inverse_layer_idx"):
        raise UserError(
            "config field 'scale_attn_by_inverse_layer_idx' ties a block's attention to its index: dropping blocks "
            "would change the kept ones; not supported"
        )
    return {}


# NemotronH: the pattern, not the count, decides


def nemotron_count(config: Config) -> object:
    """Return the number of blocks that NemotronH's pattern has; 4 by default."""
    kinds = _nemotron_field(config)
    return 4 if kinds is None else len(kinds)


def nemotron_kinds(config: Config, count: int) -> list[str]:
    """Return the kinds of NemotronH, as its pattern has them."""
    kinds = _nemotron_field(config)
    return [LINEAR, MOE, FULL, DENSE] if kinds is None else kinds


def _nemotron_field(config: Config) -> list[str] | None:
    for field in ("layers_block_type", "layer_types"):
        values = config.get(field)
        if values is not None:
            if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                raise UserError(f"config field {field!r} must list kinds of blocks, got {values!r}")
            return values
    pattern = config.get("hybrid_override_pattern")
    if pattern is None:
        return None
    if not isinstance(pattern, str) or not set(pattern) <= PATTERN.keys():
        raise UserError(f"config field 'hybrid_override_pattern' must consist of {''.join(PATTERN)}, got {pattern!r}")
    return [PATTERN[letter] for letter in pattern]


def nemotron_pattern(config: Config, kept: Sequence[int], count: int) -> Config:
    """Keep the letters of NemotronH's pattern that belong to the kept blocks."""
    if isinstance(config.get("intermediate_size"), list):
        raise UserError("config field 'intermediate_size' is a list, one for each MLP by its order; not supported")
    fields: Config = {}
    pattern = config.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        if len(pattern) != count:
            raise UserError(f"config field 'hybrid_override_pattern' must have {count} letters, got {pattern!r}")
        fields["hybrid_override_pattern"] = "".join(pattern[block] for block in kept)
    if config.get("num_hidden_layers") is not None:
        fields["num_hidden_layers"] = len(kept)
    return fields
