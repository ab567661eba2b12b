"""Fields that may be tied to single blocks are refused unless the family knows them."""

from __future__ import annotations

from typing import Any

import pytest

from mi_prun.architecture.families import FAMILIES
from mi_prun.architecture.field_guard import HARMLESS, NOT_PER_BLOCK, check_fields
from mi_prun.errors import UserError

LLAMA = FAMILIES["llama"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("widths", [1, 2, 3, 4], "lists 4 values, as many as there are blocks"),
        ("nested", {"deep": [[1, 2, 3, 4]]}, "lists 4 values, as many as there are blocks"),
        ("gates", {"0": 0.5, "3": 0.1}, "has numbers for keys"),
        ("nested", {"deep": {"2": 1}}, "has numbers for keys"),
        ("attn_layer_period", 2, "may depend on a block's index"),
        ("moe_layer_freq", 2, "may depend on a block's index"),
        ("block_pattern", "MMA", "may depend on a block's index"),
        ("layer_idx_scale", True, "may depend on a block's index"),
    ],
)
def test_what_may_be_per_block_is_refused(field: str, value: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"config field '{field}' .*{said}.* --assume-uniform"):
        check_fields({"hidden_size": 8, field: value}, LLAMA, 4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 4),
        ("widths", [1, 2, 3]),
        ("moe_layer_freq", None),
        ("moe_layer_freq", 0),
        ("layer_scales", []),
        ("num_hidden_layers", 4),
        ("layer_types", ["full_attention"] * 4),
        ("players", 3),
        ("frequency", False),
        ("id2label", {"0": "a"}),
        ("architectures", ["a", "b", "c", "d"]),
    ],
)
def test_what_says_nothing_of_a_block_passes(field: str, value: Any) -> None:
    check_fields({field: value}, LLAMA, 4)


def test_what_a_family_knows_passes() -> None:
    field = {"first_k_dense_replace": 2, "moe_layer_freq": 1}
    check_fields(field, FAMILIES["deepseek_v3"], 4)
    with pytest.raises(UserError, match="moe_layer_freq"):
        check_fields(field, LLAMA, 4)


def test_the_lists_of_exceptions_are_lower_case_names() -> None:
    assert all(name == name.lower().strip() for name in HARMLESS | NOT_PER_BLOCK)
