"""The records of a results folder, parsed once; and the rounds that a run has, so that a killed one goes on.

`results_folder` reads what is there, keeps other processes out, and hands one `ResultsFolder` down. Whoever measures
appends through it: the file and the parsed records grow together, and nothing is read a second time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.records.schema import POINTS_NAME, ROUNDS_NAME, PointRecord, RoundRecord, Workload, append_record, read_lines
from bench.records.task_schema import GENERATIONS_NAME, TASKS_NAME, GenerationRecord, TaskRecord
from mi_prun.console import kept
from mi_prun.errors import UserError
from mi_prun.files import one_line_os_errors


@dataclass(frozen=True)
class ResultsFolder:
    """A results folder that this process writes to. The lists hold what its files hold, in the order of the lines."""

    path: Path
    rounds: list[RoundRecord]
    points: list[PointRecord]
    tasks: list[TaskRecord]
    generations: list[GenerationRecord]

    def add_round(self, record: RoundRecord) -> None:
        """Append a record to rounds.jsonl."""
        append_record(self.path, record, ROUNDS_NAME)
        self.rounds.append(record)

    def add_point(self, record: PointRecord) -> None:
        """Append a record to points.jsonl."""
        append_record(self.path, record, POINTS_NAME)
        self.points.append(record)

    def add_task(self, record: TaskRecord) -> None:
        """Append a record to tasks.jsonl."""
        append_record(self.path, record, TASKS_NAME)
        self.tasks.append(record)

    def add_generation(self, record: GenerationRecord) -> None:
        """Append a record to generations.jsonl."""
        append_record(self.path, record, GENERATIONS_NAME)
        self.generations.append(record)


@contextlib.contextmanager
def results_folder(out: Path, again: str = "goes on from it") -> Iterator[ResultsFolder]:
    """Make the folder if it is missing, lock it for this process, and yield it with all its records.

    The lock goes with the process, however that ends. Raises UserError where the folder cannot be written, where
    another process works in it, and where one of its lines is not this release's.
    """
    with one_line_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        folder = os.open(out, os.O_RDONLY)
    try:
        if not os.access(out, os.W_OK):
            raise UserError(f"--output {out} cannot be written to; choose another folder")
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"--output {out}: another bench writes there; wait for it, or choose another") from error
        except OSError:  # a file system without locks
            pass
        folder_read = ResultsFolder(
            path=out,
            rounds=read_lines(out, ROUNDS_NAME, RoundRecord),
            points=read_lines(out, POINTS_NAME, PointRecord),
            tasks=read_lines(out, TASKS_NAME, TaskRecord),
            generations=read_lines(out, GENERATIONS_NAME, GenerationRecord),
        )
        with kept(f"what was measured so far is kept in {out}; the same command {again}"):
            yield folder_read
    finally:
        os.close(folder)


class Journal:
    """The rounds of one run, by load, number and arm.

    A round of a load counts only where one process measured all arms in it: pairs then lie close together in time.
    """

    def __init__(
        self, folder: ResultsFolder, settings_sha256: str, labels: Sequence[str], *, again: bool = False
    ) -> None:
        """Go on with the folder's newest run of the same settings, if there is one. `again` begins a new run."""
        self.session = uuid.uuid4().hex[:12]
        self.folder = folder
        self._labels = tuple(labels)
        self._rounds: dict[tuple[Workload, int], dict[str, RoundRecord]] = {}
        same_settings = [record for record in folder.rounds if record.settings_sha256 == settings_sha256]
        self.resumed = bool(same_settings) and not again
        self.run = same_settings[-1].run if self.resumed else uuid.uuid4().hex[:12]
        for record in same_settings:
            if record.run == self.run:
                self._keep(record)

    @property
    def points(self) -> list[PointRecord]:
        """The points of this run, in the order they were made."""
        return [point for point in self.folder.points if point.run == self.run]

    def whole(self, load: Workload, number: int) -> bool:
        """Tell whether one process has measured this round on all arms."""
        by_arm = self._rounds.get((load, number), {})
        return set(by_arm) == set(self._labels) and len({record.session for record in by_arm.values()}) == 1

    def rounds(self, load: Workload, count: int) -> dict[str, list[RoundRecord]] | None:
        """Return the rounds of a load by arm, in order; None while one is missing."""
        if not all(self.whole(load, number) for number in range(count)):
            return None
        return {label: [self._rounds[load, number][label] for number in range(count)] for label in self._labels}

    def add_round(self, record: RoundRecord) -> None:
        """Append a round to the folder and to this run."""
        self.folder.add_round(record)
        self._keep(record)

    def add_points(self, points: Sequence[PointRecord]) -> None:
        """Append points to the folder, but for those that are there."""
        there = {(point.load, point.arm.label) for point in self.points}
        for point in points:
            if (point.load, point.arm.label) not in there:
                self.folder.add_point(point)

    def _keep(self, record: RoundRecord) -> None:
        self._rounds.setdefault((record.load, record.number), {})[record.arm] = record
