"""How long a sweep will take, worked out in the head on machines of chosen speeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.models.measured_model import MeasuredModel, MeasuredModels
from bench.models.roofline import Work
from bench.models.weights import Weights
from bench.records.schema import PointRecord
from bench.sweeps.estimate import (
    STEP_SECONDS,
    MachineSpeed,
    choosing_seconds,
    machine_speed,
    round_seconds,
    sweep_seconds,
)
from bench.sweeps.sweep import prepare_shape, prepare_sweep
from bench.sweeps.sweep_settings import SweepSettings
from mi_prun.settings import AnalyzeSettings

Point = Callable[..., PointRecord]


def test_a_models_choosing_takes_longer_the_more_there_is_to_compare(
    reference: Path, small_sweep: SweepSettings
) -> None:
    def seconds(candidates: int, **changed: Any) -> float:
        settings = replace(small_sweep, **changed)
        return choosing_seconds(models, [candidates] * 2, settings, MachineSpeed(1e12, 1e10))

    models = prepare_sweep(str(reference), small_sweep).models
    text = {"analyze": AnalyzeSettings(sources=("wikitext",), scoring_tokens=1000)}
    # Passes over 1,000 tokens to score, 2,000 held out, 16,000 to rank; 2 FLOPs for each of 9 M weights.
    passes = 1000 + 2000 * (1 + 0.75 + 0.5)
    assert seconds(0, **text) == pytest.approx(passes * 2 * 9.3e6 / 1e10, rel=0.25)
    passes += 16000 * sum(5 + share * 24 / 32 for share in (0.75, 0.5))
    assert seconds(24, **text) == pytest.approx(passes * 2 * 9.3e6 / 1e10, rel=0.25)
    assert seconds(0, **text, quality_text="x") > seconds(0, **text) + 8000 * 2 * 9.3e6 / 1e10
    sampled = {"analyze": AnalyzeSettings(sources=("self",), scoring_tokens=1000)}
    assert seconds(0, **sampled) > seconds(0, **text) + 7000 / 16 * 0.004


def test_time_grows_with_loads_rounds_and_starts(tmp_path: Path, small_sweep: SweepSettings) -> None:
    prepared = prepare_shape(
        "qwen3-0.6b", tmp_path, SweepSettings(ratios=small_sweep.ratios, measure=small_sweep.measure)
    )
    speed = MachineSpeed(bytes_per_s=1e10, flops_per_s=1e11)
    models, loads = prepared.models.all, prepared.closed
    once = sweep_seconds(models, loads, 1, "together", speed)
    assert once > 3 * 45
    assert sweep_seconds(models, loads[:1], 1, "together", speed) < once
    assert sweep_seconds(models, loads, 2, "alone", speed) == pytest.approx(2 * once)
    assert sweep_seconds(models, loads, 2, "together", speed) == pytest.approx(2 * once - 3 * 45)


def test_a_step_takes_as_long_as_its_bytes_or_its_flops() -> None:
    speed = MachineSpeed(bytes_per_s=100, flops_per_s=1000)
    assert speed.seconds(Work(num_bytes=50, flops=100)) == STEP_SECONDS + 0.5
    assert speed.seconds(Work(num_bytes=50, flops=900)) == STEP_SECONDS + 0.9
    assert speed.seconds(Work(num_bytes=0, flops=0)) == STEP_SECONDS


def test_this_machine_has_a_speed() -> None:
    speed = machine_speed()
    assert 1e7 < speed.bytes_per_s < 1e14
    assert 1e7 < speed.flops_per_s < 1e16


def test_a_closed_loop_is_turns_of_prompts_and_steps(point: Point, toy_weights: Weights, quick: MachineSpeed) -> None:
    """32 requests, four in flight: eight turns of four prompts, one after another, and 64 steps of the four."""
    model, load = MeasuredModel(point().arm, 886, toy_weights), point().load
    assert round_seconds(model, load, quick) == pytest.approx(8 * (4 + 64) * STEP_SECONDS)
    alone = load.model_copy(update={"concurrency": 1})
    assert round_seconds(model, alone, quick) == pytest.approx(32 * (1 + 64) * STEP_SECONDS)
    # A step of decode reads 80 + 6 + 4 x 200 bytes, four rows, and four caches of 160 tokens and one in four blocks.
    slow = MachineSpeed(bytes_per_s=1.0, flops_per_s=1e30)
    decoded = 80 + 6 + 4 * 8 + 4 * (200 + 4 * 161 * 8)
    prefilled = 80 + 6 + 128 * 8 + 4 * (200 + 128 * 8)
    assert round_seconds(model, load, slow) == pytest.approx(8 * (4 * prefilled + 64 * decoded), rel=1e-4)


def test_an_open_loop_lasts_until_its_requests_have_come(
    point: Point, toy_weights: Weights, quick: MachineSpeed
) -> None:
    opened = point().load.model_copy(update={"concurrency": None, "rate_per_s": 0.5})
    for weights in (toy_weights, None):
        assert round_seconds(MeasuredModel(point().arm, 886, weights), opened, quick) == 64


def test_of_a_family_that_is_not_known_every_token_reads_all_weights(point: Point) -> None:
    speed = MachineSpeed(bytes_per_s=886, flops_per_s=1)
    seconds = round_seconds(MeasuredModel(point().arm, 886, None), point().load, speed)
    assert seconds == pytest.approx(32 * 64 * (1 + STEP_SECONDS))


def test_without_models_or_loads_only_starts_take_time(point: Point, toy_weights: Weights, quick: MachineSpeed) -> None:
    model = MeasuredModel(point().arm, 886, toy_weights)
    assert sweep_seconds([], [point().load], 3, "together", quick) == 0
    assert sweep_seconds([model, model], [], 3, "together", quick) == 2 * 45
    assert sweep_seconds([model, model], [], 3, "alone", quick) == 6 * 45


def test_what_choosing_takes_is_not_guessed_where_the_model_is_not_known(
    point: Point, small_sweep: SweepSettings, quick: MachineSpeed
) -> None:
    models = MeasuredModels(dense=point().dense, all=(MeasuredModel(point().arm, 886, None),), config={})
    assert choosing_seconds(models, [], small_sweep, quick) == 0
