"""`mi-prun-bench sweep --dry-run`: say what would be measured, whether it fits, and about how long it takes."""

from __future__ import annotations

import json
from collections.abc import Iterator

from bench.engines.memory_check import GIB, room
from bench.load.workloads import open_workloads, rates_for
from bench.records.schema import Workload
from bench.sweeps.choices import sweep_choices
from bench.sweeps.estimate import MachineSpeed, choosing_seconds, machine_speed, round_seconds, sweep_seconds
from bench.sweeps.measure import Prepared
from bench.sweeps.sweep_settings import SweepSettings
from mi_prun.selection.methods import method_named


def describe(prepared: Prepared, settings: SweepSettings) -> Iterator[str]:
    """Yield lines for people; the last one is JSON."""
    models, loads = prepared.models.all, prepared.settings.loads
    speed = machine_speed()
    opened = expected_open_workloads(prepared, speed)
    free, needed = room(models, prepared.settings.serve_flags, prepared.device)
    yield f"{prepared.models.dense.name}: {len(models)} models, {len(prepared.closed) + len(opened)} loads, " + (
        f"{loads.rounds} rounds, engines {prepared.alive} ({sum(needed) / GIB:.1f} GiB for all, {free / GIB:.1f} free)"
    )
    for model, size in zip(models, needed, strict=True):
        blocks = model.arm.blocks
        yield (
            f"  {model.arm.label}: {blocks.num_blocks - len(blocks.dropped)} of {blocks.num_blocks} blocks, weights "
            f"{model.weight_bytes / 2**20:,.1f} MiB, about {size / GIB:.1f} GiB in all"
        )
    for load in (*prepared.closed, *opened):
        yield (
            f"  {load.label}: {load.prompts} requests a round, {load.input_tokens:g} tokens in, "
            f"{load.output_tokens:g} out"
        )
    if prepared.requests:
        yield f"  trace: {len(prepared.requests):,} requests fit"
    yield from _tasks(prepared, settings)
    seconds = sweep_seconds(models, [*prepared.closed, *opened], loads.rounds, prepared.alive, speed)
    seen = f"by {speed.bytes_per_s / 1e9:.0f} GB/s and {speed.flops_per_s / 1e9:.0f} GFLOP/s as seen here"
    if prepared.models.dense.shape is None:
        choosing = choosing_seconds(prepared.models, list(_candidates(prepared, settings)), settings, speed)
        yield f"about {_minutes(choosing)} for analysis, plans and quality, where they are not there yet"
    healed = sum(model.arm.healing is not None for model in models)
    if settings.heal is not None:
        each = f"{settings.heal.minutes:g} minutes" if settings.heal.minutes else "a time that is not known before"
        yield f"{each} for each of {healed} models to heal, where they are not there yet"
    yield f"about {_minutes(seconds)} under load and starting, {seen}"
    yield json.dumps({"models": len(models), "loads": len(prepared.closed) + len(opened), "about_s": round(seconds)})


def _minutes(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} minute{'s' * (minutes > 1)}"


def _candidates(prepared: Prepared, settings: SweepSettings) -> Iterator[int]:
    """Yield how many sets are compared for each pruned model, in their order."""
    for choice in sweep_choices(settings, prepared.models.all[0].arm.blocks.num_blocks):
        own = method_named(choice.spec.name).candidates(choice.num_blocks, choice.k)
        yield own if choice.spec.rerank is None else choice.spec.rerank


def _tasks(prepared: Prepared, settings: SweepSettings) -> Iterator[str]:
    asked = settings.tasks
    if asked is None:
        return
    models = sum(model.arm.kind != "draft" for model in prepared.models.all)
    items = f"the first {asked.limit} items" if asked.limit else "all items"
    yield f"  tasks, {items} of each: {', '.join(task.name for task in asked.tasks)}, by {models} models in turn"
    if asked.missing:
        yield f"  left out, as {asked.tasks_from} lacks them: {', '.join(asked.missing)}"


def expected_open_workloads(prepared: Prepared, speed: MachineSpeed) -> list[Workload]:
    """Return the open loops at the rates asked for; `auto` takes shares of what the dense model is expected to give."""
    loads = prepared.settings.loads
    rates: list[tuple[float, ...]] = []
    for each in prepared.lengths:
        if not isinstance(loads.rates, str):
            rates.append(loads.rates)
            continue
        own = [load for load in prepared.closed if load.preset == each.preset]
        most = max(own, key=lambda load: load.concurrency or 0)
        rates.append(rates_for(most.prompts / round_seconds(prepared.models.all[0], most, speed)))
    return open_workloads(loads, prepared.lengths, rates)
