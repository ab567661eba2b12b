"""Families of models, as data: where the blocks live and what a config says about each of them.

One table, `FAMILIES`, and three functions that read it: `family_of` (or a refusal), `reduce_config` (the config of the
kept blocks) and `renamed` (a tensor's name in the pruned model). The checkpoint writer and the vLLM loader both call
these; there is no second table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mi_prun.errors import UserError

Config = dict[str, Any]
MAX_BLOCKS = 10_000  # a config that lies may not make us allocate
FULL, SLIDING = "full_attention", "sliding_attention"
NOT_PER_BLOCK = frozenset(
    {"architectures", "bos_token_id", "eos_token_id", "pad_token_id", "keys_to_ignore_at_inference"}
)
Rule = Callable[[Config, Sequence[int]], Config]
"""A rule takes the dense config and the kept blocks (ascending) and returns the fields to set, or raises UserError."""


def _window_layers(config: Config, kept: Sequence[int]) -> Config:
    """Qwen2, Qwen3: with `use_sliding_window`, blocks from `max_window_layers` on slide.

    transformers reads `layer_types` and derives it from `max_window_layers` (28 where absent) only where there is no
    such list. vLLM does not read the list: it applies the window to every block, and refuses a mixture of kinds unless
    `max_window_layers` equals the number of blocks. So the kept blocks of the prefix are counted, which keeps an
    equality an equality, and where no sliding block is left the window is switched off for vLLM's sake.
    """
    fields: Config = {}
    if config.get("max_window_layers") is not None or config.get("use_sliding_window"):
        fields["max_window_layers"] = sum(1 for block in kept if block < _max_window_layers(config))
    kinds = _window_kinds(config)
    if SLIDING in kinds and not any(kinds[block] == SLIDING for block in kept):
        fields["use_sliding_window"] = False
    return fields


def _max_window_layers(config: Config) -> int:
    count = config.get("max_window_layers")
    return count if isinstance(count, int) else 28


def _window_kinds(config: Config) -> list[str]:
    count = int(config["num_hidden_layers"])
    if config.get("layer_types"):
        return list(config["layer_types"])
    first = (
        _max_window_layers(config) if config.get("use_sliding_window") and config.get("sliding_window", 4096) else count
    )
    return [SLIDING if block >= first else FULL for block in range(count)]


def _uniform_kinds(config: Config) -> list[str]:
    return list(config.get("layer_types") or [FULL] * int(config["num_hidden_layers"]))


@dataclass(frozen=True)
class Family:
    """What the blocks of one `model_type` are called, and what its config says of them.

    block_prefix: tensors of block i are named `{block_prefix}.{i}.`; the match is anchored at the start of the name.
    slice_fields: lists with one entry a block; the kept entries stay.
    rules: fields that need more than slicing.
    kinds: the kind of each block, for people to read.
    """

    model_type: str
    architecture: str
    block_prefix: str = "model.layers"
    slice_fields: tuple[str, ...] = ("layer_types",)
    rules: tuple[Rule, ...] = ()
    kinds: Callable[[Config], list[str]] = _uniform_kinds
    count_field: str = "num_hidden_layers"


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM"),
        Family("mistral", "MistralForCausalLM"),
        Family("qwen2", "Qwen2ForCausalLM", rules=(_window_layers,), kinds=_window_kinds),
        Family("qwen3", "Qwen3ForCausalLM", rules=(_window_layers,), kinds=_window_kinds),
    )
}


def family_of(config: Config) -> Family:
    """The family of a config, or a refusal in one line."""
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UserError(f"model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}")
    architectures = config.get("architectures")
    if architectures is not None and architectures != [family.architecture]:
        raise UserError(
            f"architectures {architectures!r} of a {model_type} config is not supported; only {family.architecture} is"
        )
    _check_remote_code(config, family)
    return family


def block_kinds(config: Config) -> list[str]:
    """The kind of each block, e.g. `full_attention` or `sliding_attention`."""
    return family_of(config).kinds(config)


def _check_remote_code(config: Config, family: Family) -> None:
    """Custom code is not copied. It is not needed where it is the family's own class, now a part of transformers."""
    auto_map = config.get("auto_map")
    if not auto_map:
        return
    model = auto_map.get("AutoModelForCausalLM") if isinstance(auto_map, dict) else None
    if not isinstance(model, str) or model.rpartition(".")[2] != family.architecture:
        raise UserError(
            f"config field 'auto_map' names remote code ({model or auto_map!r}) that is not transformers' own "
            f"{family.architecture}; not supported"
        )


def num_blocks(config: Config) -> int:
    """L, the number of blocks."""
    field = family_of(config).count_field
    count = config.get(field)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"config field {field!r} must be a whole number of at least 1, got {count!r}")
    if count > MAX_BLOCKS:
        raise UserError(f"config field {field!r} must be at most {MAX_BLOCKS}, got {count}")
    return count


def reduce_config(config: Config, kept: Sequence[int]) -> Config:
    """The config of the model that has only the blocks `kept` (ascending, 0-based). The dense config is not changed.

    Raises UserError where a field is per block and not known: writing it unchanged would shift the kinds of blocks.
    """
    family = family_of(config)
    count = num_blocks(config)
    check_kept(kept, count)
    reduced = {field: value for field, value in config.items() if field != "auto_map"}
    reduced[family.count_field] = len(kept)
    for field in family.slice_fields:
        values = config.get(field)
        if values is None:
            continue
        if not isinstance(values, list) or len(values) != count:
            raise UserError(f"config field {field!r} must list {count} blocks, got {values!r}")
        reduced[field] = [values[block] for block in kept]
    for rule in family.rules:
        reduced.update(rule(config, kept))
    if len(kept) < count:
        _refuse_unknown_lists(config, family, count)
    return reduced


def _refuse_unknown_lists(config: Config, family: Family, count: int) -> None:
    for field, value in config.items():
        if isinstance(value, list) and len(value) == count and field not in {*family.slice_fields, *NOT_PER_BLOCK}:
            raise UserError(
                f"config field {field!r} lists {count} values, as many as there are blocks, and is not known for "
                f"{family.model_type}; not supported"
            )


def check_kept(kept: Sequence[int], count: int) -> None:
    """Refuse a list of kept blocks that is empty, not ascending, or out of range."""
    if not kept:
        raise UserError("no block would be kept")
    if list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= count:
        raise UserError(f"kept blocks {list(kept)} must be ascending, distinct and within 0..{count - 1}")


def block_of(name: str, family: Family) -> int | None:
    """The block a tensor belongs to, or None where it belongs to none."""
    match = re.match(re.escape(family.block_prefix) + r"\.(0|[1-9][0-9]{0,5})\.", name)
    return int(match[1]) if match else None


def renamed(name: str, family: Family, kept: Sequence[int]) -> str | None:
    """A tensor's name in the pruned model; None where its block is dropped.

    >>> renamed("model.layers.7.mlp.up_proj.weight", FAMILIES["llama"], (0, 7))
    'model.layers.1.mlp.up_proj.weight'
    """
    block = block_of(name, family)
    if block is None:
        return name
    if block not in kept:
        return None
    prefix = f"{family.block_prefix}.{block}."
    return f"{family.block_prefix}.{kept.index(block)}.{name[len(prefix) :]}"
