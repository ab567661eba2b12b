"""Estimators by their names, and what is refused of their settings."""

from __future__ import annotations

import math

import pytest

from mi_prun.analysis.estimators import ESTIMATORS, make_estimator, projection_for
from mi_prun.errors import UserError
from mi_prun.settings import AnalyzeSettings


def test_each_has_its_name_and_a_noise_of_its_own() -> None:
    assert {name: make_estimator(name).noise for name in ESTIMATORS} == {
        "reading": 1.0,
        "gaussian": 1e-2,
        "ksg": 1e-2,
        "renyi": 1e-2,
    }
    assert all(make_estimator(name).name == name for name in ESTIMATORS)
    assert make_estimator("ksg", 0.5).noise == 0.5
    assert make_estimator(AnalyzeSettings().estimator).whole


@pytest.mark.parametrize("noise", [0.0, -1.0, math.nan, 11.0])
def test_noise_out_of_range_is_refused(noise: float) -> None:
    with pytest.raises(UserError, match="noise must be in"):
        make_estimator("gaussian", noise)


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(UserError, match="reading, gaussian, ksg, renyi, got 'mine'"):
        make_estimator("mine")


def test_one_that_takes_states_whole_refuses_a_projection() -> None:
    assert projection_for(make_estimator("reading"), None) is None
    assert projection_for(make_estimator("renyi"), None) == 16
    assert projection_for(make_estimator("renyi"), 4) == 4
    with pytest.raises(UserError, match=r"projection 4: the estimator reading .*gaussian, ksg, renyi"):
        projection_for(make_estimator("reading"), 4)
    with pytest.raises(UserError, match="projection must be at least 1, got 0"):
        projection_for(make_estimator("gaussian"), 0)
