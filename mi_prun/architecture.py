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
Rule = Callable[[Config, Sequence[int]], Config]
"""A rule takes the dense config and the kept blocks (ascending) and returns the fields to set, or raises UserError."""


@dataclass(frozen=True)
class Family:
    """What the blocks of one `model_type` are called, and what its config says of them.

    block_prefix: tensors of block i are named `{block_prefix}.{i}.`; the match is anchored at the start of the name.
    slice_fields: lists with one entry a block; the kept entries stay.
    rules: fields that need more than slicing.
    safe_fields: fields known to say nothing of a single block, though their value may equal the number of blocks.
    """

    model_type: str
    architecture: str
    block_prefix: str = "model.layers"
    slice_fields: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    count_field: str = "num_hidden_layers"


def _window_layers(config: Config, kept: Sequence[int]) -> Config:
    """Qwen2, Qwen3: blocks from `max_window_layers` on slide, if `use_sliding_window`; `layer_types` says the same.

    vLLM refuses a mixture of kinds unless `max_window_layers` is the number of blocks, and transformers derives
    `layer_types` from it only where that list is absent. So: count the kept blocks of the prefix.
    """
    if config.get("max_window_layers") is None:
        return {}
    return {"max_window_layers": sum(1 for block in kept if block < config["max_window_layers"])}


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM"),
        Family("mistral", "MistralForCausalLM"),
        Family("qwen2", "Qwen2ForCausalLM", slice_fields=("layer_types",), rules=(_window_layers,)),
        Family("qwen3", "Qwen3ForCausalLM", slice_fields=("layer_types",), rules=(_window_layers,)),
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
    return family


def num_blocks(config: Config) -> int:
    """L, the number of blocks."""
    field = family_of(config).count_field
    count = config.get(field)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"config field {field!r} must be a whole number of at least 1, got {count!r}")
    return count


def reduce_config(config: Config, kept: Sequence[int]) -> Config:
    """The config of the model that has only the blocks `kept` (ascending, 0-based). The dense config is not changed.

    Raises UserError where a field is per block and not known: writing it unchanged would shift the kinds of blocks.
    """
    family = family_of(config)
    count = num_blocks(config)
    check_kept(kept, count)
    reduced = dict(config)
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
        if isinstance(value, list) and len(value) == count and field not in family.slice_fields:
            # One architecture in a list of a one-block model is not per block.
            if field == "architectures":
                continue
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
