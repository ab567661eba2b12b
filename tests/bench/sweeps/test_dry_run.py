"""What a sweep will be, said before it is made: nothing is written, started or measured but this machine's speed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.engines import memory_check
from bench.engines.memory_check import GIB
from bench.load.trace import Request
from bench.settings import MeasureSettings, WorkloadSettings
from bench.sweeps import dry_run
from bench.sweeps.dry_run import describe, expected_open_workloads
from bench.sweeps.estimate import STEP_SECONDS, MachineSpeed, round_seconds
from bench.sweeps.measure import Prepared
from bench.sweeps.sweep import prepare_shape, prepare_sweep
from bench.sweeps.sweep_settings import SweepSettings
from bench.tasks.task_settings import TaskSettings
from bench.tasks.task_table import parse_tasks


def prompts_from(folder: Path, settings: MeasureSettings) -> MeasureSettings:
    """The same, with prompts that are pieces of a text, as a draft needs them."""
    path = folder / "text.txt"
    path.write_text("Once upon a time a cat sat on a mat and looked at the rain. " * 20_000)
    return replace(settings, loads=replace(settings.loads, text=str(path)))


def test_a_sweep_is_described_before_it_is_made(
    reference: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: Any,
    small_sweep: SweepSettings,
) -> None:
    monkeypatch.chdir(tmp_path)
    measure = prompts_from(tmp_path_factory.mktemp("text"), small_sweep.measure)
    prepared = prepare_sweep(str(reference), replace(small_sweep, draft=True, measure=measure))
    assert [model.arm.label for model in prepared.models.all] == [
        "dense",
        "bi 25.0%",
        "bi 50.0%",
        "draft bi 25.0%",
        "draft bi 50.0%",
    ]
    lines = list(describe(prepared, small_sweep))
    assert "5 models, 10 loads, 3 rounds, engines alone" in lines[0]
    assert any("9 of 12 blocks, weights 13.8 MiB" in line for line in lines)
    assert any(
        line.startswith("  decode-heavy, 2 requests/s: 256 requests a round, 64 tokens in, 256 out") for line in lines
    )
    assert re.fullmatch(r"about \d+ minutes? for analysis, plans and quality, where they are not there yet", lines[-3])
    assert " minutes under load and starting" in lines[-2]
    said = json.loads(lines[-1])
    assert (said["models"], said["loads"]) == (5, 10)
    assert said["about_s"] > 0
    assert not any("tasks" in line for line in lines)
    asked = TaskSettings(tuple(parse_tasks("boolq,piqa")), Path("items"), ("hellaswag.jsonl",), limit=50)
    lines = list(describe(prepared, replace(small_sweep, tasks=asked)))
    assert "  tasks, the first 50 items of each: boolq, piqa, by 3 models in turn" in lines  # no draft
    assert "  left out, as items lacks them: hellaswag.jsonl" in lines
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_sweep: SweepSettings, quick: MachineSpeed
) -> Callable[..., Prepared]:
    """`shape(**fields of the loads)`: a sweep of qwen3-0.6b on a machine of 99 GiB that does a step in no time."""
    memory = type("Memory", (), {"available": 99 * GIB})
    monkeypatch.setattr(memory_check.psutil, "virtual_memory", lambda: memory)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setattr(dry_run, "machine_speed", lambda: quick)

    def make(**fields: Any) -> Prepared:
        loads = replace(WorkloadSettings(concurrency=(2,), prompts=8), **fields)
        settings = SweepSettings(ratios=small_sweep.ratios, measure=MeasureSettings(loads))
        return prepare_shape("qwen3-0.6b", tmp_path, settings)

    return make


def test_a_shape_by_hand(shape: Callable[..., Prepared], small_sweep: SweepSettings) -> None:
    """28 blocks, of which a quarter and a half go; 596,049,920 parameters of two bytes."""
    prepared = shape(rounds=1)
    lines = list(describe(prepared, small_sweep))
    all_weights = [model.weight_bytes for model in prepared.models.all]
    needed = (sum(all_weights) + 3 * 3.5 * GIB) / GIB  # a KV cache of 2 GiB and processes of 1.5 beside each
    assert (
        lines[0] == f"qwen3-0.6b: 3 models, 1 loads, 1 rounds, engines together ({needed:.1f} GiB for all, 99.0 free)"
    )
    assert lines[1] == "  dense: 28 of 28 blocks, weights 1,136.9 MiB, about 4.6 GiB in all"
    assert lines[2].startswith("  25.0% dropped: 21 of 28 blocks, weights ")
    assert lines[3].startswith("  50.0% dropped: 14 of 28 blocks, weights ")
    assert lines[4] == "  balanced, 2 in flight: 8 requests a round, 128 tokens in, 64 out"
    # Three starts of 45 s; four turns of two prompts and 64 steps, on each model. A shape has no blocks to choose.
    seconds = 3 * 45 + 3 * 4 * (2 + 64) * STEP_SECONDS
    assert len(lines) == 7
    assert lines[5].startswith("about 2 minutes under load and starting, by ")
    assert json.loads(lines[6]) == {"models": 3, "loads": 1, "about_s": round(seconds)}


@pytest.mark.parametrize(("requests", "said"), [(1, True), (0, False)])
def test_a_trace_says_how_many_requests_fit(
    shape: Callable[..., Prepared], requests: int, said: bool, small_sweep: SweepSettings
) -> None:
    prepared = replace(shape(), requests=[Request(20, 5)] * requests)
    assert (f"  trace: {requests} requests fit" in list(describe(prepared, small_sweep))) == said


def test_all_items_of_tasks_that_are_all_there(shape: Callable[..., Prepared], small_sweep: SweepSettings) -> None:
    asked = TaskSettings(tuple(parse_tasks("boolq")))
    lines = list(describe(shape(), replace(small_sweep, tasks=asked)))
    assert "  tasks, all items of each: boolq, by 3 models in turn" in lines
    assert not any("left out" in line for line in lines)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "1 minute"), (89, "1 minute"), (91, "2 minutes"), (3600, "60 minutes")]
)
def test_minutes_are_whole_and_at_least_one(seconds: float, said: str) -> None:
    assert dry_run._minutes(seconds) == said


def test_rates_that_are_given_are_those_of_every_preset(shape: Callable[..., Prepared], quick: MachineSpeed) -> None:
    prepared = shape(presets=("balanced", "decode-heavy"), rates=(0.5, 2.0))
    opened = expected_open_workloads(prepared, quick)
    assert [(load.preset, load.rate_per_s) for load in opened] == [
        ("balanced", 0.5),
        ("balanced", 2.0),
        ("decode-heavy", 0.5),
        ("decode-heavy", 2.0),
    ]
    assert expected_open_workloads(shape(rates=()), quick) == []


def test_rates_that_are_not_are_shares_of_what_the_most_in_flight_give(
    shape: Callable[..., Prepared], quick: MachineSpeed
) -> None:
    prepared = shape(rates="auto", concurrency=(1, 4, 2))
    (most,) = (load for load in prepared.closed if load.concurrency == 4)
    # Two turns of four prompts and 64 steps: 8 requests in 0.544 s.
    full = 8 / round_seconds(prepared.models.all[0], most, quick)
    assert full == pytest.approx(8 / (2 * (4 + 64) * STEP_SECONDS))
    rates = [load.rate_per_s for load in expected_open_workloads(prepared, quick)]
    assert rates == pytest.approx([full * share for share in (0.25, 0.5, 0.75, 1, 2)], rel=0.01)
