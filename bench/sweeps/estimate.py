"""Estimate how long a sweep will take: the roofline of each step at what this machine is seen to do, and start-ups."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.models.measured_model import MeasuredModel, MeasuredModels
from bench.models.roofline import Work, decode, prefill
from bench.records.schema import Workload
from bench.settings import Alive
from bench.sweeps.sweep_settings import SweepSettings
from mi_prun.quality.quality import HELD_OUT_TOKENS
from mi_prun.settings import SELF
from mi_prun.text.weighted_source import parse_sources

START_SECONDS = 45.0  # of an engine on CPU; a GPU engine that compiles takes as long
SIDE = 1024
COPY_BYTES = 64 << 20
STEP_SECONDS = 0.004  # what a step costs beside bytes and FLOPs
WINDOW_TOKENS = 2048  # at most, where the context is longer
SAMPLED_AT_ONCE = 16  # windows of text sampled from the model itself
# Passes over the ranking text, as seen in the selection study: for proposing sets and measuring the last of them, and
# for each set compared, as most are given up early.
PROPOSING, A_SET = 5, 1 / 32


@dataclass(frozen=True)
class MachineSpeed:
    """What a machine is seen to do."""

    bytes_per_s: float
    flops_per_s: float

    def seconds(self, work: Work) -> float:
        """Return how long a step takes, about."""
        return STEP_SECONDS + max(work.num_bytes / self.bytes_per_s, work.flops / self.flops_per_s)


def machine_speed() -> MachineSpeed:
    """Measure this machine's CPU by a product of matrices and a copy; the better of three."""
    import numpy as np

    matrix = np.ones((SIDE, SIDE), dtype=np.float32)
    block = np.ones(COPY_BYTES, dtype=np.uint8)
    products, copies = [], []
    for _ in range(3):
        begun = time.perf_counter()
        matrix @ matrix
        products.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        block.copy()
        copies.append(time.perf_counter() - begun)
    return MachineSpeed(2 * COPY_BYTES / min(copies), 2 * SIDE**3 / min(products))


def sweep_seconds(
    models: Sequence[MeasuredModel], loads: Sequence[Workload], rounds: int, alive: Alive, speed: MachineSpeed
) -> float:
    """Estimate the starts, and every round of every load on every model."""
    starts = len(models) * (1 if alive == "together" else rounds)
    return starts * START_SECONDS + rounds * sum(round_seconds(s, load, speed) for s in models for load in loads)


def choosing_seconds(
    models: MeasuredModels, candidates: Sequence[int], settings: SweepSettings, speed: MachineSpeed
) -> float:
    """Estimate analysis, plans and quality: passes over their texts x FLOPs of a pass; 0 where those are not known.

    candidates: sets that are compared for each pruned model, 0 where the first one is taken.
    """
    dense = models.all[0].weights
    if dense is None:
        return 0.0
    own = settings.analyze
    window = own.window_tokens or min(WINDOW_TOKENS, models.context or WINDOW_TOKENS)
    scoring, ranking, held_out = own.part_tokens
    kept = [1 - s.arm.blocks.block_ratio for s in models.all if s.arm.kind == "pruned" and not s.arm.healing]
    compared = sum(PROPOSING + share * count * A_SET for share, count in zip(kept, candidates, strict=True) if count)
    judged = held_out + (HELD_OUT_TOKENS if settings.quality_text is not None else 0)
    pass_work = prefill(dense, 1, window)
    logits = 2 * (window - 1) * dense.head_elements  # of every token, where a loss is measured
    a_token = speed.seconds(Work(pass_work.num_bytes, pass_work.flops + logits)) / window
    seconds = a_token * (scoring + ranking * compared + judged * (1 + sum(kept)))
    sources = parse_sources(own.sources)
    if sampled := sum(source.weight for source in sources if source.name == SELF):
        share = sampled / sum(source.weight for source in sources)
        steps = share * (scoring + ranking + held_out) / SAMPLED_AT_ONCE
        seconds += steps * speed.seconds(decode(dense, SAMPLED_AT_ONCE, window // 2))
    return seconds


def round_seconds(model: MeasuredModel, load: Workload, speed: MachineSpeed) -> float:
    """Estimate one round of a load on a model."""
    if load.rate_per_s is not None:
        return load.prompts / load.rate_per_s
    if model.weights is None or load.concurrency is None:
        return load.prompts * load.output_tokens * (STEP_SECONDS + model.weight_bytes / speed.bytes_per_s)
    batch, into, out = load.concurrency, round(load.input_tokens), round(load.output_tokens)
    turns = load.prompts / batch
    return turns * (
        batch * speed.seconds(prefill(model.weights, 1, into))
        + out * speed.seconds(decode(model.weights, batch, into + out // 2))
    )
