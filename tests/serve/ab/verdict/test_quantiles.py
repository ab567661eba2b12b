"""Quantiles within 1 %, of whatever comes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.ab.verdict.quantiles import ACCURACY, Quantiles


@given(st.lists(st.floats(1e-5, 1e4), min_size=1, max_size=60), st.sampled_from([0.5, 0.99]))
def test_a_quantile_is_near_a_value_of_that_rank(values: list[float], share: float) -> None:
    quantiles, part = Quantiles(), Quantiles()
    for value in values:
        quantiles.add([value])
    part.merge(quantiles)
    exact = next(value for rank, value in enumerate(sorted(values), 1) if rank >= share * len(values))
    assert quantiles.quantile(share) == pytest.approx(exact, rel=1.01 * ACCURACY)
    assert part.quantile(share) == quantiles.quantile(share)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-4, 1e6), min_size=1, max_size=300), st.floats(0.01, 0.99))
def test_quantiles_are_within_1_percent(values: list[float], share: float) -> None:
    whole, single = Quantiles(), Quantiles()
    whole.add(values, 3.0)
    for value in values:
        single.add([value], 1.0)
    true = float(np.quantile(values, share, method="inverted_cdf"))
    for quantiles in (whole, single, Quantiles.restored(whole.state())):
        assert quantiles.quantile(share) == pytest.approx(true, rel=1.01 * ACCURACY)


def test_quantiles_of_nothing_and_of_zero() -> None:
    quantiles = Quantiles()
    assert quantiles.quantile(0.5) is None
    quantiles.add([], 1.0)
    assert quantiles.quantile(0.5) is None
    quantiles.add([0.0], 1.0)
    assert quantiles.quantile(0.5) == 0.0
    quantiles.add([1e30, float("inf")], 1.0)
    assert quantiles.quantile(0.99) == pytest.approx(1e9, rel=0.03)
