"""rounds.jsonl: what of a sweep has been measured, so that one that was killed goes on where it stopped."""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.records.schema import POINTS_NAME, ROUNDS_NAME, PointRecord, RoundRecord, Workload, append_record, read_lines
from bench.records.task_schema import GENERATIONS_NAME, TASKS_NAME, GenerationRecord, TaskRecord
from mi_prun.errors import UserError
from mi_prun.files import one_line_os_errors


class Journal:
    """Rounds of one run, by load, number and arm.

    A round of a load counts only where all arms were measured in it by one process: pairs lie close together in time.
    """

    def __init__(self, folder: Path, settings_sha256: str, labels: Sequence[str], *, again: bool = False) -> None:
        """Goes on with the newest run of the same settings in the folder, if any; `again` begins a new one."""
        self.session = uuid.uuid4().hex[:12]
        self._folder = folder
        self._labels = tuple(labels)
        self._rounds: dict[tuple[Workload, int], dict[str, RoundRecord]] = {}
        own = [found for found in read_rounds(folder) if found.settings_sha256 == settings_sha256]
        points = read_lines(folder, POINTS_NAME, PointRecord) if own else []
        self.resumed = bool(own) and not again
        self.run = own[-1].run if self.resumed else uuid.uuid4().hex[:12]
        self.loads_done = {(point.load, point.arm.label) for point in points if point.run == self.run}
        for found in own:
            if found.run == self.run:
                self._rounds.setdefault((found.load, found.number), {})[found.arm] = found

    def whole(self, load: Workload, number: int) -> bool:
        """Whether all arms have this round."""
        found = self._rounds.get((load, number), {})
        return set(found) == set(self._labels) and len({one.session for one in found.values()}) == 1

    def rounds(self, load: Workload, count: int) -> dict[str, list[RoundRecord]] | None:
        """By arm, in order; None while one is missing."""
        if not all(self.whole(load, number) for number in range(count)):
            return None
        return {label: [self._rounds[load, number][label] for number in range(count)] for label in self._labels}

    def append(self, record: RoundRecord) -> None:
        append_record(self._folder, record, ROUNDS_NAME)
        self._rounds.setdefault((record.load, record.number), {})[record.arm] = record


@contextlib.contextmanager
def results_folder(out: Path) -> Iterator[None]:
    """Make the folder, and keep it for this process alone; the mark goes with the process, however it ends.

    Raises UserError where it cannot be written, where another process works in it, or where this release could not read
    its records beside its own.
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
        read_rounds(out)
        read_lines(out, POINTS_NAME, PointRecord)
        read_lines(out, TASKS_NAME, TaskRecord)
        read_lines(out, GENERATIONS_NAME, GenerationRecord)
        yield
    finally:
        os.close(folder)


def read_rounds(folder: Path) -> list[RoundRecord]:
    return read_lines(folder, ROUNDS_NAME, RoundRecord)
