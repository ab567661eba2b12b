"""The type of a row in the table of families (`families.py`), and readers of config fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mi_prun.errors import UserError

Config = dict[str, Any]
Rule = Callable[[Config, Sequence[int], int], Config]
"""A rule takes the dense config, the kept blocks (ascending) and the number of blocks of the dense model, and returns
the fields to set, or raises UserError. It is not called where every block is kept."""
Kinds = Callable[[Config, int], list[str]]
"""The kind of each block, from the dense config and its number of blocks."""


@dataclass(frozen=True)
class Family:
    """What the blocks of one `model_type` are called, and what its config says of them.

    architecture: the class, in transformers and vLLM, of the causal LM.
    block_prefix: the blocks' place in that class; block i and its tensors are named `{block_prefix}.{i}`. Names are
    matched from their start, so that the layers of a vision or audio tower are never touched.
    tensor_prefixes: other prefixes that checkpoints of this family use.
    text: the model_type of the family that the nested `text_config` follows; all that follows here is then unused.
    count_fields: the fields that hold the number of blocks; the first one present counts.
    count: gives the number of blocks where no field holds it.
    slice_fields: lists with one entry a block; the kept entries stay.
    attention_kinds: what the model derives where `layer_types` is absent. The kept kinds are then written in full, as
    the derived pattern would shift. None where every block is alike.
    mlp_kinds: kinds of the MLPs, e.g. dense or mixture of experts, for people to read.
    rules: fields that need more than slicing.
    removed_fields: a pattern or an interval that `slice_fields` replace.
    known_fields: fields that look as if they were tied to single blocks (see `field_guard`): they are handled by a
    rule, or need nothing.
    returns_tuple: a block of transformers' class returns its state in a tuple.
    learned_positions: each position has an embedding of its own, so there is none beyond the last.
    extra_blocks: how many blocks are stored after the last one that are no part of the stack (multi-token prediction).
    """

    model_type: str
    architecture: str
    block_prefix: str = "model.layers"
    tensor_prefixes: tuple[str, ...] = ()
    text: str | None = None
    count_fields: tuple[str, ...] = ("num_hidden_layers",)
    count: Callable[[Config], object] | None = None
    slice_fields: tuple[str, ...] = ("layer_types",)
    attention_kinds: Kinds | None = None
    mlp_kinds: Kinds | None = None
    rules: tuple[Rule, ...] = ()
    removed_fields: tuple[str, ...] = ()
    known_fields: tuple[str, ...] = ()
    extra_blocks: Callable[[Config], int] | None = None
    returns_tuple: bool = False
    learned_positions: bool = False

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Every prefix that the names of a block's tensors may have."""
        return (self.block_prefix, *self.tensor_prefixes)


def whole(config: Config, field: str, default: int) -> int:
    """Return a field that must be a whole number of at least 0; `default` where it is absent or null."""
    value = config.get(field)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f"config field {field!r} must be a whole number of at least 0, got {value!r}")
    return value


def block_list(config: Config, field: str, count: int) -> list[Any] | None:
    """Return a field that must list one value a block; None where it is absent or null."""
    values = config.get(field)
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != count:
        raise UserError(f"config field {field!r} must list {count} blocks, got {values!r}")
    return values


def index_list(config: Config, field: str) -> list[int]:
    """Return a field that must list block indices; an empty list where it is absent or null."""
    values = config.get(field)
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise UserError(f"config field {field!r} must list block indices, got {values!r}")
    return values
