"""`mi-prun-bench sweep --dry-run`: what would be measured, whether it fits, and about how long it takes."""

from __future__ import annotations

from collections.abc import Iterator

from bench.estimate import MachineSpeed, machine_speed, round_seconds, sweep_seconds
from bench.loads import open_loads, rates_for
from bench.measure import Prepared
from bench.memory_check import GIB, room
from bench.record import Load


def describe(prepared: Prepared) -> Iterator[str]:
    """Lines for people."""
    subjects, loads = prepared.subjects.all, prepared.settings.loads
    speed = machine_speed()
    opened = expected_open_loads(prepared, speed)
    free, needed = room(subjects, prepared.settings.serve_flags, prepared.device)
    yield f"{prepared.subjects.dense.name}: {len(subjects)} models, {len(prepared.closed) + len(opened)} loads, " + (
        f"{loads.rounds} rounds, engines {prepared.alive} ({sum(needed) / GIB:.1f} GiB for all, {free / GIB:.1f} free)"
    )
    for subject, size in zip(subjects, needed, strict=True):
        blocks = subject.arm.blocks
        yield (
            f"  {subject.arm.label}: {blocks.num_blocks - len(blocks.dropped)} of {blocks.num_blocks} blocks, weights "
            f"{subject.weight_bytes / 2**20:,.1f} MiB, about {size / GIB:.1f} GiB in all"
        )
    for load in (*prepared.closed, *opened):
        yield (
            f"  {load.label}: {load.prompts} requests a round, {load.input_tokens:g} tokens in, "
            f"{load.output_tokens:g} out"
        )
    if prepared.requests:
        yield f"  trace: {len(prepared.requests):,} requests fit"
    seconds = sweep_seconds(subjects, [*prepared.closed, *opened], loads.rounds, prepared.alive, speed)
    yield (
        f"about {seconds / 60:.0f} minutes under load and starting, by {speed.bytes_per_s / 1e9:.0f} GB/s and "
        f"{speed.flops_per_s / 1e9:.0f} GFLOP/s as seen here; analysis, plans and quality come on top"
    )


def expected_open_loads(prepared: Prepared, speed: MachineSpeed) -> list[Load]:
    """By the rates asked for; `auto` takes shares of what the dense model is expected to give."""
    loads = prepared.settings.loads
    rates: list[tuple[float, ...]] = []
    for each in prepared.lengths:
        if not isinstance(loads.rates, str):
            rates.append(loads.rates)
            continue
        own = [load for load in prepared.closed if load.preset == each.preset]
        most = max(own, key=lambda load: load.concurrency or 0)
        rates.append(rates_for(most.prompts / round_seconds(prepared.subjects.all[0], most, speed)))
    return open_loads(loads, prepared.lengths, rates)
