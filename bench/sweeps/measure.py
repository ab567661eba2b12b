"""Measure models under loads, interleaved round by round: A B, B A, A B. The result is a point for each model and load.

Everything is checked before the first engine is started. A round is on the disk as soon as it is measured, and a point
as soon as all its rounds are: a run that was killed goes on from them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from bench.engines.device import Device
from bench.engines.engine import EngineProcess
from bench.engines.flags import check_flags, measured_flags
from bench.engines.fleet import Fleet
from bench.engines.memory_check import engines_alive
from bench.load.driver import LoadGenerator, load_generator
from bench.load.prompt_files import Prompts, row_prompts, text_prompts
from bench.load.prompts import own_prompts
from bench.load.trace import Request
from bench.load.workloads import (
    RATE_SHARES,
    Lengths,
    check_workloads,
    closed_workloads,
    lengths_of,
    open_workloads,
    rates_for,
    served_context,
    with_context,
)
from bench.models.measured_model import MeasuredModel, MeasuredModels, plan_digest
from bench.records.acceptance import acceptance_between, counts_of
from bench.records.journal import Journal, ResultsFolder
from bench.records.machine import commit, environment, this_machine, versions
from bench.records.schema import FEW_ROUNDS, PointRecord, Provenance, RoundRecord, Workload
from bench.settings import Alive, MeasureSettings
from bench.sweeps.aggregate import points_of
from mi_prun.console import say

WhileServed = Callable[[EngineProcess, MeasuredModel, ResultsFolder], None]


@dataclass(frozen=True)
class Prepared:
    """What will be measured, all of it checked. A dry run and the run itself share this one preparation.

    closed: the closed loops; open loops follow when the rates are known. requests: of the trace. pieces: of the text,
    by preset. sweep: what `schema.Provenance` keeps under that name.
    """

    models: MeasuredModels
    settings: MeasureSettings
    lengths: list[Lengths]
    requests: list[Request]
    pieces: dict[str, Sequence[str]]
    closed: list[Workload]
    alive: Alive
    device: Device
    sweep: dict[str, str | int | bool | None] = field(default_factory=dict)

    def with_models(self, models: MeasuredModels) -> Prepared:
        """Return the same loads for other models. Only memory is looked at again. Raises UserError for too little."""
        alive = engines_alive(models.all, self.settings.serve_flags, self.settings.alive, self.device)
        return replace(self, models=models, alive=alive)


def prepare(models: MeasuredModels, settings: MeasureSettings) -> Prepared:
    """Check settings and memory, and make the loads. Nothing is started or written. Raises UserError."""
    check_workloads(settings.loads)
    check_flags(settings.serve_flags)
    own = None
    if settings.loads.prompts_from is not None:
        assert models.folder is not None  # only drafts take them, and a shape has none
        own = own_prompts(models.folder, settings.loads.prompts_from)
    lengths, requests = lengths_of(settings.loads, served_context(settings.serve_flags, models.context), own)
    settings = replace(settings, serve_flags=with_context(settings.serve_flags, models.context, lengths))
    device = Device()
    alive = engines_alive(models.all, settings.serve_flags, settings.alive, device)
    pieces: dict[str, Sequence[str]] = {}
    if (text := settings.loads.text) is not None:
        assert models.folder is not None  # a shape is refused a text
        rates = RATE_SHARES if isinstance(settings.loads.rates, str) else settings.loads.rates
        every = closed_workloads(settings.loads, lengths)
        every += open_workloads(settings.loads, lengths, [rates] * len(lengths))
        name, pieces = text_prompts(models.folder, text, every, settings.loads.rounds)
        settings = replace(settings, loads=replace(settings.loads, text=name))
    if own is not None:
        pieces = row_prompts(own, closed_workloads(settings.loads, lengths), settings.loads.rounds)
        settings = replace(settings, loads=replace(settings.loads, text=own.name, prompts_from=None))
    closed = closed_workloads(settings.loads, lengths)
    return Prepared(models, settings, lengths, requests, pieces, closed, alive, device)


def measure(prepared: Prepared, folder: ResultsFolder, while_served: WhileServed | None = None) -> list[PointRecord]:
    """Return all points of the run, load by load, dense first in each.

    `while_served` may use each engine before it is measured.
    """
    settings = prepared.settings
    provenance = provenance_of(prepared)
    labels = [model.arm.label for model in prepared.models.all]
    journal = Journal(folder, provenance.settings_sha256, labels, again=settings.again)
    if journal.resumed:
        say(f"going on with run {journal.run}: what {folder.path} has of it is not measured again")
    elif settings.alive is None and not settings.again:
        _say_other_run(prepared, folder)
    if settings.loads.rounds < FEW_ROUNDS:
        say(f"fewer than {FEW_ROUNDS} rounds: intervals will be wide, or none")
    points: list[PointRecord] = []
    with (
        load_generator(prepared.device, Prompts(prepared.requests, prepared.pieces)) as generator,
        Fleet(measured_flags(settings.serve_flags), prepared.alive, prepared.device) as fleet,
    ):
        run = _Run(prepared, journal, provenance, generator, fleet, while_served)
        rates = settings.loads.rates
        if isinstance(rates, str):
            points += run.points(prepared.closed)
            more = [rates_for(_dense_rate(points, each.preset)) for each in prepared.lengths]
            points += run.points(open_workloads(settings.loads, prepared.lengths, more))
        else:
            opened = open_workloads(settings.loads, prepared.lengths, [rates] * len(prepared.lengths))
            points += run.points([*prepared.closed, *opened])
    return points


def _dense_rate(points: Sequence[PointRecord], preset: str) -> float:
    """Return the dense model's requests/s at the highest concurrency."""
    own = [p for p in points if p.load.preset == preset and p.arm.kind == "dense" and p.load.concurrency]
    return max(own, key=lambda p: p.load.concurrency or 0).speed.requests_per_s


@dataclass
class _Run:
    prepared: Prepared
    journal: Journal
    provenance: Provenance
    generator: LoadGenerator
    fleet: Fleet
    while_served: WhileServed | None
    _warm: list[tuple[EngineProcess, Workload]] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)

    def points(self, loads: Sequence[Workload]) -> list[PointRecord]:
        """Measure what is missing. A load's points are on the disk as soon as its last round is."""
        for load, number, model in self._steps(loads):
            self._measure(load, number, model)
            self._finish([load])
        self._finish(loads)  # those that an earlier process had measured whole
        points = self.journal.points
        return [point for load in loads for point in points if point.load == load]

    def _steps(self, loads: Sequence[Workload]) -> Iterator[tuple[Workload, int, MeasuredModel]]:
        """Yield the missing rounds in the order in which they are measured.

        Engines side by side: load by load. One at a time: round by round, all loads on an engine. Every second round
        begins with the last model, so that a machine that drifts favours none.
        """
        models, rounds = self.prepared.models.all, range(self.prepared.settings.loads.rounds)
        alone = self.prepared.alive == "alone"
        if not alone:
            cycles = [([load], number) for load in loads for number in rounds]
        else:
            cycles = [(list(loads), number) for number in rounds]
        for own, number in cycles:
            missing = [load for load in own if not self.journal.whole(load, number)]
            if alone:
                self.fleet.stop()  # else the last one of a round would be the first one of the next, not started anew
            for model, load in itertools.product(models[::-1] if number % 2 else models, missing):
                yield load, number, model

    def _measure(self, load: Workload, number: int, model: MeasuredModel) -> None:
        label, rounds = model.arm.label, self.prepared.settings.loads.rounds
        engine = self.fleet.engine(model)
        if label not in self._seen and self.while_served is not None:
            self.while_served(engine, model, self.journal.folder)
        self._seen.add(label)
        if (engine, load) not in self._warm:  # an engine that is started anew is cold, even at the same port
            self.generator.warm_up(engine, load)
            self._warm.append((engine, load))
        drafts = model.arm.kind == "draft"
        before = counts_of(engine.metrics()) if drafts else {}
        figures = self.generator.round(engine, load, number)
        say(f"{load.label}, round {number + 1} of {rounds}, {label}: {figures.output_tokens_per_s:,.1f} tokens/s")
        self.journal.add_round(
            RoundRecord(
                run=self.journal.run,
                settings_sha256=self.provenance.settings_sha256,
                session=self.journal.session,
                time=datetime.now(UTC).isoformat(timespec="seconds"),
                arm=label,
                load=load,
                number=number,
                figures=figures,
                startup_s=engine.startup_s,
                load_s=engine.load_s,
                engine_weight_bytes=engine.weight_bytes,
                kv_tokens=engine.kv_tokens(),
                peak_device_bytes=self.fleet.peak_device_bytes(model),
                peak_rss_bytes=engine.group.peak_rss_bytes,
                acceptance=acceptance_between(before, counts_of(engine.metrics())) if drafts else None,
            )
        )

    def _finish(self, loads: Sequence[Workload]) -> None:
        """Write the points of loads whose rounds are all there, but for those that are on the disk."""
        models = self.prepared.models
        for load in loads:
            rounds = self.journal.rounds(load, self.prepared.settings.loads.rounds)
            if rounds is not None:
                self.journal.add_points(
                    points_of(self.journal.run, models.dense, models.all, load, rounds, self.provenance)
                )


def _say_other_run(prepared: Prepared, folder: ResultsFolder) -> None:
    """Say why a run that is there is not gone on with, where that is the memory that is free now."""
    other: Alive = "alone" if prepared.alive == "together" else "together"
    theirs = provenance_of(replace(prepared, alive=other)).settings_sha256
    if any(record.settings_sha256 == theirs for record in folder.rounds):
        say(
            f"a new run begins: by the memory that is free now engines are alive {prepared.alive}, and in the run that "
            f"{folder.path} has they were alive {other} (--engines {other} goes on with that one)"
        )


def provenance_of(prepared: Prepared) -> Provenance:
    """Say where the figures of a run will come from, with the digest of all that was asked for."""
    settings = prepared.settings
    known: dict[str, Any] = {
        "machine": this_machine(),
        "versions": versions(),
        "commit": commit(),
        "serve_flags": measured_flags(settings.serve_flags),
        "environment": environment(),
        "seed": settings.loads.seed,
        "engines_alive": prepared.alive,
    }
    asked = {
        "dense": prepared.models.dense.model_dump(exclude={"name"}),
        "arms": [model.arm.model_dump() for model in prepared.models.all],
        "plans": [model.plan and plan_digest(model.plan) for model in prepared.models.all],
        "quality": prepared.models.quality_text,
        "loads": asdict(settings.loads) | {"trace": [each.trace and each.trace.sha256 for each in prepared.lengths]},
        "pieces": prepared.pieces,
        **known,
        "machine": known["machine"].model_dump(),
    }
    text = json.dumps(asked, sort_keys=True, default=str)
    return Provenance(settings_sha256=sha256(text.encode()).hexdigest(), sweep=prepared.sweep, **known)
