"""A row of a comparison: what follows from its fields, and rows of older releases."""

from __future__ import annotations

from typing import Any

import pytest

from mi_prun.comparison.comparison_row import COMPUTED, MethodSpec, Row

FIELDS: dict[str, Any] = {
    "analysis": "f" * 64,
    "method": "hybrid",
    "rerank": None,
    "seed": 3,
    "num_blocks": 12,
    "dropped": (2, 5, 7),
    "candidates": 24,
    "selection_passes": 3.25,
    "analysis_passes": 0.5,
    "seconds": 1.5,
    "dense_perplexity": 20.0,
    "perplexity": 30.0,
    "kl_nats_per_token": 0.4,
    "objective_nats": 2.0,
    "objective_gap_nats": 0.0,
}


def test_what_follows_from_the_fields() -> None:
    row = Row(**FIELDS)
    assert row.passes == 3.75
    assert row.block_ratio == 0.25
    assert row.key == ("f" * 64, "hybrid", 3, 3)
    assert {name: row.columns()[name] for name in COMPUTED} == {"block_ratio": 0.25, "passes": 3.75}


@pytest.mark.parametrize(("rerank", "label"), [(None, "hybrid"), (0, "hybrid:0"), (24, "hybrid:24")])
def test_a_method_is_told_from_the_same_with_another_number_of_sets(rerank: int | None, label: str) -> None:
    assert MethodSpec(name="hybrid", rerank=rerank).label == label
    assert Row(**(FIELDS | {"rerank": rerank})).label == label


def test_a_row_is_read_back_as_it_was() -> None:
    row = Row(**FIELDS, parameter_ratio=0.2, tool_version="1.0")
    assert Row.model_validate_json(row.model_dump_json(), strict=True) == row


def test_a_row_of_an_older_release_lacks_two_fields() -> None:
    row = Row(**FIELDS)
    assert (row.parameter_ratio, row.tool_version) == (None, None)
