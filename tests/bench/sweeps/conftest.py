"""What tests of sweeps share: settings of a small sweep, and a machine that takes no time for bytes and FLOPs."""

from __future__ import annotations

import pytest

from bench.settings import MeasureSettings, WorkloadSettings
from bench.sweeps.estimate import MachineSpeed
from bench.sweeps.sweep_settings import SweepSettings
from mi_prun.settings import AnalyzeSettings


@pytest.fixture
def small_sweep() -> SweepSettings:
    """Three ratios by `bi`, two presets, two arrival rates."""
    return SweepSettings(
        ratios="0,.25,.5",
        methods="bi:0",
        analyze=AnalyzeSettings(scoring_tokens=64, ranking_tokens=64, held_out_tokens=64, window_tokens=32),
        measure=MeasureSettings(
            WorkloadSettings(presets=("balanced", "decode-heavy"), rates=(0.5, 2.0)), alive="alone"
        ),
    )


@pytest.fixture
def quick() -> MachineSpeed:
    """Only what a step costs beside bytes and FLOPs."""
    return MachineSpeed(bytes_per_s=1e30, flops_per_s=1e30)
