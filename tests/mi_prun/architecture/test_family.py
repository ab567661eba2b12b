"""Readers of config fields: what is absent or null is the default, what is wrong is one line with the value."""

from __future__ import annotations

from typing import Any

import pytest

from mi_prun.architecture.families import FAMILIES
from mi_prun.architecture.family import block_list, index_list, whole
from mi_prun.errors import UserError

NO_NUMBERS = [-1, 1.0, True, "3", [3]]


@pytest.mark.parametrize("config", [{}, {"field": None}])
def test_what_is_absent_or_null_is_the_default(config: dict[str, Any]) -> None:
    assert whole(config, "field", 7) == 7
    assert block_list(config, "field", 2) is None
    assert index_list(config, "field") == []


def test_what_is_there_is_given() -> None:
    assert whole({"field": 0}, "field", 7) == 0
    assert block_list({"field": ["a", "b"]}, "field", 2) == ["a", "b"]
    assert index_list({"field": [0, 3]}, "field") == [0, 3]


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_no_whole_number(value: Any) -> None:
    with pytest.raises(UserError, match=r"config field 'field' must be a whole number of at least 0, got "):
        whole({"field": value}, "field", 7)


@pytest.mark.parametrize("value", [["a"], ["a", "b", "c"], "ab", {"a": 1, "b": 2}, 2])
def test_no_list_of_the_blocks(value: Any) -> None:
    with pytest.raises(UserError, match="config field 'field' must list 2 blocks, got "):
        block_list({"field": value}, "field", 2)


@pytest.mark.parametrize("value", [["a"], [True], [1.0], "12", 1, {"1": 2}])
def test_no_list_of_indices(value: Any) -> None:
    with pytest.raises(UserError, match="config field 'field' must list block indices, got "):
        index_list({"field": value}, "field")


def test_every_family_says_where_its_blocks_are() -> None:
    for model_type, family in FAMILIES.items():
        assert family.model_type == model_type
        assert family.prefixes[0] == family.block_prefix
        assert all(family.prefixes)
        assert family.text is None or family.text in FAMILIES
