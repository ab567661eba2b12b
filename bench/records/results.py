"""Read a results folder as its readers see it: runs with their models and loads, and what the models were asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.records.schema import POINTS_NAME, MeasuredArm, PointRecord, Workload, read_lines, read_points
from bench.records.task_schema import GENERATIONS_NAME, TASKS_NAME, GenerationRecord, TaskRecord
from mi_prun.errors import UserError


@dataclass(frozen=True)
class Run:
    """The points that were measured side by side. main: the first load, which headlines and plots are of."""

    name: str
    points: tuple[PointRecord, ...]

    @property
    def dense(self) -> PointRecord:
        """The dense model's point under the main load."""
        return next(point for point in self.points if point.arm.kind == "dense")

    @property
    def main(self) -> Workload:
        """The load that headlines and plots are of."""
        return self.dense.load

    @property
    def judged(self) -> bool:
        """Return whether the quality of a pruned model was measured."""
        return any(point.quality is not None for point in self.points if point.arm.kind == "pruned")

    @property
    def loads(self) -> list[Workload]:
        """The loads, in the order they were run."""
        loads_in_order: list[Workload] = []
        for point in self.points:
            if point.load not in loads_in_order:
                loads_in_order.append(point.load)
        return loads_in_order

    @property
    def arms(self) -> list[MeasuredArm]:
        """The arms: dense, pruned by the number of blocks dropped, healed behind pruned, drafts."""
        kinds = ("dense", "pruned", "draft")
        labels = {point.arm.label: point.arm for point in self.points}

        def place(arm: MeasuredArm) -> tuple[object, ...]:
            return kinds.index(arm.kind), len(arm.blocks.dropped), arm.healing is not None, arm.label

        return sorted(labels.values(), key=place)

    def point(self, arm: MeasuredArm, load: Workload) -> PointRecord | None:
        """Return an arm's point under a load, the last one were there several; None where there is none."""
        own = [point for point in self.points if point.arm.label == arm.label and point.load == load]
        return own[-1] if own else None

    def under(self, load: Workload) -> list[PointRecord]:
        """Return every arm's point under a load, dense first."""
        return [point for arm in self.arms if (point := self.point(arm, load)) is not None]


@dataclass(frozen=True)
class Results:
    """What a results folder holds. runs: the newest first; those killed before their dense model was measured are left
    out.
    """

    runs: tuple[Run, ...]
    tasks: tuple[TaskRecord, ...]
    generations: tuple[GenerationRecord, ...]

    def tasks_of(self, weights_sha256: str | None) -> list[TaskRecord]:
        """Return the task records of a dense model and of what was made from it."""
        return [record for record in self.tasks if record.dense.weights_sha256 == weights_sha256]

    def generations_of(self, weights_sha256: str | None) -> list[GenerationRecord]:
        """Return the generation records of a dense model and of what was made from it."""
        return [record for record in self.generations if record.dense.weights_sha256 == weights_sha256]


def read_results(folder: Path) -> Results:
    """Read a results folder. Raises UserError where there is nothing to show, or a line is not ours."""
    tasks = read_lines(folder, TASKS_NAME, TaskRecord)
    generations = read_lines(folder, GENERATIONS_NAME, GenerationRecord)
    points = read_points(folder) if (folder / POINTS_NAME).exists() or not (tasks or generations) else []
    runs = runs_of(points)
    if not (runs or tasks or generations):
        if points:
            raise UserError(f"{folder} holds no run with its dense model (all were interrupted); run again")
        raise UserError(f"{folder} holds no record yet; make some with `mi-prun-bench sweep`")
    return Results(tuple(runs), tuple(tasks), tuple(generations))


def runs_of(points: Sequence[PointRecord]) -> list[Run]:
    """Group points into runs, the newest first. Runs without their dense model are left out."""
    names = dict.fromkeys(point.run for point in reversed(points))
    runs = [Run(name, tuple(point for point in points if point.run == name)) for name in names]
    return [run for run in runs if any(point.arm.kind == "dense" for point in run.points)]


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    name: as the user wrote it. run: None where only tasks are there. others: runs of the folder beside it, as they can
    be named, where the user named none.
    """

    name: str
    run: Run | None
    tasks: tuple[TaskRecord, ...]
    others: tuple[str, ...] = ()

    @property
    def origin(self) -> PointRecord | TaskRecord:
        """A record that says which model and machine this side is of."""
        return self.run.dense if self.run else self.tasks[-1]


def read_side(place: str, wanted: Callable[[Run], bool] = lambda run: True) -> Side:
    """Read one side of a comparison. Raises UserError where there is nothing of that name.

    `FOLDER` is its newest run that is `wanted`, or its newest, and the tasks of that model. `FOLDER@NAME` is the run
    whose name begins so, or the newest of that commit, and the tasks of the same commit.
    """
    folder, at, name = place.rpartition("@")
    if not at or Path(place).exists():
        folder, name = place, ""
    results = read_results(Path(folder))
    named = [_named(results.runs, folder, name)] if name and results.runs else []
    run = next(iter([*named, *filter(wanted, results.runs), *results.runs]), None)
    tasks = results.tasks
    if name:
        commit = run.dense.provenance.commit if run else name
        tasks = tuple(record for record in tasks if (record.provenance.commit or "").startswith(commit or "?"))
    dense = run.dense.dense if run else (tasks[-1].dense if tasks else None)
    if dense is None:
        raise UserError(f"{folder} has neither a run nor tasks{f' of commit {name}' if name else ''}")
    own = tuple(record for record in tasks if record.dense.weights_sha256 == dense.weights_sha256)
    others = () if name else tuple(f"{folder}@{other.name}" for other in results.runs if other is not run)
    return Side(place, run, own, others)


def _named(runs: Sequence[Run], folder: str, name: str) -> Run:
    matching = [run for run in runs if run.name.startswith(name)]
    matching += [run for run in runs if (run.dense.provenance.commit or "").startswith(name)]
    if not matching:
        there = ", ".join(f"{run.name} (commit {run.dense.provenance.commit or 'unknown'})" for run in runs)
        raise UserError(f"{folder} has no run or commit {name!r}; it has {there}")
    return matching[0]
